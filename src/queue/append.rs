//! The records of one append, and their way into a group's write.

use bytes::Bytes;
use rocksdb::WriteBatch;

use crate::error::Result;
use crate::queue::cache::{Located, Place};
use crate::queue::db::Use;
use crate::queue::keys::{self, Page, Pointer, RECORD_HEADER_BYTES, RecordHeader};
use crate::queue::topic::Topic;
use crate::queue::values::{FILE_BYTES, LARGE_BYTES_MIN};

/// Log bytes between two page borders: the grain of retention.
const PAGE_BYTES: u64 = 1 << 20;

/// Where the next record goes, and what lies before it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    pub(super) next_seq: u64,
    /// Log bytes of all records since the topic was made.
    pub(super) bytes: u64,
    /// The same at the last page border.
    pub(super) page_bytes: u64,
    /// Time of the last record: times never fall, whatever the clock does.
    pub(super) time_ms: u64,
    /// The value file that is being written, and its size.
    pub(super) file: u32,
    pub(super) file_end: u64,
}

/// Collects the records of one append; seqs are assigned as they come.
pub struct Appender {
    records: Vec<NewRecord>,
    next_seq: u64,
    time_ms: u64,
}

struct NewRecord {
    first_seq: u64,
    span: u32,
    open: bool,
    value: Vec<Bytes>,
}

impl Appender {
    pub(super) fn new(tail: &Tail, time_ms: u64) -> Self {
        Self { records: Vec::new(), next_seq: tail.next_seq, time_ms: time_ms.max(tail.time_ms) }
    }

    /// The seq of the next record.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Adds a record of `span` messages; its value is the concatenation of `value`. Returns its
    /// first seq.
    ///
    /// A value of one slice may be kept in memory for readers, so nobody may change it later; of
    /// several slices nothing is kept.
    pub fn push(&mut self, span: u32, value: Vec<Bytes>) -> u64 {
        self.add(span, value, false)
    }

    /// Adds a record that is open: readers see it as such until
    /// [`crate::queue::Topic::close_open`].
    pub fn push_open(&mut self, span: u32, value: Vec<Bytes>) -> u64 {
        self.add(span, value, true)
    }

    fn add(&mut self, span: u32, value: Vec<Bytes>, open: bool) -> u64 {
        let (first_seq, span) = (self.next_seq, span.max(1));
        self.records.push(NewRecord { first_seq, span, open, value });
        self.next_seq += u64::from(span);
        first_seq
    }
}

/// What one append becomes once its group is written.
pub(super) struct Placed {
    pub(super) before: Tail,
    pub(super) after: Tail,
    pub(super) records: Vec<Located>,
    /// Value files that were written.
    pub(super) files: Vec<u32>,
}

impl Topic {
    /// Writes the large values to their files and puts the records into the batch. On an error the
    /// batch is as it was; the caller cuts the files back.
    pub(super) fn place(
        &self,
        appender: Appender,
        before: Tail,
        open: &Use,
        batch: &mut WriteBatch,
        verify: &dyn Fn() -> Result<()>,
    ) -> Result<Placed> {
        let (log, meta) = (open.log()?, open.meta()?);
        let mut placing = Placing { topic: self, tail: before, files: Vec::new() };
        // What can fail comes first.
        let places = appender
            .records
            .iter()
            .map(|record| placing.write_large(record))
            .collect::<Result<Vec<_>>>()?;
        verify()?;
        let Placing { tail: Tail { file, file_end, .. }, files, .. } = placing;
        for (number, first_seq) in &files {
            if *number > before.file {
                let key = keys::value_file(self.id, *number);
                batch.put_cf(&meta, key, first_seq.to_le_bytes());
            }
        }
        let mut tail = before;
        let mut records = Vec::with_capacity(appender.records.len());
        let mut scratch = Vec::new();
        let time_ms = appender.time_ms;
        for (record, pointer) in appender.records.into_iter().zip(places) {
            if let Some(page) = border(&mut tail, time_ms) {
                batch.put_cf(&meta, keys::page(self.id, page.first_seq), page.encode());
            }
            if let Some(pointer) = pointer {
                (tail.file, tail.file_end) = (pointer.file, pointer.position + pointer.length);
            }
            let NewRecord { first_seq, span, open, value } = record;
            scratch.clear();
            RecordHeader { time_ms, span, open }.encode(pointer, &mut scratch);
            let length = value.iter().map(Bytes::len).sum::<usize>() as u64;
            if pointer.is_none() {
                for slice in &value {
                    scratch.extend_from_slice(slice);
                }
            }
            batch.put_cf(&log, keys::log(self.id, first_seq), &scratch);
            if open {
                batch.put_cf(&meta, keys::open(self.id, first_seq), []);
            }
            tail.next_seq = first_seq + u64::from(span);
            tail.bytes += length + RECORD_HEADER_BYTES;
            records.push(Located { first_seq, span, time_ms, open, place: place(value, pointer) });
        }
        let after = Tail { time_ms, file, file_end, ..tail };
        Ok(Placed { before, after, records, files: files.into_iter().map(|(n, _)| n).collect() })
    }
}

/// The page border that is due before the next record.
fn border(tail: &mut Tail, time_ms: u64) -> Option<Page> {
    if tail.bytes - tail.page_bytes < PAGE_BYTES {
        return None;
    }
    tail.page_bytes = tail.bytes;
    Some(Page {
        first_seq: tail.next_seq,
        bytes_before: tail.bytes,
        time_ms,
        file: tail.file,
        file_end: tail.file_end,
    })
}

/// Where readers find the value from now on.
fn place(mut value: Vec<Bytes>, pointer: Option<Pointer>) -> Place {
    match (pointer, value.len()) {
        (_, 1) => Place::Memory(value.swap_remove(0)),
        (Some(pointer), _) => Place::File(pointer),
        (None, _) => Place::Memory(value.concat().into()),
    }
}

/// Writes the large values of one append.
struct Placing<'a> {
    topic: &'a Topic,
    tail: Tail,
    /// Files written to, each with the seq of the first record that this append put there.
    files: Vec<(u32, u64)>,
}

impl Placing<'_> {
    /// Writes a large value to the current file, or to a new one; None for a small value.
    fn write_large(&mut self, record: &NewRecord) -> Result<Option<Pointer>> {
        let length: usize = record.value.iter().map(Bytes::len).sum();
        if length < LARGE_BYTES_MIN {
            return Ok(None);
        }
        let values = &self.topic.values;
        if self.tail.file == 0 || self.tail.file_end >= FILE_BYTES {
            (self.tail.file, self.tail.file_end) = (self.tail.file + 1, 0);
            values.create(self.tail.file, record.first_seq)?;
        }
        if self.files.last().is_none_or(|(number, _)| *number != self.tail.file) {
            self.files.push((self.tail.file, record.first_seq));
        }
        let length = length as u64;
        let pointer = Pointer { file: self.tail.file, position: self.tail.file_end, length };
        values.append(pointer.file, pointer.position, &record.value)?;
        self.tail.file_end += length;
        Ok(Some(pointer))
    }
}
