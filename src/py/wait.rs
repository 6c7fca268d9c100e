//! Blocks a thread until something is done, Ctrl-C included.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// How long a blocked thread sleeps before it looks for Ctrl-C: signals only set a flag.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A waker that unparks the calling thread.
pub(super) fn thread_waker() -> Waker {
    Waker::from(Arc::new(ThreadWaker(std::thread::current())))
}

/// Parks the calling thread until woken, until `deadline`, or until a signal has to be looked at.
///
/// False: the deadline has passed.
pub(super) fn park(py: Python<'_>, deadline: Option<Instant>) -> PyResult<bool> {
    let now = Instant::now();
    let left = deadline.map(|end| end.saturating_duration_since(now));
    if left.is_some_and(|left| left.is_zero()) {
        return Ok(false);
    }
    let nap = left.map_or(SIGNAL_CHECK, |left| left.min(SIGNAL_CHECK));
    py.detach(|| std::thread::park_timeout(nap));
    py.check_signals()?;
    Ok(true)
}

/// The moment that lies `timeout_s` ahead; None waits for ever.
pub(super) fn deadline(timeout_s: Option<f64>) -> Option<Instant> {
    let timeout = Duration::try_from_secs_f64(timeout_s?).ok()?;
    Instant::now().checked_add(timeout)
}
