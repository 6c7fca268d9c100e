//! The queue: an embedded topic log in one `RocksDB` directory.
//!
//! | file | what it knows |
//! |---|---|
//! | `db` | settings, column families, errors; the one place that opens `RocksDB` |
//! | `lock` | one process owns a directory |
//! | `keys` | the bytes of keys and records |
//! | `queue` | the directory: topics, producer, epoch |
//! | `topic` | seqs, appends, reads, waking readers |
//! | `append` | the records of one append, and their place in a group's write |
//! | `commit` | group commit: all appends that wait become one write |
//! | `values` | large values, in files of their own |
//! | `cache` | the last records, in memory |
//! | `recover` | what a topic finds when its directory is opened |
//! | `group` | who has which message of a subscription group, and which are done; pure |
//! | `cursor` | subscription groups, saved |
//! | `seek` | where a time lies in the log |
//! | `wal` | what the write-ahead log holds, read without `RocksDB` |
//! | `mark` | what was acknowledged, noted outside the write-ahead log |
//! | `integrity` | the one against the other, before a directory is opened |
//! | `check`, `check_topic` | verifying a directory that nobody has open |
//! | `retention` | what may be deleted, and deleting it |
//! | `rocksmq` | reads the directories of Milvus' `RocksMQ` |

mod append;
mod cache;
mod check;
mod check_topic;
mod commit;
mod cursor;
mod db;
mod group;
mod integrity;
mod keys;
mod lock;
mod mark;
#[expect(clippy::module_inception, reason = "the room and its main noun have one name")]
mod queue;
mod recover;
mod retention;
mod rocksmq;
mod seek;
mod topic;
mod values;
mod wal;

pub use append::Appender;
pub use check::{Checked, Fault, TopicCheck, check};
pub use commit::AppendJob;
pub use cursor::{Group, GroupInfo, GroupStart};
pub use group::{Claim, SubscriberId};
pub use queue::{Queue, QueueOptions};
pub use recover::{Recovery, TopicRecovery};
pub use retention::{Retained, Retention, TopicInfo};
pub use rocksmq::{RocksMq, RocksPage, RocksScan, RocksTopic};
pub use topic::{Record, Topic};

/// Version of the `RocksDB` that is linked in.
pub const ROCKSDB_VERSION: &str = "11.8.1";
