//! What the metadata says of topics and pages; topics that only messages are left of.

use std::collections::BTreeMap;

use rocksdb::{Direction, IteratorMode};

use crate::error::{Error, ErrorKind, Result};
use crate::queue::rocksmq::files::{RocksMq, read_options};
use crate::queue::rocksmq::keys;

/// Seconds of a time in the year 5138: old versions wrote an id here instead of a time.
const CREATED_S_MAX: u64 = 100_000_000_000;

/// A topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RocksTopic {
    /// Its name in Milvus.
    pub name: String,
    /// It was destroyed: only its messages are left.
    pub orphaned: bool,
    /// When it was made, in seconds since the Unix epoch, where that is known.
    pub created_s: Option<u64>,
    /// Bytes in the page that is still open, by the metadata.
    pub open_page_bytes: u64,
    /// Its closed pages, in order.
    pub pages: Vec<RocksPage>,
}

/// A closed page: `RocksMQ`'s unit of retention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RocksPage {
    /// The id of its last message.
    pub end_id: u64,
    /// Bytes of its messages.
    pub bytes: u64,
    /// When it was closed, in seconds since the Unix epoch.
    pub closed_s: Option<u64>,
    /// When every group had read it, in seconds since the Unix epoch.
    pub acked_s: Option<u64>,
}

#[derive(Default)]
struct Found {
    exists: bool,
    created_s: Option<u64>,
    open_page_bytes: u64,
    pages: BTreeMap<u64, RocksPage>,
}

impl RocksMq {
    /// All topics by name: those that exist, and those that were destroyed and left messages.
    ///
    /// Reads the metadata and one key of each topic, however many messages there are.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for damage or keys that `RocksMQ` does not write,
    /// [`ErrorKind::Storage`].
    pub fn topics(&self) -> Result<Vec<RocksTopic>> {
        let mut found = self.metadata()?;
        for name in self.names_with_messages()? {
            found.entry(name).or_default();
        }
        let mut topics: Vec<_> = found.into_iter().map(|(name, one)| one.finish(name)).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    fn metadata(&self) -> Result<BTreeMap<String, Found>> {
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for entry in self.meta().iterator_opt(IteratorMode::Start, read_options()) {
            let (key, value) = entry.map_err(|e| self.failed(e))?;
            let Some((title, rest)) = split(&key) else { continue };
            let number = || number(&key, &value);
            match title {
                "topic_id" => {
                    let one = found.entry(rest.to_owned()).or_default();
                    one.exists = true;
                    one.created_s = number().ok().filter(|created_s| *created_s < CREATED_S_MAX);
                }
                "message_size" => {
                    found.entry(rest.to_owned()).or_default().open_page_bytes = number()?;
                }
                "page_message_size" => page(&mut found, &key, rest)?.bytes = number()?,
                "page_ts" => page(&mut found, &key, rest)?.closed_s = Some(number()?),
                "acked_ts" => page(&mut found, &key, rest)?.acked_s = Some(number()?),
                // Old versions kept more, which nothing here needs.
                _ => {}
            }
        }
        // Metadata of a topic that does not exist any more says nothing.
        found.retain(|_, one| one.exists);
        Ok(found)
    }

    /// Hops from topic to topic: one seek each.
    fn names_with_messages(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut iterator = self.store().raw_iterator_opt(read_options());
        iterator.seek_to_first();
        while let Some(key) = iterator.key() {
            let (topic, _) = keys::message(key)?;
            let (_, end) = keys::topic_range(topic);
            names.push(topic.to_owned());
            iterator.seek(end);
        }
        // An iterator that met damage ends like one that met the end.
        iterator.status().map_err(|e| self.failed(e))?;
        Ok(names)
    }

    /// The topic of that name.
    pub(super) fn topic(&self, name: &str) -> Result<RocksTopic> {
        let mut found = self.metadata()?;
        if let Some(one) = found.remove(name) {
            return Ok(one.finish(name.to_owned()));
        }
        let (start, end) = keys::topic_range(name);
        let mut options = read_options();
        options.set_iterate_upper_bound(end);
        let mode = IteratorMode::From(&start, Direction::Forward);
        match self.store().iterator_opt(mode, options).next() {
            Some(entry) => {
                entry.map_err(|e| self.failed(e))?;
                Ok(Found::default().finish(name.to_owned()))
            }
            None => Err(Error::new(
                ErrorKind::TopicNotFound,
                format!("the RocksMQ directory has no topic {name:?}"),
            )),
        }
    }
}

impl Found {
    fn finish(self, name: String) -> RocksTopic {
        RocksTopic {
            name,
            orphaned: !self.exists,
            created_s: self.created_s,
            open_page_bytes: self.open_page_bytes,
            // What has no size is a leftover of a page that retention has removed.
            pages: self.pages.into_values().filter(|page| page.bytes > 0).collect(),
        }
    }
}

fn page<'a>(
    found: &'a mut BTreeMap<String, Found>,
    key: &[u8],
    rest: &str,
) -> Result<&'a mut RocksPage> {
    let (topic, id) = rest.rsplit_once('/').ok_or_else(|| malformed(key))?;
    let end_id = keys::id_of(id).ok_or_else(|| malformed(key))?;
    let pages = &mut found.entry(topic.to_owned()).or_default().pages;
    Ok(pages.entry(end_id).or_insert(RocksPage { end_id, ..RocksPage::default() }))
}

fn split(key: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(key).ok()?.split_once('/')
}

fn number(key: &[u8], value: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| malformed(key))
}

fn malformed(key: &[u8]) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("RocksMQ's metadata: expected decimal numbers at {}", key.escape_ascii()),
    )
}
