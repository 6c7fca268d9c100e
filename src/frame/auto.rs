//! Chooses a codec by evidence: a short probe now and then, and what the link makes of it.
//!
//! Messages of one dtype and last dimension are a stream. A probe codes a piece from the middle of
//! a payload with every codec that may help; each is worth what min(compress, ratio x link,
//! decompress) lets through, and has to beat the link by 3 %. The answer holds for 16 chunks, or
//! until a message does not shrink. Costs of byte planes and packed exponents are constants:
//! measured ones were misled by cold caches; those of LZ depend on the data and are timed.

use std::collections::HashMap;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::{Codec, Coding, decode_into, encode};
use crate::frame::{Layout, planes};

/// What a publisher asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecOption {
    /// This one.
    Fixed(Coding),
    /// Whatever pays.
    Auto,
}

impl CodecOption {
    /// Parses what users write: "auto", or the name of a codec with a level where it is zstd.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] as [`Coding::parse`].
    pub fn parse(name: &str, level: Option<i32>) -> Result<Self> {
        match (name, level) {
            ("auto", None) => Ok(Self::Auto),
            ("auto", Some(level)) => Err(Error::new(
                ErrorKind::Config,
                format!("codec level: {level} is one of zstd, the codec is \"auto\""),
            )),
            _ => Coding::parse(name, level).map(Self::Fixed),
        }
    }
}

impl<T: Into<Coding>> From<T> for CodecOption {
    fn from(coding: T) -> Self {
        Self::Fixed(coding.into())
    }
}

/// What is known of the way to the other side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// None: both ends are on one host.
    SameHost,
    /// Nothing yet.
    Unknown,
    /// Its speed in bytes a second.
    BytesPerS(f64),
}

/// Why a codec was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was asked for.
    Asked,
    /// Nothing is gained between processes of one host.
    SameHost,
    /// Nobody has said or measured how fast the link is.
    UnknownLink,
    /// Too small for any other.
    Small,
    /// The best in a probe.
    Probe,
    /// No codec beat raw in a probe.
    NoGain,
    /// The codec made no chunk smaller.
    Unshrunk,
}

impl Why {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Asked => "asked for",
            Self::SameHost => "same host",
            Self::UnknownLink => "link speed unknown",
            Self::Small => "small payload",
            Self::Probe => "best in a probe",
            Self::NoGain => "no codec gains 3 % on this link",
            Self::Unshrunk => "did not shrink",
        }
    }
}

/// How a message is to be coded, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// How.
    pub coding: Coding,
    /// Why.
    pub why: Why,
}

impl Decision {
    fn raw(why: Why) -> Self {
        Self { coding: Codec::Raw.into(), why }
    }

    /// What was used in the end: raw where no frame was coded.
    pub fn used(self, coded_count: u32) -> (Codec, Why) {
        match self.coding.codec() {
            Codec::Raw => (Codec::Raw, self.why),
            _ if coded_count == 0 => (Codec::Raw, Why::Unshrunk),
            codec => (codec, self.why),
        }
    }
}

/// Smaller payloads are not probed: the set-up of a codec costs more than it saves, but for pk3.
const SMALL_BYTES: usize = 16 << 10;
/// Link speed below which pk3 pays for small payloads: 2 GB/s at 1 KB, both ways.
const SMALL_LINK_BYTES_PER_S: f64 = 1e9;
/// Bytes of a probe, and its largest share of the payload.
const PROBE_BYTES: usize = 64 << 10;
const PROBE_SHARE: usize = 4;
/// Chunks for which an answer holds.
const STICKY_CHUNKS: u32 = 16;
/// A codec has to beat raw by so much.
const GAIN_MIN: f64 = 1.03;
/// Streams that are remembered.
const STREAMS_MAX: usize = 64;
/// Times that an LZ codec is timed; the shortest counts.
const TIMED: u32 = 3;

/// Nanoseconds a raw byte, in and out.
#[derive(Clone, Copy)]
struct Cost {
    encode_ns: f64,
    decode_ns: f64,
}

/// Of a byte of a plane that is Huffman-coded.
const HUFFMAN: Cost = Cost { encode_ns: 1.15, decode_ns: 0.6 };
/// Of splitting into planes and back.
const SHUFFLE: Cost = Cost { encode_ns: 0.1, decode_ns: 0.08 };
const PK3: Cost = Cost { encode_ns: 0.16, decode_ns: 0.12 };

impl Cost {
    /// Bytes a second that get through a link with this codec, overlapped.
    fn score(self, ratio: f64, link_bytes_per_s: f64) -> f64 {
        (1e9 / self.encode_ns).min(1e9 / self.decode_ns).min(ratio * link_bytes_per_s)
    }
}

/// The streams of one topic.
#[derive(Debug, Default)]
pub struct AutoCodecs {
    streams: HashMap<Key, Stream>,
}

/// dtype and last dimension; None for plain bytes.
type Key = Option<(String, u64)>;

#[derive(Clone, Copy, Debug)]
struct Stream {
    decision: Decision,
    /// For which the decision still holds.
    chunks_left: u32,
}

impl AutoCodecs {
    /// How to code a message that is cut into `chunks_count` chunks. `now` is a clock that only has
    /// to run on; it is read when LZ is timed.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn choose(
        &mut self,
        layout: Option<&Layout>,
        payload: &[u8],
        chunks_count: u32,
        link: Link,
        now: &dyn Fn() -> Duration,
    ) -> Result<Decision> {
        let link_bytes_per_s = match link {
            Link::SameHost => return Ok(Decision::raw(Why::SameHost)),
            Link::Unknown => return Ok(Decision::raw(Why::UnknownLink)),
            Link::BytesPerS(link_bytes_per_s) => link_bytes_per_s,
        };
        if payload.len() < SMALL_BYTES {
            let packs = layout.is_some_and(|of| matches!(of.dtype(), "float32" | "bfloat16"));
            let pays = packs && link_bytes_per_s < SMALL_LINK_BYTES_PER_S;
            let codec = if pays { Codec::Pk3 } else { Codec::Raw };
            return Ok(Decision { coding: codec.into(), why: Why::Small });
        }
        let key = key(layout);
        if let Some(stream) = self.streams.get_mut(&key)
            && stream.chunks_left > 0
        {
            stream.chunks_left = stream.chunks_left.saturating_sub(chunks_count);
            return Ok(stream.decision);
        }
        let decision = probe(layout, payload, link_bytes_per_s, now)?;
        if self.streams.len() >= STREAMS_MAX {
            self.streams.clear();
        }
        let chunks_left = STICKY_CHUNKS.saturating_sub(chunks_count);
        self.streams.insert(key, Stream { decision, chunks_left });
        Ok(decision)
    }

    /// A message of the stream did not shrink: the next one is probed.
    pub fn unshrunk(&mut self, layout: Option<&Layout>) {
        self.streams.remove(&key(layout));
    }
}

fn key(layout: Option<&Layout>) -> Key {
    layout.map(|of| (of.dtype().to_owned(), of.shape().last().copied().unwrap_or(1)))
}

/// The middle of a payload, whole elements.
fn middle(payload: &[u8], itemsize: usize) -> &[u8] {
    let length = PROBE_BYTES.min(payload.len() / PROBE_SHARE);
    let length = length - length % itemsize;
    let start = (payload.len() - length) / 2;
    let start = start - start % itemsize;
    payload.get(start..start + length).unwrap_or_default()
}

fn probe(
    layout: Option<&Layout>,
    payload: &[u8],
    link_bytes_per_s: f64,
    now: &dyn Fn() -> Duration,
) -> Result<Decision> {
    let itemsize = layout.map_or(1, Layout::itemsize);
    let piece = middle(payload, usize::from(itemsize));
    let mut best = (Codec::Raw, link_bytes_per_s * GAIN_MIN);
    let mut offer = |codec, cost: Cost, coded_bytes: usize| {
        let score = cost.score(piece.len() as f64 / coded_bytes as f64, link_bytes_per_s);
        if score > best.1 {
            best = (codec, score);
        }
    };
    if let Some(body) = encode(Codec::Planes, itemsize, piece)? {
        let coded = planes::coded_share(itemsize, &body);
        let cost = Cost {
            encode_ns: SHUFFLE.encode_ns + coded * HUFFMAN.encode_ns,
            decode_ns: SHUFFLE.decode_ns + coded * HUFFMAN.decode_ns,
        };
        offer(Codec::Planes, cost, body.len());
    }
    if let Some(body) = encode(Codec::Pk3, itemsize, piece)? {
        offer(Codec::Pk3, PK3, body.len());
    }
    // Where LZ4 finds nothing that repeats, zstd does not either; its entropy coder alone loses to
    // that of byte planes.
    if let Some((coded_bytes, cost)) = timed(Codec::Lz4, itemsize, piece, now)? {
        offer(Codec::Lz4, cost, coded_bytes);
        if let Some((coded_bytes, cost)) = timed(Codec::Zstd1, itemsize, piece, now)? {
            offer(Codec::Zstd1, cost, coded_bytes);
        }
    }
    let why = if best.0 == Codec::Raw { Why::NoGain } else { Why::Probe };
    Ok(Decision { coding: best.0.into(), why })
}

/// Coded bytes and cost of an LZ codec; None where it saves less than 3 %.
fn timed(
    codec: Codec,
    itemsize: u16,
    piece: &[u8],
    now: &dyn Fn() -> Duration,
) -> Result<Option<(usize, Cost)>> {
    let mut fastest = (Duration::MAX, Duration::MAX);
    let mut coded_bytes = piece.len();
    let mut out = vec![0; piece.len()];
    for _ in 0..TIMED {
        let start = now();
        let Some(body) = encode(codec, itemsize, piece)? else { return Ok(None) };
        let between = now();
        if body.len() as f64 * GAIN_MIN > piece.len() as f64 {
            return Ok(None);
        }
        decode_into(codec, itemsize, &body, &mut out)?;
        let end = now();
        fastest.0 = fastest.0.min(between.saturating_sub(start));
        fastest.1 = fastest.1.min(end.saturating_sub(between));
        coded_bytes = body.len();
    }
    let ns = |time: Duration| time.as_nanos() as f64 / piece.len() as f64;
    let cost = Cost { encode_ns: ns(fastest.0), decode_ns: ns(fastest.1) };
    Ok(Some((coded_bytes, cost)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::cell::Cell;

    use super::*;

    const SLOW: Link = Link::BytesPerS(25e6);
    const FAST: Link = Link::BytesPerS(5e9);

    /// A clock that goes on by so many nanoseconds at every look.
    struct Clock(Cell<u64>, u64);

    impl Clock {
        fn new(step_ns: u64) -> Self {
            Self(Cell::new(0), step_ns)
        }

        fn looks(&self) -> u64 {
            self.0.get() / self.1
        }

        fn now(&self) -> Duration {
            self.0.set(self.0.get() + self.1);
            Duration::from_nanos(self.0.get())
        }
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            u8::try_from(state >> 56).unwrap()
        };
        (0..bytes).map(|_| next()).collect()
    }

    /// float32 with exponents as normal values have them.
    fn dense(bytes: usize) -> Vec<u8> {
        let mut out = noise(bytes);
        for float in out.as_chunks_mut::<4>().0 {
            let word = u32::from_le_bytes(*float);
            let exponent = 127 - (word | 1 << 20).trailing_zeros();
            *float = (word & 0x807F_FFFF | exponent << 23).to_le_bytes();
        }
        out
    }

    fn layout(dtype: &str, itemsize: u16, dim: u64) -> Layout {
        Layout::new(dtype, itemsize, vec![dim]).unwrap()
    }

    fn choose(link: Link, payload: &[u8], layout: Option<&Layout>) -> (Codec, Why) {
        let clock = Clock::new(10_000);
        let mut codecs = AutoCodecs::default();
        let decision = codecs.choose(layout, payload, 1, link, &|| clock.now()).unwrap();
        (decision.coding.codec(), decision.why)
    }

    #[test]
    fn dense_floats_get_planes_on_a_slow_link_and_pk3_on_a_fast_one() {
        let (payload, f4) = (dense(1 << 20), layout("float32", 4, 256));
        assert_eq!(choose(SLOW, &payload, Some(&f4)), (Codec::Planes, Why::Probe));
        assert_eq!(choose(FAST, &payload, Some(&f4)), (Codec::Pk3, Why::Probe));
        let faster = Link::BytesPerS(50e9);
        assert_eq!(choose(faster, &payload, Some(&f4)), (Codec::Raw, Why::NoGain));
        assert_eq!(choose(Link::SameHost, &payload, Some(&f4)), (Codec::Raw, Why::SameHost));
        assert_eq!(choose(Link::Unknown, &payload, Some(&f4)), (Codec::Raw, Why::UnknownLink));
    }

    #[test]
    fn noise_goes_raw_and_repeats_get_lz() {
        let f4 = layout("float32", 4, 256);
        assert_eq!(choose(SLOW, &noise(1 << 20), Some(&f4)), (Codec::Raw, Why::NoGain));
        assert_eq!(choose(SLOW, &noise(1 << 20), None), (Codec::Raw, Why::NoGain));
        let repeated = dense(2048).repeat(512);
        let (codec, why) = choose(SLOW, &repeated, Some(&f4));
        assert!(matches!(codec, Codec::Lz4 | Codec::Zstd1) && why == Why::Probe, "{codec:?}");
    }

    #[test]
    fn small_payloads_are_not_probed() {
        let f4 = layout("float32", 4, 256);
        assert_eq!(choose(SLOW, &dense(1024), Some(&f4)), (Codec::Pk3, Why::Small));
        assert_eq!(choose(FAST, &dense(1024), Some(&f4)), (Codec::Raw, Why::Small));
        assert_eq!(choose(SLOW, &dense(1024), None), (Codec::Raw, Why::Small));
    }

    #[test]
    fn an_answer_holds_for_16_chunks_of_its_stream_or_until_one_does_not_shrink() {
        let clock = Clock::new(10_000);
        let now = || clock.now();
        let mut codecs = AutoCodecs::default();
        let (repeated, f4, f8) =
            (dense(2048).repeat(32), layout("float32", 4, 256), layout("float64", 8, 256));
        let probed = |codecs: &mut AutoCodecs, layout: &Layout, chunks: u32| {
            let before = clock.looks();
            codecs.choose(Some(layout), &repeated, chunks, SLOW, &now).unwrap();
            clock.looks() > before
        };
        assert!(probed(&mut codecs, &f4, 1));
        assert!((1..16).all(|_| !probed(&mut codecs, &f4, 1)));
        assert!(probed(&mut codecs, &f4, 1));
        assert!(probed(&mut codecs, &f8, 16));
        assert!(probed(&mut codecs, &f8, 16));
        assert!(!probed(&mut codecs, &f4, 1));
        codecs.unshrunk(Some(&f4));
        assert!(probed(&mut codecs, &f4, 1));
        for dim in 1..1000 {
            probed(&mut codecs, &layout("float32", 4, dim), 1);
        }
        assert!(codecs.streams.len() <= STREAMS_MAX);
    }

    #[test]
    fn what_did_not_shrink_is_raw() {
        let decision = Decision { coding: Codec::Pk3.into(), why: Why::Probe };
        assert_eq!(decision.used(3), (Codec::Pk3, Why::Probe));
        assert_eq!(decision.used(0), (Codec::Raw, Why::Unshrunk));
        assert_eq!(Decision::raw(Why::Asked).used(0), (Codec::Raw, Why::Asked));
    }
}
