//! One connection; makes streams.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions};
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};
use crate::name::validate_name;
use crate::nats::errors;
use crate::nats::fetch::FETCH_KIB_MAX;
use crate::nats::options::{Auth, NatsOptions, StreamLimits, redacted};
use crate::nats::topic::JetTopic;

/// A repeated publish with the same id is stored once within this window.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(2);
/// Until the server has to answer a request to its API.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Publishes without an acknowledgement; the window of a topic is smaller.
const ACKS_MAX: usize = 65_536;

/// A connection to a server or cluster; it reconnects by itself. Cloning it shares it.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    context: Context,
    fetch_budget: Arc<Semaphore>,
}

impl Connection {
    /// Connects; the first connection has to stand within `options.connect_timeout`.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`] naming the address, [`ErrorKind::Config`] for bad credentials
    /// files.
    pub async fn connect(options: NatsOptions) -> Result<Self> {
        let address = redacted(&options.url);
        let timeout = options.connect_timeout;
        let connecting = connect_options(&options)?.connect(options.url);
        let refused = |why: String| {
            Error::new(ErrorKind::NotConnected, format!("cannot connect to {address}: {why}"))
        };
        let client = match tokio::time::timeout(timeout, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(e)) if e.kind() == ConnectErrorKind::ServerParse => {
                return Err(Error::new(ErrorKind::Config, format!("nats: not a URL: {address}")));
            }
            Ok(Err(e)) => return Err(refused(e.to_string())),
            Err(_) => return Err(refused(format!("no answer in {} s", timeout.as_secs_f64()))),
        };
        let context = ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(Duration::from_secs(30))
            .max_ack_inflight(ACKS_MAX)
            .build(client.clone());
        Ok(Self { client, context, fetch_budget: Arc::new(Semaphore::new(FETCH_KIB_MAX)) })
    }

    /// The largest message that the server takes, headers included, in bytes; as of its last INFO.
    pub fn max_payload(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Flushes what was handed over and ends the connection.
    pub async fn close(&self) {
        // A server that is gone takes nothing any more; there is nobody to tell.
        let _ = tokio::time::timeout(REQUEST_TIMEOUT, self.client.drain()).await;
    }

    /// The topic's stream; made with `limits` where it does not exist, else taken as it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::Config`] when a stream of that name has other
    /// subjects, [`ErrorKind::Rejected`], [`ErrorKind::NotConnected`].
    pub async fn topic(&self, topic: &str, limits: &StreamLimits) -> Result<JetTopic> {
        validate_name("topic", topic)?;
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
        let message_bytes_max = usize::try_from(config.max_message_size).ok();
        Ok(JetTopic::new(
            self.client.clone(),
            self.context.clone(),
            stream,
            message_bytes_max,
            Arc::clone(&self.fetch_budget),
        ))
    }

    /// Deletes the topic's stream; there need not be one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the stream of that name has other subjects,
    /// [`ErrorKind::Rejected`], [`ErrorKind::NotConnected`].
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        validate_name("topic", topic)?;
        let stream = match self.context.get_stream(topic).await {
            Ok(stream) => stream,
            Err(e) if is_missing(&e) => return Ok(()),
            Err(e) => return Err(errors::request(&format!("cannot open stream {topic:?}"), e)),
        };
        check_subjects(topic, &subjects(topic), &stream.cached_info().config.subjects)?;
        let deleted = self.context.delete_stream(topic).await;
        deleted.map(drop).map_err(|e| errors::request(&format!("cannot delete {topic:?}"), e))
    }
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

fn is_missing(error: &async_nats::jetstream::context::GetStreamError) -> bool {
    use async_nats::jetstream::context::GetStreamErrorKind;
    matches!(error.kind(), GetStreamErrorKind::JetStream(api)
        if api.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn connect_options(options: &NatsOptions) -> Result<ConnectOptions> {
    let base = match &options.auth {
        Auth::None => ConnectOptions::new(),
        Auth::Token(token) => ConnectOptions::with_token(token.clone()),
        Auth::UserPassword { user, password } => {
            ConnectOptions::with_user_and_password(user.clone(), password.clone())
        }
        Auth::NKey(seed) => ConnectOptions::with_nkey(seed.clone()),
        Auth::CredsFile(path) => {
            let unusable = |error| {
                let context = format!("nats: cannot use the credentials in {}", path.display());
                Error::with_source(ErrorKind::Config, context, error)
            };
            let creds = std::fs::read_to_string(path).map_err(unusable)?;
            ConnectOptions::with_credentials(&creds).map_err(unusable)?
        }
    };
    Ok(base
        .name(&options.name)
        .require_tls(options.url.starts_with("tls://"))
        .connection_timeout(options.connect_timeout)
        .request_timeout(Some(REQUEST_TIMEOUT)))
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
        ..Config::default()
    }
}
