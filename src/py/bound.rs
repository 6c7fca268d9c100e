//! Handles that a forked child must neither use nor drop.
//!
//! Threads, sockets and `RocksDB` do not survive a fork: a child that drops an open database hangs
//! in its destructor, and one that writes makes the parent lose acknowledged messages. So every
//! handle knows the process that opened it; in another one it refuses use, and is leaked instead of
//! dropped.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// This process. A system call asks for it at the start and after every fork that Python makes:
/// 0.2 us each, and a message is bound, used and let go.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Looks which process this is: at the start, and in a forked child.
pub(super) fn look() {
    PROCESS.store(std::process::id(), Ordering::Release);
}

fn process() -> u32 {
    PROCESS.load(Ordering::Acquire)
}

/// A value of the process that made it.
pub(super) struct ProcessBound<T> {
    owner_pid: u32,
    value: Option<T>,
}

impl<T> ProcessBound<T> {
    pub(super) fn new(value: T) -> Self {
        Self { owner_pid: process(), value: Some(value) }
    }

    pub(super) fn get(&self) -> Result<&T> {
        self.check()?;
        self.value.as_ref().ok_or_else(closed)
    }

    pub(super) fn get_mut(&mut self) -> Result<&mut T> {
        self.check()?;
        self.value.as_mut().ok_or_else(closed)
    }

    fn check(&self) -> Result<()> {
        let pid = process();
        if pid == self.owner_pid {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Forked,
            format!(
                "the handle was opened by process {}, this is process {pid}; \
                 open a new one after a fork",
                self.owner_pid
            ),
        ))
    }
}

impl<T> Drop for ProcessBound<T> {
    fn drop(&mut self) {
        if process() != self.owner_pid
            && let Some(value) = self.value.take()
        {
            std::mem::forget(value);
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the handle is closed")
}
