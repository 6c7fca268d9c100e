//! Messages as received, and the subscriber that hands them out.
//!
//! A subscriber has no thread of its own. [`Subscriber::poll`] reads ahead, starts the fetches of
//! what it finds in the stream, and hands out what is ready at the front. When nothing is, it
//! registers the caller's waker with whatever the front waits for, looks again until that stays the
//! same (so no wake-up is lost), and returns nothing.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Frames, Gathered, Header, Headers, Incoming, Layout, MessageId};
use crate::hybrid::acks::{Acker, JournalAcker};
use crate::hybrid::attach::RemoteReader;
use crate::hybrid::journal::JournalReader;
use crate::hybrid::options::SubscribeOptions;
use crate::hybrid::stream_subscribe::StreamReader;
use crate::hybrid::topic::HubTopic;
use crate::queue::Group;
use crate::router::Route;

/// Payload bytes read ahead of the caller; at least one message is, whatever its size.
pub(super) const PREFETCH_BYTES_MAX: u64 = 64 << 20;
/// Entries read ahead of the caller.
pub(super) const PREFETCH_ENTRIES_MAX: usize = 1024;

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
    /// Frames it came in; packed rows share theirs.
    pub frames_count: u32,
    /// How often it was delivered to the group, this time included. A process that ended without
    /// an acknowledgement is counted where `deliveries_max` was given.
    pub deliveries: u32,
    /// Its place in its block of packed rows; 0 for a message of its own.
    row: u32,
    body: Body,
    acker: Acker,
}

/// What a message's payload is taken from.
enum Body {
    Joined {
        payload: Bytes,
        /// The payload of the whole block.
        block: Bytes,
    },
    /// Put together when it is asked for.
    Frames { frames: Arc<Frames>, joined: OnceLock<Bytes> },
}

impl Message {
    /// Payload bytes.
    pub fn size_bytes(&self) -> u64 {
        match &self.body {
            Body::Joined { payload, .. } => payload.len() as u64,
            Body::Frames { frames, .. } => frames.header().total_bytes,
        }
    }

    /// The bytes, 64-byte aligned; of packed rows a slice of the block they came in. Frames that
    /// were kept are put together by the first call.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for frames that were kept and are damaged.
    pub fn payload(&self) -> Result<&Bytes> {
        match &self.body {
            Body::Joined { payload, .. } => Ok(payload),
            Body::Frames { frames, joined } => match joined.get() {
                Some(payload) => Ok(payload),
                None => {
                    let payload = frames.join().map_err(|error| self.in_place(&error))?.payload;
                    Ok(joined.get_or_init(|| payload))
                }
            },
        }
    }

    /// Writes the bytes to memory of exactly their size: one copy, or decoded straight to it where
    /// frames were kept. After an error it holds anything.
    ///
    /// # Errors
    /// As [`Message::payload`]; [`ErrorKind::TooLarge`] for another size.
    pub fn copy_into(&self, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 != self.size_bytes() {
            let (have, need) = (out.len(), self.size_bytes());
            let context = format!("{have} bytes for a message of {need} bytes");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        match &self.body {
            Body::Frames { frames, joined } if joined.get().is_none() => {
                frames.decode_into(out).map_err(|error| self.in_place(&error))
            }
            _ => {
                out.copy_from_slice(self.payload()?);
                Ok(())
            }
        }
    }

    pub(super) fn acker(&self) -> &Acker {
        &self.acker
    }

    fn in_place(&self, error: &Error) -> Error {
        unreadable(&self.topic, self.seq, error)
    }

    /// The payloads of this message and the `count - 1` after it in its block, without a copy; None
    /// where the block ends before.
    pub fn payloads_from_here(&self, count: usize) -> Option<Bytes> {
        let Body::Joined { payload, block } = &self.body else { return None };
        let start = payload.len().checked_mul(self.row as usize)?;
        let end = payload.len().checked_mul(count)?.checked_add(start)?;
        (end <= block.len()).then(|| block.slice(start..end))
    }

    /// Marks the message done.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] or [`ErrorKind::Closed`] when the cursor cannot be saved.
    pub fn ack(&self) -> Result<()> {
        self.acker.ack(self.seq)
    }

    /// Gives the message back: it is delivered again after `delay`, to any subscriber of the group.
    /// In a stream, packed rows come again together.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn nak(&self, delay: Duration) -> Result<()> {
        self.acker.nak(self.seq, delay)
    }

    /// Begins the time anew after which the message is delivered again.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn in_progress(&self) -> Result<()> {
        self.acker.in_progress(self.seq)
    }

    /// Marks the message as one that nobody will be done with: it is not delivered to the group
    /// again, as after an acknowledgement; a stream's server counts and announces it as terminated.
    ///
    /// # Errors
    /// As [`Message::ack`].
    pub fn term(&self) -> Result<()> {
        self.acker.term(self.seq)
    }

    /// Marks several messages done; of one subscription, the cursor is saved once.
    ///
    /// # Errors
    /// As [`Message::ack`].
    pub fn ack_all<'a>(messages: impl IntoIterator<Item = &'a Self>) -> Result<()> {
        let mut seqs: Vec<Range<u64>> = Vec::new();
        let mut first: Option<&Acker> = None;
        for message in messages {
            let acker = &message.acker;
            if !acker.shares_ranges(first.unwrap_or(acker)) {
                acker.ack(message.seq)?;
                continue;
            }
            first = Some(acker);
            match seqs.last_mut() {
                Some(last) if last.end == message.seq => last.end += 1,
                _ => seqs.push(message.seq..message.seq + 1),
            }
        }
        first.map_or(Ok(()), |acker| acker.ack_ranges(seqs))
    }
}

/// What a caller is told of a message that cannot be read.
pub(super) fn unreadable(topic: &str, seq: u64, error: &Error) -> Error {
    Error::new(error.kind(), format!("topic {topic:?}, seq {seq}: {error}"))
}

/// What the messages have in common that came as one: a message, or packed rows.
pub(super) struct Block {
    pub(super) first_seq: u64,
    pub(super) route: Route,
    pub(super) headers: Arc<Headers>,
    pub(super) acker: Acker,
    /// Of a stream's: how often the server has delivered it.
    pub(super) deliveries: u32,
}

/// A block that is being handed out, and how far.
pub(super) struct Unpacking {
    topic: Arc<str>,
    block: Block,
    id: MessageId,
    rows: u32,
    frames_count: u32,
    layout: Option<Arc<Layout>>,
    source: Source,
    next_row: u32,
}

/// Where the payloads of a block are.
enum Source {
    Joined { payload: Bytes, row_bytes: usize },
    Frames(Arc<Frames>),
}

impl Unpacking {
    pub(super) fn new(topic: &Arc<str>, block: Block, gathered: Gathered) -> Result<Self> {
        // Rows are slices of one allocation.
        let gathered = if gathered.rows() > 1 { gathered.join()?.into() } else { gathered };
        let (id, rows, frames_count, layout, source) = match gathered {
            Gathered::Joined(Incoming { id, rows, layout, payload, frames_count }) => {
                let row_bytes = payload.len() / (rows.max(1) as usize);
                (id, rows, frames_count, layout, Source::Joined { payload, row_bytes })
            }
            Gathered::Frames(frames) => {
                let Header { id, rows, count, layout, .. } = frames.header().clone();
                (id, rows, count, layout, Source::Frames(Arc::new(frames)))
            }
        };
        let layout = match layout {
            Some(layout) if rows > 1 => {
                let row_shape = layout.shape().get(1..).unwrap_or_default().to_vec();
                Some(Layout::new(layout.dtype(), layout.itemsize(), row_shape)?)
            }
            layout => layout,
        };
        let (topic, layout) = (Arc::clone(topic), layout.map(Arc::new));
        Ok(Self { topic, block, id, rows, frames_count, layout, source, next_row: 0 })
    }

    /// The next message; None when the block is used up.
    pub(super) fn next(&mut self) -> Option<Message> {
        let message = self.row(self.next_row, self.block.deliveries)?;
        self.next_row += 1;
        Some(message)
    }

    /// The message at a seq of a journal; None when it is not in the block.
    pub(super) fn message(&self, seq: u64, deliveries: u32) -> Option<Message> {
        let row = seq.checked_sub(self.block.first_seq)?;
        self.row(u32::try_from(row).ok()?, deliveries)
    }

    fn row(&self, row: u32, deliveries: u32) -> Option<Message> {
        if row >= self.rows {
            return None;
        }
        let body = match &self.source {
            Source::Joined { payload: block, row_bytes } => {
                let start = row_bytes * (row as usize);
                let payload = block.slice(start..start + row_bytes);
                Body::Joined { payload, block: block.clone() }
            }
            Source::Frames(frames) => {
                Body::Frames { frames: Arc::clone(frames), joined: OnceLock::new() }
            }
        };
        Some(Message {
            topic: Arc::clone(&self.topic),
            seq: self.block.first_seq + u64::from(row),
            route: self.block.route,
            id: MessageId { seq: self.id.seq + u64::from(row), ..self.id },
            headers: Arc::clone(&self.block.headers),
            layout: self.layout.clone(),
            frames_count: self.frames_count,
            deliveries,
            row,
            body,
            acker: self.block.acker.clone(),
        })
    }
}

/// Reads one topic for one subscription group.
pub struct Subscriber {
    /// None: another process owns it.
    topic: Option<Arc<HubTopic>>,
    /// None: closed.
    reader: Option<Reader>,
}

impl Subscriber {
    /// Joins a subscription group; makes it where it does not exist yet. Several subscribers of a
    /// group compete for its messages.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Config`] for options that this mode lacks,
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn open(topic: &Arc<HubTopic>, group: &str, options: &SubscribeOptions) -> Result<Self> {
        topic.shared.check_open()?;
        let reader = match &topic.log {
            Some(log) => Reader::Journal(JournalReader::open(topic, log, group, options)?),
            None => Reader::Stream(StreamReader::open(topic, group, options)?),
        };
        Ok(Self { topic: Some(Arc::clone(topic)), reader: Some(reader) })
    }

    /// A subscription in a directory that another process owns.
    pub(super) fn remote(reader: RemoteReader) -> Self {
        Self { topic: None, reader: Some(Reader::Remote(reader)) }
    }

    /// How messages of a journal are acknowledged.
    pub(super) fn journal_acker(&self) -> Option<Arc<JournalAcker>> {
        match &self.reader {
            Some(Reader::Journal(reader)) => Some(Arc::clone(reader.acker())),
            _ => None,
        }
    }

    /// Hands out up to `messages_max` messages that are ready, in order. None are: the waker is
    /// woken when it is worth looking again, and so it is at [`Subscriber::next_look`].
    ///
    /// `keep_frames`: the caller has memory of his own for the next messages, see
    /// [`Message::copy_into`]. Frames that come from a stream from now on are left as they came.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Incomplete`] for a message that cannot be read: it is
    /// not stepped over, `ack_through` its seq to do so. [`ErrorKind::Closed`],
    /// [`ErrorKind::Storage`].
    pub fn poll(
        &mut self,
        messages_max: usize,
        waker: &Waker,
        keep_frames: bool,
    ) -> Result<Vec<Message>> {
        match self.reader()? {
            Reader::Journal(reader) => reader.poll(messages_max, waker, keep_frames),
            Reader::Stream(reader) => reader.poll(messages_max, waker, keep_frames),
            Reader::Remote(reader) => reader.poll(messages_max, waker),
        }
    }

    /// When a message is due again that somebody has not acknowledged, or has given back.
    pub fn next_look(&self) -> Option<Instant> {
        match &self.reader {
            Some(Reader::Journal(reader)) => reader.next_look(),
            Some(Reader::Remote(reader)) => Some(reader.next_look()),
            _ => None,
        }
    }

    /// Marks everything up to and including `seq` done, delivered or not.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] or [`ErrorKind::Storage`].
    pub fn ack_through(&mut self, seq: u64) -> Result<()> {
        match self.reader()? {
            Reader::Journal(reader) => reader.ack_through(seq),
            Reader::Stream(reader) => reader.ack_through(seq),
            Reader::Remote(reader) => reader.ack_through(seq),
        }
    }

    /// Moves the group, with all its subscribers.
    ///
    /// # Errors
    /// [`ErrorKind::SeqNotFound`] for a seq that is not there; it names the nearest.
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`], [`ErrorKind::NotConnected`].
    pub fn seek(&mut self, to: SeekTo) -> Result<()> {
        match self.reader()? {
            Reader::Journal(reader) => seek(reader.group(), to),
            Reader::Remote(reader) => reader.seek(to),
            Reader::Stream(reader) => reader.seek(to),
        }
    }

    fn reader(&mut self) -> Result<&mut Reader> {
        self.topic.as_ref().map_or(Ok(()), |topic| topic.shared.check_open())?;
        let closed = || Error::new(ErrorKind::Closed, "the subscription is closed");
        self.reader.as_mut().ok_or_else(closed)
    }

    /// Ends the subscription; the group and its cursor stay, and what was not acknowledged is
    /// delivered to another subscriber at once. A second call does nothing.
    pub fn close(&mut self) {
        self.reader = None;
    }
}

/// Where a group goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// At the oldest message that is there.
    First,
    /// After the newest one.
    New,
    /// At a message, or after it.
    Seq {
        /// The message's seq.
        seq: u64,
        /// At it; false: after it.
        inclusive: bool,
    },
    /// At the first message published at a time or later, or after it.
    Time {
        /// Milliseconds since the Unix epoch.
        time_ms: u64,
        /// At that time or later; false: later.
        inclusive: bool,
    },
}

fn seek(group: &Group, to: SeekTo) -> Result<()> {
    let log = group.topic();
    match to {
        SeekTo::First => group.seek(log.first_seq()),
        SeekTo::New => group.seek(log.next_seq()),
        SeekTo::Time { time_ms, inclusive } => group.seek(log.seq_at(time_ms, inclusive)?),
        SeekTo::Seq { seq, inclusive } => {
            log.check_seq(seq)?;
            group.seek(if inclusive { seq } else { seq + 1 })
        }
    }
}

enum Reader {
    Journal(JournalReader),
    Stream(StreamReader),
    Remote(RemoteReader),
}
