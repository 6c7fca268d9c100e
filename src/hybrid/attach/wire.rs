//! The bytes of requests and replies. Little-endian; every length is checked before it allocates.
//!
//! ```text
//!  at  size  field
//!   0     1  kind
//!   1     3  zeros
//!   4     4  meta bytes m
//!   8     8  payload bytes p
//!  16     m  meta: the fields of the kind
//!   .     p  payloads, each from a multiple of 64 on
//! ```

use std::ops::Range;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::hybrid::subscribe::SeekTo;
use crate::queue::{GroupInfo, GroupStart, Retention, TopicInfo};

/// Version of what is spoken on the socket, not of the package.
pub(super) const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"VQAT";
/// Bytes before the meta.
pub(super) const HEAD_BYTES: usize = 16;
/// Largest meta: headers of a message take 60 KiB, and a reply is cut at 1 MiB of them.
pub(super) const META_BYTES_MAX: u32 = 16 << 20;
/// Most ranges of seqs in one request.
pub(super) const RANGES_MAX: usize = 10_000;

/// What stands before meta and payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) meta_bytes: u32,
    pub(super) payload_bytes: u64,
}

impl Head {
    pub(super) fn encode(self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        let (kind, rest) = out.split_at_mut(4);
        let (meta, payload) = rest.split_at_mut(4);
        kind.copy_from_slice(&u32::from(self.kind).to_le_bytes());
        meta.copy_from_slice(&self.meta_bytes.to_le_bytes());
        payload.copy_from_slice(&self.payload_bytes.to_le_bytes());
        out
    }

    /// Reads a head and refuses lengths over the limits.
    pub(super) fn decode(bytes: [u8; HEAD_BYTES], payload_bytes_max: u64) -> Result<Self> {
        let mut input = Input(&bytes);
        let kind = u8::try_from(input.u32()?).map_err(|_| damaged("kind"))?;
        let head = Self { kind, meta_bytes: input.u32()?, payload_bytes: input.u64()? };
        let limits = [
            (u64::from(head.meta_bytes), u64::from(META_BYTES_MAX), "meta"),
            (head.payload_bytes, payload_bytes_max, "payload"),
        ];
        for (bytes, limit, what) in limits {
            if bytes > limit {
                let context = format!("attach: {what} of {bytes} bytes, the limit is {limit}");
                return Err(Error::new(ErrorKind::TooLarge, context));
            }
        }
        Ok(head)
    }
}

/// How a group is joined from another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joining {
    pub(super) topic: String,
    pub(super) group: String,
    pub(super) start: GroupStart,
    pub(super) ack_wait: Option<Duration>,
    pub(super) deliveries_max: Option<u32>,
    pub(super) dead_letters: Option<String>,
}

/// From the subscriber's process to the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Hello {
        version: u16,
    },
    Topics,
    Groups {
        topic: String,
    },
    TopicInfo {
        topic: String,
    },
    Subscribe(Joining),
    /// Messages wanted. The same id again keeps the wish alive.
    Want {
        id: u32,
        messages: u32,
    },
    Ack(Vec<Range<u64>>),
    Nak {
        seqs: Range<u64>,
        delay: Duration,
    },
    Extend(Vec<Range<u64>>),
    AckThrough {
        seq: u64,
    },
    /// Replies to what was wanted before carry an older generation.
    Seek {
        to: SeekTo,
        generation: u32,
    },
    /// The subscriber is closed; its messages can still be acknowledged.
    Leave,
}

impl Request {
    /// Kind and meta.
    pub(super) fn encode(&self) -> (u8, Vec<u8>) {
        let mut out = Output::default();
        let kind = match self {
            Self::Hello { version } => {
                out.0.extend_from_slice(&MAGIC);
                out.0.extend_from_slice(&version.to_le_bytes());
                1
            }
            Self::Topics => 2,
            Self::Groups { topic } => out.text(topic, 3),
            Self::TopicInfo { topic } => out.text(topic, 4),
            Self::Subscribe(joining) => {
                out.text(&joining.topic, 0);
                out.text(&joining.group, 0);
                out.u8(u8::from(joining.start == GroupStart::New));
                out.option(joining.ack_wait, Output::duration);
                out.option(joining.deliveries_max, Output::u32);
                out.option(joining.dead_letters.as_ref(), |out, topic| {
                    out.text(topic, 0);
                });
                5
            }
            Self::Want { id, messages } => {
                out.u32(*id);
                out.u32(*messages);
                6
            }
            Self::Ack(ranges) => out.ranges(ranges, 7),
            Self::Nak { seqs, delay } => {
                out.ranges(std::slice::from_ref(seqs), 0);
                out.duration(*delay);
                8
            }
            Self::Extend(ranges) => out.ranges(ranges, 9),
            Self::AckThrough { seq } => {
                out.u64(*seq);
                10
            }
            Self::Seek { to, generation } => {
                let (kind, value, inclusive) = match *to {
                    SeekTo::First => (0, 0, true),
                    SeekTo::New => (1, 0, true),
                    SeekTo::Seq { seq, inclusive } => (2, seq, inclusive),
                    SeekTo::Time { time_ms, inclusive } => (3, time_ms, inclusive),
                };
                out.u8(kind);
                out.u64(value);
                out.u8(u8::from(inclusive));
                out.u32(*generation);
                11
            }
            Self::Leave => 12,
        };
        (kind, out.0)
    }

    pub(super) fn decode(kind: u8, meta: &[u8]) -> Result<Self> {
        let mut input = Input(meta);
        let request = match kind {
            1 => {
                if input.take(4)? != MAGIC.as_slice() {
                    return Err(damaged("hello"));
                }
                Self::Hello { version: input.u16()? }
            }
            2 => Self::Topics,
            3 => Self::Groups { topic: input.text()? },
            4 => Self::TopicInfo { topic: input.text()? },
            5 => Self::Subscribe(Joining {
                topic: input.text()?,
                group: input.text()?,
                start: if input.flag()? { GroupStart::New } else { GroupStart::First },
                ack_wait: input.option(Input::duration)?,
                deliveries_max: input.option(Input::u32)?,
                dead_letters: input.option(Input::text)?,
            }),
            6 => Self::Want { id: input.u32()?, messages: input.u32()? },
            7 => Self::Ack(input.ranges()?),
            8 => {
                let seqs = input.ranges()?.pop().ok_or_else(|| damaged("nak"))?;
                Self::Nak { seqs, delay: input.duration()? }
            }
            9 => Self::Extend(input.ranges()?),
            10 => Self::AckThrough { seq: input.u64()? },
            11 => {
                let (kind, value, inclusive) = (input.u8()?, input.u64()?, input.flag()?);
                let to = match kind {
                    0 => SeekTo::First,
                    1 => SeekTo::New,
                    2 => SeekTo::Seq { seq: value, inclusive },
                    3 => SeekTo::Time { time_ms: value, inclusive },
                    _ => return Err(damaged("seek")),
                };
                Self::Seek { to, generation: input.u32()? }
            }
            12 => Self::Leave,
            _ => return Err(Error::new(ErrorKind::Unsupported, format!("attach: request {kind}"))),
        };
        input.end()?;
        Ok(request)
    }
}

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// The request that is waited for.
    Request,
    /// What was wanted.
    Wanted,
    /// An acknowledgement that nobody waits for.
    Earlier,
}

/// A topic as [`crate::hybrid::Hub::topic_info`] gives it.
pub(super) type TopicAnswer = (TopicInfo, Option<Retention>);

/// From the owner, without those that carry messages (see `runs`).
#[derive(Debug)]
pub(super) enum Reply {
    Hello { version: u16 },
    Done,
    Failed(About, Error),
    Topics(Vec<String>),
    Groups(Vec<GroupInfo>),
    TopicInfo(Box<TopicAnswer>),
}

/// The kind of a reply that carries messages.
pub(super) const MESSAGES: u8 = 100;

impl Reply {
    /// Kind and meta.
    pub(super) fn encode(&self) -> (u8, Vec<u8>) {
        let mut out = Output::default();
        let kind = match self {
            Self::Hello { version } => {
                out.0.extend_from_slice(&version.to_le_bytes());
                1
            }
            Self::Done => 2,
            Self::Failed(about, error) => {
                let code = if let ErrorKind::Rejected { code } = error.kind() { code } else { 0 };
                out.u8(match about {
                    About::Request => 0,
                    About::Wanted => 1,
                    About::Earlier => 2,
                });
                out.u8(kind_number(error.kind()));
                out.u64(code);
                out.text(&error.to_string(), 3)
            }
            Self::Topics(names) => {
                out.u32(u32::try_from(names.len()).unwrap_or(u32::MAX));
                for name in names {
                    out.text(name, 0);
                }
                4
            }
            Self::Groups(groups) => {
                out.u32(u32::try_from(groups.len()).unwrap_or(u32::MAX));
                for group in groups {
                    out.text(&group.name, 0);
                    out.u64(group.next_seq);
                    out.u64(group.done_above);
                    out.u64(group.lag);
                    out.u64(group.handed_out);
                    out.u64(group.subscribers);
                }
                5
            }
            Self::TopicInfo(answer) => {
                let (info, retention) = answer.as_ref();
                let numbers =
                    [info.first_seq, info.next_seq, info.messages, info.bytes, info.file_bytes];
                numbers.into_iter().chain([info.open]).for_each(|number| out.u64(number));
                out.option(info.first_time_ms, Output::u64);
                out.option(info.last_time_ms, Output::u64);
                out.option(retention.as_ref(), |out, retention| {
                    out.option(retention.age_ms_max, Output::u64);
                    out.option(retention.bytes_max, Output::u64);
                    out.option(retention.msgs_max, Output::u64);
                    out.u8(u8::from(retention.unacked));
                });
                6
            }
        };
        (kind, out.0)
    }

    pub(super) fn decode(kind: u8, meta: &[u8]) -> Result<Self> {
        let mut input = Input(meta);
        let reply = match kind {
            1 => Self::Hello { version: input.u16()? },
            2 => Self::Done,
            3 => {
                let about = match input.u8()? {
                    0 => About::Request,
                    1 => About::Wanted,
                    2 => About::Earlier,
                    _ => return Err(damaged("error")),
                };
                let (number, code) = (input.u8()?, input.u64()?);
                Self::Failed(about, Error::new(error_kind(number, code)?, input.text()?))
            }
            4 => {
                let count = input.u32()?;
                // Collecting stops at the first that is not there: a count allocates nothing.
                Self::Topics((0..count).map(|_| input.text()).collect::<Result<_>>()?)
            }
            5 => {
                let count = input.u32()?;
                Self::Groups((0..count).map(|_| group_info(&mut input)).collect::<Result<_>>()?)
            }
            6 => Self::TopicInfo(Box::new(topic_info(&mut input)?)),
            _ => return Err(Error::new(ErrorKind::Unsupported, format!("attach: reply {kind}"))),
        };
        input.end()?;
        Ok(reply)
    }
}

fn group_info(input: &mut Input<'_>) -> Result<GroupInfo> {
    Ok(GroupInfo {
        name: input.text()?,
        next_seq: input.u64()?,
        done_above: input.u64()?,
        lag: input.u64()?,
        handed_out: input.u64()?,
        subscribers: input.u64()?,
    })
}

fn topic_info(input: &mut Input<'_>) -> Result<TopicAnswer> {
    let info = TopicInfo {
        first_seq: input.u64()?,
        next_seq: input.u64()?,
        messages: input.u64()?,
        bytes: input.u64()?,
        file_bytes: input.u64()?,
        open: input.u64()?,
        first_time_ms: input.option(Input::u64)?,
        last_time_ms: input.option(Input::u64)?,
    };
    let retention = input.option(|input| {
        Ok(Retention {
            age_ms_max: input.option(Input::u64)?,
            bytes_max: input.option(Input::u64)?,
            msgs_max: input.option(Input::u64)?,
            unacked: input.flag()?,
        })
    })?;
    Ok((info, retention))
}

/// Kinds by their number on the socket; `Rejected` carries its code beside it. `Closed` is not one:
/// what the owner has closed is not the handle of the process that asks.
const KINDS: [ErrorKind; 20] = [
    ErrorKind::Config,
    ErrorKind::InvalidName,
    ErrorKind::InvalidHeaders,
    ErrorKind::TooLarge,
    ErrorKind::Corrupt,
    ErrorKind::Incomplete,
    ErrorKind::Unsupported,
    ErrorKind::BufferMutated,
    ErrorKind::TopicNotFound,
    ErrorKind::GroupNotFound,
    ErrorKind::SeqNotFound,
    ErrorKind::Locked,
    ErrorKind::Storage,
    ErrorKind::NotConnected,
    ErrorKind::NoStream,
    ErrorKind::Rejected { code: 0 },
    ErrorKind::Timeout,
    ErrorKind::PublishUnknown,
    ErrorKind::Forked,
    ErrorKind::Denied,
];

fn kind_number(kind: ErrorKind) -> u8 {
    let bare = match kind {
        ErrorKind::Rejected { .. } => ErrorKind::Rejected { code: 0 },
        ErrorKind::Closed => ErrorKind::NotConnected,
        other => other,
    };
    let place = KINDS.iter().position(|one| *one == bare);
    place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
}

fn error_kind(number: u8, code: u64) -> Result<ErrorKind> {
    match KINDS.get(usize::from(number)) {
        Some(ErrorKind::Rejected { .. }) => Ok(ErrorKind::Rejected { code }),
        Some(kind) => Ok(*kind),
        None => Err(damaged("error kind")),
    }
}

/// An error about bytes that no version of this wrote.
pub(super) fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("attach: {what}: bytes that no vecmq has sent"))
}

/// Writes fields.
#[derive(Default)]
pub(super) struct Output(pub(super) Vec<u8>);

impl Output {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A length and the text; returns `kind`, which it was the last field of.
    pub(super) fn text(&mut self, text: &str, kind: u8) -> u8 {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(text.as_bytes());
        kind
    }

    fn duration(&mut self, duration: Duration) {
        self.u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    fn ranges(&mut self, ranges: &[Range<u64>], kind: u8) -> u8 {
        self.u32(u32::try_from(ranges.len()).unwrap_or(u32::MAX));
        for range in ranges {
            self.u64(range.start);
            self.u64(range.end);
        }
        kind
    }

    pub(super) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }
}

/// Reads fields; never past the end.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| damaged("length"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| damaged("length"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(damaged("flag")),
        }
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let length = usize::try_from(self.u32()?).map_err(|_| damaged("length"))?;
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| damaged("text"))
    }

    fn duration(&mut self) -> Result<Duration> {
        self.u64().map(Duration::from_micros)
    }

    fn ranges(&mut self) -> Result<Vec<Range<u64>>> {
        let count = self.u32()? as usize;
        if count > RANGES_MAX {
            return Err(damaged("ranges"));
        }
        let range = |input: &mut Self| {
            let range = input.u64()?..input.u64()?;
            if range.is_empty() { Err(damaged("range")) } else { Ok(range) }
        };
        (0..count).map(|_| range(self)).collect()
    }

    pub(super) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    pub(super) fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(damaged("end")) }
    }
}

#[cfg(test)]
mod tests;
