"""What the machine itself can do: the floor under every figure, measured in the same run."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["Limits", "measure"]

MIB: Final = 1 << 20
COPY_BYTES: Final = 64 * MIB
LOOPBACK_BYTES: Final = 256 * MIB
WRITE_BYTES: Final = 128 * MIB
PIECE_BYTES: Final = MIB
SYNCS_COUNT: Final = 50
REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Medians of 3.

    Attributes:
        memcpy_bytes_per_s: One thread copies 64 MiB.
        loopback_bytes_per_s: One TCP connection on 127.0.0.1, pieces of 1 MiB, one thread sends,
            one receives.
        write_bytes_per_s: 128 MiB written to a new file in pieces of 1 MiB and synced at the end,
            in the directory of the stores.
        fdatasync_s: fdatasync after an append of 4 KiB there (median of 50).
    """

    memcpy_bytes_per_s: float
    loopback_bytes_per_s: float
    write_bytes_per_s: float
    fdatasync_s: float


def measure(directory: Path) -> Limits:
    """Measure for about two seconds.

    Args:
        directory: Where the stores will lie.

    Returns:
        Limits.

    Raises:
        OSError: The directory cannot be written.
    """
    piece = np.random.default_rng(1).bytes(PIECE_BYTES)
    return Limits(
        memcpy_bytes_per_s=statistics.median(_memcpy() for _ in range(REPEATS)),
        loopback_bytes_per_s=statistics.median(_loopback(piece) for _ in range(REPEATS)),
        write_bytes_per_s=statistics.median(_write(directory, piece) for _ in range(REPEATS)),
        fdatasync_s=_fdatasync(directory, piece[:4096]),
    )


def _memcpy() -> float:
    source = np.ones(COPY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    started = time.perf_counter()
    np.copyto(target, source)
    return COPY_BYTES / (time.perf_counter() - started)


def _loopback(piece: bytes) -> float:
    pieces = LOOPBACK_BYTES // len(piece)

    def send(address: tuple[str, int]) -> None:
        with socket.create_connection(address) as connection:
            for _ in range(pieces):
                connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = threading.Thread(target=send, args=(server.getsockname(),), daemon=True)
        room = bytearray(len(piece))
        started = time.perf_counter()
        sender.start()
        connection, _ = server.accept()
        with connection:
            while connection.recv_into(room):
                pass
        seconds = time.perf_counter() - started
        sender.join()
    return LOOPBACK_BYTES / seconds


def _write(directory: Path, piece: bytes) -> float:
    path = directory / "limits-write"
    started = time.perf_counter()
    with open(path, "xb", buffering=0) as file:
        file.writelines(piece for _ in range(WRITE_BYTES // len(piece)))
        os.fdatasync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return WRITE_BYTES / seconds


def _fdatasync(directory: Path, piece: bytes) -> float:
    path = directory / "limits-sync"
    taken: list[float] = []
    with open(path, "xb", buffering=0) as file:
        for _ in range(SYNCS_COUNT):
            file.write(piece)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    path.unlink()
    return statistics.median(taken)
