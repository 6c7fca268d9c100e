//! The bytes of a journal entry.
//!
//! The queue stores these as opaque record values. Little-endian; the first byte is the kind:
//!
//! ```text
//! inline (0): messages, whole; see `inline`
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
use crate::frame::{MessageId, ProducerId, checksum};
use crate::hybrid::inline::{self, InlineMessage};

pub(super) const KIND_INLINE: u8 = 0;
const KIND_STREAM: u8 = 1;
const KIND_ABORTED: u8 = 2;
const STREAM_BYTES: usize = 57;

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
    Inline(Vec<InlineMessage>),
    Stream(StreamEntry),
    Aborted,
}

/// The entry of a message that was never stored.
pub(super) fn encode_aborted() -> [u8; 1] {
    [KIND_ABORTED]
}

/// Decodes an entry, and verifies it. Raw payloads are slices of `value`: no copy.
pub(super) fn decode(value: &Bytes, decode_limit_bytes: u64) -> Result<Entry> {
    match value.first() {
        Some(&KIND_INLINE) => Ok(Entry::Inline(inline::decode(value, decode_limit_bytes)?)),
        Some(&KIND_STREAM) => Ok(Entry::Stream(StreamEntry::decode(value)?)),
        Some(&KIND_ABORTED) if value.len() == 1 => Ok(Entry::Aborted),
        kind => Err(damaged(&format!("journal entry of unknown kind {kind:?}"))),
    }
}

pub(super) fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, what.to_owned())
}

/// Takes bytes from the front; every length is checked.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| {
            damaged(&format!(
                "journal entry cut short: {count} bytes expected, {} left",
                self.rest.len()
            ))
        })?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| damaged("journal entry cut short"))
    }

    pub(super) fn text(&mut self, count: usize) -> Result<String> {
        let bytes = self.take(count)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| damaged("journal entry: header is not UTF-8"))
    }
}
