//! The one place that opens `RocksDB`: settings, column families, errors.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, DBWithThreadMode,
    LogLevel, MultiThreaded, Options, WriteBatch, WriteOptions,
};

use crate::error::{Error, ErrorKind, Result};
use crate::queue::lock::OwnerLock;

pub(super) type Rocks = DBWithThreadMode<MultiThreaded>;

pub(super) const LOG: &str = "log";
const META: &str = "default";
/// 64 MiB memtables were the fastest at every size measured, and bound what a crash has to replay.
const MEMTABLE_BYTES: usize = 64 << 20;
/// Bounds the WAL that a rarely written column family keeps alive.
const WAL_BYTES_MAX: u64 = 256 << 20;

/// An open database, until it is closed.
pub(super) struct Db {
    inner: RwLock<Option<Open>>,
    write_options: WriteOptions,
    name: String,
}

struct Open {
    // Before the lock: the directory is free when the database is.
    rocks: Arc<Rocks>,
    _lock: OwnerLock,
}

/// One use of the open database.
pub(super) struct Use {
    pub(super) rocks: Arc<Rocks>,
}

impl Use {
    pub(super) fn log(&self) -> Result<Arc<BoundColumnFamily<'_>>> {
        self.family(LOG)
    }

    pub(super) fn meta(&self) -> Result<Arc<BoundColumnFamily<'_>>> {
        self.family(META)
    }

    fn family(&self, name: &str) -> Result<Arc<BoundColumnFamily<'_>>> {
        self.rocks.cf_handle(name).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("the log has no column family {name:?}"))
        })
    }
}

impl Db {
    pub(super) fn open(path: &Path, sync_writes: bool) -> Result<Self> {
        let lock = OwnerLock::take(path)?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_paranoid_checks(true);
        // A torn tail is what kill -9 leaves, and it was never acknowledged. Anything else that
        // does not check refuses to open: the default would drop the rest of the log
        // without a word.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_max_background_jobs(2);
        options.set_log_level(LogLevel::Warn);
        options.set_max_log_file_size(4 << 20);
        options.set_keep_log_file_num(2);
        let mut family = Options::default();
        family.set_write_buffer_size(MEMTABLE_BYTES);
        family.set_max_write_buffer_number(3);
        // Vectors do not compress byte by byte; frames are coded before they get here.
        family.set_compression_type(DBCompressionType::None);
        let families = [META, LOG].map(|name| ColumnFamilyDescriptor::new(name, family.clone()));
        let rocks = Rocks::open_cf_descriptors(&options, path, families).map_err(|e| {
            let kind = if e.kind() == rocksdb::ErrorKind::Corruption {
                ErrorKind::Corrupt
            } else {
                ErrorKind::Storage
            };
            Error::with_source(kind, format!("cannot open the log in {}", path.display()), e)
        })?;
        let mut write_options = WriteOptions::default();
        write_options.set_sync(sync_writes);
        Ok(Self {
            inner: RwLock::new(Some(Open { rocks: Arc::new(rocks), _lock: lock })),
            write_options,
            name: path.display().to_string(),
        })
    }

    /// The database, as long as it is open; a close waits for every use to end.
    pub(super) fn get(&self) -> Result<Use> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        match &*inner {
            Some(open) => Ok(Use { rocks: Arc::clone(&open.rocks) }),
            None => {
                Err(Error::new(ErrorKind::Closed, format!("the log in {} is closed", self.name)))
            }
        }
    }

    /// Writes a batch to the WAL and the memtable; synced when the queue was opened so.
    pub(super) fn write(&self, open: &Use, batch: WriteBatch) -> Result<()> {
        open.rocks.write_opt(batch, &self.write_options).map_err(|e| self.failed("write to", e))
    }

    pub(super) fn failed(&self, what: &str, error: rocksdb::Error) -> Error {
        let kind = if error.kind() == rocksdb::ErrorKind::Corruption {
            ErrorKind::Corrupt
        } else {
            ErrorKind::Storage
        };
        Error::with_source(kind, format!("cannot {what} the log in {}", self.name), error)
    }

    /// Flushes the WAL to the system and lets go of the directory.
    pub(super) fn close(&self) -> Result<()> {
        let open = self.inner.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(open) = open else { return Ok(()) };
        let flushed = open.rocks.flush_wal(true).map_err(|e| self.failed("flush", e));
        open.rocks.cancel_all_background_work(true);
        // Uses are short; the last reference closes the database, and then the lock may go.
        let Open { mut rocks, _lock } = open;
        while let Err(shared) = Arc::try_unwrap(rocks).map(drop) {
            rocks = shared;
            std::thread::yield_now();
        }
        flushed
    }
}
