//! What a route costs: a line over the size, fitted to what publishing took; old samples fade.
//!
//! Weighted least squares over running sums, each multiplied by a fade before a sample is added,
//! so that nothing grows with time. What keeps the line honest:
//!
//! - *Weights* are 1/(bytes + 4 KiB)^2: errors count relative to the size, so that 8 MiB messages
//!   do not drown what is known about an empty one.
//! - *Time* counts, not messages: samples share a credit that fills with time. Else a route that
//!   was busy and now sees only probes would believe its crowd of old samples for many half lives,
//!   and one stall would count as often as there were messages in flight. A slow topic, where a
//!   half life sees few messages, keeps about its last 64 samples however old they are.
//! - *A prior* worth a sixteenth of a sample says that half of the cost goes with the size, give
//!   or take. It vanishes once sizes vary. Where all messages have one size (the usual stream of
//!   embeddings) it is all there is about the slope: the line is sure at that size, unsure
//!   elsewhere.
//! - *Outliers* are cut to 8 times what was predicted: a pause that makes a few messages 1,000
//!   times slower counts as if they had been 8 times slower. A lasting rise still gets through, as
//!   the prediction follows: a rise of 1,000 times is found in about two half lives. Samples that
//!   are too low are not cut, they move the line by little; a lasting fall to 1/k takes log2(k)
//!   half lives.
//!
//! A second set of sums keeps the squared errors of the predictions, for the standard error of the
//! line at any size (the "sandwich" estimate). It assumes nothing about the noise: samples that
//! are few, noisy, close together or far from the size in question all show as what they are.

use std::f64::consts::LN_2;
use std::fmt;
use std::time::Duration;

/// Samples of a route before its line is believed.
const SAMPLES_KNOWN: u64 = 32;
/// Fading stops at this count: a slow topic keeps its last samples, however old.
const COUNT_KEPT: f64 = 63.0;
/// Faded samples at most: messages that come faster count less each.
const COUNT_FULL: f64 = 512.0;
/// Credit at most; a sample takes this part of it, so that the samples of a burst share it.
const CREDIT_FULL: f64 = 32.0;
/// Samples before outliers are cut.
const SAMPLES_CUT: u64 = 8;
/// A sample counts as at most this many times what was predicted.
const OUTLIER_FACTOR: f64 = 8.0;
/// What was predicted counts as at least this when outliers are cut, in seconds.
const PREDICTED_S_MIN: f64 = 1e-6;
/// Unit of sizes in the sums, and the size below which a weight hardly grows.
const UNIT_BYTES: f64 = 4096.0;
/// Samples that the prior is worth.
const PRIOR: f64 = 0.0625;
/// Standard deviation of a number that is anywhere between 0 and 1: sqrt(1/12).
const UNIFORM_DEVIATION: f64 = 0.288_675;

/// A fitted line: publish to receipt takes a + b x bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Seconds for an empty message.
    pub base_s: f64,
    /// Seconds for each byte.
    pub per_byte_s: f64,
}

impl Cost {
    /// Seconds for a message of that size.
    pub fn at(self, size_bytes: u64) -> f64 {
        self.base_s + self.per_byte_s * size_bytes as f64
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} us + {:.4} ns/byte", self.base_s * 1e6, self.per_byte_s * 1e9)
    }
}

/// The samples of one route, as faded sums.
#[derive(Clone, Debug)]
pub(super) struct Line {
    half_life_s: f64,
    samples: u64,
    updated: Duration,
    credit: f64,
    count: f64,
    size: f64,
    w: f64,
    wx: f64,
    wy: f64,
    wxx: f64,
    wxy: f64,
    error: f64,
    error_x: f64,
    error_xx: f64,
}

/// The line that the sums say, and what its standard error needs.
struct Fit {
    base: f64,
    slope: f64,
    mean_x: f64,
    spread: f64,
    slope_deviation: f64,
}

impl Fit {
    fn at(&self, x: f64) -> f64 {
        self.base + self.slope * x
    }
}

impl Line {
    /// No samples yet.
    pub(super) fn new(half_life: Duration) -> Self {
        Self {
            half_life_s: half_life.as_secs_f64(),
            samples: 0,
            updated: Duration::ZERO,
            credit: CREDIT_FULL,
            count: 0.0,
            size: 0.0,
            w: 0.0,
            wx: 0.0,
            wy: 0.0,
            wxx: 0.0,
            wxy: 0.0,
            error: 0.0,
            error_x: 0.0,
            error_xx: 0.0,
        }
    }

    /// Takes a sample.
    pub(super) fn observe(&mut self, size_bytes: u64, cost: Duration, now: Duration) {
        let share = self.pass_time(now);
        let x = size_bytes as f64 / UNIT_BYTES;
        let expected = self.fit().map_or(0.0, |fit| fit.at(x));
        let mut y = cost.as_secs_f64();
        if self.samples >= SAMPLES_CUT {
            y = y.min(expected.max(PREDICTED_S_MIN) * OUTLIER_FACTOR);
        }
        let weight = share * (1.0 + x).powi(-2);
        self.samples = self.samples.saturating_add(1);
        self.count += share;
        self.size += share * x;
        self.w += weight;
        self.wx += weight * x;
        self.wy += weight * y;
        self.wxx += weight * x * x;
        self.wxy += weight * x * y;
        let error = (weight * (y - expected)).powi(2);
        self.error += error;
        self.error_x += error * x;
        self.error_xx += error * x * x;
    }

    /// Fades the sums; returns how much of a sample the next one counts.
    fn pass_time(&mut self, now: Duration) -> f64 {
        let half_lives = now.saturating_sub(self.updated).as_secs_f64() / self.half_life_s;
        self.updated = self.updated.max(now);
        self.credit = (self.credit + half_lives * COUNT_FULL * LN_2).min(CREDIT_FULL);
        let share = self.credit / CREDIT_FULL;
        self.credit -= share;
        // No count yet: the quotient is infinite, and nothing fades.
        let fade = (-half_lives).exp2().max(COUNT_KEPT / self.count).min(1.0);
        for sum in [
            &mut self.count,
            &mut self.size,
            &mut self.w,
            &mut self.wx,
            &mut self.wy,
            &mut self.wxx,
            &mut self.wxy,
        ] {
            *sum *= fade;
        }
        // These are sums of squares.
        for sum in [&mut self.error, &mut self.error_x, &mut self.error_xx] {
            *sum *= fade * fade;
        }
        share
    }

    fn fit(&self) -> Option<Fit> {
        if self.samples == 0 {
            return None;
        }
        let (mean_x, mean_y) = (self.wx / self.w, self.wy / self.w);
        let steepest = mean_y / (mean_x + 1.0);
        let spread = (self.wxx - self.wx * mean_x).max(0.0) + PRIOR;
        let slope = (self.wxy - self.wx * mean_y + PRIOR * steepest / 2.0) / spread;
        let (base, slope) = if slope <= 0.0 {
            (mean_y, 0.0)
        } else if slope * mean_x > mean_y {
            (0.0, self.wxy / self.wxx)
        } else {
            (mean_y - slope * mean_x, slope)
        };
        Some(Fit { base, slope, mean_x, spread, slope_deviation: steepest * UNIFORM_DEVIATION })
    }

    /// The line, once enough was observed; never negative.
    pub(super) fn cost(&self) -> Option<Cost> {
        let fit = self.fit().filter(|_| self.samples >= SAMPLES_KNOWN)?;
        Some(Cost { base_s: fit.base, per_byte_s: fit.slope / UNIT_BYTES })
    }

    /// Variance of the line at a size, in seconds squared; infinite when nothing was observed.
    pub(super) fn variance(&self, size_bytes: u64) -> f64 {
        let Some(fit) = self.fit() else { return f64::INFINITY };
        // The line at x is the sum of weight * (p + q * x_i) * y_i, plus the prior's share.
        let q = (size_bytes as f64 / UNIT_BYTES - fit.mean_x) / fit.spread;
        let p = 1.0 / self.w - q * fit.mean_x;
        let sampled = self.error * p * p + 2.0 * self.error_x * p * q + self.error_xx * q * q;
        sampled.max(0.0) + (q * PRIOR * fit.slope_deviation).powi(2)
    }

    /// Samples ever taken.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    /// Faded number of samples, and the faded sum of their sizes in bytes.
    pub(super) fn traffic(&self) -> (f64, f64) {
        (self.count, self.size * UNIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_LIFE: Duration = Duration::from_secs(30);

    /// A line over samples of a + b x bytes, a millisecond apart, starting at a time.
    fn feed(line: &mut Line, start_ms: u64, count: u64, sizes: &[u64], a_us: f64, b_ns: f64) {
        for (step, size) in (0..count).zip(sizes.iter().cycle()) {
            let cost = Duration::from_secs_f64(a_us * 1e-6 + b_ns * 1e-9 * *size as f64);
            line.observe(*size, cost, Duration::from_millis(start_ms + step));
        }
    }

    fn fitted(count: u64, sizes: &[u64], a_us: f64, b_ns: f64) -> Line {
        let mut line = Line::new(HALF_LIFE);
        feed(&mut line, 0, count, sizes, a_us, b_ns);
        line
    }

    /// Predicted at a size over what is true.
    fn ratio(line: &Line, size: u64, truth_us: f64) -> f64 {
        line.cost().map_or(f64::NAN, |cost| cost.at(size) / (truth_us * 1e-6))
    }

    #[test]
    fn few_samples_are_no_line() {
        assert_eq!(fitted(31, &[1 << 10, 1 << 16], 100.0, 1.0).cost(), None);
        assert!(fitted(32, &[1 << 10, 1 << 16], 100.0, 1.0).cost().is_some());
    }

    #[test]
    fn the_line_is_found_at_both_ends() {
        let sizes: Vec<u64> = (8..24).map(|bits| 1 << bits).collect();
        let line = fitted(60_000, &sizes, 150.0, 0.5);
        assert!((0.97..1.03).contains(&ratio(&line, 0, 150.0)));
        assert!((0.97..1.03).contains(&ratio(&line, 8 << 20, 150.0 + 0.5e-3 * f64::from(8 << 20))));
    }

    #[test]
    fn one_size_is_sure_there_and_unsure_elsewhere() {
        let line = fitted(60_000, &[100_000], 100.0, 1.0);
        assert!((0.99..1.01).contains(&ratio(&line, 100_000, 200.0)));
        let relative = |size| line.variance(size).sqrt() / 200e-6;
        assert!(relative(100_000) < 0.01);
        assert!(relative(1_000_000) > 1.0);
    }

    #[test]
    fn a_few_outliers_hardly_count() {
        let mut line = fitted(10_000, &[1 << 10, 1 << 14, 1 << 18], 100.0, 0.0);
        feed(&mut line, 10_000, 10, &[1 << 14], 100_000.0, 0.0);
        assert!(ratio(&line, 1 << 14, 100.0) < 1.1);
    }

    #[test]
    fn a_lasting_shift_gets_through() {
        let mut line = fitted(60_000, &[1 << 10, 1 << 14, 1 << 18], 100.0, 0.0);
        feed(&mut line, 60_000, 90_000, &[1 << 10, 1 << 14, 1 << 18], 100_000.0, 0.0);
        assert!((0.5..1.1).contains(&ratio(&line, 1 << 14, 100_000.0)));
        feed(&mut line, 150_000, 150_000, &[1 << 10, 1 << 14, 1 << 18], 10_000.0, 0.0);
        assert!((0.9..1.5).contains(&ratio(&line, 1 << 14, 10_000.0)));
    }

    #[test]
    fn an_idle_day_leaves_the_line_but_little_weight() {
        let mut line = fitted(10_000, &[1 << 10, 1 << 18], 100.0, 1.0);
        feed(&mut line, 86_400_000, 1, &[1 << 10], 100.0, 1.0);
        assert!(line.cost().is_some());
        assert!((63.0..65.0).contains(&line.count));
        feed(&mut line, 86_400_001, 20_000, &[1 << 10, 1 << 18], 200.0, 1.0);
        assert!((0.8..1.01).contains(&ratio(&line, 0, 200.0)));
    }

    #[test]
    fn nothing_grows_over_a_year() {
        let mut line = Line::new(HALF_LIFE);
        for hour in 0..365 * 24 {
            let size = 1 << (hour % 24);
            line.observe(size, HALF_LIFE, Duration::from_secs(hour * 3_600));
        }
        assert!(line.count < 65.0 && line.wxx < 65.0 && line.error.is_finite());
        assert_eq!(line.samples(), 365 * 24);
    }

    #[test]
    fn a_falling_or_steep_cost_never_predicts_below_zero() {
        for (small_us, large_us) in [(1_000, 1), (0, 1_000_000)] {
            let mut line = Line::new(HALF_LIFE);
            for step in 0..200_u64 {
                let (size, cost_us) =
                    if step % 2 == 0 { (1 << 10, small_us) } else { (1 << 20, large_us) };
                line.observe(size, Duration::from_micros(cost_us), Duration::from_millis(step));
            }
            let cost = line.cost();
            assert!(cost.is_some_and(|cost| cost.base_s >= 0.0 && cost.per_byte_s >= 0.0));
        }
    }

    #[test]
    fn extreme_samples_stay_finite() {
        let mut line = Line::new(HALF_LIFE);
        for step in 0..400_u64 {
            let size = if step % 3 == 0 { u64::MAX } else { step % 2 };
            let cost = if step % 5 == 0 { Duration::MAX } else { Duration::ZERO };
            let now = if step % 7 == 0 { Duration::MAX } else { Duration::from_nanos(step) };
            line.observe(size, cost, now);
            assert!(line.variance(u64::MAX).is_finite() && line.variance(0).is_finite());
        }
        let cost = line.cost().map(|cost| cost.at(u64::MAX));
        assert!(cost.is_some_and(|seconds| seconds >= 0.0 && seconds.is_finite()));
    }
}
