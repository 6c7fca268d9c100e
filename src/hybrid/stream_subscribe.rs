//! The subscription of mode `nats`, where the stream is the only store.
//!
//! A task pulls whole messages from the stream into a bounded queue; `poll` takes them out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::Gathered;
use crate::hybrid::acks::{Acker, BlockAck, HandOut, StreamAcks};
use crate::hybrid::dead_letter::DeadLetters;
use crate::hybrid::inline::InlineMessage;
use crate::hybrid::options::SubscribeOptions;
use crate::hybrid::pack;
use crate::hybrid::repeats::Missing;
use crate::hybrid::subscribe::{Block, Message, SeekTo, Unpacking, unreadable};
use crate::hybrid::topic::HubTopic;
use crate::hybrid::{runtime, stream_seq};
use crate::nats::{AckHandle, Delivery, Hold, JetSubscription, Place, Start};
use crate::queue::GroupStart;
use crate::router::Route;

/// Payload bytes that are put together ahead of the caller; at least one message is, whatever its
/// size. As much as is on the way at a time: 5 MB x 100 took 0.70 s and 67 MiB, with twice as much
/// 0.71 s and 82 MiB, with half of both 0.79 s and 55 MiB.
const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// Messages of the stream read ahead of the caller.
const AHEAD_MSGS_MAX: usize = 1024;
/// How long one pull waits before the task looks whether it is still wanted.
const PULL_WAIT: Duration = Duration::from_secs(5);
/// Between attempts while the server cannot be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// The same while a group is being moved.
const MOVE_PAUSE: Duration = Duration::from_millis(5);
/// Until a group that was there counts as deleted: whoever moves one makes it anew.
const MOVE_WAIT: Duration = Duration::from_secs(5);

pub(super) struct StreamReader {
    inbox: Arc<Inbox>,
    /// What was taken out of the inbox and not handed out yet.
    current: VecDeque<Unpacked>,
    /// Cannot be read. Kept, so that every call says so: nothing is stepped over in silence.
    failed: Option<Failed>,
    acks: StreamAcks,
    missing: Missing,
    generation: u64,
    /// Everything before it is done, by the caller's word.
    done_before: u64,
    dead_letters: Option<DeadLetters>,
    topic: Arc<HubTopic>,
    group: String,
}

struct Unpacked {
    unpacking: Unpacking,
    block: Arc<BlockAck>,
    _hold: Arc<Hold>,
}

struct Failed {
    first_seq: u64,
    error: Error,
    block: Arc<BlockAck>,
    _hold: Arc<Hold>,
}

/// How the consumer is made where it does not exist yet.
#[derive(Clone, Copy)]
struct Join {
    start: GroupStart,
    ack_wait: Option<Duration>,
    /// Nothing is read ahead: what is delivered is handed out.
    counted: bool,
}

/// What the task has pulled and nobody has taken yet.
#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    space: Notify,
    /// The reader is gone.
    left: Notify,
    /// Frames are left as they come: who reads has memory of his own for them.
    keep_frames: AtomicBool,
    /// Deliveries are counted: nothing is pulled that nobody waits for.
    counted: bool,
}

#[derive(Default)]
struct InboxState {
    deliveries: VecDeque<Delivery>,
    bytes: u64,
    /// How often the group was moved, and when it was made as it is pulled from now.
    generation: u64,
    born: i128,
    failed: Option<(ErrorKind, String)>,
    waker: Option<Waker>,
    /// A reader waits for the next delivery.
    is_wanted: bool,
    /// What a reader that is gone had in hand.
    left_over: Vec<AckHandle>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that may be put together now; None: nothing may be pulled.
    fn room(&self) -> Option<u64> {
        let state = self.lock();
        if self.counted && !(state.is_wanted && state.deliveries.is_empty()) {
            return None;
        }
        let is_full = state.bytes >= AHEAD_BYTES_MAX || state.deliveries.len() >= AHEAD_MSGS_MAX;
        (!is_full).then(|| AHEAD_BYTES_MAX - state.bytes)
    }

    fn put(&self, outcome: Result<Delivery>) {
        let mut state = self.lock();
        match outcome {
            Ok(delivery) => {
                state.bytes += delivery.size_bytes();
                state.is_wanted = false;
                state.deliveries.push_back(delivery);
            }
            Err(error) => state.failed = Some((error.kind(), error.to_string())),
        }
        state.wake();
    }

    /// From now on it is pulled from the group as it was made at `born`. Another than before: it
    /// was moved, and what came before means nothing any more.
    fn joined(&self, born: i128) {
        let mut state = self.lock();
        if state.born != born {
            state.deliveries.clear();
            state.bytes = 0;
            state.generation += 1;
            state.born = born;
            state.wake();
        }
    }
}

impl InboxState {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl StreamReader {
    pub(super) fn open(
        topic: &Arc<HubTopic>,
        group: &str,
        options: &SubscribeOptions,
    ) -> Result<Self> {
        let dead_letters = DeadLetters::new(topic, group, options)?;
        let counted = dead_letters.is_some();
        let join = Join { start: options.start, ack_wait: options.ack_wait, counted };
        let inbox = Arc::new(Inbox { counted, ..Inbox::default() });
        // "New" means after this call: the server has to know the group before the call returns.
        let first = match join.start {
            GroupStart::New => {
                Some(runtime::handle()?.block_on(subscribe(topic, group, join, false))?)
            }
            GroupStart::First => None,
        };
        let task = pump(Arc::clone(topic), group.to_owned(), join, first, Arc::clone(&inbox));
        topic.sweep_regularly()?;
        topic.shared.keep_task(runtime::handle()?.spawn(task));
        Ok(Self {
            inbox,
            current: VecDeque::new(),
            failed: None,
            acks: StreamAcks::new(options.ack_wait),
            missing: Missing::default(),
            generation: 0,
            done_before: 0,
            dead_letters,
            topic: Arc::clone(topic),
            group: group.to_owned(),
        })
    }

    pub(super) fn poll(
        &mut self,
        messages_max: usize,
        waker: &Waker,
        keep_frames: bool,
    ) -> Result<Vec<Message>> {
        self.inbox.keep_frames.store(keep_frames, Ordering::Relaxed);
        let mut messages = Vec::new();
        while messages.len() < messages_max {
            self.follow();
            if let Some(front) = self.current.front_mut() {
                match front.unpacking.next() {
                    Some(message) if front.block.is_open(stream_seq::place(message.seq).1) => {
                        messages.push(message);
                    }
                    Some(_) => {}
                    None => drop(self.current.pop_front()),
                }
                continue;
            }
            if let Some(failed) = &self.failed {
                if messages.is_empty() {
                    return Err(unreadable(&self.topic.name, failed.first_seq, &failed.error));
                }
                break;
            }
            let Some(delivery) = self.take(messages.is_empty(), waker)? else { break };
            self.unpack(delivery, keep_frames)?;
        }
        Ok(messages)
    }

    /// Forgets what was in hand when the group was moved.
    fn follow(&mut self) {
        let generation = self.inbox.lock().generation;
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        self.current.clear();
        self.failed = None;
        self.acks.forget();
        self.missing = Missing::default();
        self.done_before = 0;
    }

    /// What has come; None: nothing, and the waker is woken when something has.
    fn take(&mut self, may_wait: bool, waker: &Waker) -> Result<Option<Delivery>> {
        let mut state = self.inbox.lock();
        if state.generation != self.generation {
            drop(state);
            self.follow();
            state = self.inbox.lock();
        }
        let Some(delivery) = state.deliveries.pop_front() else {
            if may_wait {
                if let Some((kind, context)) = &state.failed {
                    return Err(Error::new(*kind, context.clone()));
                }
                state.waker = Some(waker.clone());
                state.is_wanted = true;
                self.inbox.space.notify_one();
            }
            return Ok(None);
        };
        state.bytes = state.bytes.saturating_sub(delivery.size_bytes());
        drop(state);
        self.inbox.space.notify_one();
        Ok(Some(delivery))
    }

    fn unpack(&mut self, delivery: Delivery, keep_frames: bool) -> Result<()> {
        self.count_missing(&delivery);
        let Delivery { incoming, id, rows, headers, stream_seq, deliveries, ack, hold, .. } =
            delivery;
        let block = match self.acks.delivered(stream_seq, &id, rows, ack)? {
            HandOut::Nothing => return Ok(()),
            HandOut::All(block) | HandOut::Rest(block) => block,
        };
        let mut first_seq = stream_seq::first_seq(stream_seq);
        if first_seq < self.done_before {
            let (stream, row) = stream_seq::place(self.done_before);
            block.ack_before(if stream == stream_seq { row } else { u32::MAX })?;
        }
        let hold = Arc::new(hold);
        let messages = incoming.and_then(|gathered| {
            let is_kept = keep_frames && gathered.rows() == 1;
            match if is_kept { gathered } else { gathered.join()?.into() } {
                Gathered::Joined(whole) if pack::is_pack(&whole) => {
                    let messages =
                        pack::decode(&whole, self.topic.shared.options.message_bytes_max)?;
                    let one = |InlineMessage { incoming, headers }| (incoming.into(), headers);
                    Ok(messages.into_iter().map(one).collect())
                }
                gathered => Ok(vec![(gathered, headers)]),
            }
        });
        let unpacked = messages.and_then(|messages| {
            let mut unpacked = Vec::with_capacity(messages.len());
            for (gathered, headers) in messages {
                let rows = u64::from(gathered.rows());
                let route = Route::Nats;
                let (headers, acker) = (Arc::new(headers), Acker::Stream(Arc::clone(&block)));
                let one = Block { first_seq, route, headers, acker, deliveries };
                let unpacking = Unpacking::new(&self.topic.name, one, gathered)?;
                let (block, hold) = (Arc::clone(&block), Arc::clone(&hold));
                unpacked.push(Unpacked { unpacking, block, _hold: hold });
                first_seq += rows;
            }
            Ok(unpacked)
        });
        match unpacked {
            Ok(unpacked) => {
                // Of them all but this one.
                if let Some(letters) = &self.dead_letters
                    && letters.are_due(deliveries.saturating_sub(1))
                {
                    return letters.send_on(&self.group, open_messages(unpacked), hold);
                }
                self.current.extend(unpacked);
            }
            Err(error) if block.is_done() => log::warn!("{id} is stepped over: {error}"),
            Err(error) => {
                let first_seq = stream_seq::first_seq(stream_seq);
                self.failed = Some(Failed { first_seq, error, block, _hold: hold });
            }
        }
        Ok(())
    }

    fn count_missing(&mut self, delivery: &Delivery) {
        let Delivery { id, rows, .. } = delivery;
        let (more, less) = self.missing.came(id, *rows, delivery.delivery_seq, delivery.postponed);
        let count = &self.topic.shared.counters.missing;
        if more > 0 {
            count.fetch_add(more, Ordering::Relaxed);
            log::warn!(
                "topic {:?}: {more} messages before {id} are not on the stream: lost by the \
                 server, given up by their publisher, stored later or in its queue",
                self.topic.name
            );
        }
        count.fetch_sub(less, Ordering::Relaxed);
    }

    pub(super) fn ack_through(&mut self, seq: u64) -> Result<()> {
        self.follow();
        self.done_before = self.done_before.max(seq.saturating_add(1));
        if self.failed.as_ref().is_some_and(|failed| failed.first_seq <= seq)
            && let Some(failed) = self.failed.take()
        {
            failed.block.ack_before(u32::MAX)?;
        }
        self.acks.ack_through(seq)
    }

    /// Moves the group; returns when this reader follows.
    pub(super) fn seek(&mut self, to: SeekTo) -> Result<()> {
        let group = self.group.clone();
        let (topic, inbox) = (Arc::clone(&self.topic), Arc::clone(&self.inbox));
        let done_before = runtime::handle()?.block_on(async {
            let (place, done_before) = place(&topic, to).await?;
            let deadline = Instant::now() + MOVE_WAIT;
            // A subscription makes its group in the background.
            while inbox.lock().born == 0 && Instant::now() < deadline {
                tokio::time::sleep(MOVE_PAUSE).await;
            }
            let born = topic.stream().await?.move_group(&group, place).await?;
            while inbox.lock().born != born {
                if Instant::now() > deadline {
                    let context = format!("group {group:?} was moved; the server does not say so");
                    return Err(Error::new(ErrorKind::NotConnected, context));
                }
                tokio::time::sleep(MOVE_PAUSE).await;
            }
            Ok(done_before)
        })?;
        self.follow();
        self.done_before = done_before;
        Ok(())
    }
}

/// What of a delivery is not done.
fn open_messages(unpacked: Vec<Unpacked>) -> Vec<Message> {
    let mut messages = Vec::new();
    for Unpacked { mut unpacking, block, .. } in unpacked {
        while let Some(message) = unpacking.next() {
            if block.is_open(stream_seq::place(message.seq).1) {
                messages.push(message);
            }
        }
    }
    messages
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.inbox.lock().left_over = self.acks.give_back();
        self.inbox.left.notify_one();
    }
}

/// Where a group goes on, and the seq before which everything is done.
async fn place(topic: &HubTopic, to: SeekTo) -> Result<(Place, u64)> {
    Ok(match to {
        SeekTo::First => (Place::First, 0),
        SeekTo::New => (Place::New, 0),
        SeekTo::Time { time_ms, inclusive } => (Place::TimeMs(time_ms + u64::from(!inclusive)), 0),
        SeekTo::Seq { seq, inclusive } => {
            let (stream_seq, row) = stream_seq::place(seq);
            let next = topic.stream().await?.next_message(stream_seq).await?;
            if !next.is_some_and(|(found, rows)| found == stream_seq && row < rows) {
                let nearest = next.map_or_else(
                    || "there is none after it".to_owned(),
                    |(found, _)| format!("the next is {}", stream_seq::first_seq(found)),
                );
                let context = format!("topic {:?} has no seq {seq}; {nearest}", topic.name);
                return Err(Error::new(ErrorKind::SeqNotFound, context));
            }
            (Place::Seq(stream_seq), seq + u64::from(!inclusive))
        }
    })
}

/// Pulls until the reader is gone, then gives back what it had; waits out a server that cannot be
/// reached.
async fn pump(
    topic: Arc<HubTopic>,
    group: String,
    join: Join,
    first: Option<JetSubscription>,
    inbox: Arc<Inbox>,
) {
    let mut pulled = first;
    tokio::select! {
        () = inbox.left.notified() => {}
        error = pull_always(&topic, &group, join, &mut pulled, &inbox) => {
            inbox.put(Err(error));
            inbox.left.notified().await;
        }
    }
    if let Some(subscription) = pulled {
        subscription.give_back().await;
    }
    let (left_over, deliveries) = {
        let mut state = inbox.lock();
        (std::mem::take(&mut state.left_over), std::mem::take(&mut state.deliveries))
    };
    let deliveries = deliveries.into_iter().map(|delivery| delivery.ack);
    for ack in left_over.into_iter().chain(deliveries) {
        // A closed connection has given it back already.
        let _ = ack.nak(Duration::ZERO);
    }
}

async fn pull_always(
    topic: &HubTopic,
    group: &str,
    join: Join,
    pulled: &mut Option<JetSubscription>,
    inbox: &Inbox,
) -> Error {
    let mut warned = false;
    let mut moved_at = None::<Instant>;
    while !topic.shared.is_closed() {
        let is_moving = moved_at.is_some_and(|since| since.elapsed() < MOVE_WAIT);
        let first = pulled.take_if(|_| moved_at.is_none() && !warned);
        let subscription = if let Some(first) = first {
            Ok(first)
        } else {
            // Taken only then: should this be given up, what it has read ahead is given back.
            let joined = subscribe(topic, group, join, is_moving).await;
            follow(pulled.take(), joined, pulled).await
        };
        let ended = match subscription {
            Ok(subscription) => {
                moved_at = None;
                inbox.joined(subscription.born());
                pull(topic, pulled.insert(subscription), inbox).await
            }
            Err(error) => error,
        };
        let is_moved = ended.kind() == ErrorKind::GroupNotFound;
        let is_passing = matches!(ended.kind(), ErrorKind::NotConnected | ErrorKind::Timeout);
        if is_moved {
            moved_at = moved_at.or_else(|| Some(Instant::now()));
        } else if !is_passing || topic.shared.is_cut_off() {
            return ended;
        }
        if !warned && !topic.shared.is_closed() {
            log::warn!("topic {:?}: subscription {group:?} waits: {ended}", topic.name);
        }
        warned = true;
        tokio::time::sleep(if is_moved { MOVE_PAUSE } else { RETRY_PAUSE }).await;
    }
    Error::new(ErrorKind::Closed, "the handle is closed")
}

/// Goes over to the group as it is now; keeps what was before where it is not there.
async fn follow(
    before: Option<JetSubscription>,
    joined: Result<JetSubscription>,
    pulled: &mut Option<JetSubscription>,
) -> Result<JetSubscription> {
    match (before, joined) {
        (before, Err(error)) => {
            *pulled = before;
            Err(error)
        }
        (Some(before), Ok(now)) if before.born() == now.born() => {
            before.give_back().await;
            Ok(now)
        }
        (_, Ok(now)) => Ok(now),
    }
}

/// Joins the group; makes it where it does not exist, unless it is being moved.
async fn subscribe(
    topic: &HubTopic,
    group: &str,
    join: Join,
    is_moving: bool,
) -> Result<JetSubscription> {
    let start = match join.start {
        GroupStart::First => Start::First,
        GroupStart::New => Start::New,
    };
    let start = (!is_moving).then_some(start);
    topic.stream().await?.subscribe(group, start, join.ack_wait, join.counted).await
}

async fn pull(topic: &HubTopic, subscription: &mut JetSubscription, inbox: &Inbox) -> Error {
    let limit_bytes = topic.shared.options.message_bytes_max;
    loop {
        if let Err(error) = topic.shared.check_open() {
            return error;
        }
        let Some(room) = inbox.room() else {
            tokio::select! {
                () = inbox.space.notified() => continue,
                error = subscription.wait() => return error,
            }
        };
        subscription.keep_frames(inbox.keep_frames.load(Ordering::Relaxed));
        match subscription.next(PULL_WAIT, limit_bytes, room).await {
            Ok(Some(delivery)) => inbox.put(Ok(delivery)),
            Ok(None) => {}
            Err(error) => return error,
        }
    }
}
