//! Topics and subscription groups as an operator sees them.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::entry::{self, Entry};
use crate::hybrid::hub::{Hub, unix_ms};
use crate::hybrid::runtime;
use crate::hybrid::topic::HubTopic;
use crate::queue::{self, GroupInfo, Queue, Retained, Retention, TopicInfo};

impl Hub {
    /// What a topic holds, its own retention and its groups.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`]; [`ErrorKind::Unsupported`] in mode `nats`;
    /// [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn topic_info(&self, name: &str) -> Result<(TopicInfo, Option<Retention>)> {
        let queue = self.queue()?;
        Ok((queue.existing_topic(name)?.info()?, queue.topic_retention(name)?))
    }

    /// How far the groups of a topic are, by name.
    ///
    /// # Errors
    /// As [`Hub::topic_info`].
    pub fn groups(&self, topic: &str) -> Result<Vec<GroupInfo>> {
        let log = self.queue()?.existing_topic(topic)?;
        let names = log.groups()?;
        names.iter().map(|(name, _)| Ok(log.existing_group(name)?.info())).collect()
    }

    /// Deletes a group and its cursor.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`], [`ErrorKind::Config`] while it has subscribers, else as
    /// [`Hub::topic_info`].
    pub fn delete_group(&self, topic: &str, group: &str) -> Result<()> {
        self.queue()?.existing_topic(topic)?.delete_group(group)
    }

    /// Gives a topic a retention of its own, or with None the handle's again.
    ///
    /// # Errors
    /// As [`Hub::topic_info`].
    pub fn set_retention(&self, topic: &str, retention: Option<&Retention>) -> Result<()> {
        self.queue()?.set_topic_retention(topic, retention)?;
        self.start_retention()
    }

    /// Deletes what retention allows, now.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] in mode `nats`; [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn retain(&self) -> Result<Retained> {
        self.queue()?.retain(unix_ms())
    }

    /// Deletes all messages of a topic, acknowledged or not; seqs go on where they were. What is on
    /// its way to the stream stays, and with it what came after.
    ///
    /// # Errors
    /// As [`Hub::topic_info`]; [`ErrorKind::NotConnected`]: the frames of large messages stay in
    /// the stream until its own limits remove them.
    pub fn purge_topic(&self, name: &str) -> Result<Retained> {
        let log = self.queue()?.existing_topic(name)?;
        let topic = self.topic(name)?;
        if self.shared().nats.is_none() {
            return log.purge();
        }
        runtime::handle()?.block_on(async {
            let stream = topic.stream().await?;
            // What is stored later belongs to messages that stay.
            let last = stream.last_seq().await?;
            let purged = log.purge()?;
            stream.purge_through(last.min(open_floor(&topic, &log)?)).await?;
            Ok(purged)
        })
    }

    /// Deletes a topic, its groups and its stream. Publishers and subscribers of it end with
    /// [`ErrorKind::TopicNotFound`].
    ///
    /// # Errors
    /// As [`Hub::topic_info`]; [`ErrorKind::NotConnected`]: nothing was deleted.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let queue = self.queue()?;
        queue.existing_topic(name)?;
        // The stream first: its frames must not meet those of a topic of that name made later.
        if let Some(nats) = &self.shared().nats {
            runtime::handle()?.block_on(nats.delete_topic(name))?;
        }
        self.forget_topic(name);
        queue.delete_topic(name)
    }

    fn queue(&self) -> Result<&Arc<Queue>> {
        self.shared().check_open()?;
        self.shared().queue.as_ref().ok_or_else(|| {
            let context = "mode 'nats' has no log: topics are administered on the server";
            Error::new(ErrorKind::Unsupported, context)
        })
    }
}

/// The frames of intents that are open were stored after this stream sequence.
fn open_floor(topic: &HubTopic, log: &queue::Topic) -> Result<u64> {
    let limit_bytes = topic.shared.options.message_bytes_max;
    let mut floor = u64::MAX;
    for seq in log.open_seqs()? {
        for record in log.read(seq, 1, 0)? {
            if let Entry::Stream(entry) = entry::decode(&record.value, limit_bytes)? {
                floor = floor.min(entry.floor_seq);
            }
        }
    }
    Ok(floor)
}
