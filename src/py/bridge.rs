//! `vecmq.bridge`'s connection for large payloads.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::task::AbortHandle;

use crate::frame::{Coding, Layout, MessageId, Outgoing, ProducerId};
use crate::nats::{Connection, PlainFields, PlainGroup, Turns};
use crate::py::bound::ProcessBound;
use crate::py::buffer;
use crate::py::completions::{Completions, Outcome};
use crate::py::connect::nats_options;
use crate::py::error::OrRaise;

use crate::hybrid;

/// A payload as `vecmq._payload.normalise` gives it: view, dtype, itemsize, shape, writable.
type Normalised<'py> = (Bound<'py, PyAny>, Option<String>, u16, Option<Vec<u64>>, bool);
/// How it is cut: producer, epoch, seq, raw bytes of a frame at most, codec.
type Cut = ([u8; 16], u32, u64, u32, String);
/// Header fields for every frame, the first and the last.
type Fields = (Vec<(String, String)>, Vec<(String, String)>, Vec<(String, String)>);

/// A connection of the core that stores and sends groups on any subject.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct PlainConnection {
    inner: ProcessBound<Connection>,
    turns: Turns,
}

/// A group that is on its way.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct PlainPublish {
    task: AbortHandle,
}

#[pymethods]
impl PlainPublish {
    /// Ends it where it is; without its manifest no reader sees the group.
    fn cancel(&self) {
        self.task.abort();
    }
}

#[pymethods]
impl PlainConnection {
    /// Connects. Blocks.
    #[new]
    fn new(py: Python<'_>, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let options = nats_options(options)?;
        let connect = || hybrid::runtime()?.block_on(Connection::connect(options));
        let connection = py.detach(connect).or_raise(py)?;
        Ok(Self { inner: ProcessBound::new(connection), turns: Turns::default() })
    }

    /// Stores a group in a stream; the token finishes with the server's answer.
    #[expect(clippy::too_many_arguments, reason = "the arguments of one publish")]
    fn store(
        &self,
        py: Python<'_>,
        subject: String,
        payload: Normalised<'_>,
        cut: Cut,
        fields: Fields,
        timeout_s: f64,
        completions: &Completions,
        token: u64,
    ) -> PyResult<PlainPublish> {
        let group = group(py, subject, payload, cut, fields)?;
        let turn = self.turns.take();
        let timeout = Duration::from_secs_f64(timeout_s);
        let (connection, kept) =
            (self.inner.get().or_raise(py)?.clone(), group.outgoing.payload.clone());
        let inbox = Arc::clone(&completions.inbox);
        let task = hybrid::runtime().or_raise(py)?.spawn(async move {
            let answer = connection.store_group(group, timeout, turn).await;
            inbox.finish(token, Outcome::Answered(answer, kept));
        });
        Ok(PlainPublish { task: task.abort_handle() })
    }

    /// Sends a group to whoever listens; the token finishes when the payload's memory is free.
    #[expect(clippy::too_many_arguments, reason = "the arguments of one publish")]
    fn send(
        &self,
        py: Python<'_>,
        subject: String,
        payload: Normalised<'_>,
        cut: Cut,
        fields: Fields,
        completions: &Completions,
        token: u64,
    ) -> PyResult<PlainPublish> {
        let group = group(py, subject, payload, cut, fields)?;
        let (connection, kept) =
            (self.inner.get().or_raise(py)?.clone(), group.outgoing.payload.clone());
        let inbox = Arc::clone(&completions.inbox);
        let task = hybrid::runtime().or_raise(py)?.spawn(async move {
            let sent = connection.send_group(group).await;
            inbox.finish(token, Outcome::Answered(sent.map(|()| bytes::Bytes::new()), kept));
        });
        Ok(PlainPublish { task: task.abort_handle() })
    }

    /// Waits for the server; the token finishes when it has read all that was sent before.
    fn settle(
        &self,
        py: Python<'_>,
        timeout_s: f64,
        completions: &Completions,
        token: u64,
    ) -> PyResult<PlainPublish> {
        let timeout = Duration::from_secs_f64(timeout_s);
        let connection = self.inner.get().or_raise(py)?.clone();
        let inbox = Arc::clone(&completions.inbox);
        let task = hybrid::runtime().or_raise(py)?.spawn(async move {
            let settled = connection.round_trip(timeout).await.map(|()| bytes::Bytes::new());
            inbox.finish(token, Outcome::Answered(settled, bytes::Bytes::new()));
        });
        Ok(PlainPublish { task: task.abort_handle() })
    }

    /// Ends the connection, flushed. Blocks.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let connection = self.inner.get().or_raise(py)?;
        py.detach(|| {
            hybrid::runtime()?.block_on(connection.close());
            Ok(())
        })
        .or_raise(py)
    }
}

fn group(
    py: Python<'_>,
    subject: String,
    (view, dtype, itemsize, shape, writable): Normalised<'_>,
    (producer, epoch, seq, chunk_bytes_max, codec): Cut,
    (every, first, last): Fields,
) -> PyResult<PlainGroup> {
    let layout = match (dtype, shape) {
        (Some(dtype), Some(shape)) => Some(Layout::new(&dtype, itemsize, shape).or_raise(py)?),
        _ => None,
    };
    let id = MessageId { producer: ProducerId(producer), epoch, seq };
    Ok(PlainGroup {
        subject,
        outgoing: Outgoing { id, rows: 1, layout, payload: buffer::borrow(&view)? },
        chunk_bytes_max,
        codec: Coding::parse(&codec, None).or_raise(py)?,
        fields: PlainFields { every, first, last },
        writable,
    })
}
