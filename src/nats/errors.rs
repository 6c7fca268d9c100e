//! What the client and the server say -> [`ErrorKind`].

use std::error::Error as StdError;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{Error as ApiError, ErrorCode};

use crate::error::{Error, ErrorKind};

/// What to do about a frame that was not acknowledged.
pub(super) enum Failure {
    /// It may be stored, or may be stored by the next attempt: send it again under the same id.
    Unclear(Error),
    /// It is not stored, and sending it again will not help.
    Refused(Error),
}

/// API errors that pass: no leader yet, overloaded, still starting.
const PASSING_CODES: [u64; 4] = [
    10_008, // JetStream system temporarily unavailable
    10_009, // peer not responding: no leader
    10_118, // replicas: stream is offline
    10_167, // too many requests in flight
];

pub(super) fn publish(error: PublishError) -> Failure {
    if let Some(api) = api_error(&error) {
        let code = api.error_code().0;
        let context = format!("the server refused the message: {api}");
        return if PASSING_CODES.contains(&code) {
            Failure::Unclear(Error::with_source(ErrorKind::NotConnected, context, error))
        } else {
            Failure::Refused(Error::new(ErrorKind::Rejected { code }, context))
        };
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
        None => ErrorKind::NotConnected,
    };
    Error::with_source(kind, what.to_owned(), error)
}

fn api_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a ApiError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(api) = error.downcast_ref::<ApiError>() {
            return Some(api);
        }
        next = error.source();
    }
    None
}
