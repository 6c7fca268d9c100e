//! The frames of one message, from the first attempt to the acknowledgement of all.
//!
//! What stays unclear (a timeout, a lost connection) is sent again under the same `Nats-Msg-Id`,
//! which the server stores once (see `flight`). A server that came back with a smaller limit gets
//! the message in smaller frames, on a subject of their own: frames of two cuts never mix.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Codec, Frame, MessageId, Plan};
use crate::nats::errors;
use crate::nats::fetch;
use crate::nats::flight::{FrameAck, Sent};
use crate::nats::link::Sends;
use crate::nats::order::{Flight, Key, Order};
use crate::nats::publish::{EXPECTED_LAST_SEQ, GroupAck, Publish, frame_headers, plan};
use crate::nats::topic::{Inner, check_frame};
use crate::nats::window::Window;

/// A frame as a message.
pub(super) struct WireFrame {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) is_coded: bool,
}

/// Frames on the way: each is brought to its acknowledgement by a task of its own, so that it gives
/// its share of the window back while later frames wait for theirs.
pub(super) enum Acks {
    One(Sent),
    Many(Vec<JoinHandle<FrameAck>>),
}

/// What all messages of a topic share on their way. Cloning it shares it.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) window: Window,
    pub(super) order: Arc<Order>,
}

/// A message whose frames are on the way.
pub(super) struct Group {
    inner: Arc<Inner>,
    lane: Lane,
    plan: Plan,
    publish: Arc<Publish>,
    /// Of the topic's messages, in the order of the calls.
    number: u64,
    /// How often it was cut anew.
    cut: u32,
    started: Instant,
    /// Cut anew, and whether its manifest needs another id than the first cut's.
    attempt: Attempt,
    /// The server refused a frame: the others need not be sent.
    refused: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    /// The first cut's manifest may be stored.
    Smaller,
    /// It was, without all its frames, and is deleted.
    Renamed,
}

impl Group {
    pub(super) fn new(
        inner: Arc<Inner>,
        lane: Lane,
        plan: Plan,
        publish: Publish,
        number: u64,
    ) -> Self {
        let (attempt, refused) = (Attempt::First, AtomicBool::new(false));
        let (publish, started) = (Arc::new(publish), Instant::now());
        Self { inner, lane, plan, publish, number, cut: 0, started, attempt, refused }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub(super) fn window(&self) -> &Window {
        &self.lane.window
    }

    pub(super) fn order(&self) -> &Arc<Order> {
        &self.lane.order
    }

    pub(super) fn id(&self) -> &MessageId {
        &self.publish.outgoing.id
    }

    pub(super) fn deadline(&self) -> Instant {
        self.publish.deadline
    }

    pub(super) fn chunk_bytes(&self) -> u32 {
        self.plan.chunk_bytes
    }

    pub(super) fn frames_count(&self) -> u32 {
        self.plan.count
    }

    /// Takes a frame's place in the topic's order.
    pub(super) fn enter(&self, index: u32) -> Flight {
        self.order().enter(Key { message: self.number, cut: self.cut, index })
    }

    /// The message will be cut anew: what was called for after it waits.
    pub(super) fn hold(&self) {
        self.order().hold(self.number);
    }

    /// The server refused a frame: the others need not be sent.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Sends every frame once. An error: nothing was sent.
    pub(super) async fn send_all(self: Arc<Self>) -> Result<Acks> {
        self.inner.link.check()?;
        let overdue = || self.overdue(ErrorKind::Timeout);
        if self.plan.count == 1 {
            return self.send(0).await?.map(Acks::One).ok_or_else(overdue);
        }
        let mut acks = Vec::with_capacity(self.plan.count as usize);
        for index in 0..self.plan.count {
            if self.refused.load(Ordering::Relaxed) {
                break;
            }
            let sent = match self.send(index).await {
                Ok(Some(sent)) => sent,
                Ok(None) if acks.is_empty() => return Err(overdue()),
                Ok(None) => break,
                Err(error) if acks.is_empty() => return Err(error),
                Err(error) => {
                    acks.push(tokio::spawn(async move { Err(error) }));
                    break;
                }
            };
            if index == 0 && self.publish.expected_last_seq.is_some() {
                // What is refused has to leave nothing behind.
                let ack = self.settle(sent).await?;
                acks.push(tokio::spawn(async move { Ok(ack) }));
                continue;
            }
            let group = Arc::clone(&self);
            acks.push(tokio::spawn(async move { group.settle(sent).await }));
        }
        Ok(Acks::Many(acks))
    }

    /// One frame as a message.
    pub(super) async fn message(&self, index: u32) -> Result<WireFrame> {
        let frame = self.encode(index).await?;
        let is_coded = frame.header.codec != Codec::Raw;
        let is_manifest = frame.header.is_manifest();
        let user = is_manifest.then_some(&self.publish.headers);
        let mut headers = frame_headers(&frame.header, self.msg_id(&frame).as_deref(), user);
        if let (0, Some(seq)) = (index, self.publish.expected_last_seq) {
            headers.insert(EXPECTED_LAST_SEQ, seq.to_string());
        }
        let subject = if is_manifest {
            self.inner.name().to_owned()
        } else {
            self.inner.frames_subject(self.id(), self.plan.chunk_bytes)
        };
        Ok(WireFrame { subject, headers, body: frame.body, is_coded })
    }

    /// A frame has to be within what server and stream take now.
    pub(super) fn check_bytes(&self, wire_bytes: usize) -> Result<()> {
        check_frame(wire_bytes, self.inner.budget())
    }

    /// The message's id for its manifest, whatever the cut; frames of two cuts are not the same.
    /// Frames of an atomic batch have none: they are stored with its manifest only.
    fn msg_id(&self, frame: &Frame) -> Option<String> {
        let (id, tile) = (self.id(), self.plan.chunk_bytes);
        match (frame.header.is_manifest(), self.attempt) {
            (true, Attempt::First | Attempt::Smaller) => Some(id.to_string()),
            (true, Attempt::Renamed) => Some(format!("{id}-{tile}")),
            (false, _) if self.inner.atomic => None,
            (false, _) => Some(format!("{id}-{tile}-{}", frame.header.index)),
        }
    }

    async fn encode(&self, index: u32) -> Result<Frame> {
        let (publish, plan) = (Arc::clone(&self.publish), self.plan);
        let frame =
            move || publish.outgoing.frame_of(&plan, index, publish.codec, publish.sums.as_deref());
        if self.publish.codec == Codec::Raw {
            return frame();
        }
        let gone = |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
        tokio::task::spawn_blocking(frame).await.map_err(gone)?
    }

    pub(super) fn acknowledged(
        &self,
        manifest_seq: u64,
        duplicate: bool,
        wire_bytes: u64,
        coded_count: u32,
    ) -> GroupAck {
        GroupAck {
            manifest_seq,
            frames_count: self.plan.count,
            payload_bytes: self.publish.outgoing.payload.len() as u64,
            wire_bytes,
            duplicate,
            coded_count,
        }
    }

    /// Brings the message to its acknowledgement, or gives it up.
    pub(super) async fn deliver(self: Arc<Self>, sent: Result<Acks>) -> Result<GroupAck> {
        // What comes after it waits until it is stored, if it has to be cut anew.
        let _held = self.order().held(self.number);
        let mut group = self;
        let mut outcome = match sent {
            Ok(acks) => Arc::clone(&group).collect(acks).await,
            Err(error) => Err(error),
        };
        let mut other_tiles = Vec::new();
        loop {
            let next = match &outcome {
                Err(error) if error.kind() == ErrorKind::TooLarge => group.smaller(),
                Ok(ack) if ack.duplicate && group.attempt == Attempt::Smaller => {
                    group.renamed(ack.manifest_seq).await?
                }
                _ => None,
            };
            let Some(next) = next else { break };
            other_tiles.push(group.plan.chunk_bytes);
            group = Arc::new(next);
            outcome = match Arc::clone(&group).send_all().await {
                Ok(acks) => Arc::clone(&group).collect(acks).await,
                Err(error) => Err(error),
            };
        }
        match &outcome {
            // They can never become whole.
            Err(error) if is_refusal(error) => {
                other_tiles.push(group.plan.chunk_bytes);
                group.purge(other_tiles);
            }
            // Not those of a manifest that the server had before.
            Ok(ack) if !ack.duplicate => group.purge(other_tiles),
            _ => {}
        }
        outcome
    }

    /// The message in frames that the server takes now; None when they are no smaller.
    fn smaller(&self) -> Option<Self> {
        let plan = plan(&self.inner, &self.publish.outgoing, &self.publish.headers).ok()?;
        let attempt = Attempt::Smaller;
        (plan.chunk_bytes < self.plan.chunk_bytes).then(|| self.again(plan, attempt))
    }

    /// The message under another id, when the manifest that the server had before is not whole:
    /// that one is deleted.
    async fn renamed(&self, manifest_seq: u64) -> Result<Option<Self>> {
        match fetch::fetch(&self.inner, self.id(), manifest_seq, u64::MAX).await {
            Ok(_) => return Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::Incomplete | ErrorKind::Corrupt) => {}
            Err(error) => return Err(error),
        }
        let deleted = self.inner.stream.delete_message(manifest_seq).await;
        deleted.map_err(|e| errors::request("cannot delete an incomplete manifest", e))?;
        Ok(Some(self.again(self.plan, Attempt::Renamed)))
    }

    fn again(&self, plan: Plan, attempt: Attempt) -> Self {
        log::warn!(
            "message {} goes again in frames of {} bytes, not {}",
            self.id(),
            plan.chunk_bytes,
            self.plan.chunk_bytes
        );
        let (inner, lane) = (Arc::clone(&self.inner), self.lane.clone());
        let (publish, number, cut) = (Arc::clone(&self.publish), self.number, self.cut + 1);
        let (started, refused) = (Instant::now(), AtomicBool::new(false));
        Self { inner, lane, plan, publish, number, cut, started, attempt, refused }
    }

    /// Waits for every acknowledgement.
    async fn collect(self: Arc<Self>, acks: Acks) -> Result<GroupAck> {
        let mut ended = Vec::new();
        match acks {
            Acks::One(sent) => ended.push(self.settle(sent).await),
            Acks::Many(acks) => {
                for ack in acks {
                    let gone =
                        |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
                    ended.push(ack.await.map_err(gone).flatten());
                }
            }
        }
        let sent_all = ended.len() == self.plan.count as usize;
        let manifest = ended.last().and_then(|last| last.as_ref().ok()).filter(|_| sent_all);
        let stored = manifest.filter(|(_, duplicate, ..)| !duplicate).map(|(seq, ..)| *seq);
        let mut group = self.acknowledged(0, false, 0, 0);
        let mut failed = None;
        for ack in ended {
            match ack {
                Ok((stream_seq, duplicate, wire_bytes, is_coded)) => {
                    group.wire_bytes += wire_bytes as u64;
                    group.coded_count += u32::from(is_coded);
                    // The manifest is the last.
                    (group.manifest_seq, group.duplicate) = (stream_seq, duplicate);
                }
                // A refusal says more than the time-outs it brings about.
                Err(error) if failed.is_none() || is_refusal(&error) => failed = Some(error),
                Err(_) => {}
            }
        }
        match failed {
            Some(error) => {
                // Small enough for a server that refused the frames before it.
                if let (Some(seq), true) = (stored, is_refusal(&error)) {
                    let deleted = self.inner.stream.delete_message(seq).await;
                    if let Err(e) = deleted {
                        log::warn!("manifest {seq} of {} not deleted: {e}", self.id());
                    }
                }
                Err(error)
            }
            // Frames for which the window had no room in time.
            None if !sent_all => Err(self.overdue(ErrorKind::PublishUnknown)),
            None => Ok(group),
        }
    }

    /// Purges the frames of these cuts.
    fn purge(&self, tiles: Vec<u32>) {
        if tiles.is_empty() || self.plan.count == 1 && tiles == [self.plan.chunk_bytes] {
            return;
        }
        let (inner, id) = (Arc::clone(&self.inner), *self.id());
        tokio::spawn(async move {
            for tile in tiles {
                let subject = inner.frames_subject(&id, tile);
                if let Err(e) = inner.stream.purge().filter(subject).await {
                    log::warn!("stray frames of {id} not purged: {e}");
                }
            }
        });
    }

    /// Waits until something has `happened`, as [`Link::until`](crate::nats::link::Link::until).
    pub(super) async fn until(&self, happened: impl Fn() -> bool) -> Result<()> {
        let (link, name) = (&self.inner.link, self.inner.name());
        link.until(Sends::Frames, name, self.started, happened).await
    }

    /// Waits until no acknowledgement will come, and says why.
    pub(super) async fn trouble(&self) -> Error {
        let (link, name) = (&self.inner.link, self.inner.name());
        self.hopeless(link.trouble(Sends::Frames, name, self.started).await)
    }

    /// No acknowledgement will come: the server denied it, or the connection is lost for good.
    pub(super) fn hopeless(&self, trouble: Error) -> Error {
        if trouble.kind() == ErrorKind::Denied {
            self.refuse();
            return trouble;
        }
        let context = format!("message {} was not acknowledged; it may be stored", self.id());
        Error::with_source(ErrorKind::PublishUnknown, context, trouble)
    }

    pub(super) fn overdue(&self, kind: ErrorKind) -> Error {
        let what = match kind {
            ErrorKind::Timeout => "it was not sent",
            _ => "it may be stored",
        };
        let why = self.inner.uplink.failure().map_or(String::new(), |why| format!(": {why}"));
        Error::new(
            kind,
            format!(
                "message {} of {} bytes was not acknowledged in time; {what}{why}",
                self.id(),
                self.publish.outgoing.payload.len()
            ),
        )
    }
}

fn is_refusal(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::PublishUnknown | ErrorKind::Closed)
}
