//! Submission -> route -> journal -> receipt.
//!
//! Small messages are on the log when `publish` returns. Large ones return nothing yet: their
//! intent is on the log, their frames are on the way, and the receipt comes through the `done`
//! callback.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{
    AutoCodecs, ChunkSums, Codec, CodecOption, Decision, Headers, Layout, Link, MessageId,
    Outgoing, Why,
};
use crate::hybrid::append::{self, Batch};
use crate::hybrid::entry::StreamEntry;
use crate::hybrid::hub::unix_ms;
use crate::hybrid::options::Level;
use crate::hybrid::topic::HubTopic;
use crate::hybrid::{pack, resolve, stream_seq};
use crate::nats::GroupAck;
use crate::router::Route;

/// What a payload is cut into for the stream, about.
const CHUNK_BYTES: usize = 1 << 20;
/// A payload of that many bytes is one frame, whatever the server.
const FRAME_BYTES_SURE: usize = 16 << 10;

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
    /// The topic has to end here for the message to be taken; 0: it has to be empty.
    pub expected_last_seq: Option<u64>,
    /// How it is coded; None: as the handle says.
    pub codec: Option<CodecOption>,
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
    /// How the message is coded: raw where no frame is.
    pub codec: Codec,
    /// Why.
    pub codec_why: Why,
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
pub(super) struct InFlight {
    topic: Arc<HubTopic>,
    pub(super) entry: StreamEntry,
    pub(super) submission: Submission,
    pub(super) decision: Decision,
    /// Of a message in a pack: its frames that are coded.
    coded_count: Option<u32>,
    /// Checksums of a writable payload, taken before the send; its frames carry them.
    pub(super) sums_before: Option<Arc<ChunkSums>>,
    started: Instant,
    pub(super) deadline: Instant,
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
            self.publish_to_stream(submissions, deadline, &mut done)?;
            return Ok(pending);
        };
        let count = submissions.len();
        let bytes: usize = submissions.iter().map(|one| one.payload.len()).sum();
        let routes: Vec<Route> = submissions
            .iter()
            .map(|one| route.unwrap_or_else(|| self.shared.route(one.payload.len() as u64)))
            .collect();
        let ways = submissions.iter().zip(&routes);
        let decisions = ways.map(|(one, route)| self.decide(one, *route)).collect::<Result<_>>()?;
        let (job, outcome) = Batch::new(
            self,
            submissions,
            routes,
            decisions,
            route.is_some(),
            deadline,
            Box::new(done),
        );
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

    /// How a message is coded on its route: the queue is on this host.
    fn decide(&self, submission: &Submission, route: Route) -> Result<Decision> {
        let link = match route {
            Route::Queue => Link::SameHost,
            Route::Nats => self.shared.link_speed().link(),
        };
        match submission.codec.unwrap_or(self.shared.options.codec) {
            CodecOption::Fixed(coding) => Ok(Decision { coding, why: Why::Asked }),
            CodecOption::Auto => {
                let chunks_count = submission.payload.len().div_ceil(CHUNK_BYTES);
                let chunks_count = u32::try_from(chunks_count).unwrap_or(u32::MAX);
                let (layout, started) = (submission.layout.as_ref(), Instant::now());
                let now = || started.elapsed();
                self.auto_codecs().choose(layout, &submission.payload, chunks_count, link, &now)
            }
        }
    }

    fn auto_codecs(&self) -> MutexGuard<'_, AutoCodecs> {
        self.auto_codecs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn message_id(&self, seq: u64) -> MessageId {
        MessageId { producer: self.shared.producer, epoch: self.shared.epoch, seq }
    }

    /// A message that leaves for the stream now.
    pub(super) fn in_flight(
        self: &Arc<Self>,
        (submission, decision): (Submission, Decision),
        entry: StreamEntry,
        started: Instant,
        forced: bool,
        deadline: Instant,
        done: Done,
    ) -> InFlight {
        let topic = Arc::clone(self);
        self.shared.nats_busy().submit();
        let mut message = InFlight {
            topic,
            entry,
            submission,
            decision,
            coded_count: None,
            sums_before: None,
            started,
            deadline,
            forced,
            done,
        };
        message.sums_before = message.submission.writable.then(|| Arc::new(message.sums()));
        message
    }

    /// Mode `nats`: no journal; the stream's order is the order.
    fn publish_to_stream(
        self: &Arc<Self>,
        submissions: Vec<Submission>,
        deadline: Instant,
        done: &mut impl FnMut(usize) -> Done,
    ) -> Result<()> {
        let decisions = submissions.iter().map(|one| self.decide(one, Route::Nats));
        let decisions = decisions.collect::<Result<Vec<_>>>()?;
        // Held until all are in the lane, so that two callers cannot swap seqs and places.
        let mut next = self.stream_next_seq.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        let messages =
            submissions.into_iter().zip(decisions).enumerate().map(|(index, message)| {
                let (submission, _) = &message;
                let entry = StreamEntry {
                    id: self.message_id(*next),
                    payload_bytes: submission.payload.len() as u64,
                    floor_seq: 0,
                    manifest_seq: 0,
                };
                *next += u64::from(submission.rows);
                self.in_flight(message, entry, started, true, deadline, done(index))
            });
        let messages: Vec<InFlight> = messages.collect();
        self.send(messages);
        Ok(())
    }
}

impl InFlight {
    /// Bytes that it will take in a pack, about; None: it leaves alone.
    pub(super) fn packed_bytes(&self) -> Option<usize> {
        pack::packed_bytes(&self.submission)
    }

    /// Where the stream has to end. A journal has looked already.
    pub(super) fn expected_stream_seq(&self) -> Option<u64> {
        let seq = self.submission.expected_last_seq.filter(|_| self.topic.log.is_none())?;
        Some(stream_seq::place(seq).0)
    }

    /// A verified copy of the payload is what leaves: its owner may change it now.
    pub(super) fn packed(&mut self, coded_count: u32) {
        self.coded_count = Some(coded_count);
        self.sums_before = None;
    }

    pub(super) fn outgoing(&self) -> Outgoing {
        Outgoing {
            id: self.entry.id,
            rows: self.submission.rows,
            layout: self.submission.layout.clone(),
            payload: self.submission.payload.clone(),
        }
    }

    /// The checksums of its chunks, as far as it is known how it will be cut.
    fn sums(&self) -> ChunkSums {
        let payload = &self.submission.payload;
        let stream = self.topic.opened_stream().filter(|_| payload.len() > FRAME_BYTES_SURE);
        let cut = stream
            .and_then(|stream| stream.chunk_bytes(&self.outgoing(), &self.submission.headers).ok());
        ChunkSums::take(payload, cut.map_or(CHUNK_BYTES, |bytes| bytes as usize))
    }

    /// Turns what the stream said into a receipt, and completes or gives up the intent.
    pub(super) fn finish(self, result: Result<GroupAck>) {
        match result {
            Ok(ack) => self.finish_row(ack, 0),
            Err(error) => {
                let outcome = self.failed(error);
                self.end(outcome);
            }
        }
    }

    /// As `finish`, for the message at place `row` of what was acknowledged.
    pub(super) fn finish_row(self, ack: GroupAck, row: u32) {
        let outcome = self.stored(&ack, row);
        self.end(outcome);
    }

    fn end(self, outcome: Result<Receipt>) {
        self.observe(&outcome);
        (self.done)(outcome, self.submission.payload);
    }

    fn observe(&self, outcome: &Result<Receipt>) {
        if matches!(outcome, Ok(receipt) if receipt.codec_why == Why::Unshrunk) {
            self.topic.auto_codecs().unshrunk(self.submission.layout.as_ref());
        }
        let shared = &self.topic.shared;
        if let Ok(receipt) = outcome
            && receipt.route == Route::Nats
        {
            let (bytes, now) = (self.entry.payload_bytes, Instant::now());
            let sample = shared.nats_busy().receive(bytes, self.started, now);
            if let Some((bytes, cost)) = sample {
                shared.observe(Route::Nats, bytes, cost);
                let on_wire = receipt.wire_bytes as f64 / receipt.payload_bytes.max(1) as f64;
                let wire_bytes = (bytes as f64 * on_wire).round();
                shared.link_speed().observe(wire_bytes, cost);
            }
        } else {
            shared.nats_busy().give_up();
        }
    }

    fn stored(&self, ack: &GroupAck, row: u32) -> Result<Receipt> {
        let payload = &self.submission.payload;
        if self.sums_before.as_ref().is_some_and(|before| !before.matches(payload)) {
            self.abort();
            return Err(Error::new(
                ErrorKind::BufferMutated,
                format!(
                    "the payload of {} bytes changed while it was being published; it was not \
                     delivered",
                    payload.len()
                ),
            ));
        }
        let entry = StreamEntry { manifest_seq: ack.manifest_seq, ..self.entry };
        self.close_intent(&entry.encode())?;
        let shared = &self.topic.shared;
        let rows = u64::from(self.submission.rows);
        shared.counters.published_nats.fetch_add(rows, Ordering::Relaxed);
        let seq = match self.topic.log {
            Some(_) => self.entry.id.seq,
            None => stream_seq::first_seq(ack.manifest_seq) + u64::from(row),
        };
        let (codec, codec_why) = self.decision.used(self.coded_count.unwrap_or(ack.coded_count));
        Ok(Receipt {
            route: Route::Nats,
            seq,
            id: self.entry.id,
            level: shared.options.level(),
            duplicate: ack.duplicate,
            frames_count: ack.frames_count,
            payload_bytes: ack.payload_bytes,
            wire_bytes: ack.wire_bytes,
            rows_count: self.submission.rows,
            codec,
            codec_why,
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
            // A server whose disk is full may have stored it all the same.
            ErrorKind::PublishUnknown | ErrorKind::Storage => {
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
        let shared = &self.topic.shared;
        let (value, encoded) =
            append::lone_entry(&self.outgoing(), &self.submission, self.decision)?;
        self.close_intent(&value)?;
        shared.counters.rerouted.fetch_add(1, Ordering::Relaxed);
        let rows = u64::from(self.submission.rows);
        shared.counters.published_queue.fetch_add(rows, Ordering::Relaxed);
        let (codec, codec_why) = self.decision.used(encoded.coded_count);
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
            codec,
            codec_why,
        })
    }

    /// Puts what became of the message in the place of its intent, where there is a log.
    fn close_intent(&self, entry: &[u8]) -> Result<()> {
        let Some(log) = &self.topic.log else { return Ok(()) };
        let closed = log.close_open(self.entry.id.seq, self.submission.rows, &[entry]);
        closed.inspect_err(|_| self.resolve_later())
    }

    fn abort(&self) {
        if self.topic.log.is_some()
            && let Err(error) = resolve::abort(&self.topic, self.entry.id.seq, self.submission.rows)
        {
            log::error!(
                "topic {:?}: cannot give up seq {}: {error}",
                self.topic.name,
                self.entry.id.seq
            );
            self.resolve_later();
        }
    }

    /// The log took no end of the intent, at which readers wait: it is tried until it does.
    fn resolve_later(&self) {
        if let Err(error) = resolve::spawn(&self.topic, self.entry.id.seq) {
            log::error!("topic {:?}: {error}", self.topic.name);
        }
    }
}
