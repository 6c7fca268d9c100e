//! The publisher.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::hybrid::{self, Done, HubTopic, Wait};
use crate::py::bound::ProcessBound;
use crate::py::completions::{Completions, Inbox, Outcome};
use crate::py::error::OrRaise;
use crate::py::extract;
use crate::py::message::Receipt;
use crate::py::wait;
use crate::router::Route;

/// Stands for "no limit": a publish that may wait for ever.
const NO_LIMIT: Duration = Duration::from_hours(10 * 365 * 24);

/// Payload bytes that are written with the interpreter held. To let go of it and wait for it again
/// costs more than to write a small message: one a call, with a subscriber in a second thread, took
/// 0.84 of rocksq's time that way and takes 0.30.
const HELD_BYTES_MAX: usize = 64 << 10;

/// One message that ended, by its index in the call.
type Ended = (usize, crate::Result<hybrid::Receipt>, Bytes);

/// What ended while the caller's thread waits.
struct Finished {
    ended: Mutex<Vec<Ended>>,
    waiting: Thread,
}

impl Default for Finished {
    fn default() -> Self {
        Self { ended: Mutex::new(Vec::new()), waiting: std::thread::current() }
    }
}

impl Finished {
    fn put(&self, index: usize, result: crate::Result<hybrid::Receipt>, payload: Bytes) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push((index, result, payload));
        self.waiting.unpark();
    }

    fn take(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Publishes to one topic.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Publisher {
    topic: ProcessBound<Arc<HubTopic>>,
}

impl Publisher {
    pub(super) fn new(topic: Arc<HubTopic>) -> Self {
        Self { topic: ProcessBound::new(topic) }
    }
}

#[pymethods]
impl Publisher {
    /// Publishes for an asyncio loop; the receipt of item i, if not returned, finishes the i-th
    /// token from `first_token`.
    fn publish(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyList>,
        route: Option<&str>,
        timeout_s: Option<f64>,
        completions: &Completions,
        first_token: u64,
    ) -> PyResult<Vec<Option<Receipt>>> {
        let inbox = Arc::clone(&completions.inbox);
        let done = move |index: usize| -> Done {
            let inbox: Arc<Inbox> = Arc::clone(&inbox);
            let token = first_token + index as u64;
            Box::new(move |result, payload| {
                inbox.finish(token, Outcome::Published(result, payload));
            })
        };
        let receipts = self.submit(py, items, route, timeout_s, Wait::Never, done)?;
        Ok(receipts.into_iter().map(|receipt| receipt.map(Receipt)).collect())
    }

    /// Publishes and blocks until every receipt is there.
    fn publish_wait(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyList>,
        route: Option<&str>,
        timeout_s: Option<f64>,
    ) -> PyResult<Vec<Receipt>> {
        let finished = Arc::new(Finished::default());
        let done = {
            let finished = Arc::clone(&finished);
            move |index: usize| -> Done {
                let finished = Arc::clone(&finished);
                Box::new(move |result, payload| finished.put(index, result, payload))
            }
        };
        let mut receipts = self.submit(py, items, route, timeout_s, Wait::Here, done)?;
        let mut pending = receipts.iter().filter(|receipt| receipt.is_none()).count();
        while pending > 0 {
            let batch = finished.take();
            if batch.is_empty() {
                // The core keeps the caller's deadline; a handle that was closed meanwhile answers
                // for what it still had in flight.
                self.topic.get().and_then(|topic| topic.check_open()).or_raise(py)?;
                wait::park(py, None)?;
            }
            for (index, result, _payload) in batch {
                pending -= 1;
                if let Some(slot) = receipts.get_mut(index) {
                    *slot = Some(result.or_raise(py)?);
                }
            }
        }
        Ok(receipts.into_iter().flatten().map(Receipt).collect())
    }
}

impl Publisher {
    fn submit(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyList>,
        route: Option<&str>,
        timeout_s: Option<f64>,
        wait: Wait,
        done: impl FnMut(usize) -> Done + Send + 'static,
    ) -> PyResult<Vec<Option<hybrid::Receipt>>> {
        let topic = self.topic.get().or_raise(py)?;
        let route = route.map(str::parse::<Route>).transpose().or_raise(py)?;
        let submissions = extract::submissions(items)?;
        let now = Instant::now();
        let deadline = wait::deadline(timeout_s).unwrap_or(now + NO_LIMIT);
        let bytes: usize = submissions.iter().map(|one| one.payload.len()).sum();
        if bytes <= HELD_BYTES_MAX && (wait == Wait::Never || topic.takes_at_once()) {
            return topic.publish(submissions, route, deadline, Wait::Never, done).or_raise(py);
        }
        // The last reference is let go where the interpreter is held: each would take it else.
        let kept: Vec<Bytes> = submissions.iter().map(|one| one.payload.clone()).collect();
        let receipts = py.detach(|| topic.publish(submissions, route, deadline, wait, done));
        drop(kept);
        receipts.or_raise(py)
    }
}
