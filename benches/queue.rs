//! The queue's log in a real directory, and as its floor a bare file.
//!
//! The floor is what no log can go below: the same bytes gathered into one buffer and handed to the
//! kernel in one write for 512 messages, without keys, checksums or an index. Neither side syncs.
//!
//! `append` is what a call costs: after 48 MiB the next one goes to a new store, made outside the
//! clock, so that no memtable (64 MiB) is ever flushed. `sustained` is what a stream costs: 512 MiB
//! into one store, with every flush and stall on the way.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has failed")]

mod common;

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{KIB, dense};
use criterion::{Criterion, SamplingMode, Throughput};
use tempfile::TempDir;
use vecmq::queue::{Queue, QueueOptions, Topic};

const MESSAGES: usize = 512;
const STORE_BYTES_MAX: usize = 48 << 20;
const SUSTAINED_BYTES: usize = 512 << 20;

fn main() {
    let mut criterion = common::criterion();
    appends(&mut criterion);
    sustained::<Log>(&mut criterion, "log/512x1KiB");
    sustained::<BareFile>(&mut criterion, "file/512x1KiB");
    reads(&mut criterion);
    criterion.final_summary();
}

/// Something that takes messages in one write.
trait Store {
    fn create() -> Self;
    fn append(&mut self, messages: &[Bytes]);
    fn read(&self) -> Vec<u8>;
}

struct Log {
    topic: Arc<Topic>,
    queue: Arc<Queue>,
    _directory: TempDir,
}

impl Store for Log {
    fn create() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let queue = Queue::open(&directory.path().join("log"), QueueOptions::default()).unwrap();
        let topic = queue.topic("bench").unwrap();
        Self { topic, queue, _directory: directory }
    }

    fn append(&mut self, messages: &[Bytes]) {
        let pushed = self.topic.append(1_700_000_000_000, |appender| {
            for message in messages {
                appender.push(1, vec![message.clone()]);
            }
            Ok(())
        });
        pushed.unwrap();
    }

    fn read(&self) -> Vec<u8> {
        let records = self.topic.read(1, usize::MAX, usize::MAX).unwrap();
        records.iter().flat_map(|record| record.value.to_vec()).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.close().unwrap();
    }
}

struct BareFile {
    file: File,
    buffer: Vec<u8>,
    directory: TempDir,
}

impl Store for BareFile {
    fn create() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = File::options().append(true).create_new(true).open(path(&directory)).unwrap();
        Self { file, buffer: Vec::new(), directory }
    }

    fn append(&mut self, messages: &[Bytes]) {
        self.buffer.clear();
        for message in messages {
            self.buffer.extend_from_slice(message);
        }
        self.file.write_all(&self.buffer).unwrap();
    }

    fn read(&self) -> Vec<u8> {
        std::fs::read(path(&self.directory)).unwrap()
    }
}

fn path(directory: &TempDir) -> std::path::PathBuf {
    directory.path().join("log")
}

/// Equal sizes, every byte different from message to message.
fn messages(count: usize, size_bytes: usize) -> Vec<Bytes> {
    let all = dense(count * size_bytes);
    (0..count).map(|index| all.slice(index * size_bytes..(index + 1) * size_bytes)).collect()
}

/// Appends the same messages again and again, to a new store whenever `bytes_max` are in one; the
/// time of the appends alone.
fn timed<S: Store>(
    store: &mut (S, usize),
    messages: &[Bytes],
    bytes_max: usize,
    count: u64,
) -> Duration {
    let size_bytes: usize = messages.iter().map(Bytes::len).sum();
    let mut spent = Duration::ZERO;
    for _ in 0..count {
        if store.1 + size_bytes > bytes_max {
            *store = (S::create(), 0);
        }
        let started = Instant::now();
        store.0.append(messages);
        spent += started.elapsed();
        store.1 += size_bytes;
    }
    spent
}

fn append<S: Store>(criterion: &mut Criterion, name: &str, count: usize, size_bytes: usize) {
    let messages = messages(count, size_bytes);
    let mut checked = S::create();
    checked.append(&messages);
    checked.append(&messages);
    assert_eq!(checked.read(), [messages.concat(), messages.concat()].concat());
    drop(checked);

    let mut store = (S::create(), 0);
    let mut group = criterion.benchmark_group("append");
    group.throughput(Throughput::Bytes((count * size_bytes) as u64));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| timed(&mut store, &messages, STORE_BYTES_MAX, count));
    });
    group.finish();
}

fn sustained<S: Store>(criterion: &mut Criterion, name: &str) {
    let messages = messages(MESSAGES, KIB);
    let appends = (SUSTAINED_BYTES / MESSAGES / KIB) as u64;
    let mut group = criterion.benchmark_group("sustained");
    group.throughput(Throughput::Bytes(SUSTAINED_BYTES as u64));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.measurement_time(Duration::from_secs(12));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let one = |_| timed(&mut (S::create(), 0), &messages, SUSTAINED_BYTES, appends);
            (0..count).map(one).sum()
        });
    });
    group.finish();
}

fn appends(criterion: &mut Criterion) {
    append::<Log>(criterion, "log/1x1KiB", 1, KIB);
    append::<Log>(criterion, "log/1x64KiB", 1, 64 * KIB);
    append::<Log>(criterion, "log/512x1KiB", MESSAGES, KIB);
    append::<BareFile>(criterion, "file/512x1KiB", MESSAGES, KIB);
}

/// The last 512 messages of 4,096, as a subscriber that keeps up reads them.
fn reads(criterion: &mut Criterion) {
    let messages = messages(MESSAGES, KIB);
    let mut log = Log::create();
    for _ in 0..8 {
        log.append(&messages);
    }
    let first = log.topic.next_seq() - MESSAGES as u64;
    let read = || log.topic.read(first, MESSAGES, usize::MAX).unwrap();
    assert!(read().iter().map(|record| &record.value).eq(&messages));
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes((MESSAGES * KIB) as u64));
    group.bench_function("log/512x1KiB", |bencher| bencher.iter(read));
    group.finish();
}
