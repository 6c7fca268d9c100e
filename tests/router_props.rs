//! The router over synthetic routes with a mock clock: converges, does not flap, follows a shift.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use vecmq::ErrorKind;
use vecmq::router::{Decision, Reason, Route, Router, RouterConfig};

/// Sizes that most topics lie in.
const SIZES: (f64, f64) = (256.0, 16e6);
/// Publishes a second in the simulations.
const RATE: u32 = 1_000;

/// What a route really costs.
#[derive(Clone, Copy, Debug)]
struct Truth {
    base_us: f64,
    per_byte_us: f64,
}

impl Truth {
    fn at(self, size_bytes: u64) -> f64 {
        self.base_us + self.per_byte_us * size_bytes as f64
    }
}

/// Queue and NATS, crossing at a size; the shares are the fixed part of each cost there.
fn crossing_at(bytes: f64, cost_us: f64, queue_share: f64, nats_share: f64) -> (Truth, Truth) {
    let truth = |share: f64| Truth {
        base_us: share * cost_us,
        per_byte_us: (1.0 - share) * cost_us / bytes,
    };
    (truth(queue_share), truth(nats_share))
}

/// A router, a clock and a source of noise.
struct Simulation {
    router: Router,
    now: Duration,
    state: u64,
    changed: Vec<Duration>,
}

impl Simulation {
    fn new(config: RouterConfig, seed: u64) -> Self {
        let router = Router::new(config).expect("the tests' configurations are valid");
        Self { router, now: Duration::ZERO, state: seed, changed: Vec::new() }
    }

    /// Evenly between 0 and 1 (splitmix64).
    fn even(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Any size, small ones as often as large ones.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
    fn any_size(&mut self) -> u64 {
        let (min, max) = SIZES;
        (min * (max / min).powf(self.even())) as u64
    }

    /// Publishes for so many seconds, with 30 % noise.
    fn run(
        &mut self,
        seconds: u32,
        (queue, nats): (Truth, Truth),
        size: impl Fn(&mut Self) -> u64,
    ) {
        for _ in 0..seconds * RATE {
            self.now += Duration::from_secs(1) / RATE;
            let size_bytes = size(self);
            let decision = self.router.choose(size_bytes);
            let truth = if decision.route == Route::Queue { queue } else { nats };
            // Even noise of +-52 % has a standard deviation of 30 %.
            let cost_us = truth.at(size_bytes) * (1.0 + 0.52 * (2.0 * self.even() - 1.0));
            let cost = Duration::from_secs_f64(cost_us * 1e-6);
            if self.router.observe(decision.route, size_bytes, cost, self.now).is_some() {
                self.changed.push(self.now);
            }
        }
    }

    /// The threshold over a size, or the size over it: 1 is exact.
    fn off_by(&self, bytes: f64) -> f64 {
        let threshold = self.router.threshold_bytes() as f64;
        (threshold / bytes).max(bytes / threshold)
    }
}

fn crossings() -> impl Strategy<Value = f64> {
    (13.0..21.0_f64).prop_map(f64::exp2)
}

/// The simulations take minutes of mock time: a share of the cases that are asked for.
///
/// What is learned from noise is near the truth most of the time, never always: the cases are the
/// same in every run.
fn few_cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    let cases = config.cases.div_ceil(16).min(500);
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(1), ..config }
}

/// How far from the crossing 64 simulations end, from the best to the worst.
fn off_by_after_two_minutes(config: &RouterConfig) -> Vec<f64> {
    let mut off_by: Vec<f64> = (0..64)
        .map(|seed| {
            let mut simulation = Simulation::new(config.clone(), seed);
            let bytes = f64::exp2(13.0 + 8.0 * simulation.even());
            let cost_us = 20.0 * 100.0_f64.powf(simulation.even());
            let shares = (0.3 * simulation.even(), 0.7 + 0.3 * simulation.even());
            let truth = crossing_at(bytes, cost_us, shares.0, shares.1);
            simulation.run(120, truth, Simulation::any_size);
            assert!(simulation.changed.len() <= 12, "{:?}", simulation.changed);
            simulation.off_by(bytes)
        })
        .collect();
    off_by.sort_by(f64::total_cmp);
    off_by
}

#[test]
fn converges_to_the_crossing() {
    let defaults = RouterConfig::default();
    let precise = RouterConfig { hysteresis: 0.1, probe_every: 16, ..defaults.clone() };
    for (config, limits) in [(defaults, [1.15, 1.3, 1.6]), (precise, [1.1, 1.2, 1.5])] {
        let off_by = off_by_after_two_minutes(&config);
        let [median, nine_in_ten, worst] = limits;
        for (rank, limit) in [(31, median), (57, nine_in_ten), (63, worst)] {
            let factor = off_by.get(rank).copied().unwrap_or(f64::INFINITY);
            assert!(factor < limit, "rank {rank} of {off_by:.3?}: expected less than {limit}");
        }
    }
}

proptest! {
    #![proptest_config(few_cases())]

    #[test]
    fn follows_a_shift(
        seed: u64,
        before in crossings(),
        factor in prop_oneof![0.1..0.3_f64, 3.0..10.0_f64],
        costs in (20.0..2_000.0_f64, 0.5..2.0_f64),
    ) {
        let after = (before * factor).clamp(8e3, 2e6);
        let mut simulation = Simulation::new(RouterConfig::default(), seed);
        simulation.run(60, crossing_at(before, costs.0, 0.1, 0.9), Simulation::any_size);
        simulation.run(150, crossing_at(after, costs.0 * costs.1, 0.1, 0.9), Simulation::any_size);
        prop_assert!(simulation.off_by(after) < 2.0, "{}", simulation.off_by(after));
    }

    #[test]
    fn stays_where_both_cost_the_same(seed: u64, cost_us in 20.0..2_000.0_f64, near: bool) {
        let mut simulation = Simulation::new(RouterConfig::default(), seed);
        let start_bytes = simulation.router.threshold_bytes();
        let truth = crossing_at(start_bytes as f64, cost_us, 0.1, 0.9);
        simulation.run(120, truth, |simulation| {
            if near { start_bytes - 1 + simulation.state % 3 } else { simulation.any_size() }
        });
        prop_assert!(simulation.changed.len() <= 3, "{:?}", simulation.changed);
    }

    #[test]
    fn the_one_size_of_a_topic_takes_the_cheaper_route(
        seed: u64,
        size_bytes in 20_000_u64..250_000,
        factor in prop_oneof![0.1..0.6_f64, 1.7..10.0_f64],
    ) {
        let mut simulation = Simulation::new(RouterConfig::default(), seed);
        let nats = Truth { base_us: 100.0, per_byte_us: 1e-3 };
        let queue = |factor: f64| Truth {
            base_us: 100.0 * factor,
            per_byte_us: 1e-3 * factor,
        };
        let cheaper = |factor: f64| if factor < 1.0 { Route::Queue } else { Route::Nats };
        for factor in [factor, 1.0 / factor, factor] {
            simulation.run(150, (queue(factor), nats), |_| size_bytes);
            prop_assert_eq!(simulation.router.explain(size_bytes).route, cheaper(factor));
        }
    }

    #[test]
    fn between_two_moves_lies_a_dwell(seed: u64, dwell_s in 0..20_u64) {
        let dwell = Duration::from_secs(dwell_s);
        let config = RouterConfig { dwell, ..RouterConfig::default() };
        let mut simulation = Simulation::new(config, seed);
        for bytes in [2e6, 8e3, 5e5] {
            simulation.run(20, crossing_at(bytes, 100.0, 0.1, 0.9), Simulation::any_size);
        }
        for pair in simulation.changed.windows(2) {
            if let [first, second] = pair {
                prop_assert!(*second >= *first + dwell);
            }
        }
    }
}

/// Any value, the ends of the range far more often than chance has it.
fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        any::<u64>(),
        (0..64_u32).prop_map(|bits| 1 << bits)
    ]
}

fn extreme_duration() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(Duration::MAX), extreme().prop_map(Duration::from_nanos)]
}

/// Any configuration that is valid.
fn configs() -> impl Strategy<Value = RouterConfig> {
    let thresholds = [1..=1_u64 << 40, 1..=1_u64 << 40, 1..=1_u64 << 40];
    let probes = prop_oneof![Just(0), 2..100_u32];
    let half_life = extreme_duration().prop_map(|some| some.max(Duration::from_nanos(1)));
    (thresholds, any::<bool>(), half_life, 0.0..=1.0_f64, extreme_duration(), probes).prop_map(
        |(mut thresholds, fixed, half_life, hysteresis, dwell, probe_every)| {
            thresholds.sort_unstable();
            let [threshold_min_bytes, threshold_start_bytes, threshold_max_bytes] = thresholds;
            RouterConfig {
                threshold_start_bytes,
                threshold_min_bytes,
                threshold_max_bytes,
                fixed,
                half_life,
                hysteresis,
                dwell,
                probe_every,
            }
        },
    )
}

/// A publish: route, size, cost, time.
type Publish = (bool, u64, Duration, Duration);

fn publishes() -> impl Strategy<Value = Vec<Publish>> {
    let publish = (any::<bool>(), extreme(), extreme_duration(), extreme_duration());
    prop::collection::vec(publish, 0..300)
}

fn may_be_probed(router: &Router, size_bytes: u64) -> bool {
    u128::from(router.threshold_bytes()) <= 4 * u128::from(size_bytes) + 3
}

proptest! {
    #[test]
    fn no_input_breaks_it(config in configs(), publishes in publishes()) {
        let (min, max) = (config.threshold_min_bytes, config.threshold_max_bytes);
        let (fixed, start) = (config.fixed, config.threshold_start_bytes);
        let mut router = Router::new(config).expect("the strategy makes valid ones");
        for (queue, size_bytes, cost, now) in publishes {
            let explanation = router.explain(size_bytes);
            let decision = router.choose(size_bytes);
            if decision.reason == Reason::Probe {
                prop_assert!(!fixed && may_be_probed(&router, size_bytes));
                prop_assert_ne!(decision.route, explanation.route);
            } else {
                let (route, reason) = (explanation.route, explanation.reason);
                prop_assert_eq!(decision, Decision { route, reason });
                prop_assert_eq!(fixed, reason == Reason::Fixed);
                prop_assert_eq!(route == Route::Queue, size_bytes < router.threshold_bytes());
            }
            prop_assert!(!explanation.to_string().is_empty());

            let before = router.threshold_bytes();
            let route = if queue { Route::Queue } else { Route::Nats };
            let change = router.observe(route, size_bytes, cost, now);
            let after = change.map_or(before, |change| change.to_bytes);
            prop_assert_eq!(after, router.threshold_bytes());
            prop_assert!(change.is_none_or(|change| change.from_bytes == before));
            let valid = if fixed { start..=start } else { min..=max };
            prop_assert!(valid.contains(&router.threshold_bytes()));
        }
    }

    #[test]
    fn probes_are_few(
        sizes in prop::collection::vec((0..24_u32).prop_map(|bits| 1_u64 << bits), 0..2_000),
        probe_every in prop_oneof![Just(0), 2..100_u32],
        fixed: bool,
    ) {
        let config = RouterConfig { probe_every, fixed, ..RouterConfig::default() };
        let mut router = Router::new(config).expect("all of these are valid");
        let probeable_count = sizes.iter().filter(|size| may_be_probed(&router, **size)).count();
        let decisions = sizes.iter().map(|size| router.choose(*size));
        let probes = decisions.filter(|decision| decision.reason == Reason::Probe).count();
        if fixed || probe_every == 0 {
            prop_assert_eq!(probes, 0);
        } else {
            // The first 32 of each side come sooner.
            prop_assert!(probes.saturating_sub(64) * probe_every as usize <= probeable_count);
            prop_assert!(probes * 2 <= probeable_count);
        }
    }
}

#[test]
fn contradictions_are_refused() {
    let config = RouterConfig { threshold_min_bytes: 9 << 20, ..RouterConfig::default() };
    assert_eq!(Router::new(config).map_err(|error| error.kind()).err(), Some(ErrorKind::Config));
}
