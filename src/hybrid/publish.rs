//! Submission -> route -> journal -> receipt.
//!
//! Small messages are on the log when `publish` returns. Large ones return nothing yet: their
//! intent is on the log, their frames are on the way, and the receipt comes through the `done`
//! callback.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Headers, Layout, MessageId, Outgoing, checksum};
use crate::hybrid::entry::{self, StreamEntry};
use crate::hybrid::hub::unix_ms;
use crate::hybrid::options::Level;
use crate::hybrid::resolve;
use crate::hybrid::topic::{HubTopic, Job};
use crate::nats::GroupAck;
use crate::queue::Appender;
use crate::router::Route;

/// Raw bytes of packed rows in one journal entry: a reader that wants a few rows reads this much.
const PACKED_BYTES_MAX: usize = 1 << 20;

/// What a record costs to append beyond its bytes, as bytes: 0.8 us beside 0.5 ns a byte.
const RECORD_COST_BYTES: u64 = 2 << 10;
/// What an intent costs to append, likewise: two records.
const INTENT_COST_BYTES: u64 = 2 * RECORD_COST_BYTES;

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
    /// comes through the callback that `done` makes for its index. On an error nothing was
    /// written.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Config`] for a route that this mode lacks,
    /// [`ErrorKind::BufferMutated`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn publish(
        self: &Arc<Self>,
        submissions: Vec<Submission>,
        route: Option<Route>,
        deadline: Instant,
        mut done: impl FnMut(usize) -> Done,
    ) -> Result<Vec<Option<Receipt>>> {
        self.shared.check_open()?;
        for submission in &submissions {
            self.check(submission, route)?;
        }
        let Some(log) = self.log.clone() else {
            let pending = vec![None; submissions.len()];
            self.publish_to_stream(submissions, deadline, &mut done);
            return Ok(pending);
        };
        let started = Instant::now();
        let routes: Vec<Route> = submissions
            .iter()
            .map(|one| route.unwrap_or_else(|| self.shared.route(one.payload.len() as u64)))
            .collect();
        let time_ms = unix_ms();
        let mut receipts = Vec::with_capacity(submissions.len());
        let mut entries = Vec::new();
        let mut scratch = Vec::new();
        log.append(time_ms, |appender| {
            for (submission, route) in submissions.iter().zip(&routes) {
                match route {
                    Route::Queue => {
                        let receipt = self.append_inline(appender, submission, &mut scratch)?;
                        receipts.push(Some(receipt));
                    }
                    Route::Nats => {
                        entries.push(self.append_intent(appender, submission));
                        receipts.push(None);
                    }
                }
            }
            Ok(())
        })?;
        self.count_inline(&receipts, entries.len(), started.elapsed());
        let mut entries = entries.into_iter();
        for (index, (submission, receipt)) in submissions.into_iter().zip(&receipts).enumerate() {
            if receipt.is_none()
                && let Some(entry) = entries.next()
            {
                self.start(submission, entry, started, route.is_some(), deadline, done(index));
            }
        }
        Ok(receipts)
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

    fn message_id(&self, seq: u64) -> MessageId {
        MessageId { producer: self.shared.producer, epoch: self.shared.epoch, seq }
    }

    /// Writes a message as one entry, or packed rows as one entry for each MiB.
    fn append_inline(
        &self,
        appender: &mut Appender<'_>,
        submission: &Submission,
        scratch: &mut Vec<u8>,
    ) -> Result<Receipt> {
        let first_seq = appender.next_seq();
        let mut wire_bytes = 0;
        let mut frames_count = 0;
        for (payload, layout, rows) in blocks(submission)? {
            let id = self.message_id(appender.next_seq());
            let outgoing = Outgoing { id, rows, layout, payload };
            let codec = self.shared.options.codec;
            let (headers, writable) = (&submission.headers, submission.writable);
            frames_count += entry::encode_inline(scratch, &outgoing, headers, codec, writable)?;
            appender.push(rows, &[scratch]);
            wire_bytes += scratch.len() as u64;
        }
        Ok(Receipt {
            route: Route::Queue,
            seq: first_seq,
            id: self.message_id(first_seq),
            level: self.shared.options.level(),
            duplicate: false,
            frames_count,
            payload_bytes: submission.payload.len() as u64,
            wire_bytes,
            rows_count: submission.rows,
        })
    }

    fn append_intent(&self, appender: &mut Appender<'_>, submission: &Submission) -> StreamEntry {
        let entry = StreamEntry {
            id: self.message_id(appender.next_seq()),
            payload_bytes: submission.payload.len() as u64,
            floor_seq: self.floor_seq(),
            manifest_seq: 0,
        };
        appender.push_open(submission.rows, &[&entry.encode()]);
        entry
    }

    /// Counts what the log took; a batch's time is shared out over messages and intents.
    fn count_inline(&self, receipts: &[Option<Receipt>], intents_count: usize, elapsed: Duration) {
        let mut messages = 0;
        let mut wire_bytes = 0;
        let mut bytes = 0;
        let mut rows = 0;
        for receipt in receipts.iter().flatten() {
            messages += 1;
            rows += u64::from(receipt.rows_count);
            bytes += receipt.payload_bytes;
            wire_bytes += receipt.wire_bytes;
        }
        self.shared.counters.published_queue.fetch_add(rows, Ordering::Relaxed);
        if messages > 0 {
            let inline = wire_bytes + messages * RECORD_COST_BYTES;
            let intents = intents_count as u64 * INTENT_COST_BYTES;
            let share = inline as f64 / (inline + intents) as f64;
            let cost = elapsed.mul_f64(share / messages as f64);
            self.shared.observe(Route::Queue, bytes / messages, cost);
        }
    }

    fn start(
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
            log.close_open(self.entry.id.seq, self.submission.rows, unix_ms(), &[&entry.encode()])?;
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
        let mut value = Vec::new();
        let codec = shared.options.codec;
        let (headers, writable) = (&self.submission.headers, self.submission.writable);
        let frames_count = entry::encode_inline(&mut value, &outgoing, headers, codec, writable)?;
        if let Some(log) = &self.topic.log {
            log.close_open(self.entry.id.seq, self.submission.rows, unix_ms(), &[&value])?;
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
            frames_count,
            payload_bytes: self.entry.payload_bytes,
            wire_bytes: value.len() as u64,
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

/// The payload as entries: itself, or packed rows cut at row borders into blocks of at most a MiB.
fn blocks(submission: &Submission) -> Result<Vec<(Bytes, Option<Layout>, u32)>> {
    let whole = || (submission.payload.clone(), submission.layout.clone(), submission.rows);
    let rows = submission.rows as usize;
    let row_bytes = submission.payload.len() / rows.max(1);
    let (Some(layout), Some((_, row_shape))) =
        (&submission.layout, submission.layout.as_ref().and_then(|l| l.shape().split_first()))
    else {
        return Ok(vec![whole()]);
    };
    if rows <= 1 || submission.payload.len() <= PACKED_BYTES_MAX {
        return Ok(vec![whole()]);
    }
    let rows_per_block = (PACKED_BYTES_MAX / row_bytes.max(1)).max(1);
    let mut out = Vec::with_capacity(rows.div_ceil(rows_per_block));
    for first in (0..rows).step_by(rows_per_block) {
        let last = rows.min(first + rows_per_block);
        let payload = submission.payload.slice(first * row_bytes..last * row_bytes);
        let count = u32::try_from(last - first)
            .map_err(|_| Error::new(ErrorKind::TooLarge, "more than 4,294,967,295 rows"))?;
        // One row is a message like any other: its shape is the row's.
        let mut shape = if count > 1 { vec![u64::from(count)] } else { Vec::new() };
        shape.extend_from_slice(row_shape);
        let layout = Layout::new(layout.dtype(), layout.itemsize(), shape)?;
        out.push((payload, Some(layout), count));
    }
    Ok(out)
}
