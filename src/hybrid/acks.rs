//! How a message tells its subscription what became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::hybrid::attach::Link;
use crate::hybrid::runtime;
use crate::nats::AckHandle;
use crate::queue::Group;

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
    /// Marks one message done. `row` is its place in its block of packed rows.
    pub(super) fn ack(&self, seq: u64, row: u32) -> Result<()> {
        match self {
            Self::Journal(own) => own.group.ack(iter::once(seq..seq + 1)),
            Self::Stream(block) => block.ack(row),
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
        spawn(async move { handle.ack().await })
    }

    fn nak(&self, delay: Duration) -> Result<()> {
        self.rows_open.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let handle = self.handle.clone();
        spawn(async move { handle.nak(delay).await })
    }

    fn in_progress(&self) -> Result<()> {
        let handle = self.handle.clone();
        spawn(async move { handle.in_progress().await })
    }
}

fn spawn(sending: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    runtime::handle()?.spawn(async move {
        if let Err(error) = sending.await {
            log::warn!("an acknowledgement was not confirmed, the message may come again: {error}");
        }
    });
    Ok(())
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
