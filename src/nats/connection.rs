//! One connection; makes streams.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr, ServerInfo};
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};
use crate::name::validate_name;
use crate::nats::fetch::FETCH_KIB_MAX;
use crate::nats::link::Link;
use crate::nats::options::{NatsOptions, StreamLimits};
use crate::nats::plain::PLAIN_KIB_MAX;
use crate::nats::topic::JetTopic;
use crate::nats::uplink::Uplink;
use crate::nats::{auth, errors};

/// A repeated publish with the same id is stored once within this window.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);
/// Until what was handed over has to be with the server when the connection is closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The wait before the second attempt to reconnect; the first comes at once.
const RECONNECT_WAIT_FIRST: Duration = Duration::from_millis(10);
/// The oldest server that reads whole groups by direct get, as `fetch` does.
const SERVER_VERSION_MIN: (u32, u32) = (2, 11);
/// Publishes without an acknowledgement; the window of a topic is smaller.
const ACKS_MAX: usize = 65_536;

/// A connection to a server or cluster, and one more for publishing once a topic's frames leave;
/// both come back by themselves. Cloning it shares it.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    context: Context,
    uplink: Arc<Uplink>,
    link: Arc<Link>,
    fetch_budget: Arc<Semaphore>,
    plain_budget: Arc<Semaphore>,
}

impl Connection {
    /// Connects; the first connection has to stand within `options.connect_timeout`.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`] naming the addresses, also for a server that is too old;
    /// [`ErrorKind::Denied`] when it does not take the credentials; [`ErrorKind::Config`] for
    /// URLs and files that cannot be used.
    pub async fn connect(options: NatsOptions) -> Result<Self> {
        let link = Arc::new(Link::new(&options.inbox_prefix));
        let (servers, wait_max) = (addresses(&options)?, options.reconnect_wait);
        let attempts_max = options.max_reconnects.map(|attempts| attempts.max(1) * servers.len());
        let reporting = Arc::clone(&link);
        let connecting = connect_options(&options, None)?
            .max_reconnects(attempts_max)
            .reconnect_delay_callback(move |attempt| reconnect_wait(attempt, wait_max))
            .event_callback(move |event| {
                reporting.report(&event);
                std::future::ready(())
            })
            .connect(servers);
        let client = connected(&options, connecting).await?;
        check_version(&client.server_info())
            .map_err(|why| cannot_connect(&options, ErrorKind::NotConnected, &why))?;
        let context = context(&client, &options);
        let uplink = Arc::new(Uplink::new(options, Arc::clone(&link), client.clone()));
        Ok(Self {
            client,
            context,
            uplink,
            link,
            fetch_budget: Arc::new(Semaphore::new(FETCH_KIB_MAX)),
            plain_budget: Arc::new(Semaphore::new(PLAIN_KIB_MAX)),
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn uplink(&self) -> &Arc<Uplink> {
        &self.uplink
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(super) fn fetch_budget(&self) -> &Arc<Semaphore> {
        &self.fetch_budget
    }

    pub(super) fn plain_budget(&self) -> &Arc<Semaphore> {
        &self.plain_budget
    }

    /// The largest message that the server takes, headers included, in bytes; as of its last INFO.
    pub fn max_payload(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Whether it was given up after `max_reconnects`, or closed.
    pub fn is_lost(&self) -> bool {
        self.link.is_lost()
    }

    /// An error when nothing can be sent any more: the connection is lost for good, or the server
    /// refuses our credentials.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`].
    pub fn check(&self) -> Result<()> {
        self.link.check()
    }

    /// Flushes what was handed over and ends the connection.
    pub async fn close(&self) {
        self.uplink.close().await;
        end(&self.client).await;
        self.link.close();
    }

    /// The topic's stream; made with `limits` where it does not exist, else taken as it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Config`] when a stream of that name has other
    /// subjects or makes room by deleting, [`ErrorKind::Rejected`], [`ErrorKind::Denied`],
    /// [`ErrorKind::NotConnected`].
    pub async fn topic(&self, topic: &str, limits: &StreamLimits) -> Result<JetTopic> {
        validate_name("topic", topic)?;
        self.link.guard(topic, self.open_topic(topic, limits)).await
    }

    async fn open_topic(&self, topic: &str, limits: &StreamLimits) -> Result<JetTopic> {
        if limits.atomic && !self.client.is_server_compatible(2, 12, 0) {
            let version = self.client.server_info().version;
            let context = format!("atomic: nats-server >= 2.12 is needed, this one is {version}");
            return Err(Error::new(ErrorKind::Config, context));
        }
        let wanted = stream_config(topic, limits);
        let stream = match self.context.get_stream(topic).await {
            Ok(stream) => stream,
            Err(e) if is_missing(&e) => self
                .context
                .get_or_create_stream(wanted.clone())
                .await
                .map_err(|e| errors::request(&format!("cannot make stream {topic:?}"), e))?,
            Err(e) => return Err(errors::request(&format!("cannot open stream {topic:?}"), e)),
        };
        let config = &stream.cached_info().config;
        check_subjects(topic, &wanted.subjects, &config.subjects)?;
        check_discard(topic, config)?;
        if !config.allow_direct {
            let context = format!(
                "stream {topic:?} was made without allow_direct, by which its frames are read"
            );
            return Err(Error::new(ErrorKind::Config, context));
        }
        if limits.atomic && !config.allow_atomic_publish {
            let context = format!("atomic: stream {topic:?} was made without allow_atomic");
            return Err(Error::new(ErrorKind::Config, context));
        }
        let message_bytes_max = usize::try_from(config.max_message_size).ok();
        Ok(JetTopic::new(self, stream, message_bytes_max, limits.atomic))
    }

    /// Deletes the topic's stream; there need not be one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the stream of that name has other subjects,
    /// [`ErrorKind::Rejected`], [`ErrorKind::Denied`], [`ErrorKind::NotConnected`].
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        validate_name("topic", topic)?;
        self.link.guard(topic, self.delete_stream(topic)).await
    }

    /// Whether the server has a stream of that name; an error unless it is a topic's.
    ///
    /// # Errors
    /// As [`Connection::delete_topic`].
    pub async fn has_topic(&self, topic: &str) -> Result<bool> {
        validate_name("topic", topic)?;
        match self.link.guard(topic, self.find_stream(topic)).await? {
            None => Ok(false),
            Some(found) => check_subjects(topic, &subjects(topic), &found).map(|()| true),
        }
    }

    /// The subjects of the stream of that name.
    async fn find_stream(&self, topic: &str) -> Result<Option<Vec<String>>> {
        match self.context.get_stream(topic).await {
            Ok(stream) => Ok(Some(stream.cached_info().config.subjects.clone())),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(errors::request(&format!("cannot open stream {topic:?}"), e)),
        }
    }

    async fn delete_stream(&self, topic: &str) -> Result<()> {
        let Some(found) = self.find_stream(topic).await? else { return Ok(()) };
        check_subjects(topic, &subjects(topic), &found)?;
        let deleted = self.context.delete_stream(topic).await;
        deleted.map(drop).map_err(|e| errors::request(&format!("cannot delete {topic:?}"), e))
    }
}

/// Whether a stream of that name with these subjects is a topic's.
pub(super) fn has_subjects(topic: &str, found: &[String]) -> bool {
    check_subjects(topic, &subjects(topic), found).is_ok()
}

fn check_subjects(topic: &str, wanted: &[String], found: &[String]) -> Result<()> {
    if wanted.iter().all(|subject| found.contains(subject)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!("stream {topic:?} exists with the subjects {found:?}; a topic needs {wanted:?}"),
    ))
}

/// A stream that makes room deletes acknowledged messages that nobody has read.
fn check_discard(topic: &str, found: &Config) -> Result<()> {
    let by_total =
        found.discard == DiscardPolicy::Old && (found.max_bytes > 0 || found.max_messages > 0);
    let by_subject = found.max_messages_per_subject > 0 && !found.discard_new_per_subject;
    if !by_total && !by_subject {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "stream {topic:?} deletes acknowledged messages to make room: discard {:?}, \
             max_bytes {}, max_msgs {}, max_msgs_per_subject {}; a topic needs discard new",
            found.discard, found.max_bytes, found.max_messages, found.max_messages_per_subject
        ),
    ))
}

fn is_missing(error: &async_nats::jetstream::context::GetStreamError) -> bool {
    use async_nats::jetstream::context::GetStreamErrorKind;
    matches!(error.kind(), GetStreamErrorKind::JetStream(api)
        if api.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The servers of the URLs.
///
/// # Errors
/// [`ErrorKind::Config`].
pub(super) fn addresses(options: &NatsOptions) -> Result<Vec<ServerAddr>> {
    let unusable = |why: &str| {
        let expected = "expected nats://host:port or tls://host:port";
        Error::new(ErrorKind::Config, format!("nats: {expected}, {why} in {}", options.addresses()))
    };
    let parse = |url: &String| {
        let address: ServerAddr = url.parse().map_err(|_| unusable("got no URL"))?;
        match address.scheme() {
            _ if address.has_user_pass() => Err(unusable("got credentials")),
            "nats" | "tls" if !address.host().is_empty() => Ok(address),
            _ => Err(unusable("got another scheme or no host")),
        }
    };
    let addresses = options.servers.iter().map(parse).collect::<Result<Vec<_>>>()?;
    if addresses.is_empty() {
        return Err(unusable("got none"));
    }
    Ok(addresses)
}

/// What every connection of these options has in common. `spent`: as for [`auth::connect_options`].
///
/// # Errors
/// [`ErrorKind::Config`] for files that cannot be used.
pub(super) fn connect_options(
    options: &NatsOptions,
    spent: Option<Arc<AtomicBool>>,
) -> Result<ConnectOptions> {
    let servers = u32::try_from(options.servers.len()).unwrap_or(1).max(1);
    let mut base = auth::connect_options(&options.auth, spent)?
        .name(&options.name)
        .custom_inbox_prefix(&options.inbox_prefix)
        // With this set the client starts the handshake whatever INFO says: nothing is sent before.
        .require_tls(options.requires_tls())
        .connection_timeout(options.connect_timeout / servers)
        .request_timeout(Some(options.request_timeout))
        .ping_interval(options.ping_interval)
        .client_capacity(options.max_pending);
    if options.tls.first {
        base = base.tls_first();
    }
    for file in [&options.tls.ca].into_iter().flatten() {
        readable(file)?;
        base = base.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &options.tls.identity {
        readable(certificate)?;
        readable(key)?;
        base = base.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(base)
}

fn readable(file: &Path) -> Result<()> {
    let opened = std::fs::File::open(file);
    let context = || format!("nats: tls: cannot read {}", file.display());
    opened.map(drop).map_err(|e| Error::with_source(ErrorKind::Config, context(), e))
}

/// Waits for a first connection, for `options.connect_timeout` at most.
///
/// # Errors
/// [`ErrorKind::NotConnected`], [`ErrorKind::Denied`], [`ErrorKind::Config`], naming the addresses.
pub(super) async fn connected(
    options: &NatsOptions,
    connecting: impl Future<Output = std::result::Result<Client, ConnectError>>,
) -> Result<Client> {
    let timeout = options.connect_timeout;
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(e)) => Err(cannot_connect(options, refusal(&e), &e.to_string())),
        Err(_) => {
            let why = format!("no connection in {} s", timeout.as_secs_f64());
            Err(cannot_connect(options, ErrorKind::NotConnected, &why))
        }
    }
}

fn cannot_connect(options: &NatsOptions, kind: ErrorKind, why: &str) -> Error {
    Error::new(kind, format!("cannot connect to {}: {why}", options.addresses()))
}

/// Flushes what was handed over and ends a connection.
pub(super) async fn end(client: &Client) {
    // A server that is gone takes nothing any more; there is nobody to tell.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, client.drain()).await;
}

/// How requests and publishes are made on a connection.
pub(super) fn context(client: &Client, options: &NatsOptions) -> Context {
    ContextBuilder::new()
        .timeout(options.request_timeout)
        .ack_timeout(Duration::from_secs(30))
        .max_ack_inflight(ACKS_MAX)
        .build(client.clone())
}

/// Doubles from attempt to attempt; half of it is chance, so that clients do not come in step.
pub(super) fn reconnect_wait(attempt: usize, wait_max: Duration) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(20);
    let wait = RECONNECT_WAIT_FIRST.saturating_mul(1 << doublings).min(wait_max);
    wait / 2 + wait.mul_f64(chance(1024) as f64 / 2048.0)
}

/// A number under `end`.
pub(super) fn chance(end: usize) -> usize {
    let number = RandomState::new().build_hasher().finish() % end.max(1) as u64;
    usize::try_from(number).unwrap_or(0)
}

fn refusal(error: &ConnectError) -> ErrorKind {
    match error.kind() {
        ConnectErrorKind::ServerParse => ErrorKind::Config,
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            ErrorKind::Denied
        }
        _ if errors::is_authentication(error) => ErrorKind::Denied,
        _ => ErrorKind::NotConnected,
    }
}

fn check_version(info: &ServerInfo) -> std::result::Result<(), String> {
    let mut numbers = info.version.split(['.', '-']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!("expected a server version, got {:?}", info.version));
    };
    let (major_min, minor_min) = SERVER_VERSION_MIN;
    if (major, minor) < SERVER_VERSION_MIN {
        let expected = format!("expected nats-server {major_min}.{minor_min} or newer");
        return Err(format!("{expected}, got {}", info.version));
    }
    Ok(())
}

/// Manifests, and the frames before them.
fn subjects(topic: &str) -> Vec<String> {
    vec![topic.to_owned(), format!("{topic}.frames.>")]
}

fn stream_config(topic: &str, limits: &StreamLimits) -> Config {
    let limit = |value: Option<u64>| value.and_then(|v| i64::try_from(v).ok()).unwrap_or(-1);
    Config {
        name: topic.to_owned(),
        subjects: subjects(topic),
        storage: StorageType::File,
        // The other policy deletes acknowledged messages that nobody has read.
        discard: DiscardPolicy::New,
        max_age: Duration::from_millis(limits.age_ms_max.unwrap_or(0)),
        max_bytes: limit(limits.bytes_max),
        max_messages: limit(limits.msgs_max),
        num_replicas: limits.replicas.max(1),
        // Not longer than messages live: the server refuses that.
        duplicate_window: match limits.age_ms_max {
            Some(age) => DUPLICATE_WINDOW.min(Duration::from_millis(age)),
            None => DUPLICATE_WINDOW,
        },
        allow_direct: true,
        allow_atomic_publish: limits.atomic,
        ..Config::default()
    }
}
