//! Frames -> messages.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::aligned::AlignedBuffer;
use crate::frame::codec::{checksum, decode_into};
use crate::frame::{Header, Incoming, Layout, MessageId};

/// One group being put together: every chunk is decoded straight to its final place.
#[derive(Debug)]
pub struct Assembly {
    first: Header,
    buffer: AlignedBuffer,
    /// Checksum and raw length of each frame that came.
    slots: Vec<Option<(u32, u32)>>,
    missing: u32,
}

/// What a group costs beside its payload: its place in the map, its header, its allocations.
const GROUP_BYTES: u64 = 512;
/// And for each of its frames.
const SLOT_BYTES: u64 = size_of::<Option<(u32, u32)>>() as u64;

impl Assembly {
    /// Begins the group of `first`, which is not taken yet: [`Assembly::accept`] it.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] when the message exceeds `decode_limit_bytes`; nothing is allocated
    /// then.
    pub fn new(first: &Header, decode_limit_bytes: u64) -> Result<Self> {
        first.validate()?;
        if first.total_bytes > decode_limit_bytes {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a message of {} bytes exceeds the limit of {decode_limit_bytes} bytes",
                    first.total_bytes
                ),
            ));
        }
        Ok(Self {
            first: first.clone(),
            buffer: AlignedBuffer::new(first.total_bytes)?,
            slots: vec![None; first.count as usize],
            missing: first.count,
        })
    }

    /// Takes one frame; true when it was the last one missing. A repeated equal frame is swallowed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a frame of another group, one that contradicts an earlier one, or
    /// a body that does not decode to what its header says.
    pub fn accept(&mut self, header: &Header, body: &[u8]) -> Result<bool> {
        header.validate()?;
        self.check_group(header)?;
        let Some(slot) = self.slots.get_mut(header.index as usize) else {
            return Err(foreign(header, "index"));
        };
        let content = (header.checksum, header.chunk_bytes);
        match slot {
            Some(known) if *known == content => return Ok(self.missing == 0),
            Some(_) => return Err(foreign(header, "content")),
            None => {}
        }
        let Some(out) = self.buffer.slice_mut(header.offset, header.chunk_bytes) else {
            return Err(foreign(header, "place"));
        };
        let itemsize = self.first.layout.as_ref().map_or(1, Layout::itemsize);
        decode_into(header.codec, itemsize, body, out)?;
        if checksum(out) != header.checksum {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "checksum of frame {} of message {} does not match",
                    header.index, header.id
                ),
            ));
        }
        *slot = Some(content);
        self.missing -= 1;
        Ok(self.missing == 0)
    }

    /// Every header tiles the payload by itself; of one tile size, the tiles cannot overlap.
    fn check_group(&self, header: &Header) -> Result<()> {
        let first = &self.first;
        let same = header.id == first.id
            && header.rows == first.rows
            && header.count == first.count
            && header.total_bytes == first.total_bytes
            && header.tile_bytes() == first.tile_bytes()
            && header.layout == first.layout;
        if same { Ok(()) } else { Err(foreign(header, "header")) }
    }

    fn cost_bytes(header: &Header) -> u64 {
        header.total_bytes + u64::from(header.count) * SLOT_BYTES + GROUP_BYTES
    }

    /// The message.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when frames are missing.
    pub fn finish(self) -> Result<Incoming> {
        if self.missing > 0 {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!(
                    "message {}: {} of {} frames are missing",
                    self.first.id, self.missing, self.first.count
                ),
            ));
        }
        Ok(Incoming {
            id: self.first.id,
            rows: self.first.rows,
            layout: self.first.layout,
            payload: self.buffer.into_bytes(),
            frames_count: self.first.count,
        })
    }
}

fn foreign(header: &Header, what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("frame {} of message {}: {what} contradicts the group", header.index, header.id),
    )
}

/// Decodes a message of one frame.
///
/// # Errors
/// As [`Assembly::new`] and [`Assembly::accept`]; [`ErrorKind::Incomplete`] for a frame of a larger
/// group.
pub fn decode_single(header: &Header, body: &[u8], decode_limit_bytes: u64) -> Result<Incoming> {
    let mut assembly = Assembly::new(header, decode_limit_bytes)?;
    assembly.accept(header, body)?;
    assembly.finish()
}

/// Puts many interleaved groups together, within a budget of bytes.
///
/// It keeps nothing of a finished group: a frame that is repeated after that begins the group anew,
/// for [`Assembler::discard`] to end. Dropping repeated messages is the subscriber's part.
#[derive(Debug)]
pub struct Assembler {
    limit_bytes: u64,
    held_bytes: u64,
    groups: HashMap<MessageId, Assembly>,
}

impl Assembler {
    /// `limit_bytes`: the largest message, and all unfinished groups together with what they cost
    /// beside their payloads. A lone group may use all of it for its payload.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, held_bytes: 0, groups: HashMap::new() }
    }

    /// Takes one frame; gives the message when it was the last one missing.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] when a new group exceeds the budget, [`ErrorKind::Corrupt`] as
    /// [`Assembly::accept`]. All groups stay as they were then; a refused frame begins none.
    pub fn accept(&mut self, header: &Header, body: &[u8]) -> Result<Option<Incoming>> {
        let Some(group) = self.groups.get_mut(&header.id) else {
            return self.begin(header, body);
        };
        if !group.accept(header, body)? {
            return Ok(None);
        }
        let finished = self.groups.remove(&header.id);
        self.held_bytes -= Assembly::cost_bytes(header);
        finished.map(Assembly::finish).transpose()
    }

    fn begin(&mut self, header: &Header, body: &[u8]) -> Result<Option<Incoming>> {
        if header.count == 1 {
            return decode_single(header, body, self.limit_bytes).map(Some);
        }
        header.validate()?;
        let held_bytes = self.held_bytes.saturating_add(Assembly::cost_bytes(header));
        if !self.groups.is_empty() && held_bytes > self.limit_bytes {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "message {}: with it, {} unfinished messages would hold {held_bytes} bytes, \
                     the limit is {} bytes",
                    header.id,
                    self.groups.len() + 1,
                    self.limit_bytes
                ),
            ));
        }
        let mut group = Assembly::new(header, self.limit_bytes)?;
        group.accept(header, body)?;
        self.held_bytes = held_bytes;
        self.groups.insert(header.id, group);
        Ok(None)
    }

    /// Gives up an unfinished group; false when there is none.
    pub fn discard(&mut self, id: &MessageId) -> bool {
        let Some(group) = self.groups.remove(id) else { return false };
        self.held_bytes -= Assembly::cost_bytes(&group.first);
        true
    }

    /// Unfinished groups.
    pub fn groups_count(&self) -> usize {
        self.groups.len()
    }

    /// Bytes that the unfinished groups are counted with.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}
