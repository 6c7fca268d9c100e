//! Group commit: all appends that wait become one write.
//!
//! Whoever holds the writer writes for everybody who waits. A lone append finds the writer free and
//! writes at once, in its own thread; appends that come meanwhile wait, and the next holder takes
//! all of them. There is no timer. Appends that must not block (an event loop's) are written by a
//! thread of the queue unless the writer is free and the database takes them without a pause.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rocksdb::WriteBatch;

use crate::error::{Error, ErrorKind, Result};
use crate::queue::append::{Appender, Placed};
use crate::queue::db::{Db, Pace, Use};
use crate::queue::topic::Topic;

/// Appends of one write.
const JOBS_MAX: usize = 1024;

/// An append that somebody else may write.
pub trait AppendJob: Send {
    /// Pushes the records. On an error nothing of this job is written. May be called again when the
    /// database did not take the write at once.
    ///
    /// # Errors
    /// Whatever makes the append impossible; it goes to [`AppendJob::done`].
    fn build(&mut self, appender: &mut Appender) -> Result<()>;

    /// Looks once more before the records count: what was borrowed has been written by now. On an
    /// error nothing of this job is written.
    ///
    /// # Errors
    /// As [`AppendJob::build`].
    fn verify(&self) -> Result<()> {
        Ok(())
    }

    /// Takes the seqs, or the error after which nothing was written.
    fn done(self: Box<Self>, result: Result<RangeInclusive<u64>>);
}

/// One append of a group.
struct Waiting {
    topic: Arc<Topic>,
    time_ms: u64,
    job: Box<dyn AppendJob>,
}

/// Writes for all topics of a queue.
pub(super) struct Committer {
    db: Arc<Db>,
    /// Held by whoever writes.
    writer: Mutex<()>,
    waiting: Mutex<Vec<Waiting>>,
    arrived: Condvar,
    closed: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    pub(super) fn new(db: &Arc<Db>) -> Arc<Self> {
        Arc::new(Self {
            db: Arc::clone(db),
            writer: Mutex::new(()),
            waiting: Mutex::new(Vec::new()),
            arrived: Condvar::new(),
            closed: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    /// Writes an append in this thread, and with it what waits.
    pub(super) fn append(
        &self,
        topic: &Arc<Topic>,
        time_ms: u64,
        build: &mut dyn FnMut(&mut Appender) -> Result<()>,
    ) -> Result<RangeInclusive<u64>> {
        let _writer = self.lock_writer();
        let mut group = Group::new(&self.db, Pace::Patient)?;
        for one in self.take_waiting() {
            group.add_job(one);
        }
        let own = self::build(topic, time_ms, build)
            .and_then(|built| group.place(topic, built, &|| Ok(())));
        let written = group.write();
        own.and_then(|range| written.map(|()| range))
    }

    /// Writes a job; when this returns its `done` was called. Others who come meanwhile are written
    /// together by whoever gets the writer next.
    pub(super) fn run(&self, topic: &Arc<Topic>, time_ms: u64, job: Box<dyn AppendJob>) {
        let own = Waiting { topic: Arc::clone(topic), time_ms, job };
        if let Ok(_writer) = self.writer.try_lock() {
            let mut group = self.take_waiting();
            group.push(own);
            self.write_waiting(group);
            return;
        }
        self.lock_waiting().push(own);
        let _writer = self.lock_writer();
        // Whoever held the writer may have written this job: then it is no longer there.
        loop {
            let group = self.take_waiting();
            if group.is_empty() {
                return;
            }
            self.write_waiting(group);
        }
    }

    /// Writes a job if that takes no waiting at all; else gives it back.
    pub(super) fn try_run(
        &self,
        topic: &Arc<Topic>,
        time_ms: u64,
        mut job: Box<dyn AppendJob>,
    ) -> Option<Box<dyn AppendJob>> {
        let Ok(_writer) = self.writer.try_lock() else { return Some(job) };
        if self.db.syncs() || !self.lock_waiting().is_empty() {
            return Some(job);
        }
        let mut group = match Group::new(&self.db, Pace::Hurried) {
            Ok(group) => group,
            Err(error) => {
                job.done(Err(error));
                return None;
            }
        };
        let added = group.add(topic, time_ms, job.as_mut());
        match added.and_then(|range| group.write().map(|()| range)) {
            Err(error) if error.kind() == ErrorKind::Timeout => Some(job),
            result => {
                job.done(result);
                None
            }
        }
    }

    /// Hands an append to the queue's thread. Its end comes through [`AppendJob::done`].
    pub(super) fn submit(
        self: &Arc<Self>,
        topic: &Arc<Topic>,
        time_ms: u64,
        job: Box<dyn AppendJob>,
    ) {
        if let Err(error) = self.start_thread() {
            job.done(Err(error));
            return;
        }
        let mut waiting = self.lock_waiting();
        if self.closed.load(Ordering::Acquire) {
            drop(waiting);
            job.done(Err(Error::new(ErrorKind::Closed, "the log is closed")));
            return;
        }
        waiting.push(Waiting { topic: Arc::clone(topic), time_ms, job });
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Writes what waits, then ends the thread.
    pub(super) fn close(&self) {
        let waiting = self.lock_waiting();
        self.closed.store(true, Ordering::Release);
        drop(waiting);
        self.arrived.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It panicked: whoever waited was told by the drop of his job.
            let _ = thread.join();
        }
    }

    fn start_thread(self: &Arc<Self>) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() && !self.closed.load(Ordering::Acquire) {
            let committer = Arc::clone(self);
            let spawned = std::thread::Builder::new()
                .name("vecmq-commit".to_owned())
                .spawn(move || committer.run_thread())
                .map_err(|e| {
                    Error::with_source(ErrorKind::Storage, "cannot start the writer's thread", e)
                })?;
            *thread = Some(spawned);
        }
        Ok(())
    }

    fn run_thread(&self) {
        loop {
            let mut waiting = self.lock_waiting();
            while waiting.is_empty() {
                if self.closed.load(Ordering::Acquire) {
                    return;
                }
                waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            drop(waiting);
            let _writer = self.lock_writer();
            self.write_waiting(self.take_waiting());
        }
    }

    fn write_waiting(&self, waiting: Vec<Waiting>) {
        match Group::new(&self.db, Pace::Patient) {
            Ok(mut group) => {
                for one in waiting {
                    group.add_job(one);
                }
                // Everybody is told by his own `done`.
                let _ = group.write();
            }
            Err(error) => {
                for one in waiting {
                    one.job.done(Err(error.again()));
                }
            }
        }
    }

    fn take_waiting(&self) -> Vec<Waiting> {
        let mut waiting = self.lock_waiting();
        let count = waiting.len().min(JOBS_MAX);
        waiting.drain(..count).collect()
    }

    pub(super) fn lock_writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends that become one write.
struct Group<'a> {
    db: &'a Db,
    open: Use,
    pace: Pace,
    batch: WriteBatch,
    placed: Vec<(Arc<Topic>, Placed)>,
    jobs: Vec<(Box<dyn AppendJob>, RangeInclusive<u64>)>,
}

impl<'a> Group<'a> {
    fn new(db: &'a Db, pace: Pace) -> Result<Self> {
        let open = db.get()?;
        let batch = WriteBatch::default();
        Ok(Self { db, open, pace, batch, placed: Vec::new(), jobs: Vec::new() })
    }

    fn add_job(&mut self, mut waiting: Waiting) {
        match self.add(&waiting.topic, waiting.time_ms, waiting.job.as_mut()) {
            Ok(range) => self.jobs.push((waiting.job, range)),
            Err(error) => waiting.job.done(Err(error)),
        }
    }

    fn add(
        &mut self,
        topic: &Arc<Topic>,
        time_ms: u64,
        job: &mut dyn AppendJob,
    ) -> Result<RangeInclusive<u64>> {
        let built = build(topic, time_ms, &mut |appender| job.build(appender))?;
        self.place(topic, built, &|| job.verify())
    }

    /// Puts one append into the batch; on an error it leaves nothing there.
    fn place(
        &mut self,
        topic: &Arc<Topic>,
        appender: Appender,
        verify: &dyn Fn() -> Result<()>,
    ) -> Result<RangeInclusive<u64>> {
        let before = topic.tail();
        let range = before.next_seq..=appender.next_seq() - 1;
        if range.is_empty() {
            return Ok(range);
        }
        match topic.place(appender, before, &self.open, &mut self.batch, verify) {
            Ok(placed) => {
                topic.set_tail(placed.after);
                self.placed.push((Arc::clone(topic), placed));
                Ok(range)
            }
            Err(error) => {
                topic.cut_values(&before);
                Err(error)
            }
        }
    }

    fn write(mut self) -> Result<()> {
        let result = self.write_batch();
        if let Err(error) = &result {
            for (topic, placed) in self.placed.iter().rev() {
                topic.set_tail(placed.before);
                topic.cut_values(&placed.before);
            }
            for (job, _) in self.jobs.drain(..) {
                job.done(Err(error.again()));
            }
            return result;
        }
        for (topic, placed) in std::mem::take(&mut self.placed) {
            topic.appended(placed);
        }
        for (job, range) in self.jobs.drain(..) {
            job.done(Ok(range));
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.placed.is_empty() {
            return Ok(());
        }
        if self.db.syncs() {
            for (topic, placed) in &self.placed {
                placed.files.iter().try_for_each(|file| topic.values.sync(*file))?;
            }
        }
        self.db.write_paced(&self.open, std::mem::take(&mut self.batch), self.pace)
    }
}

fn build(
    topic: &Topic,
    time_ms: u64,
    push: &mut dyn FnMut(&mut Appender) -> Result<()>,
) -> Result<Appender> {
    topic.check_exists()?;
    let mut appender = Appender::new(&topic.tail(), time_ms);
    push(&mut appender)?;
    Ok(appender)
}
