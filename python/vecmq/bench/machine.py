"""Where a benchmark ran: versions, processor, kernel, file system. No names, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import vecmq
from vecmq.errors import ServerError
from vecmq.server import find_binary

__all__ = ["facts", "file_system"]


def facts(directory: Path) -> dict[str, Any]:
    """Collect what a reader needs to judge the figures.

    Args:
        directory: Where the stores lie; its file system is named.

    Returns:
        JSON values.
    """
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "vecmq": vecmq.build_info(),
        "nats_server": _server_version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(os.getloadavg()),
        "file_system": file_system(directory),
    }


def file_system(directory: Path) -> str:
    """Name the type of the file system that a directory lies on.

    Args:
        directory: An existing directory.

    Returns:
        For example "ext4" or "tmpfs"; "unknown" where the system does not say.
    """
    here = directory.resolve()
    mounts = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if here.is_relative_to(part.mountpoint)
    ]
    return max(mounts)[1] if mounts else "unknown"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _server_version() -> str | None:
    """Give the version of the embedded nats-server; None where there is none."""
    try:
        binary = find_binary()
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    except (ServerError, OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip().rpartition(" ")[2].lstrip("v")
