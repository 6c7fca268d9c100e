//! Who has which message of a subscription group, and which are done. Pure: the clock is an
//! argument, and what has to be saved gathers as [`Change`]s.
//!
//! ```text
//!            cursor                          frontier
//!  all done    |  done, leased, due again ...   |  nobody was given these yet
//! -------------+--------------------------------+--------------------------------> seq
//! ```
//!
//! Everything is kept in ranges of seqs: a batch that is handed out and acknowledged as one costs
//! as much as one message.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

/// A subscriber of the group, as long as it has joined.
pub type SubscriberId = u64;

/// Messages of a group that were neither done nor given to anybody: they are the caller's now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Their seqs.
    pub seqs: Range<u64>,
    /// How often they were handed out before.
    pub deliveries: u32,
}

/// What has to be saved, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Cursor(u64),
    /// Done above the cursor: first seq, and the seq after the last.
    Done(u64, u64),
    NotDone(u64),
    /// Deliveries of a range: first seq, the seq after the last, how many.
    Deliveries(u64, u64, u32),
    NoDeliveries(u64),
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    end: u64,
    deliveries: u32,
    /// The number of deliveries is saved.
    counted: bool,
    holder: Holder,
}

#[derive(Clone, Copy, Debug)]
enum Holder {
    /// Read ahead, not handed out.
    Reading(SubscriberId),
    /// Handed out; due again from then on.
    Handed(SubscriberId, Option<Instant>),
    /// With nobody; due from then on.
    Free(Instant),
}

impl Holder {
    fn due(self) -> Option<Instant> {
        match self {
            Self::Reading(_) => None,
            Self::Handed(_, due) => due,
            Self::Free(due) => Some(due),
        }
    }
}

/// One group.
pub(super) struct GroupState {
    cursor: u64,
    done: BTreeMap<u64, u64>,
    done_count: u64,
    frontier: u64,
    leases: BTreeMap<u64, Lease>,
    due: BTreeSet<(Instant, u64)>,
    subscribers: BTreeSet<SubscriberId>,
    last_id: SubscriberId,
    /// Counts what makes worthless whatever was read ahead before.
    generation: u64,
    /// What is not saved yet.
    changes: Vec<Change>,
    /// The changes are not all there is to save: the next save writes everything.
    stale: bool,
    /// Its name is free: nothing of it is saved any more.
    pub(super) is_deleted: bool,
    /// Somebody is saving who may wait; others leave it to him.
    pub(super) is_being_saved: bool,
}

impl GroupState {
    /// A group as it was saved. What was handed out and is not done is due at once.
    pub(super) fn restored(
        cursor: u64,
        done: BTreeMap<u64, u64>,
        deliveries: &[(u64, u64, u32)],
        now: Instant,
    ) -> Self {
        let mut state = Self {
            cursor,
            done_count: done.iter().map(|(start, end)| end - start).sum(),
            done,
            frontier: cursor,
            leases: BTreeMap::new(),
            due: BTreeSet::new(),
            subscribers: BTreeSet::new(),
            last_id: 0,
            generation: 0,
            changes: Vec::new(),
            stale: false,
            is_deleted: false,
            is_being_saved: false,
        };
        let last = deliveries.iter().map(|(_, end, _)| *end).max().unwrap_or(cursor);
        state.frontier = last.max(cursor);
        let free = |end| Lease { end, deliveries: 0, counted: false, holder: Holder::Free(now) };
        for piece in state.not_done(cursor..state.frontier) {
            state.insert(piece.start, free(piece.end));
        }
        for (start, end, count) in deliveries {
            for (start, lease) in state.take(*start..*end) {
                let lease = Lease { deliveries: *count, counted: true, ..lease };
                state.insert(start, lease);
            }
        }
        state.changes.clear();
        state
    }

    /// Takes what has to be saved; all of it when `true` comes with it.
    pub(super) fn take_changes(&mut self) -> (Vec<Change>, bool) {
        let changes = std::mem::take(&mut self.changes);
        if std::mem::take(&mut self.stale) { (self.snapshot(), true) } else { (changes, false) }
    }

    /// There is something to save.
    pub(super) fn has_changes(&self) -> bool {
        self.stale || !self.changes.is_empty()
    }

    /// The last changes were not saved.
    pub(super) fn not_saved(&mut self) {
        self.stale = true;
    }

    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(super) fn frontier(&self) -> u64 {
        self.frontier
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Messages above the cursor that are done.
    pub(super) fn done_count(&self) -> u64 {
        self.done_count
    }

    /// Messages that subscribers have and have not acknowledged.
    pub(super) fn handed_count(&self) -> u64 {
        let handed = |lease: &Lease| matches!(lease.holder, Holder::Handed(..));
        let leases = self.leases.iter().filter(|(_, lease)| handed(lease));
        leases.map(|(start, lease)| lease.end - start).sum()
    }

    pub(super) fn subscribers_count(&self) -> usize {
        self.subscribers.len()
    }

    /// Adds a subscriber. What others have only read ahead is free for all: they may be busy for
    /// long.
    pub(super) fn join(&mut self, now: Instant) -> SubscriberId {
        self.drop_read_ahead(now);
        self.last_id += 1;
        self.subscribers.insert(self.last_id);
        self.last_id
    }

    /// What the subscriber had and has not acknowledged is due at once.
    pub(super) fn leave(&mut self, id: SubscriberId, now: Instant) {
        self.subscribers.remove(&id);
        self.give_back(id, now, true);
    }

    /// Takes from all subscribers what they have read ahead and not handed out.
    pub(super) fn drop_read_ahead(&mut self, now: Instant) {
        for id in self.subscribers.clone() {
            self.give_back(id, now, false);
            self.generation += 1;
        }
    }

    /// Gives back what a subscriber has read ahead, and with `handed` what it was handed too.
    pub(super) fn give_back(&mut self, id: SubscriberId, now: Instant, handed: bool) {
        let own = |lease: &Lease| match lease.holder {
            Holder::Reading(holder) => holder == id,
            Holder::Handed(holder, _) => handed && holder == id,
            Holder::Free(_) => false,
        };
        let starts: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| own(lease)).map(|(start, _)| *start).collect();
        for start in starts {
            if let Some(lease) = self.remove(start) {
                let freed = Lease { holder: Holder::Free(now), ..lease };
                self.insert(start, freed);
            }
        }
    }

    /// When the next message is due again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Claims messages that are due again, the longest due first; at most `most` of them.
    pub(super) fn claim_due(&mut self, id: SubscriberId, now: Instant, most: u64) -> Option<Claim> {
        let (due, start) = *self.due.first()?;
        if due > now {
            return None;
        }
        let end = self.leases.get(&start)?.end.min(start.saturating_add(most.max(1)));
        let mut claim = None;
        for (start, lease) in self.take(start..end) {
            claim = Some(Claim { seqs: start..lease.end, deliveries: lease.deliveries });
            let reading = Lease { holder: Holder::Reading(id), ..lease };
            self.insert(start, reading);
        }
        claim
    }

    /// Claims everything from the frontier to `end`, without what is done.
    pub(super) fn claim_new(&mut self, id: SubscriberId, end: u64) -> Vec<Range<u64>> {
        let pieces = self.not_done(self.frontier..end);
        let holder = Holder::Reading(id);
        for piece in &pieces {
            let lease = Lease { end: piece.end, deliveries: 0, counted: false, holder };
            self.insert(piece.start, lease);
        }
        self.frontier = self.frontier.max(end);
        pieces
    }

    /// Marks what the subscriber has read ahead as handed out; returns what it still has.
    pub(super) fn hand_out(
        &mut self,
        id: SubscriberId,
        seqs: Range<u64>,
        due: Option<Instant>,
        counted: bool,
    ) -> Vec<Range<u64>> {
        let mut held = Vec::new();
        for (start, lease) in self.take(seqs) {
            let reading = matches!(lease.holder, Holder::Reading(holder) if holder == id);
            if reading {
                held.push(start..lease.end);
                let counted = counted || lease.counted;
                let deliveries = lease.deliveries.saturating_add(1);
                let holder = Holder::Handed(id, due);
                self.insert(start, Lease { end: lease.end, deliveries, counted, holder });
            } else {
                self.insert(start, lease);
            }
        }
        held
    }

    /// Marks messages done, whoever has them. What was never handed out is not touched.
    pub(super) fn ack(&mut self, seqs: Range<u64>) {
        let seqs = seqs.start.max(self.cursor)..seqs.end.min(self.frontier);
        if seqs.is_empty() {
            return;
        }
        self.take(seqs.clone());
        let (mut start, mut end) = (seqs.start, seqs.end);
        // Merged with what touches it on either side.
        if let Some((&before, &its_end)) = self.done.range(..=start).next_back()
            && its_end >= start
        {
            self.forget_done(before);
            (start, end) = (before, end.max(its_end));
        }
        while let Some((&after, &its_end)) = self.done.range(start..=end).next() {
            self.forget_done(after);
            end = end.max(its_end);
        }
        if start <= self.cursor {
            self.cursor = end;
            self.changes.push(Change::Cursor(end));
        } else {
            self.done.insert(start, end);
            self.done_count += end - start;
            self.changes.push(Change::Done(start, end));
        }
    }

    /// Marks everything before `seq` done, handed out or not.
    pub(super) fn ack_before(&mut self, seq: u64) {
        self.frontier = self.frontier.max(seq);
        self.ack(self.cursor..seq);
    }

    /// Gives messages back that were handed out: they are due at `due`.
    pub(super) fn nak(&mut self, seqs: Range<u64>, due: Instant) {
        self.change_holders(seqs, |_| Some(Holder::Free(due)));
    }

    /// Puts off when messages that somebody has are due again.
    pub(super) fn extend(&mut self, seqs: Range<u64>, due: Option<Instant>) {
        self.change_holders(seqs, |holder| match holder {
            Holder::Handed(id, _) => Some(Holder::Handed(id, due)),
            _ => None,
        });
    }

    fn change_holders(&mut self, seqs: Range<u64>, change: impl Fn(Holder) -> Option<Holder>) {
        for (start, lease) in self.take(seqs) {
            let handed = matches!(lease.holder, Holder::Handed(..));
            let holder = if handed { change(lease.holder) } else { None };
            let lease = Lease { holder: holder.unwrap_or(lease.holder), ..lease };
            self.insert(start, lease);
        }
    }

    /// Goes on at `seq`, whatever is done or with subscribers.
    pub(super) fn seek(&mut self, seq: u64) {
        self.cursor = seq;
        self.frontier = seq;
        self.done.clear();
        self.done_count = 0;
        self.leases.clear();
        self.due.clear();
        self.generation += 1;
        self.stale = true;
    }

    /// Everything that a save has to hold.
    fn snapshot(&self) -> Vec<Change> {
        let done = self.done.iter().map(|(start, end)| Change::Done(*start, *end));
        let counted = self.leases.iter().filter(|(_, lease)| lease.counted);
        let counts = counted.map(|(start, l)| Change::Deliveries(*start, l.end, l.deliveries));
        std::iter::once(Change::Cursor(self.cursor)).chain(done).chain(counts).collect()
    }

    /// The parts of a range that are not done.
    fn not_done(&self, seqs: Range<u64>) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        let mut at = seqs.start.max(self.cursor);
        let before = self.done.range(..=at).next_back();
        if let Some((_, &end)) = before {
            at = at.max(end);
        }
        for (&start, &end) in self.done.range(at..seqs.end.max(at)) {
            pieces.push(at..start);
            at = end;
        }
        pieces.push(at..seqs.end);
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    fn forget_done(&mut self, start: u64) {
        if let Some(end) = self.done.remove(&start) {
            self.done_count -= end - start;
            self.changes.push(Change::NotDone(start));
        }
    }

    /// Takes the leases inside a range out, cut at its borders; what lies outside stays.
    fn take(&mut self, seqs: Range<u64>) -> Vec<(u64, Lease)> {
        let before = self.leases.range(..seqs.start).next_back();
        let first = before.filter(|(_, lease)| lease.end > seqs.start).map(|(start, _)| *start);
        let inside = self.leases.range(seqs.start..seqs.end.max(seqs.start));
        let starts: Vec<u64> = first.into_iter().chain(inside.map(|(start, _)| *start)).collect();
        let mut taken = Vec::with_capacity(starts.len());
        for start in starts {
            let Some(lease) = self.remove(start) else { continue };
            if start < seqs.start {
                self.insert(start, Lease { end: seqs.start, ..lease });
            }
            if lease.end > seqs.end {
                self.insert(seqs.end, lease);
            }
            taken.push((start.max(seqs.start), Lease { end: lease.end.min(seqs.end), ..lease }));
        }
        taken
    }

    fn insert(&mut self, start: u64, lease: Lease) {
        if let Some(due) = lease.holder.due() {
            self.due.insert((due, start));
        }
        if lease.counted {
            self.changes.push(Change::Deliveries(start, lease.end, lease.deliveries));
        }
        self.leases.insert(start, lease);
    }

    fn remove(&mut self, start: u64) -> Option<Lease> {
        let lease = self.leases.remove(&start)?;
        if let Some(due) = lease.holder.due() {
            self.due.remove(&(due, start));
        }
        if lease.counted {
            self.changes.push(Change::NoDeliveries(start));
        }
        Some(lease)
    }
}

#[cfg(test)]
mod tests;
