//! Cuts messages and sends their frames, in call order.
//!
//! One task for a topic sends frames and never waits for an acknowledgement, only for the window
//! and for its turn (see `order`). What then becomes of a message is its group's matter (see
//! `group`).

use std::sync::Arc;
use std::time::Instant;

use async_nats::HeaderMap;
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{
    CHUNK_BYTES_MAX, ChunkSums, Codec, Coding, Header, Headers, Layout, MAX_FRAMES, Outgoing, Plan,
};
use crate::nats::group::{Group, Lane};
use crate::nats::order::Order;
use crate::nats::topic::{Inner, headers_bytes};
use crate::nats::window::Window;

/// Raw bytes of a frame. 500 MB through a stream took 0.74-0.91 s in frames of 1-2 MiB, 1.7-1.8 s
/// in frames of 4-8 MiB.
const CHUNK_BYTES_TARGET: usize = 1 << 20;
/// Header field: the stream has to end with this sequence.
pub(super) const EXPECTED_LAST_SEQ: &str = "Nats-Expected-Last-Sequence";

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
    /// Frames whose bodies are coded; the others are raw.
    pub coded_count: u32,
}

/// A message, and how it is published.
pub struct Publish {
    /// The message.
    pub outgoing: Outgoing,
    /// The user's headers.
    pub headers: Headers,
    /// How its frames are coded.
    pub codec: Coding,
    /// Checksums of its chunks as it was handed in; None: the payload cannot change.
    pub sums: Option<Arc<ChunkSums>>,
    /// The stream has to end with this sequence when the message is stored, else it is
    /// [`ErrorKind::Rejected`] with code 10071.
    pub expected_last_seq: Option<u64>,
    /// Until then it is sent again where that is needed.
    pub deadline: Instant,
}

impl Publish {
    /// A message that expects nothing of the stream, of bytes that cannot change.
    pub fn new(
        outgoing: Outgoing,
        headers: Headers,
        codec: impl Into<Coding>,
        deadline: Instant,
    ) -> Self {
        let (codec, sums, expected_last_seq) = (codec.into(), None, None);
        Self { outgoing, headers, codec, sums, expected_last_seq, deadline }
    }
}

pub(super) struct Job {
    pub(super) publish: Publish,
    pub(super) done: Box<dyn FnOnce(Result<GroupAck>) + Send>,
}

/// Sends the frames of all jobs, in order, for as long as the topic is in use.
pub(super) async fn run(inner: Arc<Inner>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let lane = Lane { window: Window::new(), order: Order::new(Arc::clone(&inner.uplink)) };
    for number in 0.. {
        let Some(Job { publish, done }) = jobs.recv().await else { return };
        inner.uplink.want();
        let plan = match plan(&inner, &publish.outgoing, &publish.headers) {
            Ok(plan) => plan,
            Err(error) => {
                done(Err(error));
                continue;
            }
        };
        let inner = Arc::clone(&inner);
        let group = Group::new(Arc::clone(&inner), lane.clone(), plan, publish, number);
        let group = Arc::new(group);
        if inner.atomic && group.frames_count() > 1 {
            // The whole group is the unit: the next one follows it, so that messages keep order.
            let outcome = group.deliver_atomic().await;
            tokio::spawn(async move { done(inner.explained(outcome).await) });
            continue;
        }
        let sent = Arc::clone(&group).send_all().await;
        tokio::spawn(async move { done(inner.explained(group.deliver(sent).await).await) });
    }
}

/// Cuts the message so that every frame, headers included, is within what server and stream take
/// now.
pub(super) fn plan(inner: &Inner, outgoing: &Outgoing, headers: &Headers) -> Result<Plan> {
    let itemsize = outgoing.layout.as_ref().map_or(1, Layout::itemsize);
    let header_bytes = header_bytes_max(outgoing, headers);
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
    let total_bytes = outgoing.payload.len() as u64;
    Plan::new(total_bytes, itemsize, u32::try_from(body_bytes).unwrap_or(CHUNK_BYTES_MAX))
}

/// Bytes that the headers of a frame of this message can take: all numbers at their longest.
fn header_bytes_max(outgoing: &Outgoing, headers: &Headers) -> usize {
    let header = Header {
        id: outgoing.id,
        rows: outgoing.rows,
        index: MAX_FRAMES - 1,
        count: MAX_FRAMES,
        total_bytes: outgoing.payload.len() as u64,
        offset: outgoing.payload.len() as u64,
        chunk_bytes: CHUNK_BYTES_MAX,
        codec: Codec::Planes,
        layout: outgoing.layout.clone(),
        checksum: u32::MAX,
    };
    let msg_id = format!("{}-{CHUNK_BYTES_MAX}-{MAX_FRAMES}", outgoing.id);
    let mut fields = frame_headers(&header, Some(&msg_id), Some(headers));
    fields.insert(EXPECTED_LAST_SEQ, u64::MAX.to_string());
    headers_bytes(&fields)
}

/// The headers of one frame; with `msg_id` a repeat is stored once.
pub(super) fn frame_headers(
    header: &Header,
    msg_id: Option<&str>,
    user: Option<&Headers>,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(msg_id) = msg_id {
        headers.insert("Nats-Msg-Id", msg_id);
    }
    for (key, value) in header.to_fields() {
        headers.insert(key, value);
    }
    for (key, value) in user.into_iter().flat_map(Headers::iter) {
        headers.append(key, value);
    }
    headers
}
