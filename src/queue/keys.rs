//! The bytes of keys and records.
//!
//! Numbers in keys are big-endian: the order of the bytes is the order of the numbers. Values are
//! little-endian.
//!
//! ```text
//! column family "log"
//!   topic id u32, first seq u64       ->  time_ms u64, span u32, flags u8, value
//!     flags: bit 0 open; bit 1 the value lies in a value file, and here is a pointer to it:
//!            file u32, position u64, length u64
//! column family "default"
//!   't' topic name                    ->  topic id u32
//!   'c' topic id u32, group name      ->  cursor: next seq u64
//!   'a' topic id u32, group name, 0, first seq u64
//!                                     ->  seq u64 after the last of a range that is done
//!   'd' topic id u32, group name, 0, first seq u64
//!                                     ->  seq u64 after the last of a range, deliveries u32
//!   'o' topic id u32, first seq u64   ->  (empty): the record is open
//!   'p' topic id u32, first seq u64   ->  page border: log bytes before it u64, time_ms u64,
//!                                         value file u32 and its end u64 at that moment
//!   'v' topic id u32, file u32        ->  value file: seq u64 of its first record
//!   'x' topic id u32, first seq u64   ->  bytes i64 that a record grew by when it was completed
//!   'r' topic id u32                  ->  the topic's own retention
//!   'f' topic id u32                  ->  floor: first seq u64 that retention left
//!   'm' "topics"                      ->  last topic id u32
//!   'm' "epoch"                       ->  opens so far u32
//!   'm' "producer"                    ->  producer id, 16 bytes
//! ```

use crate::error::{Error, ErrorKind, Result};

const FLAG_OPEN: u8 = 1;
const FLAG_POINTER: u8 = 2;

pub(super) const META_TOPICS: &[u8] = b"mtopics";
pub(super) const META_EPOCH: &[u8] = b"mepoch";
pub(super) const META_PRODUCER: &[u8] = b"mproducer";
pub(super) const TOPIC_PREFIX: u8 = b't';
pub(super) const RETENTION_PREFIX: u8 = b'r';

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

/// The topic that a log key belongs to.
#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
pub(super) fn topic_id(key: &[u8]) -> Result<u32> {
    let id = key.first_chunk().ok_or_else(|| bad_value(key))?;
    Ok(u32::from_be_bytes(*id))
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

pub(super) fn done_prefix(topic_id: u32, group: &str) -> Vec<u8> {
    group_prefix(b'a', topic_id, group)
}

pub(super) fn done(topic_id: u32, group: &str, seq: u64) -> Vec<u8> {
    with_seq(done_prefix(topic_id, group), seq)
}

pub(super) fn deliveries_prefix(topic_id: u32, group: &str) -> Vec<u8> {
    group_prefix(b'd', topic_id, group)
}

pub(super) fn deliveries(topic_id: u32, group: &str, seq: u64) -> Vec<u8> {
    with_seq(deliveries_prefix(topic_id, group), seq)
}

pub(super) fn encode_deliveries(end: u64, count: u32) -> [u8; 12] {
    let mut value = [0; 12];
    let (seq, rest) = value.split_at_mut(8);
    seq.copy_from_slice(&end.to_le_bytes());
    rest.copy_from_slice(&count.to_le_bytes());
    value
}

pub(super) fn deliveries_value(value: &[u8]) -> Result<(u64, u32)> {
    let (end, count) = value.split_first_chunk().ok_or_else(|| bad_value(value))?;
    Ok((u64::from_le_bytes(*end), u32_value(count)?))
}

/// The seq that a group's key ends with.
#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
pub(super) fn last_seq(key: &[u8]) -> Result<u64> {
    key.last_chunk().map(|seq| u64::from_be_bytes(*seq)).ok_or_else(|| bad_value(key))
}

// No name has a zero byte: no group's keys lie between those of another.
fn group_prefix(kind: u8, topic_id: u32, group: &str) -> Vec<u8> {
    let mut key = prefixed(kind, &topic_prefix(topic_id));
    key.extend_from_slice(group.as_bytes());
    key.push(0);
    key
}

#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
fn with_seq(mut key: Vec<u8>, seq: u64) -> Vec<u8> {
    key.extend_from_slice(&seq.to_be_bytes());
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

pub(super) fn value_file_prefix(topic_id: u32) -> Vec<u8> {
    prefixed(b'v', &topic_prefix(topic_id))
}

#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
pub(super) fn value_file(topic_id: u32, number: u32) -> Vec<u8> {
    let mut key = value_file_prefix(topic_id);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn value_file_number(key: &[u8]) -> Result<u32> {
    let number = key.get(5..).and_then(|number| number.try_into().ok());
    number.map(u32::from_be_bytes).ok_or_else(|| bad_value(key))
}

pub(super) fn resized_prefix(topic_id: u32) -> Vec<u8> {
    prefixed(b'x', &topic_prefix(topic_id))
}

pub(super) fn resized(topic_id: u32, seq: u64) -> Vec<u8> {
    prefixed(b'x', &log(topic_id, seq))
}

/// The prefixes of all metadata of a topic but its name.
pub(super) fn topic_prefixes(topic_id: u32) -> impl Iterator<Item = Vec<u8>> {
    b"cadopvxrf".iter().map(move |kind| prefixed(*kind, &topic_prefix(topic_id)))
}

pub(super) fn retention(topic_id: u32) -> Vec<u8> {
    prefixed(RETENTION_PREFIX, &topic_prefix(topic_id))
}

#[expect(clippy::big_endian_bytes, reason = "key order has to be number order")]
pub(super) fn topic_prefix(topic_id: u32) -> [u8; 4] {
    topic_id.to_be_bytes()
}

pub(super) fn i64_value(value: &[u8]) -> Result<i64> {
    value.try_into().map(i64::from_le_bytes).map_err(|_| bad_value(value))
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
#[derive(Clone, Copy, Default)]
pub(super) struct Page {
    pub(super) first_seq: u64,
    /// Bytes of all records before it, since the topic was made.
    pub(super) bytes_before: u64,
    pub(super) time_ms: u64,
    /// The value file that was being written, and its size.
    pub(super) file: u32,
    pub(super) file_end: u64,
}

impl Page {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(28);
        out.extend_from_slice(&self.bytes_before.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&self.file_end.to_le_bytes());
        out
    }

    pub(super) fn decode(topic_id: u32, key: &[u8], value: &[u8]) -> Result<Self> {
        let damaged = || bad_value(value);
        let (bytes, rest) = value.split_first_chunk().ok_or_else(damaged)?;
        let (time, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (file, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        Ok(Self {
            first_seq: log_seq(topic_id, key.get(1..).unwrap_or_default())?,
            bytes_before: u64::from_le_bytes(*bytes),
            time_ms: u64::from_le_bytes(*time),
            file: u32::from_le_bytes(*file),
            file_end: u64_value(rest)?,
        })
    }
}

/// Where a large value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    pub(super) file: u32,
    pub(super) position: u64,
    pub(super) length: u64,
}

impl Pointer {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&self.position.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let damaged = || bad_value(value);
        let (file, rest) = value.split_first_chunk().ok_or_else(damaged)?;
        let (position, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        Ok(Self {
            file: u32::from_le_bytes(*file),
            position: u64::from_le_bytes(*position),
            length: u64_value(rest)?,
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

/// Bytes of a record besides its value.
pub(super) const RECORD_HEADER_BYTES: u64 = 13;

/// The value as it lies in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored<'a> {
    Inline(&'a [u8]),
    Pointer(Pointer),
}

impl RecordHeader {
    pub(super) fn encode(self, pointer: Option<Pointer>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.span.to_le_bytes());
        let open = if self.open { FLAG_OPEN } else { 0 };
        out.push(open | pointer.map_or(0, |_| FLAG_POINTER));
        if let Some(pointer) = pointer {
            pointer.encode(out);
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Stored<'_>)> {
        let damaged =
            || Error::new(ErrorKind::Corrupt, format!("log record of {} bytes", bytes.len()));
        let (time_ms, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let (span, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (&flags, value) = rest.split_first().ok_or_else(damaged)?;
        let span = u32::from_le_bytes(*span);
        if span == 0 || flags > FLAG_OPEN | FLAG_POINTER {
            return Err(damaged());
        }
        let header =
            Self { time_ms: u64::from_le_bytes(*time_ms), span, open: flags & FLAG_OPEN != 0 };
        let stored = if flags & FLAG_POINTER == 0 {
            Stored::Inline(value)
        } else {
            Stored::Pointer(Pointer::decode(value)?)
        };
        Ok((header, stored))
    }
}

impl Stored<'_> {
    /// Bytes of the value itself, wherever it lies.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Inline(value) => value.len() as u64,
            Self::Pointer(pointer) => pointer.length,
        }
    }
}
