//! The first line of stdin.

use serde_json::Value;

use crate::Failure;

/// With more bytes than this in flight large messages get slower, not faster.
pub(crate) const WINDOW_BYTES: usize = 16 << 20;
/// Publishes in flight that are best for small messages.
const WINDOW_MSGS: usize = 1000;

/// What an operation is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Publish and receive.
    PubSub,
    /// Publish; read back off the clock.
    Publish,
    /// Publish at a rate and receive.
    Latency,
    /// Publish and receive, nothing stored.
    Core,
}

/// What the worker is to do.
pub(crate) struct Spec {
    /// What an operation is.
    pub(crate) workload: Workload,
    /// Bytes of each message.
    pub(crate) sizes: Vec<usize>,
    /// Publishes in flight.
    pub(crate) window: usize,
    /// Messages due in a second.
    pub(crate) rate_per_s: Option<f64>,
    /// Address of the server.
    pub(crate) url: String,
    /// Its token.
    pub(crate) token: Option<String>,
}

impl Spec {
    /// Reads the line.
    pub(crate) fn parse(line: &str) -> Result<Self, Failure> {
        let values: Value = serde_json::from_str(line)?;
        let text = |name: &str| values.pointer(name).and_then(Value::as_str).map(str::to_owned);
        let workload = match text("/workload").as_deref() {
            Some("pubsub") => Workload::PubSub,
            Some("publish") => Workload::Publish,
            Some("latency") => Workload::Latency,
            Some("core") => Workload::Core,
            other => {
                let wanted = "expected workload pubsub, publish, latency or core";
                return Err(format!("{wanted}, got {other:?}").into());
            }
        };
        let sizes = if let Some(sizes) = values.pointer("/sizes_bytes").and_then(Value::as_array) {
            let sizes: Option<Vec<usize>> = sizes.iter().map(as_usize).collect();
            sizes.ok_or("expected sizes_bytes as integers")?
        } else {
            let number = |name| values.pointer(name).and_then(as_usize);
            let size = number("/size_bytes").ok_or("expected size_bytes as an integer")?;
            vec![size; number("/count").ok_or("expected count as an integer")?]
        };
        let total: usize = sizes.iter().sum();
        if total == 0 {
            return Err("expected at least one message".into());
        }
        let batch = values.pointer("/batch").and_then(as_usize).unwrap_or(WINDOW_MSGS);
        let rate = values.pointer("/rate_per_s").and_then(Value::as_f64);
        Ok(Self {
            workload,
            window: batch.min(WINDOW_BYTES * sizes.len() / total).clamp(1, sizes.len()),
            sizes,
            rate_per_s: rate.filter(|_| workload == Workload::Latency),
            url: text("/server/url").ok_or("expected a server in the spec")?,
            token: text("/server/token"),
        })
    }
}

fn as_usize(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}
