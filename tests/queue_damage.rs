//! Damage after a kill: cut and flipped write-ahead logs, tables, manifests and value files. A
//! queue refuses it, reads it with an error, or says what it dropped; nothing is lost in silence.
//!
//! `VECMQ_DAMAGE` multiplies the positions that are tried (default 1). `VECMQ_DAMAGE_WAIT_MS` is
//! how long the process lives once its last append is noted (default 50): with 0 it is killed right
//! after the append, and the test of the write-ahead log's end measures what the mark does not know
//! yet.

#![cfg(feature = "queue")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, reason = "the counts are the result")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vecmq::ErrorKind;
use vecmq::queue::{Queue, QueueOptions, Retention, Topic, check};

const CHILD: &str = "VECMQ_DAMAGE_DIRECTORY";
/// How many records the child appends, where not [`RECORDS`].
const CHILD_RECORDS: &str = "VECMQ_DAMAGE_RECORDS";
const RECORDS: u64 = 300;
/// They fill the log's memtable, and so a write-ahead log, more than twice.
const MANY_RECORDS: u64 = 4000;

fn value(seq: u64) -> Vec<u8> {
    if seq > RECORDS {
        return vec![u8::try_from(seq % 251).unwrap(); 12_000];
    }
    let length = if seq % 50 == 10 { 20_000 } else { 40 + usize::try_from(seq % 90).unwrap() };
    (0..length as u64).map(|at| u8::try_from((seq * 31 + at * 7) % 251).unwrap()).collect()
}

fn append(topic: &Arc<Topic>, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let pushed = topic.append(1, |appender| {
            appender.push(1, vec![value(seq).into()]);
            Ok(())
        });
        assert_eq!(*pushed.unwrap().end(), seq);
    }
}

/// In the child: appends, says so, and waits to be killed.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let queue = Queue::open(Path::new(&directory), QueueOptions::default()).unwrap();
    let records = std::env::var(CHILD_RECORDS).map_or(RECORDS, |count| count.parse().unwrap());
    append(&queue.topic("t").unwrap(), 1..=records);
    std::io::stderr().write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_mins(10));
}

/// A directory with acknowledged records whose process was killed.
fn killed(path: &Path) {
    killed_after(path, RECORDS);
}

fn killed_after(path: &Path, records: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, path)
        .env(CHILD_RECORDS, records.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut done = [0];
    child.stderr.take().unwrap().read_exact(&mut done).unwrap();
    // What was acknowledged longer ago than 10 ms is noted.
    let wait_ms: u64 = std::env::var("VECMQ_DAMAGE_WAIT_MS").map_or(50, |ms| ms.parse().unwrap());
    let deadline = Instant::now() + Duration::from_mins(1);
    while wait_ms > 0 && !is_noted(path) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(wait_ms));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Whether mark and manifest have what was written. A busy machine writes the mark later than it
/// should; the manifest has a closed log once a flush has synced it, which takes a slow disk long.
fn is_noted(path: &Path) -> bool {
    let mut logs = logs(path);
    let Some((number, bytes)) = logs.pop() else { return false };
    // The newest log and its size: the layout is in `src/queue/mark.rs`.
    let newest = [number.to_le_bytes(), bytes.to_le_bytes()].concat();
    let mark = std::fs::read(path.join("MARK")).unwrap_or_default();
    let name = std::fs::read_to_string(path.join("CURRENT")).unwrap_or_default();
    let manifest = std::fs::read(path.join(name.trim())).unwrap_or_default();
    mark.get(49..65) == Some(newest.as_slice())
        && logs.into_iter().all(|(number, bytes)| {
            // `RocksDB` writes a log as its number, tag 2 and its size, tag 1.
            let entry = [varint(number), vec![2], varint(bytes), vec![1]].concat();
            bytes == 0 || manifest.windows(entry.len()).any(|found| found == entry)
        })
}

/// Numbers and sizes of the write-ahead logs, in order.
fn logs(path: &Path) -> Vec<(u64, u64)> {
    let files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let log = |file: PathBuf| {
        let number =
            file.to_str()?.strip_suffix(".log")?.rsplit('/').next()?.parse::<u64>().ok()?;
        Some((number, std::fs::metadata(&file).ok()?.len()))
    };
    let mut logs: Vec<(u64, u64)> = files.filter_map(log).collect();
    logs.sort_unstable();
    logs
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 128 {
        out.push(u8::try_from(number % 128).unwrap() | 128);
        number /= 128;
    }
    out.push(u8::try_from(number).unwrap());
    out
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The largest file with that ending.
fn largest(path: &Path, ending: &str) -> PathBuf {
    std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|file| file.extension().is_some_and(|found| found == ending))
        .max_by_key(|file| std::fs::metadata(file).unwrap().len())
        .unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Opened, all there: what was damaged is not needed.
    Whole,
    /// Refused to open.
    Refused,
    /// Opened; reading ended with an error.
    ReadError,
    /// Opened with fewer, and said so.
    Reported,
    /// Opened with fewer, as if that were all.
    Silent,
}

#[derive(Debug, Default)]
struct Counts {
    cases: u32,
    whole: u32,
    refused: u32,
    read_error: u32,
    reported: u32,
    silent: u32,
}

impl Counts {
    fn add(&mut self, outcome: Outcome) {
        self.cases += 1;
        match outcome {
            Outcome::Whole => self.whole += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::ReadError => self.read_error += 1,
            Outcome::Reported => self.reported += 1,
            Outcome::Silent => self.silent += 1,
        }
    }

    fn print(&self, what: &str) {
        println!(
            "{what}: cases {}, harmless {}, refused {}, error when read {}, prefix with the drop \
             reported {}, silently lost {}",
            self.cases, self.whole, self.refused, self.read_error, self.reported, self.silent
        );
    }
}

/// Opens a damaged directory and reads all of it.
fn outcome(path: &Path, wanted: u64) -> Outcome {
    let queue = match Queue::open(path, QueueOptions::default()) {
        Ok(queue) => queue,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Storage), "{error}");
            return Outcome::Refused;
        }
    };
    let Ok(topic) = queue.existing_topic("t") else {
        return if queue.recovery().is_repaired() { Outcome::Reported } else { Outcome::Silent };
    };
    let mut next = 1;
    while next < topic.next_seq() {
        match topic.read(next, 1000, 1 << 20) {
            Ok(records) if records.is_empty() => return Outcome::Silent,
            Ok(records) => {
                for record in records {
                    assert_eq!(record.first_seq, next);
                    // The queue does not look into values; frames have checksums of their own.
                    assert_eq!(record.value.len(), value(next).len());
                    next += 1;
                }
            }
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Storage), "{error}");
                return Outcome::ReadError;
            }
        }
    }
    match next {
        next if next == wanted + 1 => Outcome::Whole,
        _ if queue.recovery().is_repaired() => Outcome::Reported,
        _ => Outcome::Silent,
    }
}

/// Damages a copy of `whole` and opens it; a check of the same copy has to agree.
fn case(whole: &Path, damage: impl Fn(&Path)) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("copy");
    copy(whole, &path);
    damage(&path);
    let checked = check(&path, &mut |_| Ok(()));
    let outcome = outcome(&path, RECORDS);
    if outcome == Outcome::Refused || outcome == Outcome::ReadError {
        let found = checked.map_or(true, |checked| !checked.faults.is_empty());
        assert!(found, "{outcome:?}, and the check found nothing");
    }
    outcome
}

fn flip(file: &Path, at: u64, bit: u64) {
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.get_mut(usize::try_from(at).unwrap()).unwrap() ^= 1 << bit;
    std::fs::write(file, bytes).unwrap();
}

fn cut(file: &Path, length: u64) {
    std::fs::File::options().write(true).open(file).unwrap().set_len(length).unwrap();
}

fn times() -> u64 {
    std::env::var("VECMQ_DAMAGE").map_or(1, |times| times.parse().unwrap())
}

#[test]
fn the_end_of_the_write_ahead_log_cannot_be_lost_in_silence() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    killed(&whole);
    let log = largest(&whole, "log");
    let name = log.file_name().unwrap();
    let length = std::fs::metadata(&log).unwrap().len();
    let mut cuts = Counts::default();
    for bytes in 1..=200 * times() {
        cuts.add(case(&whole, |path| cut(&path.join(name), length.saturating_sub(bytes))));
    }
    cuts.add(case(&whole, |path| cut(&path.join(name), 0)));
    cuts.print("cuts of the write-ahead log");
    let mut flips = Counts::default();
    for bytes in 1..=300 * times() {
        let Some(at) = length.checked_sub(bytes) else { break };
        flips.add(case(&whole, |path| flip(&path.join(name), at, bytes % 8)));
    }
    flips.print("flipped bits of the write-ahead log");
    assert_eq!((cuts.silent, flips.silent), (0, 0));
    assert_eq!(cuts.whole + flips.whole, 0);
    assert_eq!(case(&whole, |_| {}), Outcome::Whole);
}

/// Without the mark a torn tail is what a kill leaves; it is dropped, and reported.
#[test]
fn without_a_mark_a_torn_tail_is_reported() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    killed(&whole);
    let log = largest(&whole, "log");
    let length = std::fs::metadata(&log).unwrap().len();
    let torn = case(&whole, |path| {
        std::fs::remove_file(path.join("MARK")).unwrap();
        cut(&path.join(log.file_name().unwrap()), length - 5);
    });
    assert_eq!(torn, Outcome::Reported);
}

/// After a power cut the end of a log that was not synced may be gone: that is reported, and the
/// rest is there. The mark is one of another boot of the machine.
#[test]
fn a_power_cut_costs_a_suffix_that_is_reported() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("queue");
    killed(&path);
    let mut mark = std::fs::read(path.join("MARK")).unwrap();
    mark.get_mut(5..41).unwrap().fill(b'0');
    let covered = mark.len() - 4;
    let crc = vecmq::frame::checksum(mark.get(..covered).unwrap());
    mark.get_mut(covered..).unwrap().copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path.join("MARK"), mark).unwrap();
    let log = largest(&path, "log");
    cut(&log, std::fs::metadata(&log).unwrap().len() * 2 / 3);
    assert!(!check(&path, &mut |_| Ok(())).unwrap().faults.is_empty());
    let queue = Queue::open(&path, QueueOptions::default()).unwrap();
    let left = queue.existing_topic("t").unwrap().next_seq() - 1;
    let missing = queue.recovery().missing_operations;
    println!(
        "power cut: {RECORDS} acknowledged, {left} left, {missing} operations reported missing"
    );
    assert!(left < RECORDS && left + missing >= RECORDS);
    assert!(queue.recovery().is_repaired());
    queue.close().unwrap();
    let again = Queue::open(&path, QueueOptions::default()).unwrap();
    assert!(!again.recovery().is_repaired());
}

#[test]
fn files_that_are_damaged_or_gone_are_an_error() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    killed(&whole);
    let mut counts = Counts::default();
    let log = largest(&whole, "log");
    counts.add(case(&whole, |path| {
        std::fs::remove_file(path.join(log.file_name().unwrap())).unwrap();
    }));
    counts.add(case(&whole, |path| cut(&path.join("CURRENT"), 0)));
    counts.add(case(&whole, |path| std::fs::remove_file(path.join("CURRENT")).unwrap()));
    let manifest = std::fs::read_to_string(whole.join("CURRENT")).unwrap();
    let manifest = manifest.trim();
    let length = std::fs::metadata(whole.join(manifest)).unwrap().len();
    for bytes in 1..=length {
        counts.add(case(&whole, |path| cut(&path.join(manifest), length - bytes)));
    }
    for file in std::fs::read_dir(whole.join("values")).unwrap() {
        let name = file.unwrap().file_name();
        let value_file = |path: &Path| path.join("values").join(&name);
        counts.add(case(&whole, |path| std::fs::remove_file(value_file(path)).unwrap()));
        let length = std::fs::metadata(value_file(&whole)).unwrap().len();
        for bytes in 1..=50 * times() {
            counts.add(case(&whole, |path| cut(&value_file(path), length - bytes * 7)));
        }
    }
    counts.print("CURRENT, MANIFEST, write-ahead log, value files");
    assert_eq!((counts.silent, counts.reported), (0, 0));
}

#[test]
fn none_of_several_write_ahead_logs_can_go_in_silence() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    killed_after(&whole, MANY_RECORDS);
    let logs = || std::fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> = logs().filter(|file| file.extension() == Some("log".as_ref())).collect();
    logs.sort();
    assert!(logs.len() > 1, "{logs:?}");
    let mut counts = Counts::default();
    for log in &logs {
        let path = directory.path().join("copy");
        copy(&whole, &path);
        std::fs::remove_file(path.join(log.file_name().unwrap())).unwrap();
        counts.add(outcome(&path, MANY_RECORDS));
        std::fs::remove_dir_all(&path).unwrap();
    }
    assert_eq!(outcome(&whole, MANY_RECORDS), Outcome::Whole);
    counts.print("each of several write-ahead logs removed");
    assert_eq!(u64::from(counts.refused), logs.len() as u64, "{counts:?}");
}

#[test]
fn damaged_tables_are_an_error_and_never_a_short_read() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    killed(&whole);
    // Replayed and written out: what was in the write-ahead log is in tables now.
    for _ in 0..2 {
        let queue = Queue::open(&whole, QueueOptions::default()).unwrap();
        queue.topic("other").unwrap();
        queue.close().unwrap();
    }
    assert_eq!(case(&whole, |_| {}), Outcome::Whole);
    let tables: Vec<PathBuf> = std::fs::read_dir(&whole)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|file| file.extension().is_some_and(|ending| ending == "sst"))
        .collect();
    assert!(!tables.is_empty());
    let mut counts = Counts::default();
    for table in &tables {
        let name = table.file_name().unwrap();
        let length = std::fs::metadata(table).unwrap().len();
        counts.add(case(&whole, |path| std::fs::remove_file(path.join(name)).unwrap()));
        counts.add(case(&whole, |path| cut(&path.join(name), length / 2)));
        let step = usize::try_from((length / (60 * times())).max(1)).unwrap();
        for at in (0..length).step_by(step) {
            counts.add(case(&whole, |path| flip(&path.join(name), at, at % 8)));
        }
    }
    counts.print("tables");
    let mut cuts = Counts::default();
    let manifest = std::fs::read_to_string(whole.join("CURRENT")).unwrap();
    let length = std::fs::metadata(whole.join(manifest.trim())).unwrap().len();
    for bytes in 1..=length.min(400 * times()) {
        cuts.add(case(&whole, |path| cut(&path.join(manifest.trim()), length - bytes)));
    }
    cuts.print("MANIFEST that names tables");
    assert_eq!((counts.silent, cuts.silent, cuts.reported), (0, 0, 0));
    assert!(counts.refused + counts.read_error > 0);
}

/// After a clean close as well.
#[test]
fn what_a_closed_directory_lost_is_an_error() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    let queue = Queue::open(&whole, QueueOptions::default()).unwrap();
    append(&queue.topic("t").unwrap(), 1..=RECORDS);
    queue.close().unwrap();
    let mut counts = Counts::default();
    let log = largest(&whole, "log");
    let length = std::fs::metadata(&log).unwrap().len();
    for bytes in (1..length).step_by(37).take(100) {
        counts.add(case(&whole, |path| {
            cut(&path.join(log.file_name().unwrap()), length - bytes);
        }));
    }
    counts.add(case(&whole, |path| {
        std::fs::remove_file(path.join(log.file_name().unwrap())).unwrap();
    }));
    counts.print("a closed directory");
    assert_eq!((counts.silent, counts.whole, counts.reported), (0, 0, 0));
    let queue = Queue::open(&whole, QueueOptions::default()).unwrap();
    assert_eq!(queue.recovery().closed, Some(true));
    assert!(!queue.recovery().is_repaired());
    assert_eq!(queue.recovery().topics.first().unwrap().messages, RECORDS);
}

/// A power cut can take the end of a value file whose log was synced. What was there is an error;
/// what is appended later does not depend on it.
#[test]
fn what_comes_after_a_value_file_lost_its_end_is_read() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    for left in [0, 30_000] {
        let directory = tempfile::tempdir().unwrap();
        let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
        let large = |seq: u64| vec![u8::try_from(seq).unwrap(); 100_000];
        let push = |topic: &Arc<Topic>, seq| {
            let pushed = topic.append(1, |appender| {
                appender.push(1, vec![large(seq).into()]);
                Ok(())
            });
            assert_eq!(*pushed.unwrap().end(), seq);
        };
        (1..=5).for_each(|seq| push(&queue.topic("t").unwrap(), seq));
        queue.close().unwrap();
        let values = std::fs::read_dir(directory.path().join("values")).unwrap();
        let [file]: [PathBuf; 1] =
            values.map(|entry| entry.unwrap().path()).collect::<Vec<_>>().try_into().unwrap();
        cut(&file, left);
        let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
        let topic = queue.topic("t").unwrap();
        assert_eq!(topic.read(5, 1, 1 << 30).unwrap_err().kind(), ErrorKind::Corrupt);
        (6..=10).for_each(|seq| push(&topic, seq));
        queue.close().unwrap();
        let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
        let read = queue.topic("t").unwrap().read(6, 10, 1 << 30).unwrap();
        let values: Vec<_> = read.into_iter().map(|record| record.value).collect();
        assert_eq!(values, (6..=10).map(large).collect::<Vec<_>>());
    }
}

/// What a kill in the middle of a delete leaves goes at the next open.
#[test]
fn value_files_of_deleted_topics_are_removed() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("queue");
    killed(&path);
    let stray = path.join("values").join("00000063-00000001");
    std::fs::write(&stray, [0; 1000]).unwrap();
    let checked = check(&path, &mut |_| Ok(())).unwrap();
    assert_eq!((checked.faults.len(), checked.leftovers.len()), (0, 1));
    let queue = Queue::open(&path, QueueOptions::default()).unwrap();
    assert_eq!(queue.recovery().stray_bytes, 1000);
    assert!(!stray.exists());
    let topic = queue.existing_topic("t").unwrap();
    assert_eq!(topic.read(RECORDS, 1, 1).unwrap().len(), 1);
}

/// A check changes no byte, and says who owns a directory that is open.
#[test]
fn a_check_changes_nothing_and_refuses_an_open_directory() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("queue");
    killed(&path);
    let before = contents(&path);
    let checked = check(&path, &mut |_| Ok(())).unwrap();
    assert_eq!(checked.faults, []);
    assert_eq!(checked.topics.first().unwrap().messages, RECORDS);
    assert_eq!(contents(&path), before);
    let queue = Queue::open(&path, QueueOptions::default()).unwrap();
    assert_eq!(check(&path, &mut |_| Ok(())).unwrap_err().kind(), ErrorKind::Locked);
    let topic = queue.existing_topic("t").unwrap();
    topic.retain(&Retention { unacked: true, ..Retention::default() }, 1).unwrap();
    topic.purge().unwrap();
    append(&topic, RECORDS + 1..=RECORDS + 3);
    queue.close().unwrap();
    let checked = check(&path, &mut |_| Ok(())).unwrap();
    assert_eq!((checked.faults, checked.topics.first().unwrap().messages), (vec![], 3));
    let nothing = check(directory.path(), &mut |_| Ok(())).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::Storage);
}

fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.append(&mut contents(&entry.path()));
        } else {
            found.push((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
    found.sort();
    found
}
