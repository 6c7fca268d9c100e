//! Reads a journal without a subscription group: for tools that copy and compare.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::Headers;
use crate::hybrid::entry::{self, Entry};
use crate::hybrid::inline::InlineMessage;
use crate::hybrid::topic::HubTopic;
use crate::queue;

/// A message as it lies in the journal.
pub struct Peeked {
    /// The seq of its first message.
    pub first_seq: u64,
    /// Messages in it: 1, or packed rows.
    pub span: u32,
    /// The publisher's headers, and the bytes of a message that is neither an array nor packed
    /// rows. None for those, and for what does not lie in the journal.
    pub bytes: Option<(Headers, Bytes)>,
}

impl HubTopic {
    /// The oldest seq that is left, and the next one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] in mode `nats`, [`ErrorKind::Closed`].
    pub fn bounds(&self) -> Result<(u64, u64)> {
        let log = self.journal()?;
        Ok((log.first_seq(), log.next_seq()))
    }

    /// Messages from `from_seq` on: whole records of the journal, up to `records_max`, and no more
    /// than `bytes_max` bytes beside the first record. No cursor moves.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::Config`] in mode `nats`, [`ErrorKind::Closed`],
    /// [`ErrorKind::Storage`].
    pub fn peek(&self, from_seq: u64, records_max: usize, bytes_max: usize) -> Result<Vec<Peeked>> {
        let mut peeked = Vec::new();
        let mut next_seq = from_seq;
        for record in self.journal()?.read(from_seq, records_max, bytes_max)? {
            if record.first_seq != next_seq {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "topic {:?}: expected a record at seq {next_seq}, got one at {}",
                        self.name(),
                        record.first_seq
                    ),
                ));
            }
            next_seq += u64::from(record.span);
            let limit_bytes = self.shared.options.message_bytes_max;
            let entry =
                if record.open { None } else { Some(entry::decode(&record.value, limit_bytes)?) };
            if let Some(Entry::Inline(messages)) = entry {
                take(&mut peeked, record.first_seq, messages);
            } else {
                let (first_seq, span) = (record.first_seq, record.span);
                peeked.push(Peeked { first_seq, span, bytes: None });
            }
        }
        Ok(peeked)
    }

    fn journal(&self) -> Result<&queue::Topic> {
        self.check_open()?;
        let log = self.log.as_deref();
        log.ok_or_else(|| Error::new(ErrorKind::Config, "mode 'nats' has no journal"))
    }
}

fn take(peeked: &mut Vec<Peeked>, mut first_seq: u64, messages: Vec<InlineMessage>) {
    for InlineMessage { incoming, headers } in messages {
        let plain = incoming.rows == 1 && incoming.layout.is_none();
        let bytes = plain.then_some((headers, incoming.payload));
        peeked.push(Peeked { first_seq, span: incoming.rows, bytes });
        first_seq += u64::from(incoming.rows);
    }
}
