//! What may be deleted, and deleting it.
//!
//! Deletes whole pages from the front. A page goes when all of it is too old or too much; it stays
//! when a subscription group has not read it, or a record before its end is open.

use std::sync::atomic::Ordering;

use rocksdb::{Direction, IteratorMode, WriteBatch};

use crate::error::Result;
use crate::queue::keys::{self, Page};
use crate::queue::topic::Topic;

/// What may be deleted. The default keeps everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Messages older than this many milliseconds may go.
    pub age_ms_max: Option<u64>,
    /// The oldest messages may go while a topic holds more bytes than this.
    pub bytes_max: Option<u64>,
    /// They may go although a subscription group has not acknowledged them, or although there is
    /// none.
    pub unacked: bool,
}

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Messages deleted.
    pub messages: u64,
    /// Log bytes deleted.
    pub bytes: u64,
}

impl Topic {
    /// Deletes what `policy` allows.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`], [`crate::ErrorKind::Storage`].
    pub fn retain(&self, policy: &Retention, now_ms: u64) -> Result<Retained> {
        let limit = self.deletable_before(policy)?;
        let oldest_ms = policy.age_ms_max.map(|age| now_ms.saturating_sub(age));
        let total_bytes = self.total_bytes();
        let surplus = policy.bytes_max.map(|max| total_bytes.saturating_sub(max));
        let mut cut: Option<Page> = None;
        for page in self.pages()? {
            let old = oldest_ms.is_some_and(|oldest| page.time_ms < oldest);
            let much = surplus.is_some_and(|surplus| page.bytes_before <= surplus);
            if page.first_seq > limit || !(old || much) {
                break;
            }
            cut = Some(page);
        }
        let first_seq = self.first_seq();
        match cut {
            Some(page) if page.first_seq > first_seq => {
                let before = self.first_page_bytes()?;
                self.trim_before(page.first_seq)?;
                Ok(Retained {
                    messages: page.first_seq - first_seq,
                    bytes: page.bytes_before.saturating_sub(before),
                })
            }
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

    fn pages(&self) -> Result<Vec<Page>> {
        let open = self.db.get()?;
        let prefix = keys::page_prefix(self.id);
        let mode = IteratorMode::From(&prefix, Direction::Forward);
        let mut pages = Vec::new();
        for entry in open.rocks.iterator_cf(&open.meta()?, mode) {
            let (key, value) = entry.map_err(|e| self.db.failed("read", e))?;
            if !key.starts_with(&prefix) {
                break;
            }
            pages.push(Page::decode(self.id, &key, &value)?);
        }
        Ok(pages)
    }

    fn first_page_bytes(&self) -> Result<u64> {
        let first_seq = self.first_seq();
        let first = self.pages()?.into_iter().find(|page| page.first_seq == first_seq);
        Ok(first.map_or(0, |page| page.bytes_before))
    }

    /// Deletes all records before the one that begins at `seq`, and gives their disk back.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`], [`crate::ErrorKind::Storage`].
    pub fn trim_before(&self, seq: u64) -> Result<()> {
        let seq = seq.min(self.next_seq());
        if seq <= self.first_seq() {
            return Ok(());
        }
        let open = self.db.get()?;
        let (log, meta) = (open.log()?, open.meta()?);
        let (from, to) = (keys::log(self.id, 0), keys::log(self.id, seq));
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(&log, from, to);
        batch.delete_range_cf(&meta, keys::page(self.id, 0), keys::page(self.id, seq));
        batch.put_cf(&meta, keys::floor(self.id), seq.to_le_bytes());
        self.db.write(&open, batch)?;
        self.first.fetch_max(seq, Ordering::AcqRel);
        // Whole files first: that is free. What is left in files at the border, compaction
        // rewrites.
        open.rocks
            .delete_file_in_range_cf(&log, from, to)
            .map_err(|e| self.db.failed("trim", e))?;
        open.rocks.compact_range_cf(&log, Some(from), Some(to));
        Ok(())
    }
}
