//! The Python boundary. Each function here converts, detaches, calls, converts; there is no logic.
//!
//! | file | what it knows |
//! |---|---|
//! | `buffer` | Python buffers in, Python buffers out; the only `unsafe` of the crate |
//! | `extract` | payloads as Python hands them in -> submissions |
//! | `error` | [`crate::ErrorKind`] -> the classes of `vecmq.errors` |
//! | `bound` | handles that a forked child must neither use nor drop |
//! | `completions` | wakes an asyncio loop once for many finished publishes |
//! | `wait` | blocks a thread until something is done, Ctrl-C included |
//! | `attach` | directories that other processes own |
//! | `hub`, `publisher`, `subscriber`, `message` | the classes |
//! | `rocksmq` | directories of Milvus' `RocksMQ` (`vecmq.migrate`) |
//! | `check` | what an open repaired and what a check found |
//! | `frames` | frames for code that brings its own connection (`vecmq.bridge`) |
//! | `bridge` | `vecmq.bridge`'s connection for large payloads |
//! | `inbound` | what nats-py's connection receives, read by the core |
//! | `connect` | the options of a connection, as `NatsOptions` of `vecmq` hands them in |

mod attach;
mod bound;
mod bridge;
mod buffer;
mod check;
mod completions;
mod connect;
mod error;
mod extract;
mod frames;
mod hub;
mod inbound;
mod message;
mod pending;
mod publisher;
mod rocksmq;
mod subscriber;
mod wait;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::frame::Codec;

/// What this build is: version, profile, and the versions of what it links.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("wire_version", crate::frame::WIRE_VERSION)?;
    info.set_item("codecs", Codec::ALL.map(Codec::option))?;
    info.set_item("zstd", zstd::zstd_safe::version_string())?;
    info.set_item("rocksdb", crate::queue::ROCKSDB_VERSION)?;
    Ok(info)
}

/// Runs in a forked child before anything else of it.
#[pyfunction]
fn after_fork() {
    bound::look();
}

/// The Rust core of vecmq.
#[pymodule(name = "_native")]
mod native {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[pymodule_export]
    use super::attach::Attached;
    #[pymodule_export]
    use super::bridge::{PlainConnection, PlainPublish};
    #[pymodule_export]
    use super::buffer::Payload;
    #[pymodule_export]
    use super::build_info;
    #[pymodule_export]
    use super::check::check_queue;
    #[pymodule_export]
    use super::completions::Completions;
    #[pymodule_export]
    use super::frames::{Frame, GroupAssembler, join_frames, make_frames, read_frame, seq_ranges};
    #[pymodule_export]
    use super::hub::{Explanation, Hub};
    #[pymodule_export]
    use super::inbound::{InboundParser, InboundSocket, SocketDoor};
    #[pymodule_export]
    use super::message::{Message, Receipt, ack_all, join_rows};
    #[pymodule_export]
    use super::pending::Pending;
    #[pymodule_export]
    use super::publisher::Publisher;
    #[pymodule_export]
    use super::rocksmq::{RocksMq, RocksScan, check_topic_name, peek, topic_bounds};
    #[pymodule_export]
    use super::subscriber::Subscriber;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        super::bound::look();
        let hooks = PyDict::new(py);
        hooks.set_item("after_in_child", wrap_pyfunction!(super::after_fork, module)?)?;
        py.import("os")?.call_method("register_at_fork", (), Some(&hooks))?;
        // Fails only when a logger is set already, which is then the one to use.
        drop(pyo3_log::try_init());
        Ok(())
    }
}
