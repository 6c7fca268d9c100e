//! Messages as they lie in a reply: rows of one block stay together, so that the other side hands
//! them out without a copy too.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::frame::{Gathered, Headers, Incoming, Layout, MessageId, ProducerId};
use crate::hybrid::acks::Acker;
use crate::hybrid::attach::wire::{Input, Output, damaged};
use crate::hybrid::subscribe::{Block, Message};
use crate::router::Route;

/// Payloads begin at its multiples.
pub(super) const ALIGNMENT: usize = 64;
/// A reply is cut at this many payload bytes; a single run may be larger.
const REPLY_BYTES_MAX: usize = 4 << 20;
/// It is cut at this many bytes of everything else, too.
const REPLY_META_MAX: usize = 1 << 20;
/// Most rows of one block.
const ROWS_MAX: u32 = 1_000_000;

/// A message, or rows of one block that follow each other.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) first_seq: u64,
    rows: u32,
    deliveries: u32,
    route: Route,
    frames_count: u32,
    id: MessageId,
    /// Of one row.
    layout: Option<Arc<Layout>>,
    headers: Arc<Headers>,
    pub(super) payload: Bytes,
}

impl Run {
    /// Puts messages that are rows of one block together.
    pub(super) fn gather(messages: &[Message]) -> Result<Vec<Self>> {
        let mut runs: Vec<Self> = Vec::new();
        let mut first: Option<&Message> = None;
        for message in messages {
            if let (Some(run), Some(first)) = (runs.last_mut(), first)
                && run.is_followed_by(message)
                && let Some(payload) = first.payloads_from_here(run.rows as usize + 1)
                && payload.slice_ref_end() == message.payload()?.slice_ref_end()
            {
                run.rows += 1;
                run.payload = payload;
                continue;
            }
            first = Some(message);
            runs.push(Self::single(message)?);
        }
        Ok(runs)
    }

    fn single(message: &Message) -> Result<Self> {
        Ok(Self {
            first_seq: message.seq,
            rows: 1,
            deliveries: message.deliveries,
            route: message.route,
            frames_count: message.frames_count,
            id: message.id,
            layout: message.layout.clone(),
            headers: Arc::clone(&message.headers),
            payload: message.payload()?.clone(),
        })
    }

    fn is_followed_by(&self, message: &Message) -> bool {
        let rows = u64::from(self.rows);
        self.layout.is_some()
            && self.rows < ROWS_MAX
            // Headers are shared within a block, and only there.
            && Arc::ptr_eq(&self.headers, &message.headers)
            && message.seq == self.first_seq + rows
            && message.id.seq == self.id.seq + rows
            && message.deliveries == self.deliveries
    }

    fn encode(&self, out: &mut Output) {
        out.u64(self.first_seq);
        out.u32(self.rows);
        out.u32(self.deliveries);
        out.u8(u8::from(self.route == Route::Nats));
        out.u32(self.frames_count);
        out.0.extend_from_slice(&self.id.producer.0);
        out.u32(self.id.epoch);
        out.u64(self.id.seq);
        out.u64(self.payload.len() as u64);
        out.option(self.layout.as_ref(), |out, layout| {
            out.text(layout.dtype(), 0);
            out.u32(u32::from(layout.itemsize()));
            out.u8(u8::try_from(layout.shape().len()).unwrap_or(u8::MAX));
            layout.shape().iter().for_each(|length| out.u64(*length));
        });
        out.u32(u32::try_from(self.headers.iter().count()).unwrap_or(u32::MAX));
        for (key, value) in self.headers.iter() {
            out.text(key, 0);
            out.text(value, 0);
        }
    }

    fn decode(input: &mut Input<'_>, payloads: &Bytes, start: &mut usize) -> Result<Self> {
        let (first_seq, rows, deliveries) = (input.u64()?, input.u32()?, input.u32()?);
        let route = if input.flag()? { Route::Nats } else { Route::Queue };
        let frames_count = input.u32()?;
        let producer = ProducerId(input.array()?);
        let id = MessageId { producer, epoch: input.u32()?, seq: input.u64()? };
        let bytes = usize::try_from(input.u64()?).map_err(|_| damaged("payload bytes"))?;
        let layout = input.option(layout)?;
        let count = input.u32()?;
        let pair = |input: &mut Input<'_>| Ok((input.text()?, input.text()?));
        let headers = (0..count).map(|_| pair(input)).collect::<Result<_>>()?;
        let end = start.checked_add(bytes).filter(|end| *end <= payloads.len());
        let end = end.ok_or_else(|| damaged("payload bytes"))?;
        let fits = match &layout {
            Some(layout) => layout.bytes()?.checked_mul(u64::from(rows)) == Some(bytes as u64),
            None => rows == 1,
        };
        let last = (first_seq.checked_add(u64::from(rows)), id.seq.checked_add(u64::from(rows)));
        if !fits || !(1..=ROWS_MAX).contains(&rows) || last.0.is_none() || last.1.is_none() {
            return Err(damaged("message"));
        }
        let payload = payloads.slice(*start..end);
        *start = end.next_multiple_of(ALIGNMENT);
        let (layout, headers) = (layout.map(Arc::new), Arc::new(Headers::received(headers)));
        Ok(Self { first_seq, rows, deliveries, route, frames_count, id, layout, headers, payload })
    }

    /// The block that the messages of this run are handed out from.
    pub(super) fn into_block(self, acker: Acker) -> Result<(Block, Gathered)> {
        let layout = match self.layout.as_deref() {
            Some(row) if self.rows > 1 => {
                let mut shape = vec![u64::from(self.rows)];
                shape.extend_from_slice(row.shape());
                Some(Layout::new(row.dtype(), row.itemsize(), shape)?)
            }
            row => row.cloned(),
        };
        let incoming = Incoming {
            id: self.id,
            rows: self.rows,
            layout,
            payload: self.payload,
            frames_count: self.frames_count,
        };
        let (route, headers, deliveries) = (self.route, self.headers, self.deliveries);
        let first_seq = self.first_seq;
        Ok((Block { first_seq, route, headers, acker, deliveries }, incoming.into()))
    }
}

fn layout(input: &mut Input<'_>) -> Result<Layout> {
    let dtype = input.text()?;
    let itemsize = u16::try_from(input.u32()?).map_err(|_| damaged("itemsize"))?;
    let dims = input.u8()?;
    let shape = (0..dims).map(|_| input.u64()).collect::<Result<_>>()?;
    Layout::new(&dtype, itemsize, shape)
}

/// Where the slice ends in memory.
trait SliceEnd {
    fn slice_ref_end(&self) -> usize;
}

impl SliceEnd for Bytes {
    fn slice_ref_end(&self) -> usize {
        self.as_ptr().addr() + self.len()
    }
}

/// The meta of one reply that carries messages.
pub(super) fn encode(generation: u32, is_last: bool, runs: &[Run]) -> Vec<u8> {
    let mut out = Output::default();
    out.u32(generation);
    out.u8(u8::from(is_last));
    out.u32(u32::try_from(runs.len()).unwrap_or(u32::MAX));
    for run in runs {
        run.encode(&mut out);
    }
    out.0
}

/// Generation, whether it is the last reply to what was wanted, and the runs.
pub(super) fn decode(meta: &[u8], payloads: &Bytes) -> Result<(u32, bool, Vec<Run>)> {
    let mut input = Input(meta);
    let (generation, is_last, count) = (input.u32()?, input.flag()?, input.u32()?);
    let mut start = 0;
    let run = |_| Run::decode(&mut input, payloads, &mut start);
    let runs = (0..count).map(run).collect::<Result<Vec<_>>>()?;
    input.end()?;
    Ok((generation, is_last, runs))
}

/// Cuts runs into replies of bounded size.
pub(super) fn replies(runs: &[Run]) -> Vec<&[Run]> {
    let mut replies = Vec::new();
    let mut rest = runs;
    while !rest.is_empty() {
        let (mut bytes, mut meta, mut count) = (0, 0, 0);
        for run in rest {
            bytes += run.payload.len() + ALIGNMENT;
            meta += run.headers.encoded_len() + 256;
            if count > 0 && (bytes > REPLY_BYTES_MAX || meta > REPLY_META_MAX) {
                break;
            }
            count += 1;
        }
        let (reply, after) = rest.split_at(count.min(rest.len()));
        replies.push(reply);
        rest = after;
    }
    replies
}

/// What a process of that limit takes at most in one reply.
pub(super) fn reply_bytes_max(message_bytes_max: u64) -> u64 {
    message_bytes_max.saturating_add(2 * REPLY_BYTES_MAX as u64)
}
