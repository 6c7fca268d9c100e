//! The handle: opens the stores, hands out publishers and subscribers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::frame::CodecOption;
use crate::hybrid::{self, GroupInfo, HubOptions, Mode, SubscribeOptions};
use crate::nats::StreamLimits;
use crate::py::bound::ProcessBound;
use crate::py::check;
use crate::py::connect::nats_options;
use crate::py::error::OrRaise;
use crate::py::publisher::Publisher;
use crate::py::subscriber::Subscriber;
use crate::queue::{Retention, TopicInfo};
use crate::router::{self, RouterConfig};

/// A retention: `age_ms_max`, `bytes_max`, `msgs_max`, `unacked`.
type Limits = (Option<u64>, Option<u64>, Option<u64>, bool);

/// One open directory, one open connection, or both.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Hub {
    pub(super) inner: Arc<ProcessBound<hybrid::Hub>>,
}

#[pymethods]
impl Hub {
    /// Opens the stores that the options name. Blocks.
    #[new]
    fn new(py: Python<'_>, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let options = hub_options(options)?;
        let hub = py.detach(|| hybrid::Hub::open(options)).or_raise(py)?;
        Ok(Self { inner: Arc::new(ProcessBound::new(hub)) })
    }

    /// A publisher of the topic; the topic is made where it does not exist yet.
    /// codec: of its messages, None for the handle's.
    #[pyo3(signature = (topic, codec=None, codec_level=None))]
    fn publisher(
        &self,
        py: Python<'_>,
        topic: &str,
        codec: Option<&str>,
        codec_level: Option<i32>,
    ) -> PyResult<Publisher> {
        let codec = codec.map(|name| CodecOption::parse(name, codec_level));
        let codec = codec.transpose().or_raise(py)?;
        let topic = py.detach(|| self.inner.get()?.topic(topic)).or_raise(py)?;
        Ok(Publisher::new(topic, codec))
    }

    /// A subscriber of the topic for a subscription group. start: "first" or "new", for a new
    /// group.
    #[expect(clippy::too_many_arguments, reason = "the options of one call")]
    fn subscribe(
        &self,
        py: Python<'_>,
        topic: &str,
        group: &str,
        start: &str,
        ack_wait_s: Option<f64>,
        max_deliver: Option<u32>,
        dead_letter_topic: Option<&str>,
    ) -> PyResult<Subscriber> {
        let open = || {
            let hub = self.inner.get()?;
            let options = SubscribeOptions {
                start: start.parse()?,
                ack_wait: ack_wait_s.and_then(|wait| Duration::try_from_secs_f64(wait).ok()),
                deliveries_max: max_deliver,
                dead_letters: dead_letter_topic.map(|name| hub.topic(name)).transpose()?,
            };
            hybrid::Subscriber::open(&hub.topic(topic)?, group, &options)
        };
        py.detach(open).or_raise(py).map(Subscriber::new)
    }

    /// The names of all topics.
    fn topics(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        py.detach(|| self.inner.get()?.topics()).or_raise(py)
    }

    /// What a topic holds, and its own retention.
    fn topic_info<'py>(&self, py: Python<'py>, topic: &str) -> PyResult<Bound<'py, PyDict>> {
        let (info, retention) = py.detach(|| self.inner.get()?.topic_info(topic)).or_raise(py)?;
        topic_dict(py, &info, retention)
    }

    /// How far the groups of a topic are.
    fn groups<'py>(&self, py: Python<'py>, topic: &str) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let groups = py.detach(|| self.inner.get()?.groups(topic)).or_raise(py)?;
        groups.iter().map(|group| group_dict(py, group)).collect()
    }

    /// Deletes a group and its cursor.
    fn delete_group(&self, py: Python<'_>, topic: &str, group: &str) -> PyResult<()> {
        py.detach(|| self.inner.get()?.delete_group(topic, group)).or_raise(py)
    }

    /// Gives a topic a retention of its own; None: it has the handle's again.
    fn set_retention(
        &self,
        py: Python<'_>,
        topic: &str,
        retention: Option<Limits>,
    ) -> PyResult<()> {
        let retention = retention.map(|(age_ms_max, bytes_max, msgs_max, unacked)| Retention {
            age_ms_max,
            bytes_max,
            msgs_max,
            unacked,
        });
        py.detach(|| self.inner.get()?.set_retention(topic, retention.as_ref())).or_raise(py)
    }

    /// Deletes what retention allows, now; returns messages and bytes.
    fn retain(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let done = py.detach(|| self.inner.get()?.retain()).or_raise(py)?;
        Ok((done.messages, done.bytes))
    }

    /// Purges the frames of groups that were never whole and are that old; returns the number of
    /// groups.
    fn sweep_topic(&self, py: Python<'_>, topic: &str, age_s: f64) -> PyResult<u64> {
        let age = Duration::try_from_secs_f64(age_s).unwrap_or(Duration::MAX);
        py.detach(|| self.inner.get()?.sweep_topic(topic, age)).or_raise(py)
    }

    /// Deletes all messages of a topic; returns messages and bytes.
    fn purge_topic(&self, py: Python<'_>, topic: &str) -> PyResult<(u64, u64)> {
        let done = py.detach(|| self.inner.get()?.purge_topic(topic)).or_raise(py)?;
        Ok((done.messages, done.bytes))
    }

    /// Deletes a topic, its groups and its stream.
    fn delete_topic(&self, py: Python<'_>, topic: &str) -> PyResult<()> {
        py.detach(|| self.inner.get()?.delete_topic(topic)).or_raise(py)
    }

    /// Which route a message of that size takes now, and why.
    fn explain(&self, py: Python<'_>, size_bytes: u64) -> PyResult<Explanation> {
        let hub = self.inner.get().or_raise(py)?;
        Ok(Explanation { inner: hub.explain(size_bytes), mode: hub.options().mode, size_bytes })
    }

    /// Counts since the handle was opened.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.inner.get().or_raise(py)?.stats();
        let out = PyDict::new(py);
        out.set_item("published_queue", stats.published_queue)?;
        out.set_item("published_nats", stats.published_nats)?;
        out.set_item("rerouted", stats.rerouted)?;
        out.set_item("aborted", stats.aborted)?;
        out.set_item("unknown", stats.unknown)?;
        out.set_item("missing", stats.missing)?;
        out.set_item("swept", stats.swept)?;
        out.set_item("threshold_bytes", stats.threshold_bytes)?;
        Ok(out)
    }

    /// What was replayed, dropped and repaired at the open; None without a queue.
    fn recovery<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.inner.get().or_raise(py)?.recovery().map(|one| check::recovery(py, one)).transpose()
    }

    /// Releases the directory and the connection. A second call does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.get()?.close()).or_raise(py)
    }
}

/// Which route a size takes, and why.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Explanation {
    inner: router::Explanation,
    mode: Mode,
    size_bytes: u64,
}

#[pymethods]
impl Explanation {
    /// The size asked about, in bytes.
    #[getter]
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// "queue" or "nats".
    #[getter]
    fn route(&self) -> &'static str {
        match self.mode {
            Mode::Queue => "queue",
            Mode::Nats => "nats",
            Mode::Hybrid => self.inner.route.name(),
        }
    }

    /// Why, in one sentence.
    #[getter]
    fn reason(&self) -> String {
        match self.mode {
            Mode::Queue => "mode 'queue' has one route".to_owned(),
            Mode::Nats => "mode 'nats' has one route".to_owned(),
            Mode::Hybrid => self.inner.to_string(),
        }
    }

    /// Size at which the cheaper route changes, in bytes.
    #[getter]
    fn threshold_bytes(&self) -> u64 {
        self.inner.threshold_bytes
    }

    /// Predicted publish-to-receipt time on the queue route, in seconds; None until observed
    /// enough.
    #[getter]
    fn queue_cost_s(&self) -> Option<f64> {
        self.inner.queue_cost.map(|cost| cost.as_secs_f64())
    }

    /// Predicted publish-to-receipt time on the NATS route, in seconds; None until observed enough.
    #[getter]
    fn nats_cost_s(&self) -> Option<f64> {
        self.inner.nats_cost.map(|cost| cost.as_secs_f64())
    }

    /// The threshold comes from measured cost, not from the start value.
    #[getter]
    fn learned(&self) -> bool {
        self.inner.learned
    }

    fn __repr__(&self) -> String {
        format!("Explanation(route='{}', reason={:?})", self.route(), self.reason())
    }
}

/// What a topic holds, as `vecmq.TopicInfo` takes it.
pub(super) fn topic_dict<'py>(
    py: Python<'py>,
    info: &TopicInfo,
    retention: Option<Retention>,
) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("first_seq", info.first_seq)?;
    out.set_item("next_seq", info.next_seq)?;
    out.set_item("messages", info.messages)?;
    out.set_item("size_bytes", info.bytes)?;
    out.set_item("file_bytes", info.file_bytes)?;
    out.set_item("first_time_ms", info.first_time_ms)?;
    out.set_item("last_time_ms", info.last_time_ms)?;
    out.set_item("open", info.open)?;
    let own = |r: Retention| (r.age_ms_max, r.bytes_max, r.msgs_max, r.unacked);
    out.set_item("retention", retention.map(own))?;
    Ok(out)
}

/// How far a group is, as `vecmq.GroupInfo` takes it.
pub(super) fn group_dict<'py>(py: Python<'py>, group: &GroupInfo) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("name", &group.name)?;
    out.set_item("next_seq", group.next_seq)?;
    out.set_item("done_above", group.done_above)?;
    out.set_item("lag", group.lag)?;
    out.set_item("handed_out", group.handed_out)?;
    out.set_item("subscribers", group.subscribers)?;
    Ok(out)
}

/// Reads the options that `vecmq._open` has checked; every key is there.
fn hub_options(options: &Bound<'_, PyDict>) -> PyResult<HubOptions> {
    let py = options.py();
    let threshold_bytes: Option<u64> = field(options, "threshold_bytes")?;
    let defaults = RouterConfig::default();
    let router = match threshold_bytes {
        Some(bytes) => RouterConfig { threshold_start_bytes: bytes, fixed: true, ..defaults },
        None => defaults,
    };
    let nats: Option<Bound<'_, PyDict>> = field(options, "nats")?;
    Ok(HubOptions {
        mode: field::<String>(options, "mode")?.parse().or_raise(py)?,
        queue_path: field::<Option<PathBuf>>(options, "queue_path")?,
        nats: nats.map(|nats| nats_options(&nats)).transpose()?,
        durable: field(options, "durable")?,
        codec: CodecOption::parse(
            &field::<String>(options, "codec")?,
            field(options, "codec_level")?,
        )
        .or_raise(py)?,
        link_bytes_per_s: field(options, "link_bytes_per_s")?,
        message_bytes_max: field(options, "message_bytes_max")?,
        router,
        retention: Retention {
            age_ms_max: field(options, "age_ms_max")?,
            bytes_max: field(options, "bytes_max")?,
            msgs_max: field(options, "msgs_max")?,
            unacked: field(options, "unacked")?,
        },
        attach: field(options, "attach")?,
        stream_limits: StreamLimits {
            age_ms_max: field(options, "age_ms_max")?,
            bytes_max: field(options, "bytes_max")?,
            msgs_max: field(options, "msgs_max")?,
            replicas: field(options, "replicas")?,
            atomic: field(options, "atomic")?,
        },
    })
}

pub(super) fn field<'py, T>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<T>
where
    T: FromPyObjectOwned<'py>,
{
    let value = options
        .get_item(name)?
        .ok_or_else(|| PyKeyError::new_err(format!("option {name:?} is missing")))?;
    value.extract().map_err(Into::into)
}
