//! What became of deliveries, told to the server.
//!
//! One task of a topic sends what has gathered and has the last of it confirmed; meanwhile the next
//! gathers. So an acknowledgement costs no round trip, and what a lost connection took along is
//! sent again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::jetstream::message::AckKind;
use async_nats::{Client, Subject};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};

/// What one confirmation is for, at most.
const BATCH_MAX: usize = 4096;
/// Between attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Unconfirmed on a connection that stands: the group has been moved or deleted.
const ATTEMPTS_MAX: u32 = 2;
/// How often a held delivery's wait begins anew, at least.
const KEEP_PERIOD_MAX: Duration = Duration::from_hours(1);
const KEEP_PERIOD_MIN: Duration = Duration::from_millis(20);

pub(super) enum Told {
    What(Subject, Bytes),
    /// Finished when all that was told before is confirmed or given up.
    Flush(oneshot::Sender<()>),
}

/// Tells the server what became of a delivery. Nothing waits: a lost acknowledgement means that
/// the message comes again.
#[derive(Clone)]
pub struct AckHandle {
    pub(super) reply: Subject,
    pub(super) told: mpsc::UnboundedSender<Told>,
}

impl AckHandle {
    /// Marks the whole message done.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn ack(&self) -> Result<()> {
        self.tell(AckKind::Ack)
    }

    /// Asks for the message again after `delay`.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn nak(&self, delay: Duration) -> Result<()> {
        self.tell(AckKind::Nak((!delay.is_zero()).then_some(delay)))
    }

    /// Begins the server's wait anew.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn in_progress(&self) -> Result<()> {
        self.tell(AckKind::Progress)
    }

    /// Marks the message as one that is not to be delivered again, although nobody is done with it.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn term(&self) -> Result<()> {
        self.tell(AckKind::Term)
    }

    fn tell(&self, kind: AckKind) -> Result<()> {
        let told = Told::What(self.reply.clone(), kind.into());
        let closed = |_| Error::new(ErrorKind::Closed, "the connection is closed");
        self.told.send(told).map_err(closed)
    }
}

/// Tells the server for as long as the topic is in use.
pub(super) async fn run(client: Client, mut told: mpsc::UnboundedReceiver<Told>) {
    let mut gathered = Vec::new();
    while told.recv_many(&mut gathered, BATCH_MAX).await > 0 {
        let mut batch = Vec::with_capacity(gathered.len());
        let mut waiting = Vec::new();
        for one in gathered.drain(..) {
            match one {
                Told::What(subject, what) => batch.push((subject, what)),
                Told::Flush(done) => waiting.push(done),
            }
        }
        send(&client, &batch).await;
        for done in waiting {
            // Whoever gave up waiting need not know.
            let _ = done.send(());
        }
    }
}

async fn send(client: &Client, batch: &[(Subject, Bytes)]) {
    let Some(((last, what), others)) = batch.split_last() else { return };
    let mut attempts = 0;
    loop {
        for (subject, what) in others {
            if client.publish(subject.clone(), what.clone()).await.is_err() {
                return;
            }
        }
        let error = match client.request(last.clone(), what.clone()).await {
            Ok(_) => return,
            Err(error) if error.kind() == RequestErrorKind::NoResponders => error,
            Err(error) => {
                if client.connection_state() == State::Connected {
                    attempts += 1;
                }
                if attempts < ATTEMPTS_MAX {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                error
            }
        };
        let count = batch.len();
        log::warn!("{count} acknowledgements are not confirmed, messages may come again: {error}");
        return;
    }
}

/// Deliveries that nobody was given yet: their wait at the server is begun anew until then.
#[derive(Default)]
pub(super) struct Held {
    acks: Mutex<BTreeMap<u64, AckHandle>>,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, AckHandle>> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a delivery until what is returned is dropped.
    pub(super) fn hold(self: &Arc<Self>, delivery_seq: u64, ack: AckHandle) -> Hold {
        self.lock().insert(delivery_seq, ack);
        Hold { held: Arc::clone(self), delivery_seq }
    }

    /// Gives everything back.
    pub(super) fn give_back(&self) {
        for ack in std::mem::take(&mut *self.lock()).into_values() {
            // A closed connection has given it back already.
            let _ = ack.nak(Duration::ZERO);
        }
    }

    /// Keeps what is held for as long as somebody holds it.
    pub(super) fn keep(self: &Arc<Self>, ack_wait: Duration) {
        let held = Arc::downgrade(self);
        let period = (ack_wait / 3).clamp(KEEP_PERIOD_MIN, KEEP_PERIOD_MAX);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                let Some(held) = held.upgrade() else { return };
                let acks: Vec<AckHandle> = held.lock().values().cloned().collect();
                if acks.iter().any(|ack| ack.in_progress().is_err()) {
                    return;
                }
            }
        });
    }
}

/// A delivery that is held.
pub struct Hold {
    held: Arc<Held>,
    delivery_seq: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.lock().remove(&self.delivery_seq);
    }
}
