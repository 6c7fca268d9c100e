"""Memory that is there when an operation begins.

A virtual machine whose host takes free memory back (free page reporting, balloons) pays for the
first touch of each page: 11 us instead of 1.5 us where it was measured. Who meets such pages is
chance, and it was worth a factor of three in the time of whole operations, so every operation
begins with memory that was touched a moment ago.
"""

from __future__ import annotations

import mmap
import sys
from typing import Final

__all__ = ["warm", "warm_bytes"]

MIB: Final = 1 << 20
# Payloads pass a client, a server with its cache, and the file system.
COPIES_COUNT: Final = 8
LEAST_BYTES: Final = 256 * MIB
MOST_BYTES: Final = 4096 * MIB


def warm_bytes(payload_bytes: int) -> int:
    """Say how much memory an operation is given.

    Args:
        payload_bytes: Bytes of its messages.

    Returns:
        Bytes; at most half of what the machine can give.
    """
    wanted = min(max(COPIES_COUNT * payload_bytes, LEAST_BYTES), MOST_BYTES)
    return min(wanted, _available_bytes() // 2)


def warm(count_bytes: int) -> None:
    """Touch memory and give it back to the kernel, which hands it out again first.

    Args:
        count_bytes: How much.
    """
    if sys.platform == "linux" and count_bytes > 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mmap.mmap(-1, count_bytes, flags=flags).close()


def _available_bytes() -> int:
    if sys.platform != "linux":
        return 0
    with open("/proc/meminfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return 0
