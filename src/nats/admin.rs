//! Topics and subscription groups, as the server has them.

use async_nats::jetstream::consumer;
use futures_util::StreamExt;

use crate::error::{Error, ErrorKind, Result};
use crate::name::validate_name;
use crate::nats::connection::{Connection, has_subjects};
use crate::nats::errors;
use crate::nats::topic::JetTopic;

/// What a topic's stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Stream sequence of the oldest message; the next one where there is none.
    pub first_seq: u64,
    /// The highest stream sequence.
    pub last_seq: u64,
    /// Messages that a group would get; packed rows and small ones that left together are one.
    pub messages: u64,
    /// Bytes of everything, frames and headers included.
    pub bytes: u64,
    /// When the oldest and the newest were stored, in milliseconds since the Unix epoch.
    pub times_ms: Option<(u64, u64)>,
}

/// How far a subscription group is, in messages of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Its name.
    pub name: String,
    /// Every message before this stream sequence is done.
    pub next_seq: u64,
    /// Messages that nobody was given yet.
    pub pending: u64,
    /// Messages that subscribers have now.
    pub handed_out: u64,
    /// Somebody asks for its messages.
    pub is_read: bool,
}

impl Connection {
    /// The names of all streams that are topics.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::Rejected`], [`ErrorKind::Denied`].
    pub async fn topics(&self) -> Result<Vec<String>> {
        let mut streams = self.context().streams();
        let mut names = Vec::new();
        while let Some(stream) = streams.next().await {
            let config = stream.map_err(|e| errors::request("cannot list streams", e))?.config;
            if validate_name("topic", &config.name).is_ok()
                && has_subjects(&config.name, &config.subjects)
            {
                names.push(config.name);
            }
        }
        Ok(names)
    }
}

impl JetTopic {
    /// What the stream holds.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`].
    pub async fn state(&self) -> Result<StreamState> {
        let what = "cannot ask for the stream's state";
        let name = self.inner.name();
        let info = self.inner.stream.info_with_subjects(name).await;
        let mut info = info.map_err(|e| errors::request(what, e))?;
        let state = info.info.state.clone();
        let mut messages = 0;
        while let Some(subject) = info.next().await {
            messages += subject.map_err(|e| errors::request(what, e))?.1 as u64;
        }
        let next = self.next_message(state.first_sequence).await?;
        let ms = |time: async_nats::datetime::DateTime| {
            u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
        };
        Ok(StreamState {
            first_seq: next.map_or(state.last_sequence + 1, |(seq, _)| seq),
            last_seq: state.last_sequence,
            messages,
            bytes: state.bytes,
            times_ms: (state.messages > 0)
                .then(|| (ms(state.first_timestamp), ms(state.last_timestamp))),
        })
    }

    /// The subscription groups, by name.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`].
    pub async fn groups(&self) -> Result<Vec<GroupState>> {
        let mut consumers = self.inner.stream.consumers();
        let mut groups = Vec::new();
        while let Some(info) = consumers.next().await {
            let info = info.map_err(|e| errors::request("cannot list groups", e))?;
            if info.config.durable_name.is_some() && info.config.filter_subject == self.inner.name()
            {
                groups.push(group_state(&info));
            }
        }
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(groups)
    }

    /// Deletes a subscription group and its place.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`]; [`ErrorKind::Config`] while somebody reads it;
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`].
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let found = self.groups().await?.into_iter().find(|one| one.name == group);
        let missing = || Error::new(ErrorKind::GroupNotFound, format!("no group {group:?}"));
        if found.ok_or_else(missing)?.is_read {
            let context = format!("group {group:?} has subscribers: close them first");
            return Err(Error::new(ErrorKind::Config, context));
        }
        let deleted = self.inner.stream.delete_consumer(group).await;
        deleted.map(drop).map_err(|e| errors::request("cannot delete a group", e))
    }
}

fn group_state(info: &consumer::Info) -> GroupState {
    GroupState {
        name: info.name.clone(),
        next_seq: info.ack_floor.stream_sequence + 1,
        pending: info.num_pending,
        handed_out: info.num_ack_pending as u64,
        is_read: info.num_waiting > 0,
    }
}
