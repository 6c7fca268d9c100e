//! Frames for code that brings its own connection.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::error::{Error, ErrorKind};
use crate::frame::{
    self, Assembler, Coding, Header, Incoming, Layout, MessageId, Outgoing, Plan, ProducerId,
};
use crate::py::buffer::{self, Payload};
use crate::py::error::OrRaise;

/// One frame: its NATS header fields and its body.
type TextFrame = (Vec<(&'static str, String)>, Payload);

/// Cuts one payload into frames. A raw body is a view of the payload, not a copy.
#[pyfunction]
#[pyo3(signature = (
    view, dtype, itemsize, shape, producer, epoch, seq, chunk_bytes_max, codec, codec_level=None
))]
#[expect(
    clippy::too_many_arguments,
    reason = "one call, plain values: the boundary has no options object"
)]
pub(crate) fn make_frames(
    py: Python<'_>,
    view: &Bound<'_, PyAny>,
    dtype: Option<&str>,
    itemsize: u16,
    shape: Option<Vec<u64>>,
    producer: [u8; 16],
    epoch: u32,
    seq: u64,
    chunk_bytes_max: u32,
    codec: &str,
    codec_level: Option<i32>,
) -> PyResult<Vec<TextFrame>> {
    let payload = buffer::borrow(view)?;
    let cut = || {
        let coding = Coding::parse(codec, codec_level)?;
        let layout = match (dtype, shape) {
            (Some(dtype), Some(shape)) => Some(Layout::new(dtype, itemsize, shape)?),
            _ => None,
        };
        let id = MessageId { producer: ProducerId(producer), epoch, seq };
        let plan = Plan::new(payload.len() as u64, itemsize, chunk_bytes_max)?;
        let outgoing = Outgoing { id, rows: 1, layout, payload };
        (0..plan.count)
            .map(|index| {
                let frame = outgoing.frame(&plan, index, coding)?;
                Ok((frame.header.to_fields(), Payload { bytes: frame.body }))
            })
            .collect::<crate::Result<Vec<_>>>()
    };
    py.detach(cut).or_raise(py)
}

/// Puts the frames of many groups together.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct GroupAssembler {
    inner: Mutex<Assembler>,
}

/// A finished group: payload, dtype, shape.
type Group<'py> = (Payload, Option<String>, Option<Bound<'py, PyTuple>>);

#[pymethods]
impl GroupAssembler {
    #[new]
    fn new(limit_bytes: u64) -> Self {
        Self { inner: Mutex::new(Assembler::new(limit_bytes)) }
    }

    /// Takes one frame; returns the payload, dtype and shape when it was the group's last missing
    /// one.
    #[expect(clippy::needless_pass_by_value, reason = "extracted from a dict")]
    fn accept<'py>(
        &self,
        py: Python<'py>,
        fields: HashMap<String, String>,
        body: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Group<'py>>> {
        let body = buffer::borrow(body)?;
        let take = || -> crate::Result<Option<Incoming>> {
            let header = Header::from_fields(|name| fields.get(name).map(String::as_str))?;
            let header = header.ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, "not a vecmq frame: no Vecmq-Frame header")
            })?;
            self.inner.lock().unwrap_or_else(PoisonError::into_inner).accept(&header, &body)
        };
        let Some(incoming) = py.detach(take).or_raise(py)? else { return Ok(None) };
        let (dtype, shape) = match &incoming.layout {
            Some(layout) => {
                (Some(layout.dtype().to_owned()), Some(PyTuple::new(py, layout.shape())?))
            }
            None => (None, None),
        };
        Ok(Some((Payload { bytes: incoming.payload }, dtype, shape)))
    }
}

/// One frame as it came over somebody's connection.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Frame {
    inner: frame::Frame,
}

#[pymethods]
impl Frame {
    /// The message that it belongs to.
    #[getter]
    fn id(&self) -> String {
        self.inner.header.id.to_string()
    }

    /// Its place in the group.
    #[getter]
    fn index(&self) -> u32 {
        self.inner.header.index
    }

    /// Frames of the group.
    #[getter]
    fn count(&self) -> u32 {
        self.inner.header.count
    }

    /// Payload bytes of the whole message.
    #[getter]
    fn total_bytes(&self) -> u64 {
        self.inner.header.total_bytes
    }

    /// Bytes of the body, as it came.
    #[getter]
    fn body_bytes(&self) -> usize {
        self.inner.body.len()
    }

    /// The two frames have one header and hold the same chunk.
    fn same(&self, other: &Self) -> bool {
        self.inner.header == other.inner.header
    }
}

/// Reads a frame; the body is borrowed. None: the fields are those of a plain message.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "extracted from a dict")]
pub(crate) fn read_frame(
    py: Python<'_>,
    fields: HashMap<String, String>,
    body: &Bound<'_, PyAny>,
) -> PyResult<Option<Frame>> {
    let header = Header::from_fields(|name| fields.get(name).map(String::as_str)).or_raise(py)?;
    let Some(header) = header else { return Ok(None) };
    Ok(Some(Frame { inner: frame::Frame { header, body: buffer::borrow(body)? } }))
}

/// A whole payload: its bytes, dtype and shape.
type Joined<'py> = (Bound<'py, PyBytes>, Option<String>, Option<Bound<'py, PyTuple>>);

/// Puts all frames of a group together, in order; every body is copied once.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "extracted from a list")]
pub(crate) fn join_frames(py: Python<'_>, frames: Vec<Py<Frame>>) -> PyResult<Joined<'_>> {
    let all = || frames.iter().map(|frame| &frame.get().inner);
    let size = frame::joined_bytes(all()).or_raise(py)?;
    let size = usize::try_from(size)?;
    let data =
        PyBytes::new_with(py, size, |out| py.detach(|| frame::join_into(all(), out)).or_raise(py))?;
    let (dtype, shape) = match all().next().and_then(|frame| frame.header.layout.as_ref()) {
        Some(layout) => (Some(layout.dtype().to_owned()), Some(PyTuple::new(py, layout.shape())?)),
        None => (None, None),
    };
    Ok((data, dtype, shape))
}

/// Stream sequences as ranges, "17-20,23", of at most 160 bytes: one range over all where the exact
/// list takes more.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "extracted from a list")]
pub(crate) fn seq_ranges(seqs: Vec<u64>) -> String {
    crate::nats::seq_ranges(&seqs)
}
