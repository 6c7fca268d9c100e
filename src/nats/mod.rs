//! The `NATS` route: groups of frames on a `JetStream` stream.
//!
//! | file | what it knows |
//! |---|---|
//! | `options` | how to reach a server, and what a stream may hold |
//! | `auth` | who we are -> what the server's nonce is answered with |
//! | `link` | what became of the connection, and what the server denied on it |
//! | `connection` | one connection; makes streams |
//! | `uplink` | the connection that frames leave on; used once |
//! | `topic` | subjects of a topic; the frame budget |
//! | `publish` | cuts messages and sends their frames, in call order |
//! | `order` | whose turn it is to be handed over, also again |
//! | `group` | the frames of one message, from the first attempt to the acknowledgement of all |
//! | `flight` | one frame, from its turn to its acknowledgement |
//! | `atomic` | a group as one atomic batch |
//! | `window` | what may be without an acknowledgement |
//! | `fetch` | frames -> a message, by direct get; looking a message up, discarding one |
//! | `subscribe` | a durable pull consumer that delivers whole messages |
//! | `pull` | how much the server may send ahead |
//! | `acks` | what became of deliveries, told to the server |
//! | `sweep` | frames that killed publishers have left |
//! | `place` | moving a subscription group |
//! | `admin` | topics and groups, as an operator sees them |
//! | `wire` | what a server sends, as bytes -> what it says |
//! | `inbound` | a connection that somebody else opened, read as fast as it comes |
//! | `plain` | groups on any subject, for code written against plain NATS |
//! | `errors` | what the client and the server say -> [`crate::ErrorKind`] |
//! | `diagnose` | why a server does not answer: its disk |
//!
//! A topic is one stream of its name. A group's last frame, the manifest, goes to the subject
//! `<topic>`, the frames before it to `<topic>.frames.<producer>.<epoch>.<seq>.<chunk bytes>`. So
//! one message is
//! one delivery and one acknowledgement for a consumer of `<topic>`, the winner gets the frames by
//! their subject, and a dead group is purged by it.

mod acks;
mod admin;
mod atomic;
mod auth;
mod connection;
mod diagnose;
mod errors;
mod fetch;
mod flight;
mod group;
mod inbound;
mod link;
mod options;
mod order;
mod place;
mod plain;
mod publish;
mod pull;
mod subscribe;
mod sweep;
mod topic;
mod uplink;
mod window;
mod wire;

pub use acks::{AckHandle, Hold};
pub use admin::{GroupState, StreamState};
pub use connection::Connection;
pub use inbound::{Inbound, Inflow, Limits};
pub use options::{Auth, NatsOptions, Seed, Start, StreamLimits, Tls};
pub use place::Place;
pub use plain::{PlainFields, PlainGroup, Turns, seq_ranges};
pub use publish::{GroupAck, Publish};
pub use subscribe::{Delivery, JetSubscription};
pub use topic::JetTopic;
pub use wire::{Arrival, Said, Wire};
