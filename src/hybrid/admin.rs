//! Topics and subscription groups as an operator sees them.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::entry::{self, Entry};
use crate::hybrid::hub::{Hub, unix_ms};
use crate::hybrid::runtime;
use crate::hybrid::stream_seq;
use crate::hybrid::topic::HubTopic;
use crate::nats::{GroupState, JetTopic, StreamState};
use crate::queue::{self, Queue, Retained, Retention, TopicInfo};

/// How far a subscription group is. In mode `nats` its server counts its own messages: packed rows
/// and small ones that left together are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Every message before this seq is done.
    pub next_seq: u64,
    /// Messages above it that are done; None: the server does not say.
    pub done_above: Option<u64>,
    /// Messages that are not done.
    pub lag: u64,
    /// Messages of them that subscribers have now.
    pub handed_out: u64,
    /// Subscribers now; None: the server does not say.
    pub subscribers: Option<u64>,
}

impl From<queue::GroupInfo> for GroupInfo {
    fn from(info: queue::GroupInfo) -> Self {
        let queue::GroupInfo { name, next_seq, done_above, lag, handed_out, subscribers } = info;
        let (done_above, subscribers) = (Some(done_above), Some(subscribers));
        Self { name, next_seq, done_above, lag, handed_out, subscribers }
    }
}

impl From<GroupState> for GroupInfo {
    fn from(state: GroupState) -> Self {
        Self {
            name: state.name,
            next_seq: stream_seq::first_seq(state.next_seq),
            done_above: None,
            lag: state.pending + state.handed_out,
            handed_out: state.handed_out,
            subscribers: None,
        }
    }
}

impl Hub {
    /// What a topic holds, and its own retention.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`];
    /// [`ErrorKind::NotConnected`] in mode `nats`.
    pub fn topic_info(&self, name: &str) -> Result<(TopicInfo, Option<Retention>)> {
        let Some(queue) = self.log()? else {
            return Ok((self.on_stream(name, async |stream| stream.state().await)?.into(), None));
        };
        Ok((queue.existing_topic(name)?.info()?, queue.topic_retention(name)?))
    }

    /// How far the groups of a topic are, by name.
    ///
    /// # Errors
    /// As [`Hub::topic_info`].
    pub fn groups(&self, topic: &str) -> Result<Vec<GroupInfo>> {
        if self.log()?.is_some() {
            return Ok(self.log_groups(topic)?.into_iter().map(GroupInfo::from).collect());
        }
        let groups = self.on_stream(topic, async |stream| stream.groups().await)?;
        Ok(groups.into_iter().map(GroupInfo::from).collect())
    }

    /// As [`Hub::groups`], of a journal.
    pub(super) fn log_groups(&self, topic: &str) -> Result<Vec<queue::GroupInfo>> {
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
        match self.log()? {
            Some(queue) => queue.existing_topic(topic)?.delete_group(group),
            None => self.on_stream(topic, async |stream| stream.delete_group(group).await),
        }
    }

    /// The topics that the server of mode `nats` has.
    pub(super) fn stream_topics(&self) -> Result<Vec<String>> {
        match &self.shared().nats {
            Some(nats) => runtime::handle()?.block_on(nats.topics()),
            None => Ok(Vec::new()),
        }
    }

    /// Asks the stream of a topic of mode `nats`, where it exists.
    fn on_stream<T>(&self, name: &str, ask: impl AsyncFnOnce(&JetTopic) -> Result<T>) -> Result<T> {
        runtime::handle()?.block_on(async {
            self.check_stream(name).await?;
            ask(&self.topic(name)?.stream().await?).await
        })
    }

    async fn check_stream(&self, name: &str) -> Result<()> {
        let exists = match &self.shared().nats {
            Some(nats) => nats.has_topic(name).await?,
            None => false,
        };
        if exists {
            return Ok(());
        }
        Err(Error::new(ErrorKind::TopicNotFound, format!("no topic {name:?}")))
    }

    /// Gives a topic a retention of its own, or with None the handle's again.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], [`ErrorKind::Closed`], [`ErrorKind::Storage`];
    /// [`ErrorKind::Unsupported`] in mode `nats`.
    pub fn set_retention(&self, topic: &str, retention: Option<&Retention>) -> Result<()> {
        self.queue()?.set_topic_retention(topic, retention)?;
        self.start_retention(None)
    }

    /// Deletes what retention allows, now.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] in mode `nats`; [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn retain(&self) -> Result<Retained> {
        self.queue()?.retain(unix_ms())
    }

    /// Purges the frames of large messages that killed publishers have left in a topic's stream,
    /// never whole, and not touched for `age`, which has to exceed the time of every publish.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] in mode `queue`; [`ErrorKind::NotConnected`],
    /// [`ErrorKind::Closed`].
    pub fn sweep_topic(&self, name: &str, age: Duration) -> Result<u64> {
        self.shared().check_open()?;
        if self.shared().nats.is_none() {
            let context = "mode 'queue' has no frames to sweep";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let topic = self.topic(name)?;
        runtime::handle()?.block_on(topic.sweep(age))
    }

    /// Deletes all messages of a topic, acknowledged or not; seqs go on where they were. What is on
    /// its way to the stream stays, and with it what came after.
    ///
    /// # Errors
    /// As [`Hub::topic_info`]; [`ErrorKind::Unsupported`] in mode `nats`;
    /// [`ErrorKind::NotConnected`]: the frames of large messages stay in
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
    /// [`ErrorKind::TopicNotFound`], in mode `nats` with [`ErrorKind::NoStream`].
    ///
    /// # Errors
    /// As [`Hub::topic_info`]; [`ErrorKind::NotConnected`]: nothing was deleted.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let Some(queue) = self.log()? else {
            return runtime::handle()?.block_on(async {
                self.check_stream(name).await?;
                self.forget_topic(name);
                match &self.shared().nats {
                    Some(nats) => nats.delete_topic(name).await,
                    None => Ok(()),
                }
            });
        };
        queue.existing_topic(name)?;
        // The stream first: its frames must not meet those of a topic of that name made later.
        if let Some(nats) = &self.shared().nats {
            runtime::handle()?.block_on(nats.delete_topic(name))?;
        }
        self.forget_topic(name);
        queue.delete_topic(name)
    }

    fn queue(&self) -> Result<&Arc<Queue>> {
        self.log()?.ok_or_else(|| {
            let context = "mode 'nats' has no log: a stream's limits and purges are the server's";
            Error::new(ErrorKind::Unsupported, context)
        })
    }

    /// None: mode `nats`.
    fn log(&self) -> Result<Option<&Arc<Queue>>> {
        self.shared().check_open()?;
        Ok(self.shared().queue.as_ref())
    }
}

impl From<StreamState> for TopicInfo {
    fn from(state: StreamState) -> Self {
        Self {
            first_seq: stream_seq::first_seq(state.first_seq),
            next_seq: stream_seq::first_seq(state.last_seq + 1),
            messages: state.messages,
            bytes: state.bytes,
            file_bytes: 0,
            first_time_ms: state.times_ms.map(|(first, _)| first),
            last_time_ms: state.times_ms.map(|(_, last)| last),
            open: 0,
        }
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
