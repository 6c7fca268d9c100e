//! A directory that another process owns.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::hybrid::{self, AttachOptions};
use crate::py::bound::ProcessBound;
use crate::py::error::OrRaise;
use crate::py::hub::{group_dict, topic_dict};
use crate::py::subscriber::Subscriber;

/// A directory that another process owns, open for subscribers of this one.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Attached {
    inner: ProcessBound<hybrid::Attached>,
}

#[pymethods]
impl Attached {
    /// Connects to the owner of a queue's directory. Blocks.
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "extracted from a str or a path")]
    fn new(py: Python<'_>, queue_path: PathBuf, message_bytes_max: u64) -> PyResult<Self> {
        let open = || hybrid::Attached::open(&queue_path, message_bytes_max);
        let attached = py.detach(open).or_raise(py)?;
        Ok(Self { inner: ProcessBound::new(attached) })
    }

    /// A subscriber of the topic for a subscription group, as `Hub.subscribe`.
    #[expect(clippy::too_many_arguments, reason = "the options of one call")]
    fn subscribe(
        &self,
        py: Python<'_>,
        topic: &str,
        group: &str,
        start: &str,
        ack_wait_s: Option<f64>,
        max_deliver: Option<u32>,
        dead_letter_topic: Option<String>,
    ) -> PyResult<Subscriber> {
        let open = || {
            let options = AttachOptions {
                start: start.parse()?,
                ack_wait: ack_wait_s.and_then(|wait| Duration::try_from_secs_f64(wait).ok()),
                deliveries_max: max_deliver,
                dead_letters: dead_letter_topic,
            };
            self.inner.get()?.subscribe(topic, group, options)
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
        groups.into_iter().map(|group| group_dict(py, &group.into())).collect()
    }

    /// Ends the connection. A second call does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.get().map(hybrid::Attached::close)).or_raise(py)
    }
}
