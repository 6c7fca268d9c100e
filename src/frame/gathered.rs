//! A message that came in whole, put together already or only when it is wanted.
//!
//! A caller who has memory of his own for a message takes its frames as they came: each chunk is
//! decoded straight into it, and the allocation that would hold the message is spared.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::aligned::AlignedBuffer;
use crate::frame::assembler::{Tally, decode_chunk};
use crate::frame::{Header, Incoming};

/// A message that came in whole.
#[derive(Clone, Debug)]
pub enum Gathered {
    /// Put together and verified.
    Joined(Incoming),
    /// Its frames, as they came.
    Frames(Frames),
}

impl Gathered {
    /// The message in one allocation.
    ///
    /// # Errors
    /// As [`Frames::join`].
    pub fn join(self) -> Result<Incoming> {
        match self {
            Self::Joined(incoming) => Ok(incoming),
            Self::Frames(frames) => frames.join(),
        }
    }

    /// Messages in it.
    pub fn rows(&self) -> u32 {
        match self {
            Self::Joined(incoming) => incoming.rows,
            Self::Frames(frames) => frames.first.rows,
        }
    }

    /// Payload bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Joined(incoming) => incoming.payload.len() as u64,
            Self::Frames(frames) => frames.first.total_bytes,
        }
    }
}

impl From<Incoming> for Gathered {
    fn from(incoming: Incoming) -> Self {
        Self::Joined(incoming)
    }
}

/// All frames of one message. What they decode to is not verified yet.
#[derive(Clone, Debug)]
pub struct Frames {
    first: Header,
    frames: Vec<(Header, Bytes)>,
}

impl Frames {
    /// Header of the group.
    pub fn header(&self) -> &Header {
        &self.first
    }

    /// Decodes every chunk to its place in `out`: one copy of raw ones. After an error `out` holds
    /// anything.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] when `out` is not of the message's size, [`ErrorKind::Corrupt`].
    pub fn decode_into(&self, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 != self.first.total_bytes {
            let (have, need) = (out.len(), self.first.total_bytes);
            let context = format!("{have} bytes for message {} of {need} bytes", self.first.id);
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        self.frames.iter().try_for_each(|(header, body)| decode_chunk(header, body, out))
    }

    /// The message in an allocation of its own.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]; [`ErrorKind::TooLarge`] beyond the address space.
    pub fn join(&self) -> Result<Incoming> {
        let mut buffer = AlignedBuffer::new(self.first.total_bytes)?;
        self.decode_into(buffer.as_mut())?;
        Ok(Incoming::of(self.first.clone(), buffer.into_bytes()))
    }
}

/// A group whose frames are kept as they come.
#[derive(Debug)]
pub(crate) struct Keeping {
    group: Tally,
    frames: Vec<(Header, Bytes)>,
}

impl Keeping {
    /// As [`crate::frame::Assembly::new`].
    pub(crate) fn new(first: &Header, decode_limit_bytes: u64) -> Result<Self> {
        let group = Tally::new(first, decode_limit_bytes)?;
        Ok(Self { group, frames: Vec::with_capacity(first.count as usize) })
    }

    /// As [`crate::frame::Assembly::accept`]; the body is looked at later.
    pub(crate) fn accept(&mut self, header: Header, body: Bytes) -> Result<()> {
        if self.group.is_new(&header)? {
            self.group.came(&header);
            self.frames.push((header, body));
        }
        Ok(())
    }

    pub(crate) fn missing(&self) -> u32 {
        self.group.missing()
    }

    /// As [`crate::frame::Assembly::finish`].
    pub(crate) fn finish(self) -> Result<Frames> {
        Ok(Frames { first: self.group.whole()?, frames: self.frames })
    }
}
