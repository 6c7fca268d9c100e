//! Pull requests: messages and bytes that the server may send ahead.
//!
//! Ours instead of the client's stream of messages: it asks in bytes (a server ends a connection
//! that has 64 MiB waiting for it), survives a reconnect with what was fetched already, and can be
//! ended so that everything that is on the way is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::error::{Error, ErrorKind, Result};
use crate::nats::errors;
use crate::nats::link::Sends;
use crate::nats::topic::Inner;

/// Messages of one request; another is sent when half of them have come.
const PULL_MSGS: usize = 512;
/// Bytes of one request, unless one message may be larger. Two requests can be open.
const PULL_BYTES: usize = 4 << 20;
/// What the server counts of a message beside its payload and headers.
const ENVELOPE_BYTES: usize = 64 << 10;
/// How long the server keeps a request.
const PULL_EXPIRES: Duration = Duration::from_mins(1);
/// How often the server says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Without a word for so long, it has lost the requests.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How often it is looked whether the connection was made anew: a new one has no requests.
const LOOK: Duration = Duration::from_millis(250);
/// Answers in a row that nobody serves the group: a server is starting, or it is gone.
const REFUSALS_MAX: u32 = 8;
/// Until what is on the way has come when a subscription ends.
const DRAIN_WAIT: Duration = Duration::from_secs(1);
/// Nothing for so long: nothing is on the way.
const QUIET: Duration = Duration::from_millis(50);

pub(super) struct Puller {
    inner: Arc<Inner>,
    subject: String,
    inbox: String,
    request: Bytes,
    /// Messages of one request.
    batch: usize,
    replies: Subscriber,
    asked: usize,
    connects: u64,
    heard: Instant,
    refusals: u32,
}

impl Puller {
    /// `one_by_one`: a request is for one message, and another is sent when it has come.
    pub(super) async fn open(inner: &Arc<Inner>, group: &str, one_by_one: bool) -> Result<Self> {
        let failed = |e| errors::request(&format!("cannot read as group {group:?}"), e);
        let inbox = inner.client.new_inbox();
        let replies = inner.client.subscribe(inbox.clone()).await.map_err(failed)?;
        let bytes = PULL_BYTES.max(inner.client.server_info().max_payload + ENVELOPE_BYTES);
        let batch = if one_by_one { 1 } else { PULL_MSGS };
        let request = format!(
            "{{\"batch\":{batch},\"max_bytes\":{bytes},\"expires\":{},\"idle_heartbeat\":{}}}",
            PULL_EXPIRES.as_nanos(),
            HEARTBEAT.as_nanos()
        );
        Ok(Self {
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{group}", inner.name()),
            inbox,
            request: Bytes::from(request),
            batch,
            replies,
            asked: 0,
            connects: connects(inner),
            heard: Instant::now(),
            refusals: 0,
            inner: Arc::clone(inner),
        })
    }

    /// The next delivery; asks for more of them where `is_wanted`. May be given up and called again
    /// at any time.
    ///
    /// [`ErrorKind::GroupNotFound`]: the group was moved or deleted.
    pub(super) async fn next(&mut self, is_wanted: bool) -> Result<Message> {
        loop {
            if is_wanted && self.asked <= self.batch / 2 {
                self.ask().await?;
            }
            match tokio::time::timeout(LOOK, self.replies.next()).await {
                Err(_) => self.look(),
                Ok(None) => {
                    // Lost for good, if not closed by us; the client says it a moment later.
                    let trouble =
                        self.inner.link.trouble(Sends::Requests, self.inner.name(), Instant::now());
                    let closed = |_| Error::new(ErrorKind::Closed, "the connection is closed");
                    return Err(tokio::time::timeout(LOOK, trouble).await.unwrap_or_else(closed));
                }
                Ok(Some(message)) => {
                    self.heard = Instant::now();
                    match message.status.map(|status| status.as_u16()) {
                        None | Some(200) => {
                            self.asked = self.asked.saturating_sub(1);
                            self.refusals = 0;
                            return Ok(message);
                        }
                        Some(100) => {}
                        Some(503) => self.refused().await?,
                        Some(_) => self.ended(&message)?,
                    }
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<()> {
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        let asked = self.inner.client.publish_with_reply(subject, inbox, self.request.clone());
        asked.await.map_err(|e| errors::request("cannot ask for messages", e))?;
        self.asked += self.batch;
        Ok(())
    }

    /// Asks anew where the server has lost what was asked for.
    fn look(&mut self) {
        if self.inner.client.connection_state() != State::Connected {
            return; // Every request that is made meanwhile would reach the server when it is back.
        }
        let connects = connects(&self.inner);
        if connects != self.connects || self.heard.elapsed() > SILENCE_MAX {
            self.connects = connects;
            self.heard = Instant::now();
            self.asked = 0;
        }
    }

    async fn refused(&mut self) -> Result<()> {
        self.asked = 0;
        self.refusals += 1;
        if self.refusals >= REFUSALS_MAX {
            let context = "nobody serves the subscription group";
            return Err(Error::new(ErrorKind::NotConnected, context));
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }

    /// A request has ended before all of its messages came.
    fn ended(&mut self, message: &Message) -> Result<()> {
        let why = message.description.as_deref().unwrap_or_default();
        if why.contains("Consumer Deleted") || why.contains("Consumer Is Not") {
            let context = "the subscription group was moved or deleted";
            return Err(Error::new(ErrorKind::GroupNotFound, context));
        }
        let left = message.headers.as_ref().and_then(|headers| {
            headers.get("Nats-Pending-Messages").and_then(|left| left.as_str().parse().ok())
        });
        self.asked = self.asked.saturating_sub(left.unwrap_or(self.batch));
        Ok(())
    }

    /// Ends the requests; gives what was on the way already.
    ///
    /// The client drops what comes once it was told to end, though the server may send until it has
    /// heard so: it is told when nothing comes any more.
    pub(super) async fn end(mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let until = Instant::now() + DRAIN_WAIT;
        while Instant::now() < until && self.take(QUIET, &mut messages).await {}
        if self.replies.drain().await.is_ok() {
            while self.take(DRAIN_WAIT, &mut messages).await {}
        }
        messages
    }

    /// Takes the next message, if one comes in so long.
    async fn take(&mut self, wait: Duration, messages: &mut Vec<Message>) -> bool {
        let Ok(Some(message)) = tokio::time::timeout(wait, self.replies.next()).await else {
            return false;
        };
        if message.status.is_none_or(|status| status.as_u16() == 200) {
            messages.push(message);
        }
        true
    }
}

fn connects(inner: &Inner) -> u64 {
    inner.client.statistics().connects.load(Ordering::Relaxed)
}
