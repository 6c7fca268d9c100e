//! Verifies one topic: seqs, pages, sizes, value files, cursors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;

use crate::error::Result;
use crate::queue::check::{Checked, Fault, TopicCheck};
use crate::queue::db::{Db, Use};
use crate::queue::keys::{self, Page, Pointer, RECORD_HEADER_BYTES, RecordHeader, Stored};
use crate::queue::recover;
use crate::queue::topic::Record;
use crate::queue::values::ValueFiles;

/// What the walk over the records of a topic knows.
struct Walk<'a> {
    name: &'a str,
    values: ValueFiles,
    pages: BTreeMap<u64, Page>,
    resized: BTreeMap<u64, i64>,
    open: BTreeSet<u64>,
    /// File number -> seq of its first record, as noted and not met yet.
    files: BTreeMap<u32, u64>,
    found: TopicCheck,
    /// Log bytes before the next record, as page borders count them.
    before_bytes: u64,
    /// Where values end: file and position.
    end: (u32, u64),
    faults: Vec<Fault>,
}

pub(super) fn check(
    db: &Db,
    open: &Use,
    path: &Path,
    (id, name): (u32, &str),
    visit: &mut dyn FnMut(&Record) -> Result<()>,
    checked: &mut Checked,
) -> Result<()> {
    let floor = recover::floor(db, open, id)?;
    let files = recover::value_files(db, open, id)?;
    let pages = pages(db, open, id)?;
    let mut walk = Walk {
        name,
        values: ValueFiles::new(path, id, files.clone()),
        before_bytes: pages.get(&floor).map_or(0, |page| page.bytes_before),
        pages,
        resized: recover::resized(db, open, id)?,
        open: open_seqs(db, open, id)?,
        files,
        found: TopicCheck { name: name.to_owned(), first_seq: floor, ..TopicCheck::default() },
        end: (0, 0),
        faults: Vec::new(),
    };
    walk.found.next_seq = floor;
    if floor > 1 && !walk.pages.contains_key(&floor) {
        walk.fault(Some(floor), "the page border at the first seq is gone");
    }
    walk.records(db, open, id, visit)?;
    walk.leftovers(id, checked);
    walk.groups(db, open, id)?;
    checked.topics.push(walk.found);
    checked.faults.append(&mut walk.faults);
    Ok(())
}

impl Walk<'_> {
    fn fault(&mut self, seq: Option<u64>, what: impl Into<String>) {
        let topic = Some(self.name.to_owned());
        self.faults.push(Fault { topic, seq, what: what.into(), ..Fault::default() });
    }

    fn records(
        &mut self,
        db: &Db,
        open: &Use,
        id: u32,
        visit: &mut dyn FnMut(&Record) -> Result<()>,
    ) -> Result<()> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_verify_checksums(true);
        options.set_iterate_upper_bound(keys::log(id, u64::MAX));
        let mut iterator = open.rocks.raw_iterator_cf_opt(&open.log()?, options);
        // Retention may leave records before the first seq; nobody reads them.
        iterator.seek(keys::log(id, self.found.first_seq));
        loop {
            while let Some((key, value)) = iterator.item() {
                match keys::log_seq(id, key) {
                    Ok(seq) => self.record(seq, value, visit),
                    Err(error) => self.fault(None, error.to_string()),
                }
                iterator.next();
            }
            let Err(error) = iterator.status() else { break };
            let next = self.found.next_seq;
            self.fault(Some(next), db.failed("read", error).to_string());
            // What lies behind the damage: from the next border on.
            let Some((&border, _)) = self.pages.range(next + 1..).next() else { break };
            iterator.seek(keys::log(id, border));
        }
        for (seq, page) in std::mem::take(&mut self.pages) {
            let purged = seq == self.found.next_seq && page.bytes_before == self.before_bytes;
            if !purged {
                self.fault(Some(seq), "a page begins at a record that is not there");
            }
        }
        for seq in std::mem::take(&mut self.open) {
            self.fault(Some(seq), "noted as open, and is not");
        }
        for seq in std::mem::take(&mut self.resized).into_keys() {
            self.fault(Some(seq), "noted as completed, and is not there");
        }
        Ok(())
    }

    fn record(&mut self, seq: u64, value: &[u8], visit: &mut dyn FnMut(&Record) -> Result<()>) {
        let expected = self.found.next_seq;
        if seq > expected {
            let last = seq - 1;
            self.fault(Some(expected), format!("seqs {expected} to {last} are missing"));
        } else if seq < expected {
            self.fault(Some(seq), "lies where another record lies, or before the first seq");
        }
        let (header, stored) = match RecordHeader::decode(value) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.found.next_seq = seq.max(expected) + 1;
                return self.fault(Some(seq), error.to_string());
            }
        };
        self.border(seq, seq == expected);
        if header.open != self.open.remove(&seq) {
            self.fault(Some(seq), "open, and not noted as such");
        }
        let grown = self.resized.remove(&seq).unwrap_or(0);
        let length = stored.length();
        self.before_bytes += length.saturating_add_signed(-grown) + RECORD_HEADER_BYTES;
        self.found.bytes += length + RECORD_HEADER_BYTES;
        self.found.messages += u64::from(header.span);
        self.found.open += u64::from(header.open);
        self.found.next_seq = seq + u64::from(header.span);
        let pointer = match stored {
            Stored::Pointer(pointer) => Some(pointer),
            Stored::Inline(_) => None,
        };
        let read = match stored {
            Stored::Inline(value) => Ok(Bytes::copy_from_slice(value)),
            Stored::Pointer(pointer) => self.pointer(seq, pointer),
        };
        let RecordHeader { time_ms, span, open } = header;
        let verified =
            read.and_then(|value| visit(&Record { first_seq: seq, span, time_ms, open, value }));
        if let Err(error) = verified {
            self.faults.push(Fault {
                topic: Some(self.name.to_owned()),
                seq: Some(seq),
                file: pointer.map(|pointer| self.values.path(pointer.file)),
                position: pointer.map(|pointer| pointer.position),
                what: error.to_string(),
            });
        }
    }

    /// Compares the page border at a record, if there is one, with what came before it.
    fn border(&mut self, seq: u64, is_gapless: bool) {
        let Some(page) = self.pages.remove(&seq) else { return };
        if is_gapless && page.bytes_before != self.before_bytes {
            let (noted, counted) = (page.bytes_before, self.before_bytes);
            self.fault(Some(seq), format!("a page border at {noted} log bytes, not {counted}"));
        }
        // Begin anew: one fault is reported once.
        self.before_bytes = page.bytes_before;
    }

    fn pointer(&mut self, seq: u64, pointer: Pointer) -> Result<Bytes> {
        if let Some(noted) = self.files.remove(&pointer.file)
            && noted != seq
            && noted >= self.found.first_seq
        {
            self.fault(Some(seq), format!("its value file was noted to begin at seq {noted}"));
        }
        let place = (pointer.file, pointer.position);
        if place < self.end {
            self.fault(Some(seq), "its value overlaps an earlier one");
        }
        self.end = (pointer.file, pointer.position.saturating_add(pointer.length));
        self.values.read(pointer)
    }

    /// Lists what lies on the disk and no record points to.
    fn leftovers(&mut self, id: u32, checked: &mut Checked) {
        let known = std::mem::take(&mut self.files);
        let on_disk = match self.values.on_disk() {
            Ok(files) => files,
            Err(error) => return self.fault(None, error.to_string()),
        };
        for (number, bytes) in on_disk {
            let (file, end) = self.end;
            let is_known = self.values.knows(number);
            let (position, what) = if number == file && bytes > end {
                (Some(end), format!("{} bytes that no record points to", bytes - end))
            } else if !is_known {
                (None, format!("a value file of topic id {id} that the log does not know"))
            } else if known.contains_key(&number) {
                (None, "a value file that no record points to".to_owned())
            } else {
                continue;
            };
            checked.leftovers.push(Fault {
                topic: Some(self.name.to_owned()),
                file: Some(self.values.path(number)),
                position,
                what,
                ..Fault::default()
            });
        }
    }

    fn groups(&mut self, db: &Db, open: &Use, id: u32) -> Result<()> {
        let prefix = keys::cursor_prefix(id);
        for (key, value) in db.scan_prefix(open, &prefix)? {
            let group = key.get(prefix.len()..).unwrap_or_default();
            let group = String::from_utf8_lossy(group).into_owned();
            let Some((cursor, _)) = value.split_first_chunk() else {
                self.fault(None, format!("the cursor of group {group:?} cannot be read"));
                continue;
            };
            let (cursor, next_seq) = (u64::from_le_bytes(*cursor), self.found.next_seq);
            if cursor > next_seq {
                let what = format!("group {group:?} is at seq {cursor}, the topic at {next_seq}");
                self.fault(Some(cursor), what);
            }
            self.acks(db, open, id, &group, cursor)?;
            self.found.groups.push((group, cursor));
        }
        Ok(())
    }

    /// What is done above a cursor: ranges that follow each other, within the topic.
    fn acks(&mut self, db: &Db, open: &Use, id: u32, group: &str, cursor: u64) -> Result<()> {
        let mut before = cursor;
        for (key, value) in db.scan_prefix(open, &keys::done_prefix(id, group))? {
            let (start, end) = (keys::last_seq(&key)?, keys::u64_value(&value)?);
            if start <= before || end <= start || end > self.found.next_seq {
                let what = format!("group {group:?}: acknowledged {start} to {end} above {before}");
                self.fault(Some(start), what);
            }
            before = before.max(end);
        }
        Ok(())
    }
}

fn pages(db: &Db, open: &Use, id: u32) -> Result<BTreeMap<u64, Page>> {
    let found = db.scan_prefix(open, &keys::page_prefix(id))?;
    let decoded = found.iter().map(|(key, value)| Page::decode(id, key, value));
    decoded.map(|page| page.map(|page| (page.first_seq, page))).collect()
}

fn open_seqs(db: &Db, open: &Use, id: u32) -> Result<BTreeSet<u64>> {
    let found = db.scan_prefix(open, &keys::open_prefix(id))?;
    found.iter().map(|(key, _)| keys::log_seq(id, key.get(1..).unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::path::Path;
    use std::sync::Arc;

    use rocksdb::WriteBatch;

    use crate::error::ErrorKind;
    use crate::queue::db::{Db, Use};
    use crate::queue::{Checked, GroupStart, Queue, QueueOptions, Topic, check, keys};

    const RECORDS: u64 = 400;

    /// A topic with several pages, whose id is 1.
    fn filled(path: &Path) -> Arc<Topic> {
        let queue = Queue::open(path, QueueOptions::default()).unwrap();
        let topic = queue.topic("t").unwrap();
        for _ in 0..RECORDS {
            let push = |appender: &mut crate::queue::Appender| {
                appender.push(1, vec![vec![7; 10_000].into()]);
                Ok(())
            };
            topic.append(1, push).unwrap();
        }
        topic.group("g", GroupStart::First).unwrap().seek(5).unwrap();
        queue.close().unwrap();
        topic
    }

    /// Changes a copy of the log behind the queue's back, and checks it.
    fn checked(change: impl Fn(&Use, &mut WriteBatch)) -> Checked {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        let (db, _) = Db::open(directory.path(), false).unwrap();
        let open = db.get().unwrap();
        let mut batch = WriteBatch::default();
        change(&open, &mut batch);
        db.write(&open, batch).unwrap();
        drop(open);
        db.close().unwrap();
        check(directory.path(), &mut |_| Ok(())).unwrap()
    }

    fn seqs(checked: &Checked) -> Vec<Option<u64>> {
        checked.faults.iter().map(|fault| fault.seq).collect()
    }

    #[test]
    fn what_does_not_fit_together_is_found() {
        let sound = checked(|_, _| {});
        assert_eq!((sound.faults, sound.leftovers), (vec![], vec![]));
        let topic = sound.topics.first().unwrap();
        assert_eq!((topic.messages, topic.next_seq), (RECORDS, RECORDS + 1));
        assert_eq!(topic.groups, [("g".to_owned(), 5)]);
        let hole = checked(|open, batch| batch.delete_cf(&open.log().unwrap(), keys::log(1, 20)));
        assert_eq!(seqs(&hole).first(), Some(&Some(20)));
        assert_eq!(hole.topics.first().unwrap().messages, RECORDS - 1);
        let marked = checked(|open, batch| {
            batch.put_cf(&open.meta().unwrap(), keys::open(1, 30), []);
        });
        assert_eq!(seqs(&marked), [Some(30)]);
        let page = checked(|open, batch| {
            batch.put_cf(&open.meta().unwrap(), keys::page(1, 40), [0; 28]);
        });
        assert_eq!(seqs(&page).first(), Some(&Some(40)));
        let cursor = checked(|open, batch| {
            batch.put_cf(&open.meta().unwrap(), keys::cursor(1, "g"), 9999_u64.to_le_bytes());
        });
        assert_eq!(seqs(&cursor), [Some(9999)]);
        let stranger = checked(|open, batch| {
            batch.put_cf(&open.log().unwrap(), keys::log(9, 1), [0; 13]);
        });
        assert_eq!(seqs(&stranger), [None]);
        let record = checked(|open, batch| {
            batch.put_cf(&open.log().unwrap(), keys::log(1, 50), [1; 3]);
        });
        assert_eq!(seqs(&record).first(), Some(&Some(50)));
    }

    #[test]
    fn a_reader_never_steps_over_a_hole() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        let (db, _) = Db::open(directory.path(), false).unwrap();
        let open = db.get().unwrap();
        let mut batch = WriteBatch::default();
        batch.delete_cf(&open.log().unwrap(), keys::log(1, 20));
        db.write(&open, batch).unwrap();
        drop(open);
        db.close().unwrap();
        let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
        let topic = queue.existing_topic("t").unwrap();
        let before = topic.read(1, 1000, 64 << 20).unwrap();
        assert!(before.iter().map(|record| record.first_seq).eq(1..20));
        assert_eq!(topic.read(20, 1000, 64 << 20).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(topic.read(21, 1, 1).unwrap().len(), 1);
    }
}
