//! The socket file, who is at the other end, and whether that process lives.
//!
//! A forked child keeps the sockets of its parent open: when the parent is killed, no end of file
//! comes. So each side watches the other's process too.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, chmodat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::process::PidfdFlags;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::AlignedBuffer;
use crate::hybrid::attach::runs::ALIGNMENT;
use crate::hybrid::attach::wire::{HEAD_BYTES, Head};

/// The socket's name in the directory of the queue.
const NAME: &str = "ATTACH";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// A path with more bytes than this does not fit into a socket address (108 with the zero).
const PATH_BYTES_MAX: usize = 107;

/// Listens in a directory that this process owns: what an owner that was killed left is replaced.
pub(super) fn listen(directory: &Path) -> io::Result<(OwnedFd, File)> {
    let folder = File::open(directory)?;
    remove(&folder)?;
    let socket = new_socket()?;
    rustix::net::bind(&socket, &address(directory, &folder)?)?;
    // Before it listens nobody can connect.
    chmodat(&folder, NAME, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket, folder))
}

/// Removes the socket file; that there is none is fine.
pub(super) fn remove(folder: &File) -> io::Result<()> {
    match unlinkat(folder, NAME, AtFlags::empty()) {
        Err(error) if error != Errno::NOENT => Err(error.into()),
        _ => Ok(()),
    }
}

/// Connects to the owner of a directory.
pub(super) fn connect(directory: &Path) -> io::Result<Peer> {
    let folder = File::open(directory)?;
    let socket = new_socket()?;
    rustix::net::connect(&socket, &address(directory, &folder)?)?;
    Peer::new(socket)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// The socket's address; a long path goes through the open directory.
fn address(directory: &Path, folder: &File) -> io::Result<SocketAddrUnix> {
    let path = directory.join(NAME);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok(SocketAddrUnix::new(path)?);
    }
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()))?)
}

/// A connection to another process.
pub(super) struct Peer {
    socket: OwnedFd,
    /// None: the kernel does not tell, or the process lives in another namespace.
    process: Option<OwnedFd>,
    writing: Mutex<()>,
}

impl Peer {
    /// # Errors
    /// The process at the other end belongs to another user, or has ended.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        if peer.uid != rustix::process::geteuid() {
            let context = format!("the process at the other end belongs to user {:?}", peer.uid);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, context));
        }
        let process = match rustix::process::pidfd_open(peer.pid, PidfdFlags::empty()) {
            Ok(process) => Some(process),
            Err(Errno::SRCH) => return Err(Errno::CONNREFUSED.into()),
            Err(_) => None,
        };
        Ok(Self { socket, process, writing: Mutex::new(()) })
    }

    /// Ends both directions, for whoever holds the socket.
    pub(super) fn shutdown(&self) {
        // That it has ended already is as good.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Writes a head, a meta and payloads as one.
    pub(super) fn send(&self, kind: u8, meta: &[u8], payloads: &[Bytes]) -> io::Result<()> {
        let padding = [0; ALIGNMENT];
        let mut payload_bytes = 0_usize;
        let mut parts = Vec::with_capacity(2 + payloads.len() * 2);
        for payload in payloads {
            let gap = payload_bytes.next_multiple_of(ALIGNMENT) - payload_bytes;
            parts.push(padding.get(..gap).unwrap_or_default());
            parts.push(payload);
            payload_bytes += gap + payload.len();
        }
        let meta_bytes = u32::try_from(meta.len()).map_err(|_| Errno::MSGSIZE)?;
        let head = Head { kind, meta_bytes, payload_bytes: payload_bytes as u64 }.encode();
        let begin = [head.as_slice(), meta];
        let filled = begin.into_iter().chain(parts).filter(|one| !one.is_empty());
        let mut slices: Vec<IoSlice<'_>> = filled.map(IoSlice::new).collect();
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.send_all(&mut slices)
    }

    fn send_all(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !slices.is_empty() {
            let most = slices.len().min(SLICES_MAX);
            let now = slices.get(..most).unwrap_or_default();
            let mut control = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.socket, now, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => IoSlice::advance_slices(&mut slices, sent),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads one whole request or reply; None: the other end has ended.
    pub(super) fn receive(
        &self,
        payload_bytes_max: u64,
        deadline: Option<Instant>,
    ) -> Result<Option<Received>> {
        let mut head = [0; HEAD_BYTES];
        if !self.fill(&mut head, deadline)? {
            return Ok(None);
        }
        let head = Head::decode(head, payload_bytes_max)?;
        let mut meta = vec![0; head.meta_bytes as usize];
        if !self.fill(&mut meta, deadline)? {
            return Ok(None);
        }
        let mut payloads = AlignedBuffer::new(head.payload_bytes)?;
        if !self.fill(payloads.as_mut(), deadline)? {
            return Ok(None);
        }
        Ok(Some(Received { kind: head.kind, meta, payloads: payloads.into_bytes() }))
    }

    /// False: the other end has ended before all was there.
    fn fill(&self, mut room: &mut [u8], deadline: Option<Instant>) -> Result<bool> {
        let mut has_ended = false;
        while !room.is_empty() {
            match rustix::net::recv(&self.socket, &mut *room, RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE) => return Ok(false),
                Ok((_, count)) => {
                    let (_, rest) = room.split_at_mut(count.min(room.len()));
                    room = rest;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if has_ended => return Ok(false),
                // What it wrote before it ended is read first.
                Err(Errno::AGAIN) => has_ended = self.wait(deadline)?,
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(true)
    }

    /// Waits until there is something to read; true: the process at the other end has ended.
    fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        let timeout = deadline.map(|end| {
            let left = end.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 })
        });
        let mut watched = vec![PollFd::new(&self.socket, PollFlags::IN)];
        watched.extend(self.process.as_ref().map(|one| PollFd::new(one, PollFlags::IN)));
        match poll(&mut watched, timeout.as_ref()) {
            Ok(0) => Err(Error::new(ErrorKind::Timeout, "attach: no answer in time")),
            Ok(_) => Ok(watched.get(1).is_some_and(|process| !process.revents().is_empty())),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(lost(error)),
        }
    }
}

/// Most slices of one write (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

/// One request or reply as it came.
pub(super) struct Received {
    pub(super) kind: u8,
    pub(super) meta: Vec<u8>,
    pub(super) payloads: Bytes,
}

fn lost(error: Errno) -> Error {
    Error::with_source(ErrorKind::NotConnected, "attach: the connection broke", error)
}
