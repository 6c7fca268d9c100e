//! The last records of a topic, in memory: a reader that keeps up touches no file.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::queue::keys::Pointer;

/// Value bytes that one topic keeps.
const TOPIC_BYTES_MAX: usize = 8 << 20;
/// Value bytes that all topics of a process keep. A topic that would exceed it keeps none.
const ALL_BYTES_MAX: usize = 64 << 20;
/// Records that one topic keeps, large ones included, of which only the place is kept.
const RECORDS_MAX: usize = 16 << 10;

static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Where a value can be had.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Memory(Bytes),
    File(Pointer),
}

impl Place {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Memory(value) => value.len() as u64,
            Self::File(pointer) => pointer.length,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Memory(value) => value.len(),
            Self::File(_) => 0,
        }
    }
}

/// A record, its value wherever it lies.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) first_seq: u64,
    pub(super) span: u32,
    pub(super) time_ms: u64,
    pub(super) open: bool,
    pub(super) place: Place,
}

impl Located {
    pub(super) fn after(&self) -> u64 {
        self.first_seq + u64::from(self.span)
    }
}

/// The last records, without a hole.
#[derive(Default)]
pub(super) struct TailCache {
    records: VecDeque<Located>,
    bytes: usize,
}

impl TailCache {
    pub(super) fn push(&mut self, record: Located) {
        if self.records.back().is_some_and(|last| last.after() != record.first_seq) {
            self.clear();
        }
        self.grow(record.place.memory_bytes());
        self.records.push_back(record);
        while self.bytes > TOPIC_BYTES_MAX
            || self.records.len() > RECORDS_MAX
            || (self.bytes > 0 && ALL_BYTES.load(Ordering::Relaxed) > ALL_BYTES_MAX)
        {
            let Some(oldest) = self.records.pop_front() else { break };
            self.shrink(oldest.place.memory_bytes());
        }
    }

    /// Puts a record in the place of the one with the same first seq.
    pub(super) fn replace(&mut self, record: Located) {
        let Ok(index) = self.records.binary_search_by_key(&record.first_seq, |one| one.first_seq)
        else {
            return;
        };
        self.grow(record.place.memory_bytes());
        if let Some(known) = self.records.get_mut(index) {
            let before = std::mem::replace(known, record);
            self.shrink(before.place.memory_bytes());
        }
    }

    /// The records from the one that holds `from_seq`; None when it is not here.
    pub(super) fn read(
        &self,
        from_seq: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Option<Vec<Located>> {
        if self.records.front()?.first_seq > from_seq {
            return None;
        }
        let start = self.records.partition_point(|record| record.after() <= from_seq);
        let mut bytes = 0;
        let mut found = Vec::new();
        for record in self.records.range(start..).take(records_max) {
            bytes += record.place.length();
            if !found.is_empty() && bytes > bytes_max as u64 {
                break;
            }
            found.push(record.clone());
        }
        Some(found)
    }

    /// Forgets the records before the one that begins at `seq`.
    pub(super) fn drop_before(&mut self, seq: u64) {
        while self.records.front().is_some_and(|record| record.first_seq < seq) {
            let Some(oldest) = self.records.pop_front() else { break };
            self.shrink(oldest.place.memory_bytes());
        }
    }

    fn clear(&mut self) {
        self.records.clear();
        self.shrink(self.bytes);
    }

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        ALL_BYTES.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shrink(&mut self, bytes: usize) {
        self.bytes -= bytes;
        ALL_BYTES.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for TailCache {
    fn drop(&mut self) {
        self.clear();
    }
}
