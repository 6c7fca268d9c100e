//! Messages -> entries, as one append of the journal.
//!
//! Small messages that follow each other share an entry; packed rows are cut into entries at row
//! borders; a message for the stream is an entry of its own, its intent.

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Coding, Decision, Layout, Outgoing};
use crate::hybrid::entry::StreamEntry;
use crate::hybrid::inline::{Borrowed, Encoded, InlineEntry, Run, copied_bytes, fits_run};
use crate::hybrid::publish::{Done, Receipt, Submission};
use crate::hybrid::topic::HubTopic;
use crate::queue::{AppendJob, Appender};
use crate::router::Route;

/// Raw bytes of packed rows in one journal entry, and of the small messages that share one: a
/// reader that wants a few reads this much.
const PACKED_BYTES_MAX: usize = 1 << 20;

/// What a record costs to append beyond its bytes, as bytes: 0.8 us beside 0.5 ns a byte.
const RECORD_COST_BYTES: u64 = 2 << 10;
/// What an intent costs to append, likewise: two records.
const INTENT_COST_BYTES: u64 = 2 * RECORD_COST_BYTES;

/// JetStream's code for the same refusal.
const WRONG_LAST_SEQ: u64 = 10_071;

/// The messages of one publish call.
pub(super) struct Batch {
    topic: Arc<HubTopic>,
    submissions: Vec<Submission>,
    routes: Vec<Route>,
    decisions: Vec<Decision>,
    forced: bool,
    deadline: Instant,
    started: Instant,
    receipts: Vec<Option<Receipt>>,
    intents: Vec<StreamEntry>,
    borrowed: Vec<Borrowed>,
    done: Box<dyn FnMut(usize) -> Done + Send>,
    outcome: Outcome,
}

/// Where the receipts go when the append ends before its caller has returned.
#[derive(Clone, Default)]
pub(super) struct Outcome(Arc<Mutex<Ended>>);

#[derive(Default)]
struct Ended {
    /// The caller has returned: receipts go through `done`.
    left: bool,
    receipts: Option<Result<Vec<Option<Receipt>>>>,
}

impl Outcome {
    /// The receipts, if they are there; after this they go through `done`.
    pub(super) fn take(&self) -> Option<Result<Vec<Option<Receipt>>>> {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.left = true;
        ended.receipts.take()
    }

    /// Leaves the receipts for the caller; gives them back when it has returned.
    fn put(&self, receipts: Result<Vec<Option<Receipt>>>) -> Option<Result<Vec<Option<Receipt>>>> {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.left {
            return Some(receipts);
        }
        ended.receipts = Some(receipts);
        None
    }
}

impl Batch {
    pub(super) fn new(
        topic: &Arc<HubTopic>,
        submissions: Vec<Submission>,
        routes: Vec<Route>,
        decisions: Vec<Decision>,
        forced: bool,
        deadline: Instant,
        done: Box<dyn FnMut(usize) -> Done + Send>,
    ) -> (Self, Outcome) {
        let outcome = Outcome::default();
        let batch = Self {
            topic: Arc::clone(topic),
            submissions,
            routes,
            decisions,
            forced,
            deadline,
            started: Instant::now(),
            receipts: Vec::new(),
            intents: Vec::new(),
            borrowed: Vec::new(),
            done,
            outcome: outcome.clone(),
        };
        (batch, outcome)
    }

    fn intent(&self, appender: &mut Appender, submission: &Submission) -> StreamEntry {
        let entry = StreamEntry {
            id: self.topic.message_id(appender.next_seq()),
            payload_bytes: submission.payload.len() as u64,
            floor_seq: self.topic.floor_seq(),
            manifest_seq: 0,
        };
        appender.push_open(submission.rows, vec![entry.encode().into()]);
        entry
    }

    /// Of a message of its own; publishes of several expect nothing.
    fn check_last_seq(&self, appender: &Appender) -> Result<()> {
        let last_seq = appender.next_seq().saturating_sub(1);
        let expected = self.submissions.first().and_then(|first| first.expected_last_seq);
        match expected {
            Some(expected) if expected != last_seq => Err(Error::new(
                ErrorKind::Rejected { code: WRONG_LAST_SEQ },
                format!(
                    "topic {:?} ends with seq {last_seq}, expected {expected}",
                    self.topic.name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Payload bytes to copy, and messages, from `from` on that can share an entry.
    fn shareable(&self, from: usize) -> (usize, usize) {
        let mut bytes = 0;
        let mut messages = 0;
        let ways = self.routes.iter().zip(&self.decisions);
        for (submission, (route, decision)) in self.submissions.iter().zip(ways).skip(from) {
            let size_bytes = copied_bytes(submission.payload.len(), decision.coding);
            if *route != Route::Queue || (messages > 0 && bytes + size_bytes > PACKED_BYTES_MAX) {
                break;
            }
            bytes += size_bytes;
            messages += 1;
        }
        (bytes.min(PACKED_BYTES_MAX), messages)
    }

    /// Messages from `from` on that can be written as a run.
    fn run_length(&self, from: usize) -> usize {
        let ways = self.routes.iter().zip(&self.decisions);
        let following = self.submissions.iter().zip(ways).skip(from);
        let queued = following.take_while(|(_, (route, _))| **route == Route::Queue);
        run_length(queued.map(|(submission, (_, decision))| (submission, decision.coding))).max(1)
    }

    fn push_run(
        &self,
        building: &mut Building,
        appender: &mut Appender,
        index: usize,
        run: &[Submission],
        decision: Decision,
    ) -> Result<()> {
        let Some(first) = run.first() else { return Ok(()) };
        let bytes = first.payload.len() * run.len();
        let sharing = building.sharing(appender, bytes, || {
            let (bytes, messages) = self.shareable(index);
            (bytes, messages.saturating_sub(run.len()) + 1)
        })?;
        let payloads: Vec<&[u8]> = run.iter().map(|one| one.payload.as_ref()).collect();
        let first_seq = sharing.next_seq;
        let mut encoded = sharing.entry.push_run(&Run {
            id: self.topic.message_id(first_seq),
            layout: first.layout.as_ref(),
            headers: &first.headers,
            payloads: &payloads,
            writable: run.iter().any(|one| one.writable),
        })?;
        sharing.next_seq += run.len() as u64;
        // What the run takes beside the payloads is the first one's.
        let payload_bytes = first.payload.len() as u64;
        encoded.wire_bytes -= payload_bytes * (run.len() as u64 - 1);
        for (seq, submission) in (first_seq..).zip(run) {
            building.receipts.push(Some(self.receipt(seq, submission, decision, encoded)));
            encoded.wire_bytes = payload_bytes;
        }
        Ok(())
    }

    fn push_one(
        &self,
        building: &mut Building,
        appender: &mut Appender,
        index: usize,
        submission: &Submission,
        decision: Decision,
    ) -> Result<()> {
        let mut total = Encoded::default();
        let mut seq = None;
        for (payload, layout, rows) in blocks(submission)? {
            let mut borrowed = std::mem::take(&mut building.borrowed);
            let sharing = building.sharing(appender, payload.len(), || self.shareable(index))?;
            let first_seq = sharing.next_seq;
            let id = self.topic.message_id(first_seq);
            let outgoing = Outgoing { id, rows, layout, payload };
            let (headers, writable) = (&submission.headers, submission.writable);
            let encoded =
                sharing.entry.push(&outgoing, headers, decision.coding, writable, &mut borrowed)?;
            sharing.next_seq += u64::from(rows);
            building.borrowed = borrowed;
            seq = seq.or(Some(first_seq));
            total.frames_count += encoded.frames_count;
            total.coded_count += encoded.coded_count;
            total.wire_bytes += encoded.wire_bytes;
        }
        let seq = seq.unwrap_or_else(|| appender.next_seq());
        building.receipts.push(Some(self.receipt(seq, submission, decision, total)));
        Ok(())
    }

    fn receipt(
        &self,
        seq: u64,
        submission: &Submission,
        decision: Decision,
        encoded: Encoded,
    ) -> Receipt {
        let (codec, codec_why) = decision.used(encoded.coded_count);
        Receipt {
            route: Route::Queue,
            seq,
            id: self.topic.message_id(seq),
            level: self.topic.shared.options.level(),
            duplicate: false,
            frames_count: encoded.frames_count,
            payload_bytes: submission.payload.len() as u64,
            wire_bytes: encoded.wire_bytes,
            rows_count: submission.rows,
            codec,
            codec_why,
        }
    }

    /// Counts what the log took; a batch's time is shared out over messages and intents.
    fn count(&self, elapsed: Duration) {
        let mut messages = 0;
        let mut wire_bytes = 0;
        let mut bytes = 0;
        let mut rows = 0;
        for receipt in self.receipts.iter().flatten() {
            messages += 1;
            rows += u64::from(receipt.rows_count);
            bytes += receipt.payload_bytes;
            wire_bytes += receipt.wire_bytes;
        }
        let shared = &self.topic.shared;
        shared.counters.published_queue.fetch_add(rows, Ordering::Relaxed);
        if messages > 0 {
            let inline = wire_bytes + messages * RECORD_COST_BYTES;
            let intents = self.intents.len() as u64 * INTENT_COST_BYTES;
            let share = inline as f64 / (inline + intents) as f64;
            let cost = elapsed.mul_f64(share / messages as f64);
            shared.observe(Route::Queue, bytes / messages, cost);
        }
    }

    /// Sends what goes to the stream.
    fn start_intents(&mut self, receipts: &[Option<Receipt>]) {
        let mut leaving = Vec::new();
        let mut intents = std::mem::take(&mut self.intents).into_iter();
        let submissions = std::mem::take(&mut self.submissions);
        let decisions = std::mem::take(&mut self.decisions);
        let all = submissions.into_iter().zip(decisions).zip(receipts);
        for (index, (message, receipt)) in all.enumerate() {
            if receipt.is_none()
                && let Some(entry) = intents.next()
            {
                let done = (self.done)(index);
                let (started, forced, deadline) = (self.started, self.forced, self.deadline);
                let topic = &self.topic;
                leaving.push(topic.in_flight(message, entry, started, forced, deadline, done));
            }
        }
        if !leaving.is_empty() {
            self.topic.send(leaving);
        }
    }

    /// Tells every message's own callback; those on their way to the stream are told later.
    fn tell(&mut self, ended: Result<Vec<Option<Receipt>>>, payloads: Vec<Bytes>) {
        match ended {
            Ok(receipts) => {
                for (index, (receipt, payload)) in receipts.into_iter().zip(payloads).enumerate() {
                    if let Some(receipt) = receipt {
                        (self.done)(index)(Ok(receipt), payload);
                    }
                }
            }
            Err(error) => {
                for (index, payload) in payloads.into_iter().enumerate() {
                    (self.done)(index)(Err(error.again()), payload);
                }
            }
        }
    }
}

impl AppendJob for Batch {
    fn build(&mut self, appender: &mut Appender) -> Result<()> {
        if Instant::now() >= self.deadline {
            let context = "the log did not take the message in time; it was not written";
            return Err(Error::new(ErrorKind::Timeout, context));
        }
        self.check_last_seq(appender)?;
        let mut building = Building::new(self.submissions.len());
        let mut rest = self.submissions.as_slice();
        while let Some((submission, others)) = rest.split_first() {
            let index = self.submissions.len() - rest.len();
            let Some(&decision) = self.decisions.get(index) else { break };
            let count = self.run_length(index);
            if self.routes.get(index) == Some(&Route::Nats) {
                building.end_sharing(appender);
                building.intents.push(self.intent(appender, submission));
                building.receipts.push(None);
            } else if count > 1 {
                let (run, after) = rest.split_at(count);
                self.push_run(&mut building, appender, index, run, decision)?;
                rest = after;
                continue;
            } else {
                self.push_one(&mut building, appender, index, submission, decision)?;
            }
            rest = others;
        }
        building.end_sharing(appender);
        self.receipts = building.receipts;
        (self.intents, self.borrowed) = (building.intents, building.borrowed);
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        self.borrowed.iter().try_for_each(Borrowed::verify)
    }

    fn done(mut self: Box<Self>, result: Result<RangeInclusive<u64>>) {
        let payloads: Vec<Bytes> = self.submissions.iter().map(|one| one.payload.clone()).collect();
        let ended = match result {
            Ok(_) => {
                self.count(self.started.elapsed());
                let receipts = std::mem::take(&mut self.receipts);
                self.start_intents(&receipts);
                Ok(receipts)
            }
            Err(error) => Err(error),
        };
        // The callbacks hold the last references: whoever owns the memory lets it go.
        self.submissions.clear();
        self.borrowed.clear();
        if let Some(ended) = self.outcome.clone().put(ended) {
            self.tell(ended, payloads);
        }
    }
}

/// What an append has come to so far.
struct Building {
    shared: Option<Sharing>,
    receipts: Vec<Option<Receipt>>,
    intents: Vec<StreamEntry>,
    borrowed: Vec<Borrowed>,
}

impl Building {
    fn new(messages: usize) -> Self {
        let receipts = Vec::with_capacity(messages);
        Self { shared: None, receipts, intents: Vec::new(), borrowed: Vec::new() }
    }

    /// The entry that takes `payload_bytes` more, or a new one with the room that `room` says:
    /// bytes to copy, and blocks.
    fn sharing(
        &mut self,
        appender: &mut Appender,
        payload_bytes: usize,
        room: impl FnOnce() -> (usize, usize),
    ) -> Result<&mut Sharing> {
        if self.shared.as_ref().is_some_and(|sharing| !sharing.has_room(payload_bytes)) {
            self.end_sharing(appender);
        }
        match &mut self.shared {
            Some(sharing) => Ok(sharing),
            empty => {
                let (bytes, blocks) = room();
                Ok(empty.insert(Sharing::begin(appender, bytes, blocks)?))
            }
        }
    }

    fn end_sharing(&mut self, appender: &mut Appender) {
        Sharing::end(&mut self.shared, appender);
    }
}

/// An entry that the next message may share.
struct Sharing {
    entry: InlineEntry,
    first_seq: u64,
    next_seq: u64,
}

impl Sharing {
    fn begin(appender: &Appender, payload_bytes: usize, messages: usize) -> Result<Self> {
        let entry = InlineEntry::with_room(payload_bytes, messages)?;
        let next_seq = appender.next_seq();
        Ok(Self { entry, first_seq: next_seq, next_seq })
    }

    fn has_room(&self, payload_bytes: usize) -> bool {
        !self.entry.is_full() && self.entry.len() + payload_bytes <= PACKED_BYTES_MAX
    }

    fn end(shared: &mut Option<Self>, appender: &mut Appender) {
        if let Some(Self { entry, first_seq, next_seq }) = shared.take() {
            // At most a million rows in each of the messages of a MiB.
            let span = u32::try_from(next_seq - first_seq).unwrap_or(u32::MAX);
            appender.push(span, entry.finish());
        }
    }
}

/// How many of these messages, from the first on, can be written as a run.
pub(super) fn run_length<'a>(
    mut submissions: impl Iterator<Item = (&'a Submission, Coding)>,
) -> usize {
    let Some((first, coding)) = submissions.next() else { return 0 };
    let size_bytes = first.payload.len();
    let has_rows = first.layout.as_ref().is_none_or(Layout::has_rows);
    if first.rows != 1 || !has_rows || !fits_run(size_bytes, coding) {
        return 1;
    }
    let like_first = |(next, other): &(&Submission, Coding)| {
        *other == coding
            && next.rows == 1
            && next.payload.len() == size_bytes
            && next.layout == first.layout
            && next.headers == first.headers
    };
    1 + submissions.take(PACKED_BYTES_MAX / size_bytes - 1).take_while(like_first).count()
}

/// A message as an entry of its own, for the place of an intent.
pub(super) fn lone_entry(
    outgoing: &Outgoing,
    submission: &Submission,
    decision: Decision,
) -> Result<(Vec<u8>, Encoded)> {
    let coding = decision.coding;
    let mut entry = InlineEntry::with_room(copied_bytes(outgoing.payload.len(), coding), 1)?;
    let mut borrowed = Vec::new();
    let (headers, writable) = (&submission.headers, submission.writable);
    let encoded = entry.push(outgoing, headers, coding, writable, &mut borrowed)?;
    let value = entry.finish().concat();
    borrowed.iter().try_for_each(Borrowed::verify)?;
    Ok((value, encoded))
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
