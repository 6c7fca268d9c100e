"""Prints a benchmark: progress while it runs, the table when it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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

__all__ = ["progress", "save", "show"]

COLUMNS: Final = (
    "s/op min",
    "median",
    "max",
    "MB/s",
    "msg/s",
    "CPU s\nclient",
    "CPU s\nserver",
    "peak MB\nclient",
    "peak MB\nserver",
    "disk MB\na op",
    "lost",
    "dup.",
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
    table = Table(title=_title(result), title_justify="left", title_style="bold")
    table.add_column("workload", no_wrap=True)
    table.add_column("route", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("Milvus natsmq / RocksMQ\n(reference), s/op", justify="right", no_wrap=True)
    shown: Workload | None = None
    for row in result.finished:
        is_first = row.workload is not shown
        if is_first and shown is not None:
            table.add_section()
        shown = row.workload
        table.add_row(*_cells(row, is_first=is_first))
    console.print(table)
    _conditions(console, result)


def _title(result: Result) -> str:
    scale = result.options.scale
    part = "" if scale == 1 else f", {scale:g} of the message counts"
    return f"Table 1: publish and subscribe one topic until the last is received{part}"


def _cells(row: Row, *, is_first: bool) -> list[str]:
    seconds = [sample["seconds"] for sample in row.samples]
    median = row.median("seconds")
    payload_bytes = row.workload.size_bytes * row.count
    # The payloads were there before the clock; what the route takes is what comes on top.
    client_bytes = max(row.median("client_peak_bytes") - payload_bytes, 0)
    has_server = row.samples[0]["server_peak_bytes"] > 0
    name = f"{row.workload.name} x {row.count:,}"
    reference = f"{row.workload.natsmq_s:.2f} / {row.workload.rocksmq_s:.2f}"
    return [
        name if is_first else "",
        row.route,
        f"{min(seconds):.3f}",
        f"[bold]{median:.3f}[/]",
        f"{max(seconds):.3f}",
        f"{payload_bytes / MIB / median:,.0f}",
        f"{row.count / median:,.0f}",
        f"{row.median('client_cpu_s'):.2f}",
        f"{row.median('server_cpu_s'):.2f}" if has_server else "-",
        f"{client_bytes / MIB:,.0f}",
        f"{row.median('server_peak_bytes') / MIB:,.0f}" if has_server else "-",
        f"{_disk_bytes(row) / MIB:,.0f}",
        _count(row.total("lost_count") + row.total("wrong_count")),
        _count(row.total("duplicate_count") + row.total("unordered_count")),
        reference if is_first else "",
    ]


def _disk_bytes(row: Row) -> float:
    """Give what the store took on disk after the last operation, shared out over all operations."""
    operations = len(row.samples) + 1
    return float(row.samples[-1]["allocated_bytes"]) / operations


def _count(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "0"


def _conditions(console: Console, result: Result) -> None:
    facts = result.machine
    build = facts["vecmq"]
    levels = sorted({level for row in result.finished for sample in row.samples for level in sample["levels"]})
    verify = [
        sample["verify_s"] / sample["seconds"] for row in result.finished for sample in row.samples
    ]
    lines = [
        f"call pattern: {CALL_PATTERN}",
        "payloads: random and unique, made before the clock; every byte of every message compared as it "
        f"arrives (inside the clock: {max(verify, default=0):.0%} of the seconds at most)",
        f"level: {', '.join(levels) or '-'}; codec: {result.options.codec}; "
        f"operations: {result.options.ops} a route, interleaved, after one that is not counted",
        "memory: highest resident memory of the median operation, the client's without the payloads; "
        "disk: allocated, of all operations so far, shared out; MB = 2^20 bytes",
        f"vecmq {build.get('version')} ({build.get('profile')}), nats-server {facts['nats_server']}, "
        f"Python {facts['python']}, {facts['system']} {facts['kernel']}, {facts['cpu_model']} "
        f"x {facts['cpu_count']}, {facts['file_system']}",
        f"reference: {REFERENCE}; medians of the full operation, to look at, not measured in this run",
    ]
    if result.is_interrupted:
        lines.append("interrupted: the table shows what was finished")
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if not result.is_good:
        console.print("[bold red]FAILED[/]: messages were lost, doubled, changed or out of order")


def save(result: Result, file: str, console: Console) -> None:
    """Write the result as JSON.

    Args:
        result: What came of the run.
        file: Path, or "-" for the console.
        console: Where data goes.

    Raises:
        OSError: The file cannot be written.
    """
    text = json.dumps(result.document(), indent=1)
    if file == "-":
        console.file.write(text + "\n")
    else:
        Path(file).write_text(text + "\n")
