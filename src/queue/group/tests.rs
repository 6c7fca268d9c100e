//! A group against a plain list: random steps, the same answers, saved and restored too.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// What a message of the model is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    New,
    Done,
    Reading(SubscriberId),
    Handed(SubscriberId, u64),
    Free(u64),
}

#[derive(Clone, Debug)]
enum Step {
    ClaimNew(u64, u64),
    ClaimDue(u64, u64),
    HandOut(u64, u64, u64),
    Ack(u64, u64),
    AckBefore(u64),
    Nak(u64, u64, u64),
    Extend(u64, u64),
    Leave(u64),
    Join,
    Seek(u64),
    Sleep(u64),
    Reopen,
}

const SEQS: u64 = 40;
const WAIT: u64 = 10;

fn step() -> impl Strategy<Value = Step> {
    let seq = 1..SEQS;
    let length = 1..12_u64;
    let id = 1..3_u64;
    prop_oneof![
        4 => (id.clone(), length.clone()).prop_map(|(id, n)| Step::ClaimNew(id, n)),
        4 => (id.clone(), length.clone()).prop_map(|(id, n)| Step::ClaimDue(id, n)),
        6 => (id.clone(), seq.clone(), length.clone())
            .prop_map(|(id, seq, n)| Step::HandOut(id, seq, n)),
        5 => (seq.clone(), length.clone()).prop_map(|(seq, n)| Step::Ack(seq, n)),
        1 => seq.clone().prop_map(Step::AckBefore),
        2 => (seq.clone(), length.clone(), 0..5_u64)
            .prop_map(|(seq, n, delay)| Step::Nak(seq, n, delay)),
        1 => (seq.clone(), length).prop_map(|(seq, n)| Step::Extend(seq, n)),
        1 => id.prop_map(Step::Leave),
        1 => Just(Step::Join),
        1 => seq.prop_map(Step::Seek),
        2 => (1..8_u64).prop_map(Step::Sleep),
        1 => Just(Step::Reopen),
    ]
}

struct Model {
    is: Vec<Is>,
    deliveries: Vec<u32>,
    frontier: u64,
    now: u64,
    joined: BTreeSet<SubscriberId>,
}

impl Model {
    fn new() -> Self {
        let count = usize::try_from(SEQS * 2).unwrap();
        Self {
            is: vec![Is::New; count],
            deliveries: vec![0; count],
            frontier: 1,
            now: 0,
            joined: BTreeSet::new(),
        }
    }

    fn each(&mut self, seqs: Range<u64>, mut change: impl FnMut(&mut Is, &mut u32)) {
        for seq in seqs {
            let at = usize::try_from(seq).unwrap();
            change(&mut self.is[at], &mut self.deliveries[at]);
        }
    }

    fn cursor(&self) -> u64 {
        let is_done = |seq: &u64| self.is[usize::try_from(*seq).unwrap()] == Is::Done;
        (1..SEQS * 2).find(|seq| !is_done(seq)).unwrap()
    }
}

/// The state that was saved, change by change.
#[derive(Default)]
struct Saved {
    cursor: u64,
    done: BTreeMap<u64, u64>,
    deliveries: BTreeMap<u64, (u64, u32)>,
}

impl Saved {
    fn save(&mut self, state: &mut GroupState) {
        let (changes, everything) = state.take_changes();
        if everything {
            self.done.clear();
            self.deliveries.clear();
        }
        for change in changes {
            match change {
                Change::Cursor(seq) => self.cursor = seq,
                Change::Done(start, end) => {
                    self.done.insert(start, end);
                }
                Change::NotDone(start) => assert!(self.done.remove(&start).is_some()),
                Change::Deliveries(start, end, count) => {
                    self.deliveries.insert(start, (end, count));
                }
                Change::NoDeliveries(start) => {
                    assert!(self.deliveries.remove(&start).is_some());
                }
            }
        }
    }
}

fn at(epoch: Instant, now: u64) -> Instant {
    epoch + Duration::from_secs(now)
}

fn take(state: &mut GroupState, model: &mut Model, epoch: Instant, step: Step) {
    let now = at(epoch, model.now);
    let (tick, frontier) = (model.now, model.frontier);
    match step {
        Step::ClaimNew(id, count) => {
            let end = (frontier + count).min(SEQS);
            let claimed: Vec<u64> = state.claim_new(id, end).into_iter().flatten().collect();
            let mut expected = Vec::new();
            for seq in frontier..end {
                if model.is[usize::try_from(seq).unwrap()] == Is::New {
                    model.is[usize::try_from(seq).unwrap()] = Is::Reading(id);
                    expected.push(seq);
                }
            }
            assert_eq!(claimed, expected);
            model.frontier = frontier.max(end);
        }
        Step::ClaimDue(id, most) => match state.claim_due(id, now, most) {
            Some(claim) => {
                assert!(claim.seqs.end - claim.seqs.start <= most);
                let count = claim.deliveries;
                model.each(claim.seqs, |is, deliveries| {
                    let due = match *is {
                        Is::Handed(_, due) | Is::Free(due) => due,
                        other => panic!("claimed {other:?}"),
                    };
                    assert!(due <= tick && *deliveries == count);
                    *is = Is::Reading(id);
                });
            }
            None => model.each(1..SEQS, |is, _| match *is {
                Is::Handed(_, due) | Is::Free(due) => assert!(due > tick),
                _ => {}
            }),
        },
        Step::HandOut(id, seq, count) => {
            let seqs = seq..seq + count;
            let held: Vec<u64> = state
                .hand_out(id, seqs.clone(), Some(at(epoch, tick + WAIT)), true)
                .into_iter()
                .flatten()
                .collect();
            let mut expected = Vec::new();
            let mut seq = seq;
            model.each(seqs, |is, deliveries| {
                if *is == Is::Reading(id) {
                    *is = Is::Handed(id, tick + WAIT);
                    *deliveries += 1;
                    expected.push(seq);
                }
                seq += 1;
            });
            assert_eq!(held, expected);
        }
        step => change(state, model, epoch, &step),
    }
}

fn change(state: &mut GroupState, model: &mut Model, epoch: Instant, step: &Step) {
    let now = at(epoch, model.now);
    let (tick, frontier) = (model.now, model.frontier);
    match *step {
        Step::Ack(seq, count) => {
            state.ack(seq..seq + count);
            let end = (seq + count).min(frontier);
            model.each(seq.min(end)..end, |is, _| *is = Is::Done);
        }
        Step::AckBefore(seq) => {
            state.ack_before(seq);
            model.each(1..seq, |is, _| *is = Is::Done);
            model.frontier = frontier.max(seq);
        }
        Step::Nak(seq, count, delay) => {
            state.nak(seq..seq + count, at(epoch, tick + delay));
            model.each(seq..seq + count, |is, _| {
                if matches!(is, Is::Handed(..)) {
                    *is = Is::Free(tick + delay);
                }
            });
        }
        Step::Extend(seq, count) => {
            state.extend(seq..seq + count, Some(at(epoch, tick + WAIT)));
            model.each(seq..seq + count, |is, _| {
                if let Is::Handed(id, _) = *is {
                    *is = Is::Handed(id, tick + WAIT);
                }
            });
        }
        Step::Leave(id) => {
            state.leave(id, now);
            model.joined.remove(&id);
            model.each(1..SEQS, |is, _| match *is {
                Is::Reading(holder) | Is::Handed(holder, _) if holder == id => {
                    *is = Is::Free(tick);
                }
                _ => {}
            });
        }
        Step::Join => {
            let joined = model.joined.clone();
            model.each(1..SEQS, |is, _| {
                if matches!(is, Is::Reading(id) if joined.contains(id)) {
                    *is = Is::Free(tick);
                }
            });
            model.joined.insert(state.join(now));
        }
        Step::Seek(seq) => {
            state.seek(seq);
            model.each(1..seq, |is, deliveries| (*is, *deliveries) = (Is::Done, 0));
            model.each(seq..SEQS * 2, |is, deliveries| (*is, *deliveries) = (Is::New, 0));
            model.frontier = seq;
        }
        Step::Sleep(seconds) => model.now += seconds,
        _ => {}
    }
}

fn reopen(saved: &Saved, model: &mut Model, now: Instant) -> GroupState {
    let deliveries: Vec<(u64, u64, u32)> =
        saved.deliveries.iter().map(|(start, (end, count))| (*start, *end, *count)).collect();
    let state = GroupState::restored(saved.cursor, saved.done.clone(), &deliveries, now);
    let counted = deliveries.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
    model.joined.clear();
    model.frontier = counted.max(model.cursor());
    let (tick, frontier) = (model.now, model.frontier);
    model.each(1..frontier, |is, _| {
        if *is != Is::Done {
            *is = Is::Free(tick);
        }
    });
    model.each(frontier..SEQS * 2, |is, deliveries| {
        if *is != Is::Done {
            *is = Is::New;
        }
        *deliveries = 0;
    });
    state
}

proptest! {
    #[test]
    fn a_group_answers_like_a_list(steps in prop::collection::vec(step(), 1..80)) {
        let epoch = Instant::now();
        let mut model = Model::new();
        let mut saved = Saved { cursor: 1, ..Saved::default() };
        let mut state = GroupState::restored(1, BTreeMap::new(), &[], epoch);
        model.is[0] = Is::Done;
        for step in steps {
            let is_reopen = matches!(step, Step::Reopen);
            take(&mut state, &mut model, epoch, step);
            saved.save(&mut state);
            if is_reopen {
                let now = at(epoch, model.now);
                state = reopen(&saved, &mut model, now);
            }
            let cursor = model.cursor();
            prop_assert_eq!(state.cursor(), cursor);
            prop_assert_eq!(state.frontier(), model.frontier);
            let above = model.is[usize::try_from(cursor).unwrap()..].iter();
            let done = above.filter(|is| **is == Is::Done).count() as u64;
            prop_assert_eq!(state.done_count(), done);
            let handed = model.is.iter().filter(|is| matches!(is, Is::Handed(..))).count();
            prop_assert_eq!(state.handed_count(), handed as u64);
        }
    }
}
