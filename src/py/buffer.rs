//! Python buffers in, Python buffers out; the only `unsafe` of the crate.
#![expect(
    unsafe_code,
    reason = "the buffer protocol is a C interface; each block says why it is sound"
)]

use std::ffi::{CStr, c_int};
use std::ptr;

use bytes::Bytes;
use pyo3::PyClass;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Keeps the exporter alive and its memory in place for as long as any slice of it is.
///
/// Its drop takes the interpreter, so whoever has it lets the last slice go.
struct Exporter(PyUntypedBuffer);

impl AsRef<[u8]> for Exporter {
    fn as_ref(&self) -> &[u8] {
        let length = self.0.len_bytes();
        if length == 0 {
            return &[];
        }
        // SAFETY: the buffer is C-contiguous (checked in `lend`), so its `length` bytes lie
        // behind `buf_ptr`, and the export that `self.0` holds keeps them allocated and
        // unmoved. They may be written by Python meanwhile, which is a data race by the
        // letter: nothing here branches on their value, publishers compare checksums before
        // and after, and readers verify them.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast::<u8>(), length) }
    }
}

/// Borrows a C-contiguous buffer of bytes without a copy.
pub(super) fn borrow(view: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let buffer = PyUntypedBuffer::get(view)?;
    // Refuses other elements.
    buffer.as_typed::<u8>()?;
    lend(buffer)
}

/// Borrows the memory of a C-contiguous buffer of elements of any kind without a copy.
pub(super) fn lend(buffer: PyUntypedBuffer) -> PyResult<Bytes> {
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not C-contiguous"));
    }
    Ok(Bytes::from_owner(Exporter(buffer)))
}

/// Lets the memory of a buffer be written, without the interpreter. Its caller has checked it with
/// Python's means too: what is no writable run of bytes is refused here in any case.
pub(super) fn write_into<R: Send>(
    py: Python<'_>,
    out: &Bound<'_, PyAny>,
    write: impl FnOnce(&mut [u8]) -> R + Send,
) -> PyResult<R> {
    let buffer = PyUntypedBuffer::get(out)?;
    if buffer.readonly() || !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not writable and C-contiguous"));
    }
    let (place, length) = (buffer.buf_ptr().expose_provenance(), buffer.len_bytes());
    let written = py.detach(|| {
        if length == 0 {
            return write(&mut []);
        }
        // SAFETY: the export that `buffer` holds keeps `length` bytes behind `buf_ptr` allocated,
        // unmoved and writable. Received bytes are never lent writable, so what is read meanwhile
        // does not overlap. Python code that reads or writes there races with this as with any
        // other writer of its own buffer: only bytes are written, and what is read back is
        // compared with a checksum.
        let room = unsafe {
            std::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut::<u8>(place), length)
        };
        write(room)
    });
    drop(buffer);
    Ok(written)
}

/// Takes an object off the garbage collector's list, on which `PyO3` puts every object.
///
/// Publishing one by one makes an object a message; the collector looked at each of them over and
/// over, which took 2,400 of 20,500 instructions a message.
pub(super) fn untrack<T: NoReferences>(object: &Bound<'_, T>) {
    // SAFETY: the object is a live one of a class that `PyO3` made, all of which take part in
    // garbage collection. It refers to no Python object (`NoReferences`), so that no cycle can go
    // through it. Its deallocation takes it off the list once more, which is allowed.
    unsafe { ffi::PyObject_GC_UnTrack(object.as_ptr().cast()) }
}

/// A class whose objects refer to no other Python object.
pub(super) trait NoReferences: PyClass {}

/// Received bytes, given out read-only through the buffer protocol without a copy.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct Payload {
    pub(super) bytes: Bytes,
}

/// The format of a buffer of bytes.
const FORMAT: &CStr = c"B";

#[pymethods]
impl Payload {
    fn __len__(&self) -> usize {
        self.bytes.len()
    }

    /// # Safety
    /// Called by the interpreter with a `Py_buffer` that it owns.
    #[expect(clippy::needless_pass_by_value, reason = "the slot's signature is fixed")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no buffer to fill"));
        }
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            // SAFETY: `view` is a valid `Py_buffer` of the caller; a failed export must leave obj
            // null.
            unsafe { (*view).obj = ptr::null_mut() };
            return Err(PyBufferError::new_err("the payload is read-only"));
        }
        let bytes = &slf.get().bytes;
        let length = ffi::Py_ssize_t::try_from(bytes.len())
            .map_err(|_| PyBufferError::new_err("the payload exceeds the address space"))?;
        // SAFETY: `view` is a valid `Py_buffer` of the caller. The bytes live as long as `slf`,
        // which `obj` keeps alive until the release. `shape` and `strides` point into the
        // `Py_buffer` itself, as PyBuffer_FillInfo of the interpreter does. The format is a
        // static string.
        unsafe {
            (*view).buf = bytes.as_ptr().cast_mut().cast();
            (*view).len = length;
            (*view).readonly = 1;
            (*view).itemsize = 1;
            (*view).ndim = 1;
            (*view).format = if flags & ffi::PyBUF_FORMAT == ffi::PyBUF_FORMAT {
                FORMAT.as_ptr().cast_mut()
            } else {
                ptr::null_mut()
            };
            (*view).shape = if flags & ffi::PyBUF_ND == ffi::PyBUF_ND {
                &raw mut (*view).len
            } else {
                ptr::null_mut()
            };
            (*view).strides = if flags & ffi::PyBUF_STRIDES == ffi::PyBUF_STRIDES {
                &raw mut (*view).itemsize
            } else {
                ptr::null_mut()
            };
            (*view).suboffsets = ptr::null_mut();
            (*view).internal = ptr::null_mut();
            (*view).obj = slf.clone().into_any().into_ptr();
        }
        Ok(())
    }
}
