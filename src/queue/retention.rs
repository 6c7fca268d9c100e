//! What may be deleted, and deleting it.
//!
//! Deletes whole pages from the front. A page goes when all of it is too old or too much; it stays
//! when a subscription group has not read it, or a record before its end is open.

use std::sync::atomic::Ordering;

use rocksdb::WriteBatch;

use crate::error::{Error, ErrorKind, Result};
use crate::queue::append::Tail;
use crate::queue::db::Use;
use crate::queue::keys::{self, Page};
use crate::queue::topic::Topic;

/// What may be deleted. The default keeps everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Messages older than this many milliseconds may go.
    pub age_ms_max: Option<u64>,
    /// The oldest messages may go while a topic holds more bytes than this.
    pub bytes_max: Option<u64>,
    /// The oldest messages may go while a topic holds more messages than this.
    pub msgs_max: Option<u64>,
    /// They may go although a subscription group has not acknowledged them, or although there is
    /// none.
    pub unacked: bool,
}

impl Retention {
    /// It deletes nothing.
    pub fn keeps_all(&self) -> bool {
        self.age_ms_max.is_none() && self.bytes_max.is_none() && self.msgs_max.is_none()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.unacked)];
        for limit in [self.age_ms_max, self.bytes_max, self.msgs_max] {
            out.push(u8::from(limit.is_some()));
            out.extend_from_slice(&limit.unwrap_or(0).to_le_bytes());
        }
        out
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let damaged = || {
            let context = format!("log metadata: retention of {} bytes", value.len());
            Error::new(ErrorKind::Corrupt, context)
        };
        let (&unacked, mut rest) = value.split_first().ok_or_else(damaged)?;
        let mut limit = || -> Result<Option<u64>> {
            let (&is_some, after) = rest.split_first().ok_or_else(damaged)?;
            let (bytes, after) = after.split_first_chunk().ok_or_else(damaged)?;
            rest = after;
            Ok((is_some != 0).then_some(u64::from_le_bytes(*bytes)))
        };
        let (age_ms_max, bytes_max, msgs_max) = (limit()?, limit()?, limit()?);
        Ok(Self { age_ms_max, bytes_max, msgs_max, unacked: unacked != 0 })
    }
}

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Messages deleted.
    pub messages: u64,
    /// Log bytes deleted.
    pub bytes: u64,
}

/// What a topic holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicInfo {
    /// The oldest seq that is there.
    pub first_seq: u64,
    /// The seq that the next message gets.
    pub next_seq: u64,
    /// Messages there.
    pub messages: u64,
    /// Log bytes of them, record headers included.
    pub bytes: u64,
    /// Bytes on the disk in value files; small messages lie in the database that all topics share.
    pub file_bytes: u64,
    /// When the oldest message was published, in milliseconds since the Unix epoch.
    pub first_time_ms: Option<u64>,
    /// When the newest one was.
    pub last_time_ms: Option<u64>,
    /// Messages whose way to the stream is not settled yet.
    pub open: u64,
}

impl Topic {
    /// Deletes what `policy` allows, in whole pages of about 1 MiB of log.
    ///
    /// # Errors
    /// [`crate::ErrorKind::TopicNotFound`], [`crate::ErrorKind::Closed`],
    /// [`crate::ErrorKind::Storage`].
    pub fn retain(&self, policy: &Retention, now_ms: u64) -> Result<Retained> {
        let _cutter = self.hold_cutter();
        self.check_exists()?;
        let oldest_ms = policy.age_ms_max.map(|age| now_ms.saturating_sub(age));
        let tail = self.tail();
        let surplus = policy.bytes_max.map(|max| tail.bytes.saturating_sub(max));
        let surplus_seq = policy.msgs_max.map(|max| tail.next_seq.saturating_sub(max));
        let mut cut: Option<Page> = None;
        let pages = self.pages()?;
        // After the pages: what is open before one of them is known as open by now.
        let limit = self.deletable_before(policy)?;
        for page in pages {
            let old = oldest_ms.is_some_and(|oldest| page.time_ms < oldest);
            let much = surplus.is_some_and(|surplus| page.bytes_before <= surplus);
            let many = surplus_seq.is_some_and(|seq| page.first_seq <= seq);
            if page.first_seq > limit || !(old || much || many) {
                break;
            }
            cut = Some(page);
        }
        match cut {
            Some(page) if page.first_seq > self.first_seq() => self.trim(page, false),
            _ => Ok(Retained::default()),
        }
    }

    /// The first seq that has to stay.
    fn deletable_before(&self, policy: &Retention) -> Result<u64> {
        let open = self.open_seqs()?.into_iter().next().unwrap_or(u64::MAX);
        if policy.unacked {
            return Ok(open);
        }
        let unread = self.groups()?.into_iter().map(|(_, cursor)| cursor).min();
        Ok(unread.unwrap_or(0).min(open))
    }

    pub(super) fn pages(&self) -> Result<Vec<Page>> {
        let open = self.db.get()?;
        let found = self.db.scan_prefix(&open, &keys::page_prefix(self.id))?;
        found.iter().map(|(key, value)| Page::decode(self.id, key, value)).collect()
    }

    /// Deletes all records before a page border, and gives their disk back.
    ///
    /// Without `at_once`, those in table files that hold later records too stay there, hidden by
    /// the floor, until their file goes as a whole: a range deletion would make compaction rewrite
    /// the log (4.0 bytes written for a byte published; 2.3 without).
    fn trim(&self, page: Page, at_once: bool) -> Result<Retained> {
        let seq = page.first_seq;
        let open = self.db.get()?;
        let (log, meta) = (open.log()?, open.meta()?);
        let (from, to) = (keys::log(self.id, 0), keys::log(self.id, seq));
        let mut batch = WriteBatch::default();
        if at_once {
            batch.delete_range_cf(&log, from, to);
        }
        batch.delete_range_cf(&meta, keys::page(self.id, 0), keys::page(self.id, seq));
        batch.delete_range_cf(&meta, keys::resized(self.id, 0), keys::resized(self.id, seq));
        batch.put_cf(&meta, keys::page(self.id, seq), page.encode());
        batch.put_cf(&meta, keys::floor(self.id), seq.to_le_bytes());
        // First, so that no reader takes what is gone for a hole.
        let trimming = self.trimming.fetch_max(seq, Ordering::AcqRel);
        self.db.write(&open, batch).inspect_err(|_| {
            self.trimming.store(trimming, Ordering::Release);
        })?;
        let before_seq = self.first.fetch_max(seq, Ordering::AcqRel);
        self.drop_cached_before(seq);
        let before_bytes = self.first_bytes.fetch_max(page.bytes_before, Ordering::AcqRel);
        let grown = {
            let mut resized = self.lock_resized();
            let kept = resized.split_off(&seq);
            std::mem::replace(&mut *resized, kept).into_values().sum::<i64>()
        };
        // Value files first: a file that was removed is disk that is free.
        self.forget_files(&open, self.values.remove_before(seq, false)?)?;
        // Whole table files next, which is free too. What is left in files at the border,
        // compaction rewrites.
        open.rocks
            .delete_file_in_range_cf(&log, from, to)
            .map_err(|e| self.db.failed("trim", e))?;
        if at_once {
            open.rocks.compact_range_cf(&log, Some(from), Some(to));
        }
        Ok(Retained {
            messages: seq.saturating_sub(before_seq),
            bytes: page.bytes_before.saturating_sub(before_bytes).saturating_add_signed(grown),
        })
    }

    fn forget_files(&self, open: &Use, numbers: Vec<u32>) -> Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for number in numbers {
            batch.delete_cf(&open.meta()?, keys::value_file(self.id, number));
        }
        self.db.write(open, batch)
    }

    /// Deletes all messages, acknowledged or not. Seqs go on where they were.
    ///
    /// Intents that are open stay, and with them what came after the first of them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::TopicNotFound`], [`crate::ErrorKind::Closed`],
    /// [`crate::ErrorKind::Storage`].
    pub fn purge(&self) -> Result<Retained> {
        let purged = self.purge_records()?;
        self.drop_read_ahead();
        Ok(purged)
    }

    fn purge_records(&self) -> Result<Retained> {
        let _cutter = self.hold_cutter();
        self.check_exists()?;
        let _writer = self.hold_writer();
        let tail = self.tail();
        let limit = self.deletable_before(&Retention { unacked: true, ..Retention::default() })?;
        if limit < tail.next_seq {
            let borders = self.pages()?;
            let cut = borders.into_iter().take_while(|page| page.first_seq <= limit).last();
            return match cut {
                Some(page) if page.first_seq > self.first_seq() => self.trim(page, true),
                _ => Ok(Retained::default()),
            };
        }
        if tail.next_seq == self.first_seq() {
            return Ok(Retained::default());
        }
        let file_end = u64::MAX;
        let Tail { next_seq: first_seq, bytes: bytes_before, time_ms, file, .. } = tail;
        let page = Page { first_seq, bytes_before, time_ms, file, file_end };
        let purged = self.trim(page, true)?;
        self.set_tail(Tail { page_bytes: bytes_before, file_end, ..tail });
        let open = self.db.get()?;
        self.forget_files(&open, self.values.remove_before(first_seq, true)?)?;
        Ok(purged)
    }

    /// Deletes the topic: its messages, groups and files. Handles of it end with
    /// [`crate::ErrorKind::TopicNotFound`].
    pub(super) fn delete(&self) -> Result<()> {
        let _cutter = self.hold_cutter();
        self.check_exists()?;
        let _writer = self.hold_writer();
        let open = self.db.get()?;
        let (log, meta) = (open.log()?, open.meta()?);
        let (from, to) = (keys::log(self.id, 0), keys::log(self.id, u64::MAX));
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(&log, from, to);
        for prefix in keys::topic_prefixes(self.id) {
            for (key, _) in self.db.scan_prefix(&open, &prefix)? {
                batch.delete_cf(&meta, key);
            }
        }
        batch.delete_cf(&meta, keys::topic(self.name()));
        let trimming = self.trimming.swap(u64::MAX, Ordering::AcqRel);
        self.db.write(&open, batch).inspect_err(|_| {
            self.trimming.store(trimming, Ordering::Release);
        })?;
        self.deleted.store(true, Ordering::Release);
        self.drop_cached_before(u64::MAX);
        self.values.remove_before(u64::MAX, true)?;
        self.wake_all();
        open.rocks
            .delete_file_in_range_cf(&log, from, to)
            .map_err(|e| self.db.failed("trim", e))?;
        open.rocks.compact_range_cf(&log, Some(from), Some(to));
        Ok(())
    }

    /// What the topic holds. Counts and bytes are exact, after a crash too.
    ///
    /// # Errors
    /// [`crate::ErrorKind::TopicNotFound`], [`crate::ErrorKind::Closed`],
    /// [`crate::ErrorKind::Storage`].
    pub fn info(&self) -> Result<TopicInfo> {
        self.check_exists()?;
        let (first_seq, tail) = (self.first_seq(), self.tail());
        let deleted = self.first_bytes.load(Ordering::Acquire);
        let grown = self.lock_resized().values().sum::<i64>();
        let first = self.read_located(first_seq, 1, 0)?;
        Ok(TopicInfo {
            first_seq,
            next_seq: tail.next_seq,
            messages: tail.next_seq.saturating_sub(first_seq),
            bytes: tail.bytes.saturating_sub(deleted).saturating_add_signed(grown),
            file_bytes: self.values.sizes()?.into_values().sum(),
            first_time_ms: first.first().map(|record| record.time_ms),
            last_time_ms: (!first.is_empty()).then_some(tail.time_ms),
            open: self.open_seqs()?.len() as u64,
        })
    }
}
