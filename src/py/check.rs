//! What an open repaired and what a check found, as dicts.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::hybrid;
use crate::py::error::OrRaise;
use crate::queue::{Checked, Fault, Recovery, TopicCheck, TopicRecovery};

/// Verifies a queue that nobody has open; changes nothing. Blocks.
#[pyfunction]
pub(super) fn check_queue<'py>(
    py: Python<'py>,
    path: &str,
    message_bytes_max: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let checked = py.detach(|| hybrid::check(Path::new(path), message_bytes_max)).or_raise(py)?;
    let Checked { topics, faults, leftovers } = checked;
    let out = PyDict::new(py);
    out.set_item("topics", list(py, &topics, topic)?)?;
    out.set_item("faults", list(py, &faults, fault)?)?;
    out.set_item("leftovers", list(py, &leftovers, fault)?)?;
    Ok(out)
}

pub(super) fn recovery<'py>(py: Python<'py>, found: &Recovery) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("created", found.created)?;
    out.set_item("closed", found.closed)?;
    out.set_item("wal_files", found.wal_files)?;
    out.set_item("wal_bytes", found.wal_bytes)?;
    out.set_item("wal_writes", found.wal_writes)?;
    out.set_item("wal_dropped_bytes", found.wal_dropped_bytes)?;
    out.set_item("missing_operations", found.missing_operations)?;
    out.set_item("mark_damaged", found.mark_damaged)?;
    out.set_item("stray_bytes", found.stray_bytes)?;
    out.set_item("topics", list(py, &found.topics, topic_recovery)?)?;
    out.set_item("repaired", found.is_repaired())?;
    Ok(out)
}

fn topic_recovery<'py>(py: Python<'py>, found: &TopicRecovery) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("name", &found.name)?;
    out.set_item("messages", found.messages)?;
    out.set_item("dropped_bytes", found.dropped_bytes)?;
    out.set_item("finished_files", found.finished_files)?;
    out.set_item("open", found.open)?;
    Ok(out)
}

fn topic<'py>(py: Python<'py>, found: &TopicCheck) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("name", &found.name)?;
    out.set_item("messages", found.messages)?;
    out.set_item("bytes", found.bytes)?;
    out.set_item("first_seq", found.first_seq)?;
    out.set_item("next_seq", found.next_seq)?;
    out.set_item("open", found.open)?;
    let groups = PyDict::new(py);
    for (group, cursor) in &found.groups {
        groups.set_item(group, cursor)?;
    }
    out.set_item("groups", groups)?;
    Ok(out)
}

fn fault<'py>(py: Python<'py>, found: &Fault) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("topic", found.topic.as_deref())?;
    out.set_item("seq", found.seq)?;
    out.set_item("file", found.file.as_ref().map(|file| file.display().to_string()))?;
    out.set_item("position", found.position)?;
    out.set_item("what", &found.what)?;
    Ok(out)
}

fn list<'py, T>(
    py: Python<'py>,
    all: &[T],
    one: fn(Python<'py>, &T) -> PyResult<Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, all.iter().map(|item| one(py, item)).collect::<PyResult<Vec<_>>>()?)
}
