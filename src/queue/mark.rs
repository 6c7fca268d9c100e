//! What was acknowledged, noted outside the write-ahead log.
//!
//! A log whose end was cut, flipped or removed looks like one that was killed while it wrote, and a
//! log that is gone like a new one. The file `MARK` says how far the log had come: it is written by
//! a thread of its own right after an append and then at most every [`EVERY`], so an append pays
//! an atomic store. What the mark says and the log does not have is missing, and the queue refuses
//! to open (or says how much, where a power cut explains it).
//!
//! ```text
//!   0   4  magic "VQM1"
//!   4   1  flags: bit 0 closed; bit 1 every write was synced
//!   5  36  boot id of the kernel, as text; zeros where it is not known
//!  41   8  sequence number of the last acknowledged operation
//!  49   8  number of the newest file of the write-ahead log, then
//!  57   8  its size in bytes at that moment
//!  65   4  CRC-32C of bytes 0..65
//! ```

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::checksum;
use crate::queue::wal::{self, WalFile};

/// The file's name.
const MARK_FILE: &str = "MARK";
/// The mark is behind by this much at most.
const EVERY: Duration = Duration::from_millis(10);
const MAGIC: [u8; 4] = *b"VQM1";
const BOOT_BYTES: usize = 36;
const CLOSED: u8 = 1;
const SYNCED: u8 = 2;

/// What the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) closed: bool,
    pub(super) synced: bool,
    boot: [u8; BOOT_BYTES / 2],
    boot_rest: [u8; BOOT_BYTES / 2],
    pub(super) sequence: u64,
    wal_number: u64,
    wal_bytes: u64,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let closed = if self.closed { CLOSED } else { 0 };
        out.push(closed | if self.synced { SYNCED } else { 0 });
        out.extend_from_slice(&self.boot);
        out.extend_from_slice(&self.boot_rest);
        for number in [self.sequence, self.wal_number, self.wal_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = checksum(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (covered, crc) = bytes.split_last_chunk()?;
        if checksum(covered) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (magic, rest) = covered.split_first_chunk()?;
        let (&flags, rest) = rest.split_first()?;
        let (boot, rest) = rest.split_first_chunk()?;
        let (boot_rest, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (wal_number, rest) = rest.split_first_chunk()?;
        let wal_bytes = rest.try_into().ok()?;
        (*magic == MAGIC && flags <= CLOSED | SYNCED).then_some(Self {
            closed: flags & CLOSED != 0,
            synced: flags & SYNCED != 0,
            boot: *boot,
            boot_rest: *boot_rest,
            sequence: u64::from_le_bytes(*sequence),
            wal_number: u64::from_le_bytes(*wal_number),
            wal_bytes: u64::from_le_bytes(wal_bytes),
        })
    }

    /// A power cut may have taken what was not synced.
    pub(super) fn allows_loss(&self) -> bool {
        let now = boot_id();
        let other_boot = (self.boot, self.boot_rest) != now || now == Default::default();
        !self.closed && !self.synced && other_boot
    }

    /// The log does not have all that it had.
    pub(super) fn misses(&self, files: &[WalFile]) -> bool {
        let last = files.iter().filter_map(|file| file.last).max().unwrap_or(0);
        match files.iter().find(|file| file.number == self.wal_number) {
            Some(file) if file.good_bytes >= self.wal_bytes => false,
            // A file never shrinks. Its end may be a write that a kill tore, if all acknowledged
            // ones come before.
            Some(file) => file.bytes < self.wal_bytes || last < self.sequence,
            // It was written out; there is always a newer one then.
            None => self.wal_bytes > 0 && files.iter().all(|file| file.number < self.wal_number),
        }
    }
}

/// What the directory's mark says; None: there is none. `Err` where it cannot be read.
pub(super) fn read(directory: &Path) -> Result<Option<Mark>> {
    let path = directory.join(MARK_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Mark::decode(&bytes).map(Some).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{}: not what was written", path.display()))
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => {
            let context = format!("cannot read {}", path.display());
            Err(Error::with_source(ErrorKind::Storage, context, e))
        }
    }
}

fn boot_id() -> ([u8; BOOT_BYTES / 2], [u8; BOOT_BYTES / 2]) {
    let known = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let halves = known.split_first_chunk().and_then(|(first, rest)| {
        let (second, _) = rest.split_first_chunk()?;
        Some((*first, *second))
    });
    halves.unwrap_or_default()
}

struct State {
    directory: PathBuf,
    /// Held while it is written; None: the directory was closed.
    file: Mutex<Option<File>>,
    base: Mark,
    sequence: AtomicU64,
    dirty: AtomicBool,
    /// Files that are known to be private.
    private: Mutex<HashSet<OsString>>,
}

impl State {
    /// Writes the mark in place; a disk that is full has room for it.
    fn write(&self, file: &File, closed: bool) -> io::Result<()> {
        self.make_private()?;
        // Read before the files: what is acknowledged by now is in them.
        let sequence = self.sequence.load(Ordering::Acquire);
        let newest = wal::list(&self.directory).map_err(io::Error::other)?.pop();
        let (wal_number, wal_bytes) = match newest {
            Some((number, path)) => (number, std::fs::metadata(path)?.len()),
            None => (0, 0),
        };
        let mark = Mark { closed, sequence, wal_number, wal_bytes, ..self.base };
        file.write_all_at(&mark.encode(), 0)?;
        if closed { file.sync_all() } else { Ok(()) }
    }

    /// `RocksDB` makes its files readable for all. The directory is not; this is the second lock.
    fn make_private(&self) -> io::Result<()> {
        let mut private = self.private.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = HashSet::with_capacity(private.len());
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if !private.contains(&name) && entry.file_type()?.is_file() {
                match std::fs::set_permissions(entry.path(), Permissions::from_mode(0o600)) {
                    // Compaction has removed it meanwhile.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    done => done?,
                }
            }
            found.insert(name);
        }
        *private = found;
        Ok(())
    }

    fn run(&self) {
        loop {
            let is_dirty = self.dirty.swap(false, Ordering::AcqRel);
            {
                let file = self.lock_file();
                let Some(file) = &*file else { return };
                if is_dirty && self.write(file, false).is_err() {
                    self.dirty.store(true, Ordering::Release);
                }
            }
            if is_dirty {
                std::thread::sleep(EVERY);
            } else {
                std::thread::park();
            }
        }
    }

    fn lock_file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the mark of an open directory.
pub(super) struct Marker {
    state: Arc<State>,
    thread: Thread,
}

impl Marker {
    /// Says that the directory is open, and that everything up to `sequence` is written.
    pub(super) fn start(directory: &Path, synced: bool, sequence: u64) -> Result<Self> {
        let failed = |e| {
            let context = format!("cannot write {}", directory.join(MARK_FILE).display());
            Error::with_source(ErrorKind::Storage, context, e)
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(MARK_FILE))
            .map_err(failed)?;
        let (boot, boot_rest) = boot_id();
        let state = Arc::new(State {
            directory: directory.to_owned(),
            file: Mutex::new(None),
            base: Mark { synced, boot, boot_rest, ..Mark::default() },
            sequence: AtomicU64::new(sequence),
            dirty: AtomicBool::new(false),
            private: Mutex::new(HashSet::new()),
        });
        state.write(&file, false).map_err(failed)?;
        *state.lock_file() = Some(file);
        let own = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("vecmq-mark".to_owned())
            .spawn(move || own.run())
            .map_err(failed)?
            .thread()
            .clone();
        Ok(Self { state, thread })
    }

    /// Notes that everything up to `sequence` is written.
    pub(super) fn note(&self, sequence: u64) {
        self.state.sequence.fetch_max(sequence, Ordering::AcqRel);
        if !self.state.dirty.load(Ordering::Acquire)
            && !self.state.dirty.swap(true, Ordering::AcqRel)
        {
            self.thread.unpark();
        }
    }

    /// Writes no more; with `closed`, says last that the directory was closed.
    pub(super) fn end(&self, closed: bool) -> Result<()> {
        let file = self.state.lock_file().take();
        let done = match file {
            Some(file) if closed => self.state.write(&file, true),
            _ => Ok(()),
        };
        self.thread.unpark();
        done.map_err(|e| self.failed(e))
    }

    fn failed(&self, error: io::Error) -> Error {
        let path = self.state.directory.join(MARK_FILE);
        Error::with_source(ErrorKind::Storage, format!("cannot write {}", path.display()), error)
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        let _ = self.end(false);
    }
}
