//! Subscribers in other processes of the same host, through the owner of the directory.
//!
//! The owner listens on a unix socket in its directory. A subscriber asks for messages, the owner
//! takes them from an ordinary [`Subscriber`](crate::hybrid::Subscriber) of its own and sends them;
//! acknowledgements go the other way. So groups, redelivery and both routes are what they are in
//! one process. The owner sends what was asked for, and nothing ahead of it.
//!
//! | file | what it knows |
//! |---|---|
//! | `wire` | the bytes of requests and replies; pure |
//! | `runs` | messages as they lie in a reply: rows of one block stay together |
//! | `socket` | the socket file, who is at the other end and whether that process lives |
//! | `server` | the owner's side: listens, one thread for each connection |
//! | `session` | one subscription of another process, as the owner serves it |
//! | `client` | the other side: [`Attached`] |
//! | `link` | the connection of one subscription, and how its messages are acknowledged |

mod client;
mod link;
mod runs;
mod server;
mod session;
mod socket;
mod wire;

pub use client::{AttachOptions, Attached};
pub(super) use link::{Link, RemoteReader};
pub(super) use server::Server;
