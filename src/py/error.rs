//! [`ErrorKind`] -> the classes of `vecmq.errors`. The one map; a kind that is not in it becomes
//! the base.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyModule;

use crate::error::{Error, ErrorKind};

static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

fn class_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Config => "ConfigError",
        ErrorKind::InvalidName => "InvalidNameError",
        ErrorKind::InvalidHeaders => "InvalidHeadersError",
        ErrorKind::TooLarge => "TooLargeError",
        ErrorKind::Corrupt => "CorruptError",
        ErrorKind::Incomplete => "IncompleteError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::BufferMutated => "BufferMutatedError",
        ErrorKind::TopicNotFound => "TopicNotFoundError",
        ErrorKind::GroupNotFound => "GroupNotFoundError",
        ErrorKind::SeqNotFound => "SeqNotFoundError",
        ErrorKind::Locked => "LockedError",
        ErrorKind::Storage => "StorageError",
        ErrorKind::NotConnected => "NotConnectedError",
        ErrorKind::Denied => "DeniedError",
        ErrorKind::NoStream => "NoStreamError",
        ErrorKind::Rejected { .. } => "RejectedError",
        ErrorKind::Timeout => "TimeoutError",
        ErrorKind::PublishUnknown => "PublishUnknownError",
        ErrorKind::Closed => "ClosedError",
        ErrorKind::Forked => "ForkError",
    }
}

/// The Python exception of an error.
pub(super) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    match build(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(broken) => broken,
    }
}

fn build<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let module = ERRORS
        .get_or_try_init(py, || PyModule::import(py, "vecmq.errors").map(Bound::unbind))?
        .bind(py);
    let exception = module.getattr(class_name(error.kind()))?.call1((error.to_string(),))?;
    if let ErrorKind::Rejected { code } = error.kind() {
        exception.setattr("code", code)?;
    }
    Ok(exception)
}

/// Raises an error of the core as its Python class.
pub(super) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for crate::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| to_python(py, &error))
    }
}
