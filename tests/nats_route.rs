//! The NATS route against a real nats-server.

#![cfg(feature = "nats")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]
#![expect(clippy::cast_possible_truncation, reason = "seqs of a test are small")]
#![expect(clippy::print_stdout, reason = "the counts are the result")]

mod common;

use std::time::{Duration, Instant};

use common::{Server, limits, noise, outgoing, soon};
use vecmq::ErrorKind;
use vecmq::frame::{Codec, Headers, MessageId, Outgoing, ProducerId};
use vecmq::nats::{Connection, GroupAck, JetTopic, NatsOptions, Publish, Start, StreamLimits};

const MIB: usize = 1 << 20;
const LIMIT: u64 = 1 << 30;
const AHEAD: u64 = 32 << 20;
const SIZES: [usize; 7] = [0, 1, 1000, 64 << 10, MIB, 3 * MIB + 5, 20 * MIB];

async fn publish(topic: &JetTopic, message: &Outgoing) -> vecmq::Result<GroupAck> {
    topic.publish_wait(message.clone(), Headers::empty(), Codec::Raw, soon()).await
}

/// Stored by this publish. A frame goes again after 2 s without an acknowledgement, and the server
/// may have had it all the same: then its own repeat is a duplicate.
fn is_new(ack: &GroupAck, started: Instant) -> bool {
    !ack.duplicate || started.elapsed() >= Duration::from_secs(2)
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_every_size_come_back_bit_equal() {
    for max_payload in [8 * MIB, 64 << 10, 4 << 10] {
        let server = Server::start(max_payload);
        let topic = server.connect().await.topic("t", &limits()).await.unwrap();
        let producer = ProducerId::random();
        let headers = Headers::new(vec![("key".into(), "value".into())]).unwrap();
        for (seq, length) in (1..).zip(SIZES) {
            let length = length.min(max_payload * 1000);
            let message = outgoing(producer, seq, length);
            let started = Instant::now();
            let sent = topic.publish_wait(message.clone(), headers.clone(), Codec::Raw, soon());
            let ack = sent.await.unwrap();
            assert!(is_new(&ack, started));
            assert!(ack.wire_bytes > ack.payload_bytes);
            let fetched = topic.fetch(&message.id, ack.manifest_seq, LIMIT, false).await;
            let (gathered, got) = fetched.unwrap();
            let incoming = gathered.join().unwrap();
            assert_eq!(incoming.payload, message.payload);
            assert_eq!(incoming.layout, message.layout);
            assert_eq!(incoming.frames_count, ack.frames_count);
            assert_eq!(got, headers);
            assert_eq!(incoming.payload.as_ptr().addr() % 64, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_comes_back_bit_equal() {
    let server = Server::start(8 * MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    for (seq, codec) in (2..).step_by(2).zip([Codec::Zstd1, Codec::Planes, Codec::Pk3, Codec::Lz4])
    {
        let mut message = outgoing(producer, seq, 4 * MIB);
        let zeros = vec![0; 3 * MIB];
        message.payload = [&message.payload[..MIB], &zeros].concat().into();
        let sent = topic.publish_wait(message.clone(), Headers::empty(), codec, soon());
        let ack = sent.await.unwrap();
        let shrinks_zeros = codec != Codec::Pk3;
        assert!(!shrinks_zeros || ack.wire_bytes < ack.payload_bytes / 2);
        let fetched = topic.fetch(&message.id, ack.manifest_seq, LIMIT, false).await;
        let incoming = fetched.unwrap().0.join().unwrap();
        assert_eq!(incoming.payload, message.payload);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_delivers_in_publish_order_and_acks_whole_groups() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    let sizes = [10, 100 << 10, 3 * MIB, 0];
    let (sender, mut acks) = tokio::sync::mpsc::unbounded_channel();
    for seq in 1..=200 {
        let sender = sender.clone();
        let message = outgoing(producer, seq, sizes[seq as usize % 4]);
        topic.publish(Publish::new(message, Headers::empty(), Codec::Raw, soon()), move |result| {
            sender.send((seq, result.unwrap().manifest_seq)).unwrap();
        });
    }
    let mut subscription = topic
        .subscribe("g", Some(Start::First), Some(Duration::from_mins(1)), false)
        .await
        .unwrap();
    let mut last_seq = 0;
    for seq in 1..=200 {
        let wait = Duration::from_mins(1);
        let delivery = subscription.next(wait, LIMIT, AHEAD).await.unwrap().unwrap();
        assert_eq!(delivery.id.seq, seq);
        assert_eq!(
            delivery.incoming.unwrap().join().unwrap().payload,
            noise(seq, sizes[seq as usize % 4])
        );
        assert!(delivery.deliveries == 1 && delivery.stream_seq > last_seq);
        last_seq = delivery.stream_seq;
        delivery.ack.ack().unwrap();
    }
    for _ in 1..=200 {
        acks.recv().await.unwrap();
    }
    assert!(subscription.next(Duration::from_millis(200), LIMIT, AHEAD).await.unwrap().is_none());
    drop(subscription);
    let mut again = topic
        .subscribe("g", Some(Start::First), Some(Duration::from_mins(1)), false)
        .await
        .unwrap();
    assert!(again.next(Duration::from_millis(300), LIMIT, AHEAD).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acked_comes_again_whole() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let message = outgoing(ProducerId::random(), 1, 3 * MIB);
    publish(&topic, &message).await.unwrap();
    let mut subscription = topic
        .subscribe("g", Some(Start::First), Some(Duration::from_mins(1)), false)
        .await
        .unwrap();
    let wait = Duration::from_mins(1);
    let first = subscription.next(wait, LIMIT, AHEAD).await.unwrap().unwrap();
    first.ack.nak(Duration::from_millis(50)).unwrap();
    let again = subscription.next(wait, LIMIT, AHEAD).await.unwrap().unwrap();
    assert!(again.deliveries > 1);
    assert_eq!(again.incoming.unwrap().join().unwrap().payload, message.payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_is_stored_once() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let message = outgoing(ProducerId::random(), 1, 3 * MIB);
    let started = Instant::now();
    let first = publish(&topic, &message).await.unwrap();
    assert!(is_new(&first, started));
    let second = publish(&topic, &message).await.unwrap();
    assert!(second.duplicate);
    assert_eq!(first.manifest_seq, second.manifest_seq);
    assert_eq!(topic.last_seq().await.unwrap(), u64::from(first.frames_count));
}

/// FAULTS row 1 in small: kill -9 of the server while publishes are in flight; retried with the
/// same ids, everything acknowledged is there exactly once.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_and_doubles_nothing() {
    kill_while_publishing(false).await;
}

/// Groups as atomic batches: besides, the stream never holds a part of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_and_doubles_no_atomic_group() {
    kill_while_publishing(true).await;
}

async fn kill_while_publishing(atomic: bool) {
    let kills = std::env::var("VECMQ_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let mut server = Server::start(MIB);
    let limits = StreamLimits { atomic, ..limits() };
    let topic = server.connect().await.topic("t", &limits).await.unwrap();
    let producer = ProducerId::random();
    // Few large ones: after a kill the server reads the whole stream again.
    let sizes = [500, 40 << 10, 500, 40 << 10, 500, 2 * MIB + 1];
    let mut acked = Vec::new();
    let mut seq = 0;
    for _ in 0..kills {
        let (sender, mut results) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..60 {
            seq += 1;
            let (own, sender) = (seq, sender.clone());
            let message = outgoing(producer, seq, sizes[seq as usize % 6]);
            topic.publish(
                Publish::new(message, Headers::empty(), Codec::Raw, soon()),
                move |result| {
                    sender.send((own, result)).unwrap();
                },
            );
        }
        tokio::time::sleep(Duration::from_millis(7 * (seq % 11))).await;
        server.kill_and_restart();
        drop(sender);
        while let Some((own, result)) = results.recv().await {
            acked.push((own, result.unwrap().manifest_seq));
        }
    }
    assert_eq!(acked.len(), 60 * kills);
    for (own, manifest_seq) in &acked {
        let id = MessageId { producer, epoch: 1, seq: *own };
        let fetched = topic.fetch(&id, *manifest_seq, LIMIT, false).await;
        let incoming = fetched.unwrap().0.join().unwrap();
        assert_eq!(incoming.payload, noise(*own, sizes[*own as usize % 6]));
    }
    let frames: u64 = acked.iter().map(|(own, _)| frames(sizes[*own as usize % 6])).sum();
    let stored = topic.last_seq().await.unwrap();
    println!("kills {kills}, acknowledged {}, frames {frames}, stored {stored}", acked.len());
    assert_eq!(stored, frames);
}

/// More than the server keeps for a client (`max_pending`); asked for in pieces.
#[tokio::test(flavor = "multi_thread")]
async fn many_large_messages_are_fetched_at_once() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    let mut fetches = Vec::new();
    for seq in 1..=40 {
        let message = outgoing(producer, seq, 5 * MIB);
        let ack = publish(&topic, &message).await.unwrap();
        fetches.push((topic.clone(), message, ack.manifest_seq));
    }
    // One of many frames as well: a single request would bring all of it.
    let huge = outgoing(producer, 41, 100 * MIB);
    let ack = publish(&topic, &huge).await.unwrap();
    fetches.push((topic.clone(), huge, ack.manifest_seq));
    let tasks = fetches.into_iter().map(|(topic, message, manifest_seq)| {
        tokio::spawn(async move {
            let got = topic.fetch(&message.id, manifest_seq, LIMIT, false).await;
            let incoming = got.unwrap().0.join().unwrap();
            assert!(incoming.payload == message.payload);
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// Frames of a message on a server with a `max_payload` of 1 MiB.
fn frames(length: usize) -> u64 {
    if length > MIB { 3 } else { 1 }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_their_code() {
    let server = Server::start(MIB);
    let connection = server.connect().await;
    let full = StreamLimits { bytes_max: Some(200_000), ..limits() };
    let topic = connection.topic("full", &full).await.unwrap();
    let error = publish(&topic, &outgoing(ProducerId::random(), 1, 300_000)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Rejected { .. }), "{error}");
    let small = outgoing(ProducerId::random(), 1, 90_000);
    publish(&topic, &small).await.unwrap();
    let mut kinds = Vec::new();
    for seq in 2..6 {
        let next = outgoing(ProducerId::random(), seq, 90_000);
        kinds.push(publish(&topic, &next).await.err().map(|error| error.kind()));
    }
    assert_eq!(kinds.last(), Some(&Some(ErrorKind::Rejected { code: 10_077 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_frame_is_never_delivered() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let dead = outgoing(ProducerId::random(), 1, 3 * MIB);
    let ack = publish(&topic, &dead).await.unwrap();
    topic.discard(&dead.id).await.unwrap();
    publish(&topic, &outgoing(ProducerId::random(), 2, 100)).await.unwrap();
    let error = topic.fetch(&dead.id, ack.manifest_seq, LIMIT, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete);
    assert_eq!(topic.lookup(&dead.id, 0).await.unwrap(), None);
    let mut subscription = topic
        .subscribe("g", Some(Start::First), Some(Duration::from_mins(1)), false)
        .await
        .unwrap();
    let delivery = subscription.next(Duration::from_mins(1), LIMIT, AHEAD).await.unwrap().unwrap();
    assert_eq!(delivery.id.seq, 2);
    assert!(topic.incomplete_count() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_found_by_its_id() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    let mut acks = Vec::new();
    for seq in 1..=30 {
        acks.push(publish(&topic, &outgoing(producer, seq, 50_000 * seq as usize)).await.unwrap());
    }
    let id = |seq| MessageId { producer, epoch: 1, seq };
    let found = topic.lookup(&id(25), acks[9].manifest_seq).await.unwrap();
    assert_eq!(found, Some(acks[24].manifest_seq));
    assert_eq!(topic.lookup(&id(5), acks[9].manifest_seq).await.unwrap(), None);
    assert_eq!(topic.lookup(&id(31), 0).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_and_wrong_secrets_are_errors_in_time() {
    let mut server = Server::start(MIB);
    let mut options = server.options();
    options.auth = vecmq::nats::Auth::Token("wrong".to_owned());
    options.connect_timeout = Duration::from_secs(10);
    let started = Instant::now();
    let error = Connection::connect(options).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(!error.to_string().contains("wrong"));
    let options = NatsOptions { connect_timeout: Duration::from_secs(10), ..server.options() };
    server.kill();
    assert_eq!(Connection::connect(options).await.err().unwrap().kind(), ErrorKind::NotConnected);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(!format!("{:?}", server.options()).contains("test-token"));
}

/// Publishes once more, with a little time for it: a second attempt begins after 2 s.
async fn publish_late(topic: &JetTopic) -> ErrorKind {
    let deadline = Instant::now() + Duration::from_millis(1500);
    let message = outgoing(ProducerId::random(), 2, 1000);
    let sent = topic.publish_wait(message, Headers::empty(), Codec::Raw, deadline);
    sent.await.unwrap_err().kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_is_sent_and_not_acknowledged_is_unknown_not_failed() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    publish(&topic, &outgoing(ProducerId::random(), 1, 1000)).await.unwrap();
    server.pause();
    assert_eq!(publish_late(&topic).await, ErrorKind::PublishUnknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_without_a_connection_is_not_sent_and_says_so() {
    let mut server = Server::start(MIB);
    let connection = server.connect().await;
    let topic = connection.topic("t", &limits()).await.unwrap();
    publish(&topic, &outgoing(ProducerId::random(), 1, 1000)).await.unwrap();
    server.kill();
    // What is handed over before the client has seen it may be stored, for all it knows.
    while publish_late(&topic).await == ErrorKind::PublishUnknown {}
    assert_eq!(publish_late(&topic).await, ErrorKind::Timeout);
}
