//! The publisher.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::prelude::*;

use crate::frame::{Headers, Layout};
use crate::hybrid::{self, Done, HubTopic, Submission, Wait};
use crate::py::bound::ProcessBound;
use crate::py::buffer;
use crate::py::completions::{Completions, Inbox, Outcome};
use crate::py::error::OrRaise;
use crate::py::message::Receipt;
use crate::py::wait;
use crate::router::Route;

/// Stands for "no limit": a publish that may wait for ever.
const NO_LIMIT: Duration = Duration::from_hours(10 * 365 * 24);

/// One message as `vecmq._messages` prepares it: view, writable, dtype, itemsize, shape, rows,
/// headers.
type Item<'py> = (
    Bound<'py, PyAny>,
    bool,
    Option<String>,
    u16,
    Option<Vec<u64>>,
    u32,
    Option<Vec<(String, String)>>,
);

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
        items: Vec<Item<'_>>,
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
        items: Vec<Item<'_>>,
        route: Option<&str>,
        timeout_s: Option<f64>,
    ) -> PyResult<Vec<Receipt>> {
        let finished = Arc::new(Mutex::new(Vec::new()));
        let waker = wait::thread_waker();
        let done = {
            let finished = Arc::clone(&finished);
            move |index: usize| -> Done {
                let finished = Arc::clone(&finished);
                let waker = waker.clone();
                Box::new(move |result, payload| {
                    let mut slot = finished.lock().unwrap_or_else(PoisonError::into_inner);
                    slot.push((index, result, payload));
                    waker.wake();
                })
            }
        };
        let mut receipts = self.submit(py, items, route, timeout_s, Wait::Here, done)?;
        let mut pending = receipts.iter().filter(|receipt| receipt.is_none()).count();
        while pending > 0 {
            let batch: Vec<(usize, crate::Result<hybrid::Receipt>, Bytes)> =
                std::mem::take(&mut *finished.lock().unwrap_or_else(PoisonError::into_inner));
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
        items: Vec<Item<'_>>,
        route: Option<&str>,
        timeout_s: Option<f64>,
        wait: Wait,
        done: impl FnMut(usize) -> Done + Send + 'static,
    ) -> PyResult<Vec<Option<hybrid::Receipt>>> {
        let topic = self.topic.get().or_raise(py)?;
        let route = route.map(str::parse::<Route>).transpose().or_raise(py)?;
        let submissions =
            items.into_iter().map(|item| submission(py, item)).collect::<PyResult<Vec<_>>>()?;
        let now = Instant::now();
        let deadline = wait::deadline(timeout_s).unwrap_or(now + NO_LIMIT);
        py.detach(|| topic.publish(submissions, route, deadline, wait, done)).or_raise(py)
    }
}

fn submission(py: Python<'_>, item: Item<'_>) -> PyResult<Submission> {
    let (view, writable, dtype, itemsize, shape, rows, headers) = item;
    let payload = buffer::borrow(&view)?;
    let layout = match (dtype, shape) {
        (Some(dtype), Some(shape)) => Some(Layout::new(&dtype, itemsize, shape).or_raise(py)?),
        _ => None,
    };
    let headers = match headers {
        Some(pairs) => Headers::new(pairs).or_raise(py)?,
        None => Headers::empty(),
    };
    Ok(Submission { payload, writable, layout, rows, headers })
}
