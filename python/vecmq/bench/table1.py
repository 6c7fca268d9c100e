"""The four workloads of the Milvus blog's Table 1, on every route in turn.

For each workload one worker process a route is started (see `worker` for why), each does one
operation that is not counted, then the rounds go over the routes: A B C A B C. So a slow minute of
the machine meets all routes alike.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from vecmq.bench import machine
from vecmq.bench.worker import WINDOW_BYTES, WINDOW_MSGS, Spec
from vecmq.errors import ConfigError, Error

__all__ = ["ROUTES", "WORKLOADS", "BenchError", "Result", "Row", "Table1Options", "Workload", "run"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
STOP_S: Final = 30.0
# What a store may take beyond the payloads: RocksDB keeps log and tables at the same time.
DISK_SHARE: Final = 2.0

Route = Literal["queue", "nats", "hybrid"]
ROUTES: Final[tuple[Route, ...]] = ("queue", "nats", "hybrid")


@dataclass(frozen=True, slots=True)
class Workload:
    """A row of the table.

    Attributes:
        name: "5 MB".
        size_bytes: Bytes of a message.
        count: Messages of a full operation.
        natsmq_s: Published seconds of Milvus' natsmq for the full operation (median of 5).
        rocksmq_s: The same of its RocksMQ.
    """

    name: str
    size_bytes: int
    count: int
    natsmq_s: float
    rocksmq_s: float


# The reference figures: Milvus' own Go packages v2.5.15 on ext4, on another, busy machine of the
# same kind. Constants to look at, not a measurement of this run.
WORKLOADS: Final = (
    Workload("5 MB", 5 * MIB, 100, 2.77, 3.43),
    Workload("1 MB", MIB, 500, 1.31, 2.35),
    Workload("64 KB", 64 * KIB, 10_000, 2.81, 5.32),
    Workload("1 KB", KIB, 50_000, 3.77, 1.23),
)
REFERENCE: Final = "Milvus v2.5.15 (natsmq, RocksMQ) on another, busy machine of the same kind"

CALL_PATTERN: Final = (
    f"publish_many in windows of at most {WINDOW_BYTES // MIB} MiB or {WINDOW_MSGS} messages; "
    "one publishing and one receiving thread; verified and acknowledged in batches"
)


class BenchError(Error):
    """A worker process ended before its operation did."""


@dataclass(frozen=True, slots=True)
class Table1Options:
    """What to run.

    Attributes:
        routes: Routes in the order of a round.
        ops: Counted operations a route and workload, >= 1.
        scale: Share of the message counts, > 0.
        codec: Codec of the frames.
        path: Directory for the stores; None: the system's temporary one.
    """

    routes: tuple[Route, ...] = ROUTES
    ops: int = 5
    scale: float = 1.0
    codec: Literal["raw", "zstd1", "planes"] = "raw"
    path: Path | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.routes or set(self.routes) - set(ROUTES):
            raise ConfigError(f"routes: expected some of {ROUTES}, got {self.routes}")
        if len(set(self.routes)) != len(self.routes):
            raise ConfigError(f"routes: expected each once, got {self.routes}")
        if not 1 <= self.ops <= 1000:
            raise ConfigError(f"ops: expected 1 to 1000, got {self.ops}")
        if not 0 < self.scale <= 100:  # NaN fails this too
            raise ConfigError(f"scale: expected > 0 and <= 100, got {self.scale}")

    def count(self, workload: Workload) -> int:
        """Give the messages of one operation.

        Args:
            workload: A row of the table.

        Returns:
            At least 1.
        """
        return max(1, round(workload.count * self.scale))


@dataclass(slots=True)
class Row:
    """One workload on one route.

    Attributes:
        workload: What was run.
        route: Where.
        count: Messages of an operation.
        samples: What each counted operation took, as the worker gave it.
        warmup: The operation that is not counted.
    """

    workload: Workload
    route: Route
    count: int
    samples: list[dict[str, Any]] = field(default_factory=list)
    warmup: dict[str, Any] | None = None

    def median(self, key: str) -> float:
        """Give the median of a value over the counted operations.

        Args:
            key: Name of a number in the samples.

        Returns:
            The median.
        """
        return float(statistics.median(sample[key] for sample in self.samples))

    def total(self, key: str) -> int:
        """Add up a count over all operations, the one that is not counted too.

        Args:
            key: Name of a count in the samples.

        Returns:
            The sum.
        """
        everything = [*self.samples, *([self.warmup] if self.warmup else [])]
        return sum(sample[key] for sample in everything)

    @property
    def is_good(self) -> bool:
        """Every operation received all, once, in order, bit-equal."""
        keys = ("lost_count", "duplicate_count", "unordered_count", "wrong_count")
        return not any(self.total(key) for key in keys)


@dataclass(slots=True)
class Result:
    """What came of a run.

    Attributes:
        options: What was asked.
        machine: Where it ran.
        rows: By workload, then route; only those with at least one counted operation are whole.
        is_interrupted: Ctrl-C came before the end.
    """

    options: Table1Options
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def finished(self) -> list[Row]:
        """Rows with at least one counted operation."""
        return [row for row in self.rows if row.samples]

    @property
    def is_good(self) -> bool:
        """Nothing lost, doubled, changed or out of order in any operation."""
        return all(row.is_good for row in self.rows)

    def document(self) -> dict[str, Any]:
        """Give everything as JSON values, schema "vecmq-bench-1".

        Returns:
            Options, machine, and the rows with their raw samples.
        """
        options = self.options
        return {
            "schema": "vecmq-bench-1",
            "benchmark": "table1",
            "options": {
                "routes": list(options.routes),
                "ops": options.ops,
                "scale": options.scale,
                "codec": options.codec,
            },
            "call_pattern": CALL_PATTERN,
            "machine": self.machine,
            "is_interrupted": self.is_interrupted,
            "is_good": self.is_good,
            "reference": REFERENCE,
            "rows": [
                {
                    "workload": asdict(row.workload),
                    "route": row.route,
                    "count": row.count,
                    "is_good": row.is_good,
                    "warmup": row.warmup,
                    "samples": row.samples,
                }
                for row in self.rows
            ],
        }


# Workload, route, number of the round (0 is not counted), its sample or None at its start.
Progress = Callable[[Workload, Route, int, dict[str, Any] | None], None]


def run(options: Table1Options, progress: Progress) -> Result:
    """Run the table.

    Args:
        options: What to run.
        progress: Called before and after every operation.

    Returns:
        The result; after Ctrl-C what was finished.

    Raises:
        ConfigError: The directory cannot be used or has too little room.
        BenchError: A worker process failed.
    """
    with _directory(options) as directory:
        result = Result(options, machine.facts(directory))
        try:
            for workload in WORKLOADS:
                _run_workload(options, workload, directory, result, progress)
        except KeyboardInterrupt:
            result.is_interrupted = True
    return result


@contextmanager
def _directory(options: Table1Options) -> Iterator[Path]:
    try:
        made = tempfile.mkdtemp(prefix="vecmq-bench-", dir=options.path)
    except OSError as error:
        raise ConfigError(f"path: cannot use {options.path}: {error}") from error
    try:
        directory = Path(made)
        _check_room(options, directory)
        yield directory
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_room(options: Table1Options, directory: Path) -> None:
    """A full disk in the middle of a run would be a strange result."""
    largest = max(options.count(workload) * workload.size_bytes for workload in WORKLOADS)
    needed = round(largest * (options.ops + 1) * len(options.routes) * DISK_SHARE)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ConfigError(
            f"path: expected {needed / MIB:,.0f} MiB of free space for {options.ops} operations, "
            f"got {free / MIB:,.0f} MiB in {directory.parent}; "
            "take fewer --ops or a smaller --scale"
        )


def _run_workload(
    options: Table1Options,
    workload: Workload,
    directory: Path,
    result: Result,
    progress: Progress,
) -> None:
    rows = [Row(workload, route, options.count(workload)) for route in options.routes]
    result.rows.extend(rows)
    with ExitStack() as stack:
        workers: list[_Worker] = []
        for row in rows:
            path = directory / f"{workload.name.replace(' ', '')}-{row.route}"
            spec = Spec(row.route, options.codec, workload.size_bytes, row.count, str(path))
            workers.append(stack.enter_context(_Worker(spec)))
        for number in range(options.ops + 1):
            for row, worker in zip(rows, workers, strict=True):
                progress(workload, row.route, number, None)
                sample = worker.run(number)
                if number:
                    row.samples.append(sample)
                else:
                    row.warmup = sample
                progress(workload, row.route, number, sample)


class _Worker:
    """A worker process; ``with`` waits until it is ready and ends it."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def __enter__(self) -> Self:
        # Its own session: Ctrl-C reaches this process alone, which ends the worker properly. When
        # this process is killed, the worker's stdin closes and it ends by itself.
        self._process = subprocess.Popen(
            [
                sys.executable,
                *("-W", "ignore:vecmq was built without optimisation"),
                *("-m", "vecmq.bench.worker"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._ask(json.dumps(asdict(self._spec)))
        except BaseException:
            self._end(is_wanted=False)
            raise
        return self

    def run(self, number: int) -> dict[str, Any]:
        """Run one operation and give its sample."""
        return self._ask(str(number))

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(line + "\n")
            stdin.flush()
        answer = stdout.readline()
        if not answer:
            code = self._process.wait(STOP_S)
            raise BenchError(f"the worker of route {self._spec.mode} ended with exit code {code}")
        values: dict[str, Any] = json.loads(answer)
        if "error" in values:
            raise BenchError(
                f"route {self._spec.mode}, {self._spec.count} x {self._spec.size_bytes} bytes: "
                f"{values['error']}: {values['message']}"
            )
        return values

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(is_wanted=kind is None)

    def _end(self, *, is_wanted: bool) -> None:
        process = self._process
        # In the middle of an operation it would finish that first, which nobody waits for.
        if not is_wanted:
            process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
