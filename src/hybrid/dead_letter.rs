//! Messages that were handed out too often go to another topic.

use std::collections::{BTreeMap, VecDeque};
use std::iter;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::Headers;
use crate::hybrid::acks::Acker;
use crate::hybrid::options::SubscribeOptions;
use crate::hybrid::publish::{Done, Submission, Wait};
use crate::hybrid::subscribe::{Message, Unpacking};
use crate::hybrid::topic::HubTopic;
use crate::nats::Hold;
use crate::queue::{Group, SubscriberId};
use crate::router::Route;

/// Until a dead letter has to be on the log.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Until one is tried again that could not be written.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Where the messages of one subscription go that nobody acknowledges.
pub(super) struct DeadLetters {
    topic: Arc<HubTopic>,
    from: Arc<str>,
    deliveries_max: u32,
}

impl DeadLetters {
    pub(super) fn new(
        topic: &Arc<HubTopic>,
        group: &str,
        options: &SubscribeOptions,
    ) -> Result<Option<Self>> {
        let (Some(deliveries_max), Some(letters)) = (options.deliveries_max, &options.dead_letters)
        else {
            return Ok(None);
        };
        if letters.name == topic.name {
            let context =
                format!("dead_letter_topic: topic {:?} itself, for group {group:?}", topic.name);
            return Err(Error::new(ErrorKind::Config, context));
        }
        let (topic, from) = (Arc::clone(letters), Arc::clone(&topic.name));
        Ok(Some(Self { topic, from, deliveries_max }))
    }

    /// Messages with that many deliveries are not handed out again.
    pub(super) fn are_due(&self, deliveries: u32) -> bool {
        deliveries >= self.deliveries_max
    }

    /// Publishes messages of a journal to the other topic; each is done here when it is on the log
    /// there.
    ///
    /// They go to the queue whatever their size: it needs no server and ends at once.
    pub(super) fn send(
        &self,
        group: &Group,
        id: SubscriberId,
        unpacking: &Unpacking,
        pieces: &VecDeque<Range<u64>>,
        deliveries: u32,
    ) -> Result<()> {
        let seqs: Vec<Range<u64>> = pieces.iter().cloned().collect();
        let held = group.hand_out(id, &seqs, None, false)?;
        let seqs = held.iter().cloned().flatten();
        let letters = seqs.filter_map(|seq| unpacking.message(seq, deliveries)).collect();
        let settle = {
            let group = group.clone();
            move |seq: u64, error: Option<&Error>| match error {
                None => group.ack(iter::once(seq..seq + 1)),
                Some(_) => {
                    group.nak(iter::once(seq..seq + 1), RETRY_DELAY);
                    Ok(())
                }
            }
        };
        self.publish(group.name(), letters, deliveries, Route::Queue, settle)
    }

    /// Publishes messages of a stream to the other topic, on a stream too; the server is told what
    /// became of each, and until then that they are in work.
    pub(super) fn send_on(
        &self,
        group: &str,
        letters: Vec<Message>,
        hold: Arc<Hold>,
    ) -> Result<()> {
        let Some(deliveries) = letters.first().map(|message| message.deliveries - 1) else {
            return Ok(());
        };
        let ackers: BTreeMap<u64, Acker> =
            letters.iter().map(|message| (message.seq, message.acker().clone())).collect();
        let settle = move |seq: u64, error: Option<&Error>| {
            let _held = &hold;
            match (ackers.get(&seq), error) {
                (None, _) => Ok(()),
                (Some(acker), None) => acker.ack(seq),
                (Some(acker), Some(_)) => acker.nak(seq, RETRY_DELAY),
            }
        };
        self.publish(group, letters, deliveries, Route::Nats, settle)
    }

    fn publish(
        &self,
        group: &str,
        letters: Vec<Message>,
        deliveries: u32,
        route: Route,
        settle: impl Fn(u64, Option<&Error>) -> Result<()> + Clone + Send + 'static,
    ) -> Result<()> {
        let seqs: Vec<u64> = letters.iter().map(|message| message.seq).collect();
        let letters = letters.into_iter();
        let submissions = letters.map(|message| self.submission(group, message, deliveries));
        let submissions = submissions.collect::<Result<Vec<_>>>()?;
        log::warn!(
            "topic {:?}: {} messages go to {:?} after {deliveries} deliveries to group {group:?}",
            self.from,
            submissions.len(),
            self.topic.name,
        );
        let settle = move |seq: u64, error: Option<&Error>| {
            if let Some(error) = error {
                log::warn!("dead letter {seq} is not written, and tried again: {error}");
            }
            if let Err(error) = settle(seq, error) {
                log::warn!("dead letter {seq}: what became of it is not told: {error}");
            }
        };
        let done = {
            let (seqs, settle) = (seqs.clone(), settle.clone());
            move |index: usize| -> Done {
                let (seq, settle) = (seqs.get(index).copied().unwrap_or(0), settle.clone());
                Box::new(move |result, _payload| settle(seq, result.err().as_ref()))
            }
        };
        let deadline = Instant::now() + TIMEOUT;
        let published = self.topic.publish(submissions, Some(route), deadline, Wait::Never, done);
        match published {
            Ok(receipts) => {
                let written = seqs.iter().zip(&receipts).filter(|(_, receipt)| receipt.is_some());
                written.for_each(|(seq, _)| settle(*seq, None));
            }
            Err(error) => seqs.iter().for_each(|seq| settle(*seq, Some(&error))),
        }
        Ok(())
    }

    fn submission(&self, group: &str, message: Message, deliveries: u32) -> Result<Submission> {
        let mut headers: Vec<(String, String)> =
            message.headers.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let own = [
            ("Dead-Letter-Topic", self.from.to_string()),
            ("Dead-Letter-Group", group.to_owned()),
            ("Dead-Letter-Seq", message.seq.to_string()),
            ("Dead-Letter-Deliveries", deliveries.to_string()),
        ];
        headers.retain(|(key, _)| own.iter().all(|(name, _)| name != key));
        headers.extend(own.map(|(key, value)| (key.to_owned(), value)));
        Ok(Submission {
            codec: None,
            payload: message.payload()?.clone(),
            writable: false,
            layout: message.layout.map(|layout| (*layout).clone()),
            rows: 1,
            headers: Headers::new(headers)?,
            expected_last_seq: None,
        })
    }
}
