//! The one tokio runtime of the process, made when the first stream is opened.

use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{Error, ErrorKind, Result};

/// Two workers: one can write to the socket while the other decodes.
const WORKERS: usize = 2;

/// What the allocator gives back to the system at once, and so touches anew for every message: a
/// freed allocation of this size moves its limit here (glibc), as any large array would. The client
/// reads into fresh memory: 1 MB x 500 published and received took 111,000 page faults and a
/// quarter more CPU time.
const KEPT_BYTES: usize = (32 << 20) - (64 << 10);

/// The runtime and the process that made it: threads do not survive a fork, so a child makes its
/// own.
static RUNTIME: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);

/// A handle to the runtime of this process.
pub(crate) fn handle() -> Result<Handle> {
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if let Some((owner, runtime)) = *slot
        && owner == pid
    {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("vecmq")
        .enable_all()
        .build()
        .map_err(|e| Error::with_source(ErrorKind::Config, "cannot start worker threads", e))?;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT_BYTES)));
    // Leaked on purpose: it lives as long as the process, and dropping a runtime that a fork left
    // without threads would wait for them forever.
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    *slot = Some((pid, runtime));
    Ok(runtime.handle().clone())
}
