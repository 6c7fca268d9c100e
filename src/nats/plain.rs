//! Groups on any subject, for code that was written against plain NATS (`vecmq.bridge`).
//!
//! Every frame goes to the caller's subject, because his streams and subscribers listen there and
//! nowhere else. Frame 0 is acknowledged before the next leaves, so a refusal (no stream, no room)
//! stores nothing; the manifest goes last, when all others are stored, and says in `Vecmq-Seqs`
//! where they are. Nothing is sent again: a caller of nats-py expects one attempt.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_nats::{HeaderMap, Request, RequestErrorKind};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Codec, Coding, Frame, Layout, Outgoing, Plan, checksum};
use crate::nats::connection::Connection;
use crate::nats::topic::{check_frame, headers_bytes};

/// KiB of frames without an acknowledgement on one connection: a quarter of what the server queues
/// for one stream before it refuses.
pub(super) const PLAIN_KIB_MAX: usize = 32 << 10;
/// KiB in flight for which a frame may wait once more as long.
const TURN_KIB: usize = 2 << 10;
/// Frames of one group in flight; JetStream is at its fastest with 4 to 16.
const FRAMES_IN_FLIGHT_MAX: usize = 8;
/// Bytes of a group, without JetStream, that are handed to the connection before it is flushed.
const UNFLUSHED_BYTES_MAX: usize = 8 << 20;
/// Bytes that `Vecmq-Seqs` may take; the caller left room for them.
const SEQS_BYTES_MAX: usize = 160;
/// Where the frames before the manifest are in the stream.
const SEQS: &str = "Vecmq-Seqs";
const MSG_ID: &str = "Nats-Msg-Id";

/// Header fields besides the frame's own, as the caller wants them.
#[derive(Clone, Debug, Default)]
pub struct PlainFields {
    /// On every frame.
    pub every: Vec<(String, String)>,
    /// On the first.
    pub first: Vec<(String, String)>,
    /// On the last, the manifest.
    pub last: Vec<(String, String)>,
}

/// Manifests leave in the order in which their turns were taken.
#[derive(Debug)]
pub struct Turn {
    previous: Option<oneshot::Receiver<()>>,
    leaving: oneshot::Sender<()>,
}

/// Gives out turns.
#[derive(Debug, Default)]
pub struct Turns(Mutex<Option<oneshot::Receiver<()>>>);

impl Turns {
    /// The next turn.
    pub fn take(&self) -> Turn {
        let (leaving, left) = oneshot::channel();
        let previous = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(left);
        Turn { previous, leaving }
    }
}

/// A message for one subject.
#[derive(Debug)]
pub struct PlainGroup {
    /// Where all frames go.
    pub subject: String,
    /// The message.
    pub outgoing: Outgoing,
    /// Raw bytes of a frame at most.
    pub chunk_bytes_max: u32,
    /// How frames are coded.
    pub codec: Coding,
    /// The caller's headers.
    pub fields: PlainFields,
    /// The payload's memory may be written meanwhile.
    pub writable: bool,
}

/// What a frame came to: its stream sequence, or the server's refusal.
enum Ack {
    Stored(u64, Bytes),
    Refused(Bytes),
}

impl Connection {
    /// Stores a group; gives the server's answer to the manifest, or its refusal of a frame, as the
    /// JSON text that it sent. After an error the manifest was not sent, or its fate is unknown.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when a frame is not acknowledged within `timeout` for each 2 MiB that
    /// are on their way before it, [`ErrorKind::NoStream`], [`ErrorKind::NotConnected`],
    /// [`ErrorKind::TooLarge`] when the server's limit shrank, [`ErrorKind::BufferMutated`].
    pub async fn store_group(
        &self,
        group: PlainGroup,
        timeout: Duration,
        turn: Turn,
    ) -> Result<Bytes> {
        let plan = group.plan()?;
        let (group, last) = (Arc::new(group), plan.count - 1);
        let sums = group.checksums(&plan);
        let mut seqs = Vec::new();
        if last > 0 {
            match self.store(&group, &plan, 0, timeout).await? {
                Ack::Stored(seq, _) => seqs.push(seq),
                Ack::Refused(answer) => return Ok(answer),
            }
        }
        let middle = stream::iter(1..last)
            .map(|index| self.store(&group, &plan, index, timeout))
            .buffered(FRAMES_IN_FLIGHT_MAX);
        let mut middle = std::pin::pin!(middle);
        while let Some(ack) = middle.try_next().await? {
            match ack {
                Ack::Stored(seq, _) => seqs.push(seq),
                Ack::Refused(answer) => return Ok(answer),
            }
        }
        if group.checksums(&plan) != sums {
            return Err(Error::new(
                ErrorKind::BufferMutated,
                format!(
                    "the payload of {} bytes was changed while it was published",
                    group.outgoing.payload.len()
                ),
            ));
        }
        let place = (!seqs.is_empty()).then(|| seq_ranges(&seqs));
        match self.store_in_turn(&group, &plan, timeout, place, turn).await? {
            Ack::Stored(_, answer) | Ack::Refused(answer) => Ok(answer),
        }
    }

    /// Sends a group to whoever listens; the payload's memory is free when this ends.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::NotConnected`].
    pub async fn send_group(&self, group: PlainGroup) -> Result<()> {
        let plan = group.plan()?;
        let mut sent_bytes = 0;
        for index in 0..plan.count {
            let frame = group.encode(&plan, index).await?;
            let headers = group.headers(&frame, None);
            let (subject, body) = (group.subject.clone(), frame.body);
            let size = body.len() + headers_bytes(&headers);
            check_frame(size, self.max_payload())?;
            self.client().publish_with_headers(subject, headers, body).await.map_err(not_sent)?;
            sent_bytes += size;
            if sent_bytes >= UNFLUSHED_BYTES_MAX || index + 1 == plan.count {
                // The socket has it: nothing piles up in memory.
                self.client().flush().await.map_err(not_sent)?;
                sent_bytes = 0;
            }
        }
        Ok(())
    }

    /// Waits until the server has read everything that was sent before.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::Timeout`].
    pub async fn round_trip(&self, timeout: Duration) -> Result<()> {
        let inbox = self.client().new_inbox();
        let probe = async {
            // What we send ourselves comes back after what was sent before it.
            let mut echoes = self.client().subscribe(inbox.clone()).await.map_err(not_sent)?;
            self.client().publish(inbox.clone(), Bytes::new()).await.map_err(not_sent)?;
            echoes.next().await.map(drop).ok_or_else(|| {
                Error::new(ErrorKind::NotConnected, "the connection ended meanwhile")
            })
        };
        let name = inbox.rsplit('.').next().unwrap_or_default();
        match tokio::time::timeout(timeout, self.link().guard(name, probe)).await {
            // A refusal is an answer, too, and comes in its turn.
            Ok(Err(error)) if error.kind() == ErrorKind::Denied => Ok(()),
            Ok(answer) => answer,
            Err(_) => {
                let context = format!("the server did not answer in {} s", timeout.as_secs_f64());
                Err(Error::new(ErrorKind::Timeout, context))
            }
        }
    }

    /// Brings the manifest to its acknowledgement; it leaves after that of the group before it.
    async fn store_in_turn(
        &self,
        group: &PlainGroup,
        plan: &Plan,
        timeout: Duration,
        seqs: Option<String>,
        turn: Turn,
    ) -> Result<Ack> {
        let frame = self.prepare(group, plan, plan.count - 1, timeout, seqs).await?;
        if let Some(previous) = turn.previous {
            // An error: the group before it ended without a manifest.
            let _ = previous.await;
        }
        let stored = self.request(group.subject.clone(), frame);
        let mut stored = std::pin::pin!(stored);
        // The first poll hands it to the client, which sends in that order.
        let first = poll_fn(|cx| Poll::Ready(stored.as_mut().poll(cx))).await;
        drop(turn.leaving);
        match first {
            Poll::Ready(ack) => ack,
            Poll::Pending => stored.await,
        }
    }

    /// Brings one frame to its acknowledgement.
    async fn store(
        &self,
        group: &PlainGroup,
        plan: &Plan,
        index: u32,
        timeout: Duration,
    ) -> Result<Ack> {
        let frame = self.prepare(group, plan, index, timeout, None).await?;
        self.request(group.subject.clone(), frame).await
    }

    /// Codes a frame and waits for room for it.
    async fn prepare(
        &self,
        group: &PlainGroup,
        plan: &Plan,
        index: u32,
        timeout: Duration,
        seqs: Option<String>,
    ) -> Result<Prepared> {
        let frame = group.encode(plan, index).await?;
        let headers = group.headers(&frame, seqs);
        let size = frame.body.len() + headers_bytes(&headers);
        let share = self.enter(size).await?;
        let ahead_kib = PLAIN_KIB_MAX - self.plain_budget().available_permits().min(PLAIN_KIB_MAX);
        let turns = u32::try_from(ahead_kib.div_ceil(TURN_KIB).max(1)).unwrap_or(1);
        let timeout = Some(timeout.saturating_mul(turns));
        let request = Request::new().headers(headers).payload(frame.body).timeout(timeout);
        Ok(Prepared { request, _share: share })
    }

    async fn request(&self, subject: String, frame: Prepared) -> Result<Ack> {
        let Prepared { request, _share } = frame;
        let answer = self.client().send_request(subject, request).await;
        let answer = answer.map_err(|e| {
            let kind = match e.kind() {
                RequestErrorKind::NoResponders => ErrorKind::NoStream,
                RequestErrorKind::TimedOut => ErrorKind::Timeout,
                RequestErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
                _ => ErrorKind::NotConnected,
            };
            Error::with_source(kind, "a frame was not acknowledged", e)
        })?;
        let json: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        let seq = json.get("seq").and_then(serde_json::Value::as_u64);
        Ok(match seq {
            Some(seq) if json.get("error").is_none() => Ack::Stored(seq, answer.payload),
            _ => Ack::Refused(answer.payload),
        })
    }

    /// Waits for room.
    async fn enter(&self, wire_bytes: usize) -> Result<OwnedSemaphorePermit> {
        check_frame(wire_bytes, self.max_payload())?;
        let kib = u32::try_from(wire_bytes.div_ceil(1024).min(PLAIN_KIB_MAX)).unwrap_or(1);
        let entered = Arc::clone(self.plain_budget()).acquire_many_owned(kib).await;
        entered.map_err(|e| Error::with_source(ErrorKind::Closed, "the connection was closed", e))
    }
}

fn not_sent(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::with_source(ErrorKind::NotConnected, "it was not sent", error)
}

/// A frame that may leave.
struct Prepared {
    request: Request,
    _share: OwnedSemaphorePermit,
}

impl PlainGroup {
    fn plan(&self) -> Result<Plan> {
        let itemsize = self.outgoing.layout.as_ref().map_or(1, Layout::itemsize);
        Plan::new(self.outgoing.payload.len() as u64, itemsize, self.chunk_bytes_max)
    }

    async fn encode(&self, plan: &Plan, index: u32) -> Result<Frame> {
        if self.codec == Codec::Raw {
            return self.outgoing.frame(plan, index, Codec::Raw);
        }
        let (outgoing, plan, codec) = (self.outgoing.clone(), *plan, self.codec);
        let coding = tokio::task::spawn_blocking(move || outgoing.frame(&plan, index, codec));
        let gone = |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
        coding.await.map_err(gone)?
    }

    fn headers(&self, frame: &Frame, seqs: Option<String>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (key, value) in frame.header.to_fields() {
            headers.insert(key, value);
        }
        let id = format!("{}-{}", self.outgoing.id, frame.header.index);
        headers.insert(MSG_ID, id);
        if let Some(seqs) = seqs {
            headers.insert(SEQS, seqs);
        }
        let fields = &self.fields;
        let first = fields.first.iter().filter(|_| frame.header.index == 0);
        let last = fields.last.iter().filter(|_| frame.header.is_manifest());
        for (key, value) in fields.every.iter().chain(first).chain(last) {
            headers.insert(key.as_str(), value.as_str());
        }
        headers
    }

    /// The checksums of all chunks of a payload that can change, and of more than one frame.
    fn checksums(&self, plan: &Plan) -> Vec<u32> {
        if !self.writable || plan.count == 1 {
            return Vec::new();
        }
        let chunk = |index| self.outgoing.payload.get(plan.chunk(index)).unwrap_or_default();
        (0..plan.count).map(|index| checksum(chunk(index))).collect()
    }
}

/// Sequences as ranges, "17-20,23"; one range over all where that would take too many bytes.
pub fn seq_ranges(seqs: &[u64]) -> String {
    let mut sorted = seqs.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for seq in sorted {
        match ranges.last_mut() {
            Some((_, end)) if seq <= *end + 1 => *end = seq,
            _ => ranges.push((seq, seq)),
        }
    }
    let text = |&(start, end): &(u64, u64)| {
        if start == end { start.to_string() } else { format!("{start}-{end}") }
    };
    let exact = ranges.iter().map(text).collect::<Vec<_>>().join(",");
    match (ranges.first(), ranges.last()) {
        (Some((start, _)), Some((_, end))) if exact.len() > SEQS_BYTES_MAX => text(&(*start, *end)),
        _ => exact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_ranges() {
        assert_eq!(seq_ranges(&[17]), "17");
        assert_eq!(seq_ranges(&[17, 18, 20, 19, 23]), "17-20,23");
        let far: Vec<u64> = (0..100).map(|n| 10_000_000_000 + 2 * n).collect();
        assert_eq!(seq_ranges(&far), "10000000000-10000000198");
    }
}
