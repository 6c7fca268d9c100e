//! The connection of one subscription, as the subscriber's process sees it.
//!
//! A thread reads what the owner sends and wakes whoever waits. The owner sends what was asked for,
//! so nothing gathers here but the answer to the last wish.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::acks::Acker;
use crate::hybrid::attach::client::ANSWER_WAIT;
use crate::hybrid::attach::runs::{self, Run};
use crate::hybrid::attach::session::MESSAGES_MAX;
use crate::hybrid::attach::socket::{Peer, Received};
use crate::hybrid::attach::wire::{About, Joining, MESSAGES, RANGES_MAX, Reply, Request, damaged};
use crate::hybrid::subscribe::{Message, SeekTo, Unpacking};

/// A wish is repeated after so long, or the owner takes it that the caller has given up.
const WANT_AGAIN: Duration = Duration::from_millis(500);

/// Held by the subscriber and its messages; the connection ends with the last of them, so that
/// messages can be acknowledged after their subscriber is closed.
pub(in crate::hybrid) struct Link(Arc<Channel>);

impl Link {
    /// Marks messages done. They are when the owner reads this, whatever becomes of this process.
    pub(in crate::hybrid) fn ack(&self, seqs: &[Range<u64>]) -> Result<()> {
        for some in seqs.chunks(RANGES_MAX) {
            self.0.tell(&Request::Ack(some.to_vec()))?;
        }
        Ok(())
    }

    pub(in crate::hybrid) fn nak(&self, seqs: Range<u64>, delay: Duration) -> Result<()> {
        self.0.tell(&Request::Nak { seqs, delay })
    }

    pub(in crate::hybrid) fn in_progress(&self, seqs: Range<u64>) -> Result<()> {
        self.0.tell(&Request::Extend(std::iter::once(seqs).collect()))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.0.end(Error::new(ErrorKind::Closed, "the subscription is closed"));
    }
}

/// The connection, shared with the thread that reads from it.
struct Channel {
    peer: Peer,
    /// Named in errors.
    place: String,
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    /// What has come, when, and in which generation.
    runs: VecDeque<(Run, Instant, u32)>,
    /// The wish that is not answered to its end: its id.
    open: Option<u32>,
    generation: u32,
    waker: Option<Waker>,
    /// The answer to a request that is waited for.
    answer: Option<Result<()>>,
    /// Why what was wanted cannot be read.
    unreadable: Option<Error>,
    /// An acknowledgement that could not be saved.
    unsaved: Option<Error>,
    /// The connection has ended.
    ended: Option<Error>,
}

impl Channel {
    /// Sends what is not answered, unless an earlier one has failed.
    fn tell(&self, request: &Request) -> Result<()> {
        {
            let mut state = self.lock();
            state.check()?;
            if let Some(error) = state.unsaved.take() {
                return Err(error);
            }
        }
        self.send(request)
    }

    /// Sends what is answered, and waits for the answer.
    fn ask(&self, request: &Request) -> Result<()> {
        self.lock().answer = None;
        self.tell(request)?;
        let deadline = Instant::now() + ANSWER_WAIT;
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.answer.take() {
                return answer;
            }
            state.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let context = format!("{}: no answer from its owner", self.place);
                return Err(Error::new(ErrorKind::Timeout, context));
            }
            let waited = self.answered.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn send(&self, request: &Request) -> Result<()> {
        let (kind, meta) = request.encode();
        self.peer.send(kind, &meta, &[]).map_err(|_| self.lost())
    }

    fn lost(&self) -> Error {
        // The reason is in what the reading thread found, where it was there first.
        let context = format!("{}: its owner has closed it or has ended", self.place);
        self.lock().ended.as_ref().map_or_else(
            || Error::new(ErrorKind::NotConnected, context),
            |error| Error::new(error.kind(), error.to_string()),
        )
    }

    fn end(&self, error: Error) {
        let mut state = self.lock();
        state.ended.get_or_insert(error);
        // What was not handed out is another subscriber's by now.
        state.runs.clear();
        state.wake();
        drop(state);
        self.answered.notify_all();
        self.peer.shutdown();
    }

    /// Reads what the owner sends until the connection ends.
    fn read(&self, reply_bytes_max: u64) {
        loop {
            let taken = match self.peer.receive(reply_bytes_max, None) {
                Ok(Some(received)) => self.take(&received),
                Ok(None) => Err(self.lost()),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                return self.end(error);
            }
        }
    }

    fn take(&self, received: &Received) -> Result<()> {
        if received.kind == MESSAGES {
            let (generation, is_last, runs) = runs::decode(&received.meta, &received.payloads)?;
            let mut state = self.lock();
            if is_last {
                state.open = None;
            }
            // The first of a seek can be here before the seeking thread has its answer.
            if [state.generation, state.generation.wrapping_add(1)].contains(&generation) {
                let now = Instant::now();
                state.runs.extend(runs.into_iter().map(|run| (run, now, generation)));
            }
            state.wake();
            return Ok(());
        }
        let reply = Reply::decode(received.kind, &received.meta)?;
        let mut state = self.lock();
        match reply {
            Reply::Done => state.answer = Some(Ok(())),
            Reply::Failed(About::Request, error) => state.answer = Some(Err(error)),
            Reply::Failed(About::Earlier, error) => {
                state.unsaved.get_or_insert(error);
            }
            Reply::Failed(About::Wanted, error) => {
                state.open = None;
                state.unreadable = Some(error);
                state.wake();
            }
            _ => return Err(damaged("reply")),
        }
        drop(state);
        self.answered.notify_all();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<()> {
        let again = |error: &Error| Error::new(error.kind(), error.to_string());
        self.ended.as_ref().map_or(Ok(()), |error| Err(again(error)))
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A subscription of this process in a directory that another one owns.
pub(in crate::hybrid) struct RemoteReader {
    link: Arc<Link>,
    topic: Arc<str>,
    ack_wait: Option<Duration>,
    /// What has come and was not asked for yet, and when.
    ready: VecDeque<(Message, Instant)>,
    last_id: u32,
    wanted_at: Instant,
}

impl RemoteReader {
    /// Joins the group over a connection that has said hello.
    pub(super) fn open(
        peer: Peer,
        place: String,
        joining: Joining,
        reply_bytes_max: u64,
    ) -> Result<Self> {
        let channel =
            Arc::new(Channel { peer, place, state: Mutex::default(), answered: Condvar::new() });
        let link = Arc::new(Link(Arc::clone(&channel)));
        thread::Builder::new()
            .name("vecmq-attach-read".to_owned())
            .spawn(move || channel.read(reply_bytes_max))
            .map_err(|e| Error::with_source(ErrorKind::Storage, "cannot start a thread", e))?;
        let (topic, ack_wait) = (Arc::from(joining.topic.as_str()), joining.ack_wait);
        let wanted_at = Instant::now();
        // From here on dropping it ends the thread.
        let reader = Self { link, topic, ack_wait, ready: VecDeque::new(), last_id: 0, wanted_at };
        reader.link.0.ask(&Request::Subscribe(joining))?;
        Ok(reader)
    }

    pub(in crate::hybrid) fn poll(
        &mut self,
        messages_max: usize,
        waker: &Waker,
    ) -> Result<Vec<Message>> {
        let ready = self.take_ready(messages_max)?;
        if !ready.is_empty() {
            return Ok(ready);
        }
        let want = {
            let mut state = self.link.0.lock();
            state.check()?;
            if let Some(error) = state.unsaved.take().or_else(|| state.unreadable.take()) {
                return Err(error);
            }
            // A wait that was given up is told, or its token would be kept for ever.
            if let Some(before) = state.waker.replace(waker.clone())
                && !before.will_wake(waker)
            {
                before.wake();
            }
            if !state.runs.is_empty() {
                None
            } else if let Some(id) = state.open {
                (self.wanted_at.elapsed() >= WANT_AGAIN).then_some(id)
            } else {
                self.last_id = self.last_id.wrapping_add(1);
                state.open = Some(self.last_id);
                Some(self.last_id)
            }
        };
        if let Some(id) = want {
            self.wanted_at = Instant::now();
            let messages = u32::try_from(messages_max).unwrap_or(u32::MAX).min(MESSAGES_MAX);
            self.link.0.send(&Request::Want { id, messages })?;
        }
        self.take_ready(messages_max)
    }

    fn take_ready(&mut self, messages_max: usize) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        while messages.len() < messages_max {
            let Some((message, came)) = self.ready.pop_front() else {
                if self.unpack()? {
                    continue;
                }
                break;
            };
            let waited = came.elapsed();
            // It lay here while nobody asked: by now it may be another subscriber's.
            if self.ack_wait.is_some_and(|wait| waited >= wait) {
                continue;
            }
            if self.ack_wait.is_some_and(|wait| waited >= wait / 4) {
                message.in_progress()?;
            }
            messages.push(message);
        }
        Ok(messages)
    }

    /// Makes messages of the next run; false: none has come.
    fn unpack(&mut self) -> Result<bool> {
        let Some((run, came, _)) = self.link.0.lock().runs.pop_front() else { return Ok(false) };
        let (block, gathered) = run.into_block(Acker::Remote(Arc::clone(&self.link)))?;
        let mut unpacking = Unpacking::new(&self.topic, block, gathered)?;
        while let Some(message) = unpacking.next() {
            self.ready.push_back((message, came));
        }
        Ok(true)
    }

    /// When the wish has to be repeated.
    pub(in crate::hybrid) fn next_look(&self) -> Instant {
        self.wanted_at + WANT_AGAIN
    }

    pub(in crate::hybrid) fn ack_through(&mut self, seq: u64) -> Result<()> {
        self.link.0.ask(&Request::AckThrough { seq })?;
        while self.unpack()? {}
        self.ready.retain(|(message, _)| message.seq > seq);
        Ok(())
    }

    pub(in crate::hybrid) fn seek(&mut self, to: SeekTo) -> Result<()> {
        let before = self.link.0.lock().generation;
        let generation = before.wrapping_add(1);
        self.link.0.ask(&Request::Seek { to, generation })?;
        let mut state = self.link.0.lock();
        state.generation = generation;
        state.runs.retain(|(_, _, of)| *of == generation);
        self.ready.clear();
        Ok(())
    }
}

impl Drop for RemoteReader {
    fn drop(&mut self) {
        // Where the owner has gone, nobody has to know.
        let _ = self.link.0.send(&Request::Leave);
    }
}
