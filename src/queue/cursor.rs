//! Subscription groups, saved: the cursor and what is done above it change in one write.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rocksdb::WriteBatch;

use crate::error::{Error, ErrorKind, Result};
use crate::name::validate_name;
use crate::queue::append::Appender;
use crate::queue::commit::AppendJob;
use crate::queue::db::{Pace, Use};
use crate::queue::group::{Change, Claim, GroupState, SubscriberId};
use crate::queue::keys;
use crate::queue::topic::Topic;

/// Where a new subscription group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupStart {
    /// At the oldest message that is still there.
    First,
    /// After the newest one.
    New,
}

impl FromStr for GroupStart {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "first" => Ok(Self::First),
            "new" => Ok(Self::New),
            _ => Err(Error::new(
                ErrorKind::Config,
                format!("start: expected 'first' or 'new', got {text:?}"),
            )),
        }
    }
}

/// How far a subscription group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Every message before this seq is done.
    pub next_seq: u64,
    /// Messages above it that are done.
    pub done_above: u64,
    /// Messages that are not done: the lag.
    pub lag: u64,
    /// Messages of them that subscribers have now.
    pub handed_out: u64,
    /// Subscribers now.
    pub subscribers: u64,
}

/// A subscription group of a topic; handles of one group share their state.
#[derive(Clone)]
pub struct Group {
    topic: Arc<Topic>,
    name: Arc<str>,
    state: Arc<Mutex<GroupState>>,
}

impl Topic {
    /// The group of that name; made where it does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`],
    /// [`ErrorKind::Storage`], [`ErrorKind::Corrupt`].
    pub fn group(self: &Arc<Self>, name: &str, start: GroupStart) -> Result<Group> {
        validate_name("subscription group", name)?;
        self.check_exists()?;
        let mut groups = self.lock_groups();
        if let Some(state) = groups.get(name) {
            return Ok(Group {
                topic: Arc::clone(self),
                name: Arc::from(name),
                state: Arc::clone(state),
            });
        }
        let (state, is_new) = match self.restore(name)? {
            Some(state) => (state, false),
            None => {
                let first = match start {
                    GroupStart::First => self.first_seq(),
                    GroupStart::New => self.next_seq(),
                };
                (GroupState::restored(first, BTreeMap::new(), &[], Instant::now()), true)
            }
        };
        let state = Arc::new(Mutex::new(state));
        let group =
            Group { topic: Arc::clone(self), name: Arc::from(name), state: Arc::clone(&state) };
        if is_new {
            // Saved at once, so that retention knows about the group.
            let mut state = group.lock();
            state.not_saved();
            group.save(&mut state, Pace::Patient)?;
        }
        groups.insert(name.to_owned(), state);
        Ok(group)
    }

    /// The group of that name.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`], else as [`Topic::group`].
    pub fn existing_group(self: &Arc<Self>, name: &str) -> Result<Group> {
        if self.cursor(name)?.is_none() {
            let context = format!("topic {:?} has no subscription group {name:?}", self.name());
            return Err(Error::new(ErrorKind::GroupNotFound, context));
        }
        self.group(name, GroupStart::First)
    }

    /// Deletes a group and its cursor.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`]; [`ErrorKind::Config`] while it has subscribers;
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn delete_group(self: &Arc<Self>, name: &str) -> Result<()> {
        let group = self.existing_group(name)?;
        let mut groups = self.lock_groups();
        let mut state = group.lock();
        let subscribers = state.subscribers_count();
        if subscribers > 0 {
            return Err(Error::new(
                ErrorKind::Config,
                format!("subscription group {name:?} has {subscribers} subscribers: close them"),
            ));
        }
        let open = self.db.get()?;
        let meta = open.meta()?;
        let mut batch = WriteBatch::default();
        batch.delete_cf(&meta, keys::cursor(self.id, name));
        group.clear(&open, &mut batch)?;
        self.db.write(&open, batch)?;
        state.is_deleted = true;
        groups.remove(name);
        Ok(())
    }

    /// The next seq that the group has to read; None for a group that does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn cursor(&self, group: &str) -> Result<Option<u64>> {
        let open = self.db.get()?;
        let value = open
            .rocks
            .get_pinned_cf(&open.meta()?, keys::cursor(self.id, group))
            .map_err(|e| self.db.failed("read", e))?;
        value.map(|value| keys::u64_value(&value)).transpose()
    }

    /// All groups and their cursors.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn groups(&self) -> Result<Vec<(String, u64)>> {
        let open = self.db.get()?;
        let prefix = keys::cursor_prefix(self.id);
        let found = self.db.scan_prefix(&open, &prefix)?;
        let one = |(key, value): &(Box<[u8]>, Box<[u8]>)| {
            let name = key.get(prefix.len()..).unwrap_or_default();
            Ok((String::from_utf8_lossy(name).into_owned(), keys::u64_value(value)?))
        };
        found.iter().map(one).collect()
    }

    /// Nobody hands out what was read before a purge.
    pub(super) fn drop_read_ahead(&self) {
        for state in self.lock_groups().values() {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.drop_read_ahead(Instant::now());
        }
        self.wake_all();
    }

    fn restore(&self, name: &str) -> Result<Option<GroupState>> {
        let Some(cursor) = self.cursor(name)? else { return Ok(None) };
        let open = self.db.get()?;
        let scan = |prefix: &[u8]| -> Result<Vec<(u64, Box<[u8]>)>> {
            let found = self.db.scan_prefix(&open, prefix)?;
            found.into_iter().map(|(key, value)| Ok((keys::last_seq(&key)?, value))).collect()
        };
        let done = scan(&keys::done_prefix(self.id, name))?
            .into_iter()
            .map(|(start, value)| Ok((start, keys::u64_value(&value)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let deliveries = scan(&keys::deliveries_prefix(self.id, name))?
            .into_iter()
            .map(|(start, value)| {
                let (end, count) = keys::deliveries_value(&value)?;
                Ok((start, end, count))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Some(GroupState::restored(cursor, done, &deliveries, Instant::now())))
    }
}

impl Group {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its topic.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    /// How far it is.
    pub fn info(&self) -> GroupInfo {
        let state = self.lock();
        let begin = state.cursor().max(self.topic.first_seq());
        let behind = self.topic.next_seq().saturating_sub(begin);
        GroupInfo {
            name: self.name.to_string(),
            next_seq: state.cursor(),
            done_above: state.done_count(),
            lag: behind.saturating_sub(state.done_count()),
            handed_out: state.handed_count(),
            subscribers: state.subscribers_count() as u64,
        }
    }

    /// Adds a subscriber. What others have read ahead and not handed out is free for all.
    pub fn join(&self) -> SubscriberId {
        self.lock().join(Instant::now())
    }

    /// Removes a subscriber; what it had and did not acknowledge is due at once.
    pub fn leave(&self, id: SubscriberId) {
        self.lock().leave(id, Instant::now());
        self.topic.wake_all();
    }

    /// More than one subscriber competes for its messages.
    pub fn is_shared(&self) -> bool {
        self.lock().subscribers_count() > 1
    }

    /// Changes when what was read ahead before is worth nothing: by a seek, a join, a purge.
    pub fn generation(&self) -> u64 {
        self.lock().generation()
    }

    /// When a message is due again that somebody has, or that was given back.
    pub fn next_due(&self) -> Option<Instant> {
        self.lock().next_due()
    }

    /// Claims messages that are due again; at most `most` of them.
    pub fn claim_due(&self, id: SubscriberId, now: Instant, most: u64) -> Option<Claim> {
        self.lock().claim_due(id, now, most)
    }

    /// Gives back what a subscriber has read ahead and not handed out. Whoever drops what he has
    /// read since the group has changed has to: he may have claimed more before he saw the change.
    pub fn give_back_read_ahead(&self, id: SubscriberId) {
        self.lock().give_back(id, Instant::now(), false);
        self.topic.wake_all();
    }

    /// Claims messages that nobody was given yet. `read` gets the seq to begin at and returns what
    /// it found and the seq after it; no other subscriber claims meanwhile. Returns that and the
    /// ranges in it that are not done.
    ///
    /// # Errors
    /// Those of `read`; then nothing is claimed.
    pub fn claim_new<T>(
        &self,
        id: SubscriberId,
        read: impl FnOnce(u64) -> Result<(T, u64)>,
    ) -> Result<(T, Vec<Range<u64>>)> {
        let mut state = self.lock();
        let (found, end) = read(state.frontier())?;
        let pieces = state.claim_new(id, end);
        Ok((found, pieces))
    }

    /// Marks what the subscriber has read ahead as handed out, due again after `ack_wait`; returns
    /// what it still has. `counted`: the count of deliveries is saved before this returns.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn hand_out(
        &self,
        id: SubscriberId,
        seqs: &[Range<u64>],
        ack_wait: Option<Duration>,
        counted: bool,
    ) -> Result<Vec<Range<u64>>> {
        let due = ack_wait.and_then(|wait| Instant::now().checked_add(wait));
        let mut state = self.lock();
        let held =
            seqs.iter().flat_map(|one| state.hand_out(id, one.clone(), due, counted)).collect();
        if counted {
            self.save(&mut state, Pace::Hurried)?;
        }
        Ok(held)
    }

    /// Marks messages done; saved when this returns. What was never handed out is not touched.
    ///
    /// While the log is stalled (flush behind, disk full), saving is left to the queue's thread: a
    /// crash before that delivers the messages again.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn ack(&self, seqs: impl IntoIterator<Item = Range<u64>>) -> Result<()> {
        let mut state = self.lock();
        seqs.into_iter().for_each(|one| state.ack(one));
        self.save(&mut state, Pace::Hurried)
    }

    /// Marks everything up to and including `seq` done, handed out or not.
    ///
    /// # Errors
    /// As [`Group::ack`].
    pub fn ack_through(&self, seq: u64) -> Result<()> {
        let mut state = self.lock();
        state.ack_before(seq.saturating_add(1));
        self.save(&mut state, Pace::Hurried)
    }

    /// Gives messages back: they are due after `delay`.
    pub fn nak(&self, seqs: impl IntoIterator<Item = Range<u64>>, delay: Duration) {
        let now = Instant::now();
        let due = now.checked_add(delay).unwrap_or(now);
        let mut state = self.lock();
        seqs.into_iter().for_each(|one| state.nak(one, due));
        drop(state);
        self.topic.wake_all();
    }

    /// Begins `ack_wait` anew for messages that somebody has.
    pub fn extend(&self, seqs: impl IntoIterator<Item = Range<u64>>, ack_wait: Option<Duration>) {
        let due = ack_wait.and_then(|wait| Instant::now().checked_add(wait));
        let mut state = self.lock();
        seqs.into_iter().for_each(|one| state.extend(one, due));
    }

    /// Goes on at `seq`, for all subscribers of the group; saved when this returns.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn seek(&self, seq: u64) -> Result<()> {
        let mut state = self.lock();
        state.seek(seq);
        self.save(&mut state, Pace::Patient)?;
        drop(state);
        self.topic.wake_all();
        Ok(())
    }

    fn save(&self, state: &mut GroupState, pace: Pace) -> Result<()> {
        if state.is_being_saved || state.is_deleted {
            return Ok(());
        }
        let (changes, everything) = state.take_changes();
        let saved = self.write(&changes, everything, pace);
        if saved.is_err() {
            state.not_saved();
        }
        match saved {
            Err(error) if error.kind() == ErrorKind::Timeout => {
                state.is_being_saved = true;
                let job = Box::new(SaveLater(self.clone()));
                self.topic.append_job_later(0, job, true);
                Ok(())
            }
            saved => saved,
        }
    }

    fn write(&self, changes: &[Change], everything: bool, pace: Pace) -> Result<()> {
        self.topic.check_exists()?;
        if changes.is_empty() {
            return Ok(());
        }
        let open = self.topic.db.get()?;
        let meta = open.meta()?;
        let (id, name) = (self.topic.id, &*self.name);
        let mut batch = WriteBatch::default();
        if everything {
            self.clear(&open, &mut batch)?;
        }
        for change in changes {
            match *change {
                Change::Cursor(seq) => {
                    batch.put_cf(&meta, keys::cursor(id, name), seq.to_le_bytes());
                }
                Change::Done(start, end) => {
                    batch.put_cf(&meta, keys::done(id, name, start), end.to_le_bytes());
                }
                Change::NotDone(start) => batch.delete_cf(&meta, keys::done(id, name, start)),
                Change::Deliveries(start, end, count) => {
                    let value = keys::encode_deliveries(end, count);
                    batch.put_cf(&meta, keys::deliveries(id, name, start), value);
                }
                Change::NoDeliveries(start) => {
                    batch.delete_cf(&meta, keys::deliveries(id, name, start));
                }
            }
        }
        // Never synced by itself: a power cut takes back acknowledgements at most, and the next
        // synced append takes them along.
        self.topic.db.write_unsynced(&open, batch, pace)
    }

    /// Forgets everything that is saved but the cursor.
    fn clear(&self, open: &Use, batch: &mut WriteBatch) -> Result<()> {
        let meta = open.meta()?;
        let (id, name) = (self.topic.id, &*self.name);
        for prefix in [keys::done_prefix(id, name), keys::deliveries_prefix(id, name)] {
            for (key, _) in self.topic.db.scan_prefix(open, &prefix)? {
                batch.delete_cf(&meta, key);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Saves a group in the queue's thread, which may wait.
struct SaveLater(Group);

impl AppendJob for SaveLater {
    fn build(&mut self, _: &mut Appender) -> Result<()> {
        Ok(())
    }

    fn done(self: Box<Self>, outcome: Result<std::ops::RangeInclusive<u64>>) {
        // Told by whoever saves, who holds the group.
        if outcome.is_err_and(|error| error.kind() == ErrorKind::Closed) {
            return;
        }
        let Self(group) = *self;
        loop {
            let mut state = group.lock();
            if !state.has_changes() || state.is_deleted {
                state.is_being_saved = false;
                return;
            }
            let (changes, everything) = state.take_changes();
            // Acknowledgements go on while this waits.
            drop(state);
            if let Err(error) = group.write(&changes, everything, Pace::Patient) {
                let mut state = group.lock();
                state.not_saved();
                state.is_being_saved = false;
                let (topic, name) = (group.topic.name(), &group.name);
                log::warn!("topic {topic:?}: group {name:?} is not saved: {error}");
                return;
            }
        }
    }
}
