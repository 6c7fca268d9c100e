//! Where a time lies in the log.

use crate::error::{Error, ErrorKind, Result};
use crate::queue::topic::Topic;

/// Records of one look.
const RECORDS: usize = 256;

impl Topic {
    /// An error unless the topic holds a message of that seq.
    ///
    /// # Errors
    /// [`ErrorKind::SeqNotFound`], naming the nearest.
    pub fn check_seq(&self, seq: u64) -> Result<()> {
        let (first, next) = (self.first_seq(), self.next_seq());
        if (first..next).contains(&seq) {
            return Ok(());
        }
        let holds = if first == next {
            "it is empty".to_owned()
        } else {
            let nearest = seq.clamp(first, next - 1);
            format!("it holds {first} to {}, the nearest is {nearest}", next - 1)
        };
        let context = format!("topic {:?} has no seq {seq}: {holds}", self.name());
        Err(Error::new(ErrorKind::SeqNotFound, context))
    }

    /// The seq of the first message that was published at `time_ms` or later, or after it where
    /// `inclusive` is false; the seq of the next message where there is none.
    ///
    /// # Errors
    /// As [`Topic::read`].
    pub fn seq_at(&self, time_ms: u64, inclusive: bool) -> Result<u64> {
        self.check_exists()?;
        // Everything before a border is as old as the border or older.
        let borders = self.pages()?;
        let before = borders.into_iter().take_while(|page| page.time_ms < time_ms).last();
        let mut seq = before.map_or(0, |page| page.first_seq).max(self.first_seq());
        loop {
            let records = self.read_located(seq, RECORDS, usize::MAX)?;
            let Some(last) = records.last() else { return Ok(self.next_seq()) };
            seq = last.after();
            let found = records.iter().find(|record| {
                if inclusive { record.time_ms >= time_ms } else { record.time_ms > time_ms }
            });
            if let Some(record) = found {
                return Ok(record.first_seq.max(self.first_seq()));
            }
        }
    }
}
