//! How to reach a server, and what a stream may hold.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Who we are to the server. Secrets never show in `Debug`.
#[derive(Clone)]
pub enum Auth {
    /// Nobody.
    None,
    /// A token.
    Token(String),
    /// A user with a password.
    UserPassword {
        /// The user's name.
        user: String,
        /// Its password.
        password: String,
    },
    /// A file with a user JWT and its seed.
    CredsFile(PathBuf),
    /// An nkey's seed.
    NKey(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Token(_) => f.write_str("Token(..)"),
            Self::UserPassword { user, .. } => write!(f, "UserPassword({user:?}, ..)"),
            Self::CredsFile(path) => write!(f, "CredsFile({})", path.display()),
            Self::NKey(_) => f.write_str("NKey(..)"),
        }
    }
}

/// How to reach a server.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://host:port` or `tls://host:port`.
    pub url: String,
    /// Who we are.
    pub auth: Auth,
    /// Until the first connection has to stand.
    pub connect_timeout: Duration,
    /// The client name that the server lists.
    pub name: String,
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("url", &redacted(&self.url))
            .field("auth", &self.auth)
            .field("connect_timeout", &self.connect_timeout)
            .field("name", &self.name)
            .finish()
    }
}

/// The URL without user, password or token.
pub(super) fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        _ => url.to_owned(),
    }
}

/// What a stream may hold; None is no limit. Publishing beyond a limit is refused, nothing is
/// dropped for it.
#[derive(Clone, Debug, Default)]
pub struct StreamLimits {
    /// Messages older than this many milliseconds are deleted.
    pub age_ms_max: Option<u64>,
    /// Bytes in the stream.
    pub bytes_max: Option<u64>,
    /// Messages in the stream; every frame is one.
    pub msgs_max: Option<u64>,
    /// Servers that hold a copy, 1 to 5.
    pub replicas: usize,
}

/// Where a new subscription group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest message.
    First,
    /// After the newest one.
    New,
}
