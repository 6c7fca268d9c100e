//! The bytes of a journal entry.
//!
//! The queue stores these as opaque record values. Little-endian; the first byte is the kind:
//!
//! ```text
//! inline (0): a small message, whole
//!   0   1  kind = 0
//!   1   4  length of the user headers, bytes
//!   5   h  user headers: count u16, then per header: key length u16, key, value length u32, value
//!   .      frames, until the end: body length u32, frame header (see frame::header), body
//!
//! stream (1): a large message whose frames lie in the JetStream stream
//!   0   1  kind = 1
//!   1  16  producer id
//!  17   4  epoch
//!  21   8  first seq
//!  29   8  payload bytes
//!  37   8  stream floor: the frames were stored after this stream sequence
//!  45   8  stream sequence of the manifest; 0 while the intent is open
//!  53   4  CRC-32C of bytes 0..53
//!
//! aborted (2): a large message that was never stored; readers step over it
//!   0   1  kind = 2
//! ```

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{
    Assembly, Codec, Header, Headers, Incoming, MessageId, Outgoing, Plan, ProducerId, checksum,
    decode_into,
};

const KIND_INLINE: u8 = 0;
const KIND_STREAM: u8 = 1;
const KIND_ABORTED: u8 = 2;
const STREAM_BYTES: usize = 57;

/// Raw bytes of one frame inside an inline entry. Larger frames gain nothing in one value, and a
/// frame's length has to fit the u32 before it.
const INLINE_CHUNK_BYTES_MAX: u32 = 1 << 20;

/// A message whose frames lie in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamEntry {
    pub(super) id: MessageId,
    pub(super) payload_bytes: u64,
    pub(super) floor_seq: u64,
    /// 0 while the intent is open.
    pub(super) manifest_seq: u64,
}

impl StreamEntry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(STREAM_BYTES);
        out.push(KIND_STREAM);
        out.extend_from_slice(&self.id.producer.0);
        out.extend_from_slice(&self.id.epoch.to_le_bytes());
        out.extend_from_slice(&self.id.seq.to_le_bytes());
        out.extend_from_slice(&self.payload_bytes.to_le_bytes());
        out.extend_from_slice(&self.floor_seq.to_le_bytes());
        out.extend_from_slice(&self.manifest_seq.to_le_bytes());
        let crc = checksum(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(value: &[u8]) -> Result<Self> {
        let mut reader = Reader { rest: value };
        reader.take(1)?;
        let producer = ProducerId(reader.array()?);
        let epoch = u32::from_le_bytes(reader.array()?);
        let seq = u64::from_le_bytes(reader.array()?);
        let payload_bytes = u64::from_le_bytes(reader.array()?);
        let floor_seq = u64::from_le_bytes(reader.array()?);
        let manifest_seq = u64::from_le_bytes(reader.array()?);
        let covered = value.len() - reader.rest.len();
        let stored = u32::from_le_bytes(reader.array()?);
        let found = checksum(value.get(..covered).unwrap_or_default());
        if found != stored || !reader.rest.is_empty() {
            return Err(damaged("stream entry: checksum or length does not match"));
        }
        Ok(Self { id: MessageId { producer, epoch, seq }, payload_bytes, floor_seq, manifest_seq })
    }
}

/// A journal entry as read.
pub(super) enum Entry {
    Inline { incoming: Incoming, headers: Headers },
    Stream(StreamEntry),
    Aborted,
}

/// The entry of a message that was never stored.
pub(super) fn encode_aborted() -> [u8; 1] {
    [KIND_ABORTED]
}

/// Encodes a whole message as one entry and counts its frames. The payload is copied once, into
/// `out`. A writable payload is verified: the copy is what the checksum says.
pub(super) fn encode_inline(
    out: &mut Vec<u8>,
    message: &Outgoing,
    headers: &Headers,
    codec: Codec,
    writable: bool,
) -> Result<u32> {
    out.clear();
    out.push(KIND_INLINE);
    let mark = out.len();
    out.extend_from_slice(&[0; 4]);
    encode_headers(out, headers)?;
    let headers_bytes = u32::try_from(out.len() - mark - 4)
        .map_err(|_| Error::new(ErrorKind::InvalidHeaders, "message headers exceed 4 GiB"))?;
    if let Some(slot) = out.get_mut(mark..mark + 4) {
        slot.copy_from_slice(&headers_bytes.to_le_bytes());
    }
    let itemsize = message.layout.as_ref().map_or(1, crate::frame::Layout::itemsize);
    let plan = Plan::new(message.payload.len() as u64, itemsize, INLINE_CHUNK_BYTES_MAX)?;
    for index in 0..plan.count {
        let frame = message.frame(&plan, index, codec)?;
        let body_bytes = u32::try_from(frame.body.len())
            .map_err(|_| Error::new(ErrorKind::TooLarge, "frame body exceeds 4 GiB"))?;
        out.extend_from_slice(&body_bytes.to_le_bytes());
        frame.header.encode(out);
        let body_start = out.len();
        out.extend_from_slice(&frame.body);
        if writable {
            verify_copy(&frame.header, itemsize, out.get(body_start..).unwrap_or_default())?;
        }
    }
    Ok(plan.count)
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
    if found == header.checksum {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::BufferMutated,
        "the payload changed while it was being published; nothing was written",
    ))
}

/// Decodes an entry; the payload is copied once, into its own aligned allocation, and verified.
pub(super) fn decode(value: &Bytes, decode_limit_bytes: u64) -> Result<Entry> {
    match value.first() {
        Some(&KIND_INLINE) => decode_inline(value, decode_limit_bytes),
        Some(&KIND_STREAM) => Ok(Entry::Stream(StreamEntry::decode(value)?)),
        Some(&KIND_ABORTED) if value.len() == 1 => Ok(Entry::Aborted),
        kind => Err(damaged(&format!("journal entry of unknown kind {kind:?}"))),
    }
}

fn decode_inline(value: &[u8], decode_limit_bytes: u64) -> Result<Entry> {
    let mut reader = Reader { rest: value };
    reader.take(1)?;
    let headers_bytes = u32::from_le_bytes(reader.array()?);
    let headers = decode_headers(reader.take(headers_bytes as usize)?)?;
    let mut assembly: Option<Assembly> = None;
    loop {
        let body_bytes = u32::from_le_bytes(reader.array()?) as usize;
        let (header, consumed) = Header::decode(reader.rest)?;
        reader.take(consumed)?;
        let body = reader.take(body_bytes)?;
        let group = match &mut assembly {
            Some(group) => group,
            None => assembly.insert(Assembly::new(&header, decode_limit_bytes)?),
        };
        if group.accept(&header, body)? {
            break;
        }
    }
    match assembly {
        Some(group) if reader.rest.is_empty() => {
            Ok(Entry::Inline { incoming: group.finish()?, headers })
        }
        _ => Err(damaged("inline entry: bytes after its last frame")),
    }
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

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, what.to_owned())
}

/// Takes bytes from the front; every length is checked.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| {
            damaged(&format!(
                "journal entry cut short: {count} bytes expected, {} left",
                self.rest.len()
            ))
        })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| damaged("journal entry cut short"))
    }

    fn text(&mut self, count: usize) -> Result<String> {
        let bytes = self.take(count)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| damaged("journal entry: header is not UTF-8"))
    }
}
