//! Everything that can go wrong, as one list of kinds.
//!
//! Callers and tests branch on [`ErrorKind`], never on text. The context is a full sentence for a
//! person: it states what was expected and what came, with units.

use std::error::Error as StdError;
use std::fmt;

/// Result of every fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. `python/vecmq/errors.py` has one class for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An option is out of its range, or two options contradict each other.
    Config,
    /// A topic or subscription group name breaks the naming rules.
    InvalidName,
    /// Message headers that cannot be sent: reserved key, line break, or too many bytes.
    InvalidHeaders,
    /// A payload, frame or group is over a limit.
    TooLarge,
    /// Bytes that no encoder of this crate wrote: damaged, truncated or forged.
    Corrupt,
    /// A group of frames ended before all of its frames came.
    Incomplete,
    /// A frame version or codec that this build does not know.
    Unsupported,
    /// The payload changed between publish and receipt.
    BufferMutated,
    /// The topic does not exist.
    TopicNotFound,
    /// The subscription group does not exist.
    GroupNotFound,
    /// The topic does not hold that seq.
    SeqNotFound,
    /// Another process or handle owns the directory.
    Locked,
    /// The store refused a read or a write.
    Storage,
    /// No connection to the NATS server, or to the process that owns an attached directory.
    NotConnected,
    /// The NATS server does not let us: credentials it does not take, or a subject that its
    /// permissions keep from us.
    Denied,
    /// No JetStream stream listens on the subject.
    NoStream,
    /// The server refused the publish with an API error code; nothing was stored.
    Rejected {
        /// JetStream API error code, for example 10077 (maximum bytes exceeded).
        code: u64,
    },
    /// The caller's time was over and it is known that nothing was published.
    Timeout,
    /// The caller's time was over and the message may or may not have been stored.
    PublishUnknown,
    /// The handle was closed.
    Closed,
    /// The handle was opened by another process (it does not survive a fork).
    Forked,
}

/// An error: its kind, a sentence for a person, and the cause where there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error without a cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// Makes an error that another error caused.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error for one more who waited for what failed.
    #[cfg(feature = "queue")]
    pub(crate) fn again(&self) -> Self {
        Self::new(self.kind, self.to_string())
    }

    /// The sentence for a person, without the cause.
    pub fn context(&self) -> &str {
        &self.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
