"""Messages of all sizes on one topic, as a pipeline that chunks and embeds makes them."""

from __future__ import annotations

from typing import Final

import numpy as np

from vecmq.bench.runner import MIB, Case
from vecmq.bench.sweep import size_name
from vecmq.errors import ConfigError

__all__ = ["SIZE_MAX_BYTES", "SIZE_MIN_BYTES", "case"]

SIZE_MIN_BYTES: Final = 256
SIZE_MAX_BYTES: Final = 4 * MIB
WORD_BYTES: Final = 8
SEED: Final = 1


def case(
    count: int,
    min_bytes: int = SIZE_MIN_BYTES,
    max_bytes: int = SIZE_MAX_BYTES,
    batch: int | None = None,
) -> Case:
    """Make a case whose sizes are log-uniform: as many from 1 to 2 KB as from 1 to 2 MB.

    Args:
        count: Messages, 1 to 1,000,000.
        min_bytes: Smallest size, >= 8.
        max_bytes: Largest size.
        batch: Messages a call; None: what is best in each client.

    Returns:
        The same sizes for every contender and operation, multiples of 8.

    Raises:
        ConfigError: A value is out of its range.
    """
    if not 1 <= count <= 1_000_000:
        raise ConfigError(f"msgs: expected 1 to 1,000,000, got {count:,}")
    if not WORD_BYTES <= min_bytes <= max_bytes:
        raise ConfigError(
            f"sizes: expected 8 <= least <= greatest bytes, got {min_bytes} and {max_bytes}"
        )
    even = np.random.default_rng(SEED).random(count)
    sizes = min_bytes * (max_bytes / min_bytes) ** even
    words = np.maximum(sizes.astype(np.int64) // WORD_BYTES, 1)
    sizes_bytes = tuple((words * WORD_BYTES).tolist())
    name = f"{size_name(min_bytes)} to {size_name(max_bytes)}"
    return Case(name, max(sizes_bytes), count, sizes_bytes, batch=batch)
