//! Hot paths for `benches/callgrind.py`, which counts their instructions under valgrind.
//!
//! ```text
//! instructions --list    names of the cases and how often each repeats
//! instructions CASE      prepares, warms up, then runs the case inside `counted`
//! instructions           runs every case once
//! ```
//!
//! Only what runs inside [`counted`] is collected: not the payloads, not the first use of a
//! compressor. Nothing here hashes with random keys, reads a clock or starts a thread, so a count
//! is the same in every run. The journal's entries are private to their room and not counted here.

#![expect(clippy::unwrap_used, reason = "a case that cannot run has failed")]

mod common;

use std::hint::black_box;
use std::time::Duration;

use common::{KIB, MIB, Random, dense, outgoing};
use vecmq::frame::{Codec, Frame, Header, Outgoing, Plan, checksum, decode_into, decode_single};
use vecmq::router::{Route, Router, RouterConfig};

/// Prepares, then runs inside [`counted`] as often as it is told.
type Case = fn(u32);

/// Names, repeats and cases. Repeats are few where one takes long.
const CASES: [(&str, u32, Case); 10] = [
    ("header_encode", 1000, header_encode),
    ("header_decode", 1000, header_decode),
    ("header_to_fields", 1000, header_to_fields),
    ("header_from_fields", 1000, header_from_fields),
    ("checksum_1MiB", 10, checksum_1mib),
    ("frame_raw_1MiB", 10, frame_raw_1mib),
    ("frame_planes_1MiB", 1, frame_planes_1mib),
    ("decode_planes_1MiB", 1, decode_planes_1mib),
    ("decode_single_1KiB", 1000, decode_single_1kib),
    ("router_choose_observe", 1000, router_choose_observe),
];

#[expect(clippy::print_stdout, reason = "the list is the result")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // cargo bench adds --bench, to a filter or options that are meant for criterion.
    let is_cargo = arguments.iter().any(|argument| argument == "--bench");
    match arguments.first().map(String::as_str).filter(|_| !is_cargo) {
        None => {
            for (_, _, case) in CASES {
                case(1);
            }
        }
        Some("--list") => {
            for (name, repeats, _) in CASES {
                println!("{name} {repeats}");
            }
        }
        Some(wanted) => {
            let found = CASES.into_iter().find(|(name, ..)| *name == wanted);
            let (_, repeats, case) = found.unwrap_or_else(|| panic!("no case {wanted:?}"));
            case(repeats);
        }
    }
}

/// The function that callgrind watches: by its name, so it has to stay one.
#[inline(never)]
fn counted<R>(repeats: u32, mut work: impl FnMut() -> R) {
    for _ in 0..repeats {
        black_box(work());
    }
}

fn message_of(size_bytes: usize) -> Outgoing {
    outgoing(dense(size_bytes))
}

/// Plan and only frame, as a publisher makes them.
fn frame_of(message: &Outgoing, codec: Codec) -> Frame {
    let plan = Plan::new(message.payload.len() as u64, 4, 1 << 20).unwrap();
    message.frame(&plan, 0, codec).unwrap()
}

fn header_encode(repeats: u32) {
    let header = frame_of(&message_of(KIB), Codec::Raw).header;
    let mut out = Vec::with_capacity(256);
    counted(repeats, || {
        out.clear();
        black_box(&header).encode(&mut out);
        black_box(out.len())
    });
}

fn header_decode(repeats: u32) {
    let header = frame_of(&message_of(KIB), Codec::Raw).header;
    let mut binary = Vec::new();
    header.encode(&mut binary);
    assert_eq!(Header::decode(&binary).unwrap(), (header, binary.len()));
    counted(repeats, || Header::decode(black_box(&binary)).unwrap());
}

fn header_to_fields(repeats: u32) {
    let header = frame_of(&message_of(KIB), Codec::Raw).header;
    counted(repeats, || black_box(&header).to_fields());
}

fn header_from_fields(repeats: u32) {
    let header = frame_of(&message_of(KIB), Codec::Raw).header;
    let fields = header.to_fields();
    let field = |key: &str| fields.iter().find(|(name, _)| *name == key).map(|(_, v)| v.as_str());
    assert_eq!(Header::from_fields(field).unwrap(), Some(header));
    counted(repeats, || Header::from_fields(field).unwrap());
}

fn checksum_1mib(repeats: u32) {
    let payload = dense(MIB);
    black_box(checksum(&payload));
    counted(repeats, || checksum(black_box(&payload)));
}

fn frame_raw_1mib(repeats: u32) {
    let message = message_of(MIB);
    assert_eq!(frame_of(&message, Codec::Raw).body, message.payload);
    counted(repeats, || frame_of(black_box(&message), Codec::Raw));
}

fn frame_planes_1mib(repeats: u32) {
    let message = message_of(MIB);
    assert_eq!(frame_of(&message, Codec::Planes).header.codec, Codec::Planes);
    counted(repeats, || frame_of(black_box(&message), Codec::Planes));
}

fn decode_planes_1mib(repeats: u32) {
    let message = message_of(MIB);
    let frame = frame_of(&message, Codec::Planes);
    let mut out = vec![0; MIB];
    decode_into(Codec::Planes, 4, &frame.body, &mut out).unwrap();
    assert_eq!(out, message.payload);
    counted(repeats, || decode_into(Codec::Planes, 4, black_box(&frame.body), &mut out).unwrap());
}

fn decode_single_1kib(repeats: u32) {
    let message = message_of(KIB);
    let frame = frame_of(&message, Codec::Raw);
    let incoming = decode_single(&frame.header, &frame.body, 1 << 30).unwrap();
    assert_eq!(incoming.payload, message.payload);
    counted(repeats, || decode_single(&frame.header, black_box(&frame.body), 1 << 30).unwrap());
}

/// Sizes around the threshold: some are probes, and some move it.
fn router_choose_observe(repeats: u32) {
    let mut router = Router::new(RouterConfig::default()).unwrap();
    let mut random = Random::new(4);
    let sizes: Vec<u64> = (0..1024).map(|_| 1 << (10 + random.next() % 14)).collect();
    let mut now = Duration::ZERO;
    let mut step = |size_bytes: u64| {
        let route = router.choose(size_bytes).route;
        let cost = match route {
            Route::Queue => Duration::from_nanos(4_000 + size_bytes * 2),
            Route::Nats => Duration::from_nanos(135_072 + size_bytes),
        };
        now += Duration::from_micros(10);
        router.observe(route, size_bytes, cost, now)
    };
    for size_bytes in &sizes {
        step(*size_bytes);
    }
    let mut next = sizes.iter().cycle();
    counted(repeats, || step(*next.next().unwrap()));
}
