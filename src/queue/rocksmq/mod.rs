//! Reads the directories of Milvus' `RocksMQ` (Milvus 2.5 and before), and never changes them.
//!
//! | file | what it knows |
//! |---|---|
//! | `files` | the two databases, opened read-only; the lock of a running Milvus |
//! | `keys` | the bytes of keys |
//! | `topics` | what the metadata says of topics and pages; topics that only messages are left of |
//! | `read` | counts a topic's messages, and reads them in order |
//!
//! A directory is a pair. `<path>`, column family `default`: `topic/<decimal id>` -> payload.
//! `<path>_meta_kv`, decimal text in every value:
//!
//! ```text
//! topic_id/T                  seconds since the Unix epoch when T was made
//! message_size/T              bytes in T's open page
//! page_message_size/T/<id>    bytes of the page that ends with message id
//! page_ts/T/<id>              when it was closed, in seconds since the Unix epoch
//! acked_ts/T/<id>             when every group had read it
//! ```
//!
//! Milvus' `DestroyTopic` removes the second of the two only: the messages stay, and come back when
//! a topic of that name is made again.

mod files;
mod keys;
mod read;
mod topics;

pub use files::RocksMq;
pub use read::RocksScan;
pub use topics::{RocksPage, RocksTopic};
