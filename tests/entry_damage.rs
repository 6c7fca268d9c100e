//! Every flipped bit and every truncation of a journal entry is refused when it is read.
//!
//! Entries of every kind are taken from a queue as they lie there, damaged, and put into another
//! one, whose reader decodes all of them: the same decoder that a subscriber has.

#![cfg(all(feature = "queue", feature = "nats"))]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, reason = "the counts are the result")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use vecmq::frame::{Codec, Headers, Layout};
use vecmq::hybrid::{Hub, HubOptions, HubTopic, Mode, Submission, Wait, check};
use vecmq::nats::StreamLimits;
use vecmq::queue::{Queue, QueueOptions, Record, Retention};
use vecmq::router::RouterConfig;

const LIMIT_BYTES: u64 = 1 << 30;

fn hub(path: &Path, codec: Codec) -> Hub {
    Hub::open(HubOptions {
        mode: Mode::Queue,
        queue_path: Some(path.to_owned()),
        nats: None,
        durable: false,
        codec: codec.into(),
        link_bytes_per_s: None,
        message_bytes_max: LIMIT_BYTES,
        router: RouterConfig::default(),
        retention: Retention::default(),
        attach: false,
        stream_limits: StreamLimits {
            age_ms_max: None,
            bytes_max: None,
            msgs_max: None,
            replicas: 1,
            atomic: false,
        },
    })
    .unwrap()
}

fn publish(topic: &Arc<HubTopic>, submissions: Vec<Submission>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let done = |_| -> Box<dyn FnOnce(vecmq::Result<vecmq::hybrid::Receipt>, Bytes) + Send> {
        Box::new(|_, _| {})
    };
    let receipts = topic.publish(submissions, None, deadline, Wait::Here, done).unwrap();
    assert!(receipts.iter().all(Option::is_some));
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect::<Vec<u8>>().into()
}

fn plain(length: usize, headers: &[(&str, &str)]) -> Submission {
    let pairs = headers.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Submission {
        payload: bytes(length),
        writable: false,
        layout: None,
        rows: 1,
        headers: Headers::new(pairs.collect()).unwrap(),
        expected_last_seq: None,
        codec: None,
    }
}

/// One entry of each kind: empty, with headers, with padding, an array, packed rows, several
/// messages, and one that every codec shrinks.
fn entries(path: &Path, codec: Codec) -> Vec<Record> {
    let hub = hub(path, codec);
    let topic = hub.topic("t").unwrap();
    let array = |shape: Vec<u64>, rows| Submission {
        payload: bytes(usize::try_from(shape.iter().product::<u64>() * 4).unwrap()),
        layout: Some(Layout::new("float32", 4, shape).unwrap()),
        rows,
        ..plain(0, &[])
    };
    publish(&topic, vec![plain(0, &[])]);
    publish(&topic, vec![plain(5, &[("key", "value"), ("other", "")])]);
    publish(&topic, vec![plain(130, &[])]);
    publish(&topic, vec![array(vec![3, 7], 1)]);
    publish(&topic, vec![array(vec![4, 8], 4)]);
    publish(&topic, vec![plain(3, &[]), plain(70, &[("k", "v")]), array(vec![2], 1)]);
    publish(&topic, vec![Submission { payload: vec![0; 1024].into(), ..array(vec![256], 1) }]);
    drop(topic);
    hub.close().unwrap();
    let queue = Queue::open(path, QueueOptions::default()).unwrap();
    let topic = queue.existing_topic("t").unwrap();
    let mut records = Vec::new();
    let mut next = 1;
    while next < topic.next_seq() {
        for record in topic.read(next, 100, 1 << 30).unwrap() {
            next = record.first_seq + u64::from(record.span);
            records.push(record);
        }
    }
    records
}

/// Every damaged value of a record.
fn damaged(value: &[u8]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> =
        (0..value.len()).map(|length| value.iter().take(length).copied().collect()).collect();
    for at in 0..value.len() {
        for bit in 0..8 {
            let mut flipped = value.to_vec();
            *flipped.get_mut(at).unwrap() ^= 1 << bit;
            all.push(flipped);
        }
    }
    all
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for codec in Codec::ALL {
        let name = codec.name();
        let records = entries(&directory.path().join(name), codec);
        assert!(records.len() == 7);
        let path = directory.path().join(format!("{name}-damaged"));
        let queue = Queue::open(&path, QueueOptions::default()).unwrap();
        let topic = queue.topic("t").unwrap();
        let mut cases = 0;
        for record in &records {
            for value in damaged(&record.value) {
                cases += 1;
                let append = topic.append(1, |appender| {
                    appender.push(record.span, vec![Bytes::from(value.clone())]);
                    Ok(())
                });
                append.unwrap();
            }
        }
        queue.close().unwrap();
        let checked = check(&path, LIMIT_BYTES).unwrap();
        let accepted = cases - checked.faults.len();
        println!("{name}: {} entries, {cases} damaged ones, accepted {accepted}", records.len());
        assert_eq!(accepted, 0, "false accepts");
        let sound = check(&directory.path().join(name), LIMIT_BYTES).unwrap();
        assert_eq!(sound.faults, []);
    }
}
