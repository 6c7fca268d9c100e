"""Child processes that publish and are killed, and what they said."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Child", "run", "start", "times"]


def times(default: int) -> int:
    """Give how often a fault is repeated: `default` times VECMQ_FAULTS."""
    return default * int(os.environ.get("VECMQ_FAULTS", "1"))


@dataclass
class Child:
    """A process that runs a script; its stdout is read to the end by `finish`."""

    process: subprocess.Popen[bytes]

    def line(self) -> str:
        """Read one line of its stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def finish(self, timeout_s: float = 30) -> tuple[int, str, str]:
        """Wait for its end; give its exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out.decode(), err.decode()


def start(script: str, *arguments: str | Path) -> Child:
    """Start a process that runs the script with these arguments."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What `line` read ahead would be lost to `finish`, and a line in it cut in two.
        bufsize=0,
    )
    return Child(process)


def run(script: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Run a script to its end; give its exit code, stdout and stderr."""
    return start(script, *arguments).finish()
