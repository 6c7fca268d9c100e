//! Who published a message, and which one it is.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// A producer: a random uuid, 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProducerId(pub [u8; 16]);

impl ProducerId {
    /// A new random producer id.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().into_bytes())
    }

    /// Reads the 32 hexadecimal digits that [`fmt::Display`] writes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when `text` is not 32 lowercase hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self> {
        let canonical = text.len() == 32 && !text.bytes().any(|b| b.is_ascii_uppercase());
        match uuid::Uuid::try_parse(text) {
            Ok(id) if canonical => Ok(Self(id.into_bytes())),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                format!("producer id: expected 32 hexadecimal digits, got {text:?}"),
            )),
        }
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", uuid::Uuid::from_bytes(self.0).simple())
    }
}

/// Names one message for good: retried publishes carry the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Who published it.
    pub producer: ProducerId,
    /// Counts the restarts of that producer, from 1.
    pub epoch: u32,
    /// The producer's gapless sequence, from 1. Of packed rows: the first row's.
    pub seq: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.producer, self.epoch, self.seq)
    }
}
