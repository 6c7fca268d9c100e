//! The subscription of a topic that has a journal: entries -> messages, large ones prefetched from
//! the stream.
//!
//! The group says which messages this subscriber may have: first those that are due again, then new
//! ones. A lone subscriber reads far ahead; several that compete claim what one call hands out.

use std::collections::VecDeque;
use std::iter;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Gathered, Headers};
use crate::hybrid::acks::{Acker, JournalAcker};
use crate::hybrid::dead_letter::DeadLetters;
use crate::hybrid::entry::{self, Entry, StreamEntry};
use crate::hybrid::inline::InlineMessage;
use crate::hybrid::options::SubscribeOptions;
use crate::hybrid::runtime;
use crate::hybrid::subscribe::{
    Block, Message, PREFETCH_BYTES_MAX, PREFETCH_ENTRIES_MAX, Unpacking, unreadable,
};
use crate::hybrid::topic::HubTopic;
use crate::queue::{self, Claim, Group, Record, SubscriberId};
use crate::router::Route;

/// Journal bytes of one read.
const READ_BYTES_MAX: usize = 4 << 20;
/// The same where subscribers compete: what is left over is read again by the next one.
const SHARED_READ_BYTES_MAX: usize = 256 << 10;
/// Between attempts to fetch from a server that does not answer.
const FETCH_RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Messages of one block that this subscriber has claimed.
struct Slot {
    first_seq: u64,
    pieces: VecDeque<Range<u64>>,
    deliveries: u32,
    payload_bytes: u64,
    state: SlotState,
}

enum SlotState {
    Ready(Unpacking),
    Fetching(Arc<Fetch>),
    /// Cannot be read. Kept, so that every call says so: nothing is stepped over in silence.
    Failed(Error),
}

/// A large message on its way from the stream.
#[derive(Default)]
struct Fetch {
    state: Mutex<FetchState>,
}

#[derive(Default)]
struct FetchState {
    outcome: Option<Result<(Gathered, Headers)>>,
    waker: Option<Waker>,
}

/// What has to happen before a reader has something.
enum Awaited {
    Append,
    Fetch(Arc<Fetch>),
}

impl Awaited {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Append, Self::Append) => true,
            (Self::Fetch(one), Self::Fetch(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

pub(super) struct JournalReader {
    topic: Arc<HubTopic>,
    log: Arc<queue::Topic>,
    group: Group,
    id: SubscriberId,
    acker: Arc<JournalAcker>,
    ack_wait: Option<Duration>,
    dead_letters: Option<DeadLetters>,
    generation: u64,
    is_shared: bool,
    /// Frames are left as they come: who reads has memory of his own for them.
    keep_frames: bool,
    slots: VecDeque<Slot>,
    slots_bytes: u64,
    /// The record that was read last for messages that are due again: they often share one.
    last_due: Option<Record>,
}

impl JournalReader {
    pub(super) fn open(
        topic: &Arc<HubTopic>,
        log: &Arc<queue::Topic>,
        group: &str,
        options: &SubscribeOptions,
    ) -> Result<Self> {
        let dead_letters = DeadLetters::new(topic, group, options)?;
        let group = log.group(group, options.start)?;
        let id = group.join();
        let ack_wait = options.ack_wait;
        Ok(Self {
            topic: Arc::clone(topic),
            log: Arc::clone(log),
            generation: group.generation(),
            acker: Arc::new(JournalAcker { group: group.clone(), ack_wait }),
            group,
            id,
            ack_wait,
            dead_letters,
            is_shared: false,
            keep_frames: false,
            slots: VecDeque::new(),
            slots_bytes: 0,
            last_due: None,
        })
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    pub(super) fn acker(&self) -> &Arc<JournalAcker> {
        &self.acker
    }

    pub(super) fn poll(
        &mut self,
        messages_max: usize,
        waker: &Waker,
        keep_frames: bool,
    ) -> Result<Vec<Message>> {
        self.keep_frames = keep_frames;
        let mut awaited: Option<Awaited> = None;
        loop {
            let ready = self.take_ready(messages_max)?;
            let next = self.awaits();
            if !ready.is_empty() || awaited.is_some_and(|awaited| awaited.is(&next)) {
                return Ok(ready);
            }
            match &next {
                Awaited::Append => self.log.register(waker),
                Awaited::Fetch(fetch) => {
                    let mut state = fetch.state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.waker = Some(waker.clone());
                }
            }
            // What came between the look and the registration woke nobody: look again. It may be
            // something else that is waited for then.
            awaited = Some(next);
        }
    }

    fn awaits(&self) -> Awaited {
        match self.slots.front().map(|slot| &slot.state) {
            Some(SlotState::Fetching(fetch)) => Awaited::Fetch(Arc::clone(fetch)),
            _ => Awaited::Append,
        }
    }

    /// When it is worth looking again although nothing has come.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.group.next_due()
    }

    pub(super) fn ack_through(&mut self, seq: u64) -> Result<()> {
        self.group.ack_through(seq)?;
        // A message that cannot be read would stay at the front for ever.
        for slot in &mut self.slots {
            for piece in &mut slot.pieces {
                piece.start = piece.start.max(seq.saturating_add(1));
            }
            slot.pieces.retain(|piece| !piece.is_empty());
        }
        while self.slots.front().is_some_and(|slot| slot.pieces.is_empty()) {
            self.drop_front();
        }
        Ok(())
    }

    fn take_ready(&mut self, messages_max: usize) -> Result<Vec<Message>> {
        self.log.check_exists()?;
        let generation = self.group.generation();
        if generation != self.generation {
            self.generation = generation;
            self.drop_read_ahead();
            self.group.give_back_read_ahead(self.id);
        }
        loop {
            if let Err(error) = self.read_ahead(messages_max as u64)
                && self.slots.is_empty()
            {
                return Err(error);
            }
            let (messages, seqs) = self.unpack(messages_max)?;
            if messages.is_empty() {
                return Ok(messages);
            }
            let counted = self.dead_letters.is_some();
            let held = self.group.hand_out(self.id, &seqs, self.ack_wait, counted)?;
            let messages = only(messages, &held);
            // All of them were done or sought past meanwhile: there may be more.
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
    }

    /// Takes messages that are ready at the front, and their seqs.
    fn unpack(&mut self, messages_max: usize) -> Result<(Vec<Message>, Vec<Range<u64>>)> {
        let mut messages = Vec::new();
        let mut seqs: Vec<Range<u64>> = Vec::new();
        while messages.len() < messages_max && self.settle_front(messages.is_empty())? {
            let Some(slot) = self.slots.front_mut() else { break };
            let SlotState::Ready(unpacking) = &slot.state else { break };
            if let Some(letters) = &self.dead_letters
                && letters.are_due(slot.deliveries)
            {
                letters.send(&self.group, self.id, unpacking, &slot.pieces, slot.deliveries)?;
                self.drop_front();
                continue;
            }
            let Some(piece) = slot.pieces.front_mut() else {
                self.drop_front();
                continue;
            };
            let room = (messages_max - messages.len()) as u64;
            let taken = piece.start..piece.end.min(piece.start.saturating_add(room));
            let deliveries = slot.deliveries.saturating_add(1);
            messages.extend(taken.clone().filter_map(|seq| unpacking.message(seq, deliveries)));
            piece.start = taken.end;
            if piece.is_empty() {
                slot.pieces.pop_front();
            }
            match seqs.last_mut() {
                Some(last) if last.end == taken.start => last.end = taken.end,
                _ => seqs.push(taken),
            }
        }
        Ok((messages, seqs))
    }

    /// Turns a finished fetch at the front into a block. False: there is nothing ready at the
    /// front.
    fn settle_front(&mut self, may_fail: bool) -> Result<bool> {
        let Some(slot) = self.slots.front_mut() else { return Ok(false) };
        if let SlotState::Fetching(fetch) = &slot.state {
            let fetched = {
                let mut state = fetch.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.outcome.take()
            };
            let block = match fetched {
                None => return Ok(false),
                Some(fetched) => fetched.and_then(|(gathered, headers)| {
                    let acker = Acker::Journal(Arc::clone(&self.acker));
                    let block = block(Route::Nats, slot.first_seq, headers, acker);
                    let is_kept = self.keep_frames;
                    let gathered = if is_kept { gathered } else { gathered.join()?.into() };
                    Unpacking::new(&self.topic.name, block, gathered)
                }),
            };
            slot.state = block.map_or_else(SlotState::Failed, SlotState::Ready);
        }
        match &slot.state {
            SlotState::Failed(error) if may_fail => {
                Err(unreadable(&self.topic.name, slot.first_seq, error))
            }
            SlotState::Failed(_) | SlotState::Fetching(_) => Ok(false),
            SlotState::Ready(_) => Ok(true),
        }
    }

    fn drop_front(&mut self) {
        if let Some(slot) = self.slots.pop_front() {
            self.slots_bytes -= slot.payload_bytes;
        }
    }

    fn drop_read_ahead(&mut self) {
        self.slots.clear();
        self.slots_bytes = 0;
        self.last_due = None;
    }

    /// Claims what may be handed out, within bounds, and starts the fetches of what lies in the
    /// stream.
    fn read_ahead(&mut self, messages_max: u64) -> Result<()> {
        self.is_shared = self.group.is_shared();
        let most = if self.is_shared { messages_max } else { u64::MAX };
        let now = Instant::now();
        while self.has_room()
            && let Some(claim) = self.group.claim_due(self.id, now, most)
        {
            self.take_due(&claim);
        }
        // One read a call is enough to go on with; the rest is read when these are handed out.
        while self.has_room() && self.slots.is_empty() {
            if !self.take_new(most)? {
                return Ok(());
            }
        }
        if self.has_room() && !self.is_shared {
            self.take_new(most)?;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        if self.is_shared {
            return self.slots.is_empty();
        }
        self.slots_bytes < PREFETCH_BYTES_MAX && self.slots.len() < PREFETCH_ENTRIES_MAX
    }

    /// Claims new messages; false: there is none.
    fn take_new(&mut self, most: u64) -> Result<bool> {
        let bytes_max = if self.is_shared { SHARED_READ_BYTES_MAX } else { READ_BYTES_MAX };
        let ((records, from, end), pieces) = self.group.claim_new(self.id, |from| {
            let read = self.log.read(from, PREFETCH_ENTRIES_MAX, bytes_max)?;
            let mut end = from;
            let mut records = Vec::with_capacity(read.len());
            for record in read {
                if record.open || end - from >= most {
                    break;
                }
                self.warn_of_gap(end, record.first_seq);
                end = after(&record).min(from.saturating_add(most)).max(record.first_seq);
                records.push(record);
            }
            Ok(((records, from, end), end))
        })?;
        if let Some(gone) = records.first().map(|record| from..record.first_seq)
            && !gone.is_empty()
        {
            self.group.ack(iter::once(gone))?;
        }
        for record in &records {
            let pieces = within(&pieces, record.first_seq..after(record));
            self.take_record(record, pieces, 0);
        }
        Ok(end > from)
    }

    /// Reads have no holes but what retention removed before it was read.
    fn warn_of_gap(&self, expected: u64, found: u64) {
        if found > expected {
            let (topic, last) = (&self.topic.name, found - 1);
            log::warn!(
                "topic {topic:?}: retention removed seqs {expected} to {last} before they were read"
            );
        }
    }

    /// Reads messages again that are due.
    fn take_due(&mut self, claim: &Claim) {
        let Range { start: mut at, end } = claim.seqs;
        let deliveries = claim.deliveries;
        while at < end {
            match self.record_at(at, end) {
                Ok(Some(record)) => {
                    let range = at..end.min(after(&record));
                    at = range.end;
                    self.take_record(&record, iter::once(range).collect(), deliveries);
                }
                // Retention removed it.
                Ok(None) => at = end,
                Err(error) => {
                    self.push_failed(at, iter::once(at..end).collect(), deliveries, error);
                    at = end;
                }
            }
        }
    }

    /// The record that holds `seq`; None when all before `end` is gone.
    fn record_at(&mut self, seq: u64, end: u64) -> Result<Option<Record>> {
        if let Some(record) = &self.last_due
            && (record.first_seq..after(record)).contains(&seq)
        {
            return Ok(Some(record.clone()));
        }
        let record = self.log.read(seq, 1, 0)?.into_iter().next();
        let first_seq = record.as_ref().map_or(end, |record| record.first_seq.min(end));
        if first_seq > seq {
            self.warn_of_gap(seq, first_seq);
            self.group.ack(iter::once(seq..first_seq))?;
        }
        self.last_due = record;
        Ok(self.last_due.clone().filter(|record| record.first_seq < end))
    }

    fn take_record(&mut self, record: &Record, pieces: VecDeque<Range<u64>>, deliveries: u32) {
        if pieces.is_empty() {
            return;
        }
        let limit_bytes = self.topic.shared.options.message_bytes_max;
        let taken = entry::decode(&record.value, limit_bytes).and_then(|entry| match entry {
            Entry::Inline(messages) => self.take_inline(record, messages, &pieces, deliveries),
            Entry::Stream(entry) => {
                let state = SlotState::Fetching(self.fetch(entry)?);
                let (first_seq, payload_bytes) = (record.first_seq, entry.payload_bytes);
                let pieces = pieces.clone();
                self.push(Slot { first_seq, pieces, deliveries, payload_bytes, state });
                Ok(())
            }
            Entry::Aborted => self.group.ack(pieces.iter().cloned()),
        });
        if let Err(error) = taken {
            self.push_failed(record.first_seq, pieces, deliveries, error);
        }
    }

    fn take_inline(
        &mut self,
        record: &Record,
        messages: Vec<InlineMessage>,
        pieces: &VecDeque<Range<u64>>,
        deliveries: u32,
    ) -> Result<()> {
        let mut slots = Vec::new();
        let mut first_seq = record.first_seq;
        for InlineMessage { incoming, headers } in messages {
            let end = first_seq + u64::from(incoming.rows);
            let pieces = within(pieces, first_seq..end);
            if !pieces.is_empty() {
                let acker = Acker::Journal(Arc::clone(&self.acker));
                let payload_bytes = incoming.payload.len() as u64;
                let block = block(Route::Queue, first_seq, headers, acker);
                let unpacking = Unpacking::new(&self.topic.name, block, incoming.into())?;
                let state = SlotState::Ready(unpacking);
                slots.push(Slot { first_seq, pieces, deliveries, payload_bytes, state });
            }
            first_seq = end;
        }
        if first_seq != after(record) {
            return Err(entry::damaged("inline entry: its messages do not fill its seqs"));
        }
        for slot in slots {
            self.push(slot);
        }
        Ok(())
    }

    fn push(&mut self, slot: Slot) {
        self.slots_bytes += slot.payload_bytes;
        self.slots.push_back(slot);
    }

    fn push_failed(
        &mut self,
        first_seq: u64,
        pieces: VecDeque<Range<u64>>,
        deliveries: u32,
        error: Error,
    ) {
        let state = SlotState::Failed(error);
        self.push(Slot { first_seq, pieces, deliveries, payload_bytes: 0, state });
    }

    fn fetch(&self, entry: StreamEntry) -> Result<Arc<Fetch>> {
        let fetch = Arc::new(Fetch::default());
        let (topic, result) = (Arc::clone(&self.topic), Arc::clone(&fetch));
        let keep_frames = self.keep_frames;
        runtime::handle()?.spawn(async move {
            let outcome = fetch_patiently(&topic, &entry, keep_frames).await;
            let mut state = result.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.outcome = Some(outcome);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        });
        Ok(fetch)
    }
}

impl Drop for JournalReader {
    fn drop(&mut self) {
        self.group.leave(self.id);
    }
}

fn after(record: &Record) -> u64 {
    record.first_seq + u64::from(record.span)
}

fn block(route: Route, first_seq: u64, headers: Headers, acker: Acker) -> Block {
    let headers = Arc::new(headers);
    // Counted by the group.
    Block { first_seq, route, headers, acker, deliveries: 0 }
}

/// What of the ranges lies within another.
fn within<'a>(
    pieces: impl IntoIterator<Item = &'a Range<u64>>,
    range: Range<u64>,
) -> VecDeque<Range<u64>> {
    let cut = |piece: &Range<u64>| piece.start.max(range.start)..piece.end.min(range.end);
    pieces.into_iter().map(cut).filter(|piece| !piece.is_empty()).collect()
}

/// The messages that are still in `held`.
fn only(messages: Vec<Message>, held: &[Range<u64>]) -> Vec<Message> {
    let count: u64 = held.iter().map(|one| one.end - one.start).sum();
    if count == messages.len() as u64 {
        return messages;
    }
    let is_held = |seq| held.iter().any(|one| one.contains(&seq));
    messages.into_iter().filter(|message| is_held(message.seq)).collect()
}

/// Fetches a group; waits out a server that cannot be reached, for as long as the hub is open.
async fn fetch_patiently(
    topic: &HubTopic,
    entry: &StreamEntry,
    keep_frames: bool,
) -> Result<(Gathered, Headers)> {
    let limit_bytes = topic.shared.options.message_bytes_max;
    let mut warned = false;
    loop {
        topic.shared.check_open()?;
        topic.log.as_ref().map_or(Ok(()), |log| log.check_exists())?;
        let outcome = match topic.stream().await {
            Ok(stream) => {
                let (id, seq) = (&entry.id, entry.manifest_seq);
                stream.fetch(id, seq, limit_bytes, keep_frames).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::Timeout)
                    && !topic.shared.is_cut_off() =>
            {
                topic.shared.check_open()?;
                if !warned {
                    log::warn!("topic {:?}: reading {} waits: {error}", topic.name, entry.id);
                    warned = true;
                }
                tokio::time::sleep(FETCH_RETRY_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}
