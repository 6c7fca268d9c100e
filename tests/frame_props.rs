//! decode(encode(x)) = x, and nothing that comes in makes the decoder panic or allocate unchecked.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use proptest::prelude::*;
use vecmq::ErrorKind;
use vecmq::frame::{
    Assembler, Assembly, Codec, Coding, Frame, Header, Headers, Layout, MessageId, Outgoing, Plan,
    ProducerId, checksum, decode_into, encode,
};

const LIMIT: u64 = 1 << 30;

fn codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(Codec::ALL.to_vec())
}

/// Bytes of the kinds that vectors have: noise, floats of one scale, one value, mostly zeros,
/// floats and bfloat16 of many scales.
fn content() -> impl Strategy<Value = (u8, u64)> {
    (0_u8..6, any::<u64>())
}

fn fill((kind, seed): (u8, u64), length: usize) -> Bytes {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        let word = next();
        match kind {
            0 => out.extend_from_slice(&word.to_le_bytes()),
            // float32 between 1 and 2: one exponent, a noisy mantissa.
            1 => {
                let mantissa = u32::try_from(word & 0x007F_FFFF).unwrap();
                out.extend_from_slice(&(mantissa | 0x3F80_0000).to_le_bytes());
            }
            2 => out.push(7),
            3 => out.push(u8::from(word % 50 == 0)),
            // Exponents as normal values have them: each half as often as the one above.
            _ => {
                let sign = u32::try_from(word >> 63).unwrap();
                let mantissa = u32::try_from(word >> 32 & 0x007F_FFFF).unwrap();
                let exponent = 127 - (word | 1 << 40).trailing_zeros();
                let float = (sign << 31 | exponent << 23 | mantissa).to_le_bytes();
                out.extend_from_slice(if kind == 4 { &float } else { &float[2..] });
            }
        }
    }
    out.truncate(length);
    Bytes::from(out)
}

/// A message with a layout of 0 to 5 dimensions, or of plain bytes.
fn message() -> impl Strategy<Value = Outgoing> {
    let shape = prop::collection::vec(0_u64..12, 0..=5);
    let itemsize = prop_oneof![Just(1_u16), Just(2), Just(3), Just(4), Just(8), Just(16)];
    let layout = prop::option::of((shape, itemsize));
    let id = (any::<[u8; 16]>(), any::<u32>(), any::<u64>());
    (layout, 0_usize..300_000, content(), id).prop_map(|(layout, length, content, id)| {
        let id = MessageId { producer: ProducerId(id.0), epoch: id.1, seq: id.2 };
        let layout = layout.map(|(shape, size)| Layout::new("dtype", size, shape).unwrap());
        let length =
            layout.as_ref().map_or(length, |l| usize::try_from(l.bytes().unwrap()).unwrap());
        Outgoing { id, rows: 1, layout, payload: fill(content, length) }
    })
}

fn frames(message: &Outgoing, chunk_bytes_max: u32, codec: Codec) -> Vec<Frame> {
    let itemsize = message.layout.as_ref().map_or(1, Layout::itemsize);
    let plan = Plan::new(message.payload.len() as u64, itemsize, chunk_bytes_max).unwrap();
    (0..plan.count).map(|index| message.frame(&plan, index, codec).unwrap()).collect()
}

proptest! {
    #[test]
    fn a_message_survives_any_codec_cut_order_and_repetition(
        message in message(),
        chunk_bytes_max in 16_u32..100_000,
        codec in codec(),
        order in any::<u64>(),
    ) {
        let chunk_bytes_max = chunk_bytes_max.max(
            u32::try_from(message.payload.len() / 60_000).unwrap() + 16);
        let mut frames = frames(&message, chunk_bytes_max, codec);
        let count = frames.len();
        // A rotation and a swap: any frame may come first, and some come twice.
        frames.rotate_left(usize::try_from(order % count as u64).unwrap());
        let repeated = frames[..count.min(3)].to_vec();
        let mut assembly = Assembly::new(&frames[0].header, LIMIT).unwrap();
        let mut done = false;
        for frame in repeated.iter().chain(&frames) {
            done = assembly.accept(&frame.header, &frame.body).unwrap();
        }
        prop_assert!(done);
        let incoming = assembly.finish().unwrap();
        prop_assert_eq!(&incoming.payload, &message.payload);
        prop_assert_eq!(incoming.layout, message.layout);
        prop_assert_eq!(incoming.id, message.id);
        prop_assert_eq!(incoming.payload.as_ptr().addr() % 64, 0);
    }

    #[test]
    fn a_lost_frame_is_noticed(message in message(), codec in codec(), lost in any::<u64>()) {
        let chunk = u32::try_from(message.payload.len() / 7 + 16).unwrap();
        let mut frames = frames(&message, chunk, codec);
        let lost = usize::try_from(lost % frames.len() as u64).unwrap();
        frames.remove(lost);
        // Of a message in one frame nothing is left that could be taken for a message.
        let Some(first) = frames.first() else { return Ok(()) };
        let mut assembly = Assembly::new(&first.header, LIMIT).unwrap();
        for frame in &frames {
            prop_assert!(!assembly.accept(&frame.header, &frame.body).unwrap());
        }
        prop_assert_eq!(assembly.finish().unwrap_err().kind(), ErrorKind::Incomplete);
    }

    #[test]
    fn interleaved_groups_do_not_mix(one in message(), other in message(), codec in codec()) {
        prop_assume!(one.id != other.id);
        let chunk = |m: &Outgoing| u32::try_from(m.payload.len() / 5 + 16).unwrap();
        let mine = frames(&one, chunk(&one), codec);
        let theirs = frames(&other, chunk(&other), codec);
        let mut alone = Assembly::new(&mine[0].header, LIMIT).unwrap();
        prop_assert_eq!(
            alone.accept(&theirs[0].header, &theirs[0].body).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        let mut assembler = Assembler::new(LIMIT);
        let mut got = HashMap::new();
        for index in 0..mine.len().max(theirs.len()) {
            for frame in [mine.get(index), theirs.get(index)].into_iter().flatten() {
                if let Some(whole) = assembler.accept(&frame.header, &frame.body).unwrap() {
                    got.insert(whole.id, whole.payload);
                }
            }
        }
        prop_assert_eq!(assembler.groups_count(), 0);
        prop_assert_eq!(&got[&one.id], &one.payload);
        prop_assert_eq!(&got[&other.id], &other.payload);
    }

    #[test]
    fn headers_survive_both_forms(message in message(), codec in codec()) {
        for frame in frames(&message, 100_000, codec) {
            let mut binary = vec![];
            frame.header.encode(&mut binary);
            binary.extend_from_slice(b"body");
            let (read, taken) = Header::decode(&binary).unwrap();
            prop_assert_eq!(&read, &frame.header);
            prop_assert_eq!(&binary[taken..], b"body");
            let fields: HashMap<_, _> = frame.header.to_fields().into_iter().collect();
            let read = Header::from_fields(|name| fields.get(name).map(String::as_str)).unwrap();
            prop_assert_eq!(read, Some(frame.header));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_header_is_refused(message in message()) {
        let frame = &frames(&message, 100_000, Codec::Raw)[0];
        let mut binary = vec![];
        frame.header.encode(&mut binary);
        for bit in 0..binary.len() * 8 {
            binary[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&binary).is_err(), "bit {}", bit);
            binary[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..binary.len() {
            prop_assert!(Header::decode(&binary[..length]).is_err(), "length {}", length);
        }
    }

    /// Checksums keep out accidents, not forgers: these headers carry right ones.
    #[test]
    fn forged_headers_never_panic_and_both_forms_agree(
        (rows, index, count) in (edge32(), edge32(), edge32()),
        (total_bytes, offset, chunk_bytes) in (edge64(), edge64(), edge32()),
        layout in prop::option::of((1_u16..9, prop::collection::vec(edge64(), 0..4))),
    ) {
        let layout = layout.and_then(|(size, shape)| Layout::new("int8", size, shape).ok());
        let header = forged(|h| *h = Header {
            rows, index, count, total_bytes, offset, chunk_bytes, layout, ..h.clone()
        });
        let mut binary = vec![];
        header.encode(&mut binary);
        let read = Header::decode(&binary).map(|(header, _)| header).map_err(|e| e.kind());
        let fields: HashMap<_, _> = header.to_fields().into_iter().collect();
        let text = Header::from_fields(|name| fields.get(name).map(String::as_str));
        prop_assert_eq!(&read, &text.map(Option::unwrap).map_err(|e| e.kind()));
        prop_assert_eq!(read.is_ok(), header.validate().is_ok());
        if read.is_ok() {
            prop_assert!(index < count && u64::from(count) <= total_bytes.max(1));
            prop_assert!(offset + u64::from(chunk_bytes) <= total_bytes);
        }
    }

    #[test]
    fn groups_are_whole_or_refused_whatever_comes(
        steps in prop::collection::vec((0_usize..3, any::<u8>(), 0_u8..8), 0..120),
        content in content(),
    ) {
        let mut model = Model::new(content);
        for (group, index, action) in steps {
            model.step(group, usize::from(index), action);
        }
        model.end();
    }

    #[test]
    fn a_damaged_body_is_refused(
        message in message(), codec in codec(), place in any::<u64>(), bit in 0_u8..8,
    ) {
        let frame = &frames(&message, 400_000, codec)[0];
        let mut body = frame.body.to_vec();
        if body.is_empty() {
            return Ok(());
        }
        let place = usize::try_from(place % body.len() as u64).unwrap();
        body[place] ^= 1 << bit;
        let mut assembly = Assembly::new(&frame.header, LIMIT).unwrap();
        match assembly.accept(&frame.header, &body) {
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Corrupt),
            // A match of zstd may lie in two places that are alike: what it decodes to is right all
            // the same.
            Ok(done) => {
                prop_assert!(done);
                prop_assert!(matches!(frame.header.codec, Codec::Zstd1 | Codec::Planes));
                prop_assert_eq!(assembly.finish().unwrap().payload, message.payload.clone());
            }
        }
        prop_assert!(Assembly::new(&frame.header, LIMIT).unwrap()
            .accept(&frame.header, &frame.body[..place]).is_err());
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        codec in codec(),
        itemsize in 0_u16..20,
        length in 0_usize..3000,
    ) {
        let _ = Header::decode(&bytes);
        let mut out = vec![0; length];
        let _ = decode_into(codec, itemsize, &bytes, &mut out);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = Header::from_fields(|_| Some(&text));
    }

    #[test]
    fn random_fields_never_panic(frame in "[0-9a-z;(),]{0,200}", shape in "[0-9,()]{0,40}") {
        let _ = Header::from_fields(|name| match name {
            "Vecmq-Frame" => Some(frame.as_str()),
            "Vecmq-Shape" => Some(shape.as_str()),
            _ => Some("float32"),
        });
    }

    #[test]
    fn codecs_never_grow_a_chunk(
        content in content(), length in 0_usize..600_000, codec in codec(), itemsize in 1_u16..18,
    ) {
        let chunk = fill(content, length);
        if let Some(body) = encode(codec, itemsize, &chunk).unwrap() {
            prop_assert!(body.len() < chunk.len());
            let mut out = vec![0; length];
            decode_into(codec, itemsize, &body, &mut out).unwrap();
            prop_assert_eq!(out, chunk);
        }
    }

    #[test]
    fn user_headers_are_checked(key in "\\PC{0,12}", value in "\\PC{0,12}") {
        let legal = !key.is_empty()
            && key.bytes().all(|b| b.is_ascii_graphic() && b != b':')
            && !key.to_ascii_lowercase().starts_with("nats-")
            && !key.to_ascii_lowercase().starts_with("vecmq-")
            && value.trim() == value;
        let made = Headers::new(vec![(key, value)]);
        prop_assert_eq!(made.is_ok(), legal);
    }
}

/// Numbers where limits lie.
fn edge32() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..5, 65_530_u32..65_540, Just(u32::MAX), any::<u32>()]
}

fn edge64() -> impl Strategy<Value = u64> {
    let near = |border: u64| (border - 2)..=border.saturating_add(2);
    prop_oneof![0_u64..5, near(1 << 32), near(1 << 62), near(1 << 63), near(u64::MAX - 2)]
}

/// An assembler beside what it should hold: the indexes that came, of each group.
struct Model {
    assembler: Assembler,
    messages: Vec<(Outgoing, Vec<Frame>)>,
    came: Vec<BTreeSet<usize>>,
}

impl Model {
    fn new(content: (u8, u64)) -> Self {
        let message = |seq: u64| {
            let id = MessageId { producer: ProducerId([9; 16]), epoch: 1, seq };
            let payload = fill(content, 1000 + usize::try_from(seq).unwrap());
            let message = Outgoing { id, rows: 1, layout: None, payload };
            let frames = frames(&message, 300, Codec::Raw);
            (message, frames)
        };
        Self {
            assembler: Assembler::new(LIMIT),
            messages: (1..=3).map(message).collect(),
            came: vec![BTreeSet::new(); 3],
        }
    }

    fn step(&mut self, group: usize, index: usize, action: u8) {
        let (message, frames) = &self.messages[group];
        let came = &mut self.came[group];
        let index = index % frames.len();
        let (mut header, mut body) = (frames[index].header.clone(), frames[index].body.to_vec());
        match action {
            // A damaged body; of a frame that came already nothing is read.
            0 => body[0] ^= 1,
            1 => drop(body.pop()),
            // Another payload under the same id, alike in form.
            2 => header.checksum ^= 1,
            // Another cut of the same payload.
            3 => (header, body) = (forged_cut(message), message.payload[..200].to_vec()),
            4 => {
                assert_eq!(self.assembler.discard(&message.id), !came.is_empty());
                came.clear();
                return;
            }
            _ => {}
        }
        let swallowed = came.contains(&index);
        let refused = if action < 2 { !swallowed } else { action < 4 };
        // The cut itself is legal: it begins a group when none is there, which is not modelled.
        if action == 3 && came.is_empty() {
            return;
        }
        match self.assembler.accept(&header, &body) {
            Err(error) => assert!(refused && error.kind() == ErrorKind::Corrupt),
            Ok(whole) => {
                assert!(!refused);
                came.insert(index);
                assert_eq!(whole.is_some(), came.len() == frames.len());
                if let Some(whole) = whole {
                    assert_eq!(whole.payload, message.payload);
                    came.clear();
                }
            }
        }
    }

    fn end(mut self) {
        let open = self.came.iter().filter(|came| !came.is_empty()).count();
        assert_eq!(self.assembler.groups_count(), open);
        assert_eq!(self.assembler.held_bytes() > 0, open > 0);
        for (message, _) in &self.messages {
            self.assembler.discard(&message.id);
        }
        assert_eq!(self.assembler.held_bytes(), 0);
    }
}

fn forged_cut(message: &Outgoing) -> Header {
    frames(message, 200, Codec::Raw).remove(0).header
}

/// A header whose fields are legal one by one and forged together.
fn forged(change: impl FnOnce(&mut Header)) -> Header {
    let id = MessageId { producer: ProducerId([1; 16]), epoch: 1, seq: 1 };
    let message = Outgoing { id, rows: 1, layout: None, payload: Bytes::from(vec![7; 1000]) };
    let mut header = frames(&message, 300, Codec::Raw).remove(0).header;
    change(&mut header);
    header
}

#[test]
fn forged_lengths_are_refused_before_they_allocate() {
    let kinds = [
        forged(|h| h.total_bytes = 1 << 62),
        forged(|h| h.total_bytes = u64::MAX),
        forged(|h| h.count = u32::MAX),
        forged(|h| h.offset = u64::MAX),
        forged(|h| h.chunk_bytes = u32::MAX),
        forged(|h| h.rows = u32::MAX),
        forged(|h| h.index = 4),
        forged(|h| h.layout = Some(Layout::new("float32", 4, vec![251]).unwrap())),
    ]
    .map(|header| Assembly::new(&header, LIMIT).unwrap_err().kind());
    assert!(kinds.iter().all(|kind| matches!(kind, ErrorKind::Corrupt | ErrorKind::TooLarge)));
    for shape in [vec![1 << 62, 4], vec![u64::MAX, u64::MAX], vec![1; 33]] {
        assert_eq!(Layout::new("float32", 4, shape).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    let limited = Assembly::new(&forged(|_| ()), 999).unwrap_err();
    assert_eq!(limited.kind(), ErrorKind::TooLarge);
}

#[test]
fn chunks_tile_the_payload_or_are_refused() {
    let refused = |change: fn(&mut Header)| {
        assert_eq!(forged(change).validate().unwrap_err().kind(), ErrorKind::Corrupt);
    };
    // 1,000 bytes in chunks of 300.
    refused(|h| h.index = u32::MAX);
    refused(|h| (h.index, h.count) = (u32::MAX, 0));
    refused(|h| h.count = 65_536);
    refused(|h| h.count = 3);
    refused(|h| h.chunk_bytes = 0);
    refused(|h| (h.index, h.offset) = (1, 299));
    refused(|h| (h.index, h.offset, h.chunk_bytes) = (3, 30, 970));
    refused(|h| (h.index, h.offset, h.chunk_bytes) = (3, 899, 101));
    refused(|h| h.layout = Some(Layout::new("complex128", 16, vec![]).unwrap()));
    let itemsize = |size: u16| {
        move |h: &mut Header| {
            h.layout = Some(Layout::new("x", size, vec![1000 / u64::from(size)]).unwrap());
        }
    };
    assert!(forged(itemsize(4)).validate().is_ok());
    assert_eq!(forged(itemsize(8)).validate().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_shape_with_zeros_is_checked_for_overflow_in_any_order() {
    for shape in [vec![0, 1 << 62, 4], vec![1 << 62, 4, 0], vec![1 << 62, 0, 4]] {
        assert_eq!(Layout::new("int8", 1, shape).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert_eq!(Layout::new("int8", 1, vec![0, 1 << 62]).unwrap().bytes().unwrap(), 0);
}

#[test]
fn an_assembler_stays_within_its_budget() {
    let id = |seq| MessageId { producer: ProducerId([1; 16]), epoch: 1, seq };
    let group = |seq, bytes: usize, chunk_bytes| {
        let payload = fill((0, seq), bytes);
        frames(&Outgoing { id: id(seq), rows: 1, layout: None, payload }, chunk_bytes, Codec::Raw)
    };
    let mut assembler = Assembler::new(100_000);
    let mut accept =
        |frame: &Frame| assembler.accept(&frame.header, &frame.body).map_err(|error| error.kind());
    let first = group(1, 60_000, 20_000);
    assert!(accept(&first[0]).unwrap().is_none());
    // Too large beside the first: by its payload, and by what 10,000 frames cost to keep.
    assert_eq!(accept(&group(2, 60_000, 20_000)[0]).unwrap_err(), ErrorKind::TooLarge);
    assert_eq!(accept(&group(3, 10_000, 1)[0]).unwrap_err(), ErrorKind::TooLarge);
    // A damaged frame begins no group.
    let mut damaged = group(4, 30_000, 20_000);
    damaged[0].body = Bytes::from_static(b"short");
    assert_eq!(accept(&damaged[0]).unwrap_err(), ErrorKind::Corrupt);
    assert!(accept(&group(5, 30_000, 20_000)[0]).unwrap().is_none());
    // One frame under the id of an open group is no message.
    assert_eq!(accept(&group(1, 100, 1000)[0]).unwrap_err(), ErrorKind::Corrupt);
    assert!(accept(&first[2]).unwrap().is_none());
    assert!(accept(&first[1]).unwrap().is_some());
    assert!(assembler.discard(&id(5)) && !assembler.discard(&id(5)));
    assert_eq!((assembler.groups_count(), assembler.held_bytes()), (0, 0));
}

#[test]
fn a_body_is_one_zstd_frame_and_a_damaged_one_spoils_nothing() {
    let chunk = vec![3; 100_000];
    let coded = zstd::bulk::compress(&chunk, 1).unwrap();
    let mut out = vec![0; chunk.len()];
    let skippable = [0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 0];
    let empty = zstd::bulk::compress(&[], 1).unwrap();
    let joined = |more: &[u8]| [coded.as_slice(), more].concat();
    for body in [joined(&skippable), joined(&empty), joined(b"x"), coded[..9].to_vec(), vec![]] {
        let error = decode_into(Codec::Zstd1, 1, &body, &mut out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        decode_into(Codec::Zstd1, 1, &coded, &mut out).unwrap();
        assert_eq!(out, chunk);
    }
}

#[test]
fn a_decompression_bomb_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(bomb.len() < 20_000);
    let mut out = vec![0; 1000];
    let lz4 = encode(Codec::Lz4, 1, &vec![0; 1 << 20]).unwrap().unwrap();
    assert!(lz4.len() < 5_000);
    let longer = decode_into(Codec::Lz4, 1, &lz4, &mut out).unwrap_err();
    assert_eq!(longer.kind(), ErrorKind::Corrupt);
    for codec in [Codec::Zstd1, Codec::Planes, Codec::Pk3] {
        for itemsize in [1, 4] {
            let error = decode_into(codec, itemsize, &bomb, &mut out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}

#[test]
fn zstd_frames_of_every_level_are_read_and_other_levels_refused() {
    let chunk = fill((3, 5), 70_000);
    let mut sizes = BTreeSet::new();
    for level in 1..=19 {
        let body = encode(Coding::zstd(level).unwrap(), 1, &chunk).unwrap().unwrap();
        sizes.insert(body.len());
        let mut out = vec![0; chunk.len()];
        decode_into(Codec::Zstd1, 1, &body, &mut out).unwrap();
        assert_eq!(out, chunk);
    }
    assert!(sizes.len() > 3, "levels do nothing: {sizes:?}");
    for level in [i32::MIN, -1, 0, 20] {
        assert_eq!(Coding::zstd(level).unwrap_err().kind(), ErrorKind::Config);
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_packed_exponents_is_refused() {
    // Of 2 and 4 bytes; whole groups and short ones, bytes that are no whole element.
    for (itemsize, kind, length) in [(4, 4, 1024), (4, 4, 300), (2, 5, 1_003), (2, 5, 90)] {
        let chunk = fill((kind, 11), length);
        let layout = Some(Layout::new("int8", 1, vec![length as u64]).unwrap());
        let id = MessageId { producer: ProducerId([1; 16]), epoch: 1, seq: 1 };
        let message = Outgoing { id, rows: 1, layout, payload: chunk.clone() };
        let sound = frames(&message, 10_000, Codec::Raw)[0].header.checksum;
        let body = encode(Codec::Pk3, itemsize, &chunk).unwrap().unwrap();
        let accepted = |body: &[u8]| {
            let mut out = vec![0; length];
            decode_into(Codec::Pk3, itemsize, body, &mut out).is_ok() && checksum(&out) == sound
        };
        assert!(accepted(&body));
        for bit in 0..8 * body.len() {
            let mut flipped = body.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!accepted(&flipped), "bit {bit} of {itemsize} x {length}");
        }
        for cut in 0..body.len() {
            assert!(!accepted(&body[..cut]), "{cut} bytes of {itemsize} x {length}");
        }
        assert!(!accepted(&[&body[..], b"x"].concat()));
    }
}

#[test]
fn dense_floats_shrink_as_they_should() {
    let dense = |kind, itemsize, codec| {
        let chunk = fill((kind, 17), 256 << 10);
        encode(codec, itemsize, &chunk).unwrap().map_or(1.0, |body| body.len() as f64 / 262_144.0)
    };
    // One byte less of noise an element, and what their exponents carry.
    assert!(dense(4, 4, Codec::Planes) < 0.83);
    assert!(dense(5, 2, Codec::Planes) < 0.67);
    assert!(dense(4, 4, Codec::Pk3) < 0.86);
    assert!(dense(5, 2, Codec::Pk3) < 0.71);
    for codec in Codec::ALL {
        assert!((dense(0, 4, codec) - 1.0).abs() < f64::EPSILON, "noise goes raw");
    }
}

#[test]
fn unknown_versions_and_codecs_are_unsupported() {
    let header = forged(|_| ());
    let text = header.to_fields().remove(0).1;
    for changed in [text.replacen('1', "2", 1), text.replacen("raw", "brotli", 1)] {
        let read = Header::from_fields(|name| (name == "Vecmq-Frame").then_some(changed.as_str()));
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert_eq!(Header::from_fields(|_| None).unwrap(), None);
}

#[test]
fn sixty_four_mebibytes_survive() {
    let id = MessageId { producer: ProducerId::random(), epoch: 1, seq: 1 };
    let layout = Layout::new("float32", 4, vec![16, 1 << 20]).unwrap();
    let payload = fill((1, 3), 64 << 20);
    let message = Outgoing { id, rows: 16, layout: Some(layout), payload };
    for codec in [Codec::Raw, Codec::Planes, Codec::Pk3] {
        let frames = frames(&message, 1 << 20, codec);
        let mut assembly = Assembly::new(&frames[0].header, LIMIT).unwrap();
        for frame in frames.iter().rev() {
            assembly.accept(&frame.header, &frame.body).unwrap();
        }
        assert_eq!(assembly.finish().unwrap().payload, message.payload);
    }
}
