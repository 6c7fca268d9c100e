//! What the client and the server say -> [`ErrorKind`].

use std::error::Error as StdError;

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError,
    PublishErrorKind, RequestError, RequestErrorKind,
};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind, PurgeError, PurgeErrorKind};
use async_nats::jetstream::{Error as ApiError, ErrorCode};

use crate::error::{Error, ErrorKind};

/// What to do about a frame that was not acknowledged.
pub(super) enum Failure {
    /// It may be stored, or may be stored by the next attempt: send it again under the same id.
    Unclear(Error),
    /// It is not stored since the server has too much to do: send less, and it again.
    Overloaded(Error),
    /// It is not stored, and sending it again will not help.
    Refused(Error),
}

/// API errors that pass: no leader yet, overloaded, still starting or storing.
const PASSING_CODES: [u64; 6] = [
    10_004, // cluster incomplete: not enough servers at the moment
    10_008, // JetStream system temporarily unavailable
    10_009, // peer not responding: no leader
    10_118, // replicas: stream is offline
    10_158, // an earlier attempt with the same id is being stored
    OVERLOADED,
];
/// Too many requests in flight; its HTTP-like code is 429.
const OVERLOADED: u64 = 10_167;

/// The stream does not end where the publisher expected.
pub(crate) const WRONG_LAST_SEQ: u64 = 10_071;

/// JetStream not enabled.
const NOT_ENABLED: u64 = 10_076;

pub(super) fn publish(error: PublishError) -> Failure {
    if let Some(api) = api_error(&error) {
        return refusal(&api);
    }
    match error.kind() {
        PublishErrorKind::StreamNotFound => Failure::Refused(Error::with_source(
            ErrorKind::NoStream,
            "no stream listens on the topic's subject",
            error,
        )),
        PublishErrorKind::MaxPayloadExceeded => Failure::Refused(Error::with_source(
            ErrorKind::TooLarge,
            "a frame exceeds the server's max_payload",
            error,
        )),
        _ => Failure::Unclear(Error::with_source(
            ErrorKind::NotConnected,
            "the publish was not acknowledged",
            error,
        )),
    }
}

/// What the server answered to a message.
pub(super) fn refusal(api: &ApiError) -> Failure {
    let code = api.error_code().0;
    let context = format!("the server refused the message: {api}");
    if code == OVERLOADED || api.code() == 429 {
        Failure::Overloaded(Error::new(ErrorKind::NotConnected, context))
    } else if PASSING_CODES.contains(&code) {
        Failure::Unclear(Error::new(ErrorKind::NotConnected, context))
    } else {
        Failure::Refused(Error::new(ErrorKind::Rejected { code }, context))
    }
}

/// An error of a request to the `JetStream` API.
pub(super) fn request<E>(what: &str, error: E) -> Error
where
    E: StdError + Send + Sync + 'static,
{
    let kind = match api_error(&error) {
        Some(api) => match api.error_code() {
            ErrorCode::STREAM_NOT_FOUND => ErrorKind::NoStream,
            code if PASSING_CODES.contains(&code.0) => ErrorKind::NotConnected,
            code => ErrorKind::Rejected { code: code.0 },
        },
        // Nobody listens to the API.
        None if has_no_responders(&error) => ErrorKind::Rejected { code: NOT_ENABLED },
        None => ErrorKind::NotConnected,
    };
    Error::with_source(kind, what.to_owned(), error)
}

/// Whether the server did not take who we are.
pub(super) fn is_authentication(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(async_nats::ServerError::Other(text)) = error.downcast_ref() {
            let text = text.to_ascii_lowercase();
            return text.contains("authentication") || text.contains("authorization");
        }
        next = error.source();
    }
    false
}

fn has_no_responders(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(request) = error.downcast_ref::<RequestError>() {
            return request.kind() == RequestErrorKind::NoResponders;
        }
        next = error.source();
    }
    false
}

/// What the server answered, where it did.
pub(super) fn api_error(error: &(dyn StdError + 'static)) -> Option<ApiError> {
    let mut next = Some(error);
    while let Some(error) = next {
        let found = error.downcast_ref::<ApiError>().cloned().or_else(|| api_error_in_kind(error));
        if found.is_some() {
            return found;
        }
        next = error.source();
    }
    None
}

/// The client's errors of requests carry it in their kind, not as their source.
fn api_error_in_kind(error: &(dyn StdError + 'static)) -> Option<ApiError> {
    if let Some(error) = error.downcast_ref::<CreateStreamError>() {
        return match error.kind() {
            CreateStreamErrorKind::JetStream(api) => Some(api),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<GetStreamError>() {
        return match error.kind() {
            GetStreamErrorKind::JetStream(api) => Some(api),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<PurgeError>() {
        return match error.kind() {
            PurgeErrorKind::JetStream(api) => Some(api),
            _ => None,
        };
    }
    match error.downcast_ref::<ConsumerError>()?.kind() {
        ConsumerErrorKind::JetStream(api) => Some(api),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn refused(code: u64, status: u64) -> Failure {
        let answer = serde_json::json!({"code": status, "err_code": code, "description": "why"});
        refusal(&serde_json::from_value(answer).unwrap())
    }

    #[test]
    fn only_what_does_not_pass_is_refused() {
        for code in PASSING_CODES.into_iter().filter(|&code| code != OVERLOADED) {
            assert!(matches!(refused(code, 409), Failure::Unclear(_)), "{code}");
        }
        assert!(matches!(refused(OVERLOADED, 503), Failure::Overloaded(_)));
        assert!(matches!(refused(0, 429), Failure::Overloaded(_)));
        for code in [10_023, 10_054, 10_077] {
            let Failure::Refused(error) = refused(code, 503) else { panic!("{code}") };
            assert_eq!(error.kind(), ErrorKind::Rejected { code });
        }
    }
}
