"""Message sizes from small to large, and where one route overtakes the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

from vecmq.bench.runner import KIB, MIB, Case, Result, Row
from vecmq.errors import ConfigError

__all__ = ["SIZES_BYTES", "cases", "crossovers", "parse_size", "size_name"]

SIZES_BYTES: Final = (
    *(256, KIB, 4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB),
    *(MIB, 4 * MIB, 8 * MIB - 64 * KIB),
)
COUNT_MAX: Final = 50_000
UNITS: Final = {"b": 1, "kb": KIB, "kib": KIB, "k": KIB, "mb": MIB, "mib": MIB, "m": MIB}


def parse_size(text: str) -> int:
    """Read a size as people write it.

    Args:
        text: "1024", "64KB", "1.5 MB" (1 KB is 1,024 bytes, as nats bench has it).

    Returns:
        Bytes, a multiple of 8.

    Raises:
        ConfigError: It is no size, or no multiple of 8, or not 8 bytes to 1 GiB.
    """
    stripped = text.strip().lower()
    number = stripped.rstrip("kmib ")
    unit = stripped[len(number) :].strip() or "b"
    try:
        size_bytes = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        raise ConfigError(f"size: expected a size such as 64KB, got {text!r}") from None
    if not 8 <= size_bytes <= 1024 * MIB or size_bytes % 8:
        raise ConfigError(
            f"size: expected a multiple of 8 from 8 bytes to 1 GiB, got {size_bytes:,.0f} bytes"
        )
    return int(size_bytes)


def size_name(size_bytes: int) -> str:
    """Write a size as in the tables.

    Args:
        size_bytes: Bytes.

    Returns:
        "64 KB" or "100 B".
    """
    for unit, name in ((MIB, "MB"), (KIB, "KB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.4g} {name}"
    return f"{size_bytes} B"


def cases(
    sizes_bytes: Sequence[int], volume_bytes: int, batch: int | None = None
) -> tuple[Case, ...]:
    """Make a case for each size, all of about the same volume.

    Args:
        sizes_bytes: Sizes.
        volume_bytes: Bytes of an operation, >= 1.
        batch: Messages a call; None: what is best in each client.

    Returns:
        Cases with 1 to 50,000 messages.

    Raises:
        ConfigError: No sizes, a size twice, or no volume.
    """
    if not sizes_bytes or len(set(sizes_bytes)) != len(sizes_bytes):
        raise ConfigError(f"sizes: expected each once, got {list(sizes_bytes)}")
    if volume_bytes < 1:
        raise ConfigError(f"volume: expected at least 1 byte, got {volume_bytes}")
    return tuple(
        Case(size_name(size), size, max(1, min(COUNT_MAX, volume_bytes // size)), batch=batch)
        for size in sorted(sizes_bytes)
    )


def crossovers(result: Result, small: str = "queue", large: str = "nats") -> list[float]:
    """Find the sizes at which two contenders take the same time.

    Between two measured sizes the logarithm of the ratio of medians is taken as a line over the
    logarithm of the size.

    Args:
        result: A sweep.
        small: Contender that is expected to win below.
        large: The other.

    Returns:
        Sizes in bytes, ascending; empty where one wins everywhere. More than one: the noise is
        larger than the difference, or the lines cross more than once.
    """
    rows = {(row.case.size_bytes, row.contender.name): row for row in result.finished}
    points: list[tuple[float, float]] = []
    for size_bytes in sorted({size for size, _ in rows}):
        pair = [rows.get((size_bytes, name)) for name in (small, large)]
        if all(pair):
            points.append((math.log(size_bytes), _log_ratio(*pair)))
    found: list[float] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if (y0 < 0) != (y1 < 0):
            found.append(math.exp(x0 + (x1 - x0) * y0 / (y0 - y1)))
    return found


def _log_ratio(small: Row | None, large: Row | None) -> float:
    assert small is not None
    assert large is not None
    return math.log(small.median("seconds") / large.median("seconds"))
