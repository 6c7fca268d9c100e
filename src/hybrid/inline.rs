//! Inline entries: small messages that lie in the journal whole, several in one entry.
//!
//! Little-endian:
//!
//! ```text
//!   0   1  kind = 0
//!   1   3  zero
//!   4   4  messages n
//!   then for each of the n messages:
//!       4  length of the user headers, bytes
//!       h  user headers: count u16, then per header: key length u16, key, value length u32, value
//!       4  CRC-32C of the user headers
//!       .  its frames, as many as the first one says:
//!            4  body length
//!            .  frame header (see frame::header)
//!            .  zeros, until the body begins at a multiple of 64 (of 16 for bodies under 64 bytes)
//!            .  body
//! ```
//!
//! Entries are read into 64-byte aligned memory, so a raw body can be handed out where it lies.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{
    AlignedWriter, Assembly, CHUNK_BYTES_MAX, Codec, Header, Headers, Incoming, Layout, Outgoing,
    Plan, checksum, decode_into,
};
use crate::hybrid::entry::{KIND_INLINE, Reader, damaged};

/// Bytes before the first message.
const PREFIX_BYTES: usize = 8;
/// Raw bytes of one coded frame: what is decoded in one go.
const CODED_CHUNK_BYTES_MAX: u32 = 1 << 20;
/// What a message takes beside its payload and headers, about; the writer grows where it is more.
const OVERHEAD_BYTES: usize = 256;
/// Raw bodies of this size and more are not copied into the entry.
const BORROWED_BYTES_MIN: usize = 32 << 10;

/// A message as it lies in an entry.
pub(super) struct InlineMessage {
    pub(super) incoming: Incoming,
    pub(super) headers: Headers,
}

/// Collects the messages of one entry.
pub(super) struct InlineEntry {
    writer: AlignedWriter,
    /// The body of the last frame, where it was not copied. It ends the entry.
    borrowed: Option<Bytes>,
    messages: u32,
}

/// What a message came to in its entry.
#[derive(Clone, Copy, Default)]
pub(super) struct Encoded {
    pub(super) frames_count: u32,
    pub(super) wire_bytes: u64,
}

/// A payload that the caller may change while the entry borrows it, and what it has to be.
pub(super) struct Borrowed {
    payload: Bytes,
    checksum: u32,
}

impl Borrowed {
    /// # Errors
    /// [`ErrorKind::BufferMutated`] when it is not what it was.
    pub(super) fn verify(&self) -> Result<()> {
        if checksum(&self.payload) == self.checksum { Ok(()) } else { Err(mutated()) }
    }
}

impl InlineEntry {
    /// An entry with room for payloads of `payload_bytes` in `messages`.
    pub(super) fn with_room(payload_bytes: usize, messages: usize) -> Result<Self> {
        let capacity = PREFIX_BYTES + payload_bytes + messages * OVERHEAD_BYTES;
        let mut writer = AlignedWriter::with_capacity(capacity)?;
        writer.extend(&[KIND_INLINE, 0, 0, 0, 0, 0, 0, 0])?;
        Ok(Self { writer, borrowed: None, messages: 0 })
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.writer.len() + self.borrowed.as_ref().map_or(0, Bytes::len)
    }

    /// Nothing may follow a borrowed body.
    pub(super) fn is_full(&self) -> bool {
        self.borrowed.is_some()
    }

    /// Adds a message. A raw payload of 32 KiB or more is not copied; the caller has to verify what
    /// comes back in `borrowed` once it is written. A small one is copied, and the copy verified.
    pub(super) fn push(
        &mut self,
        message: &Outgoing,
        headers: &Headers,
        codec: Codec,
        writable: bool,
        borrowed: &mut Vec<Borrowed>,
    ) -> Result<Encoded> {
        let before = self.len();
        self.headers(headers)?;
        let itemsize = message.layout.as_ref().map_or(1, Layout::itemsize);
        let chunk_bytes_max =
            if codec == Codec::Raw { CHUNK_BYTES_MAX } else { CODED_CHUNK_BYTES_MAX };
        let plan = Plan::new(message.payload.len() as u64, itemsize, chunk_bytes_max)?;
        let mut head = Vec::with_capacity(OVERHEAD_BYTES);
        for index in 0..plan.count {
            let frame = message.frame(&plan, index, codec)?;
            head.clear();
            let body_bytes = u32::try_from(frame.body.len())
                .map_err(|_| Error::new(ErrorKind::TooLarge, "frame body exceeds 4 GiB"))?;
            head.extend_from_slice(&body_bytes.to_le_bytes());
            frame.header.encode(&mut head);
            self.writer.extend(&head)?;
            self.writer.pad(body_alignment(frame.body.len()))?;
            let raw = frame.header.codec == Codec::Raw;
            if raw && plan.count == 1 && frame.body.len() >= BORROWED_BYTES_MIN {
                if writable {
                    let (payload, checksum) = (frame.body.clone(), frame.header.checksum);
                    borrowed.push(Borrowed { payload, checksum });
                }
                self.borrowed = Some(frame.body);
            } else {
                let start = self.writer.len();
                self.writer.extend(&frame.body)?;
                if writable {
                    let copy = self.writer.written().get(start..).unwrap_or_default();
                    verify_copy(&frame.header, itemsize, copy)?;
                }
            }
        }
        self.messages += 1;
        let wire_bytes = (self.len() - before) as u64;
        Ok(Encoded { frames_count: plan.count, wire_bytes })
    }

    /// The entry, in slices: what was written, and the borrowed body where there is one.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.writer.overwrite(4, &self.messages.to_le_bytes());
        let mut slices = vec![self.writer.finish()];
        slices.extend(self.borrowed);
        slices
    }

    fn headers(&mut self, headers: &Headers) -> Result<()> {
        let mut encoded = Vec::new();
        encode_headers(&mut encoded, headers)?;
        let length = u32::try_from(encoded.len())
            .map_err(|_| Error::new(ErrorKind::InvalidHeaders, "message headers exceed 4 GiB"))?;
        self.writer.extend(&length.to_le_bytes())?;
        self.writer.extend(&encoded)?;
        self.writer.extend(&checksum(&encoded).to_le_bytes())
    }
}

/// Bytes of a payload that an entry takes a copy of, at most.
pub(super) fn copied_bytes(payload_bytes: usize, codec: Codec) -> usize {
    let borrowed = codec == Codec::Raw && payload_bytes >= BORROWED_BYTES_MIN;
    if borrowed { 0 } else { payload_bytes }
}

fn body_alignment(body_bytes: usize) -> usize {
    if body_bytes < 64 { 16 } else { 64 }
}

fn mutated() -> Error {
    Error::new(
        ErrorKind::BufferMutated,
        "the payload changed while it was being published; nothing was written",
    )
}

/// Makes sure that the copy is what was checksummed: somebody may have changed the payload in
/// between.
fn verify_copy(header: &Header, itemsize: u16, body: &[u8]) -> Result<()> {
    let found = if header.codec == Codec::Raw {
        checksum(body)
    } else {
        let mut raw = vec![0; header.chunk_bytes as usize];
        decode_into(header.codec, itemsize, body, &mut raw)?;
        checksum(&raw)
    };
    if found == header.checksum { Ok(()) } else { Err(mutated()) }
}

/// The messages of an entry, verified. A raw payload of one frame is a slice of `value`; others
/// are decoded into an allocation of their own.
pub(super) fn decode(value: &Bytes, decode_limit_bytes: u64) -> Result<Vec<InlineMessage>> {
    let mut reader = Reader { rest: value };
    let [_, zeros @ ..]: [u8; 4] = reader.array()?;
    let count = u32::from_le_bytes(reader.array()?) as usize;
    if zeros != [0; 3] || count == 0 || count > value.len() {
        return Err(damaged("inline entry: bad prefix"));
    }
    let mut messages = Vec::with_capacity(count);
    for _ in 0..count {
        messages.push(decode_message(value, &mut reader, decode_limit_bytes)?);
    }
    if !reader.rest.is_empty() {
        return Err(damaged("inline entry: bytes after its last message"));
    }
    Ok(messages)
}

fn decode_message(
    value: &Bytes,
    reader: &mut Reader<'_>,
    decode_limit_bytes: u64,
) -> Result<InlineMessage> {
    let headers_bytes = u32::from_le_bytes(reader.array()?);
    let headers = reader.take(headers_bytes as usize)?;
    if u32::from_le_bytes(reader.array()?) != checksum(headers) {
        return Err(damaged("inline entry: checksum of the user headers does not match"));
    }
    let headers = decode_headers(headers)?;
    let (header, body) = frame(value, reader)?;
    if header.count == 1 && header.codec == Codec::Raw && body.len() as u64 <= decode_limit_bytes {
        let incoming = in_place(value, header, body)?;
        return Ok(InlineMessage { incoming, headers });
    }
    let mut group = Assembly::new(&header, decode_limit_bytes)?;
    let mut complete = group.accept(&header, body)?;
    while !complete {
        let (header, body) = frame(value, reader)?;
        complete = group.accept(&header, body)?;
    }
    Ok(InlineMessage { incoming: group.finish()?, headers })
}

/// The next frame: its header, and where its body lies.
fn frame<'a>(value: &Bytes, reader: &mut Reader<'a>) -> Result<(Header, &'a [u8])> {
    let body_bytes = u32::from_le_bytes(reader.array()?) as usize;
    let (header, consumed) = Header::decode(reader.rest)?;
    reader.take(consumed)?;
    let at = value.len() - reader.rest.len();
    let zeros = reader.take(at.next_multiple_of(body_alignment(body_bytes)) - at)?;
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(damaged("inline entry: bytes between a frame's header and its body"));
    }
    Ok((header, reader.take(body_bytes)?))
}

/// A message whose payload stays where it lies.
fn in_place(value: &Bytes, header: Header, body: &[u8]) -> Result<Incoming> {
    if body.len() as u64 != header.total_bytes || checksum(body) != header.checksum {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("checksum or length of message {} does not match", header.id),
        ));
    }
    Ok(Incoming {
        id: header.id,
        rows: header.rows,
        payload: value.slice_ref(body),
        layout: header.layout,
        frames_count: 1,
    })
}

fn encode_headers(out: &mut Vec<u8>, headers: &Headers) -> Result<()> {
    if headers.is_empty() {
        return Ok(());
    }
    let too_many = |_| Error::new(ErrorKind::InvalidHeaders, "more than 65,535 message headers");
    let too_long = |_| Error::new(ErrorKind::InvalidHeaders, "message header exceeds its limit");
    let count = u16::try_from(headers.iter().count()).map_err(too_many)?;
    out.extend_from_slice(&count.to_le_bytes());
    for (key, value) in headers.iter() {
        out.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_le_bytes());
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(&u32::try_from(value.len()).map_err(too_long)?.to_le_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    Ok(())
}

fn decode_headers(bytes: &[u8]) -> Result<Headers> {
    if bytes.is_empty() {
        return Ok(Headers::empty());
    }
    let mut reader = Reader { rest: bytes };
    let count = u16::from_le_bytes(reader.array()?);
    let mut pairs = Vec::new();
    for _ in 0..count {
        let key_bytes = u16::from_le_bytes(reader.array()?);
        let key = reader.text(usize::from(key_bytes))?;
        let value_bytes = u32::from_le_bytes(reader.array()?);
        let value = reader.text(value_bytes as usize)?;
        pairs.push((key, value));
    }
    Ok(Headers::received(pairs))
}
