//! One topic: its journal, its stream, and the lane that keeps frames in call order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tokio::sync::{OnceCell, mpsc};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Codec, Headers, Outgoing};
use crate::hybrid::hub::Shared;
use crate::hybrid::runtime;
use crate::nats::{GroupAck, JetTopic};
use crate::queue;

/// A message on its way to the stream.
pub(super) struct Job {
    pub(super) outgoing: Outgoing,
    pub(super) headers: Headers,
    pub(super) codec: Codec,
    pub(super) deadline: Instant,
    pub(super) done: Box<dyn FnOnce(Result<GroupAck>) + Send>,
}

/// One topic of a hub.
pub struct HubTopic {
    pub(super) shared: Arc<Shared>,
    pub(super) name: Arc<str>,
    /// The journal. None in mode `nats`.
    pub(super) log: Option<Arc<queue::Topic>>,
    /// Jobs for the stream, in call order. None in mode `queue`.
    lane: Option<mpsc::UnboundedSender<Job>>,
    stream: Arc<OnceCell<JetTopic>>,
    /// The highest stream sequence seen: frames published from now on are stored after it.
    floor_seq: Arc<AtomicU64>,
    /// The producer's next seq where no journal hands them out (mode `nats`).
    pub(super) stream_next_seq: Mutex<u64>,
}

impl HubTopic {
    pub(super) fn open(shared: Arc<Shared>, name: &str) -> Result<Self> {
        let log = shared.queue.as_ref().map(|queue| queue.topic(name)).transpose()?;
        let stream = Arc::new(OnceCell::new());
        let floor_seq = Arc::new(AtomicU64::new(0));
        let lane = match shared.nats {
            Some(_) => {
                let (sender, receiver) = mpsc::unbounded_channel();
                let lane = Lane {
                    shared: Arc::downgrade(&shared),
                    name: Arc::from(name),
                    stream: Arc::clone(&stream),
                    floor_seq: Arc::clone(&floor_seq),
                };
                runtime::handle()?.spawn(lane.run(receiver));
                Some(sender)
            }
            None => None,
        };
        Ok(Self {
            shared,
            name: Arc::from(name),
            log,
            lane,
            stream,
            floor_seq,
            stream_next_seq: Mutex::new(1),
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
        self.floor_seq.load(Ordering::Acquire)
    }

    /// The topic's stream, made on the first call.
    pub(super) async fn stream(&self) -> Result<JetTopic> {
        ensure_stream(&self.shared, &self.name, &self.stream).await
    }

    /// Hands a message to the lane; never blocks.
    pub(super) fn send(&self, job: Job) {
        let refused = match &self.lane {
            Some(lane) => lane.send(job).err().map(|unsent| unsent.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            (job.done)(Err(Error::new(ErrorKind::Closed, "the handle is closed")));
        }
    }
}

async fn ensure_stream(shared: &Shared, name: &str, cell: &OnceCell<JetTopic>) -> Result<JetTopic> {
    let Some(connection) = &shared.nats else {
        return Err(Error::new(
            ErrorKind::NotConnected,
            format!("topic {name:?} has messages on the NATS route; open with mode 'hybrid'"),
        ));
    };
    let stream =
        cell.get_or_try_init(|| connection.topic(name, &shared.options.stream_limits)).await?;
    Ok(stream.clone())
}

/// Makes sure the stream exists, then passes jobs on in the order they came.
struct Lane {
    shared: Weak<Shared>,
    name: Arc<str>,
    stream: Arc<OnceCell<JetTopic>>,
    floor_seq: Arc<AtomicU64>,
}

impl Lane {
    async fn run(self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        // Before the first job, so that intents know their floor early: a small scan after a crash.
        if let Ok(stream) = self.stream().await
            && let Ok(last) = stream.last_seq().await
        {
            self.floor_seq.fetch_max(last, Ordering::AcqRel);
        }
        while let Some(job) = jobs.recv().await {
            let made = tokio::time::timeout_at(job.deadline.into(), self.stream()).await;
            match made.unwrap_or_else(|_| Err(not_sent())) {
                Ok(stream) => {
                    let floor_seq = Arc::clone(&self.floor_seq);
                    let done = move |result: Result<GroupAck>| {
                        if let Ok(ack) = &result {
                            floor_seq.fetch_max(ack.manifest_seq, Ordering::AcqRel);
                        }
                        (job.done)(result);
                    };
                    stream.publish(job.outgoing, job.headers, job.codec, job.deadline, done);
                }
                Err(error) => (job.done)(Err(error)),
            }
        }
    }

    async fn stream(&self) -> Result<JetTopic> {
        let shared = self
            .shared
            .upgrade()
            .ok_or_else(|| Error::new(ErrorKind::Closed, "the handle is closed"))?;
        ensure_stream(&shared, &self.name, &self.stream).await
    }
}

fn not_sent() -> Error {
    Error::new(ErrorKind::Timeout, "the stream did not answer in time; the message was not sent")
}
