//! Publishes that nobody waits for yet.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use bytes::Bytes;
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;

use crate::hybrid::{self, Done};
use crate::py::error::OrRaise;
use crate::py::message::Receipt;
use crate::py::wait;

/// Publishes of one publisher that may be without a receipt.
const PENDING_MAX: usize = 4096;
/// A caller that met a full window goes on at this many.
const PENDING_LOW: usize = PENDING_MAX / 2;

/// How many publishes are without a receipt, and who waits for that to be fewer.
#[derive(Default)]
pub(super) struct Window {
    count: AtomicUsize,
    waiting: Mutex<Vec<Thread>>,
}

impl Window {
    /// Waits for room, with the interpreter let go.
    pub(super) fn enter(&self, py: Python<'_>) -> PyResult<()> {
        if self.count.load(Ordering::Acquire) >= PENDING_MAX {
            self.waiting().push(std::thread::current());
            // A thread that is woken for nothing looks again.
            while self.count.load(Ordering::Acquire) > PENDING_LOW {
                wait::park(py, None)?;
            }
        }
        self.count.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    pub(super) fn leave(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == PENDING_LOW + 1 {
            self.waiting().drain(..).for_each(|thread| thread.unpark());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Thread>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    /// The payload is let go with it, by whoever holds the interpreter then.
    ended: Option<(crate::Result<hybrid::Receipt>, Bytes)>,
    waiting: Option<Thread>,
}

#[derive(Default)]
struct Slot(Mutex<State>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A publish under way: its receipt, once it is there.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Pending {
    slot: Arc<Slot>,
}

impl Pending {
    /// The pending publish, and what ends it.
    pub(super) fn new(window: &Arc<Window>) -> (Self, Done) {
        let slot = Arc::new(Slot::default());
        let (ends, window) = (Arc::clone(&slot), Arc::clone(window));
        let done = move |result, payload| {
            let mut state = ends.lock();
            state.ended = Some((result, payload));
            let waiting = state.waiting.take();
            drop(state);
            window.leave();
            if let Some(thread) = waiting {
                thread.unpark();
            }
        };
        (Self { slot }, Box::new(done))
    }

    /// Ended before anybody could wait.
    pub(super) fn end(&self, window: &Window, receipt: hybrid::Receipt) {
        self.slot.lock().ended = Some((Ok(receipt), Bytes::new()));
        window.leave();
    }
}

#[pymethods]
impl Pending {
    /// Whether `result` returns or raises at once.
    fn done(&self) -> bool {
        self.slot.lock().ended.is_some()
    }

    /// Blocks until the publish has ended; returns its receipt or raises its error.
    #[pyo3(signature = (timeout_s = None))]
    fn result(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Receipt> {
        let deadline = wait::deadline(timeout_s);
        loop {
            {
                let mut state = self.slot.lock();
                if let Some((result, _)) = &state.ended {
                    return match result {
                        Ok(receipt) => Ok(Receipt(receipt.clone())),
                        Err(error) => Err(error.again()).or_raise(py),
                    };
                }
                state.waiting = Some(std::thread::current());
            }
            if !wait::park(py, deadline)? {
                return Err(PyTimeoutError::new_err("the publish has not ended yet"));
            }
        }
    }

    fn __repr__(&self) -> &'static str {
        if self.done() { "Pending(done=True)" } else { "Pending(done=False)" }
    }
}
