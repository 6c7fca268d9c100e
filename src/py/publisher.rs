//! The publisher.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::frame::CodecOption;
use crate::hybrid::{self, Done, HubTopic, Submission, Wait};
use crate::py::bound::ProcessBound;
use crate::py::completions::{Completions, Inbox, Outcome};
use crate::py::error::OrRaise;
use crate::py::extract;
use crate::py::message::Receipt;
use crate::py::pending::{Pending, Window};
use crate::py::wait;
use crate::router::Route;

/// Stands for "no limit": a publish that may wait for ever.
const NO_LIMIT: Duration = Duration::from_hours(10 * 365 * 24);

/// Payload bytes that are written with the interpreter held. To let go of it and wait for it again
/// costs more than to write a small message: one a call, with a subscriber in a second thread, took
/// 0.84 of rocksq's time that way and takes 0.30.
const HELD_BYTES_MAX: usize = 64 << 10;

/// A codec's name and a level, of the messages of one call; None for the publisher's.
type Codec = Option<(String, Option<i32>)>;

/// How the messages of one call are published.
struct How<'a> {
    route: Option<&'a str>,
    timeout_s: Option<f64>,
    codec: Codec,
    wait: Wait,
}

/// Finishes a token with what became of a message.
fn finishes(inbox: &Arc<Inbox>, token: u64) -> Done {
    let inbox = Arc::clone(inbox);
    Box::new(move |result, payload| inbox.finish(token, Outcome::Published(result, payload)))
}

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
    /// Of its messages; None: the handle's.
    codec: Option<CodecOption>,
    window: Arc<Window>,
    layout: extract::LastLayout,
}

impl Publisher {
    pub(super) fn new(topic: Arc<HubTopic>, codec: Option<CodecOption>) -> Self {
        let topic = ProcessBound::new(topic);
        Self { topic, codec, window: Arc::default(), layout: extract::LastLayout::default() }
    }
}

#[pymethods]
impl Publisher {
    /// Publishes for an asyncio loop; the receipt of item i, if not returned, finishes the i-th
    /// token from `first_token`.
    #[expect(clippy::too_many_arguments, reason = "they are Python's")]
    fn publish(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyList>,
        route: Option<&str>,
        timeout_s: Option<f64>,
        codec: Codec,
        completions: &Completions,
        first_token: u64,
    ) -> PyResult<Vec<Option<Receipt>>> {
        let inbox = Arc::clone(&completions.inbox);
        let done = move |index: usize| finishes(&inbox, first_token + index as u64);
        let how = How { route, timeout_s, codec, wait: Wait::Never };
        let receipts = self.submit(py, items, how, done)?;
        Ok(receipts.into_iter().map(|receipt| receipt.map(Receipt)).collect())
    }

    /// Publishes one message for an asyncio loop; its receipt, if not returned, finishes the token.
    #[expect(clippy::too_many_arguments, reason = "they are Python's")]
    fn publish_one(
        &self,
        py: Python<'_>,
        item: &Bound<'_, PyAny>,
        route: Option<&str>,
        timeout_s: Option<f64>,
        codec: Codec,
        completions: &Completions,
        token: u64,
        expected_last_seq: Option<u64>,
    ) -> PyResult<Option<Receipt>> {
        let done = finishes(&completions.inbox, token);
        let how = How { route, timeout_s, codec, wait: Wait::Never };
        let receipt = self.submit_one(py, item, how, expected_last_seq, done)?;
        Ok(receipt.map(Receipt))
    }

    /// Publishes one message; blocks only while 4,096 are without a receipt.
    fn publish_async(
        &self,
        py: Python<'_>,
        item: &Bound<'_, PyAny>,
        route: Option<&str>,
        timeout_s: Option<f64>,
        codec: Codec,
        expected_last_seq: Option<u64>,
    ) -> PyResult<Pending> {
        let how = How { route, timeout_s, codec, wait: Wait::Never };
        self.window.enter(py)?;
        let (pending, done) = Pending::new(&self.window);
        match self.submit_one(py, item, how, expected_last_seq, done) {
            Ok(None) => {}
            Ok(Some(receipt)) => pending.end(&self.window, receipt),
            Err(error) => {
                self.window.leave();
                return Err(error);
            }
        }
        Ok(pending)
    }

    /// Publishes and blocks until every receipt is there.
    fn publish_wait(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyList>,
        route: Option<&str>,
        timeout_s: Option<f64>,
        codec: Codec,
    ) -> PyResult<Vec<Receipt>> {
        let finished = Arc::new(Finished::default());
        let done = {
            let finished = Arc::clone(&finished);
            move |index: usize| -> Done {
                let finished = Arc::clone(&finished);
                Box::new(move |result, payload| finished.put(index, result, payload))
            }
        };
        let how = How { route, timeout_s, codec, wait: Wait::Here };
        let mut receipts = self.submit(py, items, how, done)?;
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
    /// Publishes without waiting.
    fn submit_one(
        &self,
        py: Python<'_>,
        item: &Bound<'_, PyAny>,
        how: How<'_>,
        expected_last_seq: Option<u64>,
        done: Done,
    ) -> PyResult<Option<hybrid::Receipt>> {
        let mut submission = extract::submission(item, &self.layout)?;
        submission.expected_last_seq = expected_last_seq;
        let mut done = Some(done);
        let done = move |_| done.take().unwrap_or_else(|| Box::new(|_, _| {}));
        let receipts = self.hand_over(py, vec![submission], how, done)?;
        Ok(receipts.into_iter().next().flatten())
    }

    fn submit(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyList>,
        how: How<'_>,
        done: impl FnMut(usize) -> Done + Send + 'static,
    ) -> PyResult<Vec<Option<hybrid::Receipt>>> {
        let submissions = extract::submissions(items)?;
        self.hand_over(py, submissions, how, done)
    }

    fn hand_over(
        &self,
        py: Python<'_>,
        mut submissions: Vec<Submission>,
        how: How<'_>,
        done: impl FnMut(usize) -> Done + Send + 'static,
    ) -> PyResult<Vec<Option<hybrid::Receipt>>> {
        let topic = self.topic.get().or_raise(py)?;
        let How { route, timeout_s, codec, wait } = how;
        let route = route.map(str::parse::<Route>).transpose().or_raise(py)?;
        let codec = codec.map(|(name, level)| CodecOption::parse(&name, level));
        let codec = codec.transpose().or_raise(py)?.or(self.codec);
        if codec.is_some() {
            for one in &mut submissions {
                one.codec = codec;
            }
        }
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
