//! What a server sends on a connection that somebody else opened, read as fast as it comes.
//!
//! nats-py opens the connection and writes to it; here it is read, in a task of the runtime, so an
//! event loop that is busy makes no server give the connection up. What was read waits in order
//! until the loop takes it. While little waits nothing is dropped; beyond that a subscription's own
//! limits say what may wait for it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::nats::wire::{Arrival, Said, Wire};

/// What may wait whatever the limits say: what a server holds for a client before it gives it up.
const WAITING_BYTES_MIN: usize = 64 << 20;
/// What a message that waits takes besides its bytes.
const ARRIVAL_BYTES: usize = 256;
/// Notes of dropped messages that wait; more say nothing new.
const DROPPED_MAX: usize = 4096;

/// What waits for whoever reads the connection.
#[derive(Debug)]
pub enum Inflow {
    /// The server said something.
    Said(Said),
    /// A message was over its subscription's limits. Its body is gone.
    Dropped(Arrival),
    /// Nothing more comes: the server closed the connection (None), or why not.
    Ended(Option<Error>),
}

/// The messages that may wait for one subscription; 0: any number.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages.
    pub msgs_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
}

#[derive(Default)]
struct Held {
    limits: Option<Limits>,
    msgs: usize,
    bytes: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Inflow>,
    waiting_bytes: usize,
    dropped: usize,
    subscriptions: HashMap<u64, Held>,
    waker: Option<Waker>,
}

/// A connection that is read; dropped, it is not any more.
pub struct Inbound {
    state: Arc<Mutex<State>>,
    reading: AbortHandle,
}

impl Inbound {
    /// Reads a connection from here on. What came before is `before`.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`] when the socket cannot be watched.
    pub fn read(
        runtime: &tokio::runtime::Handle,
        socket: std::net::TcpStream,
        before: &[u8],
    ) -> Result<Self> {
        let watched = |e| Error::with_source(ErrorKind::NotConnected, "cannot watch the socket", e);
        let _entered = runtime.enter();
        socket.set_nonblocking(true).map_err(watched)?;
        let socket = TcpStream::from_std(socket).map_err(watched)?;
        let state = Arc::new(Mutex::new(State::default()));
        let mut reader = Reader { wire: Wire::default(), state: Arc::clone(&state) };
        reader.take(before)?;
        let reading = runtime.spawn(async move {
            let end = reader.read(&socket).await.err();
            reader.put(vec![Inflow::Ended(end)]);
        });
        Ok(Self { state, reading: reading.abort_handle() })
    }

    /// Sets what may wait for a subscription.
    pub fn limit(&self, sid: u64, limits: Limits) {
        lock(&self.state).subscriptions.entry(sid).or_default().limits = Some(limits);
    }

    /// Forgets a subscription's limits.
    pub fn forget(&self, sid: u64) {
        let mut state = lock(&self.state);
        if let Some(held) = state.subscriptions.get_mut(&sid) {
            held.limits = None;
            if held.msgs == 0 {
                state.subscriptions.remove(&sid);
            }
        }
    }

    /// Takes what waits, in order, until it has `bytes_max` of it.
    pub fn take(&self, bytes_max: usize) -> Vec<Inflow> {
        let mut state = lock(&self.state);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max
            && let Some(inflow) = state.waiting.pop_front()
        {
            bytes += state.leaves(&inflow);
            taken.push(inflow);
        }
        taken
    }

    /// Has `waker` woken once when something waits; false: something does.
    pub fn wait(&self, waker: Waker) -> bool {
        let mut state = lock(&self.state);
        if !state.waiting.is_empty() {
            return false;
        }
        state.waker = Some(waker);
        true
    }

    /// Lets the socket go.
    pub fn close(&self) {
        self.reading.abort();
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.close();
    }
}

struct Reader {
    wire: Wire,
    state: Arc<Mutex<State>>,
}

impl Reader {
    /// Reads until the server closes the connection.
    async fn read(&mut self, socket: &TcpStream) -> Result<()> {
        let broken = |e| Error::with_source(ErrorKind::NotConnected, "the connection broke", e);
        loop {
            socket.readable().await.map_err(broken)?;
            match socket.try_read_buf(&mut self.wire.room()) {
                Ok(0) => return Ok(()),
                Ok(_) => self.said()?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(broken(e)),
            }
        }
    }

    /// Takes bytes that somebody else read.
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.wire.feed(bytes)?.into_iter().map(Inflow::Said).for_each(|one| self.put(vec![one]));
        Ok(())
    }

    fn said(&mut self) -> Result<()> {
        let mut inflow = Vec::new();
        let ended = loop {
            match self.wire.take() {
                Ok(Some(said)) => inflow.push(Inflow::Said(said)),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.put(inflow);
        ended
    }

    fn put(&self, inflow: Vec<Inflow>) {
        if inflow.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        for one in inflow {
            state.put(one);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    fn put(&mut self, inflow: Inflow) {
        let Inflow::Said(Said::Message(arrival)) = inflow else {
            self.waiting.push_back(inflow);
            return;
        };
        let size = held_bytes(&arrival);
        let is_full = self.waiting_bytes + size > WAITING_BYTES_MIN;
        let held = self.subscriptions.entry(arrival.sid).or_default();
        if is_full && held.limits.is_some_and(|limits| limits.forbid(held, size)) {
            self.drop_one(&arrival);
            return;
        }
        held.msgs += 1;
        held.bytes += size;
        self.waiting_bytes += size;
        self.waiting.push_back(Inflow::Said(Said::Message(arrival)));
    }

    /// Notes that a message was dropped, without keeping the memory that it lies in.
    fn drop_one(&mut self, arrival: &Arrival) {
        if self.dropped >= DROPPED_MAX {
            return;
        }
        self.dropped += 1;
        self.waiting.push_back(Inflow::Dropped(Arrival {
            sid: arrival.sid,
            subject: bytes::Bytes::copy_from_slice(&arrival.subject),
            reply: bytes::Bytes::copy_from_slice(&arrival.reply),
            headers: bytes::Bytes::copy_from_slice(&arrival.headers),
            body: bytes::Bytes::new(),
        }));
    }

    /// Counts what no longer waits; gives its bytes.
    fn leaves(&mut self, inflow: &Inflow) -> usize {
        match inflow {
            Inflow::Said(Said::Message(arrival)) => {
                let size = held_bytes(arrival);
                self.waiting_bytes -= size;
                if let Some(held) = self.subscriptions.get_mut(&arrival.sid) {
                    held.msgs -= 1;
                    held.bytes -= size;
                    if held.msgs == 0 && held.limits.is_none() {
                        self.subscriptions.remove(&arrival.sid);
                    }
                }
                size
            }
            Inflow::Dropped(_) => {
                self.dropped -= 1;
                ARRIVAL_BYTES
            }
            _ => ARRIVAL_BYTES,
        }
    }
}

impl Limits {
    fn forbid(self, held: &Held, size: usize) -> bool {
        let is_over = |count: usize, max: usize| max > 0 && count >= max;
        is_over(held.msgs, self.msgs_max) || is_over(held.bytes + size, self.bytes_max)
    }
}

fn held_bytes(arrival: &Arrival) -> usize {
    ARRIVAL_BYTES + arrival.headers.len() + arrival.body.len()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
