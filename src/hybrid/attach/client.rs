//! A directory that another process owns, as this one sees it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::attach::link::RemoteReader;
use crate::hybrid::attach::runs;
use crate::hybrid::attach::socket::{self, Peer};
use crate::hybrid::attach::wire::{About, Joining, Reply, Request, TopicAnswer, VERSION};
use crate::hybrid::subscribe::Subscriber;
use crate::queue::{GroupInfo, GroupStart};

/// Until an owner has to have answered.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Until it has to have said hello.
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// Most bytes of payloads in an answer that carries none.
const NO_PAYLOAD: u64 = 0;

/// How a group is joined.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Where a group begins that does not exist yet.
    pub start: GroupStart,
    /// Until a message is delivered again that was not acknowledged; None: when its subscriber is
    /// closed.
    pub ack_wait: Option<Duration>,
    /// Deliveries after which a message goes to `dead_letters`.
    pub deliveries_max: Option<u32>,
    /// The topic where such messages go.
    pub dead_letters: Option<String>,
}

/// A directory that another process owns.
pub struct Attached {
    directory: PathBuf,
    message_bytes_max: u64,
    /// For questions, one at a time; None: it is made when it is needed.
    asking: Mutex<Option<Peer>>,
    closed: AtomicBool,
}

impl Attached {
    /// Connects to the owner of a queue's directory.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`] when nobody owns it now, or the owner takes no subscribers;
    /// [`ErrorKind::Unsupported`] when it speaks another version.
    pub fn open(directory: &Path, message_bytes_max: u64) -> Result<Self> {
        let attached = Self {
            directory: directory.to_owned(),
            message_bytes_max,
            asking: Mutex::new(None),
            closed: AtomicBool::new(false),
        };
        let peer = attached.connect()?;
        *attached.asking.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
        Ok(attached)
    }

    /// Joins a subscription group; makes topic and group where they do not exist yet.
    ///
    /// # Errors
    /// As [`Subscriber::open`], and [`ErrorKind::NotConnected`].
    pub fn subscribe(
        &self,
        topic: &str,
        group: &str,
        options: AttachOptions,
    ) -> Result<Subscriber> {
        self.check_open()?;
        let joining = Joining {
            topic: topic.to_owned(),
            group: group.to_owned(),
            start: options.start,
            ack_wait: options.ack_wait,
            deliveries_max: options.deliveries_max,
            dead_letters: options.dead_letters,
        };
        let most = runs::reply_bytes_max(self.message_bytes_max);
        let place = self.directory.display().to_string();
        RemoteReader::open(self.connect()?, place, joining, most).map(Subscriber::remote)
    }

    /// The names of all topics.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`], [`ErrorKind::Closed`], [`ErrorKind::Storage`].
    pub fn topics(&self) -> Result<Vec<String>> {
        match self.ask(&Request::Topics)? {
            Reply::Topics(names) => Ok(names),
            _ => Err(unexpected()),
        }
    }

    /// How far the groups of a topic are.
    ///
    /// # Errors
    /// [`ErrorKind::TopicNotFound`], else as [`Attached::topics`].
    pub fn groups(&self, topic: &str) -> Result<Vec<GroupInfo>> {
        match self.ask(&Request::Groups { topic: topic.to_owned() })? {
            Reply::Groups(groups) => Ok(groups),
            _ => Err(unexpected()),
        }
    }

    /// What a topic holds, and its own retention.
    ///
    /// # Errors
    /// As [`Attached::groups`].
    pub fn topic_info(&self, topic: &str) -> Result<TopicAnswer> {
        match self.ask(&Request::TopicInfo { topic: topic.to_owned() })? {
            Reply::TopicInfo(answer) => Ok(*answer),
            _ => Err(unexpected()),
        }
    }

    /// Ends the connection; subscriptions have their own. A second call does nothing.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(peer) = asking {
            peer.shutdown();
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the handle is closed"));
        }
        Ok(())
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        self.check_open()?;
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = match asking.take() {
            Some(peer) => peer,
            None => self.connect()?,
        };
        // Kept only when all went well: what comes too late must not answer the next question.
        let reply = exchange(&peer, request, ANSWER_WAIT, &self.directory)?;
        *asking = Some(peer);
        match reply {
            Reply::Failed(About::Request, error) => Err(error),
            reply => Ok(reply),
        }
    }

    fn connect(&self) -> Result<Peer> {
        let directory = &self.directory;
        let peer = socket::connect(directory).map_err(|error| {
            let context = format!(
                "no process that owns {} takes subscribers: open the directory in one with \
                 attach=True and attach after that",
                directory.display()
            );
            Error::with_source(ErrorKind::NotConnected, context, error)
        })?;
        match exchange(&peer, &Request::Hello { version: VERSION }, HELLO_WAIT, directory)? {
            Reply::Hello { version: VERSION } => Ok(peer),
            Reply::Hello { version } => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{}: its owner speaks version {version}", directory.display()),
            )),
            Reply::Failed(_, error) => Err(error),
            _ => Err(unexpected()),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.close();
    }
}

fn exchange(peer: &Peer, request: &Request, wait: Duration, directory: &Path) -> Result<Reply> {
    let lost = || {
        let context = format!("{}: its owner has closed it or has ended", directory.display());
        Error::new(ErrorKind::NotConnected, context)
    };
    let (kind, meta) = request.encode();
    peer.send(kind, &meta, &[]).map_err(|_| lost())?;
    let received = peer.receive(NO_PAYLOAD, Some(Instant::now() + wait))?;
    let received = received.ok_or_else(lost)?;
    Reply::decode(received.kind, &received.meta)
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Corrupt, "attach: the owner answered something else")
}
