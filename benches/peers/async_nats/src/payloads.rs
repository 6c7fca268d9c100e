//! Random messages, and the check of what arrives.

use std::time::{Duration, Instant};

use bytes::Bytes;

const NUMBER_BYTES: usize = 8;

/// The messages of an operation; the first 8 bytes of each are its number, little-endian.
#[derive(Clone)]
pub(crate) struct Payloads(Vec<Bytes>);

impl Payloads {
    /// Makes a message of each size out of a generator that is seeded with `seed`.
    pub(crate) fn new(sizes: &[usize], seed: u64) -> Self {
        let mut state = seed;
        let mut whole = Vec::with_capacity(sizes.iter().sum());
        for (number, size) in (0_u64..).zip(sizes) {
            whole.extend_from_slice(&number.to_le_bytes());
            for _ in 1..size / NUMBER_BYTES {
                whole.extend_from_slice(&next_random(&mut state).to_le_bytes());
            }
        }
        let mut rest = Bytes::from(whole);
        Self(sizes.iter().map(|size| rest.split_to(*size)).collect())
    }

    /// All messages, in order.
    pub(crate) fn all(&self) -> &[Bytes] {
        &self.0
    }
}

/// Compares every byte that arrives with what was sent.
pub(crate) struct Checker {
    payloads: Payloads,
    /// When each message came, in nanoseconds since the start.
    arrivals: Vec<Option<u64>>,
    next: usize,
    /// Messages received.
    pub(crate) received: usize,
    /// Messages received before.
    pub(crate) duplicates: usize,
    /// Messages that came after a later one.
    pub(crate) unordered: usize,
    /// Messages that equal none that was sent.
    pub(crate) wrong: usize,
    /// Messages that have not come.
    pub(crate) missing: usize,
    /// Time spent here; nothing here waits, so it is CPU time.
    pub(crate) verify: Duration,
}

impl Checker {
    /// Expects each of `payloads` once.
    pub(crate) fn new(payloads: Payloads) -> Self {
        let missing = payloads.all().len();
        Self {
            payloads,
            arrivals: vec![None; missing],
            next: 0,
            received: 0,
            duplicates: 0,
            unordered: 0,
            wrong: 0,
            missing,
            verify: Duration::ZERO,
        }
    }

    /// Compares a message that came now.
    pub(crate) fn take(&mut self, payload: &[u8], started: Instant) {
        let now = Instant::now();
        self.received += 1;
        let number = number_of(payload);
        let expected = number.and_then(|number| self.payloads.all().get(number));
        let arrival = number.and_then(|number| self.arrivals.get_mut(number));
        match (number, expected, arrival) {
            (Some(number), Some(expected), Some(arrival)) if expected == payload => {
                if arrival.is_some() {
                    self.duplicates += 1;
                } else {
                    let since = now.duration_since(started).as_nanos();
                    *arrival = Some(u64::try_from(since).unwrap_or(u64::MAX));
                    self.missing -= 1;
                    self.unordered += usize::from(number < self.next);
                    self.next = self.next.max(number + 1);
                }
            }
            _ => self.wrong += 1,
        }
        self.verify += now.elapsed();
    }

    /// From the moment each message was due to its receipt, in nanoseconds.
    pub(crate) fn latencies(&self, rate_per_s: f64) -> Vec<f64> {
        let step = 1e9 / rate_per_s;
        let numbered = self.arrivals.iter().enumerate();
        numbered
            .filter_map(|(number, at)| at.map(|at| (at as f64 - number as f64 * step).round()))
            .collect()
    }
}

fn number_of(payload: &[u8]) -> Option<usize> {
    let number = payload.first_chunk::<NUMBER_BYTES>()?;
    usize::try_from(u64::from_le_bytes(*number)).ok()
}

/// `SplitMix64`.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
