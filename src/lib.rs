//! vecmq moves vector payloads through one topic over two routes.
//!
//! The rooms, from the bottom up; arrows point only downwards:
//!
//! | room | what it knows |
//! |---|---|
//! | [`error`] | everything that can go wrong, as one list of kinds |
//! | [`frame`] | plan, header, codec, checksum, assembler; pure: no IO and no clock |
//! | [`router`] | which route a message of a size takes, and why; the clock is an argument |
//! | `queue` | the embedded `RocksDB` topic log |
//! | `nats` | the JetStream route over async-nats |
//! | `hybrid` | the journal: one order over both routes, publisher and subscriber |
//! | `py` | the Python boundary; the only user of pyo3 |
//!
//! `--no-default-features` leaves `error`, `frame` and `router`: no C++ and no network crates.

pub mod error;
pub mod frame;
pub mod name;
pub mod router;

#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "queue")]
pub mod queue;

#[cfg(all(feature = "queue", feature = "nats"))]
pub mod hybrid;

#[cfg(feature = "python")]
mod py;

/// Makes cargo compile this crate anew for another clone that shares the target directory.
const _: Option<&str> = option_env!("VECMQ_CLONE");

pub use error::{Error, ErrorKind, Result};
