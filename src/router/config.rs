//! How the threshold may move.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// No threshold is larger: 1 TiB is beyond any message, and exact in a float.
const THRESHOLD_BYTES_LIMIT: u64 = 1 << 40;

/// How the threshold may move.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// The threshold until enough is known, in bytes.
    pub threshold_start_bytes: u64,
    /// The threshold never goes below, in bytes.
    pub threshold_min_bytes: u64,
    /// The threshold never goes above, in bytes.
    pub threshold_max_bytes: u64,
    /// The threshold stays at its start value, whatever the other two say, and nothing is probed.
    pub fixed: bool,
    /// A sample this old counts half.
    pub half_life: Duration,
    /// The threshold moves only to a size that differs by more than this share: 0.25 is 25 %.
    pub hysteresis: f64,
    /// The threshold stays at least this long where it moved to.
    pub dwell: Duration,
    /// One message in so many, of those not far below the threshold, goes the other way; 0:
    /// none.
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
        if min == 0 || min > max || max > THRESHOLD_BYTES_LIMIT {
            return bad(format!(
                "threshold: expected 1 <= min <= max <= {THRESHOLD_BYTES_LIMIT} bytes, \
                 got min {min} and max {max}"
            ));
        }
        let start = self.threshold_start_bytes;
        if !self.fixed && !(min..=max).contains(&start) {
            return bad(format!(
                "threshold: expected a start of {min} to {max} bytes, got {start}"
            ));
        }
        // Over 1 the threshold could not reach twice the size of a message that proves it wrong.
        if !(0.0..=1.0).contains(&self.hysteresis) {
            return bad(format!("hysteresis: expected 0 to 1, got {}", self.hysteresis));
        }
        if self.half_life.is_zero() {
            return bad("half life: expected more than 0 s, got 0 s".to_owned());
        }
        if self.probe_every == 1 {
            return bad(
                "probes: expected one in 2 or more messages, or 0 for none, got 1".to_owned()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(config: &RouterConfig) -> Option<ErrorKind> {
        config.validate().err().map(|error| error.kind())
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(kind(&RouterConfig::default()), None);
    }

    #[test]
    fn every_value_has_a_limit() {
        let valid = RouterConfig::default;
        for config in [
            RouterConfig { threshold_min_bytes: 0, ..valid() },
            RouterConfig { threshold_min_bytes: 9 << 20, ..valid() },
            RouterConfig { threshold_max_bytes: (1 << 40) + 1, ..valid() },
            RouterConfig { threshold_start_bytes: 1023, ..valid() },
            RouterConfig { threshold_start_bytes: (8 << 20) + 1, ..valid() },
            RouterConfig { hysteresis: -0.1, ..valid() },
            RouterConfig { hysteresis: 1.1, ..valid() },
            RouterConfig { hysteresis: f64::NAN, ..valid() },
            RouterConfig { half_life: Duration::ZERO, ..valid() },
            RouterConfig { probe_every: 1, ..valid() },
        ] {
            assert_eq!(kind(&config), Some(ErrorKind::Config), "{config:?}");
        }
    }

    #[test]
    fn a_fixed_threshold_may_be_any_size() {
        for threshold_start_bytes in [0, 1, u64::MAX] {
            let config =
                RouterConfig { threshold_start_bytes, fixed: true, ..RouterConfig::default() };
            assert_eq!(kind(&config), None);
        }
    }
}
