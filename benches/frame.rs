//! The frame: header, plan, checksum, codecs, assembly. One thread, no IO.
//!
//! Throughput is in bytes of the payload; of headers in their own bytes, of plans in chunks. Each
//! case checks once, before the clock starts, that what it makes decodes to what went in.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has failed")]

mod common;

use std::hint::black_box;

use bytes::Bytes;
use common::{KIB, MIB, dense, outgoing, sparse};
use criterion::{BenchmarkId, Criterion, Throughput};
use vecmq::frame::{
    Assembler, CHUNK_BYTES_MAX, Codec, Frame, Header, Incoming, Plan, checksum, decode_into,
    decode_single,
};

const SIZES: [usize; 3] = [KIB, 64 * KIB, MIB];
const LIMIT_BYTES: u64 = 1 << 30;

fn main() {
    let mut criterion = common::criterion();
    headers(&mut criterion);
    plans(&mut criterion);
    checksums(&mut criterion);
    codecs(&mut criterion);
    assembly(&mut criterion);
    criterion.final_summary();
}

fn bytes(count: usize) -> Throughput {
    Throughput::Bytes(count as u64)
}

/// A message of one frame.
fn single(payload: Bytes, codec: Codec) -> Frame {
    let message = outgoing(payload);
    let plan = Plan::new(message.payload.len() as u64, 4, CHUNK_BYTES_MAX).unwrap();
    message.frame(&plan, 0, codec).unwrap()
}

/// Binary in the journal, text on NATS.
fn headers(criterion: &mut Criterion) {
    let header = single(dense(KIB), Codec::Raw).header;
    let mut binary = Vec::new();
    header.encode(&mut binary);
    assert_eq!(Header::decode(&binary).unwrap(), (header.clone(), binary.len()));
    let fields = header.to_fields();
    let field = |key: &str| fields.iter().find(|(name, _)| *name == key).map(|(_, v)| v.as_str());
    assert_eq!(Header::from_fields(field).unwrap().as_ref(), Some(&header));

    let mut group = criterion.benchmark_group("header");
    group.throughput(bytes(binary.len()));
    let mut out = Vec::with_capacity(binary.len());
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&header).encode(&mut out);
            black_box(&out);
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Header::decode(black_box(&binary)).unwrap());
    });
    group.throughput(bytes(fields.iter().map(|(key, value)| key.len() + value.len()).sum()));
    group.bench_function("to_fields", |bencher| bencher.iter(|| black_box(&header).to_fields()));
    group.bench_function("from_fields", |bencher| {
        bencher.iter(|| Header::from_fields(black_box(field)).unwrap());
    });
    group.finish();
}

/// Where 64 chunks of 1 MiB begin and end.
fn plans(criterion: &mut Criterion) {
    let walk = |total_bytes: usize| {
        let plan = Plan::new(total_bytes as u64, 4, 1 << 20).unwrap();
        (0..plan.count).map(|index| plan.chunk(index).len()).sum::<usize>()
    };
    assert_eq!(walk(64 * MIB), 64 * MIB);
    let mut group = criterion.benchmark_group("plan");
    group.throughput(Throughput::Elements(64));
    group.bench_function("64_chunks_of_1MiB", |bencher| bencher.iter(|| walk(black_box(64 * MIB))));
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for size in SIZES {
        let payload = dense(size);
        group.throughput(bytes(size));
        group.bench_with_input(BenchmarkId::from_parameter(size), &payload, |bencher, payload| {
            bencher.iter(|| checksum(black_box(payload)));
        });
    }
    group.finish();
}

/// Payload -> frame (codec and checksum), and body -> payload bytes in place. zstd1 gets the sparse
/// floats that it is for, the others dense ones.
fn codecs(criterion: &mut Criterion) {
    for codec in [Codec::Raw, Codec::Zstd1, Codec::Planes, Codec::Pk3] {
        let payloads = SIZES.map(if codec == Codec::Zstd1 { sparse } else { dense });
        let mut group = criterion.benchmark_group(format!("encode/{}", codec.name()));
        for payload in &payloads {
            let message = outgoing(payload.clone());
            let plan = Plan::new(payload.len() as u64, 4, CHUNK_BYTES_MAX).unwrap();
            group.throughput(bytes(payload.len()));
            let id = BenchmarkId::from_parameter(payload.len());
            group.bench_with_input(id, &message, |bencher, message| {
                bencher.iter(|| message.frame(black_box(&plan), 0, codec).unwrap());
            });
        }
        group.finish();
        let mut group = criterion.benchmark_group(format!("decode/{}", codec.name()));
        for payload in &payloads {
            // A chunk that does not shrink goes raw, and is decoded as such.
            let frame = single(payload.clone(), codec);
            let mut out = vec![0; payload.len()];
            decode_into(frame.header.codec, 4, &frame.body, &mut out).unwrap();
            assert_eq!(Bytes::copy_from_slice(&out), payload);
            group.throughput(bytes(payload.len()));
            let id = BenchmarkId::from_parameter(payload.len());
            group.bench_with_input(id, &frame, |bencher, frame| {
                bencher.iter(|| {
                    decode_into(frame.header.codec, 4, black_box(&frame.body), &mut out).unwrap();
                });
            });
        }
        group.finish();
    }
}

fn assemble(frames: &[Frame]) -> Incoming {
    let mut assembler = Assembler::new(LIMIT_BYTES);
    let mut whole = None;
    for frame in frames {
        whole = assembler.accept(&frame.header, &frame.body).unwrap();
    }
    whole.unwrap()
}

/// Raw frames -> one aligned message, checksums verified: the reader's part without the network.
fn assembly(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("assemble");
    for size in [KIB, MIB] {
        let payload = dense(size);
        let frame = single(payload.clone(), Codec::Raw);
        assert_eq!(
            decode_single(&frame.header, &frame.body, LIMIT_BYTES).unwrap().payload,
            payload
        );
        group.throughput(bytes(size));
        group.bench_with_input(BenchmarkId::new("single", size), &frame, |bencher, frame| {
            bencher.iter(|| decode_single(&frame.header, black_box(&frame.body), LIMIT_BYTES));
        });
    }
    let message = outgoing(dense(16 * MIB));
    let plan = Plan::new(16 << 20, 4, 1 << 20).unwrap();
    let frames: Vec<Frame> =
        (0..plan.count).map(|index| message.frame(&plan, index, Codec::Raw).unwrap()).collect();
    assert_eq!(assemble(&frames).payload, message.payload);
    group.throughput(bytes(16 * MIB));
    group.sample_size(20);
    group.bench_function("16_frames_of_1MiB", |bencher| bencher.iter(|| assemble(&frames)));
    group.finish();
}
