//! Frames -> a message, by direct get; looking a message up, discarding one.
//!
//! Direct get reads from the stream's store without a consumer and without acknowledgements; a
//! batch of one subject brings all frames of a group with one request.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::SemaphorePermit;
use tokio::time::sleep;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Assembly, Codec, Gathered, Header, Headers, Keeping, MessageId};
use crate::nats::errors;
use crate::nats::topic::{Inner, JetTopic};

/// Until the next frame of a batch has to be there.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// KiB that may be asked for and not be there yet. A server ends a connection that has 64 MiB
/// waiting for it (`max_pending`): the replies would be lost, and every acknowledgement with them.
pub(super) const FETCH_KIB_MAX: usize = 16 << 10;
/// Bytes that one request asks for at most, unless one frame is larger.
const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// What a manifest may have, as long as nothing is known about it.
pub(super) const MANIFEST_BYTES: u64 = 1 << 20;
/// How long a copy of a stream may lag behind the others until what it does not have is gone.
const LAG_MAX: Duration = Duration::from_secs(5);
/// Between two questions to the copies.
const LAG_PAUSE: Duration = Duration::from_millis(50);
/// Manifests that one look-up request brings.
const LOOKUP_BATCH: usize = 512;
/// A look-up's consumer goes by itself when nobody asks it any more.
const LOOKUP_CONSUMER_IDLE: Duration = Duration::from_secs(30);

impl JetTopic {
    /// Reads a whole message; every chunk is decoded straight to its place in one allocation, or,
    /// with `keep_frames`, left as it came.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when a frame or the manifest is not there, [`ErrorKind::Corrupt`],
    /// [`ErrorKind::TooLarge`] over `decode_limit_bytes`, [`ErrorKind::Denied`],
    /// [`ErrorKind::NotConnected`].
    pub async fn fetch(
        &self,
        id: &MessageId,
        manifest_seq: u64,
        decode_limit_bytes: u64,
        keep_frames: bool,
    ) -> Result<(Gathered, Headers)> {
        let reading = read(&self.inner, id, manifest_seq, decode_limit_bytes, keep_frames);
        self.inner.link.guard(self.inner.name(), reading).await
    }

    /// The stream sequence of a message's manifest, when the whole message was stored after
    /// `floor_seq`.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`].
    pub async fn lookup(&self, id: &MessageId, floor_seq: u64) -> Result<Option<u64>> {
        let Some(manifest_seq) = self.find_manifest(id, floor_seq).await? else { return Ok(None) };
        match self.fetch(id, manifest_seq, u64::MAX, false).await {
            Ok(_) => Ok(Some(manifest_seq)),
            Err(error) if matches!(error.kind(), ErrorKind::Incomplete | ErrorKind::Corrupt) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks through the headers of all manifests after `floor_seq`.
    pub(super) async fn find_manifest(
        &self,
        id: &MessageId,
        floor_seq: u64,
    ) -> Result<Option<u64>> {
        let last_seq = self.last_seq().await?;
        if last_seq <= floor_seq {
            return Ok(None);
        }
        let failed = |e: async_nats::jetstream::stream::ConsumerError| {
            errors::request("cannot look through the stream", e)
        };
        let consumer = self.inner.stream.create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: floor_seq + 1 },
            ack_policy: AckPolicy::None,
            filter_subject: self.inner.name().to_owned(),
            headers_only: true,
            inactive_threshold: LOOKUP_CONSUMER_IDLE,
            ..pull::Config::default()
        });
        let consumer = consumer.await.map_err(failed)?;
        let mut found = None;
        // What comes later is of other messages: the one that is looked for was sent long ago.
        let mut left = consumer.cached_info().num_pending;
        'batches: while left > 0 {
            let batch = consumer.fetch().max_messages(LOOKUP_BATCH).messages().await;
            let mut batch =
                batch.map_err(|e| errors::request("cannot look through the stream", e))?;
            let before = left;
            while let Some(message) = next_header(&mut batch).await? {
                left = left.saturating_sub(1);
                let (header, _) = read_headers(message.headers.as_ref()).unwrap_or_default();
                let info = message.info().map_err(|e| {
                    Error::with_source(ErrorKind::Corrupt, "the look-up met a foreign message", e)
                })?;
                if header.is_some_and(|header| header.id == *id) {
                    found = Some(info.stream_sequence);
                    break 'batches;
                }
            }
            if left == before {
                return Err(Error::new(
                    ErrorKind::NotConnected,
                    format!("the look-up broke off, {left} messages before its end"),
                ));
            }
        }
        let name = &consumer.cached_info().name;
        if let Err(e) = self.inner.stream.delete_consumer(name).await {
            log::debug!("consumer {name} goes by itself: {e}");
        }
        Ok(found)
    }

    /// Purges a message's frames; its manifest, should there be one, is left without them.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`].
    pub async fn discard(&self, id: &MessageId) -> Result<()> {
        let purged = self.inner.stream.purge().filter(self.inner.all_frames_subject(id)).await;
        purged.map(drop).map_err(|e| errors::request("cannot purge frames", e))
    }
}

/// The next message of a look-up; None: the batch has no more. A request that was lost with its
/// connection is never answered.
async fn next_header(batch: &mut pull::Batch) -> Result<Option<jetstream::Message>> {
    let broke = |e| Error::with_source(ErrorKind::NotConnected, "the look-up broke off", e);
    match tokio::time::timeout(FRAME_TIMEOUT, batch.next()).await {
        Ok(next) => next.transpose().map_err(broke),
        Err(_) => Err(Error::new(ErrorKind::NotConnected, "the server did not answer a look-up")),
    }
}

/// As [`JetTopic::fetch`], in one allocation.
pub(super) async fn fetch(
    inner: &Inner,
    id: &MessageId,
    manifest_seq: u64,
    decode_limit_bytes: u64,
) -> Result<(Gathered, Headers)> {
    read(inner, id, manifest_seq, decode_limit_bytes, false).await
}

/// Any copy of a stream answers, also one that has not heard yet of what the others acknowledged.
async fn read(
    inner: &Inner,
    id: &MessageId,
    manifest_seq: u64,
    decode_limit_bytes: u64,
    keep_frames: bool,
) -> Result<(Gathered, Headers)> {
    let is_copied = inner.stream.cached_info().config.num_replicas > 1;
    let until = Instant::now() + if is_copied { LAG_MAX } else { Duration::ZERO };
    loop {
        let outcome = read_once(inner, id, manifest_seq, decode_limit_bytes, keep_frames).await;
        match outcome {
            Err(error) if error.kind() == ErrorKind::Incomplete && Instant::now() < until => {
                log::debug!("{error}; another copy of the stream may have it");
                sleep(LAG_PAUSE).await;
            }
            outcome => return inner.counted(outcome),
        }
    }
}

async fn read_once(
    inner: &Inner,
    id: &MessageId,
    manifest_seq: u64,
    decode_limit_bytes: u64,
    keep_frames: bool,
) -> Result<(Gathered, Headers)> {
    let request = format!("{{\"seq\":{manifest_seq}}}");
    let subject = direct_subject(inner);
    let permit = reserve(inner, MANIFEST_BYTES).await?;
    let asked = inner.client.request(subject, Bytes::from(request)).await;
    let reply = asked.map_err(|e| errors::request("cannot fetch a manifest", e))?;
    drop(permit);
    if reply.status.is_some_and(|status| status != StatusCode::OK) {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!("message {id}: its manifest is gone from the stream"),
        ));
    }
    let (header, headers) = read_headers(reply.headers.as_ref())?;
    let header = header.filter(|header| header.id == *id).ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!("stream sequence {manifest_seq} is not the manifest of message {id}"),
        )
    })?;
    let body = reply.payload;
    let gathered = complete(inner, &header, body, decode_limit_bytes, keep_frames).await?;
    Ok((gathered, headers))
}

impl Inner {
    /// Counts a message that is not whole.
    pub(super) fn counted<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|error| {
            if error.kind() == ErrorKind::Incomplete {
                self.incomplete_count.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}

/// Puts a message together from its manifest and the frames in the stream.
pub(super) async fn complete(
    inner: &Inner,
    manifest: &Header,
    body: Bytes,
    decode_limit_bytes: u64,
    keep_frames: bool,
) -> Result<Gathered> {
    let mut gathering = Gathering::new(manifest, decode_limit_bytes, keep_frames)?;
    gathering = gathering.accept(manifest.clone(), body).await?;
    let mut next_seq = 1;
    let frame_bytes = manifest.total_bytes.div_ceil(u64::from(manifest.count).max(1)).max(1);
    let frames_max = u32::try_from(REQUEST_BYTES_MAX / frame_bytes).unwrap_or(u32::MAX).max(1);
    while gathering.missing() > 0 {
        let asked = gathering.missing().min(frames_max);
        let permit = reserve(inner, frame_bytes.saturating_mul(u64::from(asked))).await?;
        let mut batch = Batch::request(inner, manifest, next_seq, asked).await?;
        let mut came = 0;
        // One that was resent after the server's window for repeats lies there twice.
        while let Some((stream_seq, header, body)) = batch.next().await? {
            next_seq = stream_seq + 1;
            gathering = gathering.accept(header, body).await?;
            came += 1;
        }
        drop(permit);
        if came == 0 {
            break;
        }
    }
    gathering.finish()
}

/// Waits until so many bytes may be asked for.
pub(super) async fn reserve(inner: &Inner, bytes: u64) -> Result<SemaphorePermit<'_>> {
    let kib = usize::try_from(bytes.div_ceil(1024)).unwrap_or(FETCH_KIB_MAX).min(FETCH_KIB_MAX);
    let permits = u32::try_from(kib).unwrap_or(u32::MAX);
    let gone = |e| Error::with_source(ErrorKind::Closed, "the connection is closed", e);
    inner.fetch_budget.acquire_many(permits).await.map_err(gone)
}

/// The frames of one message, put together as they come or kept.
enum Gathering {
    Decoded(Assembly),
    Kept(Keeping),
}

impl Gathering {
    fn new(manifest: &Header, decode_limit_bytes: u64, keep_frames: bool) -> Result<Self> {
        Ok(if keep_frames {
            Self::Kept(Keeping::new(manifest, decode_limit_bytes)?)
        } else {
            Self::Decoded(Assembly::new(manifest, decode_limit_bytes)?)
        })
    }

    fn missing(&self) -> u32 {
        match self {
            Self::Decoded(assembly) => assembly.missing(),
            Self::Kept(keeping) => keeping.missing(),
        }
    }

    /// Takes one frame; coded ones are decoded on a thread that may be busy.
    async fn accept(mut self, header: Header, body: Bytes) -> Result<Self> {
        match &mut self {
            Self::Kept(keeping) => keeping.accept(header, body)?,
            Self::Decoded(assembly) if header.codec == Codec::Raw => {
                assembly.accept(&header, &body)?;
            }
            Self::Decoded(_) => {
                let decoding = tokio::task::spawn_blocking(move || {
                    if let Self::Decoded(assembly) = &mut self {
                        assembly.accept(&header, &body)?;
                    }
                    Ok(self)
                });
                let gone = |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
                return decoding.await.map_err(gone)?;
            }
        }
        Ok(self)
    }

    fn finish(self) -> Result<Gathered> {
        match self {
            Self::Decoded(assembly) => assembly.finish().map(Gathered::Joined),
            Self::Kept(keeping) => keeping.finish().map(Gathered::Frames),
        }
    }
}

pub(super) fn direct_subject(inner: &Inner) -> String {
    format!("$JS.API.DIRECT.GET.{}", inner.name())
}

/// The frames of one group, as the server sends them.
struct Batch {
    replies: Subscriber,
}

impl Batch {
    async fn request(inner: &Inner, manifest: &Header, seq: u64, count: u32) -> Result<Self> {
        let inbox = inner.client.new_inbox();
        let failed = |e| errors::request("cannot fetch frames", e);
        let replies = inner.client.subscribe(inbox.clone()).await.map_err(failed)?;
        let chunk_bytes = manifest.group_chunk_bytes().unwrap_or(0);
        let subject = inner.frames_subject(&manifest.id, chunk_bytes);
        let request = format!("{{\"seq\":{seq},\"next_by_subj\":\"{subject}\",\"batch\":{count}}}");
        inner
            .client
            .publish_with_reply(direct_subject(inner), inbox, Bytes::from(request))
            .await
            .map_err(|e| errors::request("cannot fetch frames", e))?;
        Ok(Self { replies })
    }

    /// The next frame with its stream sequence; None at the end of what the server has.
    async fn next(&mut self) -> Result<Option<(u64, Header, Bytes)>> {
        let lost = || Error::new(ErrorKind::NotConnected, "the server did not send the frames");
        let reply = tokio::time::timeout(FRAME_TIMEOUT, self.replies.next()).await;
        let Message { status, headers, payload, .. } =
            reply.map_err(|_| lost())?.ok_or_else(lost)?;
        match status.map(|status| status.as_u16()) {
            None | Some(200) => {}
            // End of the batch, or nothing (more) on the subject.
            Some(204 | 404) => return Ok(None),
            Some(_) => return Err(lost()),
        }
        let stream_seq = headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Sequence"))
            .and_then(|value| value.as_str().parse().ok())
            .ok_or_else(lost)?;
        let header = read_headers(headers.as_ref())?.0.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("stream sequence {stream_seq} is no frame"))
        })?;
        Ok(Some((stream_seq, header, payload)))
    }
}

/// The frame header, where the message is a frame, and the user's headers.
pub(super) fn read_headers(headers: Option<&HeaderMap>) -> Result<(Option<Header>, Headers)> {
    let Some(headers) = headers else { return Ok((None, Headers::empty())) };
    let mut fields = HashMap::new();
    let mut user = Vec::new();
    for (key, values) in headers.iter() {
        let key: &str = key.as_ref();
        for value in values {
            if key.starts_with("Vecmq-") {
                fields.insert(key, value.as_str());
            } else if !key.starts_with("Nats-") {
                user.push((key.to_owned(), value.as_str().to_owned()));
            }
        }
    }
    let header = Header::from_fields(|name| fields.get(name).copied())?;
    Ok((header, Headers::received(user)))
}
