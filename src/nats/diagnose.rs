//! Why a server does not answer, or nobody takes a publish.
//!
//! What `JetStream` cannot write it does not acknowledge, and says nothing. A purge is a write too,
//! and its answer has the operating system's words in it: one that matches nothing tells a full
//! disk from a slow server.

use std::time::{Duration, Instant};

use async_nats::jetstream::ErrorCode;
use tokio::sync::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::nats::errors;
use crate::nats::topic::Inner;

/// Until the server has to say what is wrong.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer holds for all publishes whose time is over meanwhile.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(1);
/// What the operating system says of a disk that takes nothing more.
const DISK_WORDS: [&str; 5] = [
    "no space left on device",
    "disk quota exceeded",
    "read-only file system",
    "input/output error",
    "file too large",
];

/// What the server said last, and when.
#[derive(Default)]
pub(super) struct Diagnosis {
    last: Mutex<Option<(Instant, Option<String>)>>,
}

impl Inner {
    /// Names the disk where it is the reason that a publish got no acknowledgement in time.
    pub(super) async fn explained<T>(&self, outcome: Result<T>) -> Result<T> {
        let error = match outcome {
            Err(error) if is_silence(error.kind()) => error,
            outcome => return outcome,
        };
        match self.storage_failure().await {
            Some(why) => Err(Error::new(
                ErrorKind::Storage,
                format!(
                    "the server cannot write stream {:?} to its disk ({why}); {}",
                    self.name(),
                    error.context()
                ),
            )),
            None => Err(error),
        }
    }

    /// True when the server says that there is no such stream. Nobody takes a publish while a
    /// cluster elects the stream's leader either, which takes it up to ten seconds.
    pub(super) async fn is_stream_gone(&self) -> bool {
        let asked = self.context.get_stream(self.name());
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Err(error)) => errors::api_error(&error)
                .is_some_and(|api| api.error_code() == ErrorCode::STREAM_NOT_FOUND),
            Ok(Ok(_)) | Err(_) => false,
        }
    }

    async fn storage_failure(&self) -> Option<String> {
        let mut last = self.diagnosis.last.lock().await;
        match &*last {
            Some((asked, why)) if asked.elapsed() < ANSWER_AGE_MAX => return why.clone(),
            _ => {}
        }
        // No message lies there: ids have three parts.
        let nowhere = format!("{}.frames.nobody", self.name());
        let purge = self.stream.purge().filter(nowhere).into_future();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, purge).await;
        let why = match answer {
            Ok(Err(error)) => errors::api_error(&error)
                .map(|api| api.to_string())
                .filter(|text| DISK_WORDS.iter().any(|words| text.contains(words))),
            Ok(Ok(_)) | Err(_) => None,
        };
        *last = Some((Instant::now(), why.clone()));
        why
    }
}

fn is_silence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PublishUnknown | ErrorKind::Timeout)
}
