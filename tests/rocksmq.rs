//! The reader of `RocksMQ` directories, on directories made here. What Milvus itself wrote is read
//! by `tests/test_migrate.py`.

#![cfg(feature = "queue")]
#![expect(clippy::print_stdout, reason = "the counts are what these tests are about")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rocksdb::{DB, Options};
use vecmq::ErrorKind;
use vecmq::queue::{RocksMq, RocksPage, RocksScan};

/// A directory pair as Milvus lays it out.
struct Pair {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Pair {
    fn new(messages: &[(&str, &[u8])], meta: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("rdb_data");
        let meta_path = directory.path().join("rdb_data_meta_kv");
        write(&path, messages.iter().map(|(key, value)| (key.as_bytes(), *value)));
        write(&meta_path, meta.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())));
        Self { _directory: directory, path }
    }

    fn open(&self) -> RocksMq {
        RocksMq::open(&self.path).expect("opens")
    }

    /// The error of opening and reading all of it.
    fn failure(&self) -> ErrorKind {
        let read = || {
            let mq = RocksMq::open(&self.path)?;
            for topic in mq.topics()? {
                mq.scan(&topic.name, |_, _| true)?;
            }
            Ok::<_, vecmq::Error>(())
        };
        read().expect_err("damage is found").kind()
    }
}

fn write<'a>(path: &Path, pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    let mut options = Options::default();
    options.create_if_missing(true);
    let database = DB::open(&options, path).expect("a database");
    for (key, value) in pairs {
        database.put(key, value).expect("a write");
    }
}

fn scan(mq: &RocksMq, topic: &str) -> RocksScan {
    mq.scan(topic, |_, _| true).expect("scans")
}

fn read_all(mq: &RocksMq, scan: &RocksScan, messages_max: usize, bytes_max: usize) -> Vec<u64> {
    let mut ids = Vec::new();
    loop {
        let read = mq.read(scan, ids.last().copied(), messages_max, bytes_max).expect("reads");
        if read.is_empty() {
            return ids;
        }
        assert!(read.len() <= messages_max);
        ids.extend(read.into_iter().map(|(id, _)| id));
    }
}

#[test]
fn ids_of_different_widths_come_in_their_own_order() {
    let ids = [9_u64, 10, 95, 99, 100, 101, 1000, 999_999, 1_000_000, 470_714_801_077_354_497];
    let keys: Vec<String> = ids.iter().map(|id| format!("t/{id}")).collect();
    let messages: Vec<(&str, &[u8])> =
        keys.iter().map(|key| (key.as_str(), key.as_bytes())).collect();
    let pair = Pair::new(&messages, &[("topic_id/t", "1700000000")]);
    let mq = pair.open();
    let scan = scan(&mq, "t");
    assert_eq!((scan.first_id, scan.last_id), (Some(9), Some(470_714_801_077_354_497)));
    for messages_max in [1, 3, 100] {
        assert_eq!(read_all(&mq, &scan, messages_max, usize::MAX), ids);
    }
    // One at a time, however small the byte budget is.
    assert_eq!(read_all(&mq, &scan, 100, 1), ids);
    let after: Vec<u64> = mq
        .read(&scan, Some(100), 2, usize::MAX)
        .expect("reads")
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(after, [101, 1000]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_message_comes_once_and_in_order(
        found in prop::collection::btree_map(
            prop_oneof![0_u64..200, 0_u64..(1 << 62)],
            prop::collection::vec(any::<u8>(), 0..40),
            0..60,
        ),
        messages_max in 1_usize..20,
    ) {
        let keys: Vec<String> = found.keys().map(|id| format!("t/{id}")).collect();
        let mut messages: Vec<(&str, &[u8])> = Vec::new();
        for (key, value) in keys.iter().zip(found.values()) {
            messages.push((key, value));
        }
        // Neighbours whose keys begin alike.
        messages.extend([("t-2/5", b"x".as_slice()), ("t0/7", b"y"), ("s/1", b"z")]);
        let pair = Pair::new(&messages, &[("topic_id/t", "1700000000")]);
        let mq = pair.open();
        let scan = scan(&mq, "t");
        prop_assert_eq!(scan.messages_count, found.len() as u64);
        let mut read = BTreeMap::new();
        let mut order = Vec::new();
        let mut after = None;
        loop {
            let some = mq.read(&scan, after, messages_max, 64).expect("reads");
            let Some((last, _)) = some.last() else { break };
            after = Some(*last);
            order.extend(some.iter().map(|(id, _)| *id));
            read.extend(some.into_iter().map(|(id, bytes)| (id, bytes.to_vec())));
        }
        prop_assert!(order.is_sorted());
        prop_assert_eq!(order.len(), found.len());
        prop_assert_eq!(read, found);
    }
}

#[test]
fn topics_come_from_metadata_and_orphans_from_their_messages() {
    let pair = Pair::new(
        &[("gone/1", b"a"), ("t/10", b"bcd"), ("t/11", b"ef"), ("t/12", b"g")],
        &[
            ("acked_ts/t/10", "1700000005"),
            ("message_size/t", "3"),
            ("page_message_size/t/10", "3"),
            ("page_ts/t/10", "1700000004"),
            // Of a page that retention has removed.
            ("acked_ts/t/7", "1700000001"),
            ("message_size/gone", "1"),
            ("topic_id/t", "1700000000"),
            ("topic_id/unused", "438497159122780160"),
        ],
    );
    let mq = pair.open();
    let topics = mq.topics().expect("lists");
    let names: Vec<_> = topics.iter().map(|one| (one.name.as_str(), one.orphaned)).collect();
    assert_eq!(names, [("gone", true), ("t", false), ("unused", false)]);
    let [_, t, unused] = topics.as_slice() else { panic!("three topics") };
    assert_eq!((t.created_s, t.open_page_bytes), (Some(1_700_000_000), 3));
    let page = RocksPage {
        end_id: 10,
        bytes: 3,
        closed_s: Some(1_700_000_004),
        acked_s: Some(1_700_000_005),
    };
    assert_eq!(t.pages, [page]);
    assert_eq!(unused.created_s, None);
    assert_eq!(scan(&mq, "gone").messages_count, 1);
    assert_eq!(scan(&mq, "unused").messages_count, 0);
    assert_eq!(
        mq.scan("none", |_, _| true).map_err(|e| e.kind()).err(),
        Some(ErrorKind::TopicNotFound)
    );
}

#[test]
fn what_the_metadata_counts_and_is_not_there_is_told() {
    let meta = [
        ("topic_id/t", "1"),
        ("message_size/t", "5"),
        ("page_message_size/t/10", "3"),
        ("page_message_size/t/20", "4"),
    ];
    let whole: [(&str, &[u8]); 3] = [("t/10", b"abc"), ("t/20", b"abcd"), ("t/21", b"abcde")];
    assert_eq!(scan(&Pair::new(&whole, &meta).open(), "t").missing_bytes, 0);
    assert_eq!(scan(&Pair::new(whole.split_at(2).0, &meta).open(), "t").missing_bytes, 5);
    assert_eq!(scan(&Pair::new(whole.split_at(1).1, &meta).open(), "t").missing_bytes, 3);
    // An acknowledged page may be half deleted.
    let acked = [meta.as_slice(), &[("acked_ts/t/10", "2")]].concat();
    assert_eq!(scan(&Pair::new(whole.split_at(1).1, &acked).open(), "t").missing_bytes, 0);
}

#[test]
fn keys_and_numbers_that_rocksmq_does_not_write_are_refused() {
    for key in ["t", "t/", "t/x", "t/-5", "t/05", "t/9223372036854775808"] {
        assert_eq!(Pair::new(&[(key, b"v")], &[]).failure(), ErrorKind::Corrupt, "{key}");
    }
    for (key, value) in [
        ("message_size/t", "x"),
        ("page_message_size/t/1", ""),
        ("page_message_size/t", "1"),
        ("page_ts/t/one", "1"),
        ("acked_ts/t/1", "-1"),
    ] {
        assert_eq!(Pair::new(&[], &[(key, value)]).failure(), ErrorKind::Corrupt, "{key}");
    }
}

/// All payloads, and what the metadata counts beside them.
fn read_everything(path: &Path) -> vecmq::Result<(Vec<Vec<u8>>, u64)> {
    let mq = RocksMq::open(path)?;
    let scan = mq.scan("t", |_, _| true)?;
    let read = mq.read(&scan, None, 1000, usize::MAX)?;
    Ok((read.into_iter().map(|(_, bytes)| bytes.to_vec()).collect(), scan.missing_bytes))
}

/// Forty messages of 100 bytes.
fn forty() -> (Pair, Vec<Vec<u8>>) {
    let payloads: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; 100]).collect();
    let keys: Vec<String> = (100..140).map(|id| format!("t/{id}")).collect();
    let messages: Vec<(&str, &[u8])> =
        keys.iter().zip(&payloads).map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    let pair = Pair::new(&messages, &[("topic_id/t", "1"), ("message_size/t", "4000")]);
    (pair, payloads)
}

fn file_with_ending(directory: &Path, ending: &str) -> PathBuf {
    fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|found| found == ending))
        .expect("such a file")
}

#[test]
fn no_flipped_byte_of_a_table_is_a_wrong_or_short_read() {
    let (pair, payloads) = forty();
    // Opened for writing once more, the log becomes a table.
    drop(DB::open(&Options::default(), &pair.path).expect("opens"));
    let table = file_with_ending(&pair.path, "sst");
    let good = fs::read(&table).expect("reads");
    assert_eq!(read_everything(&pair.path).expect("reads"), (payloads.clone(), 0));
    let (mut refused, mut harmless) = (0, 0);
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        if let Some(byte) = bad.get_mut(at) {
            *byte ^= 1 << (at % 8);
        }
        fs::write(&table, &bad).expect("writes");
        match read_everything(&pair.path) {
            Err(_) => refused += 1,
            Ok(read) => {
                assert_eq!(read, (payloads.clone(), 0), "byte {at}");
                harmless += 1;
            }
        }
    }
    println!("{refused} flips refused, {harmless} in bytes that no read depends on, 0 silent");
    assert!(refused > 0);
}

#[test]
fn a_log_that_is_cut_short_is_a_prefix_and_the_rest_is_counted_as_missing() {
    let (pair, payloads) = forty();
    let log = file_with_ending(&pair.path, "log");
    let good = fs::read(&log).expect("reads");
    let mut prefixes = 0;
    for length in (0..good.len()).step_by(11) {
        fs::write(&log, good.get(..length).unwrap_or_default()).expect("writes");
        let (read, missing_bytes) = read_everything(&pair.path).unwrap_or_default();
        assert!(payloads.starts_with(&read), "{length} bytes");
        if !read.is_empty() {
            assert_eq!(missing_bytes, 4000 - 100 * read.len() as u64, "{length} bytes");
            prefixes += 1;
        }
    }
    println!("{prefixes} cuts read as a prefix, 0 of them without its missing bytes");
    assert!(prefixes > 100);
}

#[test]
fn a_scan_ends_when_it_is_told_to() {
    let payload = vec![7; 1 << 20];
    let keys: Vec<String> = (0..40).map(|id| format!("t/{}", 100 + id)).collect();
    let messages: Vec<(&str, &[u8])> =
        keys.iter().map(|key| (key.as_str(), payload.as_slice())).collect();
    let pair = Pair::new(&messages, &[]);
    let mut calls = 0;
    let ended = pair.open().scan("t", |_, _| {
        calls += 1;
        false
    });
    assert_eq!(ended.map_err(|e| e.kind()).err(), Some(ErrorKind::Closed));
    assert_eq!(calls, 1);
}
