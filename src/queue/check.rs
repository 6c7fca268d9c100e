//! Verifies a directory that nobody has open, and changes nothing in it.
//!
//! Every record of every topic is read with checksums on, every pointer to a value file followed,
//! and what is counted compared with what is there. What the values hold is the caller's to verify.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::queue::check_topic;
use crate::queue::db::Db;
use crate::queue::integrity;
use crate::queue::keys;
use crate::queue::lock::OwnerLock;
use crate::queue::topic::Record;
use crate::queue::values;

/// Something that is not as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The topic.
    pub topic: Option<String>,
    /// The message, or the first one of its record.
    pub seq: Option<u64>,
    /// The file.
    pub file: Option<PathBuf>,
    /// Where in the file, in bytes.
    pub position: Option<u64>,
    /// What is wrong, in one sentence.
    pub what: String,
}

/// What a topic holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicCheck {
    /// Its name.
    pub name: String,
    /// Messages that are there.
    pub messages: u64,
    /// Log bytes of them, record headers included.
    pub bytes: u64,
    /// The oldest seq that retention left.
    pub first_seq: u64,
    /// The seq that the next message gets.
    pub next_seq: u64,
    /// Messages whose way to the stream is not settled yet.
    pub open: u64,
    /// Its subscription groups, with the next seq that each has to read.
    pub groups: Vec<(String, u64)>,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The topics.
    pub topics: Vec<TopicCheck>,
    /// Damage.
    pub faults: Vec<Fault>,
    /// What a killed process left, and the next open removes: nothing of it was acknowledged, or
    /// it was deleted.
    pub leftovers: Vec<Fault>,
}

/// Verifies the directory; `visit` verifies the value of each record.
///
/// # Errors
/// [`ErrorKind::Locked`] naming the owner's pid, [`ErrorKind::Storage`] where there is no queue or
/// it cannot be read, [`ErrorKind::Corrupt`] where it cannot be opened at all. Damage in what could
/// be opened is no error: it is in the result.
pub fn check(path: &Path, visit: &mut dyn FnMut(&Record) -> Result<()>) -> Result<Checked> {
    let _lock = OwnerLock::look(path)?;
    let mut checked = Checked::default();
    check_log(path, &mut checked)?;
    let db = Db::open_read_only(path)?;
    let open = db.get()?;
    let mut known = BTreeMap::new();
    for (key, value) in db.scan_prefix(&open, &[keys::TOPIC_PREFIX])? {
        let name = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
        if known.insert(keys::u32_value(&value)?, name.clone()).is_some() {
            checked.faults.push(Fault {
                topic: Some(name),
                what: "another topic has the same id".to_owned(),
                ..Fault::default()
            });
        }
    }
    for (id, name) in &known {
        check_topic::check(&db, &open, path, (*id, name), visit, &mut checked)?;
    }
    let ids = known.keys().copied().collect();
    unknown_topics(&db, &ids, &mut checked)?;
    for (id, file) in values::list(path)? {
        if !ids.contains(&id) {
            let what = "a value file of a topic that was deleted".to_owned();
            checked.leftovers.push(Fault { file: Some(file), what, ..Fault::default() });
        }
    }
    Ok(checked)
}

/// The write-ahead log against the mark.
fn check_log(path: &Path, checked: &mut Checked) -> Result<()> {
    let mut report = integrity::inspect(path)?;
    if report.created {
        let context = format!("{} holds no queue", path.display());
        return Err(Error::new(ErrorKind::Storage, context));
    }
    if let Err(error) = report.verify(path) {
        checked.faults.push(Fault { what: error.to_string(), ..Fault::default() });
    }
    if report.missing > 0 && checked.faults.is_empty() {
        let what = format!("about {} acknowledged operations are missing", report.missing);
        checked.faults.push(Fault { what, ..Fault::default() });
    }
    if report.mark_damaged {
        let file = Some(path.join("MARK"));
        let what = "not what was written".to_owned();
        checked.faults.push(Fault { file, what, ..Fault::default() });
    }
    for file in report.files.iter().filter(|file| file.good_bytes < file.bytes) {
        checked.leftovers.push(Fault {
            file: Some(path.join(format!("{:06}.log", file.number))),
            position: Some(file.good_bytes),
            what: format!("{} bytes of a write that was cut off", file.bytes - file.good_bytes),
            ..Fault::default()
        });
    }
    Ok(())
}

/// Records that belong to no topic.
fn unknown_topics(db: &Db, known: &BTreeSet<u32>, checked: &mut Checked) -> Result<()> {
    let open = db.get()?;
    let mut iterator = open.rocks.raw_iterator_cf(&open.log()?);
    iterator.seek_to_first();
    while let Some(id) = iterator.key().map(keys::topic_id) {
        let id = id?;
        if !known.contains(&id) {
            let what = format!("records of a topic with id {id} that nobody knows");
            checked.faults.push(Fault { what, ..Fault::default() });
        }
        let Some(next) = id.checked_add(1) else { break };
        iterator.seek(keys::log(next, 0));
    }
    if let Err(error) = iterator.status() {
        let what = db.failed("read", error).to_string();
        checked.faults.push(Fault { what, ..Fault::default() });
    }
    Ok(())
}
