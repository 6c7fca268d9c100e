"""The counter of copies: built from memcount.c, preloaded, read from inside a process."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("memcount.c")


def build(directory: Path) -> Path | None:
    """Compiles the counter.

    Args:
        directory: Where to.

    Returns:
        The library; None without a C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "memcount.so"
    # Its own copying must not become a call of memcpy.
    options = ["-O2", "-fPIC", "-shared", "-fno-builtin", "-fno-tree-loop-distribute-patterns"]
    command = [compiler, *options, str(SOURCE), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


def preloaded(library: Path) -> dict[str, str]:
    """Gives the environment of a process whose copies are counted.

    Args:
        library: What `build` made.

    Returns:
        All variables.
    """
    return os.environ | {"LD_PRELOAD": str(library)}


def counted_bytes() -> int:
    """Gives the bytes that were copied in this process, in calls of 64 KiB and more.

    Returns:
        Since its start.

    Raises:
        AttributeError: The counter is not preloaded.
    """
    function = ctypes.CDLL(None).memcount_bytes
    function.restype = ctypes.c_ulonglong
    return int(function())
