//! The owner's side: listens in the directory, one thread for each connection and a second one for
//! each subscription.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags};

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::attach::session::Session;
use crate::hybrid::attach::socket::{self, Peer};
use crate::hybrid::attach::wire::{About, Reply, Request, VERSION};
use crate::hybrid::hub::Hub;

/// Connections at a time; each subscription of another process is one.
const CONNECTIONS_MAX: usize = 1024;
/// Until a new connection has to have said what it speaks.
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// Before it accepts again where the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens until it is stopped or dropped.
pub(in crate::hybrid) struct Server {
    state: Arc<State>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    /// To end it: the socket, and the directory wherever the process has gone meanwhile. None: it
    /// has ended; an open socket whose file is gone would keep the file system busy.
    place: Mutex<Option<(OwnedFd, File)>>,
    stopping: AtomicBool,
    connections: Mutex<HashMap<u64, Connection>>,
}

struct Connection {
    peer: Arc<Peer>,
    /// None: the thread is being started.
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens in the directory of the queue, which this process has locked.
    pub(in crate::hybrid) fn start(hub: Hub, directory: &Path) -> io::Result<Self> {
        let (listener, folder) = socket::listen(directory)?;
        let state = Arc::new(State {
            place: Mutex::new(Some((listener.try_clone()?, folder))),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let (own, hub) = (Arc::clone(&state), Arc::new(hub));
        let accepting = thread::Builder::new()
            .name("vecmq-attach".to_owned())
            .spawn(move || own.accept(&hub, &listener))?;
        Ok(Self { state, accepting: Mutex::new(Some(accepting)) })
    }

    /// Ends all connections and waits until their threads have let go of the stores.
    pub(in crate::hybrid) fn stop(&self) {
        self.end();
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A thread that panicked has let go too.
        let _ = accepting.map(JoinHandle::join);
        let connections = std::mem::take(&mut *self.state.connections());
        for connection in connections.into_values() {
            let _ = connection.thread.map(JoinHandle::join);
        }
    }

    fn end(&self) {
        if self.state.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        let place = self.state.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((listener, folder)) = place {
            // A file that stays is replaced by the next owner.
            let _ = socket::remove(&folder);
            // Wakes the thread that accepts.
            let _ = rustix::net::shutdown(&listener, Shutdown::Both);
        }
        for connection in self.state.connections().values() {
            connection.peer.shutdown();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not waited for: whoever drops it may hold what the threads need to end.
        self.end();
    }
}

impl State {
    fn accept(self: &Arc<Self>, hub: &Arc<Hub>, listener: &OwnedFd) {
        let mut last_id = 0;
        loop {
            let accepted = rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            match accepted {
                Ok(socket) => {
                    last_id += 1;
                    if let Err(error) = self.connected(hub, socket, last_id) {
                        log::warn!("a subscriber of another process was refused: {error}");
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    fn connected(self: &Arc<Self>, hub: &Arc<Hub>, socket: OwnedFd, id: u64) -> io::Result<()> {
        let peer = Arc::new(Peer::new(socket)?);
        let mut connections = self.connections();
        if connections.len() >= CONNECTIONS_MAX {
            return Err(io::Error::other(format!("{CONNECTIONS_MAX} connections are open")));
        }
        connections.insert(id, Connection { peer: Arc::clone(&peer), thread: None });
        let (own, hub) = (Arc::clone(self), Arc::clone(hub));
        let work = move || {
            serve(&hub, &peer);
            peer.shutdown();
            own.connections().remove(&id);
        };
        match thread::Builder::new().name("vecmq-attached".to_owned()).spawn(work) {
            Ok(thread) => {
                if let Some(connection) = connections.get_mut(&id) {
                    connection.thread = Some(thread);
                }
                // It was accepted while the others were told to end.
                if self.stopping.load(Ordering::Acquire) {
                    connections.values().for_each(|connection| connection.peer.shutdown());
                }
                Ok(())
            }
            Err(error) => {
                connections.remove(&id);
                Err(error)
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one connection until the other end has ended or says what makes no sense.
fn serve(hub: &Hub, peer: &Arc<Peer>) {
    if let Err(error) = converse(hub, peer) {
        log::debug!("an attached process is served no longer: {error}");
        let _ = reply(peer, &Reply::Failed(About::Request, error));
    }
}

fn converse(hub: &Hub, peer: &Arc<Peer>) -> Result<()> {
    let Some(first) = peer.receive(0, Some(Instant::now() + HELLO_WAIT))? else { return Ok(()) };
    match Request::decode(first.kind, &first.meta)? {
        Request::Hello { version: VERSION } => reply(peer, &Reply::Hello { version: VERSION })?,
        Request::Hello { version } => {
            let context = format!("attach: version {version}, this owner speaks {VERSION}");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        _ => return Err(Error::new(ErrorKind::Corrupt, "attach: expected a hello")),
    }
    while let Some(received) = peer.receive(0, None)? {
        let answer = match Request::decode(received.kind, &received.meta)? {
            Request::Topics => hub.topics().map(Reply::Topics),
            Request::Groups { topic } => hub.log_groups(&topic).map(Reply::Groups),
            Request::TopicInfo { topic } => {
                hub.topic_info(&topic).map(|answer| Reply::TopicInfo(Box::new(answer)))
            }
            Request::Subscribe(joining) => match Session::open(hub, peer, joining) {
                Ok(session) => return session.serve(),
                Err(error) => Err(error),
            },
            _ => return Err(Error::new(ErrorKind::Corrupt, "attach: not subscribed yet")),
        };
        let answer = answer.unwrap_or_else(|error| Reply::Failed(About::Request, error));
        reply(peer, &answer)?;
    }
    Ok(())
}

pub(super) fn reply(peer: &Peer, reply: &Reply) -> Result<()> {
    let (kind, meta) = reply.encode();
    peer.send(kind, &meta, &[]).map_err(|error| {
        Error::with_source(ErrorKind::NotConnected, "attach: cannot answer", error)
    })
}
