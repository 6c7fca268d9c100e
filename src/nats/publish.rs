//! A message -> frames in flight -> one acknowledgement.
//!
//! One task for a topic sends frames in call order and never waits for an acknowledgement, only for
//! the window. One task for a message collects its acknowledgements; what stays unclear (a timeout,
//! a lost connection) is sent again under the same ids, which the server stores once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{CHUNK_BYTES_MAX, Codec, Frame, Headers, Layout, Outgoing, Plan};
use crate::nats::errors::{self, Failure};
use crate::nats::topic::{Inner, headers_bytes};

/// Raw bytes of a frame. 500 MB through a stream took 0.74-0.91 s in frames of 1-2 MiB, 1.7-1.8 s
/// in frames of 4-8 MiB.
const CHUNK_BYTES_TARGET: usize = 1 << 20;
/// Bytes without an acknowledgement: 16 frames of a MiB. Less than half of what a server buffers
/// for a stream.
const WINDOW_BYTES: usize = 16 << 20;
/// The window counts in KiB: a semaphore of bytes would overflow its permits for large frames.
const PERMIT_BYTES: usize = 1 << 10;
/// Every frame takes one: bounds the acknowledgements of small frames.
const WINDOW_FRAMES: usize = 4096;
/// Until a frame counts as unclear and is sent again; doubles with every attempt.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(16);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A server that has just started answers "no stream" until it has read its store.
const NO_STREAM_PATIENCE: Duration = Duration::from_secs(3);

/// The acknowledgement of a whole group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupAck {
    /// Stream sequence of the manifest.
    pub manifest_seq: u64,
    /// Frames of the group.
    pub frames_count: u32,
    /// Payload bytes.
    pub payload_bytes: u64,
    /// Bytes of all bodies and headers.
    pub wire_bytes: u64,
    /// The server had the manifest already.
    pub duplicate: bool,
}

pub(super) struct Job {
    pub(super) outgoing: Outgoing,
    pub(super) headers: Headers,
    pub(super) codec: Codec,
    pub(super) deadline: Instant,
    pub(super) done: Box<dyn FnOnce(Result<GroupAck>) + Send>,
}

/// What may be without an acknowledgement.
struct Window {
    bytes: Arc<Semaphore>,
    frames: Arc<Semaphore>,
}

/// A frame's share of the window; given back when dropped.
struct Share {
    _bytes: OwnedSemaphorePermit,
    _frame: OwnedSemaphorePermit,
}

impl Window {
    fn new() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(WINDOW_BYTES / PERMIT_BYTES)),
            frames: Arc::new(Semaphore::new(WINDOW_FRAMES)),
        }
    }

    async fn enter(&self, bytes: usize, deadline: Instant) -> Option<Share> {
        let permits = bytes.min(WINDOW_BYTES).div_ceil(PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let wait = async {
            let frame = Arc::clone(&self.frames).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(permits).await.ok()?;
            Some(Share { _bytes: bytes, _frame: frame })
        };
        tokio::time::timeout_at(deadline.into(), wait).await.ok().flatten()
    }
}

/// A frame that was handed to the client.
struct Sent {
    index: u32,
    wire_bytes: u64,
    ack: std::result::Result<PublishAckFuture, Failure>,
    share: Share,
}

/// A frame's acknowledgement: stream sequence, duplicate, bytes on the wire.
type FrameAck = Result<(u64, bool, u64)>;

/// A message whose frames are on the way.
struct Group {
    inner: Arc<Inner>,
    window: Arc<Window>,
    plan: Plan,
    outgoing: Outgoing,
    headers: Headers,
    codec: Codec,
    deadline: Instant,
    /// The server refused a frame: the others need not be sent.
    refused: AtomicBool,
}

/// Sends the frames of all jobs, in order, for as long as the topic is in use.
pub(super) async fn run(inner: Arc<Inner>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let window = Arc::new(Window::new());
    while let Some(job) = jobs.recv().await {
        let done = job.done;
        let plan = match plan(&inner, &job.outgoing, &job.headers) {
            Ok(plan) => plan,
            Err(error) => {
                done(Err(error));
                continue;
            }
        };
        let group = Group {
            inner: Arc::clone(&inner),
            window: Arc::clone(&window),
            plan,
            outgoing: job.outgoing,
            headers: job.headers,
            codec: job.codec,
            deadline: job.deadline,
            refused: AtomicBool::new(false),
        };
        match Arc::new(group).start().await {
            Ok(collecting) => {
                tokio::spawn(async move { done(collecting.await) });
            }
            Err(error) => done(Err(error)),
        }
    }
}

/// Cuts the message so that every frame, headers included, is within what server and stream take
/// now.
fn plan(inner: &Inner, outgoing: &Outgoing, headers: &Headers) -> Result<Plan> {
    let itemsize = outgoing.layout.as_ref().map_or(1, Layout::itemsize);
    let total_bytes = outgoing.payload.len() as u64;
    // The header's numbers are at their longest in the last frame of the finest cut.
    let probe = Plan::new(total_bytes, itemsize, CHUNK_BYTES_MAX)?;
    let frame = outgoing.frame(&probe, probe.count - 1, Codec::Raw)?;
    let mut header_bytes = headers_bytes(&frame_headers(&frame, outgoing, Some(headers)));
    header_bytes += 4 * "65536;".len();
    let budget = inner.budget();
    let body_bytes = budget.saturating_sub(header_bytes).min(CHUNK_BYTES_TARGET);
    if body_bytes < usize::from(itemsize) || body_bytes == 0 {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "headers of {header_bytes} bytes leave no room in the server's limit of \
                 {budget} bytes"
            ),
        ));
    }
    Plan::new(total_bytes, itemsize, u32::try_from(body_bytes).unwrap_or(CHUNK_BYTES_MAX))
}

fn frame_headers(frame: &Frame, outgoing: &Outgoing, user: Option<&Headers>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", outgoing.id.frame(frame.header.index));
    for (key, value) in frame.header.to_fields() {
        headers.insert(key, value);
    }
    for (key, value) in user.into_iter().flat_map(Headers::iter) {
        headers.append(key, value);
    }
    headers
}

impl Group {
    /// Sends every frame once; each is brought to its acknowledgement by a task of its own, so that
    /// it gives its share of the window back while later frames wait for theirs. An error:
    /// nothing was sent.
    async fn start(self: Arc<Self>) -> Result<impl Future<Output = Result<GroupAck>>> {
        let mut acks = Vec::with_capacity(self.plan.count as usize);
        for index in 0..self.plan.count {
            if self.refused.load(Ordering::Relaxed) {
                break;
            }
            match self.send(index).await? {
                Some(sent) => {
                    let group = Arc::clone(&self);
                    acks.push(tokio::spawn(async move { group.settle(sent).await }));
                }
                None if acks.is_empty() => return Err(self.overdue(ErrorKind::Timeout)),
                None => break,
            }
        }
        Ok(self.collect(acks))
    }

    /// Sends one frame. None: the window stayed full until the deadline.
    async fn send(&self, index: u32) -> Result<Option<Sent>> {
        let frame = self.encode(index).await?;
        let is_manifest = frame.header.is_manifest();
        let headers = frame_headers(&frame, &self.outgoing, is_manifest.then_some(&self.headers));
        let wire_bytes = frame.body.len() + headers_bytes(&headers);
        let Some(share) = self.window.enter(wire_bytes, self.deadline).await else {
            return Ok(None);
        };
        let subject = if is_manifest {
            self.inner.name().to_owned()
        } else {
            self.inner.frames_subject(&self.outgoing.id)
        };
        let message = PublishMessage::build().payload(frame.body).headers(headers);
        let ack = self.inner.context.send_publish(subject, message).await.map_err(errors::publish);
        Ok(Some(Sent { index, wire_bytes: wire_bytes as u64, ack, share }))
    }

    async fn encode(&self, index: u32) -> Result<Frame> {
        if self.codec == Codec::Raw {
            return self.outgoing.frame(&self.plan, index, Codec::Raw);
        }
        let (outgoing, plan, codec) = (self.outgoing.clone(), self.plan, self.codec);
        let coding = tokio::task::spawn_blocking(move || outgoing.frame(&plan, index, codec));
        let gone = |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
        coding.await.map_err(gone)?
    }

    /// Waits for every acknowledgement.
    async fn collect(self: Arc<Self>, acks: Vec<JoinHandle<FrameAck>>) -> Result<GroupAck> {
        let sent_all = acks.len() == self.plan.count as usize;
        let mut group = GroupAck {
            manifest_seq: 0,
            frames_count: self.plan.count,
            payload_bytes: self.outgoing.payload.len() as u64,
            wire_bytes: 0,
            duplicate: false,
        };
        let mut failed = None;
        for ack in acks {
            let gone = |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
            match ack.await.map_err(gone).flatten() {
                Ok((stream_seq, duplicate, wire_bytes)) => {
                    group.wire_bytes += wire_bytes;
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
                self.give_up(&error);
                Err(error)
            }
            // Frames for which the window had no room in time.
            None if !sent_all => Err(self.overdue(ErrorKind::PublishUnknown)),
            None => Ok(group),
        }
    }

    /// Brings one frame to its acknowledgement, whatever number of attempts that takes.
    async fn settle(&self, first: Sent) -> FrameAck {
        let (index, wire_bytes) = (first.index, first.wire_bytes);
        let mut timeout = ACK_TIMEOUT;
        let mut attempt = first;
        let mut no_stream_since: Option<Instant> = None;
        loop {
            let failure = match self.await_ack(attempt, timeout).await {
                Ok((stream_seq, duplicate)) => return Ok((stream_seq, duplicate, wire_bytes)),
                Err(failure) => failure,
            };
            match failure {
                Failure::Refused(error) if error.kind() == ErrorKind::NoStream => {
                    let since = *no_stream_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > NO_STREAM_PATIENCE {
                        return Err(error);
                    }
                }
                Failure::Refused(error) => {
                    self.refused.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Failure::Unclear(error) => log::debug!("{}: {error}", self.outgoing.id),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            timeout = (timeout * 2).min(ACK_TIMEOUT_MAX);
            attempt = match self.send(index).await? {
                Some(next) if Instant::now() < self.deadline => next,
                _ => return Err(self.overdue(ErrorKind::PublishUnknown)),
            };
        }
    }

    async fn await_ack(
        &self,
        sent: Sent,
        timeout: Duration,
    ) -> std::result::Result<(u64, bool), Failure> {
        let Sent { ack, share, .. } = sent;
        let end = self.deadline.min(Instant::now() + timeout);
        let outcome = match tokio::time::timeout_at(end.into(), ack?).await {
            Ok(Ok(ack)) => Ok((ack.sequence, ack.duplicate)),
            Ok(Err(error)) => Err(errors::publish(error)),
            Err(_) => Err(Failure::Unclear(Error::new(
                ErrorKind::NotConnected,
                format!("no acknowledgement in {} s", timeout.as_secs_f64()),
            ))),
        };
        drop(share);
        outcome
    }

    /// Purges what was stored of a group that the server refused; it can never become whole.
    fn give_up(&self, error: &Error) {
        if is_refusal(error) && self.plan.count > 1 {
            let (inner, id) = (Arc::clone(&self.inner), self.outgoing.id);
            tokio::spawn(async move {
                let subject = inner.frames_subject(&id);
                if let Err(e) = inner.stream.purge().filter(subject).await {
                    log::warn!("stray frames of {id} not purged: {e}");
                }
            });
        }
    }

    fn overdue(&self, kind: ErrorKind) -> Error {
        let what = match kind {
            ErrorKind::Timeout => "it was not sent",
            _ => "it may be stored",
        };
        Error::new(
            kind,
            format!(
                "message {} of {} bytes was not acknowledged in time; {what}",
                self.outgoing.id,
                self.outgoing.payload.len()
            ),
        )
    }
}

fn is_refusal(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::PublishUnknown | ErrorKind::Closed)
}
