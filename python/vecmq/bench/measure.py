"""CPU, memory and disk of processes, measured from outside, alike for every contender."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["DiskUse", "Meter", "Usage", "disk_use"]

PERIOD_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """What processes took at one moment of an operation.

    Attributes:
        at_s: Seconds since the operation began.
        client_cpu_s: User and system time of the client's processes since then.
        server_cpu_s: The same of the servers.
        client_bytes: Resident memory of the client's processes.
        server_bytes: The same of the servers.
    """

    at_s: float
    client_cpu_s: float
    server_cpu_s: float
    client_bytes: int
    server_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What an operation took.

    Attributes:
        client_cpu_s: User and system time of the client's processes, in seconds (steps of 10 ms).
        server_cpu_s: The same of the servers; 0 without one.
        client_start_bytes: Resident memory of the client when the operation began, payloads
            included.
        client_peak_bytes: Its highest resident memory during the operation.
        server_peak_bytes: The same of the servers; 0 without one.
        is_peak_exact: The kernel's own high-water marks; else the highest of the points.
        points: The course of it, a point every 50 ms.
    """

    client_cpu_s: float
    server_cpu_s: float
    client_start_bytes: int
    client_peak_bytes: int
    server_peak_bytes: int
    is_peak_exact: bool
    points: list[Point] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Give the values as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What directories take on disk.

    Attributes:
        apparent_bytes: Sum of the lengths of the files.
        allocated_bytes: Sum of the blocks that the file system gave to them.
    """

    apparent_bytes: int
    allocated_bytes: int


class Meter:
    """Measures processes from `start` until `stop`.

    Args:
        client_pid: A process; with its children it is the client.
        server_pids: Servers, which may be among those children; they are counted apart.
    """

    def __init__(self, client_pid: int, server_pids: Iterable[int] = ()) -> None:
        self._client_pid = client_pid
        self._server_pids = set(server_pids)
        self._stopping = threading.Event()
        self._points: list[Point] = []

    def start(self) -> None:
        """Begin."""
        self._client = _Processes(self._client_processes())
        self._server = _Processes([psutil.Process(pid) for pid in self._server_pids])
        self._start_bytes = self._client.memory()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="bench-meter", daemon=True)
        self._thread.start()

    def stop(self) -> Usage:
        """Give what was used since `start`.

        Returns:
            Usage; of a process that ended meanwhile the part is missing.
        """
        self._stopping.set()
        self._thread.join()
        self._points.append(self._point())
        last = self._points[-1]
        client_peak, server_peak = self._client.peak(), self._server.peak()
        return Usage(
            client_cpu_s=last.client_cpu_s,
            server_cpu_s=last.server_cpu_s,
            client_start_bytes=self._start_bytes,
            client_peak_bytes=client_peak or max(point.client_bytes for point in self._points),
            server_peak_bytes=server_peak or max(point.server_bytes for point in self._points),
            is_peak_exact=bool(client_peak) and (bool(server_peak) or not self._server_pids),
            points=self._points,
        )

    def _client_processes(self) -> list[psutil.Process]:
        client = psutil.Process(self._client_pid)
        found = [client, *client.children(recursive=True)]
        return [process for process in found if process.pid not in self._server_pids]

    def _watch(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self._points.append(self._point())

    def _point(self) -> Point:
        return Point(
            at_s=time.monotonic() - self._started,
            client_cpu_s=self._client.cpu(),
            server_cpu_s=self._server.cpu(),
            client_bytes=self._client.memory(),
            server_bytes=self._server.memory(),
        )


class _Processes:
    """Some processes as one sum."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        # All of them, also after one has failed.
        reset = [_reset_peak(process.pid) for process in processes]
        self._is_exact = all(reset)
        self._cpu_s = 0.0
        self._cpu_s = self.cpu()

    def cpu(self) -> float:
        """User and system time since the construction, in seconds."""
        total = 0.0
        for process in self._processes:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return max(total - self._cpu_s, 0.0)

    def memory(self) -> int:
        """Resident bytes now."""
        total = 0
        for process in self._processes:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def peak(self) -> int:
        """Sum of the high-water marks since the construction; 0 where they cannot be read."""
        return sum(_peak(process.pid) for process in self._processes) if self._is_exact else 0


def _reset_peak(pid: int) -> bool:
    """Set the kernel's high-water mark of resident memory back to what is resident now."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak(pid: int) -> int:
    """Give the high-water mark of resident memory in bytes; 0 of a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def disk_use(*directories: Path) -> DiskUse:
    """Add up what directories take; files that vanish meanwhile do not count.

    Args:
        *directories: Roots of the files.

    Returns:
        Apparent and allocated bytes.
    """
    apparent = allocated = 0
    for directory in directories:
        for root, _, names in os.walk(directory):
            for name in names:
                try:
                    status = os.lstat(os.path.join(root, name))  # noqa: PTH118 - faster
                except FileNotFoundError:
                    continue
                apparent += status.st_size
                allocated += status.st_blocks * 512
    return DiskUse(apparent, allocated)
