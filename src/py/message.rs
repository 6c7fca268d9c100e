//! Messages and receipts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMemoryView, PyTuple};

use crate::error::{Error, ErrorKind};
use crate::hybrid;
use crate::py::bound::ProcessBound;
use crate::py::buffer::Payload;
use crate::py::error::{OrRaise, to_python};

static TO_ARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// What a publish came to.
#[pyclass(frozen, module = "vecmq._native", name = "Receipt")]
pub(crate) struct Receipt(pub(super) hybrid::Receipt);

#[pymethods]
impl Receipt {
    /// The route that took the message: "queue" or "nats".
    #[getter]
    fn route(&self) -> &'static str {
        self.0.route.name()
    }

    /// Position in the topic; of packed rows the first row's.
    #[getter]
    fn seq(&self) -> u64 {
        self.0.seq
    }

    /// Message id: producer uuid, epoch and the producer's sequence.
    #[getter]
    fn id(&self) -> String {
        self.0.id.to_string()
    }

    /// What the acknowledgement promises: "stored" (survives kill -9) or "durable" (survives a
    /// power cut).
    #[getter]
    fn level(&self) -> &'static str {
        self.0.level.name()
    }

    /// The server had this message already; it is stored once.
    #[getter]
    fn duplicate(&self) -> bool {
        self.0.duplicate
    }

    /// Frames the message was cut into.
    #[getter]
    fn frames_count(&self) -> u32 {
        self.0.frames_count
    }

    /// Bytes handed in.
    #[getter]
    fn payload_bytes(&self) -> u64 {
        self.0.payload_bytes
    }

    /// Bytes stored, headers included.
    #[getter]
    fn wire_bytes(&self) -> u64 {
        self.0.wire_bytes
    }

    /// Messages acknowledged: 1, or the number of packed rows.
    #[getter]
    fn rows_count(&self) -> u32 {
        self.0.rows_count
    }

    fn __repr__(&self) -> String {
        let receipt = &self.0;
        format!(
            "Receipt(route='{}', seq={}, id='{}', level='{}', duplicate={}, frames_count={}, \
             payload_bytes={}, wire_bytes={}, rows_count={})",
            receipt.route.name(),
            receipt.seq,
            receipt.id,
            receipt.level.name(),
            if receipt.duplicate { "True" } else { "False" },
            receipt.frames_count,
            receipt.payload_bytes,
            receipt.wire_bytes,
            receipt.rows_count,
        )
    }
}

/// A message as received. The payload is read-only and shared, never copied on access.
#[pyclass(frozen, module = "vecmq._native", name = "Message")]
pub(crate) struct Message {
    inner: ProcessBound<hybrid::Message>,
}

impl Message {
    pub(super) fn new(message: hybrid::Message) -> Self {
        Self { inner: ProcessBound::new(message) }
    }

    fn get(&self, py: Python<'_>) -> PyResult<&hybrid::Message> {
        self.inner.get().or_raise(py)
    }
}

#[pymethods]
impl Message {
    /// The topic's name.
    #[getter]
    fn topic(&self, py: Python<'_>) -> PyResult<&str> {
        Ok(&self.get(py)?.topic)
    }

    /// Position in the topic, from 1.
    #[getter]
    fn seq(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.get(py)?.seq)
    }

    /// The route it came by: "queue" or "nats".
    #[getter]
    fn route(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.get(py)?.route.name())
    }

    /// Message id: the receipt's; each packed row has its own, and the receipt the first.
    #[getter]
    fn id(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.get(py)?.id.to_string())
    }

    /// The publisher's headers, as a new dict; of a repeated key the last value.
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let headers = PyDict::new(py);
        for (key, value) in self.get(py)?.headers.iter() {
            headers.set_item(key, value)?;
        }
        Ok(headers)
    }

    /// dtype name of an array ("float32"), None for plain bytes.
    #[getter]
    fn dtype(&self, py: Python<'_>) -> PyResult<Option<&str>> {
        Ok(self.get(py)?.layout.as_ref().map(|layout| layout.dtype()))
    }

    /// Shape of an array, None for plain bytes.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let layout = self.get(py)?.layout.as_ref();
        layout.map(|layout| PyTuple::new(py, layout.shape())).transpose()
    }

    /// Payload bytes.
    #[getter]
    fn size_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.get(py)?.payload.len())
    }

    /// How often it was delivered to the group, this time included.
    #[getter]
    fn deliveries(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.get(py)?.deliveries)
    }

    /// Frames it came in.
    #[getter]
    fn frames_count(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.get(py)?.frames_count)
    }

    /// The bytes: a read-only memoryview, no copy.
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let bytes = self.get(py)?.payload.clone();
        PyMemoryView::from(Bound::new(py, Payload { bytes })?.as_any())
    }

    /// The payload as a read-only ndarray, no copy; of plain bytes a 1-d uint8 array.
    fn array<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let message = self.get(py)?;
        let payload = Bound::new(py, Payload { bytes: message.payload.clone() })?;
        match &message.layout {
            Some(layout) => to_array(py, payload, layout.dtype(), layout.shape()),
            None => {
                let length = [message.payload.len() as u64];
                to_array(py, payload, "uint8", &length)
            }
        }
    }

    /// Marks the message done: it is not delivered to this subscription group again.
    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        let message = self.get(py)?;
        py.detach(|| message.ack()).or_raise(py)
    }

    /// Gives the message back: it is delivered to the group again after `delay_s` seconds.
    #[pyo3(signature = (delay_s = 0.0))]
    fn nak(&self, py: Python<'_>, delay_s: f64) -> PyResult<()> {
        let message = self.get(py)?;
        let delay = Duration::try_from_secs_f64(delay_s).map_err(|_| {
            let context = format!("delay_s: expected seconds >= 0, got {delay_s}");
            to_python(py, &Error::new(ErrorKind::Config, context))
        })?;
        py.detach(|| message.nak(delay)).or_raise(py)
    }

    /// Begins the wait anew after which the message is delivered again.
    fn in_progress(&self, py: Python<'_>) -> PyResult<()> {
        let message = self.get(py)?;
        py.detach(|| message.in_progress()).or_raise(py)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let message = self.get(py)?;
        let kind = message.layout.as_ref().map_or_else(
            || "bytes".to_owned(),
            |layout| format!("{}{:?}", layout.dtype(), layout.shape()),
        );
        Ok(format!(
            "Message(topic='{}', seq={}, route='{}', {kind}, {} bytes)",
            message.topic,
            message.seq,
            message.route.name(),
            message.payload.len(),
        ))
    }
}

fn to_array<'py>(
    py: Python<'py>,
    payload: Bound<'py, Payload>,
    dtype: &str,
    shape: &[u64],
) -> PyResult<Bound<'py, PyAny>> {
    TO_ARRAY
        .get_or_try_init(py, || {
            py.import("vecmq._payload")?.getattr("to_array").map(Bound::unbind)
        })?
        .bind(py)
        .call1((payload, dtype, PyTuple::new(py, shape)?))
}

/// Marks several messages done; the cursor of their subscription group is saved once.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "extracted from a list")]
pub(crate) fn ack_all(py: Python<'_>, messages: Vec<Bound<'_, Message>>) -> PyResult<()> {
    let inner = messages.iter().map(|m| m.get().get(py)).collect::<PyResult<Vec<_>>>()?;
    py.detach(|| hybrid::Message::ack_all(inner)).or_raise(py)
}

/// Messages of equal dtype and shape as one array with a first axis over the messages.
///
/// Rows that were packed together and received together lie one after the other: no copy. Others
/// are copied once. None: the messages differ in dtype or shape.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "extracted from a list")]
pub(crate) fn join_rows<'py>(
    py: Python<'py>,
    messages: Vec<Bound<'py, Message>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let inner = messages.iter().map(|m| m.get().get(py)).collect::<PyResult<Vec<_>>>()?;
    let Some((first, rest)) = inner.split_first() else { return Ok(None) };
    let Some(layout) = &first.layout else { return Ok(None) };
    let same = |other: &&&hybrid::Message| {
        other.layout.as_ref().is_some_and(|own| Arc::ptr_eq(own, layout) || own == layout)
    };
    if rest.iter().filter(same).count() != rest.len() {
        return Ok(None);
    }
    let row_bytes = first.payload.len();
    let start = first.payload.as_ptr().addr();
    let adjacent = inner
        .iter()
        .enumerate()
        .all(|(row, message)| message.payload.as_ptr().addr() == start + row * row_bytes);
    let whole = if adjacent { first.payloads_from_here(inner.len()) } else { None };
    let bytes = match whole {
        Some(bytes) => bytes,
        None => py.detach(|| {
            let mut joined = Vec::with_capacity(row_bytes * inner.len());
            for message in &inner {
                joined.extend_from_slice(&message.payload);
            }
            Bytes::from(joined)
        }),
    };
    let mut shape = vec![inner.len() as u64];
    shape.extend_from_slice(layout.shape());
    let payload = Bound::new(py, Payload { bytes })?;
    to_array(py, payload, layout.dtype(), &shape).map(Some)
}
