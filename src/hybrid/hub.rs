//! Owns the stores of one directory; hands out topics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::ProducerId;
use crate::hybrid::busy::BusyTime;
use crate::hybrid::link::LinkSpeed;
use crate::hybrid::options::{HubOptions, Mode};
use crate::hybrid::topic::HubTopic;
use crate::hybrid::{attach, resolve, runtime};
use crate::name::validate_name;
use crate::nats::{Connection, NatsOptions};
use crate::queue::{Queue, QueueOptions, Recovery};
use crate::router::{Explanation, Route, Router};

/// How often retention deletes what may go, at least.
const RETENTION_EVERY: Duration = Duration::from_mins(1);
/// It deletes sooner when this much was published since.
const RETENTION_BYTES: u64 = 32 << 20;
/// How often it looks whether it is time.
const RETENTION_LOOK: Duration = Duration::from_millis(250);

/// Until subscribers that are closed have given back what they had.
const SETTLE_WAIT: Duration = Duration::from_secs(2);

/// Counts since the hub was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages acknowledged by the queue route.
    pub published_queue: u64,
    /// Messages acknowledged by the NATS route.
    pub published_nats: u64,
    /// Messages that the server refused and the queue took.
    pub rerouted: u64,
    /// Intents that were never stored and that readers step over.
    pub aborted: u64,
    /// Publishes whose caller's time was over before their fate was known.
    pub unknown: u64,
    /// Messages whose numbers the streams of mode `nats` have left out so far: lost by the server,
    /// or given up by their publisher.
    pub missing: u64,
    /// Groups of frames that killed publishers had left and that were purged.
    pub swept: u64,
    /// The router's threshold, in bytes.
    pub threshold_bytes: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) published_queue: AtomicU64,
    pub(super) published_nats: AtomicU64,
    pub(super) rerouted: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) missing: AtomicU64,
    pub(super) swept: AtomicU64,
}

/// What every topic of a hub shares.
pub(super) struct Shared {
    pub(super) options: HubOptions,
    pub(super) queue: Option<Arc<Queue>>,
    pub(super) nats: Option<Connection>,
    pub(super) producer: ProducerId,
    pub(super) epoch: u32,
    pub(super) counters: Counters,
    router: Mutex<Router>,
    nats_busy: Mutex<BusyTime>,
    link_speed: Mutex<LinkSpeed>,
    started: Instant,
    closed: AtomicBool,
    /// What gives messages of streams back when their subscribers are closed.
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    /// The server, where it cannot be reached now, may be reached later.
    pub(super) fn may_come_back(&self) -> bool {
        self.nats.as_ref().is_some_and(|connection| connection.check().is_ok())
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "the handle is closed"));
        }
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits for a task when the hub is closed.
    pub(super) fn keep_task(&self, task: JoinHandle<()>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Lets tasks that end come to their end, and the server know what it was told of messages.
    async fn settle(&self, topics: Vec<Arc<HubTopic>>) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = tokio::time::Instant::now() + SETTLE_WAIT;
        for task in tasks {
            // One whose subscriber is still open goes on; it ends with the connection.
            let _ = tokio::time::timeout_at(deadline, task).await;
        }
        for topic in topics {
            if let Some(stream) = topic.opened_stream() {
                stream.flush_acks().await;
            }
        }
    }

    /// Whether this open handle will never have a connection (again).
    pub(super) fn is_cut_off(&self) -> bool {
        !self.is_closed() && self.nats.as_ref().is_none_or(Connection::is_lost)
    }

    /// The route of a message, by mode or by the learned threshold.
    pub(super) fn route(&self, size_bytes: u64) -> Route {
        match self.options.mode {
            Mode::Queue => Route::Queue,
            Mode::Nats => Route::Nats,
            Mode::Hybrid => self.router().choose(size_bytes).route,
        }
    }

    /// Tells the router what a publish cost; logs one line when the threshold moves.
    pub(super) fn observe(&self, route: Route, size_bytes: u64, cost: Duration) {
        if self.options.mode != Mode::Hybrid {
            return;
        }
        let change = self.router().observe(route, size_bytes, cost, self.started.elapsed());
        if let Some(change) = change {
            log::info!("{change}");
        }
    }

    /// The busy time of the NATS route, over all topics: they share a connection and a server.
    pub(super) fn nats_busy(&self) -> MutexGuard<'_, BusyTime> {
        self.nats_busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How fast the link to the server is.
    pub(super) fn link_speed(&self) -> MutexGuard<'_, LinkSpeed> {
        self.link_speed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn router(&self) -> MutexGuard<'_, Router> {
        // The router's state is plain numbers: a panic elsewhere cannot leave it half-changed.
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since the Unix epoch, as records and retention carry them.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// One open directory, one open connection, or both.
pub struct Hub {
    shared: Arc<Shared>,
    topics: Arc<Mutex<HashMap<String, Arc<HubTopic>>>>,
    /// A task deletes what retention allows.
    retaining: Arc<AtomicBool>,
    /// Takes subscribers of other processes.
    attach: Mutex<Option<attach::Server>>,
}

impl Hub {
    /// Opens the stores that `options.mode` names and resolves what an earlier process left open.
    ///
    /// Blocks for the `RocksDB` recovery and the connect; call it off an event loop.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`], [`ErrorKind::Storage`] or [`ErrorKind::Corrupt`] for the directory,
    /// [`ErrorKind::NotConnected`] for the server, [`ErrorKind::Config`] for contradicting options.
    pub fn open(options: HubOptions) -> Result<Self> {
        let router = Router::new(options.router.clone())?;
        let queue = match (options.mode, &options.queue_path) {
            (Mode::Nats, _) => None,
            (_, Some(path)) => {
                let queue_options = QueueOptions {
                    sync_writes: options.durable,
                    retention: options.retention.clone(),
                };
                let queue = Queue::open(path, queue_options)?;
                let recovery = queue.recovery();
                let level =
                    if recovery.is_repaired() { log::Level::Warn } else { log::Level::Info };
                log::log!(level, "opened {}: {recovery}", path.display());
                Some(queue)
            }
            (_, None) => return Err(Error::new(ErrorKind::Config, "this mode needs a path")),
        };
        let nats = match (options.mode, &options.nats) {
            (Mode::Queue, _) => None,
            (_, Some(nats_options)) => Some(connect(nats_options.clone())?),
            (_, None) => {
                return Err(Error::new(ErrorKind::Config, "this mode needs a NATS server"));
            }
        };
        let (producer, epoch) = queue
            .as_ref()
            .map_or((ProducerId::random(), 1), |queue| (queue.producer(), queue.instance_epoch()));
        let url = options.nats.as_ref().map(|nats| nats.servers.join(","));
        let link_speed = LinkSpeed::new(options.link_bytes_per_s, url.as_deref());
        let shared = Arc::new(Shared {
            options,
            queue,
            nats,
            producer,
            epoch,
            counters: Counters::default(),
            router: Mutex::new(router),
            nats_busy: Mutex::new(BusyTime::default()),
            link_speed: Mutex::new(link_speed),
            started: Instant::now(),
            closed: AtomicBool::new(false),
            tasks: Mutex::default(),
        });
        let hub = Self {
            shared,
            topics: Arc::default(),
            retaining: Arc::default(),
            attach: Mutex::default(),
        };
        hub.recover()?;
        if let Some(queue) = &hub.shared.queue {
            queue.retain(unix_ms())?;
        }
        hub.start_retention(Some(Instant::now()))?;
        *hub.attach.lock().unwrap_or_else(PoisonError::into_inner) = hub.listen();
        Ok(hub)
    }

    /// Takes subscribers of other processes, where that is wanted and there is a journal.
    fn listen(&self) -> Option<attach::Server> {
        let options = &self.shared.options;
        let is_wanted = options.attach && self.shared.queue.is_some();
        let directory = options.queue_path.as_ref().filter(|_| is_wanted)?;
        let view = Self {
            shared: Arc::clone(&self.shared),
            topics: Arc::clone(&self.topics),
            retaining: Arc::clone(&self.retaining),
            attach: Mutex::default(),
        };
        let started = attach::Server::start(view, directory);
        started
            .inspect_err(|error| {
                let place = directory.display();
                log::warn!("{place}: other processes cannot subscribe, no socket: {error}");
            })
            .ok()
    }

    /// The topic of that name; made where it does not exist yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Closed`] or [`ErrorKind::Storage`].
    pub fn topic(&self, name: &str) -> Result<Arc<HubTopic>> {
        self.shared.check_open()?;
        validate_name("topic", name)?;
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(topic) = topics.get(name) {
            return Ok(Arc::clone(topic));
        }
        let topic = Arc::new(HubTopic::open(Arc::clone(&self.shared), name)?);
        topics.insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }

    /// The names of all topics of the directory; in mode `nats`, of those that the server has or
    /// this hub has opened.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] or [`ErrorKind::Storage`]; [`ErrorKind::NotConnected`] in mode `nats`.
    pub fn topics(&self) -> Result<Vec<String>> {
        self.shared.check_open()?;
        let mut names = match &self.shared.queue {
            Some(queue) => queue.topics()?,
            None => {
                let mut names = self.stream_topics()?;
                let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
                names.extend(topics.keys().cloned());
                names
            }
        };
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Which route a message of that size takes now, and why.
    pub fn explain(&self, size_bytes: u64) -> Explanation {
        self.shared.router().explain(size_bytes)
    }

    /// Counts since the hub was opened.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            published_queue: counters.published_queue.load(Ordering::Relaxed),
            published_nats: counters.published_nats.load(Ordering::Relaxed),
            rerouted: counters.rerouted.load(Ordering::Relaxed),
            aborted: counters.aborted.load(Ordering::Relaxed),
            unknown: counters.unknown.load(Ordering::Relaxed),
            missing: counters.missing.load(Ordering::Relaxed),
            swept: counters.swept.load(Ordering::Relaxed),
            threshold_bytes: self.shared.router().threshold_bytes(),
        }
    }

    /// What was replayed, dropped and repaired at the open; None without a queue.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.shared.queue.as_ref().map(|queue| queue.recovery())
    }

    /// The level that receipts of this hub carry, and its mode.
    pub fn options(&self) -> &HubOptions {
        &self.shared.options
    }

    /// Ends all publishes and subscriptions, then releases the directory and the connection.
    ///
    /// Publishes that are still in flight end with [`ErrorKind::Closed`]; what became of them is
    /// resolved when the directory is opened again. A second call does nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] when the last write to the log fails.
    pub fn close(&self) -> Result<()> {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        // Its threads use the stores.
        let attach = self.attach.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(attach) = attach {
            attach.stop();
        }
        let topics =
            std::mem::take(&mut *self.topics.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(nats) = &self.shared.nats {
            runtime::handle()?.block_on(async {
                self.shared.settle(topics.into_values().collect()).await;
                nats.close().await;
            });
        }
        self.shared.queue.as_ref().map_or(Ok(()), |queue| queue.close())
    }

    /// Asks the stream what became of the intents that the last process left open.
    fn recover(&self) -> Result<()> {
        let Some(queue) = &self.shared.queue else { return Ok(()) };
        for name in queue.topics()? {
            let open = queue.topic(&name)?.open_seqs()?;
            if open.is_empty() {
                continue;
            }
            if self.shared.nats.is_none() {
                log::warn!(
                    "topic {name:?}: {} messages wait for the NATS route; open with mode 'hybrid'",
                    open.len()
                );
                continue;
            }
            let topic = self.topic(&name)?;
            for seq in open {
                resolve::spawn(&topic, seq)?;
            }
        }
        Ok(())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn forget_topic(&self, name: &str) {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Looks for messages that may go for as long as the hub is open: where there is a retention,
    /// the hub's or a topic's own. `last` is when that was done.
    pub(super) fn start_retention(&self, last: Option<Instant>) -> Result<()> {
        let Some(queue) = &self.shared.queue else { return Ok(()) };
        if self.retaining.load(Ordering::Acquire) || !queue.has_retention()? {
            return Ok(());
        }
        if self.retaining.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        runtime::handle()?.spawn(retain_regularly(Arc::downgrade(queue), last));
        Ok(())
    }
}

/// Deletes once a minute, and sooner when much was published; at once without a `last` time.
async fn retain_regularly(queue: Weak<Queue>, mut last: Option<Instant>) {
    let mut last_bytes = queue.upgrade().map_or(0, |open| open.appended_bytes());
    loop {
        let Some(open) = queue.upgrade() else { return };
        let bytes = open.appended_bytes();
        let is_due = last.is_none_or(|last| last.elapsed() >= RETENTION_EVERY)
            || bytes.saturating_sub(last_bytes) >= RETENTION_BYTES;
        if is_due {
            (last, last_bytes) = (Some(Instant::now()), bytes);
            match tokio::task::spawn_blocking(move || open.retain(unix_ms())).await {
                Ok(Err(error)) if error.kind() == ErrorKind::Closed => return,
                Ok(Err(error)) => log::warn!("retention failed: {error}"),
                Ok(Ok(_)) => {}
                Err(_) => return,
            }
        }
        tokio::time::sleep(RETENTION_LOOK).await;
    }
}

fn connect(options: NatsOptions) -> Result<Connection> {
    runtime::handle()?.block_on(Connection::connect(options))
}
