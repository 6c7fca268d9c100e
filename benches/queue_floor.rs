//! Messages through the journal and through a bare file, side by side, for `make bench-queue`.
//!
//! `queue_floor MESSAGES ROUNDS` prints one line of JSON: seconds of every round from the first
//! publish until the last message was received, of the journal (512 messages a publish; and the
//! same as packed rows) and of an append-only file (one write for 512 messages, a thread that reads
//! them back). Every receiver looks at every message's number. Neither side syncs. Without
//! arguments it does next to nothing.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has failed")]

mod common;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::KIB;
use common::dense;
use vecmq::frame::{Codec, Headers, Layout};
use vecmq::hybrid::{
    Hub, HubOptions, HubTopic, Mode, Submission, SubscribeOptions, Subscriber, Wait,
};
use vecmq::nats::StreamLimits;
use vecmq::queue::{GroupStart, Retention};
use vecmq::router::RouterConfig;

const CALL_MESSAGES: usize = 512;
const MESSAGE_BYTES: usize = KIB;
/// A virtual machine pays for the first touch of memory: each round finds some that was touched.
const WARM_BYTES: usize = 256 << 20;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|one| one.parse::<usize>().ok());
    let count = arguments.next().unwrap_or(2 * CALL_MESSAGES) / CALL_MESSAGES * CALL_MESSAGES;
    let rounds = arguments.next().unwrap_or(1);
    let messages = numbered(count.max(CALL_MESSAGES));
    let mut seconds: [Vec<f64>; 3] = Default::default();
    // The first round warms up.
    for round in 0..=rounds {
        let taken = [
            warmed(|| journal(&messages, false)),
            warmed(|| journal(&messages, true)),
            warmed(|| bare_file(&messages)),
        ];
        if round > 0 {
            for (all, one) in seconds.iter_mut().zip(taken) {
                all.push(one.as_secs_f64());
            }
        }
    }
    let [messages, rows, file] = seconds;
    let line = serde_json::json!({"messages_s": messages, "rows_s": rows, "file_s": file});
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn warmed(run: impl FnOnce() -> Duration) -> Duration {
    drop(std::hint::black_box(vec![1_u8; WARM_BYTES]));
    run()
}

/// Random bytes in one buffer; each message begins with its number.
fn numbered(count: usize) -> Bytes {
    let mut all = dense(count * MESSAGE_BYTES).to_vec();
    for (number, message) in all.chunks_exact_mut(MESSAGE_BYTES).enumerate() {
        let (front, _) = message.split_first_chunk_mut::<8>().unwrap();
        *front = (number as u64).to_le_bytes();
    }
    all.into()
}

/// Checks the numbers of the messages in `bytes`, and returns the next one.
fn check(bytes: &[u8], mut next: u64) -> u64 {
    for message in bytes.chunks(MESSAGE_BYTES) {
        assert_eq!(message.first_chunk(), Some(&next.to_le_bytes()));
        next += 1;
    }
    next
}

fn journal(messages: &Bytes, rows: bool) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::open(HubOptions {
        mode: Mode::Queue,
        queue_path: Some(directory.path().join("log")),
        nats: None,
        durable: false,
        codec: Codec::Raw.into(),
        link_bytes_per_s: None,
        message_bytes_max: 1 << 30,
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
    .unwrap();
    let topic = hub.topic("bench").unwrap();
    let subscriber = Subscriber::open(
        &topic,
        "bench",
        &SubscribeOptions {
            start: GroupStart::First,
            ack_wait: None,
            deliveries_max: None,
            dead_letters: None,
        },
    )
    .unwrap();
    let count = (messages.len() / MESSAGE_BYTES) as u64;
    let started = Instant::now();
    let reader = std::thread::spawn(move || receive(subscriber, count));
    for call in messages.chunks(CALL_MESSAGES * MESSAGE_BYTES) {
        publish(&topic, messages.slice_ref(call), rows);
    }
    let ended = reader.join().unwrap();
    hub.close().unwrap();
    ended - started
}

fn publish(topic: &Arc<HubTopic>, call: Bytes, rows: bool) {
    let submission = |payload: Bytes, rows: usize| Submission {
        payload,
        writable: false,
        layout: (rows > 1).then(|| {
            Layout::new("float32", 4, vec![rows as u64, MESSAGE_BYTES as u64 / 4]).unwrap()
        }),
        rows: u32::try_from(rows).unwrap(),
        headers: Headers::empty(),
        expected_last_seq: None,
        codec: None,
    };
    let submissions = if rows {
        let count = call.len() / MESSAGE_BYTES;
        vec![submission(call, count)]
    } else {
        call.chunks(MESSAGE_BYTES).map(|one| submission(call.slice_ref(one), 1)).collect()
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    let receipts =
        topic.publish(submissions, None, deadline, Wait::Here, |_| Box::new(|_, _| ())).unwrap();
    assert!(receipts.iter().all(Option::is_some));
}

fn receive(mut subscriber: Subscriber, count: u64) -> Instant {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut next = 0;
    while next < count {
        let batch = subscriber.poll(CALL_MESSAGES, &waker, false).unwrap();
        for message in &batch {
            next = check(message.payload().unwrap(), next);
        }
        vecmq::hybrid::Message::ack_all(&batch).unwrap();
        if batch.is_empty() {
            std::thread::park_timeout(Duration::from_secs(1));
        }
    }
    Instant::now()
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn bare_file(messages: &Bytes) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut file = File::options().append(true).create_new(true).open(&path).unwrap();
    let source = File::open(&path).unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let all_bytes = messages.len() as u64;
    let started = Instant::now();
    let reader = {
        let written = Arc::clone(&written);
        std::thread::spawn(move || read_back(&source, &written, all_bytes))
    };
    let mut buffer = Vec::new();
    for call in messages.chunks(CALL_MESSAGES * MESSAGE_BYTES) {
        buffer.clear();
        for message in call.chunks(MESSAGE_BYTES) {
            buffer.extend_from_slice(message);
        }
        file.write_all(&buffer).unwrap();
        written.fetch_add(buffer.len() as u64, Ordering::Release);
        reader.thread().unpark();
    }
    reader.join().unwrap() - started
}

fn read_back(source: &File, written: &AtomicU64, all_bytes: u64) -> Instant {
    let mut buffer = vec![0; CALL_MESSAGES * MESSAGE_BYTES];
    let (mut at, mut next) = (0, 0);
    while at < all_bytes {
        let end = written.load(Ordering::Acquire);
        if at == end {
            std::thread::park_timeout(Duration::from_secs(1));
            continue;
        }
        source.read_exact_at(&mut buffer, at).unwrap();
        at += buffer.len() as u64;
        next = check(&buffer, next);
    }
    Instant::now()
}
