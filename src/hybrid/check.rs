//! Verifies a directory that nobody has open: the queue walks the records, here they are decoded.

use std::path::Path;

use crate::error::Result;
use crate::hybrid::entry::{self, Entry};
use crate::queue::{self, Checked, Record};

/// Verifies every record, checksum and count of the queue in `path`; changes nothing.
///
/// # Errors
/// As [`queue::check`].
pub fn check(path: &Path, decode_limit_bytes: u64) -> Result<Checked> {
    queue::check(path, &mut |record| verify(record, decode_limit_bytes))
}

fn verify(record: &Record, decode_limit_bytes: u64) -> Result<()> {
    match entry::decode(&record.value, decode_limit_bytes)? {
        Entry::Inline(messages) => {
            let rows = messages.iter().map(|one| u64::from(one.incoming.rows)).sum::<u64>();
            if rows == u64::from(record.span) && !record.open {
                return Ok(());
            }
            Err(entry::damaged(&format!("{rows} messages in a record of {}", record.span)))
        }
        Entry::Stream(stream) if record.open == (stream.manifest_seq == 0) => Ok(()),
        Entry::Stream(_) => Err(entry::damaged("an intent that is open and completed at once")),
        Entry::Aborted if record.open => Err(entry::damaged("an intent both open and given up")),
        Entry::Aborted => Ok(()),
    }
}
