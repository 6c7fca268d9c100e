//! One topic: seqs, appends, reads, waking readers.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::AlignedBuffer;
use crate::queue::append::{Appender, Placed, Tail};
use crate::queue::cache::{Located, Place, TailCache};
use crate::queue::commit::{AppendJob, Committer};
use crate::queue::db::Db;
use crate::queue::group::GroupState;
use crate::queue::keys::{self, RecordHeader, Stored};
use crate::queue::recover::{self, TopicRecovery};
use crate::queue::values::ValueFiles;

/// What a read from a table file fetches ahead.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// Who waits on a topic, at most; those who gave up waiting are among them.
const WAKERS_MAX: usize = 1024;

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The seq of its first message.
    pub first_seq: u64,
    /// Messages in it; they occupy `first_seq..first_seq + span`.
    pub span: u32,
    /// When it was appended, in milliseconds since the Unix epoch.
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
    pub(super) values: ValueFiles,
    committer: Arc<Committer>,
    name: String,
    /// Changed by whoever holds the committer's writer.
    tail: Mutex<Tail>,
    /// The first seq that readers may not see yet.
    committed: AtomicU64,
    /// Held by whoever deletes records, and taken before the committer's writer: of two at once,
    /// the later could write a lower floor to the disk.
    cutter: Mutex<()>,
    pub(super) first: AtomicU64,
    /// Records before this one are deleted, or about to be.
    pub(super) trimming: AtomicU64,
    /// Log bytes of what retention deleted.
    pub(super) first_bytes: AtomicU64,
    cache: Mutex<TailCache>,
    /// By how many bytes records grew when they were completed.
    pub(super) resized: Mutex<BTreeMap<u64, i64>>,
    pub(super) deleted: AtomicBool,
    dropped_bytes: u64,
    groups: Mutex<HashMap<String, Arc<Mutex<GroupState>>>>,
    finished_files: u64,
    wakers: Mutex<Vec<Waker>>,
    appended: Condvar,
}

impl Topic {
    pub(super) fn open(
        committer: &Arc<Committer>,
        db: &Arc<Db>,
        id: u32,
        name: &str,
    ) -> Result<Self> {
        let found = recover::topic(db, id)?;
        let tail = found.tail;
        Ok(Self {
            db: Arc::clone(db),
            id,
            values: found.values,
            committer: Arc::clone(committer),
            name: name.to_owned(),
            tail: Mutex::new(tail),
            committed: AtomicU64::new(tail.next_seq),
            cutter: Mutex::new(()),
            first: AtomicU64::new(found.floor),
            trimming: AtomicU64::new(found.floor),
            first_bytes: AtomicU64::new(found.floor_bytes),
            dropped_bytes: found.dropped_bytes,
            finished_files: found.finished_files,
            cache: Mutex::new(TailCache::default()),
            resized: Mutex::new(found.resized),
            deleted: AtomicBool::new(false),
            groups: Mutex::new(HashMap::new()),
            wakers: Mutex::new(Vec::new()),
            appended: Condvar::new(),
        })
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of value files that no record pointed to when the directory was opened: appends that
    /// a crash cut off before they were acknowledged.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// What was found when the directory was opened.
    pub(super) fn recovery(&self) -> Result<TopicRecovery> {
        Ok(TopicRecovery {
            name: self.name.clone(),
            messages: self.next_seq().saturating_sub(self.first_seq()),
            dropped_bytes: self.dropped_bytes,
            finished_files: self.finished_files,
            open: self.open_seqs()?.len() as u64,
        })
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
    /// What `build` returns; [`ErrorKind::TopicNotFound`] when the topic was deleted,
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn append(
        self: &Arc<Self>,
        time_ms: u64,
        mut build: impl FnMut(&mut Appender) -> Result<()>,
    ) -> Result<RangeInclusive<u64>> {
        self.committer.append(self, time_ms, &mut build)
    }

    /// Appends a job's records, in one write with those of others who come at the same time; its
    /// `done` was called when this returns.
    pub fn append_job(self: &Arc<Self>, time_ms: u64, job: Box<dyn AppendJob>) {
        self.committer.run(self, time_ms, job);
    }

    /// Appends a job's records without ever blocking: at once where the writer is free and the
    /// database wants no pause (then `done` was called when this returns), else in the queue's own
    /// thread. A large job goes there in any case.
    pub fn append_job_later(self: &Arc<Self>, time_ms: u64, job: Box<dyn AppendJob>, large: bool) {
        let left = if large { Some(job) } else { self.committer.try_run(self, time_ms, job) };
        if let Some(job) = left {
            self.committer.submit(self, time_ms, job);
        }
    }

    /// Makes an append visible to readers.
    pub(super) fn appended(&self, placed: Placed) {
        let mut cache = self.lock_cache();
        placed.records.into_iter().for_each(|record| cache.push(record));
        self.committed.store(placed.after.next_seq, Ordering::Release);
        drop(cache);
        self.wake_all();
    }

    /// Keeps appends out.
    pub(super) fn hold_writer(&self) -> MutexGuard<'_, ()> {
        self.committer.lock_writer()
    }

    pub(super) fn hold_cutter(&self) -> MutexGuard<'_, ()> {
        self.cutter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tail(&self) -> Tail {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_tail(&self, tail: Tail) {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = tail;
    }

    /// Takes back what a failed append wrote to value files.
    pub(super) fn cut_values(&self, before: &Tail) {
        if before.file > 0 {
            self.values.cut(before.file, before.file_end);
        }
    }

    /// An error, when the topic was deleted.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`].
    pub fn check_exists(&self) -> Result<()> {
        if self.deleted.load(Ordering::Acquire) {
            let context = format!("topic {:?} was deleted", self.name);
            return Err(Error::new(ErrorKind::TopicNotFound, context));
        }
        Ok(())
    }

    /// Completes the open record at `seq`: rewrites it and forgets that it was open, in one write.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn close_open(&self, seq: u64, span: u32, value: &[&[u8]]) -> Result<()> {
        self.check_exists()?;
        let open = self.db.get()?;
        let meta = open.meta()?;
        let Some(known) =
            self.read_located(seq, 1, 0)?.into_iter().find(|one| one.first_seq == seq)
        else {
            return Err(Error::new(
                ErrorKind::Storage,
                format!("topic {:?} has no record at seq {seq} any more", self.name),
            ));
        };
        // Its time stays: those of the records never fall.
        let time_ms = known.time_ms;
        let value = Bytes::from(value.concat());
        let grown = i64::try_from(value.len()).unwrap_or(i64::MAX)
            - i64::try_from(known.place.length()).unwrap_or(i64::MAX);
        let mut record = Vec::with_capacity(value.len() + 13);
        RecordHeader { time_ms, span, open: false }.encode(None, &mut record);
        record.extend_from_slice(&value);
        let mut batch = WriteBatch::default();
        batch.put_cf(&open.log()?, keys::log(self.id, seq), &record);
        batch.delete_cf(&meta, keys::open(self.id, seq));
        if grown != 0 {
            batch.put_cf(&meta, keys::resized(self.id, seq), grown.to_le_bytes());
        }
        self.db.write(&open, batch)?;
        if grown != 0 {
            self.lock_resized().insert(seq, grown);
        }
        let place = Place::Memory(value);
        self.lock_cache().replace(Located { first_seq: seq, span, time_ms, open: false, place });
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
    /// whatever its size. Recent values are shared with the appender, others copied once.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a damaged log: never a short read instead.
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn read(&self, from_seq: u64, records_max: usize, bytes_max: usize) -> Result<Vec<Record>> {
        let located = self.read_located(from_seq, records_max, bytes_max)?;
        let mut records = Vec::with_capacity(located.len());
        for one in located {
            let first_seq = one.first_seq;
            match self.load(one) {
                Ok(record) => records.push(record),
                // Deleted between the two steps.
                Err(_) if first_seq < self.trimming.load(Ordering::Acquire) => {
                    let left = self.trimming.load(Ordering::Acquire);
                    return self.read(left, records_max, bytes_max);
                }
                // What comes before the damage first; the next read begins with it.
                Err(_) if !records.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    fn load(&self, record: Located) -> Result<Record> {
        let Located { first_seq, span, time_ms, open, place } = record;
        let value = match place {
            Place::Memory(value) => value,
            Place::File(pointer) => self.values.read(pointer)?,
        };
        Ok(Record { first_seq, span, time_ms, open, value })
    }

    /// Where the records lie, and the values that are not in files.
    pub(super) fn read_located(
        &self,
        from_seq: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Located>> {
        self.check_exists()?;
        let end = self.next_seq();
        let cached = self.lock_cache().read(from_seq, records_max, bytes_max);
        match cached {
            Some(found) => Ok(found),
            None => self.read_database(from_seq, end, records_max, bytes_max),
        }
    }

    fn read_database(
        &self,
        from_seq: u64,
        end: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Located>> {
        let open = self.db.get()?;
        let log = open.log()?;
        let mut options = ReadOptions::default();
        let first_seq = self.first_seq();
        let from_seq = from_seq.max(first_seq);
        options.set_iterate_lower_bound(keys::log(self.id, first_seq));
        options.set_iterate_upper_bound(keys::log(self.id, end));
        options.set_readahead_size(READ_AHEAD_BYTES);
        let mut iterator = open.rocks.raw_iterator_cf_opt(&log, options);
        iterator.seek_for_prev(keys::log(self.id, from_seq));
        if !iterator.valid() {
            iterator.status().map_err(|e| self.db.failed("read", e))?;
            iterator.seek(keys::log(self.id, from_seq));
        }
        let mut records: Vec<Located> = Vec::new();
        let mut bytes = 0;
        while let Some((key, value)) = iterator.item() {
            let first_seq = keys::log_seq(self.id, key)?;
            let (header, stored) = RecordHeader::decode(value)?;
            if first_seq + u64::from(header.span) > from_seq {
                match self.check_hole(records.last().map_or(from_seq, Located::after), first_seq) {
                    Err(_) if !records.is_empty() => return Ok(records),
                    found => found?,
                }
                bytes += stored.length();
                if !records.is_empty() && bytes > bytes_max as u64 {
                    return Ok(records);
                }
                records.push(Located {
                    first_seq,
                    span: header.span,
                    time_ms: header.time_ms,
                    open: header.open,
                    place: own(stored)?,
                });
                if records.len() >= records_max {
                    return Ok(records);
                }
            }
            iterator.next();
        }
        // An iterator that met damage ends like one that met the end; only its status tells them
        // apart.
        let ended = iterator.status().map_err(|e| self.db.failed("read", e));
        let ended = ended
            .and_then(|()| self.check_hole(records.last().map_or(from_seq, Located::after), end));
        match ended {
            // What comes before the damage first; the next read begins with it.
            Err(_) if !records.is_empty() => Ok(records),
            ended => ended.map(|()| records),
        }
    }

    /// Records follow each other without a hole, but for what retention deletes meanwhile.
    fn check_hole(&self, expected: u64, found: u64) -> Result<()> {
        let expected = expected.max(self.trimming.load(Ordering::Acquire));
        if found <= expected {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "topic {:?}: seqs {expected} to {} are missing from the log",
                self.name,
                found - 1
            ),
        ))
    }

    /// Wakes `waker` at the next append, completed record or close. Register, then look again.
    pub fn register(&self, waker: &Waker) {
        let mut wakers = self.lock_wakers();
        if wakers.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        // Of those who gave up waiting, on a topic without appends: who still waits looks again.
        let many = wakers.len() >= WAKERS_MAX;
        let told = if many { std::mem::take(&mut *wakers) } else { Vec::new() };
        wakers.push(waker.clone());
        drop(wakers);
        told.into_iter().for_each(Waker::wake);
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

    pub(super) fn lock_groups(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<GroupState>>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_cache(&self) -> MutexGuard<'_, TailCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_resized(&self) -> MutexGuard<'_, BTreeMap<u64, i64>> {
        self.resized.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is in memory of records that are deleted.
    pub(super) fn drop_cached_before(&self, seq: u64) {
        self.lock_cache().drop_before(seq);
    }
}

/// Copies a value out of the database, aligned.
fn own(stored: Stored<'_>) -> Result<Place> {
    match stored {
        Stored::Pointer(pointer) => Ok(Place::File(pointer)),
        Stored::Inline(value) => {
            let mut buffer = AlignedBuffer::new(value.len() as u64)?;
            buffer.as_mut().copy_from_slice(value);
            Ok(Place::Memory(buffer.into_bytes()))
        }
    }
}
