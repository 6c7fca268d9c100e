//! The subscriber.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use pyo3::prelude::*;

use crate::hybrid::{self, SeekTo};
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

    fn look(
        &self,
        messages_max: usize,
        waker: &Waker,
        keep_frames: bool,
    ) -> crate::Result<(Vec<hybrid::Message>, Option<Instant>)> {
        let mut subscriber = self.lock();
        let subscriber = subscriber.get_mut()?;
        let messages = subscriber.poll(messages_max, waker, keep_frames)?;
        let next_look = if messages.is_empty() { subscriber.next_look() } else { None };
        Ok((messages, next_look))
    }

    fn lock(&self) -> MutexGuard<'_, ProcessBound<hybrid::Subscriber>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Subscriber {
    /// Takes what is ready. An empty list means that the token finishes when it is worth looking
    /// again; the number with it, that so it is after that many seconds. `keep_frames`: the caller
    /// has memory for the payload, see `Message.copy_into`.
    #[pyo3(signature = (messages_max, completions, token, *, keep_frames = false))]
    fn poll(
        &self,
        py: Python<'_>,
        messages_max: usize,
        completions: &Completions,
        token: u64,
        keep_frames: bool,
    ) -> PyResult<(Vec<Message>, Option<f64>)> {
        let waker = completions.waker(token);
        let looked = py.detach(|| self.look(messages_max, &waker, keep_frames));
        let (messages, next_look) = looked.or_raise(py)?;
        let now = Instant::now();
        let wait_s = next_look.map(|look| look.saturating_duration_since(now).as_secs_f64());
        Ok((messages.into_iter().map(Message::new).collect(), wait_s))
    }

    /// Blocks until something is ready; an empty list means the time was over. `keep_frames`: as
    /// for `poll`.
    #[pyo3(signature = (messages_max, timeout_s, *, keep_frames = false))]
    fn poll_wait(
        &self,
        py: Python<'_>,
        messages_max: usize,
        timeout_s: Option<f64>,
        keep_frames: bool,
    ) -> PyResult<Vec<Message>> {
        let waker = wait::thread_waker();
        let deadline = wait::deadline(timeout_s);
        loop {
            let (messages, next_look) =
                py.detach(|| self.look(messages_max, &waker, keep_frames)).or_raise(py)?;
            let is_over = deadline.is_some_and(|end| Instant::now() >= end);
            if !messages.is_empty() || is_over {
                return Ok(messages.into_iter().map(Message::new).collect());
            }
            wait::park(py, deadline.into_iter().chain(next_look).min())?;
        }
    }

    /// Moves the group: to "first", "new", "seq" or "time" (milliseconds since the Unix epoch).
    fn seek(&self, py: Python<'_>, kind: &str, value: u64, inclusive: bool) -> PyResult<()> {
        let to = match kind {
            "first" => SeekTo::First,
            "new" => SeekTo::New,
            "time" => SeekTo::Time { time_ms: value, inclusive },
            _ => SeekTo::Seq { seq: value, inclusive },
        };
        py.detach(|| self.lock().get_mut()?.seek(to)).or_raise(py)
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
