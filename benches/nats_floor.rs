//! The crate's NATS route without Python, as a worker of `make bench-nats`.
//!
//! docs/bench-workers.md is the contract, with the workloads "pubsub" and "publish". A sample has
//! `frames_count` too: what a bare client has to send for the same bytes. Without a spec on stdin
//! it does nothing.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has failed")]

mod common;

use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::Random;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use vecmq::frame::{Codec, Headers, MessageId, Outgoing, ProducerId};
use vecmq::nats::{Auth, Connection, JetTopic, NatsOptions, Publish, Start, StreamLimits};

const STALL: Duration = Duration::from_secs(30);
const DECODE_BYTES_MAX: u64 = 1 << 30;
const AHEAD_BYTES: u64 = 16 << 20;

struct Operation {
    name: String,
    topic: JetTopic,
    payloads: Vec<Bytes>,
}

/// When the last one came, and what is wrong with them.
struct Received {
    ended: Instant,
    count: usize,
    wrong: usize,
}

fn main() {
    let mut lines = std::io::stdin().lock().lines().map(Result::unwrap);
    let Some(line) = lines.next() else {
        return;
    };
    let spec: Value = serde_json::from_str(&line).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let connection = runtime.block_on(Connection::connect(options(&spec))).unwrap();
    answer(&json!({"ready": true, "versions": {}, "server_pids": [], "batch": null}));
    let mut operation = None;
    for line in lines {
        if let Some(number) = line.strip_prefix("prepare ") {
            if let Some(Operation { name, .. }) = operation.take() {
                runtime.block_on(connection.delete_topic(&name)).unwrap();
            }
            let made = prepare(&connection, &spec, number.trim().parse().unwrap());
            operation = Some(runtime.block_on(made));
            answer(&json!({"prepared": true}));
        } else if let Some(operation) = &operation {
            let is_publish = text(&spec, "/workload") == "publish";
            answer(&runtime.block_on(run(operation, is_publish)));
        }
    }
}

fn options(spec: &Value) -> NatsOptions {
    NatsOptions {
        servers: vec![text(spec, "/server/url")],
        auth: Auth::Token(text(spec, "/server/token")),
        connect_timeout: Duration::from_secs(5),
        name: "nats-floor".to_owned(),
        ..NatsOptions::default()
    }
}

fn text(spec: &Value, pointer: &str) -> String {
    spec.pointer(pointer).and_then(Value::as_str).unwrap().to_owned()
}

async fn prepare(connection: &Connection, spec: &Value, number: u64) -> Operation {
    let name = format!("bench-{number}");
    let limits = StreamLimits { replicas: 1, ..StreamLimits::default() };
    let topic = connection.topic(&name, &limits).await.unwrap();
    let number_at = |pointer| spec.pointer(pointer).and_then(Value::as_u64).unwrap();
    let words_count = usize::try_from(number_at("/size_bytes") / 8).unwrap();
    let mut random = Random::new(number);
    let payloads = (0..number_at("/count"))
        .map(|index| {
            let words = (1..words_count).map(|_| random.next());
            std::iter::once(index).chain(words).flat_map(u64::to_le_bytes).collect()
        })
        .collect();
    Operation { name, topic, payloads }
}

async fn run(operation: &Operation, is_publish: bool) -> Value {
    let Operation { topic, payloads, .. } = operation;
    let started = Instant::now();
    let mut receiving = None;
    if !is_publish {
        receiving = Some(tokio::spawn(receive(topic.clone(), payloads.clone())));
    }
    let producer = ProducerId::random();
    let (sender, mut acks) = mpsc::unbounded_channel();
    for (seq, payload) in (1..).zip(payloads) {
        let id = MessageId { producer, epoch: 1, seq };
        let outgoing = Outgoing { id, rows: 1, layout: None, payload: payload.clone() };
        let sender = sender.clone();
        let deadline = started + Duration::from_mins(1);
        topic.publish(
            Publish::new(outgoing, Headers::empty(), Codec::Raw, deadline),
            move |result| {
                sender.send(result).unwrap();
            },
        );
    }
    drop(sender);
    while let Some(ack) = acks.recv().await {
        ack.unwrap();
    }
    let published = Instant::now();
    let frames = topic.last_seq().await.unwrap();
    let received = match receiving {
        Some(task) => task.await.unwrap(),
        None => receive(topic.clone(), payloads.clone()).await,
    };
    let ended = if is_publish { published } else { published.max(received.ended) };
    json!({
        "seconds": (ended - started).as_secs_f64(),
        "published_s": (published - started).as_secs_f64(),
        "frames_count": frames,
        "levels": ["stored"],
        "received_count": received.count,
        "lost_count": payloads.len() - received.count,
        "duplicate_count": 0,
        "unordered_count": 0,
        "wrong_count": received.wrong,
    })
}

/// Receives in order: whatever is not the next message is wrong.
async fn receive(topic: JetTopic, payloads: Vec<Bytes>) -> Received {
    let ack_wait = Some(Duration::from_mins(1));
    let start = Some(Start::First);
    let mut subscription = topic.subscribe("bench", start, ack_wait, false).await.unwrap();
    let (mut count, mut wrong) = (0, 0);
    for expected in &payloads {
        let Some(delivery) = subscription.next(STALL, DECODE_BYTES_MAX, AHEAD_BYTES).await.unwrap()
        else {
            break;
        };
        count += 1;
        wrong += usize::from(delivery.incoming.unwrap().join().unwrap().payload != expected);
        delivery.ack.ack().unwrap();
    }
    Received { ended: Instant::now(), count, wrong }
}

fn answer(value: &Value) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{value}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}
