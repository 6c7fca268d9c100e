//! A durable pull consumer that delivers whole messages.
//!
//! The consumer sees manifests only, so one message is one delivery and one acknowledgement, and
//! workers of a group compete for whole messages. The frames of several messages are fetched at
//! once; messages are handed out in the stream's order. One that cannot be read is an error in its
//! place, and ends nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{
    Codec, Gathered, Header, Headers, Incoming, Keeping, MessageId, ProducerId, decode_single,
};
use crate::name::validate_name;
use crate::nats::acks::{AckHandle, Held, Hold};
use crate::nats::errors;
use crate::nats::fetch::{complete, read_headers};
use crate::nats::link::Sends;
use crate::nats::options::Start;
use crate::nats::pull::Puller;
use crate::nats::topic::{Inner, JetTopic};

/// Until an unacknowledged message is delivered again where nobody wants that: a year.
const NO_ACK_WAIT: Duration = Duration::from_hours(365 * 24);
/// Deliveries without an acknowledgement.
const ACKS_OPEN_MAX: i64 = 4096;
/// Messages whose frames are fetched at the same time.
const FETCHES_MAX: usize = 16;
/// Manifests that have come and wait for their turn.
const ARRIVED_MAX: usize = 1024;
/// Their bytes; requests are not renewed beyond. A manifest is its message's last frame, a MiB.
const ARRIVED_BYTES_MAX: usize = 4 << 20;
/// Between attempts to fetch frames while the server cannot be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Until a message that is not whole yet is offered again.
const INCOMPLETE_DELAY: Duration = Duration::from_secs(1);
/// After so many deliveries, a minute at least, its frames do not come any more.
const INCOMPLETE_DELIVERIES_MAX: u32 = 60;

/// A message of a subscription.
pub struct Delivery {
    /// The message; an error: it cannot be read.
    pub incoming: Result<Gathered>,
    /// Its id; of packed rows the first row's.
    pub id: MessageId,
    /// Messages in it.
    pub rows: u32,
    /// The publisher's headers.
    pub headers: Headers,
    /// Stream sequence of its manifest.
    pub stream_seq: u64,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    /// Its place among all deliveries of the group.
    pub delivery_seq: u64,
    /// Deliveries just before it that were not whole yet and were given back.
    pub postponed: u64,
    /// Tells the server that it is done.
    pub ack: AckHandle,
    /// Until it is dropped, the server is told that the message is in work.
    pub hold: Hold,
}

impl Delivery {
    /// Payload bytes.
    pub fn size_bytes(&self) -> u64 {
        self.incoming.as_ref().map_or(0, Gathered::size_bytes)
    }
}

/// What became of a manifest.
enum Assembled {
    Whole(Box<Delivery>),
    /// Not whole yet; the server offers it again.
    Postponed,
}

/// A manifest, or a message of one frame, as it came.
struct Arrived {
    header: Result<Option<Header>>,
    headers: Headers,
    body: Bytes,
    stream_seq: u64,
    deliveries: u32,
    delivery_seq: u64,
    ack: AckHandle,
    hold: Hold,
}

impl Arrived {
    fn size_bytes(&self) -> u64 {
        match &self.header {
            Ok(Some(header)) => header.total_bytes,
            _ => self.body.len() as u64,
        }
    }

    fn into_delivery(self, incoming: Result<Gathered>) -> Delivery {
        let (id, rows) = match &self.header {
            Ok(Some(header)) => (header.id, header.rows),
            _ => (foreign_id(self.stream_seq), 1),
        };
        Delivery {
            incoming,
            id,
            rows,
            headers: self.headers,
            stream_seq: self.stream_seq,
            deliveries: self.deliveries,
            delivery_seq: self.delivery_seq,
            postponed: 0,
            ack: self.ack,
            hold: self.hold,
        }
    }
}

/// A message that is being put together.
struct InFlight {
    size_bytes: u64,
    state: Progress,
}

enum Progress {
    Ready(Option<Assembled>),
    Running(JoinHandle<Result<Assembled>>),
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Progress::Running(task) = &self.state {
            task.abort();
        }
    }
}

impl InFlight {
    /// Waits for it. May be given up and called again.
    async fn assembled(&mut self) -> Result<Assembled> {
        let gone = |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
        match &mut self.state {
            Progress::Ready(assembled) => Ok(assembled.take().unwrap_or(Assembled::Postponed)),
            Progress::Running(task) => task.await.map_err(gone)?,
        }
    }
}

/// A subscription group's place in the stream.
pub struct JetSubscription {
    inner: Arc<Inner>,
    puller: Puller,
    counted: bool,
    held: Arc<Held>,
    arrived: VecDeque<Arrived>,
    arrived_bytes: usize,
    in_flight: VecDeque<InFlight>,
    keep_frames: bool,
    postponed: u64,
    born: i128,
    started: Instant,
}

pub(super) fn group_config(
    inner: &Inner,
    group: &str,
    deliver_policy: DeliverPolicy,
    ack_wait: Duration,
) -> pull::Config {
    pull::Config {
        durable_name: Some(group.to_owned()),
        deliver_policy,
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        max_ack_pending: ACKS_OPEN_MAX,
        filter_subject: inner.name().to_owned(),
        ..pull::Config::default()
    }
}

impl JetTopic {
    /// Joins a subscription group. `start`: makes it where it does not exist yet. `counted`: one
    /// message is asked for at a time, when [`JetSubscription::next`] is called and has none, so
    /// that the server's count of deliveries is one of messages that somebody had.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::GroupNotFound`] without `start`,
    /// [`ErrorKind::Rejected`], [`ErrorKind::Denied`], [`ErrorKind::NotConnected`].
    pub async fn subscribe(
        &self,
        group: &str,
        start: Option<Start>,
        ack_wait: Option<Duration>,
        counted: bool,
    ) -> Result<JetSubscription> {
        validate_name("subscription group", group)?;
        let joining = self.join(group, start, ack_wait, counted);
        self.inner.link.guard(self.inner.name(), joining).await
    }

    async fn join(
        &self,
        group: &str,
        start: Option<Start>,
        ack_wait: Option<Duration>,
        counted: bool,
    ) -> Result<JetSubscription> {
        let started = Instant::now();
        // An existing group is taken as it is: where it began is its own matter.
        let found = self.inner.group(group).await?;
        let consumer = match (found, start) {
            (Some(consumer), _) => consumer,
            (None, None) => {
                let context = format!("no subscription group {group:?}");
                return Err(Error::new(ErrorKind::GroupNotFound, context));
            }
            (None, Some(start)) => {
                let policy = match start {
                    Start::First => DeliverPolicy::All,
                    Start::New => DeliverPolicy::New,
                };
                let ack_wait = ack_wait.unwrap_or(NO_ACK_WAIT);
                let config = group_config(&self.inner, group, policy, ack_wait);
                let made = self.inner.stream.create_consumer(config).await;
                let made =
                    made.map_err(|e| errors::request(&format!("cannot join group {group:?}"), e))?;
                made.cached_info().clone()
            }
        };
        let held = Arc::new(Held::default());
        held.keep(consumer.config.ack_wait);
        Ok(JetSubscription {
            puller: Puller::open(&self.inner, group, counted).await?,
            counted,
            inner: Arc::clone(&self.inner),
            held,
            arrived: VecDeque::new(),
            arrived_bytes: 0,
            in_flight: VecDeque::new(),
            keep_frames: false,
            postponed: 0,
            born: consumer.created.unix_timestamp_nanos(),
            started,
        })
    }
}

impl JetSubscription {
    /// From now on messages are put together as they come, or their frames are left as they came.
    pub fn keep_frames(&mut self, keep_frames: bool) {
        self.keep_frames = keep_frames;
    }

    /// The next message, or None after `wait`. Reads ahead of it, `ahead_bytes` at most. May be
    /// given up and called again.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`] when the group was moved or deleted, [`ErrorKind::Denied`],
    /// [`ErrorKind::NotConnected`], [`ErrorKind::Closed`].
    pub async fn next(
        &mut self,
        wait: Duration,
        decode_limit_bytes: u64,
        ahead_bytes: u64,
    ) -> Result<Option<Delivery>> {
        let (inner, started) = (Arc::clone(&self.inner), self.started);
        tokio::select! {
            biased;
            next = self.next_whole(wait, decode_limit_bytes, ahead_bytes) => next,
            trouble = inner.link.trouble(Sends::Requests, inner.name(), started) => Err(trouble),
        }
    }

    async fn next_whole(
        &mut self,
        wait: Duration,
        decode_limit_bytes: u64,
        ahead_bytes: u64,
    ) -> Result<Option<Delivery>> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            while self.arrived.len() < ARRIVED_MAX
                && let Some(message) = self.puller.next(self.wants_more()).now_or_never()
            {
                self.take(message?)?;
            }
            self.start(decode_limit_bytes, ahead_bytes);
            let wants_more = self.wants_more();
            let front = self.in_flight.front_mut();
            let is_idle = front.is_none();
            let assembled = async move {
                match front {
                    Some(front) => front.assembled().await,
                    None => std::future::pending().await,
                }
            };
            let outcome = tokio::select! {
                biased;
                assembled = assembled => assembled?,
                message = self.puller.next(wants_more), if self.arrived.len() < ARRIVED_MAX => {
                    self.take(message?)?;
                    continue;
                }
                () = tokio::time::sleep_until(deadline), if is_idle => return Ok(None),
            };
            self.in_flight.pop_front();
            match outcome {
                Assembled::Whole(mut delivery) => {
                    delivery.postponed = std::mem::take(&mut self.postponed);
                    return Ok(Some(*delivery));
                }
                Assembled::Postponed => self.postponed += 1,
            }
        }
    }

    fn wants_more(&self) -> bool {
        let is_idle = self.arrived.is_empty() && self.in_flight.is_empty();
        is_idle || (!self.counted && self.arrived_bytes < ARRIVED_BYTES_MAX)
    }

    /// Holds what was asked for and comes while nobody wants the next message; ends with an error.
    /// May be given up at any time.
    pub async fn wait(&mut self) -> Error {
        loop {
            let came = self.puller.next(false).await;
            if let Err(error) = came.and_then(|message| self.take(message)) {
                return error;
            }
        }
    }

    fn take(&mut self, message: async_nats::Message) -> Result<()> {
        let context = self.inner.context.clone();
        let message = jetstream::Message { message, context };
        let strange = |e| Error::with_source(ErrorKind::Corrupt, "no delivery of a group", e);
        let info = message.info().map_err(strange)?;
        let (stream_seq, delivery_seq) = (info.stream_sequence, info.consumer_sequence);
        let deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
        let message = message.message;
        let reply = message.reply.unwrap_or_else(|| "".into());
        let ack = AckHandle { reply, told: self.inner.told.clone() };
        let hold = self.held.hold(delivery_seq, ack.clone());
        let (header, headers) = match read_headers(message.headers.as_ref()) {
            Ok((header, headers)) => (Ok(header), headers),
            Err(error) => (Err(error), Headers::empty()),
        };
        self.arrived_bytes += message.payload.len();
        self.arrived.push_back(Arrived {
            header,
            headers,
            body: message.payload,
            stream_seq,
            deliveries,
            delivery_seq,
            ack,
            hold,
        });
        Ok(())
    }

    /// Begins to put together what has come, within bounds; one at least.
    fn start(&mut self, decode_limit_bytes: u64, ahead_bytes: u64) {
        let mut bytes: u64 = self.in_flight.iter().map(|one| one.size_bytes).sum();
        while self.in_flight.len() < FETCHES_MAX
            && let Some(arrived) = self.arrived.front()
        {
            let size_bytes = arrived.size_bytes();
            bytes = bytes.saturating_add(size_bytes);
            if bytes > ahead_bytes && !self.in_flight.is_empty() {
                return;
            }
            let Some(arrived) = self.arrived.pop_front() else { return };
            self.arrived_bytes -= arrived.body.len();
            let keep_frames = self.keep_frames;
            let state = match at_once(&arrived, decode_limit_bytes, keep_frames) {
                Some(incoming) => {
                    let delivery = Box::new(arrived.into_delivery(incoming));
                    Progress::Ready(Some(Assembled::Whole(delivery)))
                }
                None => {
                    let inner = Arc::clone(&self.inner);
                    let assembling = assemble(inner, arrived, decode_limit_bytes, keep_frames);
                    Progress::Running(tokio::spawn(assembling))
                }
            };
            self.in_flight.push_back(InFlight { size_bytes, state });
        }
    }

    /// Ends the subscription: what it has or gets and nobody was handed is another's at once.
    pub async fn give_back(self) {
        for message in self.puller.end().await {
            let Some(reply) = message.reply else { continue };
            // A closed connection has given it back already.
            let _ = AckHandle { reply, told: self.inner.told.clone() }.nak(Duration::ZERO);
        }
        self.held.give_back();
    }

    /// When the group was made; another time: it was moved.
    pub fn born(&self) -> i128 {
        self.born
    }
}

/// A message that needs no fetch and no thread: the copy costs less than a task.
fn at_once(
    arrived: &Arrived,
    decode_limit_bytes: u64,
    keep_frames: bool,
) -> Option<Result<Gathered>> {
    match &arrived.header {
        Ok(Some(header)) if header.total_bytes > decode_limit_bytes => {
            Some(Err(over_limit(header, decode_limit_bytes)))
        }
        Ok(Some(header)) if header.count == 1 && keep_frames => {
            Some(kept(header, &arrived.body, decode_limit_bytes))
        }
        Ok(Some(header)) if header.count == 1 && header.codec == Codec::Raw => {
            Some(decode_single(header, &arrived.body, decode_limit_bytes).map(Gathered::Joined))
        }
        Ok(Some(_)) => None,
        Ok(None) => Some(Ok(foreign(arrived.body.clone(), arrived.stream_seq).into())),
        Err(error) => Some(Err(Error::new(error.kind(), error.to_string()))),
    }
}

fn kept(header: &Header, body: &Bytes, decode_limit_bytes: u64) -> Result<Gathered> {
    let mut keeping = Keeping::new(header, decode_limit_bytes)?;
    keeping.accept(header.clone(), body.clone())?;
    keeping.finish().map(Gathered::Frames)
}

fn over_limit(header: &Header, decode_limit_bytes: u64) -> Error {
    let (id, bytes) = (header.id, header.total_bytes);
    let context =
        format!("message {id} of {bytes} bytes exceeds the limit of {decode_limit_bytes} bytes");
    Error::new(ErrorKind::TooLarge, context)
}

async fn assemble(
    inner: Arc<Inner>,
    arrived: Arrived,
    decode_limit_bytes: u64,
    keep_frames: bool,
) -> Result<Assembled> {
    let incoming = match &arrived.header {
        Ok(Some(header)) => {
            let body = &arrived.body;
            complete_patiently(&inner, header, body, decode_limit_bytes, keep_frames).await
        }
        _ => Ok(foreign(arrived.body.clone(), arrived.stream_seq).into()),
    };
    match inner.counted(incoming) {
        // Not the message's fault.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Closed | ErrorKind::Denied | ErrorKind::NoStream
            ) =>
        {
            Err(error)
        }
        Err(error)
            if error.kind() == ErrorKind::Incomplete
                && arrived.deliveries < INCOMPLETE_DELIVERIES_MAX =>
        {
            log::warn!("{error}; asking again");
            arrived.ack.nak(INCOMPLETE_DELAY)?;
            Ok(Assembled::Postponed)
        }
        incoming => Ok(Assembled::Whole(Box::new(arrived.into_delivery(incoming)))),
    }
}

/// Waits out a server that cannot be reached. Given up, the message and all that were sent ahead
/// would come again only after the server's wait, and not in their order.
async fn complete_patiently(
    inner: &Inner,
    header: &Header,
    body: &Bytes,
    decode_limit_bytes: u64,
    keep_frames: bool,
) -> Result<Gathered> {
    let mut warned = false;
    loop {
        match complete(inner, header, body.clone(), decode_limit_bytes, keep_frames).await {
            Err(error) if matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::Timeout) => {
                if !warned {
                    log::warn!("stream {:?}: reading {} waits: {error}", inner.name(), header.id);
                    warned = true;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

fn foreign_id(stream_seq: u64) -> MessageId {
    MessageId { producer: ProducerId([0; 16]), epoch: 0, seq: stream_seq }
}

/// A plain NATS message that somebody else published to the topic.
fn foreign(payload: Bytes, stream_seq: u64) -> Incoming {
    let id = foreign_id(stream_seq);
    Incoming { id, rows: 1, layout: None, payload, frames_count: 1 }
}
