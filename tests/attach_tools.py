"""Subscribers and owners in processes of their own, driven line by line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Self

# Reads a line, runs it, prints what `out` is then. One process can so be anything.
WORKER = """
import os, sys, time
import numpy as np
import vecmq, vecmq.sync
kept = {"os": os, "sys": sys, "time": time, "np": np, "vecmq": vecmq}
for line in sys.stdin:
    kept["out"] = None
    try:
        exec(line.replace("\\x1f", "\\n"), kept)
    except vecmq.Error as error:
        kept["out"] = type(error).__name__
    # In one write: a child that it forked may write too.
    sys.stdout.write(repr(kept["out"]) + "\\n")
    sys.stdout.flush()
"""

ATTACH = "mq = vecmq.sync.attach(sys.argv[1])"
OPEN = "mq = vecmq.sync.open(sys.argv[1], sys.argv[2])"


class Process:
    """A process that runs what it is told."""

    def __init__(self, path: Path, mode: str = "queue") -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, code: str) -> None:
        """Send code and do not wait."""
        assert self.child.stdin is not None
        self.child.stdin.write(code.replace("\n", "\x1f") + "\n")
        self.child.stdin.flush()

    def answer(self) -> Any:
        """What `out` was after the oldest code that was told."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, "the process has ended"
        return eval(line)

    def run(self, code: str) -> Any:
        """Send code, wait, and give what it set `out` to; the class of a vecmq error."""
        self.tell(code)
        return self.answer()

    def kill(self) -> None:
        """kill -9."""
        self.child.kill()
        self.child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.close()
        self.child.stdout.close()
