//! A topic's messages for the stream, in call order, and how small ones travel together.
//!
//! One task for a topic takes messages out of the lane and hands them to the stream. In mode `nats`
//! it packs small ones, as Nagle did for TCP, without a timer: a lone message goes at once; what
//! comes while an acknowledgement is pending gathers, and goes when it is there or a frame is full.
//! A pack costs client, server and subscribers about what one message costs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Codec, Headers, Outgoing};
use crate::hybrid::hub::Shared;
use crate::hybrid::pack;
use crate::hybrid::publish::InFlight;
use crate::hybrid::topic::StreamSlot;
use crate::nats::{GroupAck, JetTopic, Publish};

/// A full pack, with room for the frame's headers in a MiB.
const PACK_BYTES_MAX: usize = (1 << 20) - (8 << 10);
/// Messages of a pack have one deadline, the earliest: later ones may lose so much.
const DEADLINE_SPREAD: Duration = Duration::from_millis(50);

/// Between attempts to open the stream.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Messages on their way to the stream.
pub(super) struct Lane {
    /// Small messages travel together.
    packs: bool,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Of the small messages that wait.
    packed_bytes: usize,
    /// When the first of the messages that wait has to go.
    earliest: Option<Instant>,
    /// What was handed to the stream and has no acknowledgement yet.
    pending: usize,
    closed: bool,
}

struct Waiting {
    message: InFlight,
    /// Bytes in a pack; None: it leaves alone.
    packed_bytes: Option<usize>,
}

/// What the lane's task does next.
enum Next {
    Send(Vec<InFlight>),
    /// At the latest until then.
    Wait(Option<Instant>),
    End,
}

impl Lane {
    pub(super) fn new(packs: bool) -> Self {
        Self { packs, state: Mutex::default(), wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes messages; never blocks. They are told when the lane is closed.
    pub(super) fn push(&self, messages: impl IntoIterator<Item = InFlight>) {
        let mut state = self.lock();
        let mut ready = state.pending == 0;
        for message in messages {
            // The task waits for the earliest deadline that it knows.
            if state.earliest.is_none_or(|earliest| message.deadline < earliest) {
                (ready, state.earliest) = (true, Some(message.deadline));
            }
            let packed_bytes = if self.packs { message.packed_bytes() } else { None };
            ready |= packed_bytes.is_none();
            state.packed_bytes += packed_bytes.unwrap_or(0);
            state.waiting.push_back(Waiting { message, packed_bytes });
        }
        ready |= state.packed_bytes >= PACK_BYTES_MAX;
        let late = if state.closed { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
        drop(state);
        if ready {
            self.wake.notify_one();
        }
        for waiting in late {
            waiting.message.finish(Err(Error::new(ErrorKind::Closed, "the handle is closed")));
        }
    }

    /// No more messages will come.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Something that was handed to the stream came to its end.
    fn ended(&self) {
        let mut state = self.lock();
        state.pending = state.pending.saturating_sub(1);
        let ready = state.pending == 0 && !state.waiting.is_empty();
        drop(state);
        if ready {
            self.wake.notify_one();
        }
    }

    fn next(&self, now: Instant) -> Next {
        let mut state = self.lock();
        let Some(deadline) = state.earliest.filter(|_| !state.waiting.is_empty()) else {
            return if state.closed { Next::End } else { Next::Wait(None) };
        };
        let (count, full) = state.pack_length();
        if !full && state.pending > 0 && !state.closed && now < deadline {
            return Next::Wait(Some(deadline));
        }
        let taken: Vec<Waiting> = state.waiting.drain(..count).collect();
        state.earliest = state.waiting.iter().map(|one| one.message.deadline).min();
        state.packed_bytes -= taken.iter().filter_map(|one| one.packed_bytes).sum::<usize>();
        state.pending += 1;
        Next::Send(taken.into_iter().map(|one| one.message).collect())
    }
}

impl State {
    /// How many messages leave together from the front on, and whether no more will fit: the pack
    /// is full, or what follows has to leave alone.
    fn pack_length(&self) -> (usize, bool) {
        let mut bytes = 0;
        let first = self.waiting.front().map(|one| one.message.deadline);
        for (count, waiting) in self.waiting.iter().enumerate() {
            let deadline = waiting.message.deadline;
            let near = first.is_some_and(|first| {
                first <= deadline && deadline.saturating_duration_since(first) <= DEADLINE_SPREAD
            });
            match waiting.packed_bytes {
                Some(more) if near && bytes + more <= PACK_BYTES_MAX => bytes += more,
                _ => return (count.max(1), true),
            }
        }
        (self.waiting.len(), false)
    }
}

/// Takes messages out of a lane, makes sure the stream exists, and hands them to it.
pub(super) struct LaneTask {
    pub(super) lane: Arc<Lane>,
    pub(super) shared: Weak<Shared>,
    pub(super) slot: StreamSlot,
}

impl LaneTask {
    pub(super) async fn run(self) {
        // Before the first message, so that intents know their floor early: a small scan after a
        // crash.
        if let Some(shared) = self.shared.upgrade()
            && let Ok(stream) = self.slot.stream(&shared).await
            && let Ok(last) = stream.last_seq().await
        {
            self.slot.seen(last);
        }
        loop {
            match self.lane.next(Instant::now()) {
                Next::Send(messages) => self.send(messages).await,
                Next::Wait(None) => self.lane.wake.notified().await,
                Next::Wait(Some(deadline)) => {
                    // Woken or not, the lane knows what is next.
                    let woken = self.lane.wake.notified();
                    let _ = tokio::time::timeout_at(deadline.into(), woken).await;
                }
                Next::End => return,
            }
        }
    }

    /// Waits out a server that cannot be reached, unless that is for good.
    async fn stream(&self) -> Result<JetTopic> {
        loop {
            let shared = self
                .shared
                .upgrade()
                .ok_or_else(|| Error::new(ErrorKind::Closed, "the handle is closed"))?;
            match self.slot.stream(&shared).await {
                Err(error) if error.kind() == ErrorKind::NotConnected => {
                    if shared.is_closed() || !shared.may_come_back() {
                        return Err(error);
                    }
                    log::debug!("{error}; asking again");
                }
                outcome => return outcome,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn send(&self, messages: Vec<InFlight>) {
        let Some(deadline) = messages.first().map(|first| first.deadline) else { return };
        let made = tokio::time::timeout_at(deadline.into(), self.stream()).await;
        match made.unwrap_or_else(|_| Err(not_sent())) {
            Ok(stream) if messages.len() > 1 => self.send_pack(&stream, messages),
            Ok(stream) => self.send_each(&stream, messages),
            Err(error) => {
                self.lane.ended();
                fail(messages, &error);
            }
        }
    }

    fn send_pack(&self, stream: &JetTopic, mut messages: Vec<InFlight>) {
        let Some(first) = messages.first() else { return };
        let (id, deadline) = (first.entry.id, first.deadline);
        let (payload, coded) = match pack::encode(&messages) {
            Ok(packed) => packed,
            Err(error) => {
                log::debug!("{error}; the messages leave one by one");
                return self.send_each(stream, messages);
            }
        };
        let rows = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let outgoing = Outgoing { id, rows, layout: None, payload };
        for (message, coded_count) in messages.iter_mut().zip(coded) {
            message.packed(coded_count);
        }
        let (lane, slot) = (Arc::clone(&self.lane), self.slot.clone());
        let done = move |result: Result<GroupAck>| {
            lane.ended();
            match result {
                Ok(ack) => {
                    slot.seen(ack.manifest_seq);
                    finish_pack(messages, ack);
                }
                Err(error) => {
                    fail(messages, &error);
                }
            }
        };
        let headers = Headers::empty();
        stream.publish(Publish::new(outgoing, headers, Codec::Raw, deadline), done);
    }

    fn send_each(&self, stream: &JetTopic, messages: Vec<InFlight>) {
        // The lane has counted one.
        self.lane.lock().pending += messages.len().saturating_sub(1);
        for message in messages {
            let (lane, slot) = (Arc::clone(&self.lane), self.slot.clone());
            let publish = Publish {
                outgoing: message.outgoing(),
                headers: message.submission.headers.clone(),
                codec: message.decision.coding,
                sums: message.sums_before.clone(),
                expected_last_seq: message.expected_stream_seq(),
                deadline: message.deadline,
            };
            let done = move |result: Result<GroupAck>| {
                lane.ended();
                if let Ok(ack) = &result {
                    slot.seen(ack.manifest_seq);
                }
                message.finish(result);
            };
            stream.publish(publish, done);
        }
    }
}

fn fail(messages: Vec<InFlight>, error: &Error) {
    for message in messages {
        message.finish(Err(error.again()));
    }
}

/// Each message of a pack with its place, and its share of what went over the wire.
fn finish_pack(messages: Vec<InFlight>, ack: GroupAck) {
    let payload_bytes: u64 = messages.iter().map(|one| one.entry.payload_bytes).sum();
    let overhead_bytes = ack.wire_bytes.saturating_sub(payload_bytes);
    let count = messages.len() as u64;
    for (row, message) in (0..).zip(messages) {
        let extra = u64::from(u64::from(row) < overhead_bytes % count);
        let wire_bytes = message.entry.payload_bytes + overhead_bytes / count + extra;
        message.finish_row(GroupAck { wire_bytes, ..ack }, row);
    }
}

fn not_sent() -> Error {
    Error::new(ErrorKind::Timeout, "the stream did not answer in time; the message was not sent")
}
