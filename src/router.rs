//! Which route a message of a size takes, and why.
//!
//! The cost of a route is a line, a + b x bytes, fitted to what publishing took, with old samples
//! fading. Where the two lines cross is the threshold. Each route is mostly seen on its own side of
//! the threshold, so a small share of the messages near it goes the other way: without these probes
//! the crossing would be an extrapolation for ever.
//!
//! Pure: no IO, no randomness, and the clock is an argument.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// Samples of a route before its line is believed.
const SAMPLES_MIN: u64 = 32;
/// Sizes are weighed by 1/(bytes + this)^2: relative errors count, so the large do not drown the
/// small.
const SMALL_BYTES: f64 = 4096.0;
/// A sample counts as at most this many times what was predicted: a stall is one sample, not the
/// new normal; a lasting shift gets through in a few steps all the same.
const OUTLIER_FACTOR: f64 = 8.0;
/// Probes go the other way when the size is within this factor of the threshold.
const PROBE_FACTOR: u64 = 4;
/// Lines are compared over this range, one step for each doubling.
const SIZE_BYTES_MAX: u64 = 1 << 40;

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// The embedded log.
    Queue,
    /// JetStream.
    Nats,
}

impl Route {
    /// The word that receipts carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Nats => "nats",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Queue => Self::Nats,
            Self::Nats => Self::Queue,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Route {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "queue" => Ok(Self::Queue),
            "nats" => Ok(Self::Nats),
            _ => Err(Error::new(
                ErrorKind::Config,
                format!("route: expected 'queue' or 'nats', got {text:?}"),
            )),
        }
    }
}

/// How the threshold may move.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// The threshold until enough is known, in bytes.
    pub threshold_start_bytes: u64,
    /// The threshold never goes below, in bytes.
    pub threshold_min_bytes: u64,
    /// The threshold never goes above, in bytes.
    pub threshold_max_bytes: u64,
    /// The threshold stays at its start value, and nothing is probed.
    pub fixed: bool,
    /// A sample this old counts half.
    pub half_life: Duration,
    /// The threshold moves only when the crossing differs by more than this share of it.
    pub hysteresis: f64,
    /// The threshold stays at least this long.
    pub dwell: Duration,
    /// One message in so many, of those near the threshold, goes the other way; 0: none.
    pub probe_every: u32,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            threshold_start_bytes: 64 << 10,
            threshold_min_bytes: 1 << 10,
            threshold_max_bytes: 8 << 20,
            fixed: false,
            half_life: Duration::from_secs(30),
            hysteresis: 0.25,
            dwell: Duration::from_secs(5),
            probe_every: 64,
        }
    }
}

impl RouterConfig {
    /// Checks the values against each other.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming the value and its limit.
    pub fn validate(&self) -> Result<()> {
        let bad = |context: String| Err(Error::new(ErrorKind::Config, context));
        let (min, max) = (self.threshold_min_bytes, self.threshold_max_bytes);
        if min > max || max > SIZE_BYTES_MAX {
            return bad(format!(
                "threshold: expected min <= max <= 2^40 bytes, got {min} and {max}"
            ));
        }
        if !self.fixed && !(min..=max).contains(&self.threshold_start_bytes) {
            let start = self.threshold_start_bytes;
            return bad(format!(
                "threshold: expected a start of {min} to {max} bytes, got {start}"
            ));
        }
        if !(0.0..10.0).contains(&self.hysteresis) {
            return bad(format!("hysteresis: expected 0 to 10, got {}", self.hysteresis));
        }
        if self.half_life.is_zero() {
            return bad("half life: expected more than 0 s".to_owned());
        }
        Ok(())
    }
}

/// Why a message goes where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Smaller than the threshold.
    Below,
    /// At the threshold or larger.
    AtOrAbove,
    /// Sent the other way, to keep both costs known.
    Probe,
    /// The threshold was given, not learned.
    Fixed,
}

/// A route and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where the message goes.
    pub route: Route,
    /// Why.
    pub reason: Reason,
}

/// A fitted line: publish to receipt takes a + b x bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Seconds for an empty message.
    pub base_s: f64,
    /// Seconds for each byte.
    pub per_byte_s: f64,
}

impl Cost {
    fn at(self, size_bytes: u64) -> f64 {
        self.base_s + self.per_byte_s * size_bytes as f64
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} us + {:.3} ns/byte", self.base_s * 1e6, self.per_byte_s * 1e9)
    }
}

/// The threshold has moved. Its `Display` is the log line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThresholdChange {
    /// Before, in bytes.
    pub from_bytes: u64,
    /// From now on, in bytes.
    pub to_bytes: u64,
    /// The queue's line.
    pub queue: Cost,
    /// The NATS route's line.
    pub nats: Cost,
}

impl fmt::Display for ThresholdChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "threshold {} -> {} bytes (queue {}, nats {})",
            self.from_bytes, self.to_bytes, self.queue, self.nats
        )
    }
}

/// Which route a size takes now, why, and what both would cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The size asked about, in bytes.
    pub size_bytes: u64,
    /// Where it goes, probes aside.
    pub route: Route,
    /// Why.
    pub reason: Reason,
    /// The threshold, in bytes.
    pub threshold_bytes: u64,
    /// Predicted on the queue; None until enough was observed.
    pub queue_cost: Option<Duration>,
    /// Predicted on the NATS route; None until enough was observed.
    pub nats_cost: Option<Duration>,
    /// Publishes observed on the queue.
    pub queue_samples: u64,
    /// Publishes observed on the NATS route.
    pub nats_samples: u64,
    /// How often the threshold has moved.
    pub changes_count: u64,
    /// The threshold comes from both lines.
    pub learned: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.size_bytes < self.threshold_bytes { "below" } else { "not below" };
        let origin = match (self.reason, self.learned) {
            (Reason::Fixed, _) => "fixed",
            (_, true) => "learned",
            (_, false) => "start value, not enough observed yet",
        };
        write!(
            f,
            "{} bytes are {side} the threshold of {} bytes ({origin})",
            self.size_bytes, self.threshold_bytes
        )?;
        for (route, cost, samples) in [
            (Route::Queue, self.queue_cost, self.queue_samples),
            (Route::Nats, self.nats_cost, self.nats_samples),
        ] {
            match cost {
                Some(cost) => write!(
                    f,
                    "; {route} would take {:.1} us ({samples} publishes seen)",
                    cost.as_secs_f64() * 1e6
                )?,
                None => write!(f, "; {route} not known ({samples} publishes seen)")?,
            }
        }
        Ok(())
    }
}

/// Decayed sums of a weighted least-squares line.
#[derive(Clone, Debug, Default)]
struct Line {
    w: f64,
    wx: f64,
    wy: f64,
    wxx: f64,
    wxy: f64,
    updated: Duration,
    samples: u64,
}

impl Line {
    fn observe(&mut self, size_bytes: u64, cost_s: f64, now: Duration, half_life: Duration) {
        let age_s = now.saturating_sub(self.updated).as_secs_f64();
        let fade = (-age_s / half_life.as_secs_f64()).exp2();
        let x = size_bytes.min(SIZE_BYTES_MAX) as f64;
        let predicted = self.cost().map(|cost| cost.at(size_bytes));
        let y =
            predicted.map_or(cost_s, |expected| cost_s.min(expected.max(1e-6) * OUTLIER_FACTOR));
        // Relative weights, scaled so that the sums stay near 1.
        let weight = (SMALL_BYTES / (x + SMALL_BYTES)).powi(2);
        let x = x / SMALL_BYTES;
        self.w = self.w * fade + weight;
        self.wx = self.wx * fade + weight * x;
        self.wy = self.wy * fade + weight * y;
        self.wxx = self.wxx * fade + weight * x * x;
        self.wxy = self.wxy * fade + weight * x * y;
        self.updated = now.max(self.updated);
        self.samples = self.samples.saturating_add(1);
    }

    /// The line, once enough was observed and not all of it faded; never negative.
    fn cost(&self) -> Option<Cost> {
        if self.samples < SAMPLES_MIN || self.w < 1e-12 {
            return None;
        }
        let (mean_x, mean_y) = (self.wx / self.w, self.wy / self.w);
        let variance = self.wxx / self.w - mean_x * mean_x;
        let covariance = self.wxy / self.w - mean_x * mean_y;
        // One size only: all that is known is that it costs so much.
        let slope = if variance > mean_x * mean_x * 1e-6 { covariance / variance } else { 0.0 };
        let slope = slope.max(0.0).min(mean_y / mean_x.max(1e-9));
        let base = (mean_y - slope * mean_x).max(0.0);
        Some(Cost { base_s: base, per_byte_s: slope / SMALL_BYTES })
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
    near_count: u32,
    learned: bool,
}

impl Router {
    /// A router that knows nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] as [`RouterConfig::validate`].
    pub fn new(config: RouterConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            threshold_bytes: config.threshold_start_bytes,
            config,
            queue: Line::default(),
            nats: Line::default(),
            changed: None,
            changes_count: 0,
            near_count: 0,
            learned: false,
        })
    }

    /// The size from which messages take the NATS route, in bytes.
    pub fn threshold_bytes(&self) -> u64 {
        self.threshold_bytes
    }

    /// Where a message of that size goes. Counts it: one in `probe_every` near the threshold is a
    /// probe.
    pub fn choose(&mut self, size_bytes: u64) -> Decision {
        let decision = self.by_threshold(size_bytes);
        let near = size_bytes >= self.threshold_bytes / PROBE_FACTOR
            && size_bytes / PROBE_FACTOR <= self.threshold_bytes;
        if self.config.fixed || self.config.probe_every == 0 || !near {
            return decision;
        }
        self.near_count += 1;
        if self.near_count < self.config.probe_every {
            return decision;
        }
        self.near_count = 0;
        Decision { route: decision.route.other(), reason: Reason::Probe }
    }

    fn by_threshold(&self, size_bytes: u64) -> Decision {
        let (route, reason) = if size_bytes < self.threshold_bytes {
            (Route::Queue, Reason::Below)
        } else {
            (Route::Nats, Reason::AtOrAbove)
        };
        Decision { route, reason: if self.config.fixed { Reason::Fixed } else { reason } }
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
        line.observe(size_bytes, cost.as_secs_f64(), now, self.config.half_life);
        if self.config.fixed {
            return None;
        }
        let (queue, nats) = (self.queue.cost()?, self.nats.cost()?);
        self.learned = true;
        let crossing = self.crossing(queue, nats);
        let from_bytes = self.threshold_bytes;
        let moved =
            crossing.abs_diff(from_bytes) as f64 > from_bytes as f64 * self.config.hysteresis;
        let settled = self.changed.is_none_or(|at| now.saturating_sub(at) >= self.config.dwell);
        if !moved || !settled {
            return None;
        }
        self.threshold_bytes = crossing;
        self.changed = Some(now);
        self.changes_count += 1;
        Some(ThresholdChange { from_bytes, to_bytes: crossing, queue, nats })
    }

    /// The size at which the lines cross; where one route is cheaper everywhere, the end of the
    /// range.
    fn crossing(&self, queue: Cost, nats: Cost) -> u64 {
        let (min, max) = (self.config.threshold_min_bytes, self.config.threshold_max_bytes);
        let gain_per_byte = queue.per_byte_s - nats.per_byte_s;
        let head_start = nats.base_s - queue.base_s;
        if gain_per_byte <= 0.0 {
            return if queue.at(max) <= nats.at(max) { max } else { min };
        }
        let bytes = (head_start / gain_per_byte).clamp(min as f64, max as f64);
        // Between min and max, both below 2^40: exact enough in f64, and no sign to lose.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped above"
        )]
        let bytes = bytes as u64;
        bytes
    }

    /// Where a message of that size goes now, why, and what both routes would cost. Counts nothing.
    pub fn explain(&self, size_bytes: u64) -> Explanation {
        let decision = self.by_threshold(size_bytes);
        let predict = |line: &Line| {
            line.cost().and_then(|cost| Duration::try_from_secs_f64(cost.at(size_bytes)).ok())
        };
        Explanation {
            size_bytes,
            route: decision.route,
            reason: decision.reason,
            threshold_bytes: self.threshold_bytes,
            queue_cost: predict(&self.queue),
            nats_cost: predict(&self.nats),
            queue_samples: self.queue.samples,
            nats_samples: self.nats.samples,
            changes_count: self.changes_count,
            learned: self.learned,
        }
    }
}
