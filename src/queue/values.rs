//! Large values, in files of their own beside the database.
//!
//! `RocksDB` would write a large value twice (write-ahead log and table), copy it twice in memory
//! and stall when its flushes fall behind. Here it is written once, straight from the caller's
//! memory; the database keeps where it lies. A file belongs to one topic and covers a range of its
//! seqs, so retention deletes whole files and the disk shrinks at once.
//!
//! A value is in its file before the record that points to it is in the database. What a crash
//! leaves behind that no record points to is cut off when the directory is opened.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::AlignedBuffer;
use crate::queue::keys::Pointer;

/// Values of this size and more go to files. Below it a record's way through the database is
/// cheaper than a system call of its own.
pub(super) const LARGE_BYTES_MIN: usize = 16 << 10;
/// A new file is begun when the last one has this size: the grain in which disk is given back.
pub(super) const FILE_BYTES: u64 = 32 << 20;
/// Where the files lie, in the queue's directory.
const DIRECTORY: &str = "values";
/// Slices of one system call.
const SLICES_MAX: usize = 64;
/// Bytes of one system call. A larger one gets its page cache in huge pieces of memory, and those
/// are what the host of a virtual machine takes back first: 5 MiB at a time took five times as
/// long.
const WRITE_BYTES_MAX: usize = 512 << 10;

/// The value files of one topic.
pub(super) struct ValueFiles {
    directory: PathBuf,
    topic_id: u32,
    files: Mutex<BTreeMap<u32, ValueFile>>,
}

/// One file: open once it was used.
struct ValueFile {
    /// Seq of the first record that lies in it.
    first_seq: u64,
    file: Option<Arc<File>>,
}

impl ValueFiles {
    /// The files that the database knows of; `first_seqs` by file number.
    pub(super) fn new(
        queue_directory: &Path,
        topic_id: u32,
        first_seqs: BTreeMap<u32, u64>,
    ) -> Self {
        let file = |first_seq| ValueFile { first_seq, file: None };
        let files = first_seqs.into_iter().map(|(number, seq)| (number, file(seq))).collect();
        let directory = queue_directory.join(DIRECTORY);
        Self { directory, topic_id, files: Mutex::new(files) }
    }

    /// Begins a new file.
    pub(super) fn create(&self, number: u32, first_seq: u64) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|e| self.failed("make", number, e))?;
        let path = self.path(number);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| self.failed("make", number, e))?;
        // A failed write may have left one.
        file.set_len(0).map_err(|e| self.failed("make", number, e))?;
        self.lock().insert(number, ValueFile { first_seq, file: Some(Arc::new(file)) });
        Ok(())
    }

    /// Appends the slices one after the other; on an error the file is cut back to `end`.
    pub(super) fn append(&self, number: u32, end: u64, slices: &[Bytes]) -> Result<()> {
        let file = self.open(number)?;
        write_all(&file, slices).map_err(|e| {
            // Should that fail too, the next open of the directory cuts it.
            let _ = file.set_len(end);
            self.failed("write to", number, e)
        })
    }

    /// Cuts a file back to `end`: what lies behind it was never acknowledged.
    pub(super) fn cut(&self, number: u32, end: u64) {
        if let Ok(file) = self.open(number) {
            let _ = file.set_len(end);
        }
    }

    /// Brings a file to the disk, and its name.
    pub(super) fn sync(&self, number: u32) -> Result<()> {
        self.open(number)?
            .sync_data()
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(|e| self.failed("sync", number, e))
    }

    /// Reads a value into an aligned allocation.
    pub(super) fn read(&self, pointer: Pointer) -> Result<Bytes> {
        let file = self.open(pointer.file)?;
        let end = pointer.position.checked_add(pointer.length);
        let length = file.metadata().map_err(|e| self.failed("read", pointer.file, e))?.len();
        if end.is_none_or(|end| end > length) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} has {length} bytes, a record of {} bytes begins at {}",
                    self.path(pointer.file).display(),
                    pointer.length,
                    pointer.position
                ),
            ));
        }
        let mut buffer = AlignedBuffer::new(pointer.length)?;
        file.read_exact_at(buffer.as_mut(), pointer.position)
            .map_err(|e| self.failed("read", pointer.file, e))?;
        Ok(buffer.into_bytes())
    }

    /// Removes the files all of whose records lie before `seq`, and with `last` the newest one too;
    /// returns their numbers.
    pub(super) fn remove_before(&self, seq: u64, last: bool) -> Result<Vec<u32>> {
        let mut taken = self.take_before(seq, last).into_iter();
        let mut removed = Vec::new();
        while let Some((number, file)) = taken.next() {
            match std::fs::remove_file(self.path(number)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    self.lock().extend(std::iter::once((number, file)).chain(taken));
                    return Err(self.failed("remove", number, e));
                }
                _ => removed.push(number),
            }
        }
        Ok(removed)
    }

    /// Takes the files all of whose records lie before `seq`. They are removed, and closed, without
    /// the lock: where the system is writing one out that waits for the disk, and with the lock
    /// held every append waited with it (up to 470 ms in a stream of 5 GB, every pause over 60 ms).
    fn take_before(&self, seq: u64, last: bool) -> Vec<(u32, ValueFile)> {
        let mut files = self.lock();
        let mut taken = Vec::new();
        while let Some((&number, _)) = files.first_key_value() {
            let next = files.range(number + 1..).next().map(|(_, file)| file.first_seq);
            if next.map_or(!last, |next| next > seq) {
                break;
            }
            taken.extend(files.pop_first());
        }
        taken
    }

    /// Removes what the database does not know of and cuts the last file to `end`; returns the
    /// bytes that were dropped.
    pub(super) fn recover(&self, last: u32, end: u64) -> Result<u64> {
        let mut dropped = 0;
        for (number, length) in self.on_disk()? {
            if !self.knows(number) {
                let removed = std::fs::remove_file(self.path(number));
                removed.map_err(|e| self.failed("remove", number, e))?;
                dropped += length;
            } else if number == last && length > end {
                self.open(number)?.set_len(end).map_err(|e| self.failed("cut", number, e))?;
                dropped += length - end;
            }
        }
        Ok(dropped)
    }

    /// The log knows the file.
    pub(super) fn knows(&self, number: u32) -> bool {
        self.lock().contains_key(&number)
    }

    /// All files of the topic that lie on the disk, known or not, and their sizes in bytes.
    pub(super) fn on_disk(&self) -> Result<BTreeMap<u32, u64>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(|e| self.failed("list", 0, e))?,
        };
        let mut files = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(|e| self.failed("list", 0, e))?;
            if let Some(number) = self.number(&entry.file_name().to_string_lossy()) {
                let length = entry.metadata().map_err(|e| self.failed("list", number, e))?.len();
                files.insert(number, length);
            }
        }
        Ok(files)
    }

    /// The numbers of the files and their sizes in bytes, as they lie on the disk.
    pub(super) fn sizes(&self) -> Result<BTreeMap<u32, u64>> {
        // Held: retention removes files meanwhile.
        let files = self.lock();
        let size = |&number: &u32| match std::fs::metadata(self.path(number)) {
            Ok(found) => Ok((number, found.len())),
            Err(e) => Err(self.missing(number, e)),
        };
        files.keys().map(size).collect()
    }

    fn open(&self, number: u32) -> Result<Arc<File>> {
        let mut files = self.lock();
        let known = files.get_mut(&number).ok_or_else(|| {
            let path = self.path(number);
            Error::new(ErrorKind::Corrupt, format!("{} is not known to the log", path.display()))
        })?;
        if let Some(file) = &known.file {
            return Ok(Arc::clone(file));
        }
        let opened = OpenOptions::new().read(true).append(true).open(self.path(number));
        let file = Arc::new(opened.map_err(|e| self.missing(number, e))?);
        known.file = Some(Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("{:08x}-{number:08x}", self.topic_id))
    }

    /// The number of a file of this topic by its name.
    fn number(&self, name: &str) -> Option<u32> {
        let (topic, number) = name.split_once('-')?;
        let own = u32::from_str_radix(topic, 16) == Ok(self.topic_id);
        own.then(|| u32::from_str_radix(number, 16).ok()).flatten()
    }

    /// A file that the log knows and that cannot be opened: gone, it is damage.
    fn missing(&self, number: u32, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::NotFound {
            let context = format!("{} is gone, and the log needs it", self.path(number).display());
            return Error::with_source(ErrorKind::Corrupt, context, error);
        }
        self.failed("open", number, error)
    }

    fn failed(&self, what: &str, number: u32, error: io::Error) -> Error {
        let path = self.path(number);
        Error::with_source(ErrorKind::Storage, format!("cannot {what} {}", path.display()), error)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, ValueFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All value files of a directory, with their topics' ids.
pub(super) fn list(queue_directory: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let directory = queue_directory.join(DIRECTORY);
    let failed = |e| {
        let context = format!("cannot list {}", directory.display());
        Error::with_source(ErrorKind::Storage, context, e)
    };
    let entries = match std::fs::read_dir(&directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.split_once('-'));
        if let Some(topic_id) = name.and_then(|(topic, _)| u32::from_str_radix(topic, 16).ok()) {
            files.push((topic_id, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn write_all(file: &File, slices: &[Bytes]) -> io::Result<()> {
    let mut some: Vec<IoSlice<'_>> = Vec::with_capacity(SLICES_MAX);
    let mut bytes = 0;
    for piece in slices.iter().flat_map(|slice| slice.chunks(WRITE_BYTES_MAX)) {
        if some.len() == SLICES_MAX || bytes + piece.len() > WRITE_BYTES_MAX {
            write_some(file, &mut some)?;
            (some, bytes) = (Vec::with_capacity(SLICES_MAX), 0);
        }
        some.push(IoSlice::new(piece));
        bytes += piece.len();
    }
    write_some(file, &mut some)
}

fn write_some(mut file: &File, mut rest: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
