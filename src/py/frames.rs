//! Frames for code that brings its own connection.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::error::{Error, ErrorKind};
use crate::frame::{
    Assembler, Codec, Header, Incoming, Layout, MessageId, Outgoing, Plan, ProducerId,
};
use crate::py::buffer::{self, Payload};
use crate::py::error::OrRaise;

/// One frame: its NATS header fields and its body.
type TextFrame = (Vec<(&'static str, String)>, Payload);

/// Cuts one payload into frames. A raw body is a view of the payload, not a copy.
#[pyfunction]
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
) -> PyResult<Vec<TextFrame>> {
    let payload = buffer::borrow(view)?;
    let cut = || {
        let codec: Codec = codec.parse()?;
        let layout = match (dtype, shape) {
            (Some(dtype), Some(shape)) => Some(Layout::new(dtype, itemsize, shape)?),
            _ => None,
        };
        let id = MessageId { producer: ProducerId(producer), epoch, seq };
        let plan = Plan::new(payload.len() as u64, itemsize, chunk_bytes_max)?;
        let outgoing = Outgoing { id, rows: 1, layout, payload };
        (0..plan.count)
            .map(|index| {
                let frame = outgoing.frame(&plan, index, codec)?;
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
