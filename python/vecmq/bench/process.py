"""A worker process and, where it needs one, the nats-server that was started for it alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vecmq.bench.contender import Contender
from vecmq.bench.measure import Meter, disk_use
from vecmq.bench.memory import warm, warm_bytes
from vecmq.bench.worker import ServerSpec, Spec
from vecmq.errors import Error
from vecmq.server import EmbeddedServer

__all__ = ["BenchError", "Worker"]

STOP_S: Final = 30.0


class BenchError(Error):
    """A worker process failed, or ended before its operation did."""


class Worker:
    """A worker process; ``with`` waits until it is ready and ends it.

    Args:
        contender: What to start.
        spec: What it is to do; a server is put into it where one is started.

    Attributes:
        ready: What it said of itself: versions, batch.
    """

    def __init__(self, contender: Contender, spec: Spec) -> None:
        self._contender = contender
        self._spec = spec
        self._directories = [Path(spec.path)]
        self._server_pids: list[int] = []
        self.ready: Mapping[str, Any] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            spec = self._spec
            if self._contender.server and spec.server is None:
                store = Path(f"{spec.path}-server")
                server = stack.enter_context(EmbeddedServer(store))
                self._directories.append(store)
                self._server_pids.append(server.pid or 0)
                own = ServerSpec(server.url, token=server.token, pid=server.pid)
                spec = replace(spec, server=own)
            elif spec.server is not None and spec.server.pid is not None:
                # Others use it too, but not during this one's operations.
                self._server_pids.append(spec.server.pid)
            self._process = self._start()
            stack.push(self._end)
            self.ready = self._ask(json.dumps(asdict(spec)))
            self._server_pids += self.ready["server_pids"]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(self, number: int) -> dict[str, Any]:
        """Run one operation.

        Args:
            number: Its number; seeds the payloads.

        Returns:
            What the worker measured, and what was measured of it from outside.

        Raises:
            BenchError: The worker failed.
        """
        self._ask(f"prepare {number}")
        warm(warm_bytes(sum(self._spec.sizes)))
        meter = Meter(self._process.pid, self._server_pids)
        meter.start()
        try:
            sample = self._ask("go")
        finally:
            usage = meter.stop()
        return sample | usage.document() | asdict(disk_use(*self._directories))

    def _start(self) -> subprocess.Popen[str]:
        # Its own session: Ctrl-C reaches this process alone, which ends the worker properly. When
        # this process is killed, the worker's stdin closes and it ends by itself.
        return subprocess.Popen(
            self._contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(line + "\n")
            stdin.flush()
        answer = stdout.readline()
        where = (
            f"{self._contender.name}, {self._spec.count} x {self._spec.size_bytes} bytes, "
            f"{self._spec.workload}"
        )
        if not answer:
            code = self._process.wait(STOP_S)
            raise BenchError(f"{where}: the worker ended with exit code {code}")
        try:
            values: dict[str, Any] = json.loads(answer)
        except ValueError:
            raise BenchError(f"{where}: expected a line of JSON, got {answer[:100]!r}") from None
        if "error" in values:
            raise BenchError(f"{where}: {values['error']}: {values['message']}")
        return values

    def _end(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        process = self._process
        # In the middle of an operation it would finish that first, which nobody waits for.
        if kind is not None:
            process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        finally:
            if process.poll() is None:
                # With its children: it is the leader of its session.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()
