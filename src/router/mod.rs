//! Which route a message of a size takes, and why.
//!
//! The cost of a route is a line, a + b x bytes, fitted to what publishing took ([`Cost`],
//! `cost.rs`). Where the two lines cross is where the threshold belongs: smaller messages take the
//! queue, others NATS.
//!
//! Left alone, the queue would only ever see small messages and NATS only large ones, and the
//! crossing, which lies between, would be an extrapolation of both for ever. So one in 64 of the
//! messages from a quarter of the threshold on goes the other way: a *probe*. Probes are what
//! makes both lines true where it matters, and what notices that the route not taken has become
//! the better one. The first 32 probes of a route come 8 times as often: a route of which nothing
//! is known is learned within its first 256 messages.
//!
//! The threshold moves when all of this holds:
//!
//! - enough was observed on both routes;
//! - the crossing differs by more than the hysteresis, and the last move is a dwell ago;
//! - the message just measured lies between the threshold and the crossing, so the move matters to
//!   messages that exist, and for its size the other route is cheaper by 3 standard errors.
//!
//! It moves to the crossing, but at most a factor 2 beyond that message: further out nothing was
//! seen. So the threshold stays where probes reach it, even when one route wins at every size
//! seen.
//!
//! What follows from this: sizes below a quarter of the threshold are never probed, because there
//! a round trip to a server costs many times what it can teach. A topic of 1 KB messages alone
//! stays on the queue until larger ones are seen too.
//!
//! Pure: no IO, no randomness, no locks, and the clock is an argument.

mod config;
mod cost;
mod explain;
mod route;

use std::time::Duration;

pub use config::RouterConfig;
pub use cost::Cost;
pub use explain::{Explanation, ThresholdChange};
pub use route::{Decision, Reason, Route};

use crate::error::Result;
use crate::router::cost::Line;

/// Messages smaller than the threshold by more than this factor are not probed.
const PROBE_FACTOR: u64 = 4;
/// Probes to a route that come more often.
const EARLY_PROBES_COUNT: u32 = 32;
/// How much more often.
const EARLY_FACTOR: u32 = 8;
/// The threshold moves at most this factor beyond the message that proves it wrong.
const REACH_FACTOR: u64 = 2;
/// Standard errors by which the other route must be cheaper.
const SURE_ERRORS: f64 = 3.0;

/// Counts the messages on one side of the threshold.
#[derive(Clone, Debug, Default)]
struct Probes {
    since_count: u32,
    probes_count: u32,
}

impl Probes {
    /// Counts a message; says whether it is to be a probe.
    fn is_due(&mut self, every: u32) -> bool {
        let early = self.probes_count < EARLY_PROBES_COUNT;
        let every = if early { every.div_ceil(EARLY_FACTOR).max(2) } else { every };
        self.since_count += 1;
        if self.since_count < every {
            return false;
        }
        self.since_count = 0;
        self.probes_count = self.probes_count.saturating_add(1);
        true
    }
}

/// Learns the threshold.
#[derive(Clone, Debug)]
pub struct Router {
    config: RouterConfig,
    threshold_bytes: u64,
    queue: Line,
    nats: Line,
    changed: Option<Duration>,
    changes_count: u64,
    // One for each side, so that a regular mix of sizes cannot make every probe fall on one.
    below: Probes,
    above: Probes,
}

impl Router {
    /// A router that knows nothing yet.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] as [`RouterConfig::validate`].
    pub fn new(config: RouterConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            threshold_bytes: config.threshold_start_bytes,
            queue: Line::new(config.half_life),
            nats: Line::new(config.half_life),
            config,
            changed: None,
            changes_count: 0,
            below: Probes::default(),
            above: Probes::default(),
        })
    }

    /// The size from which messages take the NATS route, in bytes.
    pub fn threshold_bytes(&self) -> u64 {
        self.threshold_bytes
    }

    /// Where a message of that size goes.
    ///
    /// Counts it: one in `probe_every` of those not far below the threshold is a probe.
    pub fn choose(&mut self, size_bytes: u64) -> Decision {
        let decision = self.by_threshold(size_bytes);
        let far_below = size_bytes < self.threshold_bytes / PROBE_FACTOR;
        if self.config.fixed || self.config.probe_every == 0 || far_below {
            return decision;
        }
        let probes = match decision.route {
            Route::Queue => &mut self.below,
            Route::Nats => &mut self.above,
        };
        if probes.is_due(self.config.probe_every) {
            return Decision { route: decision.route.other(), reason: Reason::Probe };
        }
        decision
    }

    /// Takes what a publish cost; says so when that moves the threshold.
    pub fn observe(
        &mut self,
        route: Route,
        size_bytes: u64,
        cost: Duration,
        now: Duration,
    ) -> Option<ThresholdChange> {
        let line = match route {
            Route::Queue => &mut self.queue,
            Route::Nats => &mut self.nats,
        };
        line.observe(size_bytes, cost, now);
        let settled = self.changed.is_none_or(|at| now.saturating_sub(at) >= self.config.dwell);
        if self.config.fixed || !settled {
            return None;
        }
        let change = self.proposal(size_bytes)?;
        self.threshold_bytes = change.to_bytes;
        self.changed = Some(now);
        self.changes_count = self.changes_count.saturating_add(1);
        Some(change)
    }

    /// Which route a message of that size takes now, why, and what both would cost. Counts nothing.
    pub fn explain(&self, size_bytes: u64) -> Explanation {
        let decision = self.by_threshold(size_bytes);
        let (queue, nats) = (self.queue.cost(), self.nats.cost());
        let predicted =
            |cost: Cost| Duration::try_from_secs_f64(cost.at(size_bytes)).unwrap_or(Duration::MAX);
        Explanation {
            size_bytes,
            route: decision.route,
            reason: decision.reason,
            threshold_bytes: self.threshold_bytes,
            queue_cost: queue.map(predicted),
            nats_cost: nats.map(predicted),
            queue_samples: self.queue.samples(),
            nats_samples: self.nats.samples(),
            changes_count: self.changes_count,
            learned: !self.config.fixed && queue.is_some() && nats.is_some(),
        }
    }

    fn by_threshold(&self, size_bytes: u64) -> Decision {
        let (route, reason) = if size_bytes < self.threshold_bytes {
            (Route::Queue, Reason::Below)
        } else {
            (Route::Nats, Reason::AtOrAbove)
        };
        Decision { route, reason: if self.config.fixed { Reason::Fixed } else { reason } }
    }

    /// The move of the threshold that a message of that size, just measured, calls for.
    fn proposal(&self, size_bytes: u64) -> Option<ThresholdChange> {
        let (queue, nats) = (self.queue.cost()?, self.nats.cost()?);
        let from_bytes = self.threshold_bytes;
        let crossing = self.crossing(queue, nats);
        let (below, above) = (from_bytes.min(crossing), from_bytes.max(crossing));
        let ratio = above as f64 / below as f64;
        if ratio <= 1.0 + self.config.hysteresis || !(below..above).contains(&size_bytes) {
            return None;
        }
        let (gain_s, to_bytes) = if crossing > from_bytes {
            let reach = size_bytes.saturating_mul(REACH_FACTOR);
            (nats.at(size_bytes) - queue.at(size_bytes), crossing.min(reach))
        } else {
            (queue.at(size_bytes) - nats.at(size_bytes), crossing.max(size_bytes / REACH_FACTOR))
        };
        let variance = self.queue.variance(size_bytes) + self.nats.variance(size_bytes);
        (gain_s > SURE_ERRORS * variance.sqrt()).then_some(ThresholdChange {
            from_bytes,
            to_bytes,
            queue,
            nats,
        })
    }

    /// The size at which the lines cross; an end of the range where no threshold does better.
    fn crossing(&self, queue: Cost, nats: Cost) -> u64 {
        let (min, max) = (self.config.threshold_min_bytes, self.config.threshold_max_bytes);
        let gain_per_byte_s = queue.per_byte_s - nats.per_byte_s;
        let head_start_s = nats.base_s - queue.base_s;
        if gain_per_byte_s > 0.0 {
            let bytes = (head_start_s / gain_per_byte_s).clamp(min as f64, max as f64);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped between two sizes that are exact in a float"
            )]
            return bytes as u64;
        }
        // The queue's line is the flatter one. Where it starts higher, NATS wins below the
        // crossing, the wrong way round for a threshold: all take what wins at their mean size.
        let (queue_count, queue_bytes) = self.queue.traffic();
        let (nats_count, nats_bytes) = self.nats.traffic();
        let mean_bytes = (queue_bytes + nats_bytes) / (queue_count + nats_count);
        if head_start_s - gain_per_byte_s * mean_bytes >= 0.0 { max } else { min }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn router(config: RouterConfig) -> Router {
        Router::new(config).expect("the tests' configurations are valid")
    }

    /// Publishes sizes in turn, a millisecond apart, where the router sends them; counts changes.
    fn publish(
        router: &mut Router,
        start_ms: u64,
        count: u64,
        sizes: &[u64],
        cost_us: impl Fn(Route, u64) -> u64,
    ) -> Vec<(u64, ThresholdChange)> {
        let mut changes = Vec::new();
        for (step, size) in (0..count).zip(sizes.iter().cycle()) {
            let route = router.choose(*size).route;
            let cost = Duration::from_micros(cost_us(route, *size));
            let now_ms = start_ms + step;
            let change = router.observe(route, *size, cost, Duration::from_millis(now_ms));
            changes.extend(change.map(|change| (now_ms, change)));
        }
        changes
    }

    /// The queue takes 1 us for each KiB, NATS 100 us and a fifth of that: equal at 125 KiB.
    fn crossing_at_125_kib(route: Route, size: u64) -> u64 {
        match route {
            Route::Queue => size / KIB,
            Route::Nats => 100 + size / KIB / 5,
        }
    }

    #[test]
    fn starts_at_64_kib_and_knows_that_it_knows_nothing() {
        let mut router = router(RouterConfig::default());
        let below = Decision { route: Route::Queue, reason: Reason::Below };
        let above = Decision { route: Route::Nats, reason: Reason::AtOrAbove };
        assert_eq!((router.choose(64 * KIB - 1), router.choose(64 * KIB)), (below, above));
        let explanation = router.explain(0);
        assert_eq!((explanation.queue_cost, explanation.nats_cost), (None, None));
        assert!(!explanation.learned);
    }

    #[test]
    fn learns_the_crossing_and_explains_it() {
        let mut router = router(RouterConfig::default());
        let sizes = [8 * KIB, 32 * KIB, 70 * KIB, 110 * KIB, 200 * KIB, 500 * KIB];
        let changes = publish(&mut router, 0, 60_000, &sizes, crossing_at_125_kib);
        assert_eq!(changes.len(), 1);
        assert!((115 * KIB..135 * KIB).contains(&router.threshold_bytes()));
        let explanation = router.explain(50 * KIB);
        assert!(explanation.learned);
        assert_eq!((explanation.route, explanation.changes_count), (Route::Queue, 1));
        let costs = explanation.queue_cost.zip(explanation.nats_cost);
        assert!(costs.is_some_and(|(queue, nats)| queue < nats));
        assert_eq!(explanation.queue_samples + explanation.nats_samples, 60_000);
    }

    #[test]
    fn without_probes_lines_are_extrapolated() {
        let mut router = router(RouterConfig { probe_every: 0, ..RouterConfig::default() });
        let sizes = [8 * KIB, 32 * KIB, 70 * KIB, 110 * KIB, 200 * KIB, 500 * KIB];
        publish(&mut router, 0, 60_000, &sizes, crossing_at_125_kib);
        assert!((115 * KIB..135 * KIB).contains(&router.threshold_bytes()));
    }

    #[test]
    fn one_message_in_64_on_each_side_is_a_probe_the_first_32_come_sooner() {
        let mut router = router(RouterConfig::default());
        let probes = |router: &mut Router, size: u64, other: Route| {
            let decisions = (0..6_400).map(|_| router.choose(size));
            decisions.filter(|one| (one.route, one.reason) == (other, Reason::Probe)).count()
        };
        assert_eq!(probes(&mut router, 16 * KIB, Route::Nats), 32 + 96);
        assert_eq!(probes(&mut router, 256 * KIB, Route::Queue), 32 + 96);
        assert_eq!(probes(&mut router, 16 * KIB, Route::Nats), 100);
        assert_eq!(probes(&mut router, 5_000 * KIB, Route::Queue), 100);
        assert_eq!(probes(&mut router, 16 * KIB - 1, Route::Nats), 0);
    }

    #[test]
    fn a_stall_of_the_server_does_not_move_the_threshold() {
        let mut router = router(RouterConfig::default());
        let sizes = [8 * KIB, 32 * KIB, 70 * KIB, 110 * KIB, 200 * KIB, 500 * KIB];
        publish(&mut router, 0, 60_000, &sizes, crossing_at_125_kib);
        let stalled = |route: Route, size: u64| {
            crossing_at_125_kib(route, size) * if route == Route::Nats { 1_000 } else { 1 }
        };
        let changes = publish(&mut router, 60_000, 500, &sizes, stalled);
        assert_eq!(changes, []);
        let changes = publish(&mut router, 60_500, 30_000, &sizes, crossing_at_125_kib);
        assert_eq!(changes, []);
    }

    #[test]
    fn the_threshold_stays_near_sizes_that_exist() {
        let mut router = router(RouterConfig::default());
        let queue_always = |route: Route, _| if route == Route::Queue { 10 } else { 1_000 };
        publish(&mut router, 0, 30_000, &[100 * KIB], queue_always);
        assert_eq!(router.threshold_bytes(), 200 * KIB);
        let nats_always = |route: Route, _| if route == Route::Nats { 10 } else { 1_000 };
        publish(&mut router, 30_000, 200_000, &[100 * KIB], nats_always);
        assert_eq!(router.threshold_bytes(), 50 * KIB);
    }

    #[test]
    fn lines_that_cross_the_wrong_way_round_pick_the_route_of_the_mean_size() {
        // NATS wins below 125 KiB, the queue above.
        let wrong_way = |route: Route, size: u64| match route {
            Route::Queue => crossing_at_125_kib(Route::Nats, size),
            Route::Nats => crossing_at_125_kib(Route::Queue, size),
        };
        let small = [20 * KIB, 40 * KIB, 70 * KIB, 90 * KIB];
        let large = [40 * KIB, 70 * KIB, 500 * KIB, 3 << 20];
        for (sizes, route) in [(small, Route::Nats), (large, Route::Queue)] {
            let mut router = router(RouterConfig::default());
            publish(&mut router, 0, 120_000, &sizes, wrong_way);
            assert_eq!(sizes.map(|size| router.explain(size).route), [route; 4]);
        }
    }

    #[test]
    fn texts_say_where_and_why() {
        let mut router = router(RouterConfig::default());
        let sizes = [8 * KIB, 32 * KIB, 70 * KIB, 110 * KIB, 200 * KIB, 500 * KIB];
        let changes = publish(&mut router, 0, 30_000, &sizes, crossing_at_125_kib);
        for (_, change) in changes {
            let line = change.to_string();
            assert!(line.contains("65536") && line.contains(&change.to_bytes.to_string()));
            assert!(!line.contains('\n'));
        }
        let sentence = router.explain(123).to_string();
        assert!(sentence.contains("123") && sentence.contains("queue"));
    }
}
