//! A message on its way out, and one that came in.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::{self, Codec, checksum};
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

impl Outgoing {
    /// Makes one frame of the plan. A raw body is a slice of the payload: no copy.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for an index outside the plan, [`ErrorKind::Corrupt`] for a layout
    /// that does not match the payload.
    pub fn frame(&self, plan: &Plan, index: u32, codec: Codec) -> Result<Frame> {
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
        let shrunk = codec::encode(codec, itemsize, &chunk)?;
        let header = Header {
            id: self.id,
            rows: self.rows,
            index,
            count: plan.count,
            total_bytes: self.payload.len() as u64,
            offset,
            chunk_bytes: u32::try_from(chunk.len())
                .map_err(|_| Error::new(ErrorKind::TooLarge, "chunk exceeds 4 GiB"))?,
            codec: if shrunk.is_some() { codec } else { Codec::Raw },
            layout: self.layout.clone(),
            checksum: checksum(&chunk),
        };
        header.validate()?;
        Ok(Frame { header, body: shrunk.map_or(chunk, Bytes::from) })
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
