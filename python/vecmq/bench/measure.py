"""CPU, memory and disk around one operation, of this process and of the server apart."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["DiskUse", "Meter", "Usage", "disk_use"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What an operation took.

    Attributes:
        client_cpu_s: User and system time of this process, all threads, in seconds.
        server_cpu_s: The same of the server (in steps of 10 ms); 0 without a server.
        client_start_bytes: Resident memory of this process when the clock started, payloads
            included.
        client_peak_bytes: Its highest resident memory during the operation.
        server_peak_bytes: The same of the server; 0 without a server.
        is_peak_exact: The peaks are those of this operation; else of the process so far.
    """

    client_cpu_s: float
    server_cpu_s: float
    client_start_bytes: int
    client_peak_bytes: int
    server_peak_bytes: int
    is_peak_exact: bool

    def document(self) -> dict[str, Any]:
        """Give the values as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What a directory takes on disk.

    Attributes:
        apparent_bytes: Sum of the lengths of the files.
        allocated_bytes: Sum of the blocks that the file system gave to them.
    """

    apparent_bytes: int
    allocated_bytes: int


class Meter:
    """Measures from its construction until `stop`.

    Args:
        server_pid: Process id of the embedded server, or None.
    """

    def __init__(self, server_pid: int | None) -> None:
        self._server = psutil.Process(server_pid) if server_pid else None
        pids = [os.getpid()] + ([server_pid] if server_pid else [])
        # Every process, also after one has failed.
        reset = [_reset_peak(pid) for pid in pids]
        self._is_exact = all(reset)
        self._start_bytes = psutil.Process().memory_info().rss
        self._server_cpu_s = self._server_cpu()
        self._client_cpu_s = time.process_time()

    def stop(self) -> Usage:
        """Give what was used since the construction.

        Returns:
            Usage; of a server that has been restarted meanwhile the part of the new one is missing.
        """
        client_cpu_s = time.process_time() - self._client_cpu_s
        return Usage(
            client_cpu_s=client_cpu_s,
            server_cpu_s=max(self._server_cpu() - self._server_cpu_s, 0.0),
            client_start_bytes=self._start_bytes,
            client_peak_bytes=_peak(os.getpid()),
            server_peak_bytes=_peak(self._server.pid) if self._server else 0,
            is_peak_exact=self._is_exact,
        )

    def _server_cpu(self) -> float:
        if self._server is None:
            return 0.0
        try:
            times = self._server.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)


def _reset_peak(pid: int) -> bool:
    """Set the kernel's high-water mark of resident memory back to what is resident now."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak(pid: int) -> int:
    """Give the high-water mark of resident memory in bytes; 0 where it cannot be read."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        # Without /proc only the own process has one, in KiB (on macOS in bytes; not exact anyway).
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return own * 1024 if pid == os.getpid() else 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def disk_use(directory: Path) -> DiskUse:
    """Add up what a directory takes; files that vanish meanwhile do not count.

    Args:
        directory: Root of the files.

    Returns:
        Apparent and allocated bytes.
    """
    apparent = allocated = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(os.path.join(root, name))  # noqa: PTH118 - os.walk gives strings
            except FileNotFoundError:
                continue
            apparent += status.st_size
            allocated += status.st_blocks * 512
    return DiskUse(apparent, allocated)
