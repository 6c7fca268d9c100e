//! Submission -> route -> journal -> receipt.
//!
//! Small messages are on the log when `publish` returns. Large ones return nothing yet: their
//! intent is on the log, their frames are on the way, and the receipt comes through the `done`
//! callback.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Headers, Layout, MessageId, Outgoing, checksum};
use crate::hybrid::append::{self, Batch};
use crate::hybrid::entry::StreamEntry;
use crate::hybrid::hub::unix_ms;
use crate::hybrid::options::Level;
use crate::hybrid::resolve;
use crate::hybrid::topic::{HubTopic, Job};
use crate::nats::GroupAck;
use crate::router::Route;

/// Payload bytes that an event loop's thread writes itself; more goes to the queue's thread.
const AT_ONCE_BYTES_MAX: usize = 256 << 10;

/// JetStream API errors after which the message was certainly not stored and the queue may take it.
const REROUTABLE_CODES: [u64; 3] = [
    10_054, // message size exceeds maximum allowed
    10_077, // maximum bytes exceeded
    10_023, // insufficient resources
];

/// What a user hands in.
pub struct Submission {
    /// The bytes; borrowed until the receipt.
    pub payload: Bytes,
    /// The user could change the bytes while they are borrowed: verify that nobody did.
    pub writable: bool,
    /// dtype and shape; None for plain bytes.
    pub layout: Option<Layout>,
    /// Messages in this payload: its first dimension for packed rows, else 1.
    pub rows: u32,
    /// The user's headers.
    pub headers: Headers,
}

/// What a publish came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The route that took the message.
    pub route: Route,
    /// Position in the topic. Of packed rows: the first row's.
    pub seq: u64,
    /// The message's id.
    pub id: MessageId,
    /// What the acknowledgement promises.
    pub level: Level,
    /// The server had this message already; it is stored once.
    pub duplicate: bool,
    /// Frames the message was cut into.
    pub frames_count: u32,
    /// Bytes handed in.
    pub payload_bytes: u64,
    /// Bytes stored, headers included.
    pub wire_bytes: u64,
    /// Messages acknowledged: 1, or the number of packed rows.
    pub rows_count: u32,
}

/// Whether a publish may block its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until the log has taken the messages.
    Here,
    /// Never: what cannot be written at once is written by the queue's thread.
    Never,
}

/// Takes a receipt, and the payload: whoever owns the memory decides where it is let go.
pub type Done = Box<dyn FnOnce(Result<Receipt>, Bytes) + Send>;

/// A message on the stream route, from intent to receipt.
struct InFlight {
    topic: Arc<HubTopic>,
    entry: StreamEntry,
    submission: Submission,
    /// CRC-32C of a writable payload, taken before the send.
    checksum_before: Option<u32>,
    started: Instant,
    /// The caller asked for this route by name: no other will do.
    forced: bool,
    done: Done,
}

impl HubTopic {
    /// Publishes messages in the order given; they take consecutive places in the topic.
    ///
    /// Returns a receipt for each message that is on the log already, None for each whose receipt
    /// or error comes through the callback that `done` makes for its index. On an error nothing
    /// was written.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Config`] for a route that this mode lacks,
    /// [`ErrorKind::BufferMutated`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn publish(
        self: &Arc<Self>,
        submissions: Vec<Submission>,
        route: Option<Route>,
        deadline: Instant,
        wait: Wait,
        mut done: impl FnMut(usize) -> Done + Send + 'static,
    ) -> Result<Vec<Option<Receipt>>> {
        self.shared.check_open()?;
        for submission in &submissions {
            self.check(submission, route)?;
        }
        let Some(log) = &self.log else {
            let pending = vec![None; submissions.len()];
            self.publish_to_stream(submissions, deadline, &mut done);
            return Ok(pending);
        };
        let count = submissions.len();
        let bytes: usize = submissions.iter().map(|one| one.payload.len()).sum();
        let routes = submissions
            .iter()
            .map(|one| route.unwrap_or_else(|| self.shared.route(one.payload.len() as u64)))
            .collect();
        let (job, outcome) =
            Batch::new(self, submissions, routes, route.is_some(), deadline, Box::new(done));
        match wait {
            Wait::Here => log.append_job(unix_ms(), Box::new(job)),
            Wait::Never => {
                let large = bytes > AT_ONCE_BYTES_MAX;
                log.append_job_later(unix_ms(), Box::new(job), large);
            }
        }
        // Nothing there yet: every message is told through its own `done`.
        outcome.take().unwrap_or_else(|| Ok(vec![None; count]))
    }

    /// Everything that can be refused is refused here, before anything is written.
    fn check(&self, submission: &Submission, route: Option<Route>) -> Result<()> {
        let size_bytes = submission.payload.len() as u64;
        let limit_bytes = self.shared.options.message_bytes_max;
        if size_bytes > limit_bytes {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "payload of {size_bytes} bytes exceeds the message limit of {limit_bytes} bytes"
                ),
            ));
        }
        let missing = match route {
            Some(Route::Queue) => self.log.is_none(),
            Some(Route::Nats) => self.shared.nats.is_none(),
            None => false,
        };
        if missing {
            return Err(Error::new(
                ErrorKind::Config,
                format!("route {} is not open in this mode", route.map_or("?", Route::name)),
            ));
        }
        Ok(())
    }

    pub(super) fn message_id(&self, seq: u64) -> MessageId {
        MessageId { producer: self.shared.producer, epoch: self.shared.epoch, seq }
    }

    pub(super) fn start(
        self: &Arc<Self>,
        submission: Submission,
        entry: StreamEntry,
        started: Instant,
        forced: bool,
        deadline: Instant,
        done: Done,
    ) {
        let outgoing = Outgoing {
            id: entry.id,
            rows: submission.rows,
            layout: submission.layout.clone(),
            payload: submission.payload.clone(),
        };
        let headers = submission.headers.clone();
        let codec = self.shared.options.codec;
        let checksum_before = submission.writable.then(|| checksum(&submission.payload));
        let topic = Arc::clone(self);
        self.shared.nats_busy().submit();
        let in_flight =
            InFlight { topic, entry, submission, checksum_before, started, forced, done };
        let done = Box::new(move |result| in_flight.finish(result));
        self.send(Job { outgoing, headers, codec, deadline, done });
    }

    /// Mode `nats`: no journal; the stream's order is the order.
    fn publish_to_stream(
        self: &Arc<Self>,
        submissions: Vec<Submission>,
        deadline: Instant,
        done: &mut impl FnMut(usize) -> Done,
    ) {
        // Held until all are in the lane, so that two callers cannot swap seqs and places.
        let mut next = self.stream_next_seq.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, submission) in submissions.into_iter().enumerate() {
            let entry = StreamEntry {
                id: self.message_id(*next),
                payload_bytes: submission.payload.len() as u64,
                floor_seq: 0,
                manifest_seq: 0,
            };
            *next += u64::from(submission.rows);
            self.start(submission, entry, Instant::now(), true, deadline, done(index));
        }
    }
}

impl InFlight {
    /// Turns what the stream said into a receipt, and completes or gives up the intent.
    fn finish(self, result: Result<GroupAck>) {
        let outcome = match result {
            Ok(ack) => self.stored(&ack),
            Err(error) => self.failed(error),
        };
        self.observe(&outcome);
        (self.done)(outcome, self.submission.payload);
    }

    fn observe(&self, outcome: &Result<Receipt>) {
        let shared = &self.topic.shared;
        if matches!(outcome, Ok(receipt) if receipt.route == Route::Nats) {
            let (bytes, now) = (self.entry.payload_bytes, Instant::now());
            let sample = shared.nats_busy().receive(bytes, self.started, now);
            if let Some((bytes, cost)) = sample {
                shared.observe(Route::Nats, bytes, cost);
            }
        } else {
            shared.nats_busy().give_up();
        }
    }

    fn stored(&self, ack: &GroupAck) -> Result<Receipt> {
        let after = self.checksum_before.map(|_| checksum(&self.submission.payload));
        if after != self.checksum_before {
            self.abort();
            return Err(Error::new(
                ErrorKind::BufferMutated,
                format!(
                    "the payload of {} bytes changed while it was being published; it was not \
                     delivered",
                    self.submission.payload.len()
                ),
            ));
        }
        let entry = StreamEntry { manifest_seq: ack.manifest_seq, ..self.entry };
        if let Some(log) = &self.topic.log {
            log.close_open(self.entry.id.seq, self.submission.rows, &[&entry.encode()])?;
        }
        let shared = &self.topic.shared;
        let rows = u64::from(self.submission.rows);
        shared.counters.published_nats.fetch_add(rows, Ordering::Relaxed);
        Ok(Receipt {
            route: Route::Nats,
            seq: if self.topic.log.is_some() { self.entry.id.seq } else { ack.manifest_seq },
            id: self.entry.id,
            level: shared.options.level(),
            duplicate: ack.duplicate,
            frames_count: ack.frames_count,
            payload_bytes: ack.payload_bytes,
            wire_bytes: ack.wire_bytes,
            rows_count: self.submission.rows,
        })
    }

    fn failed(&self, error: Error) -> Result<Receipt> {
        match error.kind() {
            ErrorKind::Rejected { code }
                if !self.forced && self.topic.log.is_some() && REROUTABLE_CODES.contains(&code) =>
            {
                log::warn!("topic {:?}: {error}; the queue takes the message", self.topic.name);
                return self.reroute();
            }
            ErrorKind::PublishUnknown => {
                self.topic.shared.counters.unknown.fetch_add(1, Ordering::Relaxed);
                if self.topic.log.is_some() {
                    resolve::spawn(&self.topic, self.entry.id.seq)?;
                }
            }
            // The intent stays open: the next start asks the stream.
            ErrorKind::Closed => {}
            _ => self.abort(),
        }
        Err(error)
    }

    /// Replaces the intent by the message itself: same place in the topic, other route.
    fn reroute(&self) -> Result<Receipt> {
        let outgoing = Outgoing {
            id: self.entry.id,
            rows: self.submission.rows,
            layout: self.submission.layout.clone(),
            payload: self.submission.payload.clone(),
        };
        let shared = &self.topic.shared;
        let (value, encoded) =
            append::lone_entry(&outgoing, &self.submission, shared.options.codec)?;
        if let Some(log) = &self.topic.log {
            log.close_open(self.entry.id.seq, self.submission.rows, &[&value])?;
        }
        shared.counters.rerouted.fetch_add(1, Ordering::Relaxed);
        let rows = u64::from(self.submission.rows);
        shared.counters.published_queue.fetch_add(rows, Ordering::Relaxed);
        Ok(Receipt {
            route: Route::Queue,
            seq: self.entry.id.seq,
            id: self.entry.id,
            level: shared.options.level(),
            duplicate: false,
            frames_count: encoded.frames_count,
            payload_bytes: self.entry.payload_bytes,
            wire_bytes: encoded.wire_bytes,
            rows_count: self.submission.rows,
        })
    }

    fn abort(&self) {
        if self.topic.log.is_some()
            && let Err(error) = resolve::abort(&self.topic, self.entry.id.seq, self.submission.rows)
        {
            // The intent stays open; readers wait there until the next start resolves it.
            log::error!(
                "topic {:?}: cannot give up seq {}: {error}",
                self.topic.name,
                self.entry.id.seq
            );
        }
    }
}
