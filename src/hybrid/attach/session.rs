//! One subscription of another process, as the owner serves it.
//!
//! One thread reads requests, so acknowledgements are taken while messages are being written, and
//! after the other process was killed. A second one waits for messages and sends what was wanted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::acks::JournalAcker;
use crate::hybrid::attach::runs::{self, Run};
use crate::hybrid::attach::server::reply;
use crate::hybrid::attach::socket::Peer;
use crate::hybrid::attach::wire::{About, Joining, MESSAGES, Reply, Request};
use crate::hybrid::hub::Hub;
use crate::hybrid::options::SubscribeOptions;
use crate::hybrid::subscribe::Subscriber;

/// A wish that is not repeated for so long is dropped: its caller has given up.
pub(super) const WANT_LASTS: Duration = Duration::from_secs(2);
/// Messages of one answer.
pub(super) const MESSAGES_MAX: u32 = 4096;

/// One subscription of another process.
pub(super) struct Session {
    peer: Arc<Peer>,
    acker: Arc<JournalAcker>,
    subscriber: Mutex<Subscriber>,
    wanted: Mutex<Wanted>,
}

#[derive(Default)]
struct Wanted {
    /// Id, messages, and until when.
    open: Option<(u32, u32, Instant)>,
    /// The last id that was answered.
    answered: u32,
    /// What the other process calls the time since its last seek.
    generation: u32,
    has_ended: bool,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Session {
    pub(super) fn open(hub: &Hub, peer: &Arc<Peer>, joining: Joining) -> Result<Arc<Self>> {
        let options = SubscribeOptions {
            start: joining.start,
            ack_wait: joining.ack_wait,
            deliveries_max: joining.deliveries_max,
            dead_letters: joining.dead_letters.map(|name| hub.topic(&name)).transpose()?,
        };
        let subscriber = Subscriber::open(&hub.topic(&joining.topic)?, &joining.group, &options)?;
        let acker = subscriber.journal_acker().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "attach: mode 'nats' has no log; use the server")
        })?;
        Ok(Arc::new(Self {
            peer: Arc::clone(peer),
            acker,
            subscriber: Mutex::new(subscriber),
            wanted: Mutex::default(),
        }))
    }

    /// Serves it until the other end has ended.
    pub(super) fn serve(self: &Arc<Self>) -> Result<()> {
        let own = Arc::clone(self);
        let sending = thread::Builder::new()
            .name("vecmq-attached-send".to_owned())
            .spawn(move || own.send())
            .map_err(|e| Error::with_source(ErrorKind::Storage, "cannot start a thread", e))?;
        let outcome = reply(&self.peer, &Reply::Done).and_then(|()| self.take_requests(&sending));
        // A write that nobody reads ends with it.
        self.peer.shutdown();
        self.leave();
        sending.thread().unpark();
        // A thread that panicked has ended too.
        let _ = sending.join();
        outcome
    }

    fn take_requests(&self, sending: &thread::JoinHandle<()>) -> Result<()> {
        while let Some(received) = self.peer.receive(0, None)? {
            match Request::decode(received.kind, &received.meta)? {
                Request::Want { id, messages } => {
                    let mut wanted = self.wanted();
                    if id != wanted.answered {
                        wanted.open = Some((id, messages, Instant::now() + WANT_LASTS));
                        sending.thread().unpark();
                    }
                }
                Request::Ack(ranges) => {
                    if let Err(error) = self.acker.group.ack(ranges) {
                        reply(&self.peer, &Reply::Failed(About::Earlier, error))?;
                    }
                }
                Request::Nak { seqs, delay } => {
                    self.acker.group.nak(std::iter::once(seqs), delay);
                }
                Request::Extend(ranges) => self.acker.group.extend(ranges, self.acker.ack_wait),
                Request::AckThrough { seq } => {
                    let done = self.subscriber().ack_through(seq);
                    self.answer(done)?;
                    sending.thread().unpark();
                }
                Request::Seek { to, generation } => {
                    let done = {
                        let mut subscriber = self.subscriber();
                        let done = subscriber.seek(to);
                        if done.is_ok() {
                            self.wanted().generation = generation;
                        }
                        done
                    };
                    self.answer(done)?;
                    sending.thread().unpark();
                }
                Request::Leave => {
                    self.leave();
                    sending.thread().unpark();
                }
                _ => return Err(Error::new(ErrorKind::Corrupt, "attach: subscribed already")),
            }
        }
        Ok(())
    }

    /// What was handed out and not acknowledged is due at once.
    fn leave(&self) {
        self.wanted().has_ended = true;
        self.subscriber().close();
    }

    fn answer(&self, done: Result<()>) -> Result<()> {
        let answer = match done {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Failed(About::Request, error),
        };
        reply(&self.peer, &answer)
    }

    /// Sends what is wanted until the session ends.
    fn send(&self) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            let (id, count, until) = {
                let mut wanted = self.wanted();
                if wanted.has_ended {
                    return;
                }
                wanted.open = wanted.open.filter(|(_, _, until)| Instant::now() < *until);
                match wanted.open {
                    Some(open) => open,
                    None => {
                        drop(wanted);
                        thread::park();
                        continue;
                    }
                }
            };
            let (taken, next_look, generation) = {
                let mut subscriber = self.subscriber();
                let count = count.clamp(1, MESSAGES_MAX) as usize;
                let taken = subscriber.poll(count, &waker, false);
                let taken = taken.and_then(|messages| Run::gather(&messages));
                let wanted = self.wanted();
                (taken, subscriber.next_look(), wanted.generation)
            };
            match taken {
                Ok(runs) if runs.is_empty() => {
                    let end = next_look.map_or(until, |look| look.min(until));
                    thread::park_timeout(end.saturating_duration_since(Instant::now()));
                }
                Ok(runs) => {
                    self.answered(id);
                    if self.send_runs(&runs, generation).is_err() {
                        // The thread that reads sees the end too, after what was written before it.
                        return;
                    }
                }
                Err(error) => {
                    self.answered(id);
                    if reply(&self.peer, &Reply::Failed(About::Wanted, error)).is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn answered(&self, id: u32) {
        let mut wanted = self.wanted();
        wanted.answered = id;
        wanted.open = wanted.open.filter(|(open, ..)| *open != id);
    }

    fn send_runs(&self, runs: &[Run], generation: u32) -> std::io::Result<()> {
        let replies = runs::replies(runs);
        let count = replies.len();
        for (place, reply) in replies.into_iter().enumerate() {
            let meta = runs::encode(generation, place + 1 == count, reply);
            let payloads: Vec<_> = reply.iter().map(|run| run.payload.clone()).collect();
            self.peer.send(MESSAGES, &meta, &payloads)?;
        }
        Ok(())
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscriber(&self) -> MutexGuard<'_, Subscriber> {
        self.subscriber.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
