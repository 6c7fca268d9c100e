//! One process owns a directory.
//!
//! `RocksDB` has a lock of its own, but its error does not say who holds it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

const LOCK_FILE: &str = "OWNER";

/// Held for as long as the directory is open; the kernel lets go of it however the process ends.
pub(super) struct OwnerLock(File);

impl Drop for OwnerLock {
    fn drop(&mut self) {
        // Not by the close alone: a child between fork and exec has the file too.
        let _ = self.0.unlock();
    }
}

impl OwnerLock {
    /// Makes the directory (0700) where it does not exist, and takes it.
    pub(super) fn take(directory: &Path) -> Result<Self> {
        let storage = |what: &str, error| {
            let context = format!("{what} {}", directory.display());
            Error::with_source(ErrorKind::Storage, context, error)
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|e| storage("cannot make the directory", e))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(LOCK_FILE))
            .map_err(|e| storage("cannot write to", e))?;
        lock(&mut file, directory)?;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|e| storage("cannot write to", e))?;
        Ok(Self(file))
    }

    /// Keeps owners out of a directory without changing it; it has to be a queue's.
    pub(super) fn look(directory: &Path) -> Result<Self> {
        let mut file = File::open(directory.join(LOCK_FILE)).map_err(|e| {
            let context = format!("{} holds no queue that can be read", directory.display());
            Error::with_source(ErrorKind::Storage, context, e)
        })?;
        lock(&mut file, directory)?;
        Ok(Self(file))
    }
}

/// Takes the lock, or says who has it.
fn lock(file: &mut File, directory: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // The owner writes its pid right after it takes the lock; unreadable is unknown.
            let known = file.read_to_string(&mut owner).is_ok() && !owner.trim().is_empty();
            let owner = if known { owner.trim() } else { "unknown" };
            Err(Error::new(
                ErrorKind::Locked,
                format!("{} is owned by the process with pid {owner}", directory.display()),
            ))
        }
        Err(TryLockError::Error(e)) => {
            let context = format!("cannot lock {}", directory.display());
            Err(Error::with_source(ErrorKind::Storage, context, e))
        }
    }
}
