//! How a message tells its subscription what became of it.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::frame::MessageId;
use crate::hybrid::attach::Link;
use crate::hybrid::repeats::Done;
use crate::hybrid::stream_seq;
use crate::nats::AckHandle;
use crate::queue::Group;

/// Messages of a stream that are open until the done ones among them are looked for.
const SWEEP_MIN: usize = 1024;

/// How a message tells its subscription what became of it.
#[derive(Clone)]
pub(super) enum Acker {
    Journal(Arc<JournalAcker>),
    Stream(Arc<BlockAck>),
    Remote(Arc<Link>),
}

/// The group of a journal's messages, and when they are due again.
pub(super) struct JournalAcker {
    pub(super) group: Group,
    pub(super) ack_wait: Option<Duration>,
}

impl Acker {
    /// Marks one message done.
    pub(super) fn ack(&self, seq: u64) -> Result<()> {
        match self {
            Self::Journal(own) => own.group.ack(iter::once(seq..seq + 1)),
            Self::Stream(block) => block.ack(stream_seq::place(seq).1),
            Self::Remote(link) => link.ack(std::slice::from_ref(&(seq..seq + 1))),
        }
    }

    /// Gives one message back; of packed rows in a stream, all of them.
    pub(super) fn nak(&self, seq: u64, delay: Duration) -> Result<()> {
        match self {
            Self::Journal(own) => {
                own.group.nak(iter::once(seq..seq + 1), delay);
                Ok(())
            }
            Self::Stream(block) => block.nak(delay),
            Self::Remote(link) => link.nak(seq..seq + 1, delay),
        }
    }

    /// Begins the time anew after which the message is due again.
    pub(super) fn in_progress(&self, seq: u64) -> Result<()> {
        match self {
            Self::Journal(own) => {
                own.group.extend(iter::once(seq..seq + 1), own.ack_wait);
                Ok(())
            }
            Self::Stream(block) => block.in_progress(),
            Self::Remote(link) => link.in_progress(seq..seq + 1),
        }
    }

    /// Marks one message as one that nobody will be done with: it does not come again.
    pub(super) fn term(&self, seq: u64) -> Result<()> {
        match self {
            Self::Stream(block) => block.term(stream_seq::place(seq).1),
            Self::Journal(_) | Self::Remote(_) => self.ack(seq),
        }
    }

    /// Marks messages done that share ranges.
    pub(super) fn ack_ranges(&self, seqs: Vec<Range<u64>>) -> Result<()> {
        match self {
            Self::Journal(own) => own.group.ack(seqs),
            Self::Remote(link) => link.ack(&seqs),
            // Its messages are marked one by one.
            Self::Stream(_) => Ok(()),
        }
    }

    /// Both take ranges of seqs, and of the same subscription.
    pub(super) fn shares_ranges(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Journal(one), Self::Journal(other)) => Arc::ptr_eq(one, other),
            (Self::Remote(one), Self::Remote(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// The acknowledgement of one message of the stream: sent when all that it holds is done.
pub(super) struct BlockAck {
    id: MessageId,
    rows: u32,
    ack_wait: Option<Duration>,
    state: Mutex<BlockState>,
}

struct BlockState {
    /// Of the newest delivery.
    handle: AckHandle,
    open: OpenRows,
    given_back: bool,
    /// When the server delivers it again by right; None: never.
    due: Option<Instant>,
}

/// Which messages of a delivery are not done yet, a bit each.
struct OpenRows {
    words: Vec<u64>,
    count: u32,
}

impl OpenRows {
    fn new(count: u32) -> Self {
        let mut words = vec![u64::MAX; count.div_ceil(u64::BITS) as usize];
        if let (Some(last), 1..) = (words.last_mut(), count % u64::BITS) {
            *last = (1 << (count % u64::BITS)) - 1;
        }
        Self { words, count }
    }

    /// At least as many as there are rows.
    fn rows(&self) -> u32 {
        u32::try_from(self.words.len()).map_or(u32::MAX, |words| words.saturating_mul(u64::BITS))
    }

    fn contains(&self, row: u32) -> bool {
        let word = self.words.get((row / u64::BITS) as usize);
        word.is_some_and(|word| word & (1 << (row % u64::BITS)) != 0)
    }

    /// True when this was the last one.
    fn done(&mut self, row: u32) -> bool {
        let bit = 1 << (row % u64::BITS);
        match self.words.get_mut((row / u64::BITS) as usize) {
            Some(word) if self.count > 0 && *word & bit != 0 => {
                *word &= !bit;
                self.count -= 1;
                self.count == 0
            }
            _ => false,
        }
    }
}

impl BlockAck {
    fn new(id: MessageId, rows: u32, handle: AckHandle, ack_wait: Option<Duration>) -> Self {
        let due = due(ack_wait);
        let state = BlockState { handle, open: OpenRows::new(rows), given_back: false, due };
        Self { id, rows, ack_wait, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, BlockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes another delivery of the same message; true when it is to be handed out again.
    fn again(&self, handle: AckHandle) -> Result<bool> {
        let mut state = self.lock();
        state.handle = handle;
        if state.open.count == 0 {
            return state.handle.ack().map(|()| false);
        }
        let is_due = state.given_back || state.due.is_some_and(|due| due <= Instant::now());
        if is_due {
            state.given_back = false;
            state.due = due(self.ack_wait);
        }
        Ok(is_due)
    }

    fn ack(&self, row: u32) -> Result<()> {
        let mut state = self.lock();
        if state.open.done(row) { state.handle.ack() } else { Ok(()) }
    }

    pub(super) fn is_done(&self) -> bool {
        self.lock().open.count == 0
    }

    pub(super) fn is_open(&self, row: u32) -> bool {
        self.lock().open.contains(row)
    }

    /// Marks the messages before `row` done.
    pub(super) fn ack_before(&self, row: u32) -> Result<()> {
        let mut state = self.lock();
        let mut last = false;
        for row in 0..row.min(state.open.rows()) {
            last |= state.open.done(row);
        }
        if last { state.handle.ack() } else { Ok(()) }
    }

    fn nak(&self, delay: Duration) -> Result<()> {
        let mut state = self.lock();
        if state.open.count == 0 || state.given_back {
            return Ok(());
        }
        state.given_back = true;
        state.handle.nak(delay)
    }

    /// What it shares a message of the stream with is not touched.
    fn term(&self, row: u32) -> Result<()> {
        let mut state = self.lock();
        let is_last = state.open.done(row);
        if !is_last {
            return Ok(());
        }
        if self.rows == 1 { state.handle.term() } else { state.handle.ack() }
    }

    /// Its group has been moved: what becomes of this delivery means nothing to the server.
    fn forget(&self) {
        self.lock().open = OpenRows::new(0);
    }

    fn in_progress(&self) -> Result<()> {
        let mut state = self.lock();
        if state.open.count == 0 || state.given_back {
            return Ok(());
        }
        state.due = due(self.ack_wait);
        state.handle.in_progress()
    }
}

/// The server's wait began earlier, when it sent the message or was last told that it is held (a
/// third of the wait ago at most): what it repeats in the second half is due.
fn due(ack_wait: Option<Duration>) -> Option<Instant> {
    ack_wait.and_then(|wait| Instant::now().checked_add(wait / 2))
}

/// What a stream subscription has handed out: what is not acknowledged, by stream sequence, and
/// what is done.
pub(super) struct StreamAcks {
    open: BTreeMap<u64, Arc<BlockAck>>,
    done: Done,
    ack_wait: Option<Duration>,
    /// How many may be open until the done ones among them are looked for.
    sweep_at: usize,
}

/// What to hand out of a delivery.
pub(super) enum HandOut {
    Nothing,
    All(Arc<BlockAck>),
    /// It was handed out before: what is not done of it.
    Rest(Arc<BlockAck>),
}

impl StreamAcks {
    pub(super) fn new(ack_wait: Option<Duration>) -> Self {
        Self { open: BTreeMap::new(), done: Done::default(), ack_wait, sweep_at: SWEEP_MIN }
    }

    /// Takes a delivery. What is done is acknowledged again and not handed out, nor is what
    /// somebody here has in hand.
    pub(super) fn delivered(
        &mut self,
        stream_seq: u64,
        id: &MessageId,
        rows: u32,
        handle: AckHandle,
    ) -> Result<HandOut> {
        if let Some(block) = self.open.get(&stream_seq) {
            let is_due = block.again(handle)?;
            return Ok(if is_due { HandOut::Rest(Arc::clone(block)) } else { HandOut::Nothing });
        }
        self.forget_done();
        if self.done.contains(id, rows) {
            handle.ack()?;
            return Ok(HandOut::Nothing);
        }
        if self.open.len() >= self.sweep_at {
            self.sweep();
        }
        let block = Arc::new(BlockAck::new(*id, rows, handle, self.ack_wait));
        self.open.insert(stream_seq, Arc::clone(&block));
        Ok(HandOut::All(block))
    }

    /// The oldest ones, as far as they are done: mostly all.
    fn forget_done(&mut self) {
        while let Some(oldest) = self.open.first_entry()
            && oldest.get().is_done()
        {
            let block = oldest.remove();
            self.done.insert(&block.id, block.rows);
        }
    }

    /// Lets go of what is done, and of what was given back: others may get it.
    fn sweep(&mut self) {
        let done = &mut self.done;
        self.open.retain(|_, block| {
            let state = block.lock();
            if state.open.count == 0 {
                done.insert(&block.id, block.rows);
            }
            state.open.count > 0 && !state.given_back
        });
        self.sweep_at = SWEEP_MIN.max(2 * self.open.len());
    }

    pub(super) fn ack_through(&mut self, seq: u64) -> Result<()> {
        let (stream_seq, row) = stream_seq::place(seq);
        let above = self.open.split_off(&stream_seq);
        for block in std::mem::replace(&mut self.open, above).into_values() {
            block.ack_before(u32::MAX)?;
        }
        self.open.get(&stream_seq).map_or(Ok(()), |block| block.ack_before(row + 1))
    }

    /// What is open is not this subscription's any more; gives how to give it back.
    pub(super) fn give_back(&mut self) -> Vec<AckHandle> {
        let open = std::mem::take(&mut self.open).into_values();
        open.filter_map(|block| {
            let mut state = block.lock();
            if state.open.count == 0 || std::mem::replace(&mut state.given_back, true) {
                return None;
            }
            Some(state.handle.clone())
        })
        .collect()
    }

    /// The group has been moved: what was handed out and what was done says nothing now.
    pub(super) fn forget(&mut self) {
        for block in std::mem::take(&mut self.open).into_values() {
            block.forget();
        }
        self.done = Done::default();
    }
}
