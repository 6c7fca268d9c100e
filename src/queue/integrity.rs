//! What a directory's log was like before it was opened.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::queue::mark::{self, Mark};
use crate::queue::wal::{self, WalFile};

/// What was found before the database was opened.
#[derive(Debug, Default)]
pub(super) struct LogReport {
    pub(super) files: Vec<WalFile>,
    mark: Option<Mark>,
    /// There is a mark, and it cannot be read.
    pub(super) mark_damaged: bool,
    /// There was no database.
    pub(super) created: bool,
    /// Files of a database lie there without the one that names them.
    headless: bool,
    /// Acknowledged operations that are gone; only a power cut may do that.
    pub(super) missing: u64,
}

/// Reads the write-ahead log and the mark; changes nothing.
pub(super) fn inspect(directory: &Path) -> Result<LogReport> {
    let (mark, mark_damaged) = match mark::read(directory) {
        Ok(mark) => (mark, false),
        Err(error) if error.kind() == ErrorKind::Corrupt => (None, true),
        Err(error) => return Err(error),
    };
    let mut report =
        LogReport { files: wal::scan(directory)?, mark, mark_damaged, ..LogReport::default() };
    if !directory.join("CURRENT").exists() {
        report.created = mark.is_none() && !mark_damaged;
        report.headless = !report.created || !report.files.is_empty() || has_tables(directory)?;
    }
    Ok(report)
}

fn has_tables(directory: &Path) -> Result<bool> {
    let failed = |e| {
        let context = format!("cannot list {}", directory.display());
        Error::with_source(ErrorKind::Storage, context, e)
    };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "sst") {
            return Ok(true);
        }
    }
    Ok(false)
}

impl LogReport {
    /// The last process closed the directory; None where nothing says so.
    pub(super) fn closed(&self) -> Option<bool> {
        self.mark.map(|mark| mark.closed)
    }

    /// A queue was open here before.
    pub(super) fn is_marked(&self) -> bool {
        self.mark.is_some() || self.mark_damaged
    }

    /// Bytes behind the last whole write: a write that was cut off.
    pub(super) fn torn_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes - file.good_bytes).sum()
    }

    /// Refuses a log that has lost what was acknowledged.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub(super) fn verify(&mut self, directory: &Path) -> Result<()> {
        if self.headless {
            return Err(damaged(directory, "the file CURRENT is gone; restore it from a copy"));
        }
        // A hole between two files says nothing: RocksDB removes files it needs no more in any
        // order. Which it needs, its manifest knows.
        let Some(mark) = self.mark else { return Ok(()) };
        if !mark.misses(&self.files) {
            return Ok(());
        }
        let last = self.files.iter().filter_map(|file| file.last).max().unwrap_or(0);
        self.miss(directory, &mark, mark.sequence.saturating_sub(last).max(1))
    }

    /// Looks once more when the database says how far it came.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub(super) fn opened(&mut self, directory: &Path, sequence: u64) -> Result<()> {
        match self.mark {
            Some(mark) if mark.sequence > sequence => {
                self.miss(directory, &mark, mark.sequence - sequence)
            }
            _ => Ok(()),
        }
    }

    fn miss(&mut self, directory: &Path, mark: &Mark, count: u64) -> Result<()> {
        self.missing = count;
        if mark.allows_loss() {
            return Ok(());
        }
        let what = format!(
            "about {count} operations that were acknowledged are missing from the end of the \
             write-ahead log, which was cut, changed or removed; to open what is left, remove the \
             file MARK"
        );
        Err(damaged(directory, &what))
    }
}

fn damaged(directory: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the log in {}: {what}", directory.display()))
}
