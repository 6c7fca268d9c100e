//! The connection that frames leave on, beside the one for everything else; used once.
//!
//! The client sends what it has in its queue as soon as it is connected again, ahead of everything
//! else: frames that were cut for another limit, and later ones before those that have to go
//! again. So this connection does not come back: when it is lost, what waits in it is forgotten,
//! another one is opened, and `flight` sends what was not acknowledged. Acknowledgements do not
//! queue behind deliveries either.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::connection::State as ConnectionState;
use async_nats::jetstream::Context;
use async_nats::{Client, Event};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::error::{ErrorKind, Result};
use crate::nats::connection;
use crate::nats::link::Link;
use crate::nats::options::NatsOptions;

/// Between two looks whether a connection is lost.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Opens a connection when frames are to be sent, and another one whenever that is lost.
pub(super) struct Uplink {
    shared: Arc<Shared>,
    keeper: OnceLock<Keeper>,
}

/// One connection.
pub(super) struct Up {
    /// Counts the connections, from 1.
    pub(super) number: u64,
    pub(super) client: Client,
    pub(super) context: Context,
}

struct Shared {
    options: NatsOptions,
    link: Arc<Link>,
    /// Knows the servers that the configured ones told of.
    main: Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The newest connection, lost or not.
    newest: Option<Arc<Up>>,
    /// Why the last attempt to open one failed; None: it did not.
    failure: Option<String>,
}

/// Ends its task when dropped.
struct Keeper(JoinHandle<()>);

impl Uplink {
    pub(super) fn new(options: NatsOptions, link: Arc<Link>, main: Client) -> Self {
        let shared = Shared { options, link, main, state: Mutex::default() };
        Self { shared: Arc::new(shared), keeper: OnceLock::new() }
    }

    /// From now on there is a connection, or one is being opened.
    pub(super) fn want(&self) {
        self.keeper.get_or_init(|| Keeper(tokio::spawn(Arc::clone(&self.shared).keep())));
    }

    /// The connection, unless it is lost.
    pub(super) fn up(&self) -> Option<Arc<Up>> {
        self.shared.lock().newest.clone().filter(|up| up.is_up())
    }

    /// The number of the newest connection; 0: there was none yet.
    pub(super) fn number(&self) -> u64 {
        self.shared.lock().newest.as_ref().map_or(0, |up| up.number)
    }

    /// Whether that connection is the newest and is not lost.
    pub(super) fn is_on(&self, number: u64) -> bool {
        self.shared.lock().newest.as_ref().is_some_and(|up| up.number == number && up.is_up())
    }

    /// The largest message that the server takes, as it last said on either connection.
    pub(super) fn max_payload(&self) -> usize {
        let state = self.shared.lock();
        state.newest.as_ref().map_or(&self.shared.main, |up| &up.client).server_info().max_payload
    }

    /// Why there is no connection, where there is none and that is known.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }

    /// Flushes what was handed over and ends the connection; there will be no other.
    pub(super) async fn close(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.0.abort();
        }
        if let Some(up) = self.up() {
            connection::end(&up.client).await;
        }
    }
}

impl Up {
    fn is_up(&self) -> bool {
        self.client.connection_state() == ConnectionState::Connected
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// Keeps a connection open until the other one is lost for good.
    async fn keep(self: Arc<Self>) {
        for number in 1.. {
            let Some((up, ended)) = self.open(number).await else { return };
            while up.is_up() {
                // A client that has much to tell may not tell of its end.
                let _ = timeout(LOOK_PAUSE, ended.notified()).await;
            }
            log::warn!("nats: the connection for publishing was lost");
            self.link.look();
        }
    }

    /// Opens a connection, whatever number of attempts that takes; what tells of its end.
    async fn open(&self, number: u64) -> Option<(Arc<Up>, Arc<Notify>)> {
        for attempt in 1.. {
            sleep(connection::reconnect_wait(attempt, self.options.reconnect_wait)).await;
            if self.link.is_lost() {
                return None;
            }
            match self.connect().await {
                Ok((client, ended)) => {
                    let context = connection::context(&client, &self.options);
                    let up = Arc::new(Up { number, client, context });
                    *self.lock() = State { newest: Some(Arc::clone(&up)), failure: None };
                    // Whoever waits for it looks now.
                    self.link.admit();
                    return Some((up, ended));
                }
                Err(error) => {
                    if error.kind() == ErrorKind::Denied {
                        self.link.refuse();
                    }
                    // The other connection says that the server is gone.
                    let is_news =
                        attempt == 1 && self.main.connection_state() == ConnectionState::Connected;
                    let level = if is_news { log::Level::Warn } else { log::Level::Debug };
                    log::log!(level, "nats: no connection for publishing yet: {error}");
                    self.lock().failure = Some(error.to_string());
                }
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One attempt, with one of the servers.
    async fn connect(&self) -> Result<(Client, Arc<Notify>)> {
        let mut servers = connection::addresses(&self.options)?;
        let told = self.main.server_info().connect_urls;
        for address in told.iter().filter_map(|url| url.parse().ok()) {
            if !servers.contains(&address) {
                servers.push(address);
            }
        }
        let server = servers.swap_remove(connection::chance(servers.len()));
        let (ended, spent) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (end, link) = (Arc::clone(&ended), Arc::clone(&self.link));
        let options = connection::connect_options(&self.options, Some(Arc::clone(&spent)))?
            .max_reconnects(1)
            .reconnect_delay_callback(|_| Duration::ZERO)
            .event_callback(move |event| {
                match &event {
                    Event::Disconnected | Event::Closed => end.notify_one(),
                    Event::ServerError(_) => link.report(&event),
                    _ => log::debug!("nats: publishing: {event}"),
                }
                std::future::ready(())
            });
        let client = connection::connected(&self.options, options.connect(server)).await?;
        spent.store(true, Ordering::Release);
        Ok((client, ended))
    }
}
