"""Helpers of the tests that run the command line."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vecmq.cli import main

if TYPE_CHECKING:
    import pytest

COMMAND = [sys.executable, "-W", "ignore:vecmq was built without optimisation", "-m", "vecmq"]


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """stdout as JSON, a value a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Command:
    """Runs commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capture = capture
        self._patch = patch

    def __call__(self, *tokens: object, stdin: bytes = b"") -> Outcome:
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self._capture.readouterr()
        log = logging.getLogger("vecmq")
        level = log.level
        try:
            code = main([str(token) for token in tokens])
        finally:
            # --debug would go on in the tests that come after this one.
            log.setLevel(level)
        printed = self._capture.readouterr()
        return Outcome(code, printed.out, printed.err)


def start(*tokens: object, **environment: str) -> subprocess.Popen[str]:
    """Start a command as a process of its own, in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *(str(token) for token in tokens)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
    )


def run(*tokens: object, **environment: str) -> Outcome:
    """Run a command as a process of its own."""
    with start(*tokens, **environment) as process:
        out, err = process.communicate(timeout=100)
    return Outcome(process.returncode, out, err)
