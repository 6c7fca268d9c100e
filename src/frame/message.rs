//! A message on its way out, and one that came in.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::{self, Codec, Coding, checksum};
use crate::frame::header::{Frame, Header};
use crate::frame::{Layout, MessageId, Plan};

/// A message to publish. Cloning it copies no payload.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its id; of packed rows the first row's.
    pub id: MessageId,
    /// Messages in the payload: 1, or the rows of a packed matrix.
    pub rows: u32,
    /// dtype and shape; None for plain bytes.
    pub layout: Option<Layout>,
    /// The bytes.
    pub payload: Bytes,
}

/// The checksums of a payload's chunks, as they were once: a frame takes its own from here, so that
/// bytes that change afterwards are damaged for every reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSums {
    chunk_bytes: usize,
    total_bytes: usize,
    sums: Vec<u32>,
}

impl ChunkSums {
    /// Of chunks of `chunk_bytes`, the last one shorter.
    pub fn take(payload: &[u8], chunk_bytes: usize) -> Self {
        let chunk_bytes = chunk_bytes.max(1);
        let sums = payload.chunks(chunk_bytes).map(checksum).collect();
        Self { chunk_bytes, total_bytes: payload.len(), sums }
    }

    /// Whether the payload is still as it was.
    pub fn matches(&self, payload: &[u8]) -> bool {
        payload.len() == self.total_bytes
            && payload.chunks(self.chunk_bytes).map(checksum).eq(self.sums.iter().copied())
    }

    /// Of a frame of the plan; None where that cuts elsewhere.
    fn of(&self, plan: &Plan, index: u32) -> Option<u32> {
        let alike = plan.count as usize == self.sums.len()
            && (plan.count == 1 || plan.chunk_bytes as usize == self.chunk_bytes);
        self.sums.get(index as usize).copied().filter(|_| alike)
    }
}

impl Outgoing {
    /// Makes one frame of the plan. A raw body is a slice of the payload: no copy.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for an index outside the plan, [`ErrorKind::Corrupt`] for a layout
    /// that does not match the payload.
    pub fn frame(&self, plan: &Plan, index: u32, coding: impl Into<Coding>) -> Result<Frame> {
        self.frame_of(plan, index, coding, None)
    }

    /// As [`Outgoing::frame`], with checksums that were taken before.
    ///
    /// # Errors
    /// As [`Outgoing::frame`].
    pub fn frame_of(
        &self,
        plan: &Plan,
        index: u32,
        coding: impl Into<Coding>,
        sums: Option<&ChunkSums>,
    ) -> Result<Frame> {
        let coding = coding.into();
        let range = plan.chunk(index);
        if index >= plan.count || range.end > self.payload.len() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("frame {index} lies outside a plan of {} frames", plan.count),
            ));
        }
        let offset = range.start as u64;
        let chunk = self.payload.slice(range);
        let itemsize = self.layout.as_ref().map_or(1, Layout::itemsize);
        let shrunk = codec::encode(coding, itemsize, &chunk)?;
        let header = Header {
            id: self.id,
            rows: self.rows,
            index,
            count: plan.count,
            total_bytes: self.payload.len() as u64,
            offset,
            chunk_bytes: u32::try_from(chunk.len())
                .map_err(|_| Error::new(ErrorKind::TooLarge, "chunk exceeds 4 GiB"))?,
            codec: if shrunk.is_some() { coding.codec() } else { Codec::Raw },
            layout: self.layout.clone(),
            checksum: sums
                .and_then(|sums| sums.of(plan, index))
                .unwrap_or_else(|| checksum(&chunk)),
        };
        header.validate()?;
        Ok(Frame { header, body: shrunk.unwrap_or(chunk) })
    }
}

/// A message that came in whole.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Its id; of packed rows the first row's.
    pub id: MessageId,
    /// Messages in the payload.
    pub rows: u32,
    /// dtype and shape; None for plain bytes.
    pub layout: Option<Layout>,
    /// The bytes, 64-byte aligned, in one allocation.
    pub payload: Bytes,
    /// Frames it came in.
    pub frames_count: u32,
}

impl Incoming {
    /// The payload that frames with this header make.
    pub(super) fn of(header: Header, payload: Bytes) -> Self {
        let Header { id, rows, layout, count: frames_count, .. } = header;
        Self { id, rows, layout, payload, frames_count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ProducerId;

    #[test]
    fn a_frame_of_bytes_that_changed_keeps_the_checksum_of_what_they_were() {
        let bytes = vec![7; 1000];
        let sums = ChunkSums::take(&bytes, 300);
        assert!(sums.matches(&bytes));
        let mut changed = bytes;
        if let Some(byte) = changed.get_mut(650) {
            *byte ^= 1;
        }
        assert!(!sums.matches(&changed));
        assert!(!sums.matches(changed.get(..999).unwrap_or_default()));
        let id = MessageId { producer: ProducerId([1; 16]), epoch: 1, seq: 1 };
        let outgoing = Outgoing { id, rows: 1, layout: None, payload: changed.into() };
        let is_true = |chunk_bytes: u32, index: u32| {
            let plan = Plan::new(1000, 1, chunk_bytes).unwrap_or_else(|e| panic!("{e}"));
            let frame = outgoing.frame_of(&plan, index, Codec::Raw, Some(&sums));
            let frame = frame.unwrap_or_else(|e| panic!("{e}"));
            frame.header.checksum == checksum(&frame.body)
        };
        assert_eq!([0, 1, 2, 3].map(|index| is_true(300, index)), [true, true, false, true]);
        // Cut elsewhere, it has one of its own.
        assert!(is_true(400, 1));
    }
}
