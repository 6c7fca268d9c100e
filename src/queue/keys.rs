//! The bytes of keys and records.
//!
//! Numbers in keys are big-endian: the order of the bytes is the order of the numbers. Values are
//! little-endian.
//!
//! ```text
//! column family "log"
//!   topic id u32, first seq u64       ->  time_ms u64, span u32, flags u8 (bit 0: open), value
//! column family "default"
//!   't' topic name                    ->  topic id u32
//!   'c' topic id u32, group name      ->  cursor: next seq u64
//!   'o' topic id u32, first seq u64   ->  (empty): the record is open
//!   'p' topic id u32, first seq u64   ->  page border: bytes before it u64, time_ms u64
//!   'f' topic id u32                  ->  floor: first seq u64 that retention left
//!   'm' "topics"                      ->  last topic id u32
//!   'm' "epoch"                       ->  opens so far u32
//!   'm' "producer"                    ->  producer id, 16 bytes
//! ```

use crate::error::{Error, ErrorKind, Result};

const FLAG_OPEN: u8 = 1;

pub(super) const META_TOPICS: &[u8] = b"mtopics";
pub(super) const META_EPOCH: &[u8] = b"mepoch";
pub(super) const META_PRODUCER: &[u8] = b"mproducer";
pub(super) const TOPIC_PREFIX: u8 = b't';

#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
pub(super) fn log(topic_id: u32, seq: u64) -> [u8; 12] {
    let mut key = [0; 12];
    let (topic, rest) = key.split_at_mut(4);
    topic.copy_from_slice(&topic_id.to_be_bytes());
    rest.copy_from_slice(&seq.to_be_bytes());
    key
}

#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
pub(super) fn log_seq(topic_id: u32, key: &[u8]) -> Result<u64> {
    let damaged = || Error::new(ErrorKind::Corrupt, format!("log key of {} bytes", key.len()));
    let (topic, seq) = key.split_first_chunk::<4>().ok_or_else(damaged)?;
    let seq: [u8; 8] = seq.try_into().map_err(|_| damaged())?;
    if u32::from_be_bytes(*topic) == topic_id {
        Ok(u64::from_be_bytes(seq))
    } else {
        Err(damaged())
    }
}

pub(super) fn topic(name: &str) -> Vec<u8> {
    prefixed(TOPIC_PREFIX, name.as_bytes())
}

pub(super) fn cursor_prefix(topic_id: u32) -> Vec<u8> {
    prefixed(b'c', &topic_prefix(topic_id))
}

pub(super) fn cursor(topic_id: u32, group: &str) -> Vec<u8> {
    let mut key = cursor_prefix(topic_id);
    key.extend_from_slice(group.as_bytes());
    key
}

pub(super) fn open_prefix(topic_id: u32) -> Vec<u8> {
    prefixed(b'o', &topic_prefix(topic_id))
}

pub(super) fn open(topic_id: u32, seq: u64) -> Vec<u8> {
    prefixed(b'o', &log(topic_id, seq))
}

pub(super) fn page_prefix(topic_id: u32) -> Vec<u8> {
    prefixed(b'p', &topic_prefix(topic_id))
}

pub(super) fn page(topic_id: u32, seq: u64) -> Vec<u8> {
    prefixed(b'p', &log(topic_id, seq))
}

pub(super) fn floor(topic_id: u32) -> Vec<u8> {
    prefixed(b'f', &topic_prefix(topic_id))
}

#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
pub(super) fn topic_prefix(topic_id: u32) -> [u8; 4] {
    topic_id.to_be_bytes()
}

fn prefixed(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(kind);
    key.extend_from_slice(rest);
    key
}

pub(super) fn u32_value(value: &[u8]) -> Result<u32> {
    value.try_into().map(u32::from_le_bytes).map_err(|_| bad_value(value))
}

pub(super) fn u64_value(value: &[u8]) -> Result<u64> {
    value.try_into().map(u64::from_le_bytes).map_err(|_| bad_value(value))
}

/// A border in the log: retention deletes up to one.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) first_seq: u64,
    /// Bytes of all records before it, since the topic was made.
    pub(super) bytes_before: u64,
    pub(super) time_ms: u64,
}

impl Page {
    pub(super) fn encode(self) -> [u8; 16] {
        let mut out = [0; 16];
        let (bytes, time) = out.split_at_mut(8);
        bytes.copy_from_slice(&self.bytes_before.to_le_bytes());
        time.copy_from_slice(&self.time_ms.to_le_bytes());
        out
    }

    pub(super) fn decode(topic_id: u32, key: &[u8], value: &[u8]) -> Result<Self> {
        let (bytes, time) = value.split_first_chunk().ok_or_else(|| bad_value(value))?;
        Ok(Self {
            first_seq: log_seq(topic_id, key.get(1..).unwrap_or_default())?,
            bytes_before: u64::from_le_bytes(*bytes),
            time_ms: u64_value(time)?,
        })
    }
}

fn bad_value(value: &[u8]) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("log metadata: unexpected value of {} bytes", value.len()),
    )
}

/// What the queue knows of a record besides its value.
#[derive(Clone, Copy)]
pub(super) struct RecordHeader {
    pub(super) time_ms: u64,
    pub(super) span: u32,
    pub(super) open: bool,
}

impl RecordHeader {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.span.to_le_bytes());
        out.push(if self.open { FLAG_OPEN } else { 0 });
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let damaged =
            || Error::new(ErrorKind::Corrupt, format!("log record of {} bytes", bytes.len()));
        let (time_ms, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let (span, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (&flags, value) = rest.split_first().ok_or_else(damaged)?;
        let span = u32::from_le_bytes(*span);
        if span == 0 || flags > FLAG_OPEN {
            return Err(damaged());
        }
        let open = flags == FLAG_OPEN;
        Ok((Self { time_ms: u64::from_le_bytes(*time_ms), span, open }, value))
    }
}
