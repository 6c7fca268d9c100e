"""Prints the demo: progress while it runs, tables when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vecmq.demo.result import DemoResult, RouteResult

if TYPE_CHECKING:
    from rich.console import Console

    from vecmq.demo.run import Progress as OnProgress

__all__ = ["progress", "show"]

MIB = 1 << 20


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """Show a bar of publishes; nothing on a console that is no terminal.

    Args:
        console: Where progress goes.

    Yields:
        What to call with (items published, items in all, messages received).
    """
    columns = (
        TextColumn("publishing and verifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[received]:,} received"),
        TimeElapsedColumn(),
    )
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown as bar:
        task = bar.add_task("demo", total=None, received=0)

        def update(published: int, items: int, received: int) -> None:
            bar.update(task, completed=published, total=items, received=received)

        yield update


def show(console: Console, result: DemoResult) -> None:
    """Print the result.

    Args:
        console: Where data goes.
        result: What came of the run.
    """
    console.print(_routes(result))
    if result.sizes:
        console.print(_sizes(result))
        console.print("[bold]Why: the router at the end of the run, for the middle size[/]")
        for size in result.sizes:
            console.print(Text(f"{_KINDS[size.kind]}: {size.reason}"))
        console.print()
    _nearest(console, result)
    _verdict(console, result)


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        # Fits a terminal of 80 columns.
        padding=(0, 1, 0, 0),
        show_edge=False,
    )


def _routes(result: DemoResult) -> Table:
    table = _table("One topic, two routes")
    table.add_column("route")
    for name in (
        "messages",
        "publish\ns",
        "msg/s",
        "MiB/s",
        "wire/\npayload",
        "p50\nms",
        "p99\nms",
        "lost",
        "dupli-\ncates",
    ):
        table.add_column(name, justify="right")
    for name, route in result.routes.items():
        table.add_row(name, *_route_cells(route))
    return table


def _route_cells(route: RouteResult) -> list[str]:
    p50, p99 = route.latency_s(0.50), route.latency_s(0.99)
    if p50 is None or p99 is None or not route.publish_s or not route.payload_bytes:
        figures = ["0"] + ["-"] * 6
    else:
        figures = [
            f"{route.messages:,}",
            f"{route.publish_s:.2f}",
            f"{route.messages / route.publish_s:,.0f}",
            f"{route.payload_bytes / MIB / route.publish_s:,.0f}",
            f"{route.wire_bytes / route.payload_bytes:.3f}",
            f"{p50 * 1e3:.3f}",
            f"{p99 * 1e3:.3f}",
        ]
    return [*figures, _count(route.lost), _count(route.duplicates)]


def _count(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "0"


def _sizes(result: DemoResult) -> Table:
    table = _table("Where each size went (publishes)")
    table.add_column("payload")
    table.add_column("size", justify="right")
    for name in result.routes:
        table.add_column(name, justify="right")
    for size in result.sizes:
        span = _bytes(size.bytes_min)
        if _bytes(size.bytes_max) != span:
            span += " to " + _bytes(size.bytes_max)
        calls = [f"{size.calls[name]:,}" for name in result.routes]
        table.add_row(_KINDS[size.kind], span, *calls)
    return table


_KINDS = {
    "control": "control message (JSON)",
    "row": "one vector",
    "block": "block of rows (publish_rows)",
    "batch": "batch (matrix)",
}


def _bytes(size: int) -> str:
    if size < 1 << 10:
        return f"{size} B"
    if size < MIB:
        return f"{size / (1 << 10):.0f} KiB"
    return f"{size / MIB:.1f} MiB"


def _nearest(console: Console, result: DemoResult) -> None:
    if result.query is None:
        return
    console.print("[bold]Nearest sentences, searched in what was received[/]")
    console.print(Text(f"query  {result.query}"))
    for match in result.nearest:
        console.print(Text(f"{match.similarity:.3f}  {match.sentence}"))
    console.print()


def _verdict(console: Console, result: DemoResult) -> None:
    if result.crashes_count:
        console.print(
            f"Run {result.crashes_count + 1} on this directory: {result.earlier_count:,} publishes "
            f"were acknowledged before, {result.again_count} published again after the crash"
        )
    state = f"{result.published_count:,} of {result.items_count:,} publishes acknowledged"
    if result.is_interrupted:
        state = f"interrupted: {state}"
    wrong = [
        f"{count:,} {name}"
        for name, count in (
            ("lost", result.lost_count),
            ("duplicates", result.duplicates_count),
            ("not bit-equal", result.wrong_count),
            ("out of order", result.unordered_count),
        )
    ]
    mark = "[green]ok[/]" if result.is_good else "[bold red]FAILED[/]"
    console.print(
        f"{mark} {state}; {result.received_count:,} messages received in {result.seconds:.1f} s: "
        + ", ".join(wrong)
    )
