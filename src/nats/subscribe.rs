//! A durable pull consumer that delivers whole messages.
//!
//! The consumer sees manifests only, so one message is one delivery and one acknowledgement, and
//! workers of a group compete for whole messages. The frames of several messages are fetched at
//! once; messages are handed out in the stream's order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::message::{AckKind, Acker};
use futures_util::{FutureExt, StreamExt};
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Header, Headers, Incoming, MessageId, ProducerId};
use crate::name::validate_name;
use crate::nats::errors;
use crate::nats::fetch::{complete, read_headers};
use crate::nats::options::Start;
use crate::nats::topic::{Inner, JetTopic};

/// Until an unacknowledged message is delivered again where nobody wants that: a year.
const NO_ACK_WAIT: Duration = Duration::from_hours(365 * 24);
/// Deliveries without an acknowledgement.
const ACKS_OPEN_MAX: i64 = 4096;
/// Manifests, and their bytes, that the server sends ahead.
const PULL_MSGS: usize = 512;
const PULL_BYTES: usize = 16 << 20;
/// Messages whose frames are fetched at the same time.
const FETCHES_MAX: usize = 16;
/// Between attempts to fetch frames while the server cannot be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Until a message that is not whole yet is offered again.
const INCOMPLETE_DELAY: Duration = Duration::from_secs(1);

/// A message of a subscription.
pub struct Delivery {
    /// The message.
    pub incoming: Incoming,
    /// The publisher's headers.
    pub headers: Headers,
    /// Stream sequence of its manifest.
    pub stream_seq: u64,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    /// Tells the server that it is done.
    pub ack: AckHandle,
}

/// Tells the server what became of a delivery.
#[derive(Clone)]
pub struct AckHandle {
    acker: Arc<Acker>,
}

impl AckHandle {
    /// Marks the whole message done; returns when the server has confirmed it.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`]: the message may come again.
    pub async fn ack(&self) -> Result<()> {
        self.acker.double_ack().await.map_err(lost)
    }

    /// Asks for the message again after `delay`.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`]: it comes again after the server's own wait.
    pub async fn nak(&self, delay: Duration) -> Result<()> {
        self.acker.ack_with(AckKind::Nak(Some(delay))).await.map_err(lost)
    }

    /// Begins the server's wait anew.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`]: the message may come again.
    pub async fn in_progress(&self) -> Result<()> {
        self.acker.ack_with(AckKind::Progress).await.map_err(lost)
    }
}

fn lost(error: async_nats::Error) -> Error {
    Error::with_source(ErrorKind::NotConnected, "the acknowledgement was not taken", error)
}

/// What became of a manifest.
enum Assembled {
    Whole(Box<Delivery>),
    /// Not whole yet; the server offers it again.
    Postponed,
}

/// A subscription group's place in the stream.
pub struct JetSubscription {
    inner: Arc<Inner>,
    messages: pull::Stream,
    in_flight: VecDeque<JoinHandle<Result<Assembled>>>,
}

impl JetTopic {
    /// Joins a subscription group; makes it where it does not exist yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Rejected`], [`ErrorKind::NotConnected`].
    pub async fn subscribe(
        &self,
        group: &str,
        start: Start,
        ack_wait: Option<Duration>,
    ) -> Result<JetSubscription> {
        validate_name("subscription group", group)?;
        let config = pull::Config {
            durable_name: Some(group.to_owned()),
            deliver_policy: match start {
                Start::First => DeliverPolicy::All,
                Start::New => DeliverPolicy::New,
            },
            ack_policy: AckPolicy::Explicit,
            ack_wait: ack_wait.unwrap_or(NO_ACK_WAIT),
            max_ack_pending: ACKS_OPEN_MAX,
            filter_subject: self.inner.name().to_owned(),
            ..pull::Config::default()
        };
        // An existing group is taken as it is: where it began is its own matter.
        let consumer = match self.inner.stream.get_consumer::<pull::Config>(group).await {
            Ok(consumer) => consumer,
            Err(_) => {
                let made = self.inner.stream.create_consumer(config).await;
                made.map_err(|e| errors::request(&format!("cannot join group {group:?}"), e))?
            }
        };
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_MSGS)
            .max_bytes_per_batch(PULL_BYTES)
            .messages()
            .await
            .map_err(|e| errors::request(&format!("cannot read as group {group:?}"), e))?;
        let inner = Arc::clone(&self.inner);
        Ok(JetSubscription { inner, messages, in_flight: VecDeque::new() })
    }
}

impl JetSubscription {
    /// The next whole message, or None after `wait`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::TooLarge`] over `decode_limit_bytes`,
    /// [`ErrorKind::NotConnected`].
    pub async fn next(
        &mut self,
        wait: Duration,
        decode_limit_bytes: u64,
    ) -> Result<Option<Delivery>> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            self.start_ready(decode_limit_bytes)?;
            if let Some(front) = self.in_flight.front_mut() {
                let Ok(joined) = tokio::time::timeout_at(deadline, front).await else {
                    return Ok(None);
                };
                self.in_flight.pop_front();
                let gone = |e| Error::with_source(ErrorKind::Closed, "the worker threads ended", e);
                match joined.map_err(gone)?? {
                    Assembled::Whole(delivery) => return Ok(Some(*delivery)),
                    Assembled::Postponed => continue,
                }
            }
            match tokio::time::timeout_at(deadline, self.messages.next()).await {
                Err(_) => return Ok(None),
                Ok(message) => self.start(message, decode_limit_bytes)?,
            }
        }
    }

    /// Begins to fetch what the server has sent already.
    fn start_ready(&mut self, decode_limit_bytes: u64) -> Result<()> {
        while self.in_flight.len() < FETCHES_MAX {
            let Some(message) = self.messages.next().now_or_never() else { break };
            self.start(message, decode_limit_bytes)?;
        }
        Ok(())
    }

    fn start(
        &mut self,
        message: Option<std::result::Result<jetstream::Message, pull::MessagesError>>,
        decode_limit_bytes: u64,
    ) -> Result<()> {
        let ended = || Error::new(ErrorKind::NotConnected, "the subscription ended");
        let message = message.ok_or_else(ended)?;
        let message = message.map_err(|e| {
            Error::with_source(ErrorKind::NotConnected, "the subscription was interrupted", e)
        })?;
        let inner = Arc::clone(&self.inner);
        self.in_flight.push_back(tokio::spawn(assemble(inner, message, decode_limit_bytes)));
        Ok(())
    }
}

impl Drop for JetSubscription {
    fn drop(&mut self) {
        self.in_flight.iter().for_each(JoinHandle::abort);
    }
}

async fn assemble(
    inner: Arc<Inner>,
    message: jetstream::Message,
    decode_limit_bytes: u64,
) -> Result<Assembled> {
    let info = message.info().map_err(lost)?;
    let stream_seq = info.stream_sequence;
    let deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
    let (message, acker) = message.split();
    let ack = AckHandle { acker: Arc::new(acker) };
    let (header, headers) = read_headers(message.headers.as_ref())?;
    let incoming = match header {
        Some(header) => {
            complete_patiently(&inner, &header, &message.payload, decode_limit_bytes).await
        }
        None => Ok(foreign(message.payload, stream_seq)),
    };
    match incoming {
        Ok(incoming) => Ok(Assembled::Whole(Box::new(Delivery {
            incoming,
            headers,
            stream_seq,
            deliveries,
            ack,
        }))),
        Err(error) if error.kind() == ErrorKind::Incomplete => {
            inner.incomplete_count.fetch_add(1, Ordering::Relaxed);
            log::warn!("{error}; asking again");
            ack.nak(INCOMPLETE_DELAY).await?;
            Ok(Assembled::Postponed)
        }
        Err(error) => Err(error),
    }
}

/// Waits out a server that cannot be reached. Given up, the message and all that were sent ahead
/// would come again only after [`ACK_WAIT`], and not in their order.
async fn complete_patiently(
    inner: &Inner,
    header: &Header,
    body: &[u8],
    decode_limit_bytes: u64,
) -> Result<Incoming> {
    let mut warned = false;
    loop {
        match complete(inner, header, body, decode_limit_bytes).await {
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

/// A plain NATS message that somebody else published to the topic.
fn foreign(payload: bytes::Bytes, stream_seq: u64) -> Incoming {
    let id = MessageId { producer: ProducerId([0; 16]), epoch: 0, seq: stream_seq };
    Incoming { id, rows: 1, layout: None, payload, frames_count: 1 }
}
