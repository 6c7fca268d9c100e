//! One aligned allocation for a message.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// A cache line, and the widest vector register.
const ALIGNMENT: usize = 64;

/// Zeroed bytes that begin at a multiple of 64. Fresh zero pages come from the kernel untouched: a
/// length that is larger than what then arrives costs address space, not memory.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    pub(super) fn zeroed(length: u64) -> Result<Self> {
        let too_large = || {
            Error::new(
                ErrorKind::TooLarge,
                format!("a message of {length} bytes exceeds the address space"),
            )
        };
        let length = usize::try_from(length).map_err(|_| too_large())?;
        let capacity = length.checked_add(ALIGNMENT - 1).ok_or_else(too_large)?;
        let storage = vec![0; capacity];
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT - 1);
        Ok(Self { storage, start, length })
    }

    pub(super) fn slice_mut(&mut self, start: u64, length: u32) -> Option<&mut [u8]> {
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.storage.get_mut(self.start..self.start + self.length)?.get_mut(start..end)
    }

    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self.storage.get(self.start..self.start + self.length).unwrap_or_default()
    }
}
