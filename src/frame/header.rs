//! The frame header.
//!
//! Everything a reader needs to place and check one chunk. Little-endian; ends with a checksum of
//! itself, so every flipped bit and every truncation of a header is refused.
//!
//! ```text
//!  at  size  field
//!   0     2  magic "VQ"
//!   2     1  wire version = 1
//!   3     1  codec: 0 raw, 1 zstd1, 2 planes, 3 pk3, 4 lz4
//!   4    16  producer uuid
//!  20     4  epoch
//!  24     8  seq: the producer's, from 1; of packed rows the first row's
//!  32     4  rows: messages in the payload; > 1 means a packed matrix with shape[0] == rows, or
//!            without a dtype a pack of small messages
//!  36     4  index of this frame in its group
//!  40     4  count of frames in the group
//!  44     8  payload bytes of the whole message
//!  52     8  offset of this chunk in the payload
//!  60     4  chunk bytes, raw
//!  64     4  CRC-32C of the raw chunk
//!  68     2  itemsize; 0 means plain bytes, and the next two fields are empty
//!  70     1  dtype name length n
//!  71     1  dimensions d
//!  72     n  dtype name, ASCII
//! 72+n  8*d  dimensions
//!   .     4  CRC-32C of everything before
//! ```

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::{Codec, checksum};
use crate::frame::plan::{CHUNK_BYTES_MAX, MAX_FRAMES};
use crate::frame::{Layout, MessageId, ProducerId};

/// Version of the wire format, not of the package.
pub const WIRE_VERSION: u8 = 1;
const MAGIC: [u8; 2] = *b"VQ";
/// Most messages packed into one payload.
const ROWS_MAX: u32 = 1_000_000;

/// Places and checks one chunk of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message.
    pub id: MessageId,
    /// Messages in the payload: 1, or the rows of a packed matrix.
    pub rows: u32,
    /// Place of this frame in its group.
    pub index: u32,
    /// Frames of the group.
    pub count: u32,
    /// Bytes of the whole payload.
    pub total_bytes: u64,
    /// Where this chunk begins in the payload.
    pub offset: u64,
    /// Raw bytes of this chunk.
    pub chunk_bytes: u32,
    /// How the body is coded.
    pub codec: Codec,
    /// dtype and shape of the whole payload; None for plain bytes.
    pub layout: Option<Layout>,
    /// CRC-32C of the raw chunk.
    pub checksum: u32,
}

/// A header and its coded chunk.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Places and checks the chunk.
    pub header: Header,
    /// The coded chunk; raw: a slice of the payload.
    pub body: Bytes,
}

impl Header {
    /// This frame ends its group.
    pub fn is_manifest(&self) -> bool {
        self.index.checked_add(1) == Some(self.count)
    }

    /// Checks every field that can be checked without the other frames.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let rules = [
            (self.count >= 1 && self.count <= MAX_FRAMES, "count"),
            (self.index < self.count, "index"),
            (self.rows >= 1 && self.rows <= ROWS_MAX, "rows"),
            (self.chunk_bytes <= CHUNK_BYTES_MAX, "chunk bytes"),
            (i64::try_from(self.total_bytes).is_ok(), "payload bytes"),
            (self.tiles(), "offset or chunk bytes"),
        ];
        for (holds, field) in rules {
            if !holds {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("frame header: bad {field} in frame {} of {}", self.index, self.count),
                ));
            }
        }
        self.validate_layout()
    }

    /// Raw bytes of every chunk of the group but the last; None: there is only one. Every frame
    /// tells it, the last one by where it begins.
    pub(super) fn tile_bytes(&self) -> Option<u64> {
        match (self.is_manifest(), self.index) {
            (true, 0) => None,
            (true, index) => Some(self.offset / u64::from(index)),
            (false, _) => Some(u64::from(self.chunk_bytes)),
        }
    }

    /// As `tile_bytes`, in the type of a chunk's length.
    #[cfg(feature = "nats")]
    pub(crate) fn group_chunk_bytes(&self) -> Option<u32> {
        self.tile_bytes().and_then(|tile| u32::try_from(tile).ok())
    }

    /// Chunks of one size tile the payload, the last may be shorter, borders lie between elements.
    /// So the count of frames, and with it what a reader allocates, is bounded by the payload.
    fn tiles(&self) -> bool {
        let chunk_bytes = u64::from(self.chunk_bytes);
        let Some(tile) = self.tile_bytes() else {
            return self.offset == 0 && chunk_bytes == self.total_bytes;
        };
        let start = |index: u32| u64::from(index).checked_mul(tile);
        let last = start(self.count.saturating_sub(1))
            .and_then(|last_start| self.total_bytes.checked_sub(last_start));
        let itemsize = self.layout.as_ref().map_or(1, Layout::itemsize);
        (1..=u64::from(CHUNK_BYTES_MAX)).contains(&tile)
            && tile.is_multiple_of(u64::from(itemsize))
            && start(self.index) == Some(self.offset)
            && last.is_some_and(|last| (1..=tile).contains(&last))
            && (!self.is_manifest() || last == Some(chunk_bytes))
    }

    fn validate_layout(&self) -> Result<()> {
        let expected = self.layout.as_ref().map_or(Ok(self.total_bytes), Layout::bytes)?;
        if expected != self.total_bytes {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "frame header: dtype and shape need {expected} bytes, the payload has {}",
                    self.total_bytes
                ),
            ));
        }
        let Some(layout) = &self.layout else { return Ok(()) };
        let first = layout.shape().first();
        if self.rows > 1 && first != Some(&u64::from(self.rows)) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("frame header: {} packed rows, but the shape says {first:?}", self.rows),
            ));
        }
        Ok(())
    }

    /// Appends the binary form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.push(WIRE_VERSION);
        out.push(self.codec as u8);
        out.extend_from_slice(&self.id.producer.0);
        out.extend_from_slice(&self.id.epoch.to_le_bytes());
        out.extend_from_slice(&self.id.seq.to_le_bytes());
        for field in [self.rows, self.index, self.count] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.total_bytes.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.chunk_bytes.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        match &self.layout {
            None => out.extend_from_slice(&[0; 4]),
            Some(layout) => {
                out.extend_from_slice(&layout.itemsize().to_le_bytes());
                // Layout::new keeps both under 256.
                out.push(u8::try_from(layout.dtype().len()).unwrap_or(u8::MAX));
                out.push(u8::try_from(layout.shape().len()).unwrap_or(u8::MAX));
                out.extend_from_slice(layout.dtype().as_bytes());
                for dim in layout.shape() {
                    out.extend_from_slice(&dim.to_le_bytes());
                }
            }
        }
        let crc = checksum(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Reads the binary form from the front of `input`; returns the header and the bytes it took.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for bytes that are no valid header, [`ErrorKind::Unsupported`] for a
    /// wire version or codec that this build does not know.
    pub fn decode(input: &[u8]) -> Result<(Self, usize)> {
        let mut reader = Reader { input, at: 0 };
        if reader.array::<2>()? != MAGIC {
            return Err(cut("magic"));
        }
        let [version, codec] = reader.array()?;
        if version != WIRE_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("frame header: wire version {version}, this build reads {WIRE_VERSION}"),
            ));
        }
        let id = MessageId {
            producer: ProducerId(reader.array()?),
            epoch: reader.u32()?,
            seq: reader.u64()?,
        };
        let (rows, index, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let (total_bytes, offset) = (reader.u64()?, reader.u64()?);
        let (chunk_bytes, chunk_crc) = (reader.u32()?, reader.u32()?);
        let layout = reader.layout()?;
        let covered = checksum(input.get(..reader.at).unwrap_or_default());
        if reader.u32()? != covered {
            return Err(cut("checksum"));
        }
        let header = Self {
            id,
            rows,
            index,
            count,
            total_bytes,
            offset,
            chunk_bytes,
            codec: Codec::from_id(codec)?,
            layout,
            checksum: chunk_crc,
        };
        header.validate()?;
        Ok((header, reader.at))
    }
}

fn cut(field: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("frame header: bad {field}, or cut short there"))
}

struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.saturating_add(count);
        let taken = self.input.get(self.at..end).ok_or_else(|| cut("length"))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| cut("length"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn layout(&mut self) -> Result<Option<Layout>> {
        let itemsize = u16::from_le_bytes(self.array()?);
        let [name_bytes, dims] = self.array()?;
        if itemsize == 0 {
            return if name_bytes == 0 && dims == 0 { Ok(None) } else { Err(cut("dtype")) };
        }
        let name = self.take(usize::from(name_bytes))?;
        let name = std::str::from_utf8(name).map_err(|_| cut("dtype"))?;
        let shape = (0..dims).map(|_| self.u64()).collect::<Result<Vec<_>>>()?;
        Layout::new(name, itemsize, shape).map(Some)
    }
}
