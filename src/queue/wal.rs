//! What the write-ahead log holds, read without `RocksDB`.
//!
//! `RocksDB` replays the log without saying what it found, and takes a flipped bit near the end for
//! a torn tail. So the files are read once before it opens them: how much is there, and where it
//! stops being readable.
//!
//! ```text
//! blocks of 32 KiB; in a block records, the rest under 7 bytes is padding:
//!   checksum u32 (CRC-32C of what follows the length, masked), length u16, type u8,
//!   for types 5 to 8 the log number u32, content
//!   type: 1 whole, 2 first, 3 middle, 4 last; 5 to 8 the same in a file that is used again
//! a write: sequence number u64, operations u32, operations
//! ```

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::checksum;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;

/// What one file of the write-ahead log holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WalFile {
    pub(super) number: u64,
    /// Size on the disk.
    pub(super) bytes: u64,
    /// Bytes up to the end of the last write that is whole.
    pub(super) good_bytes: u64,
    /// Writes that are whole.
    pub(super) writes: u64,
    /// Sequence number of the last operation of the last whole write.
    pub(super) last: Option<u64>,
}

/// The numbers and paths of the files, in order.
pub(super) fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |e| {
        let context = format!("cannot list {}", directory.display());
        Error::with_source(ErrorKind::Storage, context, e)
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if path.extension().is_some_and(|ending| ending == "log")
            && let Some(number) = number
        {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Reads all files.
pub(super) fn scan(directory: &Path) -> Result<Vec<WalFile>> {
    list(directory)?.into_iter().map(|(number, path)| scan_file(number, &path)).collect()
}

fn scan_file(number: u64, path: &Path) -> Result<WalFile> {
    let failed =
        |e| Error::with_source(ErrorKind::Storage, format!("cannot read {}", path.display()), e);
    let mut file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut found = WalFile { number, bytes, ..WalFile::default() };
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut open = None;
    let mut at = 0;
    loop {
        block.clear();
        match file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block) {
            Err(e) if e.kind() == IoErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(e)),
            Ok(0) => return Ok(found),
            Ok(_) => {}
        }
        if !scan_block(&block, at, &mut open, &mut found) {
            return Ok(found);
        }
        at += block.len() as u64;
    }
}

/// Takes the records of a block; false where it stops being readable. `open` is the head of a write
/// whose end has not come yet.
fn scan_block(block: &[u8], at: u64, open: &mut Option<Vec<u8>>, found: &mut WalFile) -> bool {
    let mut rest = block;
    while rest.len() >= HEADER_BYTES {
        let Some((kind, content, record_bytes)) = record(rest) else { return false };
        rest = rest.get(record_bytes..).unwrap_or_default();
        let end = at + (block.len() - rest.len()) as u64;
        match kind {
            1 | 5 => {
                *open = None;
                found.add(content, end);
            }
            2 | 6 => *open = Some(content.get(..12).unwrap_or(content).to_vec()),
            4 | 8 => match open.take() {
                Some(head) => found.add(&head, end),
                None => return false,
            },
            // The middle of a write, or notes of RocksDB about the file.
            _ => {}
        }
    }
    true
}

/// The record at the front: its type, its content and its size; None where none is readable.
fn record(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (crc, rest) = bytes.split_first_chunk()?;
    let (length, covered) = rest.split_first_chunk()?;
    let length = usize::from(u16::from_le_bytes(*length));
    let &kind = covered.first()?;
    let head = if (5..=8).contains(&kind) { 5 } else { 1 };
    let covered = covered.get(..head + length)?;
    if kind == 0 || mask(checksum(covered)) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((kind, covered.get(head..)?, HEADER_BYTES - 1 + head + length))
}

/// The log stores checksums so that the checksum of a log is not one of a part of it.
fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

impl WalFile {
    fn add(&mut self, head: &[u8], end: u64) {
        self.good_bytes = end;
        let Some((sequence, rest)) = head.split_first_chunk() else { return };
        let Some((count, _)) = rest.split_first_chunk() else { return };
        let (sequence, count) = (u64::from_le_bytes(*sequence), u32::from_le_bytes(*count));
        self.writes += 1;
        self.last = Some((sequence + u64::from(count)).saturating_sub(1));
    }
}
