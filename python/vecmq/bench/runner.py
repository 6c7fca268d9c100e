"""Runs cases on contenders, interleaved, and keeps every sample.

For each case one worker process a contender is started (see `worker` for why), each does its
warm-up, then the rounds go over the contenders: A B C A B C. So a slow minute of the machine meets
all alike, and what two of them took in the same round can be compared.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vecmq.bench import limits, machine
from vecmq.bench.contender import Contender
from vecmq.bench.process import BenchError, Worker
from vecmq.bench.worker import Kind, ServerSpec, Spec
from vecmq.errors import ConfigError

__all__ = ["FAULTS", "KIB", "MIB", "Case", "Plan", "Progress", "Ratio", "Result", "Row", "run"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
# What a store takes of the payloads at most: 1.2 was seen, of RocksDB, which keeps log and tables.
DISK_SHARE: Final = 1.5
OPS_MAX: Final = 100_000
# Counts of a sample that have to be 0.
FAULTS: Final = ("lost_count", "duplicate_count", "unordered_count", "wrong_count")


@dataclass(frozen=True, slots=True)
class Case:
    """What every contender does.

    Attributes:
        name: "5 MB".
        size_bytes: Bytes of a message; with sizes_bytes the greatest.
        count: Messages of an operation.
        sizes_bytes: A size for each message, or None.
        workload: What an operation is.
        batch: Messages a call; None: what is best in each client.
        rate_per_s: Messages due in a second (workload "latency").
        publishers: How many publish at once.
        subscribers: How many receive everything.
    """

    name: str
    size_bytes: int
    count: int
    sizes_bytes: tuple[int, ...] | None = None
    workload: Kind = "pubsub"
    batch: int | None = None
    rate_per_s: float | None = None
    publishers: int = 1
    subscribers: int = 1

    @property
    def payload_bytes(self) -> int:
        """Bytes of an operation's messages."""
        return sum(self.sizes_bytes) if self.sizes_bytes else self.size_bytes * self.count


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        command: Name of the subcommand of ``vecmq bench``.
        title: Of the table.
        cases: Rows of the table.
        contenders: In the order of a round; those that are missing are shown.
        ops: Counted operations a case and contender, 1 to 100,000.
        warmup: Operations before those, 0 to 100.
        codec: Codec of vecmq's frames.
        path: Directory for the stores; None: the system's temporary one.
        server: A server of the user's for those that need one; None: each gets its own.
        baseline: Name of the contender that the others are compared with.
        duration_s: A case ends after this many seconds, whatever rounds are left; None: never.
        retention_s: Seconds that vecmq's routes keep messages; None: to the end of the case.
        options: What else was asked, for the document.
    """

    command: str
    title: str
    cases: tuple[Case, ...]
    contenders: tuple[Contender, ...]
    ops: int = 5
    warmup: int = 1
    codec: Any = "raw"
    path: Path | None = None
    server: ServerSpec | None = None
    baseline: str | None = None
    duration_s: float | None = None
    retention_s: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.contenders:
            raise ConfigError("routes, peers: expected at least one, got none")
        if not 1 <= self.ops <= OPS_MAX:
            raise ConfigError(f"ops: expected 1 to {OPS_MAX:,}, got {self.ops:,}")
        if not 0 <= self.warmup <= 100:
            raise ConfigError(f"warmup: expected 0 to 100, got {self.warmup}")


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much longer one contender took than another, round by round.

    Attributes:
        median: Median of the rounds; 2.0 is twice the time.
        low: The least.
        high: The greatest.
    """

    median: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Every round says the same of who is faster."""
        return self.low > 1 or self.high < 1


@dataclass(slots=True)
class Row:
    """One case on one contender.

    Attributes:
        case: What was run.
        contender: Where.
        why_not: Why there is no figure; None: there is one.
        batch: Messages a call that it really does.
        versions: What the worker said of its parts.
        warmups: The operations that are not counted.
        samples: What each counted operation took.
    """

    case: Case
    contender: Contender
    why_not: str | None = None
    batch: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    warmups: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        """Give a number of every counted operation.

        Args:
            key: Its name in the samples.

        Returns:
            In the order of the rounds.
        """
        return [float(sample[key]) for sample in self.samples]

    def median(self, key: str) -> float:
        """Give the median of a number over the counted operations.

        Args:
            key: Its name in the samples.

        Returns:
            The median.
        """
        return float(statistics.median(self.values(key)))

    def noise(self) -> float:
        """Say how far the seconds lie apart.

        Returns:
            Half of (greatest - least) / median; 0.1 is +-10 %.
        """
        seconds = self.values("seconds")
        return (max(seconds) - min(seconds)) / 2 / float(statistics.median(seconds))

    def total(self, key: str) -> int:
        """Add up a count over all operations, those that are not counted too.

        Args:
            key: Name of a count in the samples.

        Returns:
            The sum; what a contender could not count is 0.
        """
        return sum(sample[key] or 0 for sample in [*self.warmups, *self.samples])

    def levels(self) -> set[str]:
        """Give what acknowledgements promised."""
        return {level for sample in self.samples for level in sample["levels"]}

    def ratio(self, other: Row) -> Ratio | None:
        """Compare the seconds with those of another contender in the same rounds.

        Args:
            other: The same case on another contender.

        Returns:
            None where there is nothing to compare, or the two do not promise the same.
        """
        rounds = list(zip(self.values("seconds"), other.values("seconds"), strict=False))
        if not rounds or self.levels() != other.levels():
            return None
        quotients = [mine / theirs for mine, theirs in rounds]
        return Ratio(statistics.median(quotients), min(quotients), max(quotients))

    @property
    def is_good(self) -> bool:
        """Every operation received all, once, in order, bit-equal."""
        return not any(self.total(key) for key in FAULTS)


@dataclass(slots=True)
class Result:
    """What came of a run.

    Attributes:
        plan: What was asked.
        machine: Where it ran.
        limits: What the machine itself can do, measured before the first case.
        rows: By case, then contender.
        is_interrupted: Ctrl-C ended it; the rows hold what was finished.
    """

    plan: Plan
    machine: dict[str, Any]
    limits: limits.Limits
    rows: list[Row] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def finished(self) -> list[Row]:
        """Rows with at least one counted operation."""
        return [row for row in self.rows if row.samples]

    @property
    def is_good(self) -> bool:
        """Nothing was lost, doubled, changed or out of order, and no route failed."""
        return all(
            row.is_good and not (row.why_not and row.contender.is_route) for row in self.rows
        )

    def baseline(self, row: Row) -> Row | None:
        """Find what a row is compared with.

        Args:
            row: One of the rows.

        Returns:
            The same case on the plan's baseline; None where there is none.
        """
        for other in self.finished:
            if other.case is row.case and other.contender.name == self.plan.baseline:
                return None if other is row else other
        return None


# Case, contender, number of the operation (warm-ups first, from 0), its sample; at its start None.
Progress = Callable[[Case, Contender, int, dict[str, Any] | None], None]


def run(plan: Plan, progress: Progress) -> Result:
    """Run a plan.

    Args:
        plan: What to run.
        progress: Called before and after every operation.

    Returns:
        The result; after Ctrl-C what was finished.

    Raises:
        ConfigError: The directory cannot be used or has too little room.
        BenchError: A worker of a route failed; a peer that fails is a row that says so.
    """
    with _directory(plan) as directory:
        result = Result(plan, machine.facts(directory), limits.measure(directory))
        try:
            for number, case in enumerate(plan.cases):
                case_directory = directory / str(number)
                case_directory.mkdir()
                _run_case(plan, case, case_directory, result, progress)
                shutil.rmtree(case_directory, ignore_errors=True)
        except KeyboardInterrupt:
            result.is_interrupted = True
    return result


@contextmanager
def _directory(plan: Plan) -> Iterator[Path]:
    try:
        made = tempfile.mkdtemp(prefix="vecmq-bench-", dir=plan.path)
    except OSError as error:
        raise ConfigError(f"path: cannot use {plan.path}: {error}") from error
    try:
        directory = Path(made)
        _check_room(plan, directory)
        yield directory
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_room(plan: Plan, directory: Path) -> None:
    """A full disk in the middle of a run would be a strange result."""
    largest = max((case.payload_bytes for case in plan.cases), default=0)
    # Where messages are not kept, what is needed depends on the speed.
    operations = plan.ops + plan.warmup if plan.retention_s is None else 1
    needed = round(largest * operations * len(plan.contenders) * DISK_SHARE)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ConfigError(
            f"path: expected {needed / MIB:,.0f} MiB of free space for {plan.ops} operations, "
            f"got {free / MIB:,.0f} MiB in {directory.parent}; take fewer --ops or messages"
        )


def _run_case(plan: Plan, case: Case, directory: Path, result: Result, progress: Progress) -> None:
    rows = [Row(case, contender, _why_not(case, contender)) for contender in plan.contenders]
    result.rows.extend(rows)
    with ExitStack() as stack:
        running: list[tuple[Row, Worker]] = []
        for row in rows:
            if row.why_not is None:
                worker = _enter(
                    stack, row, Worker(row.contender, _spec(plan, case, row, directory))
                )
                if worker is not None:
                    running.append((row, worker))
        started = time.monotonic()
        for number in range(plan.warmup + plan.ops):
            is_over = plan.duration_s is not None and (
                time.monotonic() - started > plan.duration_s and number > plan.warmup
            )
            if is_over:
                break
            for row, worker in running:
                if row.why_not is not None:
                    continue
                progress(case, row.contender, number, None)
                sample = _run_one(row, worker, number)
                if sample is not None:
                    (row.warmups if number < plan.warmup else row.samples).append(sample)
                    progress(case, row.contender, number, sample)


def _why_not(case: Case, contender: Contender) -> str | None:
    if contender.missing is not None:
        return f"missing: {contender.missing}"
    if case.workload not in contender.workloads:
        return f"does not do {case.workload}"
    if (case.publishers, case.subscribers) != (1, 1) and not contender.is_route:
        return "one publisher and one subscriber only"
    limit = contender.sizes_max_bytes
    if limit is not None and case.size_bytes > limit:
        return f"takes messages of at most {limit:,} bytes"
    return None


def _spec(plan: Plan, case: Case, row: Row, directory: Path) -> Spec:
    needs_server = row.contender.server or row.contender.name in ("nats", "hybrid")
    return Spec(
        contender=row.contender.name,
        workload=case.workload,
        size_bytes=case.size_bytes,
        count=case.count,
        path=str(directory / row.contender.name),
        sizes_bytes=list(case.sizes_bytes) if case.sizes_bytes else None,
        batch=case.batch,
        rate_per_s=case.rate_per_s,
        publishers=case.publishers,
        subscribers=case.subscribers,
        retention_s=plan.retention_s,
        codec=plan.codec,
        server=plan.server if needs_server else None,
    )


def _enter(stack: ExitStack, row: Row, worker: Worker) -> Worker | None:
    try:
        stack.enter_context(worker)
    except BenchError as error:
        _fail(row, error)
        return None
    row.batch = worker.ready["batch"]
    row.versions = row.contender.versions | worker.ready["versions"]
    return worker


def _run_one(row: Row, worker: Worker, number: int) -> dict[str, Any] | None:
    try:
        return worker.run(number)
    except BenchError as error:
        _fail(row, error)
        return None


def _fail(row: Row, error: BenchError) -> None:
    """A route that fails ends the run; a peer's failure stands in its row."""
    if row.contender.is_route:
        raise error
    row.why_not = f"failed: {error}"
