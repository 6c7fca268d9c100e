//! Frames that killed publishers have left: found, purged, counted.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::datetime;
use bytes::Bytes;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{MessageId, ProducerId};
use crate::nats::errors;
use crate::nats::fetch::{MANIFEST_BYTES, direct_subject, reserve};
use crate::nats::topic::{Inner, JetTopic};

/// Groups of which one sweep looks for the manifest; the newest first.
const LOOKS_MAX: usize = 1024;

impl JetTopic {
    /// Purges the frames of groups that have no manifest and whose last frame was stored longer
    /// than `age` ago by the server's clock; gives their number.
    ///
    /// No reader was ever given any of them. `age` has to exceed the time of every publish: one
    /// that is still trying would complete a group without its first frames.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::NoStream`].
    pub async fn sweep(&self, age: Duration) -> Result<u64> {
        let (now_ns, groups) = frame_groups(&self.inner).await?;
        let candidates: Vec<MessageId> = {
            let mut whole = self.inner.whole.lock().await;
            whole.retain(|id| groups.contains(id));
            let mut unknown: Vec<MessageId> = groups.difference(&whole).copied().collect();
            unknown.sort_unstable_by_key(|id| std::cmp::Reverse(id.seq));
            unknown.truncate(LOOKS_MAX);
            unknown
        };
        let mut swept = 0;
        for id in candidates {
            let subject = self.inner.all_frames_subject(&id);
            let last = at(&self.inner, format!("{{\"last_by_subj\":\"{subject}\"}}")).await?;
            let first = format!("{{\"seq\":1,\"next_by_subj\":\"{subject}\"}}");
            let (Some((_, stored_ns)), Some((first_seq, _))) =
                (last, at(&self.inner, first).await?)
            else {
                continue;
            };
            let is_old = now_ns - stored_ns > i128::try_from(age.as_nanos()).unwrap_or(i128::MAX);
            if self.find_manifest(&id, first_seq).await?.is_some() {
                self.inner.whole.lock().await.insert(id);
            } else if is_old && self.find_manifest(&id, 0).await?.is_none() {
                // Not before its frames either: one that went again lies behind its manifest.
                log::warn!(
                    "stream {:?}: frames of {id}, never whole, are purged",
                    self.inner.name()
                );
                self.discard(&id).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

/// The server's time and the groups that have frames, in nanoseconds since the Unix epoch.
async fn frame_groups(inner: &Inner) -> Result<(i128, HashSet<MessageId>)> {
    let (name, mut groups, mut offset) = (inner.name(), HashSet::new(), 0);
    loop {
        let request = format!("{{\"subjects_filter\":\"{name}.frames.>\",\"offset\":{offset}}}");
        let asked = inner.client.request(format!("$JS.API.STREAM.INFO.{name}"), request.into());
        let reply = asked.await.map_err(|e| errors::request("cannot list frames", e))?;
        let info: Value = serde_json::from_slice(&reply.payload).map_err(|_| strange())?;
        if info.get("error").is_some() {
            return Err(Error::new(ErrorKind::NoStream, format!("stream {name:?}: no info")));
        }
        let time = info.get("ts").and_then(Value::as_str).and_then(nanos).ok_or_else(strange)?;
        let subjects = info.pointer("/state/subjects").and_then(Value::as_object);
        let total = info.get("total").and_then(Value::as_u64).unwrap_or(0);
        let count = subjects.map_or(0, |subjects| subjects.len() as u64);
        offset += count;
        groups.extend(subjects.into_iter().flatten().filter_map(|(subject, _)| id(subject)));
        if count == 0 || offset >= total {
            return Ok((time, groups));
        }
    }
}

/// Sequence and time of one message of the stream, without what it holds.
pub(super) async fn at(inner: &Inner, request: String) -> Result<Option<(u64, i128)>> {
    let permit = reserve(inner, MANIFEST_BYTES).await?;
    let asked = inner.client.request(direct_subject(inner), Bytes::from(request)).await;
    drop(permit);
    let reply = asked.map_err(|e| errors::request("cannot look for frames", e))?;
    let field = |name: &str| Some(reply.headers.as_ref()?.get(name)?.as_str().to_owned());
    let seq = field("Nats-Sequence").and_then(|seq| seq.parse().ok());
    let time = field("Nats-Time-Stamp").and_then(|time| nanos(&time));
    Ok(seq.zip(time))
}

fn nanos(text: &str) -> Option<i128> {
    let time = datetime::parse_rfc3339(text).ok()?;
    Some(time.unix_timestamp_nanos())
}

/// `<topic>.frames.<producer>.<epoch>.<seq>.<bytes of a chunk>`.
fn id(subject: &str) -> Option<MessageId> {
    let mut parts = subject.rsplit('.').skip(1);
    let (seq, epoch) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let producer = ProducerId::parse(parts.next()?).ok()?;
    Some(MessageId { producer, epoch, seq })
}

fn strange() -> Error {
    Error::new(ErrorKind::NotConnected, "the server's answer about frames is no stream info")
}
