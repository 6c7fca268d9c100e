//! Packs: small messages of mode `nats` that left together, as one message of the stream.
//!
//! The payload of a pack is an inline entry, as the journal has it (see `inline`): so its messages
//! keep their own ids, headers, dtypes and shapes. Its frame header says so by having rows without
//! a dtype; what lies on the stream alone (one message, packed rows of an array) never has that.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Incoming, Outgoing};
use crate::hybrid::append::run_length;
use crate::hybrid::entry::{self, Entry};
use crate::hybrid::inline::{Encoded, InlineEntry, InlineMessage, Run};
use crate::hybrid::publish::{InFlight, Submission};

/// What a message takes in a pack beside its payload and headers, about.
const OVERHEAD_BYTES: usize = 256;
/// Larger messages leave alone: they fill a frame well enough, and are not copied.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Bytes that a message will take in a pack, about; None: it leaves alone.
pub(super) fn packed_bytes(submission: &Submission) -> Option<usize> {
    let headers: usize =
        submission.headers.iter().map(|(key, value)| key.len() + value.len()).sum();
    let bytes = submission.payload.len() + headers + OVERHEAD_BYTES;
    let alone = submission.rows > 1 || submission.expected_last_seq.is_some();
    (!alone && bytes <= MESSAGE_BYTES_MAX).then_some(bytes)
}

/// The messages as the payload of one, and how many frames of each are coded. An error: at least
/// one of them cannot be packed, or changed since it was submitted.
pub(super) fn encode(messages: &[InFlight]) -> Result<(Bytes, Vec<u32>)> {
    let mut coded = Vec::with_capacity(messages.len());
    let bytes = messages.iter().map(|one| one.submission.payload.len()).sum();
    let mut entry = InlineEntry::in_one_piece(bytes, messages.len())?;
    let mut rest = messages;
    while let Some((first, others)) = rest.split_first() {
        let submissions = rest.iter().map(|message| (&message.submission, message.decision.coding));
        let (run, after) = rest.split_at(run_length(submissions));
        if run.len() > 1 {
            let payloads: Vec<&[u8]> =
                run.iter().map(|one| one.submission.payload.as_ref()).collect();
            entry.push_run(&Run {
                id: first.entry.id,
                layout: first.submission.layout.as_ref(),
                headers: &first.submission.headers,
                payloads: &payloads,
                writable: run.iter().any(|one| one.submission.writable),
            })?;
            coded.extend(run.iter().map(|_| 0));
            rest = after;
        } else {
            coded.push(push(&mut entry, first)?.coded_count);
            rest = others;
        }
    }
    messages.iter().try_for_each(verify)?;
    let mut slices = entry.finish();
    match slices.pop() {
        Some(whole) if slices.is_empty() => Ok((whole, coded)),
        _ => Err(Error::new(ErrorKind::TooLarge, "a message is too large for a pack")),
    }
}

fn push(entry: &mut InlineEntry, message: &InFlight) -> Result<Encoded> {
    let coding = message.decision.coding;
    let InFlight { entry: stream_entry, submission, .. } = message;
    let outgoing = Outgoing {
        id: stream_entry.id,
        rows: 1,
        layout: submission.layout.clone(),
        payload: submission.payload.clone(),
    };
    // An entry in one piece borrows nothing.
    let mut borrowed = Vec::new();
    let (headers, writable) = (&submission.headers, submission.writable);
    entry.push(&outgoing, headers, coding, writable, &mut borrowed)
}

/// The copy was verified against the payload as it was then; this, that it still was what was
/// submitted.
fn verify(message: &InFlight) -> Result<()> {
    match &message.sums_before {
        Some(before) if !before.matches(&message.submission.payload) => {
            Err(Error::new(ErrorKind::BufferMutated, "a payload changed before it was packed"))
        }
        _ => Ok(()),
    }
}

/// The message holds others.
pub(super) fn is_pack(incoming: &Incoming) -> bool {
    incoming.rows > 1 && incoming.layout.is_none()
}

/// The messages of a pack, verified; raw payloads stay where they lie.
pub(super) fn decode(incoming: &Incoming, decode_limit_bytes: u64) -> Result<Vec<InlineMessage>> {
    let damaged = || {
        let context = format!("message {} is not a pack of {}", incoming.id, incoming.rows);
        Error::new(ErrorKind::Corrupt, context)
    };
    let Entry::Inline(messages) = entry::decode(&incoming.payload, decode_limit_bytes)? else {
        return Err(damaged());
    };
    let rows: u64 = messages.iter().map(|one| u64::from(one.incoming.rows)).sum();
    if rows == u64::from(incoming.rows) { Ok(messages) } else { Err(damaged()) }
}
