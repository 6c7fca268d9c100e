//! What a subscription of a stream knows of its producers' messages: which are done, which are
//! missing.
//!
//! The server saves acknowledgements late: one that is killed delivers again what was done. And it
//! steps over what its disk has lost, in silence. Both show in the numbers of the producers, which
//! have no gaps.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use crate::frame::{MessageId, ProducerId};

/// Producers that are remembered; of one that is forgotten, repeats are handed out.
const PRODUCERS_MAX: usize = 4096;
/// Ranges that are remembered of a producer; the lowest are forgotten.
const RANGES_MAX: usize = 1 << 16;

type Producer = (ProducerId, u32);

/// Numbers, as ranges that do not touch each other.
#[derive(Debug, Default)]
struct Ranges {
    /// First number -> end.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    fn insert(&mut self, mut added: Range<u64>) {
        while let Some((&start, &end)) = self.ends.range(..=added.end).next_back()
            && end >= added.start
        {
            self.ends.remove(&start);
            added = added.start.min(start)..added.end.max(end);
        }
        self.ends.insert(added.start, added.end);
        if self.ends.len() > RANGES_MAX {
            self.ends.pop_first();
        }
    }

    /// How many numbers went.
    fn remove(&mut self, gone: &Range<u64>) -> u64 {
        let mut count = 0;
        while let Some((&start, &end)) = self.ends.range(..gone.end).next_back()
            && end > gone.start
        {
            self.ends.remove(&start);
            count += end.min(gone.end) - start.max(gone.start);
            if end > gone.end {
                self.ends.insert(gone.end, end);
            }
            if start < gone.start {
                self.ends.insert(start, gone.start);
            }
        }
        count
    }

    fn contains(&self, numbers: &Range<u64>) -> bool {
        let before = self.ends.range(..=numbers.start).next_back();
        before.is_some_and(|(_, end)| *end >= numbers.end)
    }
}

/// What is known of each producer, of a limited number of them.
#[derive(Debug)]
struct Known<T> {
    producers: HashMap<Producer, T>,
    oldest_first: VecDeque<Producer>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { producers: HashMap::new(), oldest_first: VecDeque::new() }
    }
}

impl<T: Default> Known<T> {
    fn of(&mut self, id: &MessageId) -> &mut T {
        let producer = (id.producer, id.epoch);
        if !self.producers.contains_key(&producer) {
            if self.producers.len() >= PRODUCERS_MAX
                && let Some(oldest) = self.oldest_first.pop_front()
            {
                self.producers.remove(&oldest);
            }
            self.oldest_first.push_back(producer);
        }
        self.producers.entry(producer).or_default()
    }
}

/// The messages that are done.
#[derive(Debug, Default)]
pub(super) struct Done {
    known: Known<Ranges>,
}

impl Done {
    pub(super) fn insert(&mut self, id: &MessageId, rows: u32) {
        self.known.of(id).insert(numbers(id, rows));
    }

    pub(super) fn contains(&self, id: &MessageId, rows: u32) -> bool {
        let known = self.known.producers.get(&(id.producer, id.epoch));
        known.is_some_and(|done| done.contains(&numbers(id, rows)))
    }
}

/// The messages that should have come and did not.
#[derive(Debug, Default)]
pub(super) struct Missing {
    known: Known<Progress>,
    last_delivery: u64,
    /// Grows when deliveries went elsewhere: what is missing then says nothing.
    round: u64,
}

#[derive(Debug, Default)]
struct Progress {
    round: u64,
    next: u64,
    missing: Ranges,
}

impl Missing {
    /// Notes a delivery, the `delivery`-th of its consumer; `postponed` ones before it were not
    /// handed out. Gives how many messages are missing before it, and how many are not any more.
    pub(super) fn came(
        &mut self,
        id: &MessageId,
        rows: u32,
        delivery: u64,
        postponed: u64,
    ) -> (u64, u64) {
        if delivery != self.last_delivery + 1 + postponed {
            self.round += 1;
        }
        self.last_delivery = delivery;
        // What others than us publish has no numbers of ours.
        if id.producer == ProducerId([0; 16]) {
            return (0, 0);
        }
        let numbers = numbers(id, rows);
        let round = self.round;
        let progress = self.known.of(id);
        if progress.round != round || progress.next == 0 {
            progress.round = round;
            // Others may have got what lies between, or retention has deleted it.
            progress.next = progress.next.max(numbers.start);
        }
        let mut missing = 0;
        if numbers.start > progress.next {
            let gap = progress.next..numbers.start;
            missing = gap.end - gap.start;
            progress.missing.insert(gap);
        }
        progress.next = progress.next.max(numbers.end);
        (missing, progress.missing.remove(&numbers))
    }
}

fn numbers(id: &MessageId, rows: u32) -> Range<u64> {
    id.seq..id.seq.saturating_add(u64::from(rows))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::collections::BTreeSet;

    use super::*;

    fn id(producer: u8, seq: u64) -> MessageId {
        MessageId { producer: ProducerId([producer; 16]), epoch: 1, seq }
    }

    #[test]
    fn ranges_are_what_a_plain_set_is() {
        let (mut ranges, mut set, mut state) = (Ranges::default(), BTreeSet::new(), 7_u64);
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = (state >> 33) % 200;
            let numbers = start..start + 1 + (state >> 50) % 9;
            if (state >> 45) % 2 == 0 {
                ranges.insert(numbers.clone());
                set.extend(numbers.clone());
            } else {
                let before = set.len();
                set.retain(|number| !numbers.contains(number));
                assert_eq!(ranges.remove(&numbers), (before - set.len()) as u64);
            }
            assert_eq!(ranges.contains(&(3..40)), (3..40).all(|number| set.contains(&number)));
            let touching = ranges.ends.iter().zip(ranges.ends.iter().skip(1));
            assert!(touching.into_iter().all(|((_, end), (next, _))| end < next));
        }
        let all: u64 = ranges.ends.iter().map(|(start, end)| end - start).sum();
        assert_eq!(all, set.len() as u64);
    }

    #[test]
    fn a_hole_is_missing_until_it_is_filled() {
        let mut missing = Missing::default();
        assert_eq!(missing.came(&id(1, 10), 5, 1, 0), (0, 0));
        assert_eq!(missing.came(&id(2, 1), 1, 2, 0), (0, 0));
        assert_eq!(missing.came(&id(1, 20), 1, 3, 0), (5, 0));
        assert_eq!(missing.came(&id(1, 16), 2, 4, 0), (0, 2));
        assert_eq!(missing.came(&id(1, 16), 2, 5, 0), (0, 0));
        assert_eq!(missing.came(&id(1, 23), 1, 7, 1), (2, 0));
        assert_eq!(missing.came(&id(2, 2), 1, 8, 0), (0, 0));
    }

    #[test]
    fn what_another_subscriber_got_is_not_missing() {
        let mut missing = Missing::default();
        assert_eq!(missing.came(&id(1, 1), 1, 1, 0), (0, 0));
        assert_eq!(missing.came(&id(1, 5), 1, 3, 0), (0, 0));
        assert_eq!(missing.came(&id(1, 7), 1, 4, 0), (1, 0));
        assert_eq!(missing.came(&id(0, 90), 1, 5, 0), (0, 0));
        assert_eq!(missing.came(&id(0, 99), 1, 6, 0), (0, 0));
    }

    #[test]
    fn what_is_remembered_is_limited() {
        let mut done = Done::default();
        for producer in 0..=u16::try_from(PRODUCERS_MAX).unwrap() {
            let mut bytes = [1; 16];
            bytes.split_at_mut(2).0.copy_from_slice(&producer.to_le_bytes());
            done.insert(&MessageId { producer: ProducerId(bytes), epoch: 1, seq: 1 }, 3);
        }
        assert_eq!(done.known.producers.len(), PRODUCERS_MAX);
        for seq in 0..=RANGES_MAX as u64 {
            done.insert(&id(9, 2 * seq), 1);
        }
        assert!(!done.contains(&id(9, 0), 1));
        assert!(done.contains(&id(9, 2), 1));
        assert!(!done.contains(&id(9, 3), 1));
    }
}
