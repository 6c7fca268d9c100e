//! What a topic finds when its directory is opened.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};

use crate::error::{Error, ErrorKind, Result};
use crate::queue::append::Tail;
use crate::queue::db::{Db, Use};
use crate::queue::integrity::LogReport;
use crate::queue::keys::{self, Page, RECORD_HEADER_BYTES, RecordHeader, Stored};
use crate::queue::values::{self, ValueFiles};

/// A topic as it lies on the disk.
pub(super) struct Found {
    pub(super) floor: u64,
    /// Log bytes of what retention deleted.
    pub(super) floor_bytes: u64,
    pub(super) tail: Tail,
    pub(super) values: ValueFiles,
    pub(super) resized: BTreeMap<u64, i64>,
    /// Bytes in value files that no record pointed to, and that were removed.
    pub(super) dropped_bytes: u64,
    /// Value files of deleted messages that were removed.
    pub(super) finished_files: u64,
}

/// Finds where the topic ends, and removes what a crash left in its value files.
pub(super) fn topic(db: &Db, id: u32) -> Result<Found> {
    let open = db.get()?;
    let floor = floor(db, &open, id)?;
    let first_page = open
        .rocks
        .get_pinned_cf(&open.meta()?, keys::page(id, floor))
        .map_err(|e| db.failed("read", e))?
        .map(|value| Page::decode(id, &keys::page(id, floor), &value))
        .transpose()?;
    let resized = resized(db, &open, id)?;
    let files = value_files(db, &open, id)?;
    let last_file = files.last_key_value().map_or(0, |(number, _)| *number);
    let mut tail = tail(db, &open, id, floor, last_file, &resized)?;
    let values = ValueFiles::new(db.path(), id, files);
    let finished_files = finish_trim(db, &open, id, &values, floor, tail.next_seq)?;
    let dropped_bytes = values.recover(tail.file, tail.file_end)?;
    if values.knows(tail.file) && values.on_disk()?.get(&tail.file) < Some(&tail.file_end) {
        // A power cut took its end: what comes next would be written where no record looks for it.
        tail.file_end = u64::MAX;
    }
    let floor_bytes = first_page.map_or(0, |page| page.bytes_before);
    Ok(Found { floor, floor_bytes, tail, values, resized, dropped_bytes, finished_files })
}

/// The first seq that retention left.
pub(super) fn floor(db: &Db, open: &Use, id: u32) -> Result<u64> {
    open.rocks
        .get_pinned_cf(&open.meta()?, keys::floor(id))
        .map_err(|e| db.failed("read", e))?
        .map_or(Ok(1), |value| keys::u64_value(&value))
}

/// Removes the value files of records that retention or a purge deleted before a crash cut it off.
fn finish_trim(
    db: &Db,
    open: &Use,
    id: u32,
    values: &ValueFiles,
    floor: u64,
    next_seq: u64,
) -> Result<u64> {
    let stale = values.remove_before(floor, next_seq == floor)?;
    let count = stale.len() as u64;
    if stale.is_empty() {
        return Ok(0);
    }
    let mut batch = WriteBatch::default();
    for number in stale {
        batch.delete_cf(&open.meta()?, keys::value_file(id, number));
    }
    db.write(open, batch)?;
    Ok(count)
}

/// Where the next record goes: after the last one, never before what retention deleted.
fn tail(
    db: &Db,
    open: &Use,
    id: u32,
    floor: u64,
    last_file: u32,
    resized: &BTreeMap<u64, i64>,
) -> Result<Tail> {
    let page = last_page(db, open, id)?.unwrap_or(Page { first_seq: floor, ..Page::default() });
    let mut tail = Tail {
        next_seq: page.first_seq.max(floor),
        bytes: page.bytes_before,
        page_bytes: page.bytes_before,
        time_ms: page.time_ms,
        file: page.file,
        file_end: page.file_end,
    };
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(keys::log(id, u64::MAX));
    let start = keys::log(id, tail.next_seq);
    let mode = IteratorMode::From(&start, Direction::Forward);
    for entry in open.rocks.iterator_cf_opt(&open.log()?, options, mode) {
        let (key, value) = entry.map_err(|e| db.failed("read", e))?;
        let (header, stored) = RecordHeader::decode(&value)?;
        let first_seq = keys::log_seq(id, &key)?;
        if first_seq != tail.next_seq {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("seqs {} to {} are missing from the log", tail.next_seq, first_seq - 1),
            ));
        }
        tail.next_seq = first_seq + u64::from(header.span);
        // As it was appended, which is what page borders count.
        let grown = resized.get(&first_seq).copied().unwrap_or(0);
        tail.bytes += stored.length().saturating_add_signed(-grown) + RECORD_HEADER_BYTES;
        tail.time_ms = tail.time_ms.max(header.time_ms);
        if let Stored::Pointer(pointer) = stored {
            (tail.file, tail.file_end) = (pointer.file, pointer.position + pointer.length);
        }
    }
    if tail.file < last_file {
        // Nothing is left of the files before, and nothing was written since.
        (tail.file, tail.file_end) = (last_file, u64::MAX);
    }
    Ok(tail)
}

fn last_page(db: &Db, open: &Use, id: u32) -> Result<Option<Page>> {
    let prefix = keys::page_prefix(id);
    let end = keys::page(id, u64::MAX);
    let mode = IteratorMode::From(&end, Direction::Reverse);
    match open.rocks.iterator_cf(&open.meta()?, mode).next() {
        None => Ok(None),
        Some(entry) => {
            let (key, value) = entry.map_err(|e| db.failed("read", e))?;
            key.starts_with(&prefix).then(|| Page::decode(id, &key, &value)).transpose()
        }
    }
}

pub(super) fn value_files(db: &Db, open: &Use, id: u32) -> Result<BTreeMap<u32, u64>> {
    let found = db.scan_prefix(open, &keys::value_file_prefix(id))?;
    found
        .iter()
        .map(|(key, value)| Ok((keys::value_file_number(key)?, keys::u64_value(value)?)))
        .collect()
}

pub(super) fn resized(db: &Db, open: &Use, id: u32) -> Result<BTreeMap<u64, i64>> {
    let found = db.scan_prefix(open, &keys::resized_prefix(id))?;
    let one = |(key, value): &(Box<[u8]>, Box<[u8]>)| {
        Ok((keys::log_seq(id, key.get(1..).unwrap_or_default())?, keys::i64_value(value)?))
    };
    found.iter().map(one).collect()
}

/// What an open found, dropped and repaired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The directory held no log before.
    pub created: bool,
    /// The last process closed the directory; None where nothing says so.
    pub closed: Option<bool>,
    /// Files of the write-ahead log that were replayed.
    pub wal_files: u64,
    /// Their bytes, up to the last whole write.
    pub wal_bytes: u64,
    /// Whole writes in them; one group of appends is one write.
    pub wal_writes: u64,
    /// Bytes of a write that was cut off, and dropped.
    pub wal_dropped_bytes: u64,
    /// Acknowledged operations that are gone: after a power cut, with appends that are not synced.
    /// Counted up to the last 10 ms.
    pub missing_operations: u64,
    /// The file that says how far the log had come could not be read: nothing missing was looked
    /// for.
    pub mark_damaged: bool,
    /// Bytes of value files of topics that were deleted, and that were removed.
    pub stray_bytes: u64,
    /// What each topic holds.
    pub topics: Vec<TopicRecovery>,
}

/// What an open found in a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicRecovery {
    /// The topic.
    pub name: String,
    /// Messages there.
    pub messages: u64,
    /// Bytes of value files that no record pointed to, and that were removed: appends that were
    /// never acknowledged.
    pub dropped_bytes: u64,
    /// Value files of deleted messages that were still there, and that were removed.
    pub finished_files: u64,
    /// Messages whose way to the stream is not settled yet.
    pub open: u64,
}

impl Recovery {
    pub(super) fn new(report: &LogReport) -> Self {
        Self {
            created: report.created,
            closed: report.closed(),
            wal_files: report.files.len() as u64,
            wal_bytes: report.files.iter().map(|file| file.good_bytes).sum(),
            wal_writes: report.files.iter().map(|file| file.writes).sum(),
            wal_dropped_bytes: report.torn_bytes(),
            missing_operations: report.missing,
            mark_damaged: report.mark_damaged,
            ..Self::default()
        }
    }

    /// Something was dropped or repaired.
    pub fn is_repaired(&self) -> bool {
        self.wal_dropped_bytes + self.missing_operations + self.stray_bytes > 0
            || self.mark_damaged
            || self.topics.iter().any(|topic| topic.dropped_bytes + topic.finished_files > 0)
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = match self.closed {
            _ if self.created => "a new directory",
            Some(true) => "closed before",
            Some(false) => "not closed before",
            None => "not known whether it was closed before",
        };
        let of = |number: fn(&TopicRecovery) -> u64| self.topics.iter().map(number).sum::<u64>();
        write!(
            f,
            "{closed}; replayed {} writes, {} bytes; {} topics, {} messages, {} open; dropped {} \
             bytes of the write-ahead log and {} of values; removed {} files of deleted messages \
             and {} bytes of deleted topics; {} acknowledged operations are missing",
            self.wal_writes,
            self.wal_bytes,
            self.topics.len(),
            of(|topic| topic.messages),
            of(|topic| topic.open),
            self.wal_dropped_bytes,
            of(|topic| topic.dropped_bytes),
            of(|topic| topic.finished_files),
            self.stray_bytes,
            self.missing_operations,
        )?;
        f.write_str(if self.mark_damaged { "; the file MARK was damaged" } else { "" })
    }
}

/// Removes the value files of topics that do not exist any more; returns their bytes.
pub(super) fn strays(db: &Db, topics: &HashSet<u32>) -> Result<u64> {
    let open = db.get()?;
    let mut iterator = open.rocks.raw_iterator_cf(&open.log()?);
    let mut bytes = 0;
    for (topic_id, path) in values::list(db.path())? {
        if topics.contains(&topic_id) {
            continue;
        }
        iterator.seek(keys::log(topic_id, 0));
        iterator.status().map_err(|e| db.failed("read", e))?;
        if iterator.key().map(keys::topic_id).transpose()? == Some(topic_id) {
            // Its records are there, only its name is not: that is damage, and not for an open to
            // finish. The check names it.
            continue;
        }
        let failed = |e| {
            let context = format!("cannot remove {}", path.display());
            Error::with_source(ErrorKind::Storage, context, e)
        };
        bytes += std::fs::metadata(&path).map_err(failed)?.len();
        std::fs::remove_file(&path).map_err(failed)?;
    }
    Ok(bytes)
}
