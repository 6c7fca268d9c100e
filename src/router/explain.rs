//! What the router says of itself: one line for a log, one sentence for a person.

use std::fmt;
use std::time::Duration;

use crate::router::{Cost, Reason, Route};

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

/// Which route a size takes now, why, and what both would cost. Its `Display` is one sentence.
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
    /// Enough was observed on both routes: the threshold stands by what they cost.
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
            "{} bytes go to {}: {side} the threshold of {} bytes ({origin})",
            self.size_bytes, self.route, self.threshold_bytes
        )?;
        for (route, cost, samples) in [
            (Route::Queue, self.queue_cost, self.queue_samples),
            (Route::Nats, self.nats_cost, self.nats_samples),
        ] {
            match cost {
                Some(cost) => {
                    let cost_us = cost.as_secs_f64() * 1e6;
                    write!(f, "; {route} would take {cost_us:.1} us ({samples} publishes seen)")?;
                }
                None => write!(f, "; {route} is not known ({samples} publishes seen)")?,
            }
        }
        Ok(())
    }
}
