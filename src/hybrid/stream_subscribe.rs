//! The subscription of mode `nats`, where the stream is the only store.
//!
//! A task pulls whole messages from the stream into a bounded queue; `poll` takes them out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::acks::{Acker, BlockAck, StreamAcks};
use crate::hybrid::options::SubscribeOptions;
use crate::hybrid::runtime;
use crate::hybrid::subscribe::{
    Block, Message, PREFETCH_BYTES_MAX, PREFETCH_ENTRIES_MAX, Unpacking,
};
use crate::hybrid::topic::HubTopic;
use crate::nats::{Delivery, JetSubscription};
use crate::queue::GroupStart;
use crate::router::Route;

/// How long one pull waits before the task looks whether it is still wanted.
const PULL_WAIT: Duration = Duration::from_secs(5);
/// Between attempts while the server cannot be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

pub(super) struct StreamReader {
    inbox: Arc<Inbox>,
    current: Option<Unpacking>,
    acks: StreamAcks,
    pump: AbortHandle,
    topic: Arc<str>,
}

/// How the consumer is made where it does not exist yet.
#[derive(Clone, Copy)]
struct Join {
    start: GroupStart,
    ack_wait: Option<Duration>,
}

/// What the task has pulled and nobody has taken yet.
#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    space: Notify,
}

#[derive(Default)]
struct InboxState {
    deliveries: VecDeque<Delivery>,
    bytes: u64,
    failed: Option<(ErrorKind, String)>,
    waker: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self) -> bool {
        let state = self.lock();
        state.bytes >= PREFETCH_BYTES_MAX || state.deliveries.len() >= PREFETCH_ENTRIES_MAX
    }

    fn put(&self, outcome: Result<Delivery>) {
        let mut state = self.lock();
        match outcome {
            Ok(delivery) => {
                state.bytes += delivery.incoming.payload.len() as u64;
                state.deliveries.push_back(delivery);
            }
            Err(error) => state.failed = Some((error.kind(), error.to_string())),
        }
        if let Some(waker) = state.waker.take() {
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
        if options.deliveries_max.is_some() {
            let context = "max_deliver: mode 'nats' has no topic for dead letters";
            return Err(Error::new(ErrorKind::Config, context));
        }
        let join = Join { start: options.start, ack_wait: options.ack_wait };
        let inbox = Arc::new(Inbox::default());
        // "New" means after this call: the server has to know the group before the call returns.
        let first = match join.start {
            GroupStart::New => Some(runtime::handle()?.block_on(subscribe(topic, group, join))?),
            GroupStart::First => None,
        };
        let task = pump(Arc::clone(topic), group.to_owned(), join, first, Arc::clone(&inbox));
        let pump = runtime::handle()?.spawn(task).abort_handle();
        let acks = StreamAcks::default();
        Ok(Self { inbox, current: None, acks, pump, topic: Arc::clone(&topic.name) })
    }

    pub(super) fn poll(&mut self, messages_max: usize, waker: &Waker) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        while messages.len() < messages_max {
            if let Some(message) = self.current.as_mut().and_then(Unpacking::next) {
                messages.push(message);
                continue;
            }
            let mut state = self.inbox.lock();
            let Some(delivery) = state.deliveries.pop_front() else {
                if messages.is_empty() {
                    if let Some((kind, context)) = &state.failed {
                        return Err(Error::new(*kind, context.clone()));
                    }
                    state.waker = Some(waker.clone());
                }
                break;
            };
            state.bytes = state.bytes.saturating_sub(delivery.incoming.payload.len() as u64);
            drop(state);
            self.inbox.space.notify_one();
            self.unpack(delivery)?;
        }
        Ok(messages)
    }

    fn unpack(&mut self, delivery: Delivery) -> Result<()> {
        let ack = Arc::new(BlockAck::new(delivery.ack, delivery.incoming.rows));
        self.acks.delivered(delivery.stream_seq, &ack);
        let block = Block {
            first_seq: delivery.stream_seq,
            seq_step: 0,
            route: Route::Nats,
            incoming: delivery.incoming,
            headers: Arc::new(delivery.headers),
            acker: Acker::Stream(ack),
            deliveries: delivery.deliveries,
        };
        self.current = Some(Unpacking::new(&self.topic, block)?);
        Ok(())
    }

    pub(super) fn ack_through(&mut self, stream_seq: u64) -> Result<()> {
        self.acks.ack_through(stream_seq)
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// Pulls until the reader is dropped; waits out a server that cannot be reached.
async fn pump(
    topic: Arc<HubTopic>,
    group: String,
    join: Join,
    mut first: Option<JetSubscription>,
    inbox: Arc<Inbox>,
) {
    let mut warned = false;
    while !topic.shared.is_closed() {
        let subscription = match first.take() {
            Some(subscription) => Ok(subscription),
            None => subscribe(&topic, &group, join).await,
        };
        let ended = match subscription {
            Ok(mut subscription) => pull(&topic, &mut subscription, &inbox).await,
            Err(error) => error,
        };
        if !matches!(ended.kind(), ErrorKind::NotConnected | ErrorKind::Timeout) {
            inbox.put(Err(ended));
            return;
        }
        if !warned && !topic.shared.is_closed() {
            log::warn!("topic {:?}: subscription {group:?} waits: {ended}", topic.name);
            warned = true;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    inbox.put(Err(Error::new(ErrorKind::Closed, "the handle is closed")));
}

async fn subscribe(topic: &HubTopic, group: &str, join: Join) -> Result<JetSubscription> {
    let start = match join.start {
        GroupStart::First => crate::nats::Start::First,
        GroupStart::New => crate::nats::Start::New,
    };
    topic.stream().await?.subscribe(group, start, join.ack_wait).await
}

async fn pull(topic: &HubTopic, subscription: &mut JetSubscription, inbox: &Inbox) -> Error {
    loop {
        if let Err(error) = topic.shared.check_open() {
            return error;
        }
        if inbox.is_full() {
            inbox.space.notified().await;
            continue;
        }
        match subscription.next(PULL_WAIT, topic.shared.options.message_bytes_max).await {
            Ok(Some(delivery)) => inbox.put(Ok(delivery)),
            Ok(None) => {}
            Err(error) => return error,
        }
    }
}
