//! A real nats-server for the tests of the NATS route; ended by its process id, on a panic too.

#![allow(dead_code, reason = "each test binary uses its own share")]
#![expect(clippy::expect_used, reason = "a test that cannot start its server has failed")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use vecmq::frame::{Layout, MessageId, Outgoing, ProducerId};
use vecmq::nats::{Auth, Connection, NatsOptions, StreamLimits};

/// How long a server may take to be ready.
/// After kill -9 a server reads its whole store again.
const READY: Duration = Duration::from_mins(1);

pub(crate) struct Server {
    directory: tempfile::TempDir,
    max_payload: usize,
    host: String,
    port: u16,
    child: Child,
}

impl Server {
    pub(crate) fn start(max_payload: usize) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let host = own_host();
        let (child, port) = launch(directory.path(), max_payload, &host, None);
        Self { directory, max_payload, host, port, child }
    }

    pub(crate) fn options(&self) -> NatsOptions {
        NatsOptions {
            servers: vec![format!("nats://{}:{}", self.host, self.port)],
            auth: Auth::Token("test-token".to_owned()),
            name: "vecmq-tests".to_owned(),
            ..NatsOptions::default()
        }
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::connect(self.options()).await.expect("a connection")
    }

    /// kill -9, then a new server on the same port and store.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        let path = self.directory.path();
        let (child, _) = launch(path, self.max_payload, &self.host, Some(self.port));
        self.child = child;
    }

    /// It stays connected and does nothing any more.
    pub(crate) fn pause(&self) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-STOP", &pid]).status();
        assert!(status.is_ok_and(|status| status.success()), "the server cannot be paused");
        // The signal returns before the threads that run on other cores have stopped.
        let deadline = Instant::now() + READY;
        while !is_stopped(&pid) {
            assert!(Instant::now() < deadline, "the server goes on after SIGSTOP");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server can be reaped");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether every thread of a process has stopped (state T of proc(5)).
fn is_stopped(pid: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    })
}

/// A loopback address that no other server has. Else another test's server could get the port of
/// one that was killed: that one could not come back, and its clients would find the other.
fn own_host() -> String {
    static SERVERS: AtomicU32 = AtomicU32::new(0);
    let (pid, number) = (std::process::id(), SERVERS.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{}", 1 + pid / 250 % 250, 1 + pid % 250, 1 + number % 250)
}

fn launch(directory: &Path, max_payload: usize, host: &str, port: Option<u16>) -> (Child, u16) {
    let ports = directory.join("ports");
    let _ = std::fs::remove_dir_all(&ports);
    std::fs::create_dir(&ports).expect("a directory for the ports file");
    let config = directory.join("server.conf");
    let listen = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let text = format!(
        "listen: \"{host}:{listen}\"\nports_file_dir: \"{}\"\nmax_payload: {max_payload}\n\
         authorization {{ token: \"test-token\" }}\n\
         jetstream {{ store_dir: \"{}\", sync_interval: \"1s\" }}\n",
        ports.display(),
        directory.join("store").display(),
    );
    std::fs::write(&config, text).expect("the server's configuration");
    let mut child = Command::new(binary())
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("VECMQ_NATS_SERVER names a nats-server, or one is on the PATH");
    let deadline = Instant::now() + READY;
    loop {
        if let Some(port) = read_port(&ports, host) {
            return (child, port);
        }
        if Instant::now() > deadline || child.try_wait().expect("the server's state").is_some() {
            let _ = child.kill();
            panic!("nats-server is not ready within {} s", READY.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn binary() -> PathBuf {
    std::env::var_os("VECMQ_NATS_SERVER").map_or_else(|| "nats-server".into(), PathBuf::from)
}

fn read_port(directory: &Path, host: &str) -> Option<u16> {
    let file = std::fs::read_dir(directory).ok()?.next()?.ok()?;
    let text = std::fs::read_to_string(file.path()).ok()?;
    let (_, after) = text.split_once(&format!("nats://{host}:"))?;
    after.split(['"', ',']).next()?.parse().ok()
}

/// No limits, one copy.
pub(crate) fn limits() -> StreamLimits {
    StreamLimits { replicas: 1, ..StreamLimits::default() }
}

/// Bytes that depend on the seed and do not repeat.
pub(crate) fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    Bytes::from(out)
}

/// A message of plain bytes, or of float32 where the length allows and `seq` is even.
pub(crate) fn outgoing(producer: ProducerId, seq: u64, length: usize) -> Outgoing {
    let layout = (seq.is_multiple_of(2) && length.is_multiple_of(4))
        .then(|| Layout::new("float32", 4, vec![(length / 4) as u64]).expect("a legal layout"));
    let id = MessageId { producer, epoch: 1, seq };
    Outgoing { id, rows: 1, layout, payload: noise(seq, length) }
}

/// A deadline that a slow disk keeps too; less than the stream remembers ids.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(90)
}
