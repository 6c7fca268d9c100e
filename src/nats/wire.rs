//! What a server sends to a client, as bytes -> what it says. No IO.
//!
//! A large body has an allocation of its own, and `room` lets the socket be read straight into it;
//! small ones are slices of what a read brought.

use bytes::buf::Limit;
use bytes::{BufMut, Bytes, BytesMut};

use crate::error::{Error, ErrorKind, Result};

/// What one read asks for while no large body is due.
const READ_BYTES: usize = 64 << 10;
/// From here on a body gets an allocation of its own.
const LARGE_BYTES_MIN: usize = 16 << 10;
/// A forged size costs address space only; this bounds that.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// INFO of a large cluster is the longest line.
const LINE_BYTES_MAX: usize = 1 << 20;
const END: &[u8] = b"\r\n";

/// A message for one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The number that the client gave the subscription.
    pub sid: u64,
    /// As on the wire.
    pub subject: Bytes,
    /// Empty: no answer is wanted.
    pub reply: Bytes,
    /// The header block as on the wire; empty: none.
    pub headers: Bytes,
    /// The payload.
    pub body: Bytes,
}

/// One thing that the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A message.
    Message(Arrival),
    /// It wants a PONG.
    Ping,
    /// The answer to a PING.
    Pong,
    /// `-ERR`, with what follows it.
    Refusal(Bytes),
    /// `INFO`: JSON.
    Info(Bytes),
}

/// The first line of a message whose body is due.
#[derive(Debug)]
struct Head {
    arrival: Arrival,
    headers_bytes: usize,
    total_bytes: usize,
}

/// The state of one connection's stream of bytes.
#[derive(Debug, Default)]
pub struct Wire {
    /// Lines and small bodies.
    small: BytesMut,
    /// Bytes of `small` in which no line ends.
    scanned_bytes: usize,
    head: Option<Head>,
    /// The large body that is due, as far as it came.
    large: Option<BytesMut>,
}

impl Wire {
    /// Where the next bytes go; what comes is to be taken with [`Self::next`] until there is none.
    pub fn room(&mut self) -> Limit<&mut BytesMut> {
        if let (Some(large), Some(head)) = (&mut self.large, &self.head) {
            let missing_bytes = head.due_bytes() - large.len();
            return large.limit(missing_bytes);
        }
        if self.small.capacity() - self.small.len() < READ_BYTES / 8 {
            self.small.reserve(READ_BYTES);
        }
        let free_bytes = self.small.capacity() - self.small.len();
        (&mut self.small).limit(free_bytes)
    }

    /// The next thing that was said, as soon as all of it came.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for what is no NATS, and for sizes beyond 1 GiB.
    pub fn take(&mut self) -> Result<Option<Said>> {
        loop {
            if let Some(head) = self.head.take() {
                return self.message(head);
            }
            let Some(line) = self.line()? else { return Ok(None) };
            match read_line(&line)? {
                Line::Said(said) => return Ok(Some(said)),
                Line::Head(head) => self.head = Some(head),
                Line::Nothing => {}
            }
        }
    }

    /// Takes bytes that somebody else read; gives what they say.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Said>> {
        let (mut said, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            let mut room = self.room();
            let (now, later) = rest.split_at(room.remaining_mut().min(rest.len()));
            room.put_slice(now);
            rest = later;
            while let Some(one) = self.take()? {
                said.push(one);
            }
        }
        Ok(said)
    }

    /// The next whole line, without its end.
    fn line(&mut self) -> Result<Option<Bytes>> {
        let fresh = self.small.get(self.scanned_bytes..).unwrap_or_default();
        let Some(at) = fresh.iter().position(|byte| *byte == b'\n') else {
            self.scanned_bytes = self.small.len();
            if self.scanned_bytes > LINE_BYTES_MAX {
                return Err(corrupt(&format!("a line of more than {LINE_BYTES_MAX} bytes")));
            }
            return Ok(None);
        };
        let line = self.small.split_to(self.scanned_bytes + at + 1).freeze();
        self.scanned_bytes = 0;
        let line = line.strip_suffix(END).map(|text| line.slice_ref(text));
        line.map(Some).ok_or_else(|| corrupt("a line that ends without CR"))
    }

    /// The message, if all of it came; else its head is kept.
    fn message(&mut self, head: Head) -> Result<Option<Said>> {
        let due_bytes = head.due_bytes();
        let have_bytes = self.large.as_ref().unwrap_or(&self.small).len();
        if have_bytes < due_bytes {
            if self.large.is_none() && due_bytes > LARGE_BYTES_MIN {
                let mut large = BytesMut::with_capacity(due_bytes);
                large.extend_from_slice(&self.small);
                self.small.clear();
                self.large = Some(large);
            }
            self.head = Some(head);
            return Ok(None);
        }
        let mut whole = self.large.take().unwrap_or_else(|| self.small.split_to(due_bytes));
        if !whole.ends_with(END) {
            return Err(corrupt("a message that does not end where it should"));
        }
        whole.truncate(head.total_bytes);
        let mut arrival = head.arrival;
        arrival.headers = whole.split_to(head.headers_bytes).freeze();
        arrival.body = whole.freeze();
        Ok(Some(Said::Message(arrival)))
    }
}

impl Head {
    fn due_bytes(&self) -> usize {
        self.total_bytes + END.len()
    }
}

enum Line {
    Said(Said),
    Head(Head),
    Nothing,
}

fn read_line(line: &Bytes) -> Result<Line> {
    let (word, rest) = match line.iter().position(u8::is_ascii_whitespace) {
        Some(at) => (line.slice(..at), line.slice_ref(line.slice(at..).trim_ascii())),
        None => (line.clone(), Bytes::new()),
    };
    Ok(match word.as_ref() {
        b"MSG" => Line::Head(read_head(&rest, false)?),
        b"HMSG" => Line::Head(read_head(&rest, true)?),
        b"PING" => Line::Said(Said::Ping),
        b"PONG" => Line::Said(Said::Pong),
        b"-ERR" => Line::Said(Said::Refusal(rest)),
        b"INFO" => Line::Said(Said::Info(rest)),
        b"+OK" => Line::Nothing,
        _ => return Err(corrupt("an unknown operation")),
    })
}

/// `subject sid [reply] bytes`, with headers `subject sid [reply] header_bytes bytes`.
fn read_head(line: &Bytes, has_headers: bool) -> Result<Head> {
    let malformed = || corrupt("a malformed message");
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut next = || words.next().ok_or_else(malformed);
    let (subject, sid) = (next()?, number(next()?)?);
    let mut rest: Vec<&[u8]> = words.collect();
    let total_bytes = usize::try_from(number(rest.pop().ok_or_else(malformed)?)?);
    let headers_bytes = if has_headers { number(rest.pop().ok_or_else(malformed)?)? } else { 0 };
    let reply = rest.pop().unwrap_or_default();
    let total_bytes = total_bytes.ok().filter(|bytes| *bytes <= MESSAGE_BYTES_MAX);
    let total_bytes = total_bytes
        .ok_or_else(|| corrupt(&format!("a message of more than {MESSAGE_BYTES_MAX} bytes")))?;
    let headers_bytes = usize::try_from(headers_bytes).ok().filter(|bytes| *bytes <= total_bytes);
    let headers_bytes = headers_bytes.ok_or_else(malformed)?;
    if !rest.is_empty() {
        return Err(malformed());
    }
    let arrival = Arrival {
        sid,
        subject: line.slice_ref(subject),
        reply: if reply.is_empty() { Bytes::new() } else { line.slice_ref(reply) },
        headers: Bytes::new(),
        body: Bytes::new(),
    };
    Ok(Head { arrival, headers_bytes, total_bytes })
}

fn number(word: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(word).ok().filter(|_| word.iter().all(u8::is_ascii_digit));
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| corrupt("a number that is none"))
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"INFO {\"a\": 1} \r\nPING\r\n+OK\r\nMSG a.b 7 5\r\nhel\r\n\r\n\
        PONG\r\nHMSG a 8 back.to 12 14\r\nNATS/1.0\r\n\r\nhi\r\nMSG \t c  9  d 0\r\n\r\n\
        -ERR 'Some Words'\r\nMSG big 1 40000\r\n";

    fn stream() -> Vec<u8> {
        let mut bytes = STREAM.to_vec();
        bytes.extend((0..40_000_u32).map(|n| (n % 251) as u8));
        bytes.extend(b"\r\nPING\r\n");
        bytes
    }

    /// Fed in pieces; what was said.
    fn fed(bytes: &[u8], piece: usize) -> std::result::Result<Vec<Said>, ErrorKind> {
        let (mut wire, mut said) = (Wire::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            said.extend(wire.feed(piece).map_err(|error| error.kind())?);
        }
        Ok(said)
    }

    /// Subscription, subject, reply, headers, bytes of the body.
    type Seen<'a> = (u64, &'a [u8], &'a [u8], &'a [u8], usize);

    #[test]
    fn pieces_of_every_size_say_the_same() {
        let bytes = stream();
        let whole = fed(&bytes, bytes.len()).unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(whole.len(), 9);
        for piece in [1, 2, 3, 7, 100, 4096, 16 << 10, 39_999] {
            assert_eq!(fed(&bytes, piece).as_ref(), Ok(&whole), "pieces of {piece}");
        }
        let messages = whole.iter().filter_map(|said| match said {
            Said::Message(arrival) => Some((
                arrival.sid,
                arrival.subject.as_ref(),
                arrival.reply.as_ref(),
                arrival.headers.as_ref(),
                arrival.body.len(),
            )),
            _ => None,
        });
        let expected: [Seen<'_>; 4] = [
            (7, b"a.b", b"", b"", 5),
            (8, b"a", b"back.to", b"NATS/1.0\r\n\r\n", 2),
            (9, b"c", b"d", b"", 0),
            (1, b"big", b"", b"", 40_000),
        ];
        assert_eq!(messages.collect::<Vec<_>>(), expected);
        assert!(whole.contains(&Said::Refusal(Bytes::from_static(b"'Some Words'"))));
        assert!(whole.contains(&Said::Info(Bytes::from_static(b"{\"a\": 1}"))));
    }

    #[test]
    fn what_is_no_nats_is_refused() {
        let refused: [&[u8]; 9] = [
            b"HELLO\r\n",
            b"PING\n",
            b"MSG a 1\r\n",
            b"MSG a 1 x y 5\r\n",
            b"MSG a -1 5\r\n",
            b"MSG a 1 +5\r\n",
            b"MSG a 1 5\r\nhelloXY",
            b"HMSG a 1 9 5\r\n",
            b"MSG a 1 99999999999999999999\r\n",
        ];
        for bytes in refused {
            assert_eq!(fed(bytes, 4), Err(ErrorKind::Corrupt), "{bytes:?}");
        }
        assert_eq!(fed(b"MSG a 1 1073741825\r\n", 4), Err(ErrorKind::Corrupt));
        assert_eq!(fed(&vec![b'x'; 2 << 20], 4096), Err(ErrorKind::Corrupt));
    }
}
