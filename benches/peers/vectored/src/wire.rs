//! The NATS protocol, as much of it as a benchmark needs.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Failure;
use crate::spec::Spec;

const READ_BYTES: usize = 64 << 10;

/// What the server sent.
pub(crate) enum Event {
    /// A message; its bytes are in [`Reader::payload`].
    Message {
        /// Where an answer is wanted.
        reply: Option<String>,
        /// It is the server's own question whether anyone is there.
        is_status: bool,
    },
    /// The answer to [`Writer::ping`].
    Pong,
}

/// Writes whole protocol lines; several threads may.
#[derive(Clone)]
pub(crate) struct Writer(Arc<Mutex<TcpStream>>);

/// Reads what the server sends; one thread.
pub(crate) struct Reader {
    stream: BufReader<TcpStream>,
    writer: Writer,
    line: Vec<u8>,
    payload: Vec<u8>,
    headers: usize,
}

/// Opens a connection and waits until the server takes it.
pub(crate) fn connect(spec: &Spec) -> Result<(Writer, Reader), Failure> {
    let address = spec.url.strip_prefix("nats://").unwrap_or(&spec.url);
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let writer = Writer(Arc::new(Mutex::new(stream.try_clone()?)));
    let mut reader = Reader {
        stream: BufReader::with_capacity(READ_BYTES, stream),
        writer: writer.clone(),
        line: Vec::new(),
        payload: Vec::new(),
        headers: 0,
    };
    let options = json!({
        "verbose": false, "pedantic": false, "headers": true, "no_responders": true,
        "lang": "rust", "version": env!("CARGO_PKG_VERSION"), "auth_token": spec.token,
    });
    writer.write(&mut [IoSlice::new(format!("CONNECT {options}\r\n").as_bytes())])?;
    reader.ping()?;
    Ok((writer, reader))
}

impl Writer {
    /// Writes the slices as they are, without gathering them first.
    pub(crate) fn write(&self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = slices;
        while !left.is_empty() {
            let count = stream.write_vectored(left)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, count);
        }
        Ok(())
    }

    /// Subscribes.
    pub(crate) fn subscribe(&self, subject: &str) -> io::Result<()> {
        self.write(&mut [IoSlice::new(format!("SUB {subject} 1\r\n").as_bytes())])
    }
}

impl Reader {
    /// How long to wait for a byte.
    pub(crate) fn patience(&self, time: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(time))
    }

    /// Body of the message that came last.
    pub(crate) fn payload(&self) -> &[u8] {
        self.payload.get(self.headers..).unwrap_or_default()
    }

    /// Waits until the server has read all that was written before.
    pub(crate) fn ping(&mut self) -> Result<(), Failure> {
        self.writer.write(&mut [IoSlice::new(b"PING\r\n")])?;
        while !matches!(self.next()?, Event::Pong) {}
        Ok(())
    }

    /// Asks `JetStream`'s API; this connection has subscribed to `inbox`.
    pub(crate) fn request(
        &mut self,
        inbox: &str,
        subject: &str,
        body: &Value,
    ) -> Result<(), Failure> {
        let body = body.to_string();
        let text = format!("PUB $JS.API.{subject} {inbox} {}\r\n{body}\r\n", body.len());
        self.writer.write(&mut [IoSlice::new(text.as_bytes())])?;
        while !matches!(self.next()?, Event::Message { .. }) {}
        let answer: Value = serde_json::from_slice(self.payload())?;
        match answer.get("error") {
            Some(error) => Err(format!("{subject}: {error}").into()),
            None => Ok(()),
        }
    }

    /// The next message, or the answer to a ping.
    pub(crate) fn next(&mut self) -> Result<Event, Failure> {
        loop {
            self.line.clear();
            if self.stream.read_until(b'\n', &mut self.line)? == 0 {
                return Err("the server has closed the connection".into());
            }
            let line = std::str::from_utf8(&self.line)?;
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("MSG") => return self.message(false),
                Some("HMSG") => return self.message(true),
                Some("PONG") => return Ok(Event::Pong),
                Some("PING") => self.writer.write(&mut [IoSlice::new(b"PONG\r\n")])?,
                Some("INFO" | "+OK") => {}
                _ => return Err(format!("the server said {line:?}").into()),
            }
        }
    }

    /// `MSG subject sid [reply] bytes` and `HMSG subject sid [reply] header_bytes bytes`.
    fn message(&mut self, has_headers: bool) -> Result<Event, Failure> {
        let line = std::str::from_utf8(&self.line)?;
        let mut words: Vec<&str> = line.split_ascii_whitespace().skip(3).collect();
        let total: usize = words.pop().ok_or("a message without a size")?.parse()?;
        self.headers = match words.pop() {
            Some(size) if has_headers => size.parse()?,
            Some(reply) => {
                words.push(reply);
                0
            }
            None => 0,
        };
        let reply = words.pop().map(str::to_owned);
        self.payload.resize(total + 2, 0);
        self.stream.read_exact(&mut self.payload)?;
        self.payload.truncate(total);
        let is_status = has_headers && self.payload.starts_with(b"NATS/1.0 ");
        Ok(Event::Message { reply, is_status })
    }
}
