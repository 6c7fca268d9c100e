//! The queue against a plain map: random operations, the same answers, over reopening too.

#![cfg(feature = "queue")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use vecmq::ErrorKind;
use vecmq::queue::{GroupStart, Queue, QueueOptions, Record, Retention, Topic};

#[derive(Clone, Debug)]
enum Step {
    /// Records: span, value length, open.
    Append(Vec<(u32, usize, bool)>),
    CloseOldestOpen,
    SetCursor(usize, u64),
    Read(u64, usize, usize),
    Retain {
        bytes_max: u64,
        unacked: bool,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let record = (1_u32..5, prop_oneof![0_usize..100, Just(700_000)], prop::bool::weighted(0.1));
    prop_oneof![
        5 => prop::collection::vec(record, 1..6).prop_map(Step::Append),
        1 => Just(Step::CloseOldestOpen),
        2 => (0_usize..3, 0_u64..60).prop_map(|(group, seq)| Step::SetCursor(group, seq)),
        4 => (0_u64..80, 1_usize..20, 0_usize..2_000_000)
            .prop_map(|(from, records, bytes)| Step::Read(from, records, bytes)),
        1 => (0_u64..3_000_000, any::<bool>())
            .prop_map(|(bytes_max, unacked)| Step::Retain { bytes_max, unacked }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    records: BTreeMap<u64, (u32, Vec<u8>, bool)>,
    next_seq: u64,
    first_seq: u64,
    cursors: BTreeMap<String, u64>,
}

impl Model {
    fn read(
        &self,
        from: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Vec<(u64, u32, Vec<u8>, bool)> {
        let mut out = Vec::new();
        let mut bytes = 0;
        for (&seq, (span, value, open)) in &self.records {
            if seq + u64::from(*span) <= from {
                continue;
            }
            if out.len() == records_max || (!out.is_empty() && bytes + value.len() > bytes_max) {
                break;
            }
            bytes += value.len();
            out.push((seq, *span, value.clone(), *open));
        }
        out
    }

    fn open_seqs(&self) -> Vec<u64> {
        self.records.iter().filter(|(_, record)| record.2).map(|(&seq, _)| seq).collect()
    }
}

fn plain(record: &Record) -> (u64, u32, Vec<u8>, bool) {
    (record.first_seq, record.span, record.value.to_vec(), record.open)
}

fn check(topic: &Topic, model: &Model) {
    assert_eq!(topic.next_seq(), model.next_seq);
    assert_eq!(topic.first_seq(), model.first_seq);
    assert_eq!(topic.open_seqs().unwrap(), model.open_seqs());
    let groups: BTreeMap<_, _> = topic.groups().unwrap().into_iter().collect();
    assert_eq!(groups, model.cursors);
}

fn append(topic: &Arc<Topic>, model: &mut Model, records: &[(u32, usize, bool)]) {
    let before = model.next_seq;
    let range = topic
        .append(1, |appender| {
            for &(span, length, open) in records {
                let value = vec![u8::try_from(model.next_seq % 251).unwrap(); length];
                let (head, tail) = value.split_at(length / 2);
                // One slice may be kept in memory, several are not.
                let mut slices = vec![Bytes::copy_from_slice(head)];
                if length % 2 == 0 {
                    slices.push(Bytes::copy_from_slice(tail));
                } else {
                    slices = vec![Bytes::copy_from_slice(&value)];
                }
                assert_eq!(appender.next_seq(), model.next_seq);
                if open {
                    appender.push_open(span, slices);
                } else {
                    appender.push(span, slices);
                }
                model.records.insert(model.next_seq, (span, value, open));
                model.next_seq += u64::from(span);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(range, before..=model.next_seq - 1);
}

fn retain(topic: &Topic, model: &mut Model, bytes_max: u64, unacked: bool) {
    let policy =
        Retention { age_ms_max: None, bytes_max: Some(bytes_max), msgs_max: None, unacked };
    let retained = topic.retain(&policy, 10).unwrap();
    let first_seq = topic.first_seq();
    assert_eq!(retained.messages, first_seq - model.first_seq);
    let protected =
        if unacked { u64::MAX } else { model.cursors.values().min().copied().unwrap_or(0) };
    let open = model.open_seqs().first().copied().unwrap_or(u64::MAX);
    assert!(first_seq == model.first_seq || first_seq <= protected.min(open));
    assert!(
        model.records.contains_key(&first_seq)
            || first_seq == model.next_seq
            || retained.messages == 0
    );
    model.records = model.records.split_off(&first_seq);
    model.first_seq = first_seq;
}

/// Every case opens a real store: fewer than the default, unless somebody asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(40, |cases| cases.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    #[test]
    fn the_queue_answers_like_a_map(steps in prop::collection::vec(step(), 1..40)) {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
        let mut topic = queue.topic("t").unwrap();
        // A neighbour on either side of the topic's keys: nothing of it may show.
        let other = queue.topic("other").unwrap();
        let neighbour = vec![Bytes::from_static(b"other")];
        other.append(1, |appender| { appender.push(3, neighbour.clone()); Ok(()) }).unwrap();
        drop(other);
        let mut model = Model { next_seq: 1, first_seq: 1, ..Model::default() };
        for step in steps {
            match step {
                Step::Append(records) => append(&topic, &mut model, &records),
                Step::CloseOldestOpen => {
                    if let Some(&seq) = model.open_seqs().first() {
                        let record = model.records.get_mut(&seq).unwrap();
                        topic.close_open(seq, record.0, &[b"clo", b"sed"]).unwrap();
                        record.1 = b"closed".to_vec();
                        record.2 = false;
                    }
                }
                Step::SetCursor(group, seq) => {
                    let group = format!("g{group}");
                    topic.group(&group, GroupStart::First).unwrap().seek(seq).unwrap();
                    prop_assert_eq!(topic.cursor(&group).unwrap(), Some(seq));
                    model.cursors.insert(group, seq);
                }
                Step::Read(from, records, bytes) => {
                    let read = topic.read(from, records, bytes).unwrap();
                    let read: Vec<_> = read.iter().map(plain).collect();
                    let expected = model.read(from, records, bytes);
                    prop_assert!(read == expected, "read {from} {records} {bytes}");
                }
                Step::Retain { bytes_max, unacked } => {
                    retain(&topic, &mut model, bytes_max, unacked);
                }
                Step::Reopen => {
                    drop(topic);
                    let (producer, epoch) = (queue.producer(), queue.instance_epoch());
                    queue.close().unwrap();
                    queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
                    prop_assert_eq!(queue.producer(), producer);
                    prop_assert_eq!(queue.instance_epoch(), epoch + 1);
                    topic = queue.existing_topic("t").unwrap();
                }
            }
            check(&topic, &model);
        }
    }
}

#[test]
fn names_are_checked_and_unknown_topics_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
    for name in ["", "a b", "a.b", "*", ">", "a/b", "\u{7f}", "\u{e9}", &"x".repeat(191)] {
        assert_eq!(queue.topic(name).err().unwrap().kind(), ErrorKind::InvalidName, "{name:?}");
    }
    assert_eq!(queue.existing_topic("t").err().unwrap().kind(), ErrorKind::TopicNotFound);
    queue.topic("t").unwrap();
    queue.topic("b").unwrap();
    assert_eq!(queue.topics().unwrap(), ["b", "t"]);
}

#[test]
fn a_closed_queue_says_so_and_frees_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    let second = Queue::open(directory.path(), QueueOptions::default()).err().unwrap();
    assert_eq!(second.kind(), ErrorKind::Locked);
    assert!(second.to_string().contains(&std::process::id().to_string()));
    queue.close().unwrap();
    queue.close().unwrap();
    assert_eq!(topic.read(1, 1, 1).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(topic.append(1, |_| Ok(())).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(topic.wait(1, Duration::from_secs(1)).unwrap_err().kind(), ErrorKind::Closed);
    Queue::open(directory.path(), QueueOptions::default()).unwrap();
}

#[test]
fn nothing_is_written_when_the_builder_fails() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    let refused = topic.append(1, |appender| {
        appender.push(1, vec![Bytes::from_static(b"lost")]);
        Err(vecmq::Error::new(ErrorKind::TooLarge, "refused"))
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(topic.next_seq(), 1);
    assert!(topic.read(1, 10, 10).unwrap().is_empty());
}

struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn readers_are_woken_by_appends_and_by_completed_records() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    let counting = Arc::new(Counting(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&counting));
    topic.register(&waker);
    topic.register(&waker);
    topic
        .append(1, |appender| {
            appender.push_open(1, vec![Bytes::from_static(b"x")]);
            Ok(())
        })
        .unwrap();
    assert_eq!(counting.0.load(Ordering::SeqCst), 1);
    topic.register(&waker);
    topic.close_open(1, 1, &[b"y"]).unwrap();
    assert_eq!(counting.0.load(Ordering::SeqCst), 2);
    assert!(!topic.wait(2, Duration::from_millis(20)).unwrap());
    let late = Arc::clone(&topic);
    let appender = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        late.append(1, |appender| {
            appender.push(1, vec![Bytes::from_static(b"z")]);
            Ok(())
        })
        .unwrap();
    });
    assert!(topic.wait(2, Duration::from_secs(20)).unwrap());
    appender.join().unwrap();
}

#[test]
fn concurrent_appends_take_every_seq_once() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Queue::open(directory.path(), QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    std::thread::scope(|scope| {
        for worker in 0..4_u8 {
            let topic = &topic;
            scope.spawn(move || {
                for _ in 0..250 {
                    topic
                        .append(1, |appender| {
                            appender.push(1, vec![Bytes::copy_from_slice(&[worker])]);
                            Ok(())
                        })
                        .unwrap();
                }
            });
        }
    });
    let records = topic.read(1, 2000, 1 << 20).unwrap();
    assert!(records.iter().map(|record| record.first_seq).eq(1..=1000));
}
