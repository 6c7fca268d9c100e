//! Counts a topic's messages, and reads them in order.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::queue::rocksmq::files::{RocksMq, read_options};
use crate::queue::rocksmq::keys;
use crate::queue::rocksmq::topics::RocksTopic;

/// Between two calls of a scan's `go_on`.
const SCAN_MESSAGES: u64 = 4096;
const SCAN_BYTES: u64 = 16 << 20;

/// What one pass over all messages of a topic found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RocksScan {
    /// The topic, and what the metadata says of it.
    pub topic: RocksTopic,
    /// Messages.
    pub messages_count: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// The largest payload, in bytes.
    pub payload_bytes_max: u64,
    /// The smallest id.
    pub first_id: Option<u64>,
    /// The largest id.
    pub last_id: Option<u64>,
    /// Bytes that the metadata counts in pages not yet acknowledged, and that are not there:
    /// messages that a power cut or a lost file took.
    pub missing_bytes: u64,
    /// How many digits its ids have.
    widths: BTreeSet<usize>,
}

impl RocksMq {
    /// Reads every message of a topic once: an exact count, and proof that nothing is damaged.
    ///
    /// `go_on` is called now and then with messages and bytes so far; false ends the scan with
    /// [`ErrorKind::Closed`].
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Corrupt`], [`ErrorKind::Storage`].
    pub fn scan(&self, topic: &str, mut go_on: impl FnMut(u64, u64) -> bool) -> Result<RocksScan> {
        let topic = self.topic(topic)?;
        let mut pages = PageCheck::new(&topic);
        let mut scan = RocksScan::default();
        let (start, end) = keys::topic_range(&topic.name);
        let mut options = read_options();
        options.set_iterate_upper_bound(end);
        let mut iterator = self.store().raw_iterator_opt(options);
        iterator.seek(start);
        let mut told = (0, 0);
        while let Some((key, value)) = iterator.item() {
            let (_, id) = keys::message(key)?;
            let bytes = value.len() as u64;
            scan.add(id, bytes);
            pages.add(id, bytes);
            if scan.messages_count - told.0 >= SCAN_MESSAGES
                || scan.payload_bytes - told.1 >= SCAN_BYTES
            {
                told = (scan.messages_count, scan.payload_bytes);
                if !go_on(told.0, told.1) {
                    return Err(Error::new(ErrorKind::Closed, "the scan was ended"));
                }
            }
            iterator.next();
        }
        // An iterator that met damage ends like one that met the end.
        iterator.status().map_err(|e| self.failed(e))?;
        scan.missing_bytes = pages.missing_bytes();
        scan.topic = topic;
        Ok(scan)
    }

    /// Messages with ids above `after`, in the order of their ids: up to `messages_max`, and no
    /// more than `bytes_max` bytes beside the first. An empty list: there are no more.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for damage: never a short read instead. [`ErrorKind::Storage`].
    pub fn read(
        &self,
        scan: &RocksScan,
        after: Option<u64>,
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>> {
        let from = after.map_or(Some(0), |id| id.checked_add(1));
        let Some(from) = from else { return Ok(Vec::new()) };
        let mut taken = Taken { messages: Vec::new(), bytes: 0, messages_max, bytes_max };
        // Keys are ordered as text, which is the order of ids of one width only.
        for &width in &scan.widths {
            let (low, high) = keys::ids_of_width(width);
            if from <= high
                && !self.read_width(&scan.topic.name, from.max(low), high, &mut taken)?
            {
                break;
            }
        }
        Ok(taken.messages)
    }

    /// Reads the ids from `low` to `high`, which have one width. False: enough was read.
    fn read_width(&self, topic: &str, low: u64, high: u64, taken: &mut Taken) -> Result<bool> {
        let mut options = read_options();
        let mut end = keys::of_message(topic, high);
        end.push(0);
        options.set_iterate_upper_bound(end);
        let mut iterator = self.store().raw_iterator_opt(options);
        iterator.seek(keys::of_message(topic, low));
        while let Some((key, value)) = iterator.item() {
            let (_, id) = keys::message(key)?;
            // Between them lie, as text, the ids of other widths.
            if (low..=high).contains(&id) && !taken.push(id, value) {
                return Ok(false);
            }
            iterator.next();
        }
        iterator.status().map_err(|e| self.failed(e))?;
        Ok(true)
    }
}

impl RocksScan {
    fn add(&mut self, id: u64, bytes: u64) {
        self.messages_count += 1;
        self.payload_bytes += bytes;
        self.payload_bytes_max = self.payload_bytes_max.max(bytes);
        self.first_id = Some(self.first_id.map_or(id, |first| first.min(id)));
        self.last_id = Some(self.last_id.map_or(id, |last| last.max(id)));
        self.widths.insert(keys::width(id));
    }
}

struct Taken {
    messages: Vec<(u64, Bytes)>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
}

impl Taken {
    /// False: there is no room for it.
    fn push(&mut self, id: u64, value: &[u8]) -> bool {
        let bytes = self.bytes.saturating_add(value.len());
        let full = self.messages.len() >= self.messages_max || bytes > self.bytes_max;
        if full && !self.messages.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.messages.push((id, Bytes::copy_from_slice(value)));
        true
    }
}

/// Compares the pages of the metadata with the messages that are there.
///
/// Acknowledged pages may have lost theirs: retention deletes messages first, their page after.
struct PageCheck {
    /// End id, bytes by the metadata, bytes found; the open page last.
    pages: Vec<(u64, u64, u64)>,
}

impl PageCheck {
    fn new(topic: &RocksTopic) -> Self {
        let closed = topic.pages.iter().map(|page| {
            let expected = if page.acked_s.is_some() { 0 } else { page.bytes };
            (page.end_id, expected, 0)
        });
        Self { pages: closed.chain([(u64::MAX, topic.open_page_bytes, 0)]).collect() }
    }

    fn add(&mut self, id: u64, bytes: u64) {
        let index = self.pages.partition_point(|(end_id, _, _)| *end_id < id);
        if let Some((_, _, found)) = self.pages.get_mut(index) {
            *found += bytes;
        }
    }

    fn missing_bytes(&self) -> u64 {
        self.pages.iter().map(|(_, expected, found)| expected.saturating_sub(*found)).sum()
    }
}
