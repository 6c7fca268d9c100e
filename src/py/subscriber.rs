//! The subscriber.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;

use crate::hybrid;
use crate::py::bound::ProcessBound;
use crate::py::completions::Completions;
use crate::py::error::OrRaise;
use crate::py::message::Message;
use crate::py::wait;

/// Reads one topic for one subscription group.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Subscriber {
    inner: Mutex<ProcessBound<hybrid::Subscriber>>,
}

impl Subscriber {
    pub(super) fn new(subscriber: hybrid::Subscriber) -> Self {
        Self { inner: Mutex::new(ProcessBound::new(subscriber)) }
    }

    fn lock(&self) -> MutexGuard<'_, ProcessBound<hybrid::Subscriber>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Subscriber {
    /// Takes what is ready; an empty list means the token finishes when it is worth looking again.
    fn poll(
        &self,
        py: Python<'_>,
        messages_max: usize,
        completions: &Completions,
        token: u64,
    ) -> PyResult<Vec<Message>> {
        let waker = completions.waker(token);
        let messages =
            py.detach(|| self.lock().get_mut()?.poll(messages_max, &waker)).or_raise(py)?;
        Ok(messages.into_iter().map(Message::new).collect())
    }

    /// Blocks until something is ready; an empty list means the time was over.
    fn poll_wait(
        &self,
        py: Python<'_>,
        messages_max: usize,
        timeout_s: Option<f64>,
    ) -> PyResult<Vec<Message>> {
        let waker = wait::thread_waker();
        let deadline = wait::deadline(timeout_s);
        loop {
            let messages =
                py.detach(|| self.lock().get_mut()?.poll(messages_max, &waker)).or_raise(py)?;
            if !messages.is_empty() || !wait::park(py, deadline)? {
                return Ok(messages.into_iter().map(Message::new).collect());
            }
        }
    }

    /// Marks everything up to and including seq done.
    fn ack_through(&self, py: Python<'_>, seq: u64) -> PyResult<()> {
        py.detach(|| self.lock().get_mut()?.ack_through(seq)).or_raise(py)
    }

    /// Ends the subscription; the group and its cursor stay.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().get_mut().map(hybrid::Subscriber::close)).or_raise(py)
    }
}
