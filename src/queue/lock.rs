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
pub(super) struct OwnerLock(#[expect(dead_code, reason = "dropping it unlocks")] File);

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
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The owner writes its pid right after it takes the lock; unreadable is unknown.
                let known = file.read_to_string(&mut owner).is_ok() && !owner.trim().is_empty();
                let owner = if known { owner.trim() } else { "unknown" };
                return Err(Error::new(
                    ErrorKind::Locked,
                    format!("{} is owned by the process with pid {owner}", directory.display()),
                ));
            }
            Err(TryLockError::Error(e)) => return Err(storage("cannot lock", e)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|e| storage("cannot write to", e))?;
        Ok(Self(file))
    }
}
