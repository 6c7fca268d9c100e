//! One frame, from its turn to its acknowledgement, whatever number of attempts that takes.
//!
//! When the connection is lost the frame goes again as soon as there is another one, under the same
//! `Nats-Msg-Id`; for acknowledgements that are lost otherwise there is a time-out.

use std::time::{Duration, Instant};

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use futures_util::FutureExt;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::error::{Error, ErrorKind, Result};
use crate::nats::errors::{self, Failure, WRONG_LAST_SEQ};
use crate::nats::group::{Group, WireFrame};
use crate::nats::order::{Flight, Turn};
use crate::nats::topic::headers_bytes;
use crate::nats::window::Share;

/// Until a frame counts as unclear and is sent again; doubles with every attempt.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(16);
/// Between two attempts; doubles while the server has too much to do.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A server that has just started may answer "no stream" until it has read its store.
const NO_STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks whether it is our turn, should nothing tell us.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A frame that was handed to the client.
pub(super) struct Sent {
    index: u32,
    wire_bytes: usize,
    is_coded: bool,
    ack: std::result::Result<PublishAckFuture, Failure>,
    flight: Flight,
    /// Of the window: what has to go again has none, so that it cannot keep out what is before it.
    share: Share,
}

/// A frame's acknowledgement: stream sequence, duplicate, bytes on the wire, whether it is coded.
pub(super) type FrameAck = Result<(u64, bool, usize, bool)>;

/// What became of one attempt.
enum Outcome {
    Stored(u64, bool),
    /// The connection that it went to is no more.
    Lost,
    Failed(Failure),
    /// No acknowledgement will come.
    Hopeless(Error),
}

/// How long one attempt may take, and the pause after it.
struct Patience {
    timeout: Duration,
    pause: Duration,
    no_stream_since: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { timeout: ACK_TIMEOUT, pause: RETRY_PAUSE, no_stream_since: None }
    }
}

impl Group {
    /// Sends one frame for the first time. None: its turn did not come before the deadline.
    pub(super) async fn send(&self, index: u32) -> Result<Option<Sent>> {
        self.hand_over(index, self.enter(index), true).await
    }

    /// Waits for the frame's turn and hands it to the client.
    async fn hand_over(&self, index: u32, flight: Flight, is_first: bool) -> Result<Option<Sent>> {
        let WireFrame { subject, headers, body, is_coded } = self.message(index).await?;
        let wire_bytes = body.len() + headers_bytes(&headers);
        let admitted = self.admitted(&flight, wire_bytes, is_first).await?;
        let Some((turn, share)) = admitted else { return Ok(None) };
        // Now: the limit is that of this connection.
        if let Err(error) = self.check_bytes(wire_bytes) {
            self.hold();
            return Err(error);
        }
        let message = PublishMessage::build().payload(body).headers(headers);
        let sent = turn.up.context.send_publish(subject, message).await;
        let ack = sent.map_err(errors::publish);
        // Else what comes after it would overtake it before it goes again.
        if ack.is_ok() {
            turn.gone();
        }
        Ok(Some(Sent { index, wire_bytes, is_coded, ack, flight, share }))
    }

    /// Waits until what was before the frame has gone, and for room. None: not until the deadline.
    async fn admitted(
        &self,
        flight: &Flight,
        wire_bytes: usize,
        is_first: bool,
    ) -> Result<Option<(Turn, Share)>> {
        while Instant::now() < self.deadline() {
            let room = self.window().room();
            let Some(turn) = self.turn(flight, is_first, false).await? else { break };
            if let Some(share) = self.window().try_enter(wire_bytes) {
                return Ok(Some((turn, share)));
            }
            // Whatever has to go again before it needs the turn.
            drop(turn);
            // The loop looks at the deadline.
            let _ = timeout_at(self.deadline().into(), room).await;
        }
        Ok(None)
    }

    /// Waits for the turn, with `alone` for that of a frame whose predecessors are acknowledged.
    /// None: not until the deadline.
    pub(super) async fn turn(
        &self,
        flight: &Flight,
        is_first: bool,
        alone: bool,
    ) -> Result<Option<Turn>> {
        let link = &self.inner().link;
        // What may be stored waits for a server that takes our credentials again.
        let refused = || if is_first { link.check() } else { Ok(()) };
        let mut granted = flight.ask(alone);
        loop {
            let look = || {
                self.order().advance();
                refused().is_err()
            };
            tokio::select! {
                biased;
                turn = &mut granted => {
                    let gone = |e| Error::with_source(ErrorKind::Closed, "the topic ended", e);
                    return turn.map(Some).map_err(gone);
                }
                ended = self.until(look) => {
                    ended?;
                    refused()?;
                }
                () = sleep_until(self.deadline().into()) => return Ok(None),
                () = sleep(LOOK_PAUSE) => self.order().advance(),
            }
        }
    }

    /// Brings one frame to its acknowledgement, whatever number of attempts that takes.
    pub(super) async fn settle(&self, first: Sent) -> FrameAck {
        let (mut patience, mut sent, mut is_unclear) = (Patience::default(), first, false);
        loop {
            let (index, wire_bytes, is_coded) = (sent.index, sent.wire_bytes, sent.is_coded);
            let (outcome, flight) = self.outcome(sent, patience.timeout).await;
            match outcome {
                Outcome::Stored(stream_seq, duplicate) => {
                    flight.acknowledged();
                    self.window().acknowledged(wire_bytes);
                    return Ok((stream_seq, duplicate, wire_bytes, is_coded));
                }
                Outcome::Hopeless(error) => return Err(error),
                Outcome::Lost => (patience, is_unclear) = (Patience::default(), true),
                // An attempt before this one may be what the stream ends with.
                Outcome::Failed(Failure::Refused(error))
                    if is_unclear
                        && error.kind() == (ErrorKind::Rejected { code: WRONG_LAST_SEQ }) =>
                {
                    return Err(self.hopeless(error));
                }
                Outcome::Failed(failure) => {
                    flight.again();
                    is_unclear |= matches!(failure, Failure::Unclear(_));
                    self.pass(failure, &mut patience).await?;
                }
            }
            let unknown = || self.overdue(ErrorKind::PublishUnknown);
            if Instant::now() >= self.deadline() {
                return Err(unknown());
            }
            sent = match self.hand_over(index, flight, false).await {
                Ok(next) => next.ok_or_else(unknown)?,
                // It may have been stored before the connection was lost.
                Err(error) if error.kind() == ErrorKind::NotConnected => {
                    return Err(self.hopeless(error));
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// What becomes of an attempt; its share of the window is given back.
    async fn outcome(&self, sent: Sent, timeout: Duration) -> (Outcome, Flight) {
        let Sent { ack, flight, share, .. } = sent;
        let ack = match ack {
            Ok(ack) => ack,
            Err(failure) => return (Outcome::Failed(failure), flight),
        };
        let end = self.deadline().min(Instant::now() + timeout);
        let is_lost = || flight.is_lost();
        let outcome = tokio::select! {
            biased;
            answer = timeout_at(end.into(), ack) => match answer {
                Ok(Ok(ack)) => Outcome::Stored(ack.sequence, ack.duplicate),
                Ok(Err(error)) => match errors::publish(error) {
                    // The client said so first.
                    Failure::Unclear(_) if is_lost() => Outcome::Lost,
                    failure => Outcome::Failed(failure),
                },
                Err(_) => Outcome::Failed(Failure::Unclear(Error::new(
                    ErrorKind::NotConnected,
                    format!("no acknowledgement in {} s", timeout.as_secs_f64()),
                ))),
            },
            ended = self.until(is_lost) => {
                match ended {
                    Ok(()) => Outcome::Lost,
                    Err(trouble) => Outcome::Hopeless(self.hopeless(trouble)),
                }
            }
        };
        drop(share);
        (outcome, flight)
    }

    /// Waits out a failure that passes.
    async fn pass(&self, failure: Failure, patience: &mut Patience) -> Result<()> {
        match failure {
            Failure::Refused(error) if error.kind() == ErrorKind::NoStream => {
                if !self.inner().is_stream_gone().await {
                    patience.no_stream_since = None;
                } else if patience.no_stream_since.get_or_insert_with(Instant::now).elapsed()
                    > NO_STREAM_PATIENCE
                {
                    return Err(error);
                }
            }
            // The client knew the limit of this connection before we did.
            Failure::Refused(error) if error.kind() == ErrorKind::TooLarge => {
                self.hold();
                return Err(error);
            }
            Failure::Refused(error) => {
                self.refuse();
                return Err(error);
            }
            Failure::Overloaded(error) => {
                log::debug!("{}: {error}", self.id());
                self.window().overloaded(Instant::now());
                patience.pause = (patience.pause * 2).min(RETRY_PAUSE_MAX);
            }
            Failure::Unclear(error) => log::debug!("{}: {error}", self.id()),
        }
        // A failure that comes at once leaves no time to hear of it elsewhere.
        if let Some(trouble) = self.trouble().now_or_never() {
            return Err(trouble);
        }
        sleep(patience.pause).await;
        patience.timeout = (patience.timeout * 2).min(ACK_TIMEOUT_MAX);
        Ok(())
    }
}
