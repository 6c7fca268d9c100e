//! What became of an intent whose `PubAck` never came: killed process, or the caller's time was
//! over.
//!
//! The stream is asked for the message's id. Found whole: the intent is completed. Not found twice
//! in a row: it is given up, its stray frames are purged, and readers step over it. Until then
//! readers wait there, so the order holds. Nobody was told that such a message is stored, so either
//! end is right.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::entry::{self, Entry, StreamEntry};
use crate::hybrid::runtime;
use crate::hybrid::topic::HubTopic;

/// Between the two looks: frames that a dead connection left in the server's buffers land within
/// this.
const SECOND_LOOK: Duration = Duration::from_millis(500);
/// Between attempts while the server cannot be asked.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Resolves the open intent at `seq` in the background, for as long as the hub is open.
pub(super) fn spawn(topic: &Arc<HubTopic>, seq: u64) -> Result<()> {
    let topic = Arc::clone(topic);
    runtime::handle()?.spawn(async move {
        let mut absences = 0;
        while !topic.shared.is_closed() {
            match look(&topic, seq).await {
                Ok(Found::Settled) => return,
                Ok(Found::Absent(_)) if absences == 0 => {
                    absences += 1;
                    tokio::time::sleep(SECOND_LOOK).await;
                }
                Ok(Found::Absent(rows)) => match abort(&topic, seq, rows) {
                    Ok(()) => return,
                    Err(error) => pause(&topic, seq, &error).await,
                },
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => pause(&topic, seq, &error).await,
            }
        }
    });
    Ok(())
}

/// Gives the intent up for good: readers step over it, its frames are purged.
pub(super) fn abort(topic: &Arc<HubTopic>, seq: u64, rows: u32) -> Result<()> {
    let Some((_, entry)) = intent(topic, seq)? else { return Ok(()) };
    let Some(log) = &topic.log else { return Ok(()) };
    log.close_open(seq, rows, &[&entry::encode_aborted()])?;
    topic.shared.counters.aborted.fetch_add(1, Ordering::Relaxed);
    let topic = Arc::clone(topic);
    runtime::handle()?.spawn(async move {
        let purged = match topic.stream().await {
            Ok(stream) => stream.discard(&entry.id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = purged {
            // Stray frames take disk until the stream's own limits remove them; nobody can read
            // them.
            log::warn!("topic {:?}: frames of {} not purged: {error}", topic.name, entry.id);
        }
    });
    Ok(())
}

enum Found {
    /// Completed now, or by somebody else before.
    Settled,
    /// Not in the stream; the entry spans this many messages.
    Absent(u32),
}

async fn look(topic: &Arc<HubTopic>, seq: u64) -> Result<Found> {
    let Some((span, entry)) = intent(topic, seq)? else { return Ok(Found::Settled) };
    let found = topic.stream().await?.lookup(&entry.id, entry.floor_seq).await?;
    let Some(manifest_seq) = found else { return Ok(Found::Absent(span)) };
    let entry = StreamEntry { manifest_seq, ..entry };
    if let Some(log) = &topic.log {
        log.close_open(seq, span, &[&entry.encode()])?;
    }
    Ok(Found::Settled)
}

/// The open intent at `seq` and the messages it spans, or None where it is settled.
fn intent(topic: &HubTopic, seq: u64) -> Result<Option<(u32, StreamEntry)>> {
    let Some(log) = &topic.log else { return Ok(None) };
    let Some(record) = log.read(seq, 1, 1)?.into_iter().find(|record| record.first_seq == seq)
    else {
        return Ok(None);
    };
    if !record.open {
        return Ok(None);
    }
    match entry::decode(&record.value, topic.shared.options.message_bytes_max)? {
        Entry::Stream(entry) => Ok(Some((record.span, entry))),
        _ => Err(Error::new(
            ErrorKind::Corrupt,
            format!("topic {:?}: seq {seq} is marked open but is no intent", topic.name),
        )),
    }
}

async fn pause(topic: &HubTopic, seq: u64, error: &Error) {
    log::warn!("topic {:?}: seq {seq} waits to be resolved: {error}", topic.name);
    tokio::time::sleep(RETRY_PAUSE).await;
}
