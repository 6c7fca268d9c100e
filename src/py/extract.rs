//! Payloads as Python hands them in -> submissions.
//!
//! What most payloads are, bytes and numpy arrays of plain numbers in C order, is taken through
//! the buffer protocol right here; `vecmq._messages.prepare` describes everything else. An array
//! took 2.3 us there and takes 0.2 us here, in a loop of its own 0.8 and 0.1 us for bytes.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyType};

use crate::frame::{Headers, Layout};
use crate::hybrid::Submission;
use crate::py::buffer;
use crate::py::error::OrRaise;

/// One message as `vecmq._messages` prepares it: view, writable, dtype, itemsize, shape, rows,
/// headers.
type Item<'py> = (
    Bound<'py, PyAny>,
    bool,
    Option<String>,
    u16,
    Option<Vec<u64>>,
    u32,
    Option<Vec<(String, String)>>,
);

static PREPARE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static NDARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// Takes every message of a call.
pub(super) fn submissions(items: &Bound<'_, PyList>) -> PyResult<Vec<Submission>> {
    let py = items.py();
    let mut extractor = Extractor { last: None };
    let mut taken = Vec::with_capacity(items.len());
    for item in items.iter() {
        taken.push(match extractor.plain(&item)? {
            Some(submission) => submission,
            None => prepared(py, prepare(py)?.call1((item,))?.extract()?)?,
        });
    }
    Ok(taken)
}

/// Takes one message.
pub(super) fn submission(item: &Bound<'_, PyAny>, last: &LastLayout) -> PyResult<Submission> {
    let py = item.py();
    // Not held over what may run Python code: that could wait for a thread that waits for this.
    let kept = || last.0.lock().unwrap_or_else(PoisonError::into_inner);
    let known = kept().take();
    let mut extractor = Extractor { last: known };
    let plain = extractor.plain(item);
    *kept() = extractor.last;
    match plain? {
        Some(submission) => Ok(submission),
        None => prepared(py, prepare(py)?.call1((item,))?.extract()?),
    }
}

/// Shape and layout of the last array of a publisher: the next one mostly has the same.
#[derive(Default)]
pub(super) struct LastLayout(Mutex<Option<(Arc<[usize]>, Layout)>>);

struct Extractor {
    /// The layout of the last array: the next one mostly has the same.
    last: Option<(Arc<[usize]>, Layout)>,
}

impl Extractor {
    /// A payload without headers that needs no description; None for any other.
    fn plain(&mut self, item: &Bound<'_, PyAny>) -> PyResult<Option<Submission>> {
        let is_bytes = item.is_exact_instance_of::<PyBytes>()
            || item.is_exact_instance_of::<PyMemoryView>()
            || item.is_exact_instance_of::<PyByteArray>();
        let is_array =
            !is_bytes && ndarray(item.py())?.is_some_and(|class| item.get_type().is(class));
        if !is_array && !is_bytes {
            return Ok(None);
        }
        // Whatever is wrong with it is said where everything else is described.
        let Ok(buffer) = PyUntypedBuffer::get(item) else { return Ok(None) };
        if !buffer.is_c_contiguous() || buffer.len_bytes() == 0 {
            return Ok(None);
        }
        let layout = if is_array {
            let Some(layout) = self.layout(&buffer) else { return Ok(None) };
            Some(layout)
        } else if buffer.format().to_bytes() == b"B" && buffer.dimensions() == 1 {
            None
        } else {
            return Ok(None);
        };
        let writable = !buffer.readonly();
        let payload = buffer::lend(buffer)?;
        Ok(Some(Submission {
            payload,
            writable,
            layout,
            rows: 1,
            headers: Headers::empty(),
            expected_last_seq: None,
            codec: None,
        }))
    }

    fn layout(&mut self, buffer: &PyUntypedBuffer) -> Option<Layout> {
        let dtype = dtype_name(buffer.format().to_bytes(), buffer.item_size())?;
        if let Some((shape, layout)) = &self.last
            && **shape == *buffer.shape()
            && layout.dtype() == dtype
        {
            return Some(layout.clone());
        }
        let shape = buffer.shape().iter().map(|dim| *dim as u64).collect();
        let itemsize = u16::try_from(buffer.item_size()).unwrap_or(0);
        // More dimensions than fit are refused where everything else is described.
        let layout = Layout::new(dtype, itemsize, shape).ok()?;
        self.last = Some((buffer.shape().into(), layout.clone()));
        Some(layout)
    }
}

/// The dtype of a buffer format in the machine's own order, as `vecmq._payload` names it.
fn dtype_name(format: &[u8], itemsize: usize) -> Option<&'static str> {
    Some(match (format, itemsize) {
        (b"f", 4) => "float32",
        (b"d", 8) => "float64",
        (b"e", 2) => "float16",
        (b"?", 1) => "bool",
        (b"b", 1) => "int8",
        (b"B", 1) => "uint8",
        (b"h", 2) => "int16",
        (b"H", 2) => "uint16",
        (b"i" | b"l" | b"q", 4) => "int32",
        (b"I" | b"L" | b"Q", 4) => "uint32",
        (b"i" | b"l" | b"q", 8) => "int64",
        (b"I" | b"L" | b"Q", 8) => "uint64",
        (b"Zf", 8) => "complex64",
        (b"Zd", 16) => "complex128",
        _ => return None,
    })
}

/// The class numpy.ndarray, where numpy is imported: else no payload is one. To find out that it is
/// not takes 9,000 instructions, as many as half a publish: nobody asks for the sake of bytes.
fn ndarray(py: Python<'_>) -> PyResult<Option<&Bound<'_, PyType>>> {
    if NDARRAY.get(py).is_none() {
        let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
        let Some(numpy) = modules.get_item("numpy")? else { return Ok(None) };
        // Still being imported by another thread: it has none yet.
        let Ok(class) = numpy.getattr("ndarray") else { return Ok(None) };
        let _ = NDARRAY.set(py, class.cast_into::<PyType>()?.unbind());
    }
    Ok(NDARRAY.get(py).map(|class| class.bind(py)))
}

fn prepare(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    let found = PREPARE.get_or_try_init(py, || {
        py.import("vecmq._messages")?.getattr("prepare").map(Bound::unbind)
    })?;
    Ok(found.bind(py))
}

fn prepared(py: Python<'_>, item: Item<'_>) -> PyResult<Submission> {
    let (view, writable, dtype, itemsize, shape, rows, headers) = item;
    let payload = buffer::borrow(&view)?;
    let layout = match (dtype, shape) {
        (Some(dtype), Some(shape)) => Some(Layout::new(&dtype, itemsize, shape).or_raise(py)?),
        _ => None,
    };
    let headers = match headers {
        Some(pairs) => Headers::new(pairs).or_raise(py)?,
        None => Headers::empty(),
    };
    let (expected_last_seq, codec) = (None, None);
    Ok(Submission { payload, writable, layout, rows, headers, expected_last_seq, codec })
}
