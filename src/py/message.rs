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
use crate::py::buffer::{NoReferences, Payload, untrack, write_into};
use crate::py::error::{OrRaise, to_python};

static TO_ARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// What a publish came to.
#[pyclass(frozen, module = "vecmq._native", name = "Receipt")]
pub(crate) struct Receipt(pub(super) hybrid::Receipt);

impl NoReferences for Receipt {}

impl Receipt {
    /// As a Python object.
    pub(super) fn made(py: Python<'_>, receipt: hybrid::Receipt) -> PyResult<Py<PyAny>> {
        let made = Bound::new(py, Self(receipt))?;
        untrack(&made);
        Ok(made.into_any().unbind())
    }
}

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

    /// How the message is coded: "raw", "zstd", "planes", "pk3" or "lz4".
    #[getter]
    fn codec(&self) -> &'static str {
        self.0.codec.option()
    }

    /// Why it is coded like that, in a few words.
    #[getter]
    fn codec_why(&self) -> &'static str {
        self.0.codec_why.text()
    }

    fn __repr__(&self) -> String {
        let receipt = &self.0;
        format!(
            "Receipt(route='{}', seq={}, id='{}', level='{}', duplicate={}, frames_count={}, \
             payload_bytes={}, wire_bytes={}, rows_count={}, codec='{}', codec_why='{}')",
            receipt.route.name(),
            receipt.seq,
            receipt.id,
            receipt.level.name(),
            if receipt.duplicate { "True" } else { "False" },
            receipt.frames_count,
            receipt.payload_bytes,
            receipt.wire_bytes,
            receipt.rows_count,
            receipt.codec.option(),
            receipt.codec_why.text(),
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

    fn bytes(&self, py: Python<'_>) -> PyResult<Bytes> {
        let message = self.get(py)?;
        py.detach(|| message.payload().cloned()).or_raise(py)
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
    fn size_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.get(py)?.size_bytes())
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

    /// The bytes: a read-only memoryview, no copy; frames that were kept are put together first.
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let bytes = self.bytes(py)?;
        PyMemoryView::from(Bound::new(py, Payload { bytes })?.as_any())
    }

    /// The payload as a read-only ndarray, no copy; of plain bytes a 1-d uint8 array.
    fn array<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let message = self.get(py)?;
        let bytes = self.bytes(py)?;
        let length = [bytes.len() as u64];
        let payload = Bound::new(py, Payload { bytes })?;
        match &message.layout {
            Some(layout) => to_array(py, payload, layout.dtype(), layout.shape()),
            None => to_array(py, payload, "uint8", &length),
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

    /// Marks the message as one that nobody will be done with: it is not delivered again.
    fn term(&self, py: Python<'_>) -> PyResult<()> {
        let message = self.get(py)?;
        py.detach(|| message.term()).or_raise(py)
    }

    /// Writes the bytes to a writable C-contiguous buffer of exactly as many; frames that were kept
    /// are decoded straight into it.
    fn copy_into(&self, py: Python<'_>, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let message = self.get(py)?;
        write_into(py, out, |room| message.copy_into(room))?.or_raise(py)
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
            message.size_bytes(),
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
    let payloads = inner.iter().map(|message| message.payload());
    let payloads = payloads.collect::<crate::Result<Vec<_>>>().or_raise(py)?;
    let row_bytes = payloads.first().map_or(0, |payload| payload.len());
    let start = payloads.first().map_or(0, |payload| payload.as_ptr().addr());
    let adjacent = payloads
        .iter()
        .enumerate()
        .all(|(row, payload)| payload.as_ptr().addr() == start + row * row_bytes);
    let whole = if adjacent { first.payloads_from_here(inner.len()) } else { None };
    let bytes = match whole {
        Some(bytes) => bytes,
        None => py.detach(|| {
            let mut joined = Vec::with_capacity(row_bytes * inner.len());
            for payload in &payloads {
                joined.extend_from_slice(payload);
            }
            Bytes::from(joined)
        }),
    };
    let mut shape = vec![inner.len() as u64];
    shape.extend_from_slice(layout.shape());
    let payload = Bound::new(py, Payload { bytes })?;
    to_array(py, payload, layout.dtype(), &shape).map(Some)
}
