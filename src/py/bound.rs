//! Handles that a forked child must neither use nor drop.
//!
//! Threads, sockets and `RocksDB` do not survive a fork: a child that drops an open database hangs
//! in its destructor, and one that writes makes the parent lose acknowledged messages. So every
//! handle knows the process that opened it; in another one it refuses use, and is leaked instead of
//! dropped.

use crate::error::{Error, ErrorKind, Result};

/// A value of the process that made it.
pub(super) struct ProcessBound<T> {
    owner_pid: u32,
    value: Option<T>,
}

impl<T> ProcessBound<T> {
    pub(super) fn new(value: T) -> Self {
        Self { owner_pid: std::process::id(), value: Some(value) }
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
        let pid = std::process::id();
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
        if std::process::id() != self.owner_pid
            && let Some(value) = self.value.take()
        {
            std::mem::forget(value);
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the handle is closed")
}
