//! A group as one atomic batch: all its frames are in the stream, or none (server >= 2.12).
//!
//! The server keeps the frames of a batch to itself until the last one, the manifest, commits them,
//! and answers each with an empty message, or with an error that ends the batch. The answers give
//! back the window. What stays unclear is looked for: the manifest lies behind the group's frames.
//! A retry cannot double it, since the manifest, and it alone, has an id that is stored once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Error as ApiError;
use async_nats::{Message, StatusCode, Subscriber};
use futures_util::StreamExt;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::nats::errors::{self, Failure};
use crate::nats::group::{Group, WireFrame};
use crate::nats::publish::GroupAck;
use crate::nats::topic::headers_bytes;
use crate::nats::uplink::Up;
use crate::nats::window::Share;
use crate::nats::{fetch, sweep};

/// Frames of one batch that a server takes.
const FRAMES_MAX: u32 = 1000;
/// Until the next answer has to be there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// What becomes of a batch that is not the first attempt, or was cut off.
const BATCH_BROKEN: [u64; 3] = [
    10_176, // a frame is missing
    10_177, // the server's limit of open batches
    10_201, // an id that it has: the batch was stored, or an earlier one is not given up yet
];

/// What the server said to a frame.
enum Answer {
    /// It has the frame.
    Taken,
    /// It has the whole batch: sequence of the manifest, duplicate.
    Stored(u64, bool),
}

impl Group {
    /// Publishes the group as atomic batches until one of them is stored.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] over 1,000 frames, else as other groups.
    pub(super) async fn deliver_atomic(&self) -> Result<GroupAck> {
        if self.frames_count() > FRAMES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "an atomic message takes {FRAMES_MAX} frames at most, this one needs {}",
                    self.frames_count()
                ),
            ));
        }
        let flight = self.enter(0);
        // What was before the group is stored, and nothing else goes until it is.
        let Some(_turn) = self.turn(&flight, true, true).await? else {
            return Err(self.overdue(ErrorKind::Timeout));
        };
        tokio::select! {
            biased;
            outcome = self.batches() => outcome,
            trouble = self.trouble() => Err(trouble),
        }
    }

    async fn batches(&self) -> Result<GroupAck> {
        loop {
            let (mut wire_bytes, mut coded_count) = (0, 0);
            let up = self.order().up();
            let connection = up.as_ref().map_or(0, |up| up.number);
            let is_lost = || !self.order().is_on(connection);
            let mut outcome = tokio::select! {
                biased;
                outcome = self.batch(up, &mut wire_bytes, &mut coded_count) => outcome,
                _ = self.until(is_lost) => {
                    Err(unclear("the connection was lost"))
                }
            };
            // It may have been stored with the answer lost on the way.
            if matches!(outcome, Err(Failure::Unclear(_))) {
                outcome = match self.find().await {
                    Ok(Some(stored)) => Ok(stored),
                    _ => outcome,
                };
            }
            match outcome {
                Ok((manifest_seq, duplicate)) => {
                    return Ok(self.acknowledged(manifest_seq, duplicate, wire_bytes, coded_count));
                }
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Overloaded(error)) => {
                    log::debug!("{}: {error}", self.id());
                    self.window().overloaded(Instant::now());
                }
                Err(Failure::Unclear(error)) => log::debug!("{}: {error}", self.id()),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            if Instant::now() >= self.deadline() {
                return Err(self.overdue(ErrorKind::PublishUnknown));
            }
        }
    }

    /// Sends one batch; sequence of the manifest, and whether the server had it already.
    async fn batch(
        &self,
        up: Option<Arc<Up>>,
        wire_bytes: &mut u64,
        coded_count: &mut u32,
    ) -> std::result::Result<(u64, bool), Failure> {
        let up = up.ok_or_else(|| unclear("there is no connection"))?;
        let client = &up.client;
        let reply = client.new_inbox();
        let subscribed = client.subscribe(reply.clone()).await;
        let mut answers = Answers {
            replies: subscribed.map_err(|e| unclear(&e.to_string()))?,
            shares: VecDeque::new(),
            deadline: self.deadline(),
        };
        let batch_id = reply.rsplit('.').next().unwrap_or(&reply).to_owned();
        for index in 0..self.frames_count() {
            let frame = self.message(index).await.map_err(Failure::Refused)?;
            let WireFrame { subject, mut headers, body, is_coded } = frame;
            *coded_count += u32::from(is_coded);
            headers.insert("Nats-Batch-Id", batch_id.as_str());
            headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
            if index + 1 == self.frames_count() {
                headers.insert("Nats-Batch-Commit", "1");
            }
            let bytes = body.len() + headers_bytes(&headers);
            self.check_bytes(bytes).map_err(Failure::Refused)?;
            *wire_bytes += bytes as u64;
            let share = answers.room(self, bytes).await?;
            answers.shares.push_back(share);
            let sent =
                client.publish_with_reply_and_headers(subject, reply.clone(), headers, body).await;
            sent.map_err(|e| unclear(&e.to_string()))?;
        }
        loop {
            if let Answer::Stored(seq, duplicate) = answers.next().await? {
                return Ok((seq, duplicate));
            }
        }
    }

    /// Whether the server has the whole group: the sequence of its manifest.
    async fn find(&self) -> Result<Option<(u64, bool)>> {
        let subject = self.inner().frames_subject(self.id(), self.chunk_bytes());
        let last = format!("{{\"last_by_subj\":\"{subject}\"}}");
        let Some((last_frame, _)) = sweep::at(self.inner(), last).await? else {
            return Ok(None);
        };
        // A batch has consecutive sequences.
        let manifest_seq = last_frame + 1;
        match fetch::fetch(self.inner(), self.id(), manifest_seq, u64::MAX).await {
            Ok(_) => Ok(Some((manifest_seq, true))),
            Err(error) if matches!(error.kind(), ErrorKind::Incomplete | ErrorKind::Corrupt) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The answers to one batch, and the shares of the window that they give back.
struct Answers {
    replies: Subscriber,
    shares: VecDeque<Share>,
    deadline: Instant,
}

impl Answers {
    /// Room for one frame more; answers make it.
    async fn room(&mut self, group: &Group, bytes: usize) -> std::result::Result<Share, Failure> {
        loop {
            // Our own frames may be all that fills the window.
            let wait = if self.shares.is_empty() { ANSWER_TIMEOUT } else { Duration::ZERO };
            let until = self.deadline.min(Instant::now() + wait);
            if let Some(share) = group.window().enter(bytes, until).await {
                return Ok(share);
            }
            if self.shares.is_empty() {
                return Err(unclear("the window stayed full"));
            }
            self.next().await?;
        }
    }

    async fn next(&mut self) -> std::result::Result<Answer, Failure> {
        let until = self.deadline.min(Instant::now() + ANSWER_TIMEOUT);
        let reply = tokio::time::timeout_at(until.into(), self.replies.next()).await;
        let reply = reply.ok().flatten().ok_or_else(|| unclear("no answer to a batch"))?;
        self.shares.pop_front();
        read(&reply)
    }
}

fn read(reply: &Message) -> std::result::Result<Answer, Failure> {
    if reply.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(unclear("no stream listens on the topic's subject"));
    }
    if reply.payload.is_empty() {
        return Ok(Answer::Taken);
    }
    let broken = || unclear("the server's answer to a batch is no JSON");
    let value: Value = serde_json::from_slice(&reply.payload).map_err(|_| broken())?;
    if let Some(error) = value.get("error") {
        let api: ApiError = serde_json::from_value(error.clone()).map_err(|_| broken())?;
        let failure = errors::refusal(&api);
        return Err(match failure {
            Failure::Refused(error) if BATCH_BROKEN.iter().any(|&code| is_code(&error, code)) => {
                Failure::Unclear(error)
            }
            failure => failure,
        });
    }
    let seq = value.get("seq").and_then(Value::as_u64).ok_or_else(broken)?;
    let duplicate = value.get("duplicate").and_then(Value::as_bool).unwrap_or(false);
    Ok(Answer::Stored(seq, duplicate))
}

fn is_code(error: &Error, code: u64) -> bool {
    error.kind() == ErrorKind::Rejected { code }
}

fn unclear(what: &str) -> Failure {
    Failure::Unclear(Error::new(ErrorKind::NotConnected, what.to_owned()))
}
