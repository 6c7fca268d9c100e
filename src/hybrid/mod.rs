//! One topic over two routes, in one order.
//!
//! The queue's log of a topic is its **journal**: every message has an entry in it. A small message
//! is the entry. A large one is an *intent*, written before its frames go to JetStream and
//! completed with the manifest's stream sequence when the `PubAck` came. So there is one sequencer,
//! one cursor per subscription group, and one order: the order of the publish calls.
//!
//! | file | what it knows |
//! |---|---|
//! | `options` | how a hub is opened, and its limits |
//! | `hub` | owns the stores of one directory; hands out topics |
//! | `admin` | topics and groups as an operator sees them |
//! | `entry` | the bytes of a journal entry |
//! | `inline` | the bytes of small messages, several in one entry |
//! | `attach` | subscribers in other processes of the same host |
//! | `append` | messages -> entries, as one append of the journal |
//! | `topic` | one topic: its journal and its stream |
//! | `lane` | messages for the stream, in call order; small ones travel together |
//! | `pack` | the bytes of small messages that travel together |
//! | `stream_seq` | seqs where there is no journal |
//! | `peek` | reads a journal without a subscription group |
//! | `publish` | submission -> route -> journal -> receipt |
//! | `busy` | what a message costs a route that works on many at once |
//! | `link` | how fast the link to the server is, for `codec="auto"` |
//! | `runtime` | the tokio runtime that both directions share |
//! | `resolve` | what became of an intent whose `PubAck` never came |
//! | `subscribe` | messages as received, and the subscriber that hands them out |
//! | `journal` | the subscription of a topic that has a journal |
//! | `acks` | how a message tells its subscription what became of it |
//! | `repeats` | what a subscription of a stream knows is done, or missing |
//! | `dead_letter` | messages that were handed out too often go to another topic |
//! | `check` | verifying a directory that nobody has open |
//! | `stream_subscribe` | the subscription of mode `nats`, where the stream is the only store |

mod acks;
mod admin;
mod append;
mod attach;
mod busy;
mod check;
mod dead_letter;
mod entry;
mod hub;
mod inline;
mod journal;
mod lane;
mod link;
mod options;
mod pack;
mod peek;
mod publish;
mod repeats;
mod resolve;
mod runtime;
mod stream_seq;
mod stream_subscribe;
mod subscribe;
mod topic;

pub use admin::GroupInfo;
pub use attach::{AttachOptions, Attached};
pub use check::check;
pub use hub::{Hub, Stats};
pub use options::{HubOptions, Level, Mode, SubscribeOptions};
pub use peek::Peeked;
pub use publish::{Done, Receipt, Submission, Wait};
pub(crate) use runtime::handle as runtime;
pub use subscribe::{Message, SeekTo, Subscriber};
pub use topic::HubTopic;
