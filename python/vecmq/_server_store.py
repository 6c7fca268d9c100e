"""The store directory of an embedded server: its owner's lock, its secrets, and its orphans."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import time
from pathlib import Path
from typing import Final

from vecmq.errors import LockedError, ServerError

__all__ = ["end_orphan", "lock_store", "write_secret"]

logger = logging.getLogger("vecmq.server")

# A server of a killed owner is asked to end, then killed, then given up on.
ORPHAN_GRACE_S: Final = 1.0
ORPHAN_TIMEOUT_S: Final = 3.0


def lock_store(store_dir: Path) -> int:
    """Take the store directory: two servers on one lose acknowledged messages."""
    path = store_dir / "server.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ServerError(f"cannot write in the store directory {store_dir}: {error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)
    except BlockingIOError:
        owner = _read_owner(fd)
        os.close(fd)
        raise LockedError(
            f"store directory {store_dir} is in use by the server of process {owner}"
        ) from None
    except OSError as error:
        os.close(fd)
        raise ServerError(f"cannot lock the store directory {store_dir}: {error}") from error
    return fd


def _read_owner(fd: int) -> str:
    """The process id in a lock file; its owner writes it just after the locking."""
    for _ in range(20):
        if owner := os.pread(fd, 32, 0).decode("ascii", "replace"):
            return owner
        time.sleep(0.005)
    return "unknown"


def end_orphan(store_dir: Path) -> None:
    """Wait for the server of a killed owner, and hurry it: it still holds the run file."""
    try:
        fd = os.open(store_dir / "server.run", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ServerError(f"cannot write in the store directory {store_dir}: {error}") from error
    begin = time.monotonic()
    sent: set[tuple[int, int]] = set()
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            waited_s = time.monotonic() - begin
            pid = _read_pid(store_dir / "server.pid")
            number = signal.SIGKILL if waited_s > ORPHAN_GRACE_S else signal.SIGTERM
            if pid and (pid, number) not in sent:
                sent.add((pid, number))
                _signal_server(pid, number, store_dir / "server.conf")
            if waited_s > ORPHAN_TIMEOUT_S:
                raise LockedError(
                    f"store directory {store_dir} is still in use by a former nats-server, "
                    f"process {pid or 'unknown'}"
                )
            time.sleep(0.005)
    finally:
        os.close(fd)


def _read_pid(path: Path) -> int:
    """The process id in a file; 0 when there is none."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _signal_server(pid: int, number: int, config: Path) -> None:
    """Signal a process, if it is a server of this very configuration and not a later namesake."""
    if not hasattr(os, "pidfd_open"):
        return  # it is only waited for
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # In this order: the descriptor stands for the process whose command line is read.
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if os.fsencode(config) in words:
            logger.warning("ending nats-server (pid %d), left by a killed process", pid)
            signal.pidfd_send_signal(process, number)
    except OSError:
        pass
    finally:
        os.close(process)


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at once or not at all."""
    temporary = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
