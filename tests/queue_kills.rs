//! kill -9 while several threads append, acknowledge, delete and purge; everything is read after
//! each kill, by another process.
//!
//! The child is this test binary itself, started again with a directory in an environment variable.
//! Its threads append small, packed and large records in groups, complete open ones, move a cursor
//! and let retention delete; what they are told is done they write to a pipe. What a record holds
//! depends on its seq alone, so the parent can tell a torn one.
//!
//! `VECMQ_KILLS` is the number of kills (default 12; `make test-kills` sets 1,000).

#![cfg(feature = "queue")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, reason = "the counts are the result")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use bytes::Bytes;
use vecmq::queue::{AppendJob, Appender, GroupStart, Queue, QueueOptions, Retention, Topic};

const CHILD: &str = "VECMQ_KILLS_DIRECTORY";
const WORK: &str = "VECMQ_KILLS_WORK";
/// Kills of one directory before the next one is begun.
const KILLS_A_DIRECTORY: u32 = 20;
const APPENDERS: usize = 4;
/// Log bytes that retention leaves.
const KEEP_BYTES: u64 = 3 << 20;
const RECORD_HEADER_BYTES: u64 = 13;

/// What the child does besides appending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Append,
    Retain,
    Purge,
}

const WORKS: [Work; 4] = [Work::Append, Work::Retain, Work::Append, Work::Purge];

/// Numbers without a pattern, of one seq.
fn mix(seq: u64) -> u64 {
    let mixed = (seq ^ (seq >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (mixed >> 31)
}

/// How the record that begins at `seq` looks.
#[derive(Clone, Copy)]
struct Shape {
    span: u32,
    length: usize,
    opens: bool,
}

fn shape(seq: u64) -> Shape {
    let mixed = mix(seq);
    let of = |below: u64| usize::try_from((mixed >> 8) % below).unwrap();
    match mixed % 32 {
        0 => Shape { span: 1, length: (16 << 10) + of(64 << 10), opens: false },
        1 => Shape { span: 1, length: 57, opens: true },
        2..=9 => {
            let span = 100 + of(400);
            Shape { span: u32::try_from(span).unwrap(), length: span * 16, opens: false }
        }
        _ => Shape { span: 1, length: of(1200), opens: false },
    }
}

/// The value of the record that begins at `seq`.
fn value(seq: u64, length: usize) -> Bytes {
    let words =
        (0..length.div_ceil(8) as u64).flat_map(|word| mix(seq ^ (word << 40)).to_le_bytes());
    words.take(length).collect::<Vec<u8>>().into()
}

/// The value of an open record once it is completed: another length.
fn completed(seq: u64) -> Bytes {
    value(!seq, usize::try_from(mix(seq) % 90).unwrap())
}

fn push(appender: &mut Appender, records: usize) {
    for _ in 0..records {
        let seq = appender.next_seq();
        let Shape { span, length, opens } = shape(seq);
        // Two slices: the way of a payload that is not copied.
        let mut whole = value(seq, length);
        let tail = whole.split_off(length / 2);
        if opens {
            appender.push_open(span, vec![whole, tail]);
        } else {
            appender.push(span, vec![whole, tail]);
        }
    }
}

/// An append that another thread may write.
struct Job {
    records: usize,
    told: mpsc::Sender<RangeInclusive<u64>>,
}

impl AppendJob for Job {
    fn build(&mut self, appender: &mut Appender) -> vecmq::Result<()> {
        push(appender, self.records);
        Ok(())
    }

    fn done(self: Box<Self>, result: vecmq::Result<RangeInclusive<u64>>) {
        self.told.send(result.unwrap()).unwrap();
    }
}

/// Tells the parent; one write, so it is there whole or not at all.
fn tell(what: u8, first: u64, last: u64) {
    let mut line = vec![what];
    line.extend_from_slice(&first.to_le_bytes());
    line.extend_from_slice(&last.to_le_bytes());
    std::io::stderr().write_all(&line).unwrap();
}

fn append_for_ever(topic: &Arc<Topic>, worker: usize, acked: &AtomicU64) {
    let (told, hear) = mpsc::channel();
    for round in 0.. {
        let records = 1 + (round + worker) % 7;
        let range = match (round + worker) % 3 {
            0 => topic.append(1, |appender| {
                push(appender, records);
                Ok(())
            }),
            way => {
                let job = Box::new(Job { records, told: told.clone() });
                if way == 1 {
                    topic.append_job(1, job);
                } else {
                    topic.append_job_later(1, job, round % 2 == 0);
                }
                Ok(hear.recv().unwrap())
            }
        };
        let range = range.unwrap();
        tell(b'a', *range.start(), *range.end());
        acked.fetch_max(*range.end(), Ordering::SeqCst);
        complete(topic, *range.start(), *range.end(), |seq| tell(b'c', seq, seq));
    }
}

/// Completes the open records of a range.
fn complete(topic: &Topic, first: u64, last: u64, told: impl Fn(u64)) {
    let mut seq = first;
    while seq <= last {
        let Shape { span, opens, .. } = shape(seq);
        if opens {
            topic.close_open(seq, span, &[&completed(seq)]).unwrap();
            told(seq);
        }
        seq += u64::from(span);
    }
}

fn retention() -> Retention {
    Retention { bytes_max: Some(KEEP_BYTES), unacked: true, ..Retention::default() }
}

/// While the log is stalled, a cursor is saved a moment later; a kill may come before.
fn wait_until_saved(topic: &Topic, cursor: u64) {
    while topic.cursor("g").unwrap() < Some(cursor) {
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// In the child: works until it is killed.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let work = std::env::var(WORK).unwrap();
    let queue = Queue::open(Path::new(&directory), QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    tell(b'o', 0, 0);
    let group = topic.group("g", GroupStart::First).unwrap();
    let acked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..APPENDERS {
            let (topic, acked) = (&topic, &acked);
            scope.spawn(move || append_for_ever(topic, worker, acked));
        }
        scope.spawn(|| {
            loop {
                let seq = acked.load(Ordering::SeqCst);
                if seq > 1 {
                    group.ack_through(seq - 1).unwrap();
                    wait_until_saved(&topic, seq);
                    tell(b'g', seq, seq);
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        loop {
            std::thread::sleep(Duration::from_millis(3));
            if work == "Retain" {
                topic.retain(&retention(), 1).unwrap();
            } else if work == "Purge" {
                topic.purge().unwrap();
            }
        }
    });
}

/// What the child was told, by what it told us.
#[derive(Default)]
struct Told {
    acked: Vec<(u64, u64)>,
    completed: Vec<u64>,
    cursor: u64,
}

fn read_told(bytes: &[u8]) -> Told {
    let mut told = Told::default();
    for line in bytes.chunks_exact(17) {
        let number =
            |from: usize| u64::from_le_bytes(line.get(from..from + 8).unwrap().try_into().unwrap());
        let (first, last) = (number(1), number(9));
        match line.first().unwrap() {
            b'a' => told.acked.push((first, last)),
            b'c' => told.completed.push(first),
            b'g' => told.cursor = told.cursor.max(last),
            b'o' => {}
            other => panic!("the child said {other}: {}", String::from_utf8_lossy(bytes)),
        }
    }
    told
}

/// Starts a child and kills it.
fn kill_one(path: &Path, work: Work, after: Duration) -> Told {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, path)
        .env(WORK, format!("{work:?}"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stderr.take().unwrap();
    let mut opened = [0; 17];
    pipe.read_exact(&mut opened).unwrap();
    assert_eq!(opened.first(), Some(&b'o'), "the child did not open the directory");
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).unwrap();
        all
    });
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    read_told(&reader.join().unwrap())
}

/// Sums over all kills.
#[derive(Debug, Default)]
struct Sums {
    kills: u32,
    acknowledged: u64,
    verified: u64,
    lost: u64,
    duplicated: u64,
    skipped: u64,
    dropped_bytes: u64,
}

/// Reads all of a topic; the seqs are without a hole, the values whole, the counts exact.
fn verify(path: &Path, told: &Told, work: Work, floor_before: u64, sums: &mut Sums) -> u64 {
    let queue = Queue::open(path, QueueOptions::default()).unwrap();
    let topic = queue.existing_topic("t").unwrap();
    let info = topic.info().unwrap();
    let (mut next, mut bytes, mut open) = (info.first_seq, 0, Vec::new());
    let mut records = BTreeMap::new();
    while next < info.next_seq {
        let read = topic.read(next, 10_000, 16 << 20).unwrap();
        assert!(!read.is_empty(), "nothing at {next} of {}", info.next_seq);
        for record in read {
            sums.skipped += record.first_seq.abs_diff(next);
            let Shape { span, length, opens } = shape(record.first_seq);
            let whole = opens && !record.open;
            let expected =
                if whole { completed(record.first_seq) } else { value(record.first_seq, length) };
            assert_eq!(record.value, expected, "torn value at {next}");
            assert_eq!(record.span, span);
            if record.open {
                open.push(record.first_seq);
            }
            bytes += record.value.len() as u64 + RECORD_HEADER_BYTES;
            records.insert(record.first_seq, record.open);
            next = record.first_seq + u64::from(span);
        }
    }
    assert_eq!(next, info.next_seq);
    assert_eq!(info.messages, info.next_seq - info.first_seq);
    assert_eq!(info.bytes, bytes, "bytes of {info:?}");
    assert_eq!(info.open, open.len() as u64);
    assert_eq!(topic.open_seqs().unwrap(), open);
    assert_eq!(info.file_bytes, files_bytes(path), "value files");
    check_floor(work, floor_before, info.first_seq, info.bytes);
    let mut ends = told.acked.clone();
    ends.sort_unstable();
    sums.duplicated +=
        ends.windows(2).filter(|pair| matches!(pair, [a, b] if a.1 >= b.0)).count() as u64;
    for (first, last) in &ends {
        sums.acknowledged += last - first + 1;
        sums.lost += (last + 1).saturating_sub(info.next_seq.max(*first));
        sums.verified += (last + 1).saturating_sub(info.first_seq.max(*first));
    }
    for seq in &told.completed {
        assert!(records.get(seq).is_none_or(|open| !open), "{seq} is open again");
    }
    let cursor = topic.cursor("g").unwrap().unwrap_or(0);
    // A group begins at the next seq where nothing is appended yet.
    assert!(cursor >= told.cursor && cursor <= info.next_seq, "cursor {cursor}");
    sums.dropped_bytes += topic.dropped_bytes();
    // What the hybrid room does at its open; open records keep retention from going on.
    for seq in open {
        complete_one(&topic, seq);
    }
    let floor = topic.first_seq();
    queue.close().unwrap();
    floor
}

fn complete_one(topic: &Topic, seq: u64) {
    topic.close_open(seq, shape(seq).span, &[&completed(seq)]).unwrap();
}

/// Nothing went but what was told to go.
fn check_floor(work: Work, before: u64, floor: u64, bytes: u64) {
    match work {
        Work::Append => assert_eq!(floor, before),
        Work::Retain => assert!(floor == before || bytes >= KEEP_BYTES, "{bytes} bytes left"),
        Work::Purge => assert!(floor >= before),
    }
}

/// Bytes of all files with values; there is one topic.
fn files_bytes(path: &Path) -> u64 {
    let Ok(files) = std::fs::read_dir(path.join("values")) else { return 0 };
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn kill_9_while_all_goes_on_loses_nothing_acknowledged() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let kills: u32 = std::env::var("VECMQ_KILLS").map_or(12, |kills| kills.parse().unwrap());
    let mut sums = Sums::default();
    let mut directory = tempfile::tempdir().unwrap();
    let mut floor = 1;
    for kill in 0..kills {
        if kill > 0 && kill % KILLS_A_DIRECTORY == 0 {
            directory = tempfile::tempdir().unwrap();
            floor = 1;
        }
        let path = directory.path().join("queue");
        let work = *WORKS.get(kill as usize % WORKS.len()).unwrap();
        let after = Duration::from_millis(mix(u64::from(kill)) % 200);
        let told = kill_one(&path, work, after);
        floor = verify(&path, &told, work, floor, &mut sums);
        sums.kills += 1;
    }
    println!(
        "kills {}, acknowledged {}, read back {}, lost {}, duplicated {}, silently skipped {}, \
         bytes of unacknowledged values removed {}",
        sums.kills,
        sums.acknowledged,
        sums.verified,
        sums.lost,
        sums.duplicated,
        sums.skipped,
        sums.dropped_bytes
    );
    assert!(sums.acknowledged > 0);
    assert_eq!((sums.lost, sums.duplicated, sums.skipped), (0, 0, 0));
}

/// What retention and purges delete meanwhile is no hole to a reader.
#[test]
fn readers_meet_no_hole_while_retention_deletes() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    let ended = AtomicU64::new(0);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while ended.load(Ordering::SeqCst) == 0 {
                // From the front, where records go; the last ones come from memory.
                for record in topic.read(topic.first_seq(), 64, 1 << 20).unwrap() {
                    assert_eq!(record.span, shape(record.first_seq).span);
                    reads += 1;
                }
            }
            reads
        });
        for round in 0..80 {
            let range = topic.append(1, |appender| {
                push(appender, 200);
                Ok(())
            });
            let range = range.unwrap();
            complete(&topic, *range.start(), *range.end(), |_| {});
            topic.retain(&retention(), 1).unwrap();
            if round % 20 == 19 {
                topic.purge().unwrap();
            }
        }
        ended.store(1, Ordering::SeqCst);
        reader.join().unwrap()
    });
    println!("records read while others were deleted: {reads}");
    assert!(reads > 0);
}

/// Retention and a purge at the same time: what a later owner finds is what was left.
#[test]
fn deletes_at_the_same_time_leave_a_log_that_opens() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let rounds = 100;
    let keep = Retention { bytes_max: Some(1 << 20), unacked: true, ..Retention::default() };
    let directory = tempfile::tempdir().unwrap();
    let mut raced = 0;
    for round in 0..rounds {
        let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
        let topic = queue.topic("t").unwrap();
        for _ in 0..3 {
            let filled = topic.append(1, |appender| {
                appender.push(1, vec![Bytes::from_static(&[7; 1 << 20])]);
                Ok(())
            });
            filled.unwrap();
        }
        let start = Barrier::new(2);
        let (kept, purged) = std::thread::scope(|scope| {
            let kept = scope.spawn(|| {
                start.wait();
                std::thread::sleep(Duration::from_micros(mix(round) % 200));
                topic.retain(&keep, 1).unwrap().messages
            });
            start.wait();
            (topic.purge().unwrap().messages, kept.join().unwrap())
        });
        raced += u32::from(kept > 0 && purged > 0);
        let left = topic.info().unwrap();
        queue.close().unwrap();
        let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
        let topic = queue.topic("t").unwrap();
        assert_eq!(topic.info().unwrap(), left);
        assert_eq!(topic.read(left.first_seq, 64, 1 << 30).unwrap().len() as u64, left.messages);
        queue.close().unwrap();
    }
    println!("deletes at the same time: {rounds}, of which {raced} deleted something each");
}
