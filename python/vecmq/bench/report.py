"""Prints a benchmark: progress while it runs, the tables when it is done."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vecmq.bench.payloads import WINDOW_BYTES, WINDOW_MSGS
from vecmq.bench.runner import KIB, MIB, Case, Plan, Result, Row

if TYPE_CHECKING:
    from rich.console import Console

    from vecmq.bench.contender import Contender
    from vecmq.bench.runner import Progress as OnProgress

__all__ = ["add_table", "progress", "show", "steps"]

TIME_COLUMNS: Final = (
    *("s/op\nmin", "s/op\nmedian", "s/op\nmax", "MB/s", "msg/s"),
    *("lost", "dupli-\ncates"),
)
RESOURCE_COLUMNS: Final = (
    *("CPU\ns/op\nclient", "CPU\ns/op\nserver", "peak\nMB\nclient", "peak\nMB\nserver"),
    *("disk\nMB/op\nallocated", "disk\nMB/op\napparent"),
)
LATENCY_COLUMNS: Final = ("p50", "p90", "p99", "p99.9", "max", "messages")
WIDE_COLUMNS: Final = 92
CALL_PATTERN: Final = (
    f"vecmq: publish_many in windows of at most {WINDOW_BYTES // MIB} MiB or {WINDOW_MSGS} "
    "messages (--batch sets it; 1: publish, a message a call); one publishing and one receiving "
    "thread; verified and acknowledged in batches"
)
RESOURCE_NOTE: Final = (
    "CPU, memory: medians; memory is the highest resident one during the operation, the client's "
    "without the payloads; disk: after the last operation, shared out over all; MB = 2^20 bytes"
)


@contextmanager
def progress(console: Console, plan: Plan) -> Iterator[OnProgress]:
    """Show a bar on a terminal, else a line for each operation.

    Args:
        console: Where progress goes.
        plan: What is run.

    Yields:
        What to call before and after every operation.
    """
    running = [contender for contender in plan.contenders if contender.missing is None]
    total = len(plan.cases) * len(running) * (plan.ops + plan.warmup)
    with steps(console, total) as step:

        def update(
            case: Case, contender: Contender, number: int, sample: dict[str, Any] | None
        ) -> None:
            counted = number - plan.warmup + 1
            turn = f"round {counted} of {plan.ops}" if counted > 0 else "warm-up"
            step(f"{case.name} x {case.count:,}, {contender.name}, {turn}", sample)

        yield update


@contextmanager
def steps(console: Console, total: int) -> Iterator[Callable[[str, dict[str, Any] | None], None]]:
    """Show a bar on a terminal, else a line for each step.

    Args:
        console: Where progress goes.
        total: How many there are.

    Yields:
        What to call before a step, with its name and None, and after it, with its sample.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown as bar:
        task = bar.add_task("starting", total=total)

        def update(name: str, sample: dict[str, Any] | None) -> None:
            if sample is None:
                bar.update(task, description=name)
                return
            bar.advance(task)
            if not console.is_terminal:
                console.print(f"{name}: {sample['seconds']:.3f} s", highlight=False)

        yield update


def show(console: Console, result: Result, notes: Sequence[str] = ()) -> None:
    """Print the tables and their conditions.

    Args:
        console: Where data goes.
        result: What came of the run.
        notes: More lines for the end.
    """
    rows = result.finished
    is_latency = any(row.case.workload == "latency" for row in rows)
    if is_latency:
        title = "Latency, from the moment a message was due to its receipt"
        add_table(console, _table(title, LATENCY_COLUMNS, rows, _latency_cells))
    add_table(console, _table(result.plan.title, TIME_COLUMNS, rows, _time_cells))
    add_table(console, _table("What it took", RESOURCE_COLUMNS, rows, _resource_cells))
    if result.plan.baseline is not None and len({row.contender.name for row in rows}) > 1:
        against = result.plan.baseline
        columns = (f"time over\n{against}'s", "least", "greatest", "noise", "level")
        title = f"Compared with {against}, round by round"
        add_table(console, _table(title, columns, rows, lambda row: _ratio_cells(result, row)))
    _not_run(console, result)
    _conditions(console, result, notes)


def add_table(console: Console, table: Table) -> None:
    """Print a table so that a narrow terminal cuts no figure.

    Args:
        console: Where data goes.
        table: A table.
    """
    # A narrow terminal gets narrow gaps rather than cut figures.
    table.padding = (0, 1, 0, 0) if console.width >= WIDE_COLUMNS else (0, 0)
    console.print(table)
    console.print()


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Row], cells: Callable[[Row], list[str]]
) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False
    )
    table.add_column("workload", no_wrap=True)
    table.add_column("contender", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    shown: Case | None = None
    for row in rows:
        is_first = row.case is not shown
        if is_first and shown is not None:
            table.add_section()
        shown = row.case
        name = f"{row.case.name} x {row.case.count:,}" if is_first else ""
        is_ours = row.contender.is_route
        table.add_row(
            name, row.contender.name, *cells(row), style="" if is_ours else "dim", end_section=False
        )
    return table


def _time_cells(row: Row) -> list[str]:
    seconds = row.values("seconds")
    median = row.median("seconds")
    counts = ["?", "?"]
    if row.contender.is_verified:
        lost = row.total("lost_count") + row.total("wrong_count")
        counts = [
            _count(lost),
            _count(row.total("duplicate_count") + row.total("unordered_count")),
        ]
    return [
        f"{min(seconds):.3f}",
        f"[bold]{median:.3f}[/]",
        f"{max(seconds):.3f}",
        f"{row.case.payload_bytes / MIB / median:,.0f}",
        f"{row.case.count / median:,.0f}",
        *counts,
    ]


def _resource_cells(row: Row) -> list[str]:
    # The payloads were there before the clock; what the contender takes is what comes on top.
    client_bytes = max(row.median("client_peak_bytes") - row.case.payload_bytes, 0)
    has_server = row.samples[0]["server_peak_bytes"] > 0
    operations = len(row.samples) + len(row.warmups)
    return [
        f"{row.median('client_cpu_s'):.2f}",
        f"{row.median('server_cpu_s'):.2f}" if has_server else "-",
        f"{client_bytes / MIB:,.0f}",
        f"{row.median('server_peak_bytes') / MIB:,.0f}" if has_server else "-",
        f"{row.samples[-1]['allocated_bytes'] / operations / MIB:,.0f}",
        f"{row.samples[-1]['apparent_bytes'] / operations / MIB:,.0f}",
    ]


def _ratio_cells(result: Result, row: Row) -> list[str]:
    levels = ", ".join(sorted(row.levels()))
    noise = f"\N{PLUS-MINUS SIGN}{row.noise():.0%}"
    other = result.baseline(row)
    if other is None:
        return ["1", "", "", noise, levels]
    ratio = row.ratio(other)
    if ratio is None:
        return ["other level", "", "", noise, levels]
    # Where the rounds contradict each other the median is a guess.
    median = f"{ratio.median:.2f}" if ratio.is_clear else f"~{ratio.median:.2f}"
    return [median, f"{ratio.low:.2f}", f"{ratio.high:.2f}", noise, levels]


def _latency_cells(row: Row) -> list[str]:
    from vecmq.bench import latency

    if row.case.workload != "latency":
        return [""] * len(LATENCY_COLUMNS)
    found = latency.summarize(sample["latencies_ns"] for sample in row.samples)
    values = [*found.percentiles.values(), found.max_ns]
    return [*(_duration(value) for value in values), f"{found.count:,}"]


def _duration(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def _count(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "0"


def _not_run(console: Console, result: Result) -> None:
    """Whatever has no figure says why, once for all whose reason is the same."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in result.rows:
        if row.why_not is not None:
            cases.setdefault((row.contender.name, row.why_not), []).append(row.case.name)
    names: dict[tuple[str, str], list[str]] = {}
    for (name, reason), where in cases.items():
        in_part = "" if len(where) == len(result.plan.cases) else f" ({', '.join(where)})"
        names.setdefault((reason, in_part), []).append(name)
    if not names:
        return
    console.print("[bold]Without a figure[/]")
    for (reason, in_part), who in names.items():
        console.print(f"[yellow]{', '.join(who)}[/]{in_part}: {escape(reason)}", highlight=False)
    console.print()


def _conditions(console: Console, result: Result, notes: Sequence[str]) -> None:
    facts, limits = result.machine, result.limits
    samples = [
        sample
        for row in result.finished
        if row.contender.is_verified
        for sample in row.samples
        if sample["verify_s"] is not None
    ]
    shares = [sample["verify_s"] / sample["seconds"] for sample in samples] or [0.0]
    verifying = (
        "payloads: random and unique, made before the clock; every byte of every message is "
        f"compared as it arrives, inside the clock: {statistics.median(shares):.1%} of the "
        f"seconds (median; {max(shares):.1%} at most) are CPU time for that"
    )
    operations = (
        f"codec: {result.plan.codec}; operations: {len(samples)} in all, interleaved, after "
        f"{result.plan.warmup} of each that are not counted"
    )
    floor = (
        "limits of this machine, measured before the run: "
        f"memcpy {limits.memcpy_bytes_per_s / MIB / KIB:.1f} GB/s, "
        f"loopback {limits.loopback_bytes_per_s / MIB / KIB:.1f} GB/s, "
        f"sequential write {limits.write_bytes_per_s / MIB:,.0f} MB/s, "
        f"fdatasync {limits.fdatasync_s * 1e6:,.0f} us"
    )
    notes_of_peers = [
        f"{row.contender.name}: {row.contender.note}"
        for row in _first_rows(result)
        if row.contender.note
    ]
    cpu = f"{facts['cpu_model']} x {facts['cpu_count']}"
    lines = [
        f"call pattern: {CALL_PATTERN}",
        *notes_of_peers,
        verifying,
        operations,
        RESOURCE_NOTE,
        floor,
        f"{_versions(facts)}, {cpu}, {facts['file_system']}",
        *notes,
    ]
    if result.is_interrupted:
        lines.append("interrupted: the tables show what was finished")
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if not result.is_good:
        console.print("[bold red]FAILED[/]: messages were lost, doubled, changed or out of order")


def _first_rows(result: Result) -> list[Row]:
    """A row of each contender that ran."""
    return list({row.contender.name: row for row in reversed(result.finished)}.values())[::-1]


def _versions(facts: dict[str, Any]) -> str:
    build = facts["vecmq"]
    return (
        f"vecmq {build.get('version')} ({build.get('profile')}), "
        f"nats-server {facts['nats_server']}, Python {facts['python']}, "
        f"{facts['system']} {facts['kernel']}, load {facts['load_average'][0]:.1f} at the start"
    )
