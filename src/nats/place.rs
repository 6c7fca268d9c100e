//! Moving a subscription group.

use std::time::Duration;

use async_nats::StatusCode;
use async_nats::datetime;
use async_nats::jetstream::consumer::{self, DeliverPolicy};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::nats::acks::Told;
use crate::nats::errors;
use crate::nats::fetch::{direct_subject, read_headers};
use crate::nats::subscribe::group_config;
use crate::nats::topic::{Inner, JetTopic};

/// Where a group goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the oldest message.
    First,
    /// After the newest.
    New,
    /// At a stream sequence.
    Seq(u64),
    /// At the first message stored at a time or later, in milliseconds since the Unix epoch.
    TimeMs(u64),
}

/// Until acknowledgements that were told have to be confirmed.
const FLUSH_WAIT: Duration = Duration::from_secs(5);

impl Inner {
    /// A subscription group's consumer; None: the server says that there is none.
    pub(super) async fn group(&self, group: &str) -> Result<Option<consumer::Info>> {
        let error = match self.stream.consumer_info(group).await {
            Ok(info) => return Ok(Some(info)),
            Err(error) => error,
        };
        let what = format!("cannot look for group {group:?}");
        match error.kind() {
            ConsumerInfoErrorKind::NotFound => Ok(None),
            ConsumerInfoErrorKind::StreamNotFound => {
                Err(Error::with_source(ErrorKind::NoStream, what, error))
            }
            ConsumerInfoErrorKind::JetStream(api) => Err(errors::request(&what, api)),
            _ => Err(errors::request(&what, error)),
        }
    }
}

impl JetTopic {
    /// Waits until the server has confirmed what it was told of deliveries.
    pub async fn flush_acks(&self) {
        let (done, flushed) = oneshot::channel();
        if self.inner.told.send(Told::Flush(done)).is_ok() {
            // Unconfirmed, messages come again.
            let _ = tokio::time::timeout(FLUSH_WAIT, flushed).await;
        }
    }

    /// Moves a group, with all its subscribers: they find it moved ([`ErrorKind::GroupNotFound`])
    /// and join again.
    ///
    /// A consumer's place cannot be changed, so it is made anew under its name; gives when.
    ///
    /// # Errors
    /// [`ErrorKind::GroupNotFound`], [`ErrorKind::NotConnected`], [`ErrorKind::Rejected`].
    pub async fn move_group(&self, group: &str, place: Place) -> Result<i128> {
        let stream = &self.inner.stream;
        let what = format!("cannot move group {group:?}");
        let policy = match place {
            Place::First => DeliverPolicy::All,
            Place::New => DeliverPolicy::New,
            Place::Seq(seq) => DeliverPolicy::ByStartSequence { start_sequence: seq.max(1) },
            Place::TimeMs(time_ms) => {
                let start_time = datetime::from_nanos(i128::from(time_ms) * 1_000_000);
                let start_time = start_time
                    .map_err(|e| Error::with_source(ErrorKind::Config, "a time out of range", e))?;
                DeliverPolicy::ByStartTime { start_time }
            }
        };
        let consumer = self.inner.group(group).await?.ok_or_else(|| {
            Error::new(ErrorKind::GroupNotFound, format!("no subscription group {group:?}"))
        })?;
        let ack_wait = consumer.config.ack_wait;
        self.flush_acks().await;
        stream.delete_consumer(group).await.map_err(|e| errors::request(&what, e))?;
        let config = group_config(&self.inner, group, policy, ack_wait);
        let made = stream.create_consumer(config).await.map_err(|e| errors::request(&what, e))?;
        Ok(made.cached_info().created.unix_timestamp_nanos())
    }

    /// The first message at a stream sequence or after it: its own sequence, and its rows.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`].
    pub async fn next_message(&self, stream_seq: u64) -> Result<Option<(u64, u32)>> {
        let name = self.inner.name();
        let request = format!("{{\"seq\":{},\"next_by_subj\":\"{name}\"}}", stream_seq.max(1));
        let asked = self.inner.client.request(direct_subject(&self.inner), Bytes::from(request));
        let reply = asked.await.map_err(|e| errors::request("cannot look for a message", e))?;
        let headers = reply.headers.as_ref();
        if reply.status.is_some_and(|status| status != StatusCode::OK) {
            return Ok(None);
        }
        let seq = headers.and_then(|headers| headers.get("Nats-Sequence"));
        let seq = seq.and_then(|seq| seq.as_str().parse().ok());
        let rows = read_headers(headers)?.0.map_or(1, |header| header.rows);
        Ok(seq.map(|seq| (seq, rows)))
    }
}
