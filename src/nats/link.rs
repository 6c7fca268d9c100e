//! What became of the connection: lost, refused, and what the server denied on it.
//!
//! The client reports these as events, apart from the call that caused them; here they find it.

use std::collections::VecDeque;
use std::time::Instant;

use async_nats::{ClientError, Event, ServerError};
use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};

/// Denials that are kept; a call looks for its own as soon as it comes.
const DENIALS_MAX: usize = 64;

/// The state of a connection.
pub(super) struct Link {
    state: watch::Sender<State>,
    inbox_prefix: String,
}

#[derive(Default)]
struct State {
    /// The client has given up, or was closed.
    lost: Option<&'static str>,
    /// By us: nothing that the client reports later changes it.
    closed: bool,
    /// The server refused our credentials when we came back.
    refused: bool,
    denials: VecDeque<Denial>,
}

/// What a call sends: a denial of one is none of the other.
#[derive(Clone, Copy)]
pub(super) enum Sends {
    Frames,
    Requests,
}

struct Denial {
    subject: String,
    at: Instant,
    /// Replies cannot come in: no request is answered on this connection.
    is_inbox: bool,
}

impl Link {
    pub(super) fn new(inbox_prefix: &str) -> Self {
        let inbox_prefix = format!("{inbox_prefix}.");
        Self { state: watch::Sender::default(), inbox_prefix }
    }

    /// Takes what the client reports.
    pub(super) fn report(&self, event: &Event) {
        match event {
            Event::Connected => self.state.send_modify(|state| {
                if !state.closed {
                    *state = State::default();
                }
            }),
            Event::Disconnected => self.look(),
            Event::Closed => self.state.send_modify(|state| state.lost = Some("it was closed")),
            Event::ClientError(ClientError::MaxReconnects) => {
                self.lose("the server was not found again within max_reconnects attempts");
            }
            Event::ClientError(ClientError::Other(what)) if is_refusal(what) => self.refuse(),
            Event::ServerError(ServerError::AuthorizationViolation) => self.refuse(),
            Event::ServerError(ServerError::Other(what)) => self.deny(what),
            _ => {}
        }
        match event {
            Event::Disconnected | Event::ServerError(_) | Event::SlowConsumer(_) => {
                log::warn!("nats: {event}");
            }
            // One of every attempt to reconnect among them.
            _ => log::debug!("nats: {event}"),
        }
    }

    /// Whoever waits for something looks whether it has happened, or still can.
    pub(super) fn look(&self) {
        self.state.send_modify(|_| {});
    }

    /// The server takes our credentials.
    pub(super) fn admit(&self) {
        self.state.send_modify(|state| state.refused = false);
    }

    /// Ends whatever waits for a connection, also one that is not there.
    pub(super) fn close(&self) {
        self.state.send_modify(|state| (state.closed, state.lost) = (true, Some("it was closed")));
    }

    fn lose(&self, why: &'static str) {
        self.state.send_modify(|state| state.lost = Some(why));
        log::warn!("nats: the connection is lost for good: {why}");
    }

    /// The server does not take our credentials any more.
    pub(super) fn refuse(&self) {
        let was_refused = self.state.borrow().refused;
        self.state.send_modify(|state| state.refused = true);
        if !was_refused {
            log::warn!("nats: the server refuses the credentials that it took before");
        }
    }

    /// Whether nothing can be sent any more, ever.
    pub(super) fn is_lost(&self) -> bool {
        self.state.borrow().lost.is_some()
    }

    fn deny(&self, what: &str) {
        let Some((is_publish, subject)) = violation(what) else { return };
        let denial = Denial {
            subject: subject.to_owned(),
            at: Instant::now(),
            is_inbox: !is_publish && subject.starts_with(&self.inbox_prefix),
        };
        self.state.send_modify(|state| {
            state.denials.truncate(DENIALS_MAX - 1);
            state.denials.push_front(denial);
        });
    }

    /// An error when nothing can be sent, now or ever again.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`].
    pub(super) fn check(&self) -> Result<()> {
        let state = self.state.borrow();
        match (state.lost, state.refused) {
            (Some(why), _) => Err(lost(why)),
            (None, true) => Err(Error::new(
                ErrorKind::NotConnected,
                "the server refuses the credentials that it took before",
            )),
            (None, false) => Ok(()),
        }
    }

    /// Waits until what was sent about `topic` since then cannot succeed any more:
    /// [`ErrorKind::Denied`], or [`ErrorKind::NotConnected`] when the connection is lost for good.
    pub(super) async fn trouble(&self, sends: Sends, topic: &str, since: Instant) -> Error {
        match self.until(sends, topic, since, || false).await {
            Err(error) => error,
            Ok(()) => lost("it was closed"),
        }
    }

    /// Waits until something has `happened`; it is looked for when anything happens to a
    /// connection.
    ///
    /// # Errors
    /// As [`Link::trouble`], which comes first.
    pub(super) async fn until(
        &self,
        sends: Sends,
        topic: &str,
        since: Instant,
        happened: impl Fn() -> bool,
    ) -> Result<()> {
        let mut states = self.state.subscribe();
        loop {
            if let Some(error) = states.borrow_and_update().trouble(sends, topic, since) {
                return Err(error);
            }
            if happened() {
                return Ok(());
            }
            if states.changed().await.is_err() {
                return Err(lost("it was closed"));
            }
        }
    }

    /// Awaits an answer of the server about `topic`, or what keeps it from coming.
    ///
    /// # Errors
    /// As the work; [`ErrorKind::Denied`], [`ErrorKind::NotConnected`].
    pub(super) async fn guard<T>(
        &self,
        topic: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.check()?;
        let since = Instant::now();
        tokio::select! {
            biased;
            result = work => result,
            error = self.trouble(Sends::Requests, topic, since) => Err(error),
        }
    }
}

impl Sends {
    /// Whether a call about `topic` sends this to `subject`.
    fn goes_to(self, subject: &str, topic: &str) -> bool {
        let mut tokens = subject.split('.');
        let is_frame = tokens.next() == Some(topic);
        match self {
            Self::Frames => is_frame,
            Self::Requests => !is_frame && tokens.any(|token| token == topic),
        }
    }
}

impl State {
    fn trouble(&self, sends: Sends, topic: &str, since: Instant) -> Option<Error> {
        if let Some(why) = self.lost {
            return Some(lost(why));
        }
        let is_ours = |denial: &&Denial| {
            denial.is_inbox || (sends.goes_to(&denial.subject, topic) && denial.at >= since)
        };
        self.denials.iter().find(is_ours).map(|denial| {
            let what = if denial.is_inbox { "subscribe to" } else { "publish to" };
            let context =
                format!("the server's permissions do not let us {what} {}", denial.subject);
            Error::new(ErrorKind::Denied, context)
        })
    }
}

fn lost(why: &str) -> Error {
    Error::new(ErrorKind::NotConnected, format!("the connection is lost for good: {why}"))
}

/// What the client says when a server did not let it in again.
fn is_refusal(what: &str) -> bool {
    what == async_nats::ConnectErrorKind::AuthorizationViolation.to_string()
        || what == async_nats::ConnectErrorKind::Authentication.to_string()
}

/// Whether a publish or a subscription was denied, and its subject.
fn violation(what: &str) -> Option<(bool, &str)> {
    let rest = what.strip_prefix("Permissions Violation for ")?;
    let (kind, rest) = rest.split_once(" to \"")?;
    let (subject, _) = rest.split_once('"')?;
    Some((kind == "Publish", subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_finds_the_call_that_caused_it_and_no_other() {
        let link = Link::new("_INBOX");
        let earlier = Instant::now();
        let deny = |text: &str| {
            link.report(&Event::ServerError(ServerError::Other(text.to_owned())));
        };
        let kind_of = |sends: Sends, topic: &str, since: Instant| {
            link.state.borrow().trouble(sends, topic, since).map(|error| error.kind())
        };
        let kind = |topic: &str, since: Instant| kind_of(Sends::Frames, topic, since);
        deny("Permissions Violation for Publish to \"t.frames.a.1.2\"");
        deny("Unknown Protocol Operation");
        assert_eq!(kind("t", earlier), Some(ErrorKind::Denied));
        assert_eq!(kind("frames", earlier), None);
        assert_eq!(kind_of(Sends::Requests, "t", earlier), None);
        deny("Permissions Violation for Publish to \"$JS.API.CONSUMER.MSG.NEXT.s.g\"");
        assert_eq!(kind_of(Sends::Requests, "s", earlier), Some(ErrorKind::Denied));
        assert_eq!(kind("s", earlier), None);
        assert_eq!(kind("t", Instant::now() + std::time::Duration::from_secs(1)), None);
        deny("Permissions Violation for Subscription to \"_INBOX.x.*\"");
        assert_eq!(kind("u", Instant::now()), Some(ErrorKind::Denied));
        link.report(&Event::Connected);
        assert_eq!(kind("t", earlier), None);
        link.report(&Event::ClientError(ClientError::MaxReconnects));
        assert_eq!(kind("t", earlier), Some(ErrorKind::NotConnected));
    }

    #[test]
    fn refused_credentials_are_no_connection_until_there_is_one() {
        let link = Link::new("_INBOX");
        let refusal = async_nats::ConnectErrorKind::AuthorizationViolation.to_string();
        link.report(&Event::ClientError(ClientError::Other(refusal)));
        assert_eq!(link.check().map_err(|e| e.kind()), Err(ErrorKind::NotConnected));
        link.report(&Event::Connected);
        assert!(link.check().is_ok());
    }
}
