//! One write of one or many records.

use std::sync::Arc;

use rocksdb::{BoundColumnFamily, WriteBatch};

use crate::queue::keys::{self, Page, RecordHeader};

/// Log bytes between two page borders: the grain of retention.
const PAGE_BYTES: u64 = 1 << 20;

/// Where the next record goes, and how many bytes lie before it.
#[derive(Clone, Copy)]
pub(super) struct Tail {
    pub(super) next_seq: u64,
    pub(super) bytes: u64,
    pub(super) page_bytes: u64,
}

/// Collects the records of one write; seqs are assigned as they come.
pub struct Appender<'a> {
    pub(super) batch: WriteBatch,
    pub(super) tail: Tail,
    topic_id: u32,
    time_ms: u64,
    log: &'a Arc<BoundColumnFamily<'a>>,
    meta: &'a Arc<BoundColumnFamily<'a>>,
    scratch: Vec<u8>,
}

impl<'a> Appender<'a> {
    pub(super) fn new(
        topic_id: u32,
        time_ms: u64,
        tail: Tail,
        log: &'a Arc<BoundColumnFamily<'a>>,
        meta: &'a Arc<BoundColumnFamily<'a>>,
    ) -> Self {
        let (batch, scratch) = (WriteBatch::default(), Vec::new());
        Self { batch, tail, topic_id, time_ms, log, meta, scratch }
    }

    /// The seq of the next record.
    pub fn next_seq(&self) -> u64 {
        self.tail.next_seq
    }

    /// Adds a record of `span` messages; its value is the concatenation of `value`. Returns its
    /// first seq.
    pub fn push(&mut self, span: u32, value: &[&[u8]]) -> u64 {
        self.add(span, value, false)
    }

    /// Adds a record that is open: readers see it as such until
    /// [`crate::queue::Topic::close_open`].
    pub fn push_open(&mut self, span: u32, value: &[&[u8]]) -> u64 {
        let key = keys::open(self.topic_id, self.tail.next_seq);
        self.batch.put_cf(self.meta, key, []);
        self.add(span, value, true)
    }

    fn add(&mut self, span: u32, value: &[&[u8]], open: bool) -> u64 {
        let seq = self.tail.next_seq;
        if self.tail.bytes - self.tail.page_bytes >= PAGE_BYTES {
            self.tail.page_bytes = self.tail.bytes;
            let page =
                Page { first_seq: seq, bytes_before: self.tail.bytes, time_ms: self.time_ms };
            let key = keys::page(self.topic_id, seq);
            self.batch.put_cf(self.meta, key, page.encode());
        }
        let span = span.max(1);
        self.scratch.clear();
        RecordHeader { time_ms: self.time_ms, span, open }.encode(&mut self.scratch);
        for one in value {
            self.scratch.extend_from_slice(one);
        }
        let key = keys::log(self.topic_id, seq);
        self.batch.put_cf(self.log, key, &self.scratch);
        self.tail.next_seq += u64::from(span);
        self.tail.bytes += self.scratch.len() as u64;
        seq
    }
}
