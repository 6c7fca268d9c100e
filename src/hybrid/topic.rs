//! One topic: its journal, its stream, and the lane that keeps frames in call order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::AutoCodecs;
use crate::hybrid::hub::Shared;
use crate::hybrid::lane::{Lane, LaneTask};
use crate::hybrid::publish::InFlight;
use crate::hybrid::runtime;
use crate::nats::JetTopic;
use crate::queue;

/// How often a topic that is read is swept, and how old leftovers have to be: much longer than
/// publishes take.
const SWEEP_EVERY: Duration = Duration::from_mins(10);
const SWEEP_AGE: Duration = Duration::from_hours(1);

/// One topic of a hub.
pub struct HubTopic {
    pub(super) shared: Arc<Shared>,
    pub(super) name: Arc<str>,
    /// The journal. None in mode `nats`.
    pub(super) log: Option<Arc<queue::Topic>>,
    /// Messages for the stream, in call order. None in mode `queue`.
    lane: Option<Arc<Lane>>,
    slot: StreamSlot,
    /// What `codec="auto"` has found out.
    pub(super) auto_codecs: Mutex<AutoCodecs>,
    /// The producer's next seq where no journal hands them out (mode `nats`).
    pub(super) stream_next_seq: Mutex<u64>,
    /// A task sweeps what killed publishers leave.
    sweeping: AtomicBool,
}

/// A topic's stream, once it is open. Cloning it shares it.
#[derive(Clone)]
pub(super) struct StreamSlot {
    name: Arc<str>,
    stream: Arc<OnceCell<JetTopic>>,
    /// The highest stream sequence seen: frames published from now on are stored after it.
    floor_seq: Arc<AtomicU64>,
}

impl StreamSlot {
    fn new(name: &str) -> Self {
        Self { name: Arc::from(name), stream: Arc::default(), floor_seq: Arc::default() }
    }

    /// The stream; made on the first call.
    pub(super) async fn stream(&self, shared: &Shared) -> Result<JetTopic> {
        let name = &self.name;
        let Some(connection) = &shared.nats else {
            return Err(Error::new(
                ErrorKind::NotConnected,
                format!("topic {name:?} has messages on the NATS route; open with mode 'hybrid'"),
            ));
        };
        let open = || connection.topic(name, &shared.options.stream_limits);
        self.stream.get_or_try_init(open).await.cloned()
    }

    /// Something is stored at this stream sequence.
    pub(super) fn seen(&self, stream_seq: u64) {
        self.floor_seq.fetch_max(stream_seq, Ordering::AcqRel);
    }
}

impl HubTopic {
    pub(super) fn open(shared: Arc<Shared>, name: &str) -> Result<Self> {
        let log = shared.queue.as_ref().map(|queue| queue.topic(name)).transpose()?;
        let slot = StreamSlot::new(name);
        let lane = match shared.nats {
            Some(_) => {
                // Each message of a journal has an entry of its own that points into the stream.
                let lane = Arc::new(Lane::new(log.is_none()));
                let task = LaneTask {
                    lane: Arc::clone(&lane),
                    shared: Arc::downgrade(&shared),
                    slot: slot.clone(),
                };
                runtime::handle()?.spawn(task.run());
                Some(lane)
            }
            None => None,
        };
        let name = Arc::clone(&slot.name);
        Ok(Self {
            shared,
            name,
            log,
            lane,
            slot,
            auto_codecs: Mutex::default(),
            stream_next_seq: Mutex::new(1),
            sweeping: AtomicBool::new(false),
        })
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An error, when the hub of this topic was closed.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn check_open(&self) -> Result<()> {
        self.shared.check_open()
    }

    /// Small messages are on the log without any waiting, so long as nobody else is writing: it is
    /// a write to memory and to the page cache.
    pub fn takes_at_once(&self) -> bool {
        self.log.is_some() && !self.shared.options.durable
    }

    pub(super) fn floor_seq(&self) -> u64 {
        self.slot.floor_seq.load(Ordering::Acquire)
    }

    /// The topic's stream, made on the first call.
    pub(super) async fn stream(&self) -> Result<JetTopic> {
        self.slot.stream(&self.shared).await
    }

    /// The topic's stream where it has been made.
    pub(super) fn opened_stream(&self) -> Option<JetTopic> {
        self.slot.stream.get().cloned()
    }

    /// Purges and counts what killed publishers have left; see [`JetTopic::sweep`].
    pub(super) async fn sweep(&self, age: Duration) -> Result<u64> {
        let swept = self.stream().await?.sweep(age).await?;
        self.shared.counters.swept.fetch_add(swept, Ordering::Relaxed);
        Ok(swept)
    }

    /// Sweeps for as long as the topic is in use; the first call starts it.
    pub(super) fn sweep_regularly(self: &Arc<Self>) -> Result<()> {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let topic = Arc::downgrade(self);
        runtime::handle()?.spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(topic) = topic.upgrade().filter(|topic| !topic.shared.is_closed()) else {
                    return;
                };
                if let Err(error) = topic.sweep(SWEEP_AGE).await {
                    log::debug!("topic {:?}: not swept: {error}", topic.name);
                }
            }
        });
        Ok(())
    }

    /// Hands messages to the lane; never blocks.
    pub(super) fn send(&self, messages: impl IntoIterator<Item = InFlight>) {
        match &self.lane {
            Some(lane) => lane.push(messages),
            None => messages.into_iter().for_each(|message| {
                message.finish(Err(Error::new(ErrorKind::Closed, "the handle is closed")));
            }),
        }
    }
}

impl Drop for HubTopic {
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.close();
        }
    }
}
