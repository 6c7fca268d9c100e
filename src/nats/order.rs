//! In which order the frames of a topic are handed to the client: the order of the calls, also for
//! those that have to go again.
//!
//! A frame goes when no frame before it has to. When the connection was lost, all that is not
//! acknowledged goes again; the first alone, since a server that has just started refuses for a
//! while and then takes what comes, the others behind its acknowledgement.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::nats::uplink::{Up, Uplink};

/// A frame's place: its message, the message's cut, its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) message: u64,
    pub(super) cut: u32,
    pub(super) index: u32,
}

impl Key {
    /// Behind all frames of a message, whatever the cut.
    fn end_of(message: u64) -> Self {
        Self { message, cut: u32::MAX, index: u32::MAX }
    }
}

/// The frames of a topic that are not acknowledged.
pub(super) struct Order {
    uplink: Arc<Uplink>,
    state: Mutex<State>,
}

/// A frame on its way; leaves the order when dropped.
pub(super) struct Flight {
    order: Arc<Order>,
    key: Key,
}

/// The frame may be handed over; nobody else may until this is dropped.
pub(super) struct Turn {
    order: Arc<Order>,
    key: Key,
    /// The connection that it holds for.
    pub(super) up: Arc<Up>,
}

/// Keeps later messages back; until dropped.
pub(super) struct Hold {
    order: Arc<Order>,
    key: Key,
}

struct State {
    frames: Frames,
    waiting: BTreeMap<Key, Waiting>,
}

struct Waiting {
    turn: oneshot::Sender<Turn>,
    alone: bool,
}

/// What has to go, what has gone; without the connection.
#[derive(Default)]
struct Frames {
    /// The number of the connection.
    connection: u64,
    /// Handed over on that connection.
    gone: BTreeSet<Key>,
    /// To be handed over, in this order.
    needy: BTreeSet<Key>,
    taken: bool,
    trouble: Trouble,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Trouble {
    #[default]
    No,
    /// What goes next goes alone.
    Yes,
    /// It has gone.
    Probing(Key),
}

impl Order {
    pub(super) fn new(uplink: Arc<Uplink>) -> Arc<Self> {
        let frames = Frames { connection: uplink.number(), ..Frames::default() };
        let state = State { frames, waiting: BTreeMap::new() };
        Arc::new(Self { uplink, state: Mutex::new(state) })
    }

    /// A frame that will be handed over; what comes after it waits for that.
    pub(super) fn enter(self: &Arc<Self>, key: Key) -> Flight {
        self.lock().frames.needy.insert(key);
        Flight { order: Arc::clone(self), key }
    }

    /// Keeps what comes after a message back.
    pub(super) fn hold(&self, message: u64) {
        self.lock().frames.needy.insert(Key::end_of(message));
    }

    /// What ends the hold of a message, where there is one.
    pub(super) fn held(self: &Arc<Self>, message: u64) -> Hold {
        Hold { order: Arc::clone(self), key: Key::end_of(message) }
    }

    /// The connection, unless it is lost.
    pub(super) fn up(&self) -> Option<Arc<Up>> {
        self.uplink.up()
    }

    /// Whether that connection is the newest and is not lost.
    pub(super) fn is_on(&self, connection: u64) -> bool {
        self.uplink.is_on(connection)
    }

    /// Gives the turn to the next frame, where it may go now.
    pub(super) fn advance(self: &Arc<Self>) {
        let Some(up) = self.up() else { return };
        let mut state = self.lock();
        state.frames.reconnected(up.number);
        let Some(key) = state.frames.next() else { return };
        let Some(waiting) = state.waiting.get(&key) else { return };
        if waiting.alone && !state.frames.gone.is_empty() {
            return;
        }
        let Some(waiting) = state.waiting.remove(&key) else { return };
        state.frames.taken = true;
        drop(state);
        let turn = Turn { order: Arc::clone(self), key, up };
        // Whoever waited may do so no more: then the turn ends here, and goes on.
        drop(waiting.turn.send(turn));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Asks for the turn; it comes when everything before this frame has gone, with `alone` when it
    /// is acknowledged.
    pub(super) fn ask(&self, alone: bool) -> oneshot::Receiver<Turn> {
        let (turn, granted) = oneshot::channel();
        self.order.lock().waiting.insert(self.key, Waiting { turn, alone });
        self.order.advance();
        granted
    }

    /// Whether the frame has to go again, since the connection that it went to is no more.
    pub(super) fn is_lost(&self) -> bool {
        let connection = self.order.uplink.number();
        let mut state = self.order.lock();
        state.frames.reconnected(connection);
        !state.frames.gone.contains(&self.key)
    }

    /// It has to go again: there was no acknowledgement in time, or a refusal that passes.
    pub(super) fn again(&self) {
        self.order.lock().frames.again(self.key);
    }

    /// The server has it.
    pub(super) fn acknowledged(&self) {
        self.order.lock().frames.ended(self.key, true);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.order.lock();
        state.waiting.remove(&self.key);
        state.frames.ended(self.key, false);
        drop(state);
        self.order.advance();
    }
}

impl Turn {
    /// The frame was handed over.
    pub(super) fn gone(self) {
        self.order.lock().frames.went(self.key, self.up.number);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.order.lock().frames.taken = false;
        self.order.advance();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.order.lock().frames.needy.remove(&self.key);
        self.order.advance();
    }
}

impl Frames {
    /// All that went to an earlier connection has to go again; so long as nothing is acknowledged
    /// on this one, what goes first goes alone.
    fn reconnected(&mut self, connection: u64) {
        if self.connection != connection {
            self.connection = connection;
            self.needy.append(&mut self.gone);
            self.trouble = Trouble::Yes;
        }
    }

    /// What may go now.
    fn next(&self) -> Option<Key> {
        let probing = matches!(self.trouble, Trouble::Probing(_));
        if self.taken || probing { None } else { self.needy.first().copied() }
    }

    fn went(&mut self, key: Key, connection: u64) {
        if connection != self.connection {
            return; // There is another since: it stays needy.
        }
        self.needy.remove(&key);
        self.gone.insert(key);
        if self.trouble == Trouble::Yes {
            self.trouble = Trouble::Probing(key);
        }
    }

    fn again(&mut self, key: Key) {
        self.gone.remove(&key);
        self.needy.insert(key);
        let other = matches!(self.trouble, Trouble::Probing(probe) if probe != key);
        if !other {
            self.trouble = Trouble::Yes;
        }
    }

    fn ended(&mut self, key: Key, acknowledged: bool) {
        self.gone.remove(&key);
        self.needy.remove(&key);
        let is_probe = self.trouble == Trouble::Probing(key);
        if acknowledged && (is_probe || (self.gone.is_empty() && self.needy.is_empty())) {
            self.trouble = Trouble::No;
        } else if is_probe {
            self.trouble = Trouble::Yes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(message: u64) -> Key {
        Key { message, cut: 0, index: 0 }
    }

    fn went(frames: &mut Frames, key: Key) {
        frames.went(key, frames.connection);
    }

    fn sent(count: u64) -> Frames {
        let mut frames = Frames::default();
        for message in 0..count {
            frames.needy.insert(key(message));
            went(&mut frames, key(message));
        }
        frames
    }

    #[test]
    fn after_a_disconnect_all_goes_again_in_order_behind_the_first_acknowledgement() {
        let mut frames = sent(4);
        frames.ended(key(1), true);
        frames.needy.insert(key(4));
        frames.reconnected(1);
        assert_eq!(frames.next(), Some(key(0)));
        frames.went(key(0), 0);
        assert_eq!(frames.next(), Some(key(0)));
        went(&mut frames, key(0));
        assert_eq!(frames.next(), None);
        frames.ended(key(0), true);
        for message in 2..=4 {
            assert_eq!(frames.next(), Some(key(message)));
            went(&mut frames, key(message));
        }
        assert_eq!(frames.next(), None);
    }

    #[test]
    fn a_frame_that_has_to_go_again_keeps_new_ones_back_until_it_is_acknowledged() {
        let mut frames = sent(3);
        frames.again(key(1));
        frames.needy.insert(key(3));
        assert_eq!(frames.next(), Some(key(1)));
        went(&mut frames, key(1));
        // Those that had gone are no probe.
        frames.ended(key(0), true);
        frames.ended(key(2), true);
        assert_eq!(frames.next(), None);
        frames.again(key(1));
        assert_eq!(frames.next(), Some(key(1)));
        went(&mut frames, key(1));
        frames.ended(key(1), true);
        assert_eq!(frames.next(), Some(key(3)));
    }

    #[test]
    fn a_probe_that_is_given_up_lets_the_next_one_probe() {
        let mut frames = sent(2);
        frames.reconnected(1);
        went(&mut frames, key(0));
        frames.ended(key(0), false);
        assert_eq!(frames.next(), Some(key(1)));
        went(&mut frames, key(1));
        frames.needy.insert(key(2));
        assert_eq!(frames.next(), None);
        frames.ended(key(1), false);
        assert_eq!(frames.next(), Some(key(2)));
    }

    #[test]
    fn a_message_that_is_cut_anew_keeps_later_ones_back() {
        let mut frames = sent(0);
        frames.needy.insert(Key::end_of(5));
        frames.needy.insert(key(6));
        let recut = Key { message: 5, cut: 1, index: 0 };
        frames.needy.insert(recut);
        assert_eq!(frames.next(), Some(recut));
        went(&mut frames, recut);
        assert_eq!(frames.next(), Some(Key::end_of(5)));
        frames.needy.remove(&Key::end_of(5));
        assert_eq!(frames.next(), Some(key(6)));
    }
}
