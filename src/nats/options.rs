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
    /// A file with a user JWT and its seed; read again for every connection.
    CredsFile(PathBuf),
    /// An nkey.
    NKey(Seed),
    /// A user JWT, and the seed that signs for it.
    Jwt {
        /// The JWT.
        jwt: String,
        /// The user's seed.
        seed: Seed,
    },
}

/// The seed of an nkey.
#[derive(Clone)]
pub enum Seed {
    /// The seed itself.
    Text(String),
    /// A file that holds it; read again for every connection.
    File(PathBuf),
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str(".."),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Token(_) => f.write_str("Token(..)"),
            Self::UserPassword { user, .. } => write!(f, "UserPassword({user:?}, ..)"),
            Self::CredsFile(path) => write!(f, "CredsFile({})", path.display()),
            Self::NKey(seed) => write!(f, "NKey({seed:?})"),
            Self::Jwt { seed, .. } => write!(f, "Jwt(.., {seed:?})"),
        }
    }
}

/// TLS, beside what the servers' URLs and INFO say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// TLS or no connection, whatever the URLs say. Files or `first` imply it, and so does one
    /// `tls://` among the servers.
    pub required: bool,
    /// The handshake comes before the server's INFO; the server must be set so, too.
    pub first: bool,
    /// Certificates that are trusted instead of the system's, PEM.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How to reach a server.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://host:port` or `tls://host:port`, one or more of a cluster; no credentials in them.
    pub servers: Vec<String>,
    /// Who we are.
    pub auth: Auth,
    /// TLS.
    pub tls: Tls,
    /// The client name that the server lists.
    pub name: String,
    /// What the subjects of replies begin with.
    pub inbox_prefix: String,
    /// Until the first connection has to stand, over all servers.
    pub connect_timeout: Duration,
    /// Until a server has to answer a request.
    pub request_timeout: Duration,
    /// Between PINGs; a server that leaves two unanswered is taken for lost.
    pub ping_interval: Duration,
    /// The longest wait between two attempts to reconnect; the first comes at once, then waits
    /// double, with jitter.
    pub reconnect_wait: Duration,
    /// Attempts a server before the connection is lost for good; None: for ever.
    pub max_reconnects: Option<usize>,
    /// Messages and requests that wait for the socket; more make their callers wait.
    pub max_pending: usize,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            auth: Auth::None,
            tls: Tls::default(),
            name: "vecmq".to_owned(),
            inbox_prefix: "_INBOX".to_owned(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_mins(1),
            reconnect_wait: Duration::from_secs(4),
            max_reconnects: None,
            max_pending: 2048,
        }
    }
}

impl NatsOptions {
    /// TLS or no connection: asked for in any way, it holds for every server and every reconnect.
    pub fn requires_tls(&self) -> bool {
        let tls = &self.tls;
        let has_files = tls.ca.is_some() || tls.identity.is_some();
        let is_tls = |url: &String| url.starts_with("tls://");
        tls.required || tls.first || has_files || self.servers.iter().any(is_tls)
    }

    /// The servers, without what must not be shown.
    pub(super) fn addresses(&self) -> String {
        self.servers.iter().map(|url| redacted(url)).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("servers", &self.addresses())
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("name", &self.name)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("ping_interval", &self.ping_interval)
            .field("reconnect_wait", &self.reconnect_wait)
            .field("max_reconnects", &self.max_reconnects)
            .field("max_pending", &self.max_pending)
            .finish()
    }
}

/// The URL without user, password or token.
fn redacted(url: &str) -> String {
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
    /// Groups are atomic batches (server >= 2.12): all frames of a message are in the stream or
    /// none, at about twice the time.
    pub atomic: bool,
}

/// Where a new subscription group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest message.
    First,
    /// After the newest one.
    New,
}
