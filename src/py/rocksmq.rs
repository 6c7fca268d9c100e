//! Directories of Milvus' `RocksMQ`, and what an import has to see of its destination.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, ErrorKind, Result};
use crate::name::validate_name;
use crate::py::bound::ProcessBound;
use crate::py::buffer::Payload;
use crate::py::error::OrRaise;
use crate::py::hub::Hub;
use crate::queue;

/// A directory pair of Milvus' `RocksMQ`, open for reading.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct RocksMq {
    inner: Mutex<ProcessBound<Option<Arc<queue::RocksMq>>>>,
}

/// What one pass over all messages of a topic found.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct RocksScan(queue::RocksScan);

/// end id, bytes, closed and acknowledged in seconds since the Unix epoch.
type Page = (u64, u64, Option<u64>, Option<u64>);
/// Name, orphaned, made in seconds since the Unix epoch, bytes in the open page, closed pages.
type Topic = (String, bool, Option<u64>, u64, Vec<Page>);

impl RocksMq {
    fn open(&self) -> Result<Arc<queue::RocksMq>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .get()?
            .as_ref()
            .map(Arc::clone)
            .ok_or_else(|| Error::new(ErrorKind::Closed, "the RocksMQ directory is closed"))
    }
}

#[pymethods]
impl RocksMq {
    /// Opens the pair read-only. Blocks.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let opened = py.detach(move || queue::RocksMq::open(&path)).or_raise(py)?;
        Ok(Self { inner: Mutex::new(ProcessBound::new(Some(Arc::new(opened)))) })
    }

    /// All topics by name: name, orphaned, made at, bytes in the open page, closed pages.
    fn topics(&self, py: Python<'_>) -> PyResult<Vec<Topic>> {
        let topics = py.detach(|| self.open()?.topics()).or_raise(py)?;
        Ok(topics.into_iter().map(topic).collect())
    }

    /// Reads every message of a topic once. progress is called now and then with messages and
    /// bytes.
    #[expect(clippy::needless_pass_by_value, reason = "extracted from a Python argument")]
    fn scan(
        &self,
        py: Python<'_>,
        topic: &str,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<RocksScan> {
        let mut stopped = None;
        let scanned = py.detach(|| {
            self.open()?.scan(topic, |messages, bytes| {
                let told = Python::attach(|py| {
                    py.check_signals()?;
                    progress
                        .as_ref()
                        .map_or(Ok(()), |call| call.call1(py, (messages, bytes)).map(drop))
                });
                stopped = told.err();
                stopped.is_none()
            })
        });
        match stopped {
            Some(error) => Err(error),
            None => scanned.map(RocksScan).or_raise(py),
        }
    }

    /// Messages with ids above after, in order: id and payload. An empty list: there are no more.
    fn read(
        &self,
        py: Python<'_>,
        scan: &RocksScan,
        after: Option<u64>,
        messages_max: usize,
        bytes_max: usize,
    ) -> PyResult<Vec<(u64, Payload)>> {
        let read = || self.open()?.read(&scan.0, after, messages_max, bytes_max);
        let messages = py.detach(read).or_raise(py)?;
        Ok(messages.into_iter().map(|(id, bytes)| (id, Payload { bytes })).collect())
    }

    /// Closes the two databases; a Milvus may start on them again.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let close = || {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.get_mut().map(|opened| drop(opened.take()))
        };
        py.detach(close).or_raise(py)
    }
}

#[pymethods]
impl RocksScan {
    /// What the metadata says: name, orphaned, made at, bytes in the open page, closed pages.
    #[getter]
    fn topic(&self) -> Topic {
        topic(self.0.topic.clone())
    }

    /// Messages.
    #[getter]
    fn messages_count(&self) -> u64 {
        self.0.messages_count
    }

    /// Bytes of their payloads.
    #[getter]
    fn payload_bytes(&self) -> u64 {
        self.0.payload_bytes
    }

    /// The largest payload, in bytes.
    #[getter]
    fn payload_bytes_max(&self) -> u64 {
        self.0.payload_bytes_max
    }

    /// The smallest id.
    #[getter]
    fn first_id(&self) -> Option<u64> {
        self.0.first_id
    }

    /// The largest id.
    #[getter]
    fn last_id(&self) -> Option<u64> {
        self.0.last_id
    }

    /// Bytes in pages not yet acknowledged that the metadata counts and that are not there.
    #[getter]
    fn missing_bytes(&self) -> u64 {
        self.0.missing_bytes
    }
}

fn topic(topic: queue::RocksTopic) -> Topic {
    let pages = topic.pages.iter();
    let pages = pages.map(|page| (page.end_id, page.bytes, page.closed_s, page.acked_s)).collect();
    (topic.name, topic.orphaned, topic.created_s, topic.open_page_bytes, pages)
}

/// Checks the name of a topic.
#[pyfunction]
pub(crate) fn check_topic_name(py: Python<'_>, name: &str) -> PyResult<()> {
    validate_name("topic", name).or_raise(py)
}

/// The oldest seq that is left in a topic, and the next one.
#[pyfunction]
pub(crate) fn topic_bounds(py: Python<'_>, hub: &Hub, topic: &str) -> PyResult<(u64, u64)> {
    py.detach(|| hub.inner.get()?.topic(topic)?.bounds()).or_raise(py)
}

/// First seq, messages, headers, payload; without the last two where it is no plain bytes.
type Peeked<'py> = (u64, u32, Option<(Bound<'py, PyDict>, Payload)>);

/// Reads a topic from a seq on without a subscription group: whole records of the log.
#[pyfunction]
pub(crate) fn peek<'py>(
    py: Python<'py>,
    hub: &Hub,
    topic: &str,
    from_seq: u64,
    records_max: usize,
    bytes_max: usize,
) -> PyResult<Vec<Peeked<'py>>> {
    let read = || hub.inner.get()?.topic(topic)?.peek(from_seq, records_max, bytes_max);
    let mut out = Vec::new();
    for one in py.detach(read).or_raise(py)? {
        let bytes = match one.bytes {
            Some((headers, bytes)) => {
                let dict = PyDict::new(py);
                for (key, value) in headers.iter() {
                    dict.set_item(key, value)?;
                }
                Some((dict, Payload { bytes }))
            }
            None => None,
        };
        out.push((one.first_seq, one.span, bytes));
    }
    Ok(out)
}
