//! Subjects of a topic; the frame budget.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Stream;
use async_nats::{Client, HeaderMap};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Coding, Headers, MessageId, Outgoing};
use crate::nats::acks::{self, Told};
use crate::nats::connection::Connection;
use crate::nats::diagnose::Diagnosis;
use crate::nats::errors;
use crate::nats::link::Link;
use crate::nats::publish::{self, GroupAck, Job, Publish};
use crate::nats::uplink::Uplink;

/// A topic's stream. Cloning it shares it.
#[derive(Clone)]
pub struct JetTopic {
    pub(super) inner: Arc<Inner>,
    jobs: mpsc::UnboundedSender<Job>,
}

pub(super) struct Inner {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) uplink: Arc<Uplink>,
    pub(super) stream: Stream,
    /// The stream's own limit for one message, headers included.
    pub(super) message_bytes_max: Option<usize>,
    /// Groups are atomic batches.
    pub(super) atomic: bool,
    pub(super) incomplete_count: AtomicU64,
    pub(super) link: Arc<Link>,
    /// KiB that may be asked for and not be there yet, over all topics of the connection.
    pub(super) fetch_budget: Arc<Semaphore>,
    pub(super) diagnosis: Diagnosis,
    /// What the server is told of deliveries.
    pub(super) told: mpsc::UnboundedSender<Told>,
    /// Groups whose manifest a sweep has found.
    pub(super) whole: tokio::sync::Mutex<HashSet<MessageId>>,
}

impl JetTopic {
    pub(super) fn new(
        connection: &Connection,
        stream: Stream,
        message_bytes_max: Option<usize>,
        atomic: bool,
    ) -> Self {
        let (jobs, receiver) = mpsc::unbounded_channel();
        let (told, telling) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            client: connection.client().clone(),
            context: connection.context().clone(),
            uplink: Arc::clone(connection.uplink()),
            stream,
            message_bytes_max,
            atomic,
            incomplete_count: AtomicU64::new(0),
            link: Arc::clone(connection.link()),
            fetch_budget: Arc::clone(connection.fetch_budget()),
            diagnosis: Diagnosis::default(),
            told,
            whole: tokio::sync::Mutex::default(),
        });
        tokio::spawn(acks::run(inner.client.clone(), telling));
        tokio::spawn(publish::run(Arc::clone(&inner), receiver));
        Self { inner, jobs }
    }

    /// Publishes a message; messages of successive calls are stored in the order of the calls.
    ///
    /// Never blocks. `done` is called once, from a thread of the runtime: with the acknowledgement
    /// of the whole group; with [`ErrorKind::Rejected`], [`ErrorKind::NoStream`] or
    /// [`ErrorKind::TooLarge`] when the server does not take it; with
    /// [`ErrorKind::PublishUnknown`] when its deadline passed and it may be
    /// stored, [`ErrorKind::Timeout`] when it was not sent, [`ErrorKind::Storage`] instead of both
    /// when the server says that its disk is the reason; with [`ErrorKind::Closed`].
    pub fn publish(&self, publish: Publish, done: impl FnOnce(Result<GroupAck>) + Send + 'static) {
        let job = Job { publish, done: Box::new(done) };
        if let Err(unsent) = self.jobs.send(job) {
            (unsent.0.done)(Err(Error::new(ErrorKind::Closed, "the connection is closed")));
        }
    }

    /// As [`JetTopic::publish`], waiting for the acknowledgement.
    ///
    /// # Errors
    /// As [`JetTopic::publish`].
    pub async fn publish_wait(
        &self,
        outgoing: Outgoing,
        headers: Headers,
        codec: impl Into<Coding>,
        deadline: Instant,
    ) -> Result<GroupAck> {
        let (sender, receiver) = oneshot::channel();
        self.publish(Publish::new(outgoing, headers, codec, deadline), move |result| {
            // Nobody listens any more when the caller was cancelled.
            let _ = sender.send(result);
        });
        let gone = |_| Error::new(ErrorKind::Closed, "the connection is closed");
        receiver.await.map_err(gone)?
    }

    /// Raw bytes of a message's frames, as it would be cut now.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] as for a publish.
    pub fn chunk_bytes(&self, outgoing: &Outgoing, headers: &Headers) -> Result<u32> {
        publish::plan(&self.inner, outgoing, headers).map(|plan| plan.chunk_bytes)
    }

    /// The highest sequence in the stream.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`].
    pub async fn last_seq(&self) -> Result<u64> {
        let info = self.inner.stream.get_info().await;
        let info = info.map_err(|e| errors::request("cannot ask for the stream's state", e))?;
        Ok(info.state.last_sequence)
    }

    /// Deletes everything up to and including a stream sequence.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`], [`ErrorKind::Rejected`].
    pub async fn purge_through(&self, stream_seq: u64) -> Result<()> {
        if stream_seq == 0 {
            return Ok(());
        }
        // The first that stays.
        let first_kept = stream_seq.saturating_add(1);
        let purged = self.inner.stream.purge().sequence(first_kept).await;
        purged.map(|_| ()).map_err(|e| errors::request("cannot purge the stream", e))
    }

    /// Groups that were asked for and were not whole, since the topic was opened.
    pub fn incomplete_count(&self) -> u64 {
        self.inner.incomplete_count.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Inner {
    pub(super) fn name(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    /// Where the frames before the manifest lie, for one way to cut the message.
    pub(super) fn frames_subject(&self, id: &MessageId, chunk_bytes: u32) -> String {
        format!("{}.{chunk_bytes}", self.frames_subjects(id))
    }

    /// As `frames_subject`, of every way to cut the message, with a wildcard at the end.
    pub(super) fn all_frames_subject(&self, id: &MessageId) -> String {
        format!("{}.*", self.frames_subjects(id))
    }

    fn frames_subjects(&self, id: &MessageId) -> String {
        format!("{}.frames.{}.{}.{}", self.name(), id.producer, id.epoch, id.seq)
    }

    /// Bytes that one message may have on this stream, headers included.
    pub(super) fn budget(&self) -> usize {
        let server = self.uplink.max_payload();
        self.message_bytes_max.map_or(server, |own| server.min(own))
    }
}

/// A frame has to be within what server and stream take now, whatever they took before.
///
/// # Errors
/// [`ErrorKind::TooLarge`].
pub(super) fn check_frame(wire_bytes: usize, bytes_max: usize) -> Result<()> {
    if wire_bytes <= bytes_max {
        return Ok(());
    }
    let context = format!("a frame of {wire_bytes} bytes exceeds the server's {bytes_max} bytes");
    Err(Error::new(ErrorKind::TooLarge, context))
}

/// Bytes of headers on the wire: a version line, "key: value" lines, an empty line.
pub(super) fn headers_bytes(headers: &HeaderMap) -> usize {
    const VERSION_AND_END: usize = "NATS/1.0\r\n\r\n".len();
    let lines = headers.iter().flat_map(|(key, values)| {
        values.iter().map(move |value| AsRef::<str>::as_ref(key).len() + value.as_str().len() + 4)
    });
    VERSION_AND_END + lines.sum::<usize>()
}
