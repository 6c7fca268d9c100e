//! Receiving over the NATS route against a real nats-server.

#![cfg(feature = "nats")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::Duration;

use common::{Server, limits, outgoing, soon};
use vecmq::ErrorKind;
use vecmq::frame::{Codec, Headers, Outgoing, ProducerId};
use vecmq::nats::{Delivery, JetSubscription, JetTopic, Place, Start};

const MIB: usize = 1 << 20;
const LIMIT: u64 = 1 << 30;
const AHEAD: u64 = 32 << 20;
const WAIT: Duration = Duration::from_mins(1);
/// An ack wait that passes in a test, and that a busy machine keeps: what is held is told to be in
/// work every third of it.
const SOON: Duration = Duration::from_secs(3);

async fn publish(topic: &JetTopic, message: Outgoing) -> u64 {
    let sent = topic.publish_wait(message, Headers::empty(), Codec::Raw, soon());
    sent.await.unwrap().manifest_seq
}

async fn join(topic: &JetTopic, ack_wait: Duration) -> JetSubscription {
    topic.subscribe("g", Some(Start::First), Some(ack_wait), false).await.unwrap()
}

async fn next(subscription: &mut JetSubscription) -> Delivery {
    subscription.next(WAIT, LIMIT, AHEAD).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_an_error_in_its_place() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    for (seq, size) in (1..).zip([100, 3 * MIB, 200]) {
        publish(&topic, outgoing(producer, seq, size)).await;
    }
    let mut subscription = join(&topic, WAIT).await;
    let mut kinds = Vec::new();
    for seq in 1..=3 {
        let delivery = subscription.next(WAIT, MIB as u64, AHEAD).await.unwrap().unwrap();
        assert_eq!(delivery.id.seq, seq);
        kinds.push(delivery.incoming.err().map(|error| error.kind()));
    }
    assert_eq!(kinds, [None, Some(ErrorKind::TooLarge), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_not_delivered_again_and_what_is_given_back_is_at_once() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    for seq in 1..=40 {
        publish(&topic, outgoing(producer, seq, if seq % 8 == 0 { 2 * MIB } else { 500 })).await;
    }
    let mut first = join(&topic, SOON).await;
    let held = next(&mut first).await;
    let mut second = join(&topic, SOON).await;
    // Long enough for all of it to come again, were it not held.
    assert!(tokio::time::timeout(2 * SOON, first.wait()).await.is_err());
    assert!(second.next(SOON, LIMIT, AHEAD).await.unwrap().is_none());
    held.ack.ack().unwrap();
    drop(held);
    first.give_back().await;
    let mut seqs = Vec::new();
    for _ in 2..=40 {
        let delivery = next(&mut second).await;
        assert!(delivery.incoming.unwrap().size_bytes() >= 500);
        delivery.ack.ack().unwrap();
        seqs.push(delivery.id.seq);
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (2..=40).collect::<Vec<_>>());
    topic.flush_acks().await;
    tokio::time::sleep(2 * SOON).await;
    assert!(second.next(SOON, LIMIT, AHEAD).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_message_does_not_come_again() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    publish(&topic, outgoing(ProducerId::random(), 1, 100)).await;
    let mut subscription = join(&topic, SOON).await;
    next(&mut subscription).await.ack.term().unwrap();
    assert!(subscription.next(3 * SOON, LIMIT, AHEAD).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_group_begins_anew_and_its_readers_are_told() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    let mut stored = Vec::new();
    for seq in 1..=6 {
        stored.push(publish(&topic, outgoing(producer, seq, 2 * MIB)).await);
    }
    let mut before = join(&topic, WAIT).await;
    for _ in 1..=6 {
        next(&mut before).await.ack.ack().unwrap();
    }
    let third = *stored.get(2).unwrap();
    topic.move_group("g", Place::Seq(third)).await.unwrap();
    let told = before.next(WAIT, LIMIT, AHEAD).await.err().unwrap();
    assert_eq!(told.kind(), ErrorKind::GroupNotFound);
    let mut after = topic.subscribe("g", None, None, false).await.unwrap();
    assert_ne!(after.born(), before.born());
    let delivery = next(&mut after).await;
    assert_eq!((delivery.stream_seq, delivery.id.seq), (third, 3));
    assert_eq!(topic.next_message(third + 1).await.unwrap(), Some((*stored.get(3).unwrap(), 1)));
    let missing = topic.subscribe("other", None, None, false).await.err().unwrap();
    assert_eq!(missing.kind(), ErrorKind::GroupNotFound);
}

/// A sweep touches nothing that is whole, however old.
#[tokio::test(flavor = "multi_thread")]
async fn whole_groups_are_not_swept() {
    let server = Server::start(MIB);
    let topic = server.connect().await.topic("t", &limits()).await.unwrap();
    let producer = ProducerId::random();
    let mut whole = Vec::new();
    for seq in 1..=5 {
        let message = outgoing(producer, seq, 3 * MIB);
        whole.push((message.id, publish(&topic, message).await));
    }
    for _ in 0..2 {
        assert_eq!(topic.sweep(Duration::ZERO).await.unwrap(), 0);
    }
    for (id, manifest_seq) in whole {
        topic.fetch(&id, manifest_seq, LIMIT, false).await.unwrap();
    }
}
