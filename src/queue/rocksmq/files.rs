//! The two databases of a directory pair, opened read-only; the lock of a running Milvus.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rocksdb::{DB, DBRecoveryMode, Options, ReadOptions};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

const META_SUFFIX: &str = "_meta_kv";
/// A store may have thousands of tables; they are opened when they are read.
const OPEN_FILES_MAX: i32 = 256;
const READ_AHEAD_BYTES: usize = 1 << 20;

/// A directory pair of Milvus' `RocksMQ`, open for reading.
///
/// Nothing in the two directories is written, made or removed. As long as it is open, a Milvus that
/// starts on them is refused by the lock, as it would be by another Milvus.
pub struct RocksMq {
    store: DB,
    meta: DB,
    path: PathBuf,
    _locks: [Option<File>; 2],
}

impl RocksMq {
    /// Opens `path` and `<path>_meta_kv`.
    ///
    /// A torn record at the end of a write-ahead log is what a kill leaves, and was never
    /// acknowledged: it is left out. Other damage is an error here or when it is read.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when one of the two is no database, [`ErrorKind::Locked`] when a
    /// running Milvus holds them, [`ErrorKind::Corrupt`], [`ErrorKind::Storage`].
    pub fn open(path: &Path) -> Result<Self> {
        let meta_path = meta_path(path)?;
        check_directory(path, "RocksMQ's messages (rocksmq.path of milvus.yaml)")?;
        check_directory(&meta_path, "RocksMQ's metadata, which lies beside its messages")?;
        let locks = [take_lock(path)?, take_lock(&meta_path)?];
        let store = open_database(path)?;
        let meta = open_database(&meta_path)?;
        Ok(Self { store, meta, path: path.to_owned(), _locks: locks })
    }

    pub(super) fn store(&self) -> &DB {
        &self.store
    }

    pub(super) fn meta(&self) -> &DB {
        &self.meta
    }

    pub(super) fn failed(&self, error: rocksdb::Error) -> Error {
        failed("read", &self.path, error)
    }
}

/// Reads that check every block, and keep none of them.
pub(super) fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.fill_cache(false);
    options.set_total_order_seek(true);
    options.set_readahead_size(READ_AHEAD_BYTES);
    options
}

/// As Milvus makes it: the text of the path, without a slash at its end, and the suffix.
fn meta_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().map(OsString::from).filter(|_| !path.ends_with(".."));
    let Some(mut name) = name else {
        return Err(Error::new(
            ErrorKind::Config,
            format!("expected the path of a RocksMQ directory, got {}", path.display()),
        ));
    };
    name.push(META_SUFFIX);
    Ok(path.with_file_name(name))
}

fn check_directory(path: &Path, what: &str) -> Result<()> {
    // Every RocksDB directory has this file.
    match fs::metadata(path.join("CURRENT")) {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Err(Error::new(
                ErrorKind::Config,
                format!(
                    "expected a RocksDB directory at {} ({what}), found no file CURRENT in it",
                    path.display()
                ),
            ))
        }
        Err(error) => Err(storage(path, error)),
    }
}

/// Shares the lock that a writing `RocksDB` holds alone. The file is not changed; a copy of a
/// directory may lack it.
///
/// `RocksDB` does not look at it when it opens read-only: it would read what a running Milvus is
/// changing, and miss what that moves meanwhile.
fn take_lock(directory: &Path) -> Result<Option<File>> {
    let file = match File::open(directory.join("LOCK")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(storage(directory, error)),
    };
    match fcntl_lock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::AGAIN | Errno::ACCESS) => {
            let owner =
                owner_pid(&file).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            Err(Error::new(
                ErrorKind::Locked,
                format!(
                    "{} is in use by the process with pid {owner}: stop Milvus first, or read a \
                     copy made while it was stopped",
                    directory.display()
                ),
            ))
        }
        Err(error) => Err(storage(directory, error.into())),
    }
}

/// The process that holds a lock on the file, as the kernel lists it.
fn owner_pid(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // "1: POSIX  ADVISORY  WRITE 1234 08:01:5678 0 EOF"
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(4);
        let pid = fields.next()?.parse().ok()?;
        let found = fields.next()?.rsplit(':').next()? == inode;
        found.then_some(pid)
    })
}

fn open_database(path: &Path) -> Result<DB> {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    // The default would drop everything behind a damaged record without a word.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // "properties" of the store is a leftover of old versions, and may be missing.
    let families = DB::list_cf(&options, path).map_err(|e| failed("open", path, e))?;
    DB::open_cf_for_read_only(&options, path, families, false).map_err(|e| failed("open", path, e))
}

fn failed(what: &str, path: &Path, error: rocksdb::Error) -> Error {
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        rocksdb::ErrorKind::NotSupported => ErrorKind::Unsupported,
        _ => ErrorKind::Storage,
    };
    Error::with_source(kind, format!("cannot {what} {}", path.display()), error)
}

fn storage(path: &Path, error: io::Error) -> Error {
    Error::with_source(ErrorKind::Storage, format!("cannot read {}", path.display()), error)
}
