"""Vectors through the queue into a vector index, which is searched and queried meanwhile.

For each route and round a process of its own, with an empty store. In it one thread publishes the
vectors with `publish_rows`, in small batches and in bulk ones, half of the vectors each; one
receives them, compares every byte, adds them to the index and acknowledges; one searches the index
(the 10 nearest to a vector that is not in it) and one queries it (a vector by its id), one request
after the other, from the first vector to the last. "none" hands the vectors to the receiving thread
without a queue, as many at a time as it receives at most: the floor under the routes.

The index is faiss' IVF-flat; Milvus has that type too. It is cheap to add to, so that what a queue
costs is seen; it is trained before the clock.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vecmq.bench.ingest_worker import FLOOR, NEIGHBOURS, PROBES, Work
from vecmq.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from vecmq.bench.latency import Latency
    from vecmq.bench.limits import Limits

__all__ = [
    "FAULTS",
    "ROUTES",
    "IngestOptions",
    "IngestResult",
    "IngestRow",
    "Progress",
    "run",
    "show",
]

ROUTES: Final = (FLOOR, "queue", "nats", "hybrid")
# Counts of a sample that have to be 0.
FAULTS: Final = (
    *("lost_count", "duplicate_count", "unordered_count", "wrong_count"),
    "wrong_queries_count",
)
SCHEMA: Final = "vecmq-bench-1"
BLOG_VECTORS: Final = 100_000_000
MIB: Final = 1 << 20
VECTORS_MIN: Final = 1000
DIMENSIONS_MAX: Final = 32_768  # Milvus' own limit
ROWS_MAX: Final = 1_000_000  # of publish_rows
BATCH_BYTES_MAX: Final = 256 * MIB
OPS_MAX: Final = 1000
# What a run takes at its peak beside the vectors themselves: the index, whose lists grow by
# doubling, and messages on their way. And what it takes whatever the size.
MEMORY_SHARE: Final = 3.0
MEMORY_BYTES: Final = 1024 * MIB
# RocksDB keeps log and tables at the same time.
DISK_SHARE: Final = 2.0
# A search of every list finds the true neighbours, but for rounding.
EXACT_MIN: Final = 0.99


# ---- what to run


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What to run.

    Attributes:
        routes: Some of ROUTES, each once, in the order of a round.
        vectors: Vectors of an operation, >= 1,000; memory is the upper limit.
        dimensions: Of a vector, 2 to 32,768; float32.
        ops: Operations a route, 1 to 1,000.
        batch_rows: Vectors of a small batch, 1 to bulk_rows.
        bulk_rows: Vectors of a bulk batch, to 1,000,000 vectors or 256 MiB.
        path: Directory for the stores; None: the system's temporary one.
        seed: Of the vectors, >= 0; every round has its own, the same for all routes.
    """

    routes: tuple[str, ...] = ROUTES
    vectors: int = 500_000
    dimensions: int = 128
    ops: int = 3
    batch_rows: int = 64
    bulk_rows: int = 4096
    path: Path | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        unknown = [route for route in self.routes if route not in ROUTES]
        if unknown or not self.routes:
            got = ", ".join(unknown) or "none at all"
            raise ConfigError(f"routes: expected some of {', '.join(ROUTES)}, got {got}")
        if len(set(self.routes)) != len(self.routes):
            raise ConfigError(f"routes: expected each once, got {', '.join(self.routes)}")
        _check_range("vectors", self.vectors, VECTORS_MIN, None, "vectors")
        _check_range("dimensions", self.dimensions, 2, DIMENSIONS_MAX, "dimensions")
        _check_range("ops", self.ops, 1, OPS_MAX, "operations")
        _check_range("batch_rows", self.batch_rows, 1, ROWS_MAX, "vectors")
        rows_max = min(ROWS_MAX, BATCH_BYTES_MAX // (4 * self.dimensions))
        what = f"vectors of {self.dimensions:,} dimensions (256 MiB at most)"
        _check_range("bulk_rows", self.bulk_rows, self.batch_rows, rows_max, what)
        _check_range("seed", self.seed, 0, None, "")

    @property
    def payload_bytes(self) -> int:
        """Bytes of an operation's vectors."""
        return 4 * self.vectors * self.dimensions


def _check_range(name: str, value: int, least: int, most: int | None, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}: expected a whole number, got {value!r}")
    if value < least or (most is not None and value > most):
        limits = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
        raise ConfigError(f"{name}: expected {limits} {unit}".rstrip() + f", got {value:,}")


# ---- a run


@dataclass(slots=True)
class IngestRow:
    """One route.

    Attributes:
        route: One of ROUTES.
        samples: What each operation measured, without latencies.
        search_ns: Latencies of the searches of each operation.
        query_ns: The same of the queries.
    """

    route: str
    samples: list[dict[str, Any]] = field(default_factory=list)
    search_ns: list[list[int]] = field(default_factory=list)
    query_ns: list[list[int]] = field(default_factory=list)

    def median(self, key: str) -> float:
        """Give the median of a number over the operations.

        Args:
            key: Its name in the samples.

        Returns:
            The median.
        """
        return float(statistics.median(sample[key] for sample in self.samples))

    def total(self, key: str) -> int:
        """Add up a count over the operations.

        Args:
            key: Its name in the samples.

        Returns:
            The sum.
        """
        return sum(int(sample[key]) for sample in self.samples)

    def ratio(self, floor: IngestRow) -> float:
        """Compare the seconds with those of another row, round by round.

        Args:
            floor: The other row.

        Returns:
            Median of the quotients; 2.0 is twice the time.
        """
        rounds = zip(self.samples, floor.samples, strict=False)
        return float(statistics.median(mine["seconds"] / its["seconds"] for mine, its in rounds))

    @property
    def is_good(self) -> bool:
        """Everything arrived once, bit-equal, and the index finds it."""
        is_found = all(sample["recall_of_all_lists"] >= EXACT_MIN for sample in self.samples)
        return is_found and not any(self.total(key) for key in FAULTS)


@dataclass(slots=True)
class IngestResult:
    """What came of a run.

    Attributes:
        options: What was asked.
        machine: Where it ran.
        limits: What the machine itself can do.
        rows: One a route.
        is_interrupted: Ctrl-C ended it; the rows hold what was finished.
    """

    options: IngestOptions
    machine: dict[str, Any]
    limits: Limits
    rows: list[IngestRow]
    is_interrupted: bool = False

    @property
    def finished(self) -> list[IngestRow]:
        """Rows with at least one operation."""
        return [row for row in self.rows if row.samples]

    @property
    def is_good(self) -> bool:
        """Nothing was lost, doubled, changed or out of order, and every index is right."""
        return all(row.is_good for row in self.rows)

    def document(self) -> dict[str, Any]:
        """Give everything that was measured.

        Returns:
            JSON values of schema "vecmq-bench-1".
        """
        options = asdict(self.options)
        del options["path"]
        return {
            "schema": SCHEMA,
            "command": "ingest",
            "title": _title(self.options),
            "options": options,
            "machine": self.machine,
            "limits": asdict(self.limits),
            "is_interrupted": self.is_interrupted,
            "is_good": self.is_good,
            "ingest": [_scalars(self, row) for row in self.finished],
            "samples": [
                {"route": row.route, "round": number, **sample}
                for row in self.finished
                for number, sample in enumerate(row.samples, 1)
            ],
            "latencies": {
                row.route: {name: found.document() for name, found in _latencies(row).items()}
                for row in self.finished
            },
        }


# Route, number of the round from 0, its sample; at its start None.
Progress = Callable[[str, int, "dict[str, Any] | None"], None]


def run(options: IngestOptions, progress: Progress) -> IngestResult:
    """Run the rounds, route after route in each.

    Args:
        options: What to run.
        progress: Called before and after every operation.

    Returns:
        The result; after Ctrl-C what was finished.

    Raises:
        ConfigError: An extra is missing, the directory cannot be used, or disk or memory are too
            small.
        BenchError: A worker failed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("faiss", "hdrh", "psutil")):
        raise ConfigError("ingest: needs the extra: pip install 'vecmq[bench]'")
    from vecmq.bench import limits, machine

    _check_memory(options)
    with _directory(options) as directory:
        rows = [IngestRow(route) for route in options.routes]
        result = IngestResult(options, machine.facts(directory), limits.measure(directory), rows)
        try:
            for number in range(options.ops):
                for row in rows:
                    progress(row.route, number, None)
                    sample = _run_one(options, row.route, number, directory)
                    row.search_ns.append(sample.pop("search_ns"))
                    row.query_ns.append(sample.pop("query_ns"))
                    row.samples.append(sample)
                    progress(row.route, number, sample)
        except KeyboardInterrupt:
            result.is_interrupted = True
    return result


def _run_one(options: IngestOptions, route: str, number: int, directory: Path) -> dict[str, Any]:
    from vecmq.bench.contender import Contender
    from vecmq.bench.process import Worker
    from vecmq.bench.worker import Spec

    work = Work(route, options.vectors, options.dimensions, options.batch_rows, options.bulk_rows)
    command = (
        *(sys.executable, "-W", "ignore:vecmq was built without optimisation"),
        *("-m", "vecmq.bench.ingest_worker", json.dumps(asdict(work))),
    )
    store = directory / f"{number}-{route}"
    size_bytes = 4 * options.dimensions
    spec = Spec(route, "pubsub", size_bytes, options.vectors, str(store))
    try:
        with Worker(Contender(route, command, is_route=True), spec) as worker:
            sample = worker.run(options.seed + number)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    del sample["points"]
    return sample


@contextmanager
def _directory(options: IngestOptions) -> Iterator[Path]:
    try:
        made = tempfile.mkdtemp(prefix="vecmq-bench-", dir=options.path)
    except OSError as error:
        raise ConfigError(f"path: cannot use {options.path}: {error}") from error
    try:
        # Each operation deletes its store.
        needed = round(options.payload_bytes * DISK_SHARE)
        free = shutil.disk_usage(made).free
        if free < needed:
            raise ConfigError(
                f"vectors: expected {needed / MIB:,.0f} MiB of free disk for {options.vectors:,} "
                f"vectors of {options.dimensions:,} dimensions, got {free / MIB:,.0f} MiB; "
                "take fewer, or another path"
            )
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_memory(options: IngestOptions) -> None:
    import psutil

    free = psutil.virtual_memory().available
    vector_bytes = 4 * options.dimensions * (1 + MEMORY_SHARE)
    most = max(int((free - MEMORY_BYTES) / vector_bytes), 0)
    if options.vectors > most:
        raise ConfigError(
            f"vectors: expected at most {most:,} of {options.dimensions:,} dimensions in "
            f"{free / MIB:,.0f} MiB of free memory, got {options.vectors:,}"
        )


def _latencies(row: IngestRow) -> dict[str, Latency]:
    from vecmq.bench import latency

    return {
        "search": latency.summarize(row.search_ns),
        "query": latency.summarize(row.query_ns),
    }


def _scalars(result: IngestResult, row: IngestRow) -> dict[str, Any]:
    """A row of the table."""
    options = result.options
    seconds = [sample["seconds"] for sample in row.samples]
    values: dict[str, Any] = {
        "route": row.route,
        "vectors": options.vectors,
        "dimensions": options.dimensions,
        "ops": len(row.samples),
        "seconds": row.median("seconds"),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "time_over_none": None,
        "vectors_per_s": row.median("vectors_per_s"),
    }
    floors = [other for other in result.finished if other.route == FLOOR and other is not row]
    if floors:
        values["time_over_none"] = row.ratio(floors[0])
    for name, found in _latencies(row).items():
        values |= {
            f"{name}_mean_ms": found.mean_ns / 1e6,
            f"{name}_p50_ms": found.percentiles[50.0] / 1e6,
            f"{name}_p99_ms": found.percentiles[99.0] / 1e6,
            f"{name}_rps": row.median(f"{name}_rps"),
        }
    for key in ("recall", "recall_of_all_lists"):
        values[key] = min(sample[key] for sample in row.samples)
    for key in ("client_peak_bytes", "server_peak_bytes", "verify_s"):
        values[key] = row.median(key)
    keys = ("queue_batches_count", "nats_batches_count", "received_count", *FAULTS)
    return values | {key: row.total(key) for key in keys} | {"is_good": row.is_good}


# ---- the table

INGEST_COLUMNS: Final = (
    *("s/op\nmin", "s/op\nmedian", "s/op\nmax", "time\nover\nnone", "vectors/s"),
    *("peak\nMB\nclient", "peak\nMB\nserver", "recall", "lost,\nwrong", "dupli-\ncates"),
)
REQUEST_COLUMNS: Final = (
    *("search\np50 ms", "search\nmean ms", "search\np99 ms", "search\nRPS"),
    *("query\np50 ms", "query\nmean ms", "query\np99 ms", "query\nRPS"),
)


def show(console: Console, result: IngestResult) -> None:
    """Print the tables and their conditions.

    Args:
        console: Where data goes.
        result: What came of the run.
    """
    rows = [_scalars(result, row) for row in result.finished]
    title = _title(result.options)
    _add_table(console, title, INGEST_COLUMNS, rows, _ingest_cells)
    during = "Requests to the index during the ingest, one after the other"
    _add_table(console, during, REQUEST_COLUMNS, rows, _request_cells)
    for line in _notes(result, rows):
        console.print(line, highlight=False, markup=False)
    if not result.is_good:
        console.print(
            "[bold red]FAILED[/]: vectors were lost, doubled, changed or out of order, or the "
            "index is not right"
        )


def _title(options: IngestOptions) -> str:
    return (
        f"Table 2: {options.vectors:,} vectors of {options.dimensions:,} dimensions "
        "into an index that is searched meanwhile"
    )


def _add_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[dict[str, Any]],
    cells: Callable[[dict[str, Any]], list[str]],
) -> None:
    from rich import box
    from rich.table import Table

    from vecmq.bench.report import add_table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False
    )
    table.add_column("route", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["route"], *cells(row), style="dim" if row["route"] == FLOOR else "")
    add_table(console, table)


def _ingest_cells(row: dict[str, Any]) -> list[str]:
    over = row["time_over_none"]
    server_bytes = row["server_peak_bytes"]
    wrong = row["lost_count"] + row["wrong_count"] + row["wrong_queries_count"]
    doubled = row["duplicate_count"] + row["unordered_count"]
    return [
        f"{row['seconds_min']:.2f}",
        f"[bold]{row['seconds']:.2f}[/]",
        f"{row['seconds_max']:.2f}",
        "" if over is None else f"{over:.2f}",
        f"{row['vectors_per_s']:,.0f}",
        f"{row['client_peak_bytes'] / MIB:,.0f}",
        f"{server_bytes / MIB:,.0f}" if server_bytes else "-",
        f"{row['recall']:.3f}",
        *(f"[bold red]{count:,}[/]" if count else "0" for count in (wrong, doubled)),
    ]


def _request_cells(row: dict[str, Any]) -> list[str]:
    return [
        text
        for name in ("search", "query")
        for text in (
            *(f"{row[f'{name}_{key}_ms']:.3f}" for key in ("p50", "mean", "p99")),
            f"{row[f'{name}_rps']:,.0f}",
        )
    ]


def _notes(result: IngestResult, rows: Sequence[dict[str, Any]]) -> list[str]:
    options, facts, limits = result.options, result.machine, result.limits
    faiss = next((row.samples[0]["versions"]["faiss"] for row in result.finished), "")
    verifying = max((row["verify_s"] / row["seconds"] for row in rows), default=0.0)
    batch_kib, bulk_kib = (
        4 * options.dimensions * count / 1024 for count in (options.batch_rows, options.bulk_rows)
    )
    share = 100 * options.vectors / BLOG_VECTORS
    blog = f"{share:.3g} % of the blog's 100 M vectors; one index in one process, not a Milvus"
    batches = (
        f"half of the vectors in batches of {options.batch_rows:,} ({batch_kib:,.0f} KB), half in "
        f"batches of {options.bulk_rows:,} ({bulk_kib:,.0f} KB); one thread each publishes, "
        "receives and adds, searches, queries"
    )
    requests = (
        f"search: the {NEIGHBOURS} nearest to a vector that is not there, in {PROBES} lists; "
        "query: a vector by its id, compared with what was sent; recall: the least, against "
        "comparing with every vector, after the end"
    )
    operations = (
        f"none: without a queue; operations: {options.ops} of each, interleaved, each in a new "
        "process with an empty store; seconds, vectors/s, memory, RPS: medians; MB = 2^20 bytes"
    )
    floor = (
        f"limits of this machine: memcpy {limits.memcpy_bytes_per_s / MIB / 1024:.1f} GB/s, "
        f"sequential write {limits.write_bytes_per_s / MIB:,.0f} MB/s"
    )
    versions = (
        f"faiss {faiss} (IVF-flat), vecmq {facts['vecmq'].get('version')} "
        f"({facts['vecmq'].get('profile')}), nats-server {facts['nats_server']}, Python "
        f"{facts['python']}, {facts['cpu_model']} x {facts['cpu_count']}, "
        f"{facts['file_system']}, load {facts['load_average'][0]:.1f} at the start"
    )
    verified = f"every bit is compared, inside the clock: {verifying:.1%} of the seconds at most"
    lines = [blog, batches, verified, requests, operations, *_route_notes(rows), floor, versions]
    if result.is_interrupted:
        lines.append("interrupted: the tables show what was finished")
    return lines


def _route_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which way the batches of the hybrid mode went."""
    return [
        f"hybrid: {row['queue_batches_count']:,} batches took the queue, "
        f"{row['nats_batches_count']:,} NATS"
        for row in rows
        if row["route"] == "hybrid"
    ]
