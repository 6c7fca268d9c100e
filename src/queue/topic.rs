//! One topic: seqs, appends, reads, waking readers.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};

use crate::error::{Error, ErrorKind, Result};
use crate::queue::append::{Appender, Tail};
use crate::queue::db::{Db, Use};
use crate::queue::keys::{self, Page, RecordHeader};

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The seq of its first message.
    pub first_seq: u64,
    /// Messages in it; they occupy `first_seq..first_seq + span`.
    pub span: u32,
    /// When it was appended or closed, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Not complete yet.
    pub open: bool,
    /// What the appender put.
    pub value: Bytes,
}

/// One topic of a queue.
pub struct Topic {
    pub(super) db: Arc<Db>,
    pub(super) id: u32,
    name: String,
    /// Held over a write: seqs reach the log in order.
    tail: Mutex<Tail>,
    /// The first seq that readers may not see yet.
    committed: AtomicU64,
    pub(super) first: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
    appended: Condvar,
}

impl Topic {
    pub(super) fn open(db: &Arc<Db>, id: u32, name: &str) -> Result<Self> {
        let open = db.get()?;
        let floor = open
            .rocks
            .get_pinned_cf(&open.meta()?, keys::floor(id))
            .map_err(|e| db.failed("read", e))?
            .map_or(Ok(1), |value| keys::u64_value(&value))?;
        let tail = read_tail(db, &open, id, floor)?;
        Ok(Self {
            db: Arc::clone(db),
            id,
            name: name.to_owned(),
            tail: Mutex::new(tail),
            committed: AtomicU64::new(tail.next_seq),
            first: AtomicU64::new(floor),
            wakers: Mutex::new(Vec::new()),
            appended: Condvar::new(),
        })
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The oldest seq that retention has left.
    pub fn first_seq(&self) -> u64 {
        self.first.load(Ordering::Acquire)
    }

    /// The seq that the next message gets.
    pub fn next_seq(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Appends the records that `build` pushes, in one write, and returns the seqs they took.
    ///
    /// The write is in the WAL when this returns (synced, when the queue was opened so). On an
    /// error nothing was written.
    ///
    /// # Errors
    /// What `build` returns; [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn append(
        &self,
        time_ms: u64,
        build: impl FnOnce(&mut Appender<'_>) -> Result<()>,
    ) -> Result<RangeInclusive<u64>> {
        let open = self.db.get()?;
        let (log, meta) = (open.log()?, open.meta()?);
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let first_seq = tail.next_seq;
        let mut appender = Appender::new(self.id, time_ms, *tail, &log, &meta);
        build(&mut appender)?;
        let Appender { batch, tail: after, .. } = appender;
        if !batch.is_empty() {
            self.db.write(&open, batch)?;
            *tail = after;
            self.committed.store(after.next_seq, Ordering::Release);
            drop(tail);
            self.wake_all();
        }
        Ok(first_seq..=after.next_seq - 1)
    }

    /// Completes the open record at `seq`: rewrites it and forgets that it was open, in one write.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn close_open(&self, seq: u64, span: u32, time_ms: u64, value: &[&[u8]]) -> Result<()> {
        let open = self.db.get()?;
        let mut record = Vec::new();
        RecordHeader { time_ms, span, open: false }.encode(&mut record);
        for one in value {
            record.extend_from_slice(one);
        }
        let mut batch = WriteBatch::default();
        batch.put_cf(&open.log()?, keys::log(self.id, seq), &record);
        batch.delete_cf(&open.meta()?, keys::open(self.id, seq));
        self.db.write(&open, batch)?;
        self.wake_all();
        Ok(())
    }

    /// The first seqs of all records that are open.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`], [`ErrorKind::Corrupt`].
    pub fn open_seqs(&self) -> Result<Vec<u64>> {
        let open = self.db.get()?;
        let prefix = keys::open_prefix(self.id);
        let mut seqs = Vec::new();
        let mode = IteratorMode::From(&prefix, Direction::Forward);
        for entry in open.rocks.iterator_cf(&open.meta()?, mode) {
            let (key, _) = entry.map_err(|e| self.db.failed("read", e))?;
            if !key.starts_with(&prefix) {
                break;
            }
            seqs.push(keys::log_seq(self.id, key.get(1..).unwrap_or_default())?);
        }
        Ok(seqs)
    }

    /// Reads records in order, beginning with the one that holds `from_seq`.
    ///
    /// Stops after `records_max` records or `bytes_max` value bytes; the first record is read
    /// whatever its size. Copies each value once.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a damaged log: never a short read instead. [`ErrorKind::Closed`],
    /// [`ErrorKind::Storage`].
    pub fn read(&self, from_seq: u64, records_max: usize, bytes_max: usize) -> Result<Vec<Record>> {
        let end = self.next_seq();
        let open = self.db.get()?;
        let log = open.log()?;
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(keys::log(self.id, 0));
        options.set_iterate_upper_bound(keys::log(self.id, end));
        let mut iterator = open.rocks.raw_iterator_cf_opt(&log, options);
        iterator.seek_for_prev(keys::log(self.id, from_seq));
        if !iterator.valid() {
            iterator.status().map_err(|e| self.db.failed("read", e))?;
            iterator.seek(keys::log(self.id, from_seq));
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some((key, value)) = iterator.item() {
            let first_seq = keys::log_seq(self.id, key)?;
            let (header, value) = RecordHeader::decode(value)?;
            if first_seq + u64::from(header.span) > from_seq {
                if !records.is_empty() && bytes + value.len() > bytes_max {
                    return Ok(records);
                }
                bytes += value.len();
                records.push(Record {
                    first_seq,
                    span: header.span,
                    time_ms: header.time_ms,
                    open: header.open,
                    value: Bytes::copy_from_slice(value),
                });
                if records.len() >= records_max {
                    return Ok(records);
                }
            }
            iterator.next();
        }
        // An iterator that met damage ends like one that met the end; only its status tells them
        // apart.
        iterator.status().map_err(|e| self.db.failed("read", e))?;
        Ok(records)
    }

    /// Wakes `waker` at the next append, completed record or close. Register, then look again.
    pub fn register(&self, waker: &Waker) {
        let mut wakers = self.lock_wakers();
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Blocks until there is a message at or after `from_seq`; false when the time is over.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn wait(&self, from_seq: u64, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let mut wakers = self.lock_wakers();
        loop {
            self.db.get()?;
            if self.next_seq() > from_seq {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let woken = self.appended.wait_timeout(wakers, left);
            wakers = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.lock_wakers());
        self.appended.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock_wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Log bytes since the topic was made, deleted ones included.
    pub(super) fn total_bytes(&self) -> u64 {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

/// Where the next record goes: after the last one, never before what retention deleted.
fn read_tail(db: &Db, open: &Use, id: u32, floor: u64) -> Result<Tail> {
    let page = last_page(db, open, id)?;
    let (mut next_seq, mut bytes, page_bytes) =
        page.map_or((floor, 0, 0), |page| (page.first_seq, page.bytes_before, page.bytes_before));
    next_seq = next_seq.max(floor);
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(keys::log(id, u64::MAX));
    let start = keys::log(id, page.map_or(floor, |page| page.first_seq));
    let mode = IteratorMode::From(&start, Direction::Forward);
    for entry in open.rocks.iterator_cf_opt(&open.log()?, options, mode) {
        let (key, value) = entry.map_err(|e| db.failed("read", e))?;
        let (header, _) = RecordHeader::decode(&value)?;
        let first_seq = keys::log_seq(id, &key)?;
        if first_seq != next_seq {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("seqs {next_seq} to {} are missing from the log", first_seq - 1),
            ));
        }
        next_seq = first_seq + u64::from(header.span);
        bytes += value.len() as u64;
    }
    Ok(Tail { next_seq, bytes, page_bytes })
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
