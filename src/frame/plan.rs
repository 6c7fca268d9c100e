//! How a payload is cut into chunks.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// Most frames of one group.
pub const MAX_FRAMES: u32 = 65_536;
/// Largest raw chunk, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 64 << 20;

/// Equal chunks, the last one shorter; borders lie between elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Raw bytes of every chunk but the last.
    pub chunk_bytes: u32,
    /// Number of chunks, at least 1.
    pub count: u32,
    total_bytes: u64,
}

impl Plan {
    /// Cuts `total_bytes` into chunks of at most `chunk_bytes_max` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] when not one element fits a chunk, or more than [`MAX_FRAMES`] are
    /// needed.
    pub fn new(total_bytes: u64, itemsize: u16, chunk_bytes_max: u32) -> Result<Self> {
        let itemsize = u32::from(itemsize.max(1));
        let chunk_bytes_max = chunk_bytes_max.min(CHUNK_BYTES_MAX);
        let chunk_bytes = chunk_bytes_max - chunk_bytes_max % itemsize;
        if chunk_bytes == 0 {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "one element of {itemsize} bytes exceeds the frame budget of \
                     {chunk_bytes_max} bytes"
                ),
            ));
        }
        let count = total_bytes.div_ceil(u64::from(chunk_bytes)).max(1);
        match u32::try_from(count) {
            Ok(count) if count <= MAX_FRAMES => Ok(Self { chunk_bytes, count, total_bytes }),
            _ => Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a payload of {total_bytes} bytes needs {count} frames of {chunk_bytes} bytes, \
                     the limit is {MAX_FRAMES} frames"
                ),
            )),
        }
    }

    /// Where chunk `index` lies in the payload; empty past the end.
    pub fn chunk(&self, index: u32) -> Range<usize> {
        let at = |bytes: u64| usize::try_from(bytes.min(self.total_bytes)).unwrap_or(usize::MAX);
        let start = u64::from(index) * u64::from(self.chunk_bytes);
        at(start)..at(start + u64::from(self.chunk_bytes))
    }
}
