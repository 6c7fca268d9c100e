//! Entries -> messages, in order, large ones prefetched from the stream.
//!
//! A subscriber has no thread of its own. [`Subscriber::poll`] reads ahead in the journal, starts
//! the fetches of what it finds there, and hands out what is ready at the front. When nothing is,
//! it registers the caller's waker with whatever the front waits for, looks once more (so no
//! wake-up is lost), and returns nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Headers, Incoming, Layout, MessageId};
use crate::hybrid::acks::{Acker, GroupCursor};
use crate::hybrid::entry::{self, Entry, StreamEntry};
use crate::hybrid::inline::InlineMessage;
use crate::hybrid::options::Start;
use crate::hybrid::runtime;
use crate::hybrid::stream_subscribe::StreamReader;
use crate::hybrid::topic::HubTopic;
use crate::name::validate_name;
use crate::queue::{self, Record};
use crate::router::Route;

/// Payload bytes read ahead of the caller; at least one message is, whatever its size.
pub(super) const PREFETCH_BYTES_MAX: u64 = 64 << 20;
/// Entries read ahead of the caller.
pub(super) const PREFETCH_ENTRIES_MAX: usize = 1024;
/// Journal bytes of one read.
const READ_BYTES_MAX: usize = 4 << 20;
/// Between attempts to fetch from a server that does not answer.
const FETCH_RETRY_PAUSE: Duration = Duration::from_millis(250);

/// A message as received.
pub struct Message {
    /// Its topic.
    pub topic: Arc<str>,
    /// Position in the topic.
    pub seq: u64,
    /// The route it came by.
    pub route: Route,
    /// Its id.
    pub id: MessageId,
    /// The publisher's headers.
    pub headers: Arc<Headers>,
    /// dtype and shape; None for plain bytes.
    pub layout: Option<Arc<Layout>>,
    /// The bytes, 64-byte aligned; of packed rows a slice of the block they came in.
    pub payload: Bytes,
    /// Frames it came in; packed rows share theirs.
    pub frames_count: u32,
    /// Its place in its block of packed rows; 0 for a message of its own.
    row: u32,
    /// The payload of the whole block.
    block: Bytes,
    acker: Acker,
}

impl Message {
    /// The payloads of this message and the `count - 1` after it in its block, without a copy; None
    /// where the block ends before.
    pub fn payloads_from_here(&self, count: usize) -> Option<Bytes> {
        let start = self.payload.len().checked_mul(self.row as usize)?;
        let end = self.payload.len().checked_mul(count)?.checked_add(start)?;
        (end <= self.block.len()).then(|| self.block.slice(start..end))
    }

    /// Marks the message done.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] or [`ErrorKind::Closed`] when the cursor cannot be saved.
    pub fn ack(&self) -> Result<()> {
        self.acker.ack(self.seq, self.row)
    }

    /// Marks several messages done; of one subscription, the cursor is saved once.
    ///
    /// # Errors
    /// As [`Message::ack`].
    pub fn ack_all<'a>(messages: impl IntoIterator<Item = &'a Self>) -> Result<()> {
        let mut seqs: Vec<u64> = Vec::new();
        let mut cursor: Option<&Arc<GroupCursor>> = None;
        for message in messages {
            match &message.acker {
                Acker::Journal(own) if cursor.is_none_or(|first| Arc::ptr_eq(first, own)) => {
                    cursor = Some(own);
                    seqs.push(message.seq);
                }
                other => other.ack(message.seq, message.row)?,
            }
        }
        cursor.map_or(Ok(()), |cursor| cursor.ack(seqs))
    }
}

/// A block of messages that came as one: a message, or packed rows.
pub(super) struct Block {
    pub(super) first_seq: u64,
    /// Rows of one block have consecutive seqs in a journal, and share their manifest's in a
    /// stream.
    pub(super) seq_step: u64,
    pub(super) route: Route,
    pub(super) incoming: Incoming,
    pub(super) headers: Arc<Headers>,
    pub(super) acker: Acker,
}

/// A block that is being handed out, and how far.
pub(super) struct Unpacking {
    topic: Arc<str>,
    block: Block,
    layout: Option<Arc<Layout>>,
    row_bytes: usize,
    next_row: u32,
}

impl Unpacking {
    pub(super) fn new(topic: &Arc<str>, block: Block) -> Result<Self> {
        let rows = block.incoming.rows;
        let layout = match &block.incoming.layout {
            Some(layout) if rows > 1 => {
                let row_shape = layout.shape().get(1..).unwrap_or_default().to_vec();
                Some(Arc::new(Layout::new(layout.dtype(), layout.itemsize(), row_shape)?))
            }
            layout => layout.clone().map(Arc::new),
        };
        let row_bytes = block.incoming.payload.len() / (rows.max(1) as usize);
        Ok(Self { topic: Arc::clone(topic), block, layout, row_bytes, next_row: 0 })
    }

    /// The next message; None when the block is used up.
    pub(super) fn next(&mut self) -> Option<Message> {
        let incoming = &self.block.incoming;
        let row = self.next_row;
        if row >= incoming.rows {
            return None;
        }
        self.next_row += 1;
        let seq = self.block.first_seq + self.block.seq_step * u64::from(row);
        let start = self.row_bytes * (row as usize);
        let id = MessageId { seq: incoming.id.seq + u64::from(row), ..incoming.id };
        Some(Message {
            topic: Arc::clone(&self.topic),
            seq,
            route: self.block.route,
            id,
            headers: Arc::clone(&self.block.headers),
            layout: self.layout.clone(),
            payload: incoming.payload.slice(start..start + self.row_bytes),
            frames_count: incoming.frames_count,
            row,
            block: incoming.payload.clone(),
            acker: self.block.acker.clone(),
        })
    }
}

/// Reads one topic for one subscription group.
pub struct Subscriber {
    topic: Arc<HubTopic>,
    group: String,
    reader: Reader,
    closed: bool,
}

enum Reader {
    Journal(JournalReader),
    Stream(StreamReader),
}

impl Subscriber {
    /// Joins a subscription group; makes it where it does not exist yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Config`] when the group already has a subscriber in
    /// this process, [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn open(topic: &Arc<HubTopic>, group: &str, start: Start) -> Result<Self> {
        topic.shared.check_open()?;
        validate_name("subscription group", group)?;
        topic.claim_group(group)?;
        let reader = match &topic.log {
            Some(log) => JournalReader::open(topic, log, group, start).map(Reader::Journal),
            None => StreamReader::open(topic, group, start).map(Reader::Stream),
        };
        match reader {
            Ok(reader) => {
                let group = group.to_owned();
                Ok(Self { topic: Arc::clone(topic), group, reader, closed: false })
            }
            Err(error) => {
                topic.release_group(group);
                Err(error)
            }
        }
    }

    /// Hands out up to `messages_max` messages that are ready, in order. None are: the waker is
    /// woken when it is worth looking again.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Incomplete`] for a message that cannot be read: it is
    /// not stepped over, `ack_through` its seq to do so. [`ErrorKind::Closed`],
    /// [`ErrorKind::Storage`].
    pub fn poll(&mut self, messages_max: usize, waker: &Waker) -> Result<Vec<Message>> {
        if self.closed {
            return Err(Error::new(ErrorKind::Closed, "the subscription is closed"));
        }
        self.topic.shared.check_open()?;
        match &mut self.reader {
            Reader::Journal(reader) => reader.poll(messages_max, waker),
            Reader::Stream(reader) => reader.poll(messages_max, waker),
        }
    }

    /// Marks everything up to and including `seq` done, delivered or not.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] or [`ErrorKind::Storage`].
    pub fn ack_through(&mut self, seq: u64) -> Result<()> {
        if self.closed {
            return Err(Error::new(ErrorKind::Closed, "the subscription is closed"));
        }
        match &mut self.reader {
            Reader::Journal(reader) => reader.ack_through(seq),
            Reader::Stream(reader) => reader.ack_through(seq),
        }
    }

    /// Ends the subscription; the group and its cursor stay. A second call does nothing.
    pub fn close(&mut self) {
        if !self.closed {
            self.closed = true;
            self.topic.release_group(&self.group);
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.close();
    }
}

/// One place in the read-ahead.
enum Slot {
    Ready(Box<Unpacking>),
    Fetching { first_seq: u64, last_seq: u64, payload_bytes: u64, fetch: Arc<Fetch> },
}

/// A large message on its way from the stream.
#[derive(Default)]
struct Fetch {
    state: Mutex<FetchState>,
}

#[derive(Default)]
struct FetchState {
    outcome: Option<Result<(Incoming, Headers)>>,
    waker: Option<Waker>,
}

struct JournalReader {
    topic: Arc<HubTopic>,
    log: Arc<queue::Topic>,
    cursor: Arc<GroupCursor>,
    /// The next entry to read ahead.
    next_seq: u64,
    /// Messages before this seq are done by `ack_through` and not handed out.
    skip_before: u64,
    slots: VecDeque<Slot>,
    slots_bytes: u64,
}

impl JournalReader {
    fn open(
        topic: &Arc<HubTopic>,
        log: &Arc<queue::Topic>,
        group: &str,
        start: Start,
    ) -> Result<Self> {
        let next_seq = match log.cursor(group)? {
            Some(saved) => saved,
            None => {
                let first = match start {
                    Start::First => log.first_seq(),
                    Start::New => log.next_seq(),
                };
                // Saved at once, so that retention knows about the group.
                log.set_cursor(group, first)?;
                first
            }
        };
        Ok(Self {
            topic: Arc::clone(topic),
            log: Arc::clone(log),
            cursor: Arc::new(GroupCursor::new(Arc::clone(log), group, next_seq)),
            next_seq,
            skip_before: next_seq,
            slots: VecDeque::new(),
            slots_bytes: 0,
        })
    }

    fn poll(&mut self, messages_max: usize, waker: &Waker) -> Result<Vec<Message>> {
        let ready = self.take_ready(messages_max)?;
        if !ready.is_empty() {
            return Ok(ready);
        }
        match self.slots.front() {
            Some(Slot::Fetching { fetch, .. }) => {
                let mut state = fetch.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.waker = Some(waker.clone());
            }
            _ => self.log.register(waker),
        }
        // What came between the look and the registration would wake nobody: look again.
        self.take_ready(messages_max)
    }

    fn take_ready(&mut self, messages_max: usize) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        if let Err(error) = self.read_ahead()
            && self.slots.is_empty()
        {
            return Err(error);
        }
        while messages.len() < messages_max {
            if !self.settle_front(messages.is_empty())? {
                break;
            }
            let Some(Slot::Ready(front)) = self.slots.front_mut() else { break };
            match front.next() {
                Some(message) if message.seq < self.skip_before => {}
                Some(message) => messages.push(message),
                None => self.drop_front(),
            }
        }
        Ok(messages)
    }

    /// Turns a finished fetch at the front into a block. False: there is nothing ready at the
    /// front.
    fn settle_front(&mut self, may_fail: bool) -> Result<bool> {
        let (first_seq, fetch) = match self.slots.front() {
            None => return Ok(false),
            Some(Slot::Ready(_)) => return Ok(true),
            Some(Slot::Fetching { first_seq, fetch, .. }) => (*first_seq, Arc::clone(fetch)),
        };
        let mut state = fetch.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.outcome.take() {
            None => Ok(false),
            Some(Ok((incoming, headers))) => {
                let block = self.block(Route::Nats, first_seq, incoming, headers);
                let unpacking = Unpacking::new(&self.topic.name, block)?;
                if let Some(front) = self.slots.front_mut() {
                    *front = Slot::Ready(Box::new(unpacking));
                }
                Ok(true)
            }
            Some(Err(error)) => {
                // Kept, so that the next call says the same: nothing is stepped over in silence.
                let shown = Error::new(
                    error.kind(),
                    format!("topic {:?}, seq {first_seq}: {error}", self.topic.name),
                );
                state.outcome = Some(Err(error));
                if may_fail { Err(shown) } else { Ok(false) }
            }
        }
    }

    fn drop_front(&mut self) {
        if let Some(slot) = self.slots.pop_front() {
            self.slots_bytes = self.slots_bytes.saturating_sub(slot.bytes());
        }
    }

    /// Reads entries until the budget is used, the journal ends, or an open intent is in the way.
    fn read_ahead(&mut self) -> Result<()> {
        while self.slots.len() < PREFETCH_ENTRIES_MAX && self.slots_bytes < PREFETCH_BYTES_MAX {
            if self.next_seq >= self.log.next_seq() {
                return Ok(());
            }
            let records_max = PREFETCH_ENTRIES_MAX - self.slots.len();
            let records = self.log.read(self.next_seq, records_max, READ_BYTES_MAX)?;
            if records.is_empty() {
                return Ok(());
            }
            for record in records {
                if record.open || self.slots_bytes >= PREFETCH_BYTES_MAX {
                    return Ok(());
                }
                self.take_record(&record)?;
            }
            // One read a call is enough to go on with; the rest is read when these are handed out.
            if !self.slots.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take_record(&mut self, record: &Record) -> Result<()> {
        if record.first_seq > self.next_seq {
            let oldest = self.log.first_seq();
            if oldest < record.first_seq {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "topic {:?}: seqs {} to {} are missing from the log",
                        self.topic.name,
                        self.next_seq,
                        record.first_seq - 1
                    ),
                ));
            }
            log::warn!(
                "topic {:?}: retention removed seqs {} to {} before they were read",
                self.topic.name,
                self.next_seq,
                record.first_seq - 1
            );
        }
        let after = record.first_seq + u64::from(record.span);
        let limit_bytes = self.topic.shared.options.message_bytes_max;
        let entry = entry::decode(&record.value, limit_bytes).map_err(|error| {
            let context = format!("topic {:?}, seq {}", self.topic.name, record.first_seq);
            Error::with_source(error.kind(), context, error)
        })?;
        match entry {
            Entry::Inline(messages) => {
                let mut first_seq = record.first_seq;
                for InlineMessage { incoming, headers } in messages {
                    let rows = incoming.rows;
                    let block = self.block(Route::Queue, first_seq, incoming, headers);
                    let unpacking = Unpacking::new(&self.topic.name, block)?;
                    self.push(Slot::Ready(Box::new(unpacking)));
                    first_seq += u64::from(rows);
                }
            }
            Entry::Stream(entry) => {
                let first_seq = record.first_seq;
                let payload_bytes = entry.payload_bytes;
                let fetch = self.fetch(entry)?;
                self.push(Slot::Fetching { first_seq, last_seq: after - 1, payload_bytes, fetch });
            }
            Entry::Aborted => self.cursor.ack(record.first_seq..after)?,
        }
        self.next_seq = after;
        Ok(())
    }

    fn push(&mut self, slot: Slot) {
        self.slots_bytes += slot.bytes();
        self.slots.push_back(slot);
    }

    fn block(&self, route: Route, first_seq: u64, incoming: Incoming, headers: Headers) -> Block {
        let acker = Acker::Journal(Arc::clone(&self.cursor));
        Block { first_seq, seq_step: 1, route, incoming, headers: Arc::new(headers), acker }
    }

    fn fetch(&self, entry: StreamEntry) -> Result<Arc<Fetch>> {
        let fetch = Arc::new(Fetch::default());
        let (topic, result) = (Arc::clone(&self.topic), Arc::clone(&fetch));
        runtime::handle()?.spawn(async move {
            let outcome = fetch_patiently(&topic, &entry).await;
            let mut state = result.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.outcome = Some(outcome);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        });
        Ok(fetch)
    }

    fn ack_through(&mut self, seq: u64) -> Result<()> {
        self.cursor.ack_through(seq)?;
        self.skip_before = self.skip_before.max(seq.saturating_add(1));
        self.next_seq = self.next_seq.max(self.skip_before);
        // A message that cannot be fetched would stay at the front for ever.
        while let Some(Slot::Fetching { last_seq, .. }) = self.slots.front()
            && *last_seq < self.skip_before
        {
            self.drop_front();
        }
        Ok(())
    }
}

impl Slot {
    fn bytes(&self) -> u64 {
        match self {
            Self::Ready(unpacking) => unpacking.block.incoming.payload.len() as u64,
            Self::Fetching { payload_bytes, .. } => *payload_bytes,
        }
    }
}

/// Fetches a group; waits out a server that cannot be reached, for as long as the hub is open.
async fn fetch_patiently(topic: &HubTopic, entry: &StreamEntry) -> Result<(Incoming, Headers)> {
    let limit_bytes = topic.shared.options.message_bytes_max;
    let mut warned = false;
    loop {
        topic.shared.check_open()?;
        let outcome = match topic.stream().await {
            Ok(stream) => stream.fetch(&entry.id, entry.manifest_seq, limit_bytes).await,
            Err(error) => Err(error),
        };
        match outcome {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::Timeout)
                    && topic.shared.nats.is_some() =>
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
