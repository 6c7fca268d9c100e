//! A raw payload reaches the socket without a copy: shown by address, and by counting allocations.

#![cfg(feature = "nats")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, reason = "the counts are the result")]

mod common;

use common::{Server, limits, outgoing, soon};
use vecmq::frame::{Codec, Headers, Outgoing, Plan, ProducerId};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const PAYLOAD_BYTES: usize = 64 << 20;

/// Everything that publishing 64 MiB allocates, on every thread of the process, is far less than
/// one copy of a single frame. One test in this file: the allocator counts for the whole process.
#[test]
fn publishing_raw_allocates_a_small_share_of_the_payload() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = Server::start(8 << 20);
    let topic = runtime.block_on(async {
        let topic = server.connect().await.topic("t", &limits()).await.unwrap();
        let first = outgoing(ProducerId::random(), 1, 1 << 20);
        topic.publish_wait(first, Headers::empty(), Codec::Raw, soon()).await.unwrap();
        topic
    });
    let message = outgoing(ProducerId::random(), 2, PAYLOAD_BYTES);
    check_addresses(&message);
    let profiler = dhat::Profiler::builder().testing().build();
    let ack = runtime.block_on(async {
        let sent = topic.publish_wait(message.clone(), Headers::empty(), Codec::Raw, soon());
        sent.await.unwrap()
    });
    let allocated = dhat::HeapStats::get().total_bytes;
    drop(profiler);
    println!("{} frames, {allocated} bytes allocated for {PAYLOAD_BYTES}", ack.frames_count);
    assert!(ack.frames_count >= 64);
    assert!(allocated < (1 << 20), "{allocated} bytes");
}

/// Every raw frame is a slice of the payload's memory.
fn check_addresses(message: &Outgoing) {
    let plan = Plan::new(PAYLOAD_BYTES as u64, 4, 1 << 20).unwrap();
    let mut address = message.payload.as_ptr().addr();
    for index in 0..plan.count {
        let frame = message.frame(&plan, index, Codec::Raw).unwrap();
        assert_eq!(frame.body.as_ptr().addr(), address);
        address += frame.body.len();
    }
    assert_eq!(address, message.payload.as_ptr().addr() + PAYLOAD_BYTES);
}
