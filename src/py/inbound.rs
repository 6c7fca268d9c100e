//! What nats-py's connection receives, read by the core (`vecmq.bridge`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::ErrorKind;
use crate::hybrid;
use crate::nats::{Arrival, Inbound, Inflow, Limits, Said, Wire};
use crate::py::bound::ProcessBound;
use crate::py::buffer::Payload;
use crate::py::completions::Completions;
use crate::py::error::OrRaise;

/// Marks the header block of a frame, whose body Python need not have as bytes.
const FRAME: &[u8] = b"Vecmq-Frame:";

/// What came, its subscription, subject or text, reply, payload, header block.
type Came = (Py<PyString>, u64, Py<PyBytes>, Py<PyBytes>, Py<PyAny>, Py<PyBytes>);

/// Where a socket is handed over: its descriptor is sent to `fileno`.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct SocketDoor {
    ours: UnixStream,
    theirs: UnixStream,
}

#[pymethods]
impl SocketDoor {
    #[new]
    fn new() -> PyResult<Self> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| PyOSError::new_err(e.to_string()))?;
        Ok(Self { ours, theirs })
    }

    /// Descriptor of the end that a socket is sent to.
    fn fileno(&self) -> i32 {
        self.theirs.as_raw_fd()
    }

    /// Reads the socket that was sent from now on, and `before` before it.
    fn read(&self, py: Python<'_>, before: &[u8]) -> PyResult<InboundSocket> {
        let socket = self.receive().map_err(|e| PyOSError::new_err(e.to_string()))?;
        let runtime = hybrid::runtime().or_raise(py)?;
        let inbound = Inbound::read(&runtime, socket, before).or_raise(py)?;
        Ok(InboundSocket { inner: ProcessBound::new(inbound) })
    }
}

impl SocketDoor {
    fn receive(&self) -> std::io::Result<TcpStream> {
        self.ours.set_nonblocking(true)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&self.ours, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
        let mut sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let socket: Option<OwnedFd> = sockets.next();
        socket.map(TcpStream::from).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

/// A connection that is read; its messages wait here.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct InboundSocket {
    inner: ProcessBound<Inbound>,
}

#[pymethods]
impl InboundSocket {
    /// Takes what came, in order, until it has `bytes_max` of it; "end" is the last of all.
    fn take(&self, py: Python<'_>, bytes_max: usize) -> PyResult<Vec<Came>> {
        let taken = self.inner.get().or_raise(py)?.take(bytes_max);
        taken.into_iter().map(|inflow| came(py, inflow)).collect()
    }

    /// Has the token finish when something comes; False: something did.
    fn wait(&self, py: Python<'_>, completions: &Completions, token: u64) -> PyResult<bool> {
        Ok(self.inner.get().or_raise(py)?.wait(completions.waker(token)))
    }

    /// Sets what may wait for a subscription: messages and bytes; 0: any number.
    fn limit(&self, py: Python<'_>, sid: u64, msgs_max: usize, bytes_max: usize) -> PyResult<()> {
        self.inner.get().or_raise(py)?.limit(sid, Limits { msgs_max, bytes_max });
        Ok(())
    }

    /// Forgets a subscription.
    fn forget(&self, py: Python<'_>, sid: u64) -> PyResult<()> {
        self.inner.get().or_raise(py)?.forget(sid);
        Ok(())
    }

    /// Lets the socket go.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.get().or_raise(py)?.close();
        Ok(())
    }
}

/// The same for bytes that Python reads.
#[pyclass(frozen, module = "vecmq._native")]
pub(crate) struct InboundParser {
    wire: Mutex<Wire>,
}

#[pymethods]
impl InboundParser {
    #[new]
    fn new() -> Self {
        Self { wire: Mutex::default() }
    }

    /// Takes what was read; gives what it says.
    fn feed(&self, py: Python<'_>, data: &[u8]) -> PyResult<Vec<Came>> {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        let said = wire.feed(data).or_raise(py)?;
        drop(wire);
        said.into_iter().map(|said| came(py, Inflow::Said(said))).collect()
    }
}

fn came(py: Python<'_>, inflow: Inflow) -> PyResult<Came> {
    let text = |kind: &Bound<'_, PyString>, text: &[u8]| {
        let empty = || PyBytes::new(py, b"");
        (
            kind.clone().unbind(),
            0,
            PyBytes::new(py, text).unbind(),
            empty().unbind(),
            empty().into_any().unbind(),
            empty().unbind(),
        )
    };
    Ok(match inflow {
        Inflow::Said(Said::Message(arrival)) => message(py, intern!(py, "msg"), arrival)?,
        Inflow::Dropped(arrival) => message(py, intern!(py, "dropped"), arrival)?,
        Inflow::Said(Said::Ping) => text(intern!(py, "ping"), b""),
        Inflow::Said(Said::Pong) => text(intern!(py, "pong"), b""),
        Inflow::Said(Said::Refusal(why)) => text(intern!(py, "refusal"), &why),
        Inflow::Said(Said::Info(json)) => text(intern!(py, "info"), &json),
        Inflow::Ended(None) => text(intern!(py, "end"), b""),
        Inflow::Ended(Some(error)) if error.kind() == ErrorKind::Corrupt => {
            text(intern!(py, "corrupt"), error.context().as_bytes())
        }
        Inflow::Ended(Some(error)) => text(intern!(py, "broken"), error.to_string().as_bytes()),
    })
}

fn message(py: Python<'_>, kind: &Bound<'_, PyString>, arrival: Arrival) -> PyResult<Came> {
    let Arrival { sid, subject, reply, headers, body } = arrival;
    let is_frame = headers.windows(FRAME.len()).any(|window| window == FRAME);
    let body = if is_frame {
        Py::new(py, Payload { bytes: body })?.into_any()
    } else {
        PyBytes::new(py, &body).into_any().unbind()
    };
    let bytes = |some: &Bytes| PyBytes::new(py, some).unbind();
    Ok((kind.clone().unbind(), sid, bytes(&subject), bytes(&reply), body, bytes(&headers)))
}
