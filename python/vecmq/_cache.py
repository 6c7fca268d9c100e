"""Where vecmq keeps what is slow to make and can be made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """Find the cache directory.

    Returns:
        VECMQ_CACHE_DIR, else XDG_CACHE_HOME/vecmq, else ~/.cache/vecmq. It need not exist.
    """
    if own := os.environ.get("VECMQ_CACHE_DIR"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "vecmq"
    return Path.home() / ".cache" / "vecmq"
