//! The `NATS` route: groups of frames on a `JetStream` stream.
//!
//! | file | what it knows |
//! |---|---|
//! | `options` | how to reach a server, and what a stream may hold |
//! | `connection` | one connection; makes streams |
//! | `topic` | subjects of a topic; the frame budget |
//! | `publish` | a message -> frames in flight -> one acknowledgement |
//! | `fetch` | frames -> a message, by direct get; looking a message up, discarding one |
//! | `subscribe` | a durable pull consumer that delivers whole messages |
//! | `errors` | what the client and the server say -> [`crate::ErrorKind`] |
//!
//! A topic is one stream of its name. A group's last frame, the manifest, goes to the subject
//! `<topic>`, the frames before it to `<topic>.frames.<producer>.<epoch>.<seq>`. So one message is
//! one delivery and one acknowledgement for a consumer of `<topic>`, the winner gets the frames by
//! their subject, and a dead group is purged by it.

mod connection;
mod errors;
mod fetch;
mod options;
mod publish;
mod subscribe;
mod topic;

pub use connection::Connection;
pub use options::{Auth, NatsOptions, Start, StreamLimits};
pub use publish::GroupAck;
pub use subscribe::{AckHandle, Delivery, JetSubscription};
pub use topic::JetTopic;
