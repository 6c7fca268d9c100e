"""Prints a benchmark: progress while it runs, the table when it is done."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vecmq.bench.table1 import (
    CALL_PATTERN,
    MIB,
    REFERENCE,
    WORKLOADS,
    Result,
    Row,
    Table1Options,
    Workload,
)

if TYPE_CHECKING:
    from rich.console import Console

    from vecmq.bench.table1 import Progress as OnProgress
    from vecmq.bench.table1 import Route

__all__ = ["progress", "show"]

# What the reference says, over three lines so that the table stays narrow.
REFERENCE_HEAD: Final = "reference:\nnatsmq /\nRocksMQ"
TIME_COLUMNS: Final = (
    "s/op\nmin",
    "s/op\nmedian",
    "s/op\nmax",
    "MB/s",
    "msg/s",
    "lost",
    "dupli-\ncates",
    REFERENCE_HEAD,
)
RESOURCE_COLUMNS: Final = (
    "CPU\ns/op\nclient",
    "CPU\ns/op\nserver",
    "peak\nMB\nclient",
    "peak\nMB\nserver",
    "disk\nMB/op\nallocated",
    "disk\nMB/op\napparent",
)


WIDE_COLUMNS: Final = 92
RESOURCE_NOTE: Final = (
    "CPU, memory: medians; memory is the highest resident one during the operation, the client's "
    "without the payloads; disk: after the last operation, shared out over all; MB = 2^20 bytes"
)


@contextmanager
def progress(console: Console, options: Table1Options) -> Iterator[OnProgress]:
    """Show a bar on a terminal, else a line for each operation.

    Args:
        console: Where progress goes.
        options: What is run.

    Yields:
        What to call before and after every operation.
    """
    total = len(WORKLOADS) * len(options.routes) * (options.ops + 1)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown as bar:
        task = bar.add_task("starting", total=total)

        def update(
            workload: Workload, route: Route, number: int, sample: dict[str, Any] | None
        ) -> None:
            turn = f"round {number} of {options.ops}" if number else "warm-up"
            name = f"{workload.name} x {options.count(workload):,}, {route}, {turn}"
            if sample is None:
                bar.update(task, description=name)
                return
            bar.advance(task)
            if not console.is_terminal:
                console.print(f"{name}: {sample['seconds']:.3f} s", highlight=False)

        yield update


def show(console: Console, result: Result) -> None:
    """Print the table and its conditions.

    Args:
        console: Where data goes.
        result: What came of the run.
    """
    for table in (
        _table(_title(result), TIME_COLUMNS, result, _time_cells),
        _table("What it took", RESOURCE_COLUMNS, result, _resource_cells),
    ):
        # A narrow terminal gets narrow gaps rather than cut figures.
        table.padding = (0, 1, 0, 0) if console.width >= WIDE_COLUMNS else (0, 0)
        console.print(table)
        console.print()
    _conditions(console, result)


def _title(result: Result) -> str:
    scale = result.options.scale
    part = "" if scale == 1 else f", {scale:g} of the message counts"
    return f"Table 1: publish and subscribe one topic until the last is received{part}"


def _table(
    title: str, columns: tuple[str, ...], result: Result, cells: Callable[[Row], list[str]]
) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False
    )
    table.add_column("workload", no_wrap=True)
    table.add_column("route", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    shown: Workload | None = None
    for row in result.finished:
        is_first = row.workload is not shown
        if is_first and shown is not None:
            table.add_section()
        shown = row.workload
        name = f"{row.workload.name} x {row.count:,}" if is_first else ""
        table.add_row(name, row.route, *cells(row))
    return table


def _time_cells(row: Row) -> list[str]:
    seconds = [sample["seconds"] for sample in row.samples]
    median = row.median("seconds")
    return [
        f"{min(seconds):.3f}",
        f"[bold]{median:.3f}[/]",
        f"{max(seconds):.3f}",
        f"{row.workload.size_bytes * row.count / MIB / median:,.0f}",
        f"{row.count / median:,.0f}",
        _count(row.total("lost_count") + row.total("wrong_count")),
        _count(row.total("duplicate_count") + row.total("unordered_count")),
        f"{row.workload.natsmq_s:.2f} / {row.workload.rocksmq_s:.2f}",
    ]


def _resource_cells(row: Row) -> list[str]:
    # The payloads were there before the clock; what the route takes is what comes on top.
    payload_bytes = row.workload.size_bytes * row.count
    client_bytes = max(row.median("client_peak_bytes") - payload_bytes, 0)
    has_server = row.samples[0]["server_peak_bytes"] > 0
    operations = len(row.samples) + 1
    return [
        f"{row.median('client_cpu_s'):.2f}",
        f"{row.median('server_cpu_s'):.2f}" if has_server else "-",
        f"{client_bytes / MIB:,.0f}",
        f"{row.median('server_peak_bytes') / MIB:,.0f}" if has_server else "-",
        f"{row.samples[-1]['allocated_bytes'] / operations / MIB:,.0f}",
        f"{row.samples[-1]['apparent_bytes'] / operations / MIB:,.0f}",
    ]


def _count(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "0"


def _conditions(console: Console, result: Result) -> None:
    facts = result.machine
    samples = [sample for row in result.finished for sample in row.samples]
    levels = sorted({level for sample in samples for level in sample["levels"]})
    shares = [sample["verify_s"] / sample["seconds"] for sample in samples] or [0.0]
    lines = [
        f"call pattern: {CALL_PATTERN}",
        _verifying(shares),
        f"level: {', '.join(levels) or '-'}; codec: {result.options.codec}; {_operations(result)}",
        RESOURCE_NOTE,
        f"{_versions(facts)}, {facts['cpu_model']} x {facts['cpu_count']}, {facts['file_system']}",
        f"reference: {REFERENCE}; s/op, medians of the full operation, not of this run",
    ]
    if result.is_interrupted:
        lines.append("interrupted: the table shows what was finished")
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if not result.is_good:
        console.print("[bold red]FAILED[/]: messages were lost, doubled, changed or out of order")


def _verifying(shares: list[float]) -> str:
    return (
        "payloads: random and unique, made before the clock; every byte of every message is "
        f"compared as it arrives, inside the clock: {statistics.median(shares):.1%} of the "
        f"seconds (median; {max(shares):.1%} at most) are CPU time for that"
    )


def _operations(result: Result) -> str:
    return f"operations: {result.options.ops} a route, interleaved, after one that is not counted"


def _versions(facts: dict[str, Any]) -> str:
    build = facts["vecmq"]
    return (
        f"vecmq {build.get('version')} ({build.get('profile')}), "
        f"nats-server {facts['nats_server']}, Python {facts['python']}, "
        f"{facts['system']} {facts['kernel']}, load {facts['load_average'][0]:.1f} at the start"
    )
