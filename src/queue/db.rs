//! The one place that opens `RocksDB`: settings, column families, errors.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, DBWithThreadMode,
    Direction, IteratorMode, LogLevel, MultiThreaded, Options, WriteBatch, WriteOptions,
};

use crate::error::{Error, ErrorKind, Result};
use crate::queue::integrity::{self, LogReport};
use crate::queue::lock::OwnerLock;
use crate::queue::mark::Marker;

/// A key and its value.
pub(super) type KeyValue = (Box<[u8]>, Box<[u8]>);
pub(super) type Rocks = DBWithThreadMode<MultiThreaded>;

pub(super) const LOG: &str = "log";
const META: &str = "default";
/// What a memtable holds before it is written out.
const LOG_MEMTABLE_BYTES: usize = 16 << 20;
const META_MEMTABLE_BYTES: usize = 8 << 20;
/// Bounds the WAL that a rarely written column family keeps alive.
const WAL_BYTES_MAX: u64 = 128 << 20;

/// An open database, until it is closed.
pub(super) struct Db {
    // Before the lock in `inner`: the next owner's mark is not written over.
    /// None: it is open for reading alone.
    marker: Option<Marker>,
    inner: RwLock<Option<Open>>,
    patient: WriteOptions,
    hurried: WriteOptions,
    patient_unsynced: WriteOptions,
    hurried_unsynced: WriteOptions,
    syncs: bool,
    path: PathBuf,
}

struct Open {
    // Before the lock: the directory is free when the database is.
    rocks: Arc<Rocks>,
    _lock: Option<OwnerLock>,
}

/// How a write treats a database that wants a pause because its flushes are behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// It waits.
    Patient,
    /// It ends with [`ErrorKind::Timeout`], and nothing was written.
    Hurried,
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
    /// Opens the directory, and tells what the log was like.
    pub(super) fn open(path: &Path, sync_writes: bool) -> Result<(Self, LogReport)> {
        let lock = OwnerLock::take(path)?;
        // Before the database changes anything.
        let mut report = integrity::inspect(path)?;
        report.verify(path)?;
        let options = database_options();
        if report.is_marked() {
            // Else it would be made anew, empty.
            let known = Rocks::list_cf(&options, path).map_err(|e| open_failed(path, e))?;
            if !known.iter().any(|name| name == LOG) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the manifest in {} does not know the log any more", path.display()),
                ));
            }
        }
        let families =
            [META, LOG].map(|name| ColumnFamilyDescriptor::new(name, family_options(name)));
        let rocks = Rocks::open_cf_descriptors(&options, path, families)
            .map_err(|e| open_failed(path, e))?;
        let sequence = rocks.latest_sequence_number();
        report.opened(path, sequence)?;
        let marker = Marker::start(path, sync_writes, sequence)?;
        let write = |sync, no_slowdown| {
            let mut options = WriteOptions::default();
            options.set_sync(sync);
            options.set_no_slowdown(no_slowdown);
            options
        };
        let db = Self {
            inner: RwLock::new(Some(Open { rocks: Arc::new(rocks), _lock: Some(lock) })),
            patient: write(sync_writes, false),
            hurried: write(sync_writes, true),
            patient_unsynced: write(false, false),
            hurried_unsynced: write(false, true),
            syncs: sync_writes,
            path: path.to_owned(),
            marker: Some(marker),
        };
        Ok((db, report))
    }

    /// Opens the directory to read it, and changes nothing. The caller keeps owners out.
    pub(super) fn open_read_only(path: &Path) -> Result<Self> {
        let mut options = database_options();
        options.create_if_missing(false);
        options.create_missing_column_families(false);
        let families =
            [META, LOG].map(|name| ColumnFamilyDescriptor::new(name, family_options(name)));
        let rocks = Rocks::open_cf_descriptors_read_only(&options, path, families, false)
            .map_err(|e| open_failed(path, e))?;
        Ok(Self {
            inner: RwLock::new(Some(Open { rocks: Arc::new(rocks), _lock: None })),
            patient: WriteOptions::default(),
            hurried: WriteOptions::default(),
            patient_unsynced: WriteOptions::default(),
            hurried_unsynced: WriteOptions::default(),
            syncs: false,
            path: path.to_owned(),
            marker: None,
        })
    }

    /// Appends are on the disk before they are acknowledged.
    pub(super) fn syncs(&self) -> bool {
        self.syncs
    }

    /// The database, as long as it is open; a close waits for every use to end.
    pub(super) fn get(&self) -> Result<Use> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        match &*inner {
            Some(open) => Ok(Use { rocks: Arc::clone(&open.rocks) }),
            None => Err(Error::new(
                ErrorKind::Closed,
                format!("the log in {} is closed", self.path.display()),
            )),
        }
    }

    /// Writes a batch to the WAL and the memtable; synced when the queue was opened so.
    pub(super) fn write(&self, open: &Use, batch: WriteBatch) -> Result<()> {
        self.write_paced(open, batch, Pace::Patient)
    }

    pub(super) fn write_paced(&self, open: &Use, batch: WriteBatch, pace: Pace) -> Result<()> {
        let options = match pace {
            Pace::Patient => &self.patient,
            Pace::Hurried => &self.hurried,
        };
        self.write_with(open, batch, options, pace)
    }

    /// Writes a batch that may wait for the next one to be synced.
    pub(super) fn write_unsynced(&self, open: &Use, batch: WriteBatch, pace: Pace) -> Result<()> {
        let options = match pace {
            Pace::Patient => &self.patient_unsynced,
            Pace::Hurried => &self.hurried_unsynced,
        };
        self.write_with(open, batch, options, pace)
    }

    fn write_with(
        &self,
        open: &Use,
        batch: WriteBatch,
        options: &WriteOptions,
        pace: Pace,
    ) -> Result<()> {
        open.rocks.write_opt(batch, options).map_err(|e| {
            if pace == Pace::Hurried && e.kind() == rocksdb::ErrorKind::Incomplete {
                return Error::with_source(ErrorKind::Timeout, "the log wants a pause", e);
            }
            self.failed("write to", e)
        })?;
        if let Some(marker) = &self.marker {
            marker.note(open.rocks.latest_sequence_number());
        }
        Ok(())
    }

    /// All metadata whose keys begin with `prefix`, in order.
    pub(super) fn scan_prefix(&self, open: &Use, prefix: &[u8]) -> Result<Vec<KeyValue>> {
        let mode = IteratorMode::From(prefix, Direction::Forward);
        let mut found = Vec::new();
        for entry in open.rocks.iterator_cf(&open.meta()?, mode) {
            let (key, value) = entry.map_err(|e| self.failed("read", e))?;
            if !key.starts_with(prefix) {
                break;
            }
            found.push((key, value));
        }
        Ok(found)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn failed(&self, what: &str, error: rocksdb::Error) -> Error {
        let kind = if error.kind() == rocksdb::ErrorKind::Corruption {
            ErrorKind::Corrupt
        } else {
            ErrorKind::Storage
        };
        Error::with_source(kind, format!("cannot {what} the log in {}", self.path.display()), error)
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
        let marked = self.marker.as_ref().map_or(Ok(()), |marker| marker.end(flushed.is_ok()));
        flushed.and(marked)
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // A torn tail is what kill -9 leaves, and it was never acknowledged. Anything else that does
    // not check refuses to open: the default would drop the rest of the log without a word.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(2);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(4 << 20);
    options.set_keep_log_file_num(2);
    options
}

fn family_options(name: &str) -> Options {
    let mut family = Options::default();
    family.set_write_buffer_size(if name == LOG {
        LOG_MEMTABLE_BYTES
    } else {
        META_MEMTABLE_BYTES
    });
    family.set_max_write_buffer_number(4);
    // Vectors do not compress byte by byte; frames are coded before they get here.
    family.set_compression_type(DBCompressionType::None);
    family
}

fn open_failed(path: &Path, error: rocksdb::Error) -> Error {
    let kind = if error.kind() == rocksdb::ErrorKind::Corruption {
        ErrorKind::Corrupt
    } else {
        ErrorKind::Storage
    };
    Error::with_source(kind, format!("cannot open the log in {}", path.display()), error)
}
