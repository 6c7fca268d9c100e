"""The same work again and again: does it get slower, does memory grow, does disk shrink."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from vecmq.bench.report import add_table
from vecmq.bench.runner import MIB, Result, Row

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show", "trend"]

STRETCHES_COUNT: Final = 10


def trend(row: Row) -> tuple[float, float]:
    """Compare the last tenth of the operations with the first.

    Args:
        row: A row with at least one operation.

    Returns:
        Seconds of the last over those of the first (medians), and by how many bytes the client's
        and the server's memory at the peak grew.
    """
    count = max(len(row.samples) // STRETCHES_COUNT, 1)
    first, last = row.samples[:count], row.samples[-count:]

    def median(samples: list[dict[str, float]], *keys: str) -> float:
        return statistics.median(sum(sample[key] for key in keys) for sample in samples)

    peaks = ("client_peak_bytes", "server_peak_bytes")
    return (
        median(last, "seconds") / median(first, "seconds"),
        median(last, *peaks) - median(first, *peaks),
    )


def show(console: Console, result: Result) -> None:
    """Print how each contender went on.

    Args:
        console: Where data goes.
        result: A soak.
    """
    table = Table(
        title="Over time, a tenth of the run each line",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("contender", no_wrap=True)
    for name in (
        *("operations", "messages", "s/op\nmedian", "s/op\nmax", "client\npeak MB"),
        *("server\npeak MB", "disk MB"),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.finished:
        for line in _lines(row):
            table.add_row(*line)
        table.add_section()
    add_table(console, table)
    for row in result.finished:
        slower, grown_bytes = trend(row)
        console.print(
            f"{row.contender.name}: {len(row.samples):,} operations, "
            f"{len(row.samples) * row.case.count:,} messages; the last tenth took {slower:.2f} x "
            f"the time of the first, memory changed by {grown_bytes / MIB:+,.0f} MB",
            highlight=False,
        )
    console.print()


def _lines(row: Row) -> list[list[str]]:
    step = max(len(row.samples) // STRETCHES_COUNT, 1)
    lines = []
    for first in range(0, len(row.samples), step):
        samples = row.samples[first : first + step]
        seconds = [sample["seconds"] for sample in samples]
        lines.append(
            [
                row.contender.name if first == 0 else "",
                f"{first + 1}-{first + len(samples)}",
                f"{len(samples) * row.case.count:,}",
                f"{statistics.median(seconds):.3f}",
                f"{max(seconds):.3f}",
                f"{max(sample['client_peak_bytes'] for sample in samples) / MIB:,.0f}",
                f"{max(sample['server_peak_bytes'] for sample in samples) / MIB:,.0f}",
                f"{samples[-1]['allocated_bytes'] / MIB:,.0f}",
            ]
        )
    return lines
