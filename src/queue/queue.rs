//! The directory: topics, producer, epoch.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rocksdb::WriteBatch;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::ProducerId;
use crate::name::validate_name;
use crate::queue::commit::Committer;
use crate::queue::db::Db;
use crate::queue::keys;
use crate::queue::recover::{self, Recovery};
use crate::queue::retention::{Retained, Retention};
use crate::queue::topic::Topic;

/// How a directory is opened.
#[derive(Clone, Debug, Default)]
pub struct QueueOptions {
    /// Sync the WAL to disk before an append returns (level `durable`).
    pub sync_writes: bool,
    /// What [`Queue::retain`] may delete.
    pub retention: Retention,
}

/// One directory of topics; owned by one process.
pub struct Queue {
    db: Arc<Db>,
    committer: Arc<Committer>,
    retention: Retention,
    producer: ProducerId,
    epoch: u32,
    topics: Mutex<HashMap<String, Arc<Topic>>>,
    recovery: Recovery,
}

impl Queue {
    /// Opens a directory; makes it (mode 0700) where it does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] naming the owner's pid, [`ErrorKind::Storage`], or
    /// [`ErrorKind::Corrupt`] when the log is damaged anywhere but in a torn tail.
    pub fn open(path: &Path, options: QueueOptions) -> Result<Arc<Self>> {
        let (db, report) = Db::open(path, options.sync_writes)?;
        let db = Arc::new(db);
        let (producer, epoch) = identity(&db)?;
        let mut queue = Self {
            committer: Committer::new(&db),
            db,
            retention: options.retention,
            producer,
            epoch,
            topics: Mutex::new(HashMap::new()),
            recovery: Recovery::new(&report),
        };
        queue.recover_topics()?;
        Ok(Arc::new(queue))
    }

    /// What was replayed, dropped and repaired when the directory was opened.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Finds where each topic ends, and removes what belongs to none.
    fn recover_topics(&mut self) -> Result<()> {
        let mut known = HashSet::new();
        for name in self.topics()? {
            let topic = self.topic(&name)?;
            known.insert(topic.id);
            self.recovery.topics.push(topic.recovery()?);
        }
        self.recovery.stray_bytes = recover::strays(&self.db, &known)?;
        Ok(())
    }

    /// The producer id of this directory; random, made with it.
    pub fn producer(&self) -> ProducerId {
        self.producer
    }

    /// How often the directory has been opened, this time included.
    pub fn instance_epoch(&self) -> u32 {
        self.epoch
    }

    /// The topic of that name; made where it does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn topic(&self, name: &str) -> Result<Arc<Topic>> {
        validate_name("topic", name)?;
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(topic) = topics.get(name) {
            return Ok(Arc::clone(topic));
        }
        let id = match self.topic_id(name)? {
            Some(id) => id,
            None => self.make_topic(name)?,
        };
        let topic = Arc::new(Topic::open(&self.committer, &self.db, id, name)?);
        topics.insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }

    /// The topic of that name.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], else as [`Queue::topic`].
    pub fn existing_topic(&self, name: &str) -> Result<Arc<Topic>> {
        validate_name("topic", name)?;
        if self.topic_id(name)?.is_none() {
            return Err(Error::new(ErrorKind::TopicNotFound, format!("no topic {name:?} here")));
        }
        self.topic(name)
    }

    /// The names of all topics, in byte order.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn topics(&self) -> Result<Vec<String>> {
        let open = self.db.get()?;
        let found = self.db.scan_prefix(&open, &[keys::TOPIC_PREFIX])?;
        let name = |key: &[u8]| String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into();
        Ok(found.iter().map(|(key, _)| name(key)).collect())
    }

    /// Deletes a topic, its groups included. A topic of that name that is made later is another
    /// one.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let topic = self.existing_topic(name)?;
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topic.delete()?;
        topics.remove(name);
        Ok(())
    }

    /// The topic's own retention; None: it has the queue's.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn topic_retention(&self, name: &str) -> Result<Option<Retention>> {
        let topic = self.existing_topic(name)?;
        let open = self.db.get()?;
        let value = open
            .rocks
            .get_pinned_cf(&open.meta()?, keys::retention(topic.id))
            .map_err(|e| self.db.failed("read", e))?;
        value.map(|value| Retention::decode(&value)).transpose()
    }

    /// Gives a topic a retention of its own, or with None the queue's again.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn set_topic_retention(&self, name: &str, retention: Option<&Retention>) -> Result<()> {
        let topic = self.existing_topic(name)?;
        let open = self.db.get()?;
        let (meta, key) = (open.meta()?, keys::retention(topic.id));
        let mut batch = WriteBatch::default();
        match retention {
            Some(retention) => batch.put_cf(&meta, key, retention.encode()),
            None => batch.delete_cf(&meta, key),
        }
        self.db.write(&open, batch)
    }

    /// There is a limit, for all topics or for one.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn has_retention(&self) -> Result<bool> {
        if !self.retention.keeps_all() {
            return Ok(true);
        }
        let open = self.db.get()?;
        Ok(!self.db.scan_prefix(&open, &[keys::RETENTION_PREFIX])?.is_empty())
    }

    /// Log bytes of all records that were appended to the topics that are open.
    pub fn appended_bytes(&self) -> u64 {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.values().map(|topic| topic.tail().bytes).sum()
    }

    /// Deletes what retention allows.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn retain(&self, now_ms: u64) -> Result<Retained> {
        let mut all = Retained::default();
        for name in self.topics()? {
            match self.retain_topic(&name, now_ms) {
                Ok(one) => {
                    all.messages += one.messages;
                    all.bytes += one.bytes;
                }
                // It was deleted meanwhile.
                Err(error) if error.kind() == ErrorKind::TopicNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    fn retain_topic(&self, name: &str, now_ms: u64) -> Result<Retained> {
        let own = self.topic_retention(name)?;
        let retention = own.as_ref().unwrap_or(&self.retention);
        if retention.keeps_all() {
            return Ok(Retained::default());
        }
        self.existing_topic(name)?.retain(retention, now_ms)
    }

    /// Writes everything out and lets go of the directory; later calls end with
    /// [`ErrorKind::Closed`].
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] when the last write fails; the directory is let go of all the same.
    pub fn close(&self) -> Result<()> {
        self.committer.close();
        let closed = self.db.close();
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.values().for_each(|topic| topic.wake_all());
        closed
    }

    fn topic_id(&self, name: &str) -> Result<Option<u32>> {
        let open = self.db.get()?;
        let value = open
            .rocks
            .get_pinned_cf(&open.meta()?, keys::topic(name))
            .map_err(|e| self.db.failed("read", e))?;
        value.map(|value| keys::u32_value(&value)).transpose()
    }

    fn make_topic(&self, name: &str) -> Result<u32> {
        let open = self.db.get()?;
        let meta = open.meta()?;
        let last = open
            .rocks
            .get_pinned_cf(&meta, keys::META_TOPICS)
            .map_err(|e| self.db.failed("read", e))?;
        let id = last.map_or(Ok(0), |value| keys::u32_value(&value))? + 1;
        let mut batch = WriteBatch::default();
        batch.put_cf(&meta, keys::META_TOPICS, id.to_le_bytes());
        batch.put_cf(&meta, keys::topic(name), id.to_le_bytes());
        self.db.write(&open, batch)?;
        Ok(id)
    }
}

/// The directory's producer id, and its epoch: one more than at the last open.
fn identity(db: &Db) -> Result<(ProducerId, u32)> {
    let open = db.get()?;
    let meta = open.meta()?;
    let read = |key: &[u8]| open.rocks.get_pinned_cf(&meta, key).map_err(|e| db.failed("read", e));
    let producer = match read(keys::META_PRODUCER)? {
        Some(value) => ProducerId(value.as_ref().try_into().map_err(|_| {
            Error::new(ErrorKind::Corrupt, "log metadata: the producer id is not 16 bytes")
        })?),
        None => ProducerId::random(),
    };
    let epoch = read(keys::META_EPOCH)?.map_or(Ok(0), |value| keys::u32_value(&value))? + 1;
    let mut batch = WriteBatch::default();
    batch.put_cf(&meta, keys::META_PRODUCER, producer.0);
    batch.put_cf(&meta, keys::META_EPOCH, epoch.to_le_bytes());
    db.write(&open, batch)?;
    Ok((producer, epoch))
}
