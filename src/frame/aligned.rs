//! Aligned allocations for messages, used again and again.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// A cache line, and the widest vector register.
const ALIGNMENT: usize = 64;
/// Smaller allocations come from the allocator's own lists, which are as fast.
const POOLED_BYTES_MIN: usize = 32 << 10;
/// What the pool keeps for the next message.
const POOL_BYTES_MAX: usize = 32 << 20;

/// Bytes that begin at a multiple of 64. What they hold at first is initialised but unspecified:
/// zeros, or what an earlier message left.
///
/// The first touch of a page costs more than copying it, so large allocations go through a pool.
/// Fresh ones are zero pages that the kernel has not touched: a length that is larger than what
/// then arrives costs address space, not memory.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    pub(crate) fn new(length: u64) -> Result<Self> {
        let too_large = || {
            Error::new(
                ErrorKind::TooLarge,
                format!("a message of {length} bytes exceeds the address space"),
            )
        };
        let length = usize::try_from(length).map_err(|_| too_large())?;
        let capacity = length.checked_add(ALIGNMENT - 1).ok_or_else(too_large)?;
        let storage = POOL.take(capacity).unwrap_or_else(|| vec![0; capacity]);
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT - 1);
        Ok(Self { storage, start, length })
    }

    /// Forgets what lies behind `length`.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self.storage.get(self.start..self.start + self.length).unwrap_or_default()
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.storage.get_mut(self.start..self.start + self.length).unwrap_or_default()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        POOL.give(std::mem::take(&mut self.storage));
    }
}

static POOL: Pool = Pool { kept: Mutex::new(Kept { storages: Vec::new(), bytes: 0 }) };

struct Pool {
    kept: Mutex<Kept>,
}

struct Kept {
    storages: Vec<Vec<u8>>,
    bytes: usize,
}

impl Pool {
    /// A storage of at least `capacity` bytes that wastes at most as much again.
    fn take(&self, capacity: usize) -> Option<Vec<u8>> {
        if capacity < POOLED_BYTES_MIN {
            return None;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |storage: &Vec<u8>| (capacity..=2 * capacity).contains(&storage.len());
        let index = kept.storages.iter().rposition(fits)?;
        let storage = kept.storages.swap_remove(index);
        kept.bytes -= storage.len();
        Some(storage)
    }

    fn give(&self, storage: Vec<u8>) {
        if storage.len() < POOLED_BYTES_MIN || storage.len() > POOL_BYTES_MAX {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += storage.len();
        kept.storages.push(storage);
        // The oldest go first: they are of sizes that nobody asked for lately.
        while kept.bytes > POOL_BYTES_MAX {
            let oldest = kept.storages.remove(0);
            kept.bytes -= oldest.len();
        }
    }
}

/// Writes bytes one after the other into an aligned allocation.
#[cfg(feature = "queue")]
#[derive(Debug)]
pub(crate) struct AlignedWriter {
    buffer: AlignedBuffer,
    written: usize,
}

#[cfg(feature = "queue")]
impl AlignedWriter {
    pub(crate) fn with_capacity(capacity: usize) -> Result<Self> {
        Ok(Self { buffer: AlignedBuffer::new(capacity as u64)?, written: 0 })
    }

    pub(crate) fn len(&self) -> usize {
        self.written
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) -> Result<()> {
        self.reserve(bytes.len())?;
        let end = self.written + bytes.len();
        if let Some(room) = self.buffer.as_mut().get_mut(self.written..end) {
            room.copy_from_slice(bytes);
        }
        self.written = end;
        Ok(())
    }

    /// Writes zeros up to a multiple of `alignment`, a power of two of at most 64.
    pub(crate) fn pad(&mut self, alignment: usize) -> Result<()> {
        let rest = self.written.next_multiple_of(alignment) - self.written;
        self.extend([0; ALIGNMENT].get(..rest).unwrap_or_default())
    }

    /// Writes over what was written at `start`.
    pub(crate) fn overwrite(&mut self, start: usize, bytes: &[u8]) {
        if let Some(room) = self.buffer.as_mut().get_mut(start..start + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    }

    pub(crate) fn written(&self) -> &[u8] {
        self.buffer.as_ref().get(..self.written).unwrap_or_default()
    }

    pub(crate) fn finish(mut self) -> Bytes {
        self.buffer.truncate(self.written);
        self.buffer.into_bytes()
    }

    fn reserve(&mut self, more: usize) -> Result<()> {
        let needed = self.written + more;
        if needed > self.buffer.as_ref().len() {
            let mut larger = AlignedBuffer::new((needed * 2) as u64)?;
            if let Some(room) = larger.as_mut().get_mut(..self.written) {
                room.copy_from_slice(self.written());
            }
            self.buffer = larger;
        }
        Ok(())
    }
}
