//! What the benchmarks move: payloads from a fixed seed, so that every run codes the same bytes.

#![allow(dead_code, reason = "each benchmark uses its own share")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot make its payload has failed")]

use std::time::Duration;

use bytes::Bytes;
use criterion::Criterion;
use vecmq::frame::{Layout, MessageId, Outgoing, ProducerId};

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;

/// Short runs: criterion's own 8 seconds a case make the suites too long to be run often.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args()
}

/// xorshift64*: small, fast, and the same on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Four 16-bit numbers, added and centred: close enough to a normal distribution for the
    /// exponents of the floats to look like those of an embedding.
    fn normal(&mut self) -> f32 {
        let sum: u32 = self.next().to_le_bytes().chunks(2).map(sixteen_bits).sum();
        (sum as f32 - 131_070.0) / 37_837.0
    }
}

fn sixteen_bits(two: &[u8]) -> u32 {
    two.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

/// float32 as embeddings have them: every mantissa byte noise, few exponents.
pub(crate) fn dense(size_bytes: usize) -> Bytes {
    let mut random = Random::new(1);
    (0..size_bytes / 4).flat_map(|_| random.normal().to_le_bytes()).collect()
}

/// float32 of which one in 32 is not zero.
pub(crate) fn sparse(size_bytes: usize) -> Bytes {
    let mut random = Random::new(2);
    let element = |random: &mut Random| match random.next() >> 59 {
        0 => random.normal(),
        _ => 0.0,
    };
    (0..size_bytes / 4).flat_map(|_| element(&mut random).to_le_bytes()).collect()
}

/// A message of one float32 array.
pub(crate) fn outgoing(payload: Bytes) -> Outgoing {
    let layout = Layout::new("float32", 4, vec![(payload.len() / 4) as u64]);
    Outgoing {
        id: MessageId { producer: ProducerId([7; 16]), epoch: 3, seq: 1_234_567 },
        rows: 1,
        layout: Some(layout.expect("a legal layout")),
        payload,
    }
}
