//! The one tokio runtime of the process, made when the first stream is opened.

use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{Error, ErrorKind, Result};

/// Two workers: one can write to the socket while the other decodes.
const WORKERS: usize = 2;

/// The runtime and the process that made it: threads do not survive a fork, so a child makes its
/// own.
static RUNTIME: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);

/// A handle to the runtime of this process.
pub(super) fn handle() -> Result<Handle> {
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
    // Leaked on purpose: it lives as long as the process, and dropping a runtime that a fork left
    // without threads would wait for them forever.
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    *slot = Some((pid, runtime));
    Ok(runtime.handle().clone())
}
