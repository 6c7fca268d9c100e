//! Which messages of a subscription are done.
//!
//! The cursor of a subscription group is the first message that is not done; acknowledgements above
//! it wait in memory until the gap closes. So after a crash everything that was not acknowledged
//! comes again, and a few that were acknowledged out of order may: at least once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::hybrid::runtime;
use crate::nats::AckHandle;
use crate::queue;

/// How a message tells its subscription that it is done.
#[derive(Clone)]
pub(super) enum Acker {
    Journal(Arc<GroupCursor>),
    Stream(Arc<BlockAck>),
}

impl Acker {
    /// Marks one message done. `row` is its place in its block of packed rows.
    pub(super) fn ack(&self, seq: u64, row: u32) -> Result<()> {
        match self {
            Self::Journal(cursor) => cursor.ack([seq]),
            Self::Stream(block) => block.ack(row),
        }
    }
}

/// The durable cursor of one subscription group, and what is done above it.
pub(super) struct GroupCursor {
    log: Arc<queue::Topic>,
    group: String,
    state: Mutex<CursorState>,
}

struct CursorState {
    next_seq: u64,
    above: BTreeSet<u64>,
}

impl GroupCursor {
    pub(super) fn new(log: Arc<queue::Topic>, group: &str, next_seq: u64) -> Self {
        let state = Mutex::new(CursorState { next_seq, above: BTreeSet::new() });
        Self { log, group: group.to_owned(), state }
    }

    /// Marks messages done; the cursor is saved when it moves.
    pub(super) fn ack(&self, seqs: impl IntoIterator<Item = u64>) -> Result<()> {
        // Held over the save, so that an older cursor is never written after a newer one.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for seq in seqs {
            if seq >= state.next_seq {
                state.above.insert(seq);
            }
        }
        let before = state.next_seq;
        let mut next_seq = before;
        while state.above.remove(&next_seq) {
            next_seq += 1;
        }
        self.move_to(&mut state, before, next_seq)
    }

    /// Marks everything up to and including `seq` done.
    pub(super) fn ack_through(&self, seq: u64) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.next_seq;
        let mut next_seq = before.max(seq.saturating_add(1));
        state.above = state.above.split_off(&next_seq);
        while state.above.remove(&next_seq) {
            next_seq += 1;
        }
        self.move_to(&mut state, before, next_seq)
    }

    fn move_to(&self, state: &mut CursorState, before: u64, next_seq: u64) -> Result<()> {
        if next_seq > before {
            self.log.set_cursor(&self.group, next_seq)?;
            state.next_seq = next_seq;
        }
        Ok(())
    }
}

/// The acknowledgement of one delivery of the stream: sent when all its rows are done.
pub(super) struct BlockAck {
    handle: AckHandle,
    rows_open: Mutex<BTreeSet<u32>>,
}

impl BlockAck {
    pub(super) fn new(handle: AckHandle, rows: u32) -> Self {
        Self { handle, rows_open: Mutex::new((0..rows).collect()) }
    }

    fn ack(&self, row: u32) -> Result<()> {
        let mut open = self.rows_open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.remove(&row) && open.is_empty() { self.send() } else { Ok(()) }
    }

    fn is_done(&self) -> bool {
        self.rows_open.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn ack_all(&self) -> Result<()> {
        let mut open = self.rows_open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_empty() {
            return Ok(());
        }
        open.clear();
        self.send()
    }

    /// Sends without waiting for the server's confirmation: a lost one means one more delivery.
    fn send(&self) -> Result<()> {
        let handle = self.handle.clone();
        runtime::handle()?.spawn(async move {
            if let Err(error) = handle.ack().await {
                log::warn!(
                    "an acknowledgement was not confirmed, the message may come again: {error}"
                );
            }
        });
        Ok(())
    }
}

/// The unacknowledged deliveries of a stream subscription, by stream sequence.
#[derive(Default)]
pub(super) struct StreamAcks {
    open: BTreeMap<u64, Arc<BlockAck>>,
}

impl StreamAcks {
    pub(super) fn delivered(&mut self, stream_seq: u64, block: &Arc<BlockAck>) {
        while let Some(oldest) = self.open.first_entry()
            && oldest.get().is_done()
        {
            oldest.remove();
        }
        self.open.insert(stream_seq, Arc::clone(block));
    }

    pub(super) fn ack_through(&mut self, stream_seq: u64) -> Result<()> {
        let above = self.open.split_off(&stream_seq.saturating_add(1));
        for block in std::mem::replace(&mut self.open, above).into_values() {
            block.ack_all()?;
        }
        Ok(())
    }
}
