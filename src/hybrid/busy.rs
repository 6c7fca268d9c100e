//! What a message costs a route that works on many at once.
//!
//! From submission to receipt a message of a full window mostly waits for those before it: each
//! would look as dear as the whole window, and the router would send too much to the other route.
//! So only the time counts in which the route worked on it: from its submission, or from the
//! receipt before where that came later, to its receipt. Receipts come in bursts, so the time is
//! shared out over [`SHARED_COUNT`] messages, or all until none is in flight: a lone message is its
//! own sample. (Samples of equal time would not do: few messages make the dear ones.)

use std::time::{Duration, Instant};

/// Messages that make one sample.
const SHARED_COUNT: u32 = 16;

/// The busy time of a route, as samples of (mean size, mean cost).
#[derive(Debug, Default)]
pub(super) struct BusyTime {
    in_flight: u64,
    received: Option<Instant>,
    busy: Duration,
    count: u32,
    bytes: u64,
}

impl BusyTime {
    /// A message was submitted.
    pub(super) fn submit(&mut self) {
        self.in_flight += 1;
    }

    /// A message that was submitted got no receipt.
    pub(super) fn give_up(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A message got its receipt. Returns mean size in bytes and mean cost, when a sample is full.
    pub(super) fn receive(
        &mut self,
        size_bytes: u64,
        submitted: Instant,
        now: Instant,
    ) -> Option<(u64, Duration)> {
        self.give_up();
        let from = self.received.map_or(submitted, |received| received.max(submitted));
        self.received = Some(now);
        self.busy += now.saturating_duration_since(from);
        self.count += 1;
        self.bytes = self.bytes.saturating_add(size_bytes);
        if self.in_flight > 0 && self.count < SHARED_COUNT {
            return None;
        }
        let sample = (self.bytes / u64::from(self.count), self.busy / self.count);
        (self.busy, self.count, self.bytes) = (Duration::ZERO, 0, 0);
        Some(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_lone_message_costs_its_round_trip() {
        let (mut busy, start) = (BusyTime::default(), Instant::now());
        for step in 0..3 {
            let submitted = start + 100 * MS * step;
            busy.submit();
            assert_eq!(busy.receive(10, submitted, submitted + MS), Some((10, MS)));
        }
    }

    #[test]
    fn a_window_costs_its_length_once() {
        let (mut busy, start) = (BusyTime::default(), Instant::now());
        (0..40).for_each(|_| busy.submit());
        let samples: Vec<_> =
            (1..=40).filter_map(|step| busy.receive(100, start, start + MS * step)).collect();
        assert_eq!(samples, [(100, MS); 3]);
    }

    #[test]
    fn a_burst_of_receipts_is_shared_out() {
        let (mut busy, start) = (BusyTime::default(), Instant::now());
        (0..4).for_each(|_| busy.submit());
        let at = start + MS;
        assert_eq!((0..3).find_map(|_| busy.receive(8, start, at)), None);
        assert_eq!(busy.receive(16, start, at), Some((10, MS / 4)));
    }

    #[test]
    fn what_fails_costs_nothing_and_is_not_waited_for() {
        let (mut busy, start) = (BusyTime::default(), Instant::now());
        busy.submit();
        busy.submit();
        busy.give_up();
        assert_eq!(busy.receive(8, start, start + MS), Some((8, MS)));
    }
}
