//! How a hub is opened, and its limits.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::CodecOption;
use crate::hybrid::topic::HubTopic;
use crate::nats::{NatsOptions, StreamLimits};
use crate::queue::{GroupStart, Retention};
use crate::router::RouterConfig;

/// Which stores a hub has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The queue alone; no NATS connection.
    Queue,
    /// The stream alone; no `RocksDB`.
    Nats,
    /// Both, in one order.
    Hybrid,
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "queue" => Ok(Self::Queue),
            "nats" => Ok(Self::Nats),
            "hybrid" => Ok(Self::Hybrid),
            _ => Err(Error::new(
                ErrorKind::Config,
                format!("mode: expected 'queue', 'nats' or 'hybrid', got {text:?}"),
            )),
        }
    }
}

/// What a receipt promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Survives kill -9 of any process.
    Stored,
    /// Survives a power cut.
    Durable,
}

impl Level {
    /// The word of the receipt.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Durable => "durable",
        }
    }
}

/// How a subscription group is joined.
#[derive(Clone)]
pub struct SubscribeOptions {
    /// Where a group begins that does not exist yet.
    pub start: GroupStart,
    /// Until a message is delivered again that was not acknowledged; None: when its subscriber is
    /// closed.
    pub ack_wait: Option<Duration>,
    /// Deliveries after which a message goes to `dead_letters`.
    pub deliveries_max: Option<u32>,
    /// Where such messages go.
    pub dead_letters: Option<Arc<HubTopic>>,
}

/// Everything a hub needs to open.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Which stores to open.
    pub mode: Mode,
    /// Directory of the queue. Needed unless the mode is [`Mode::Nats`].
    pub queue_path: Option<PathBuf>,
    /// Server of the stream. Needed unless the mode is [`Mode::Queue`].
    pub nats: Option<NatsOptions>,
    /// Both routes sync to disk before they acknowledge. The caller knows that the server does.
    pub durable: bool,
    /// How chunks are coded, unless a message says otherwise; one that does not shrink goes raw.
    pub codec: CodecOption,
    /// Speed of the link to the server, for [`CodecOption::Auto`]; None: raw to a server of this
    /// host, else measured.
    pub link_bytes_per_s: Option<u64>,
    /// Largest payload, in bytes, on the way in and on the way out.
    pub message_bytes_max: u64,
    /// How the route is chosen.
    pub router: RouterConfig,
    /// What the queue may delete.
    pub retention: Retention,
    /// Other processes of this host may subscribe through this one.
    pub attach: bool,
    /// Limits of the streams that this hub creates.
    pub stream_limits: StreamLimits,
}

impl HubOptions {
    /// The level that receipts carry.
    pub fn level(&self) -> Level {
        if self.durable { Level::Durable } else { Level::Stored }
    }
}
