//! Golden frames: what a released version wrote, every later one reads.
//!
//! The files in `tests/vectors` were written by `write_vectors` and are never written again; a new
//! wire version, and codecs that came later, get a file of their own. The pure-Python reader is
//! held to the same files.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Value, json};
use vecmq::frame::{
    Assembly, Codec, Coding, Header, Layout, MessageId, Outgoing, Plan, ProducerId,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/frames-v1.json");
/// pk3, lz4 and levels of zstd.
const CODECS_FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/frames-v1-codecs.json");
const LIMIT: u64 = 1 << 20;

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Float32 values with one exponent: planes make them smaller, zstd hardly.
fn floats(count: u32) -> Vec<u8> {
    let noise = |i: u32| i.wrapping_mul(2_654_435_761) >> 9;
    (0..count).flat_map(|i| (noise(i) | 0x3F80_0000).to_le_bytes()).collect()
}

/// Float32 values of many scales, each half as often as the one above.
fn scales(count: u32) -> Vec<u8> {
    let noise = |i: u32| i.wrapping_mul(2_654_435_761) ^ i.wrapping_mul(0x9E37) >> 3;
    let float = |n: u32| n & 0x807F_FFFF | (127 - (n >> 8).trailing_zeros().min(20)) << 23;
    (1..=count).flat_map(|i| float(noise(i)).to_le_bytes()).collect()
}

/// The upper halves of [`scales`]: bfloat16.
fn scales16(count: u32) -> Vec<u8> {
    scales(count).chunks(4).flat_map(|float| float[2..].to_vec()).collect()
}

/// Name, message, how it is coded, bytes of a chunk.
type Case = (&'static str, Outgoing, Coding, u32);

fn case(
    name: &'static str,
    seq: u64,
    rows: u32,
    layout: Option<(&str, u16, Vec<u64>)>,
    payload: Vec<u8>,
    coding: impl Into<Coding>,
    chunk: u32,
) -> Case {
    let id = MessageId { producer: ProducerId(*b"0123456789abcdef"), epoch: 3, seq };
    let layout = layout.map(|(name, size, shape)| Layout::new(name, size, shape).unwrap());
    (name, Outgoing { id, rows, layout, payload: Bytes::from(payload) }, coding.into(), chunk)
}

fn codec_cases() -> Vec<Case> {
    let (pk3, lz4) = (Codec::Pk3, Codec::Lz4);
    let f4 = |shape| Some(("float32", 4, shape));
    let b2 = |shape| Some(("bfloat16", 2, shape));
    let text = b"a frame is a header and a coded chunk; ".repeat(20);
    vec![
        case("pk3", 1, 1, f4(vec![2, 256]), scales(512), pk3, 4096),
        case("pk3, a short group", 2, 1, f4(vec![300]), scales(300), pk3, 4096),
        case("pk3, 100 elements", 3, 1, f4(vec![100]), scales(100), pk3, 4096),
        case("pk3 bfloat16", 4, 1, b2(vec![3, 133]), scales16(399), pk3, 4096),
        case("pk3 group", 5, 1, b2(vec![700]), scales16(700), pk3, 560),
        case("pk3 does not shrink", 6, 1, f4(vec![1]), scales(1), pk3, 560),
        case("lz4", 7, 1, None, vec![0; 900], lz4, 1000),
        case("lz4 text", 8, 1, None, text.clone(), lz4, 1000),
        case("lz4 group", 9, 1, None, text.clone(), lz4, 300),
        case("zstd level 19", 10, 1, None, text, Coding::zstd(19).unwrap(), 1000),
    ]
}

fn cases() -> Vec<Case> {
    let (raw, zstd1, planes) = (Codec::Raw, Codec::Zstd1, Codec::Planes);
    let f4 = |shape| Some(("float32", 4, shape));
    let zeros = |count| vec![0; count];
    vec![
        case("plain bytes", 1, 1, None, b"hello, frames".to_vec(), raw, 1000),
        case("empty bytes", 2, 1, None, Vec::new(), raw, 1000),
        case("empty array", 3, 1, f4(vec![0, 8]), Vec::new(), raw, 1000),
        case("scalar", 4, 1, Some(("float64", 8, vec![])), 1.5_f64.to_le_bytes().into(), raw, 1000),
        case("matrix", 5, 1, f4(vec![5, 8]), floats(40), raw, 1000),
        case("group of 3", 6, 1, f4(vec![10, 8]), floats(80), raw, 128),
        case("packed rows", 7, 4, f4(vec![4, 6]), floats(24), raw, 1000),
        case("bfloat16", 11, 1, Some(("bfloat16", 2, vec![3, 2])), floats(3), raw, 1000),
        case("zstd1", 12, 1, None, zeros(900), zstd1, 1000),
        case("planes", 13, 1, f4(vec![200]), floats(200), planes, 1000),
        case("planes group", 14, 1, f4(vec![2, 200]), floats(400), planes, 800),
        case("planes, constant", 15, 1, Some(("float64", 8, vec![40])), zeros(320), planes, 1000),
        case("largest numbers", u64::MAX, 1, None, b"x".to_vec(), raw, 1000),
    ]
}

fn frames(message: &Outgoing, coding: Coding, chunk: u32) -> Vec<Value> {
    let itemsize = message.layout.as_ref().map_or(1, Layout::itemsize);
    let plan = Plan::new(message.payload.len() as u64, itemsize, chunk).unwrap();
    let frame = |index| {
        let frame = message.frame(&plan, index, coding).unwrap();
        let mut header = Vec::new();
        frame.header.encode(&mut header);
        let fields: HashMap<_, _> = frame.header.to_fields().into_iter().collect();
        json!({"header": hex(&header), "body": hex(&frame.body), "fields": fields})
    };
    (0..plan.count).map(frame).collect()
}

#[test]
#[ignore = "writes the golden files that are not there"]
fn write_vectors() {
    for (file, cases) in [(FILE, cases()), (CODECS_FILE, codec_cases())] {
        if !std::fs::exists(file).unwrap() {
            write(file, cases);
        }
    }
}

fn write(file: &str, cases: Vec<Case>) {
    let cases: Vec<Value> = cases
        .into_iter()
        .map(|(name, message, coding, chunk)| {
            json!({
                "name": name,
                "id": message.id.to_string(),
                "rows": message.rows,
                "dtype": message.layout.as_ref().map(Layout::dtype),
                "shape": message.layout.as_ref().map(Layout::shape),
                "payload": hex(&message.payload),
                "frames": frames(&message, coding, chunk),
            })
        })
        .collect();
    std::fs::write(file, serde_json::to_string_pretty(&cases).unwrap() + "\n").unwrap();
}

fn golden(file: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn golden_frames_are_read() {
    assert_eq!(golden(FILE).len(), cases().len());
    assert_eq!(golden(CODECS_FILE).len(), codec_cases().len());
    for case in golden(FILE).iter().chain(&golden(CODECS_FILE)) {
        let mut assembly: Option<Assembly> = None;
        for frame in case["frames"].as_array().unwrap() {
            let binary = unhex(&frame["header"]);
            let (header, taken) = Header::decode(&binary).unwrap();
            assert_eq!(taken, binary.len());
            let text = Header::from_fields(|name| frame["fields"][name].as_str()).unwrap();
            assert_eq!(text.as_ref(), Some(&header));
            let group = match &mut assembly {
                Some(group) => group,
                None => assembly.insert(Assembly::new(&header, LIMIT).unwrap()),
            };
            group.accept(&header, &unhex(&frame["body"])).unwrap();
        }
        let incoming = assembly.unwrap().finish().unwrap();
        assert_eq!(incoming.payload, unhex(&case["payload"]), "{}", case["name"]);
        assert_eq!(incoming.id.to_string(), case["id"].as_str().unwrap());
        assert_eq!(u64::from(incoming.rows), case["rows"].as_u64().unwrap());
        assert_eq!(incoming.layout.as_ref().map(Layout::dtype), case["dtype"].as_str());
    }
}

/// What has no freedom (headers, raw bodies, packed exponents) is written today as it was then.
#[test]
fn headers_and_raw_frames_are_written_as_ever() {
    for (file, cases) in [(FILE, cases()), (CODECS_FILE, codec_cases())] {
        for ((name, message, coding, chunk), case) in cases.into_iter().zip(golden(file)) {
            if coding == Codec::Raw || coding == Codec::Pk3 {
                assert_eq!(Value::Array(frames(&message, coding, chunk)), case["frames"], "{name}");
            }
        }
    }
}
