//! Frames -> messages.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::aligned::AlignedBuffer;
use crate::frame::codec::decode_summed;
use crate::frame::{Header, Incoming, Layout, MessageId};

/// One group being put together: every chunk is decoded straight to its final place.
#[derive(Debug)]
pub struct Assembly {
    group: Tally,
    buffer: AlignedBuffer,
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
        let group = Tally::new(first, decode_limit_bytes)?;
        Ok(Self { group, buffer: AlignedBuffer::new(first.total_bytes)? })
    }

    /// Takes one frame; true when it was the last one missing. A repeated equal frame is swallowed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a frame of another group, one that contradicts an earlier one, or
    /// a body that does not decode to what its header says.
    pub fn accept(&mut self, header: &Header, body: &[u8]) -> Result<bool> {
        if self.group.is_new(header)? {
            decode_chunk(header, body, self.buffer.as_mut())?;
            self.group.came(header);
        }
        Ok(self.group.missing == 0)
    }

    /// Frames that have not come yet.
    #[cfg(feature = "nats")]
    pub(crate) fn missing(&self) -> u32 {
        self.group.missing
    }

    fn cost_bytes(header: &Header) -> u64 {
        header.total_bytes + u64::from(header.count) * SLOT_BYTES + GROUP_BYTES
    }

    /// The message.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when frames are missing.
    pub fn finish(self) -> Result<Incoming> {
        Ok(Incoming::of(self.group.whole()?, self.buffer.into_bytes()))
    }
}

/// Decodes one chunk to its place in the payload.
pub(super) fn decode_chunk(header: &Header, body: &[u8], payload: &mut [u8]) -> Result<()> {
    let place = || {
        let start = usize::try_from(header.offset).ok()?;
        Some(start..start.checked_add(header.chunk_bytes as usize)?)
    };
    let Some(out) = place().and_then(|place| payload.get_mut(place)) else {
        return Err(foreign(header, "place"));
    };
    let itemsize = header.layout.as_ref().map_or(1, Layout::itemsize);
    if decode_summed(header.codec, itemsize, body, out)? != header.checksum {
        let (index, id) = (header.index, header.id);
        let context = format!("checksum of frame {index} of message {id} does not match");
        return Err(Error::new(ErrorKind::Corrupt, context));
    }
    Ok(())
}

/// Which frames of a group have come.
#[derive(Debug)]
pub(super) struct Tally {
    first: Header,
    /// Checksum and raw length of each frame that came.
    slots: Vec<Option<(u32, u32)>>,
    missing: u32,
}

impl Tally {
    /// As [`Assembly::new`].
    pub(super) fn new(first: &Header, decode_limit_bytes: u64) -> Result<Self> {
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
            slots: vec![None; first.count as usize],
            missing: first.count,
        })
    }

    /// False: a repeat. An error: it is of another group, or contradicts an earlier frame.
    pub(super) fn is_new(&self, header: &Header) -> Result<bool> {
        header.validate()?;
        self.check_group(header)?;
        match self.slots.get(header.index as usize) {
            None => Err(foreign(header, "index")),
            Some(Some(known)) if *known == content(header) => Ok(false),
            Some(Some(_)) => Err(foreign(header, "content")),
            Some(None) => Ok(true),
        }
    }

    /// A new frame was taken.
    pub(super) fn came(&mut self, header: &Header) {
        if let Some(slot @ None) = self.slots.get_mut(header.index as usize) {
            *slot = Some(content(header));
            self.missing -= 1;
        }
    }

    #[cfg(feature = "nats")]
    pub(super) fn missing(&self) -> u32 {
        self.missing
    }

    /// The group's header, when all of its frames have come.
    pub(super) fn whole(self) -> Result<Header> {
        if self.missing > 0 {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!(
                    "message {}: {} of {} frames are missing",
                    self.first.id, self.missing, self.first.count
                ),
            ));
        }
        Ok(self.first)
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
}

fn content(header: &Header) -> (u32, u32) {
    (header.checksum, header.chunk_bytes)
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
        self.held_bytes -= Assembly::cost_bytes(&group.group.first);
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
