//! What may be without an acknowledgement: bytes and frames.
//!
//! The bytes follow the server, as a TCP sender does: a server that says it has too much to do
//! (429: a stream takes 128 MiB or 100,000 messages ahead of its store, all clients together)
//! halves them, acknowledgements let them grow again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Bytes without an acknowledgement: 16 frames of a MiB. Less than half of what a server buffers
/// for a stream.
const BYTES_MAX: usize = 16 << 20;
/// Never less: a frame or two.
const BYTES_MIN: usize = 1 << 20;
/// Bounds the acknowledgements of small frames.
const FRAMES_MAX: usize = 4096;
/// Refusals of one burst count once.
const BURST: Duration = Duration::from_millis(100);

/// Shared by all frames of a topic. Cloning it shares it.
#[derive(Clone)]
pub(super) struct Window(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    room: Notify,
}

struct State {
    bytes_max: usize,
    bytes: usize,
    frames: usize,
    reduced: Option<Instant>,
}

/// A frame's share of the window; given back when dropped.
pub(super) struct Share {
    window: Window,
    bytes: usize,
}

impl Window {
    pub(super) fn new() -> Self {
        let state = State { bytes_max: BYTES_MAX, bytes: 0, frames: 0, reduced: None };
        Self(Arc::new(Inner { state: Mutex::new(state), room: Notify::new() }))
    }

    /// Waits for room; a frame larger than the window has it alone. None: not until `deadline`.
    pub(super) async fn enter(&self, bytes: usize, deadline: Instant) -> Option<Share> {
        let wait = async {
            loop {
                // Before the look: what is given back after it is not missed.
                let room = self.room();
                if let Some(share) = self.try_enter(bytes) {
                    return share;
                }
                room.await;
            }
        };
        tokio::time::timeout_at(deadline.into(), wait).await.ok()
    }

    /// Ends when something was given back after this call.
    pub(super) fn room(&self) -> Notified<'_> {
        self.0.room.notified()
    }

    /// As [`Window::enter`], without waiting.
    pub(super) fn try_enter(&self, bytes: usize) -> Option<Share> {
        let mut state = self.lock();
        let fits = state.bytes + bytes <= state.bytes_max && state.frames < FRAMES_MAX;
        if !fits && state.frames > 0 {
            return None;
        }
        state.bytes += bytes;
        state.frames += 1;
        Some(Share { window: self.clone(), bytes })
    }

    /// A frame of so many bytes was acknowledged.
    pub(super) fn acknowledged(&self, bytes: usize) {
        let mut state = self.lock();
        // By a frame of the smallest window for each window that went well.
        let growth = (bytes.min(BYTES_MIN) * BYTES_MIN).div_ceil(state.bytes_max);
        state.bytes_max = (state.bytes_max + growth).min(BYTES_MAX);
    }

    /// The server has too much to do.
    pub(super) fn overloaded(&self, now: Instant) {
        let mut state = self.lock();
        let counted = state.reduced.is_some_and(|at| now.saturating_duration_since(at) < BURST);
        if !counted {
            state.bytes_max = (state.bytes_max / 2).max(BYTES_MIN);
            state.reduced = Some(now);
        }
    }

    /// Bytes that may be without an acknowledgement now.
    #[cfg(test)]
    fn bytes_max(&self) -> usize {
        self.lock().bytes_max
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.window.lock();
        state.bytes -= self.bytes;
        state.frames -= 1;
        drop(state);
        self.window.0.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn runtime() -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_full_window_waits_and_a_frame_larger_than_it_goes_alone() {
        runtime().block_on(async {
            let window = Window::new();
            let soon = || Instant::now() + Duration::from_millis(20);
            let first = window.enter(BYTES_MAX, soon()).await;
            assert!(first.is_some());
            assert!(window.enter(1, soon()).await.is_none());
            drop(first);
            let large = window.enter(4 * BYTES_MAX, soon()).await;
            assert!(large.is_some());
            assert!(window.enter(1, soon()).await.is_none());
        });
    }

    #[test]
    fn what_is_given_back_lets_the_next_one_in() {
        runtime().block_on(async {
            let window = Window::new();
            let far = Instant::now() + Duration::from_mins(1);
            let first = window.enter(BYTES_MAX, far).await;
            let (second, ()) = tokio::join!(window.enter(MIB, far), async { drop(first) });
            assert!(second.is_some());
        });
    }

    #[test]
    fn refusals_halve_it_once_a_burst_and_acknowledgements_let_it_grow() {
        let window = Window::new();
        let start = Instant::now();
        window.overloaded(start);
        window.overloaded(start + BURST / 2);
        assert_eq!(window.bytes_max(), BYTES_MAX / 2);
        for burst in 1..10 {
            window.overloaded(start + BURST * burst);
        }
        assert_eq!(window.bytes_max(), BYTES_MIN);
        for _ in 0..1000 {
            window.acknowledged(MIB);
        }
        assert_eq!(window.bytes_max(), BYTES_MAX);
    }
}
