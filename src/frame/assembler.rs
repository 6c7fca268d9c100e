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
    /// Raw bytes of every chunk but the last, known from the first of them that came.
    chunk_bytes: Option<u32>,
}

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
            buffer: AlignedBuffer::zeroed(first.total_bytes)?,
            slots: vec![None; first.count as usize],
            missing: first.count,
            chunk_bytes: None,
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

    fn check_group(&mut self, header: &Header) -> Result<()> {
        let first = &self.first;
        let same = header.id == first.id
            && header.rows == first.rows
            && header.count == first.count
            && header.total_bytes == first.total_bytes
            && header.layout == first.layout;
        if !same {
            return Err(foreign(header, "group"));
        }
        // Chunks tile the payload: all but the last have one size, and the last begins where they
        // end.
        let chunk_bytes = if header.is_manifest() {
            (header.index > 0).then(|| header.offset / u64::from(header.index))
        } else {
            Some(u64::from(header.chunk_bytes))
        };
        let Some(chunk_bytes) = chunk_bytes else { return Ok(()) };
        let chunk_bytes = u32::try_from(chunk_bytes).map_err(|_| foreign(header, "chunk size"))?;
        let exact = u64::from(header.index) * u64::from(chunk_bytes) == header.offset;
        if !exact || *self.chunk_bytes.get_or_insert(chunk_bytes) != chunk_bytes {
            return Err(foreign(header, "chunk size"));
        }
        Ok(())
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
#[derive(Debug)]
pub struct Assembler {
    limit_bytes: u64,
    held_bytes: u64,
    groups: HashMap<MessageId, Assembly>,
}

impl Assembler {
    /// `limit_bytes`: payload bytes of all unfinished groups together.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, held_bytes: 0, groups: HashMap::new() }
    }

    /// Takes one frame; gives the message when it was the last one missing.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] when a new group exceeds the budget, which leaves the others as they
    /// are; [`ErrorKind::Corrupt`] as [`Assembly::accept`].
    pub fn accept(&mut self, header: &Header, body: &[u8]) -> Result<Option<Incoming>> {
        if header.count == 1 {
            return decode_single(header, body, self.limit_bytes).map(Some);
        }
        let group = match self.groups.entry(header.id) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let assembly = Assembly::new(header, self.limit_bytes - self.held_bytes)?;
                self.held_bytes += header.total_bytes;
                entry.insert(assembly)
            }
        };
        if !group.accept(header, body)? {
            return Ok(None);
        }
        let finished = self.groups.remove(&header.id);
        self.held_bytes -= header.total_bytes;
        finished.map(Assembly::finish).transpose()
    }

    /// Gives up an unfinished group; false when there is none.
    pub fn discard(&mut self, id: &MessageId) -> bool {
        let Some(group) = self.groups.remove(id) else { return false };
        self.held_bytes -= group.first.total_bytes;
        true
    }

    /// Unfinished groups.
    pub fn groups_count(&self) -> usize {
        self.groups.len()
    }
}
