"""Two results side by side: what became faster or slower, and what cannot be compared."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from vecmq.bench.report import add_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Change", "changes", "show", "warnings"]


@dataclass(frozen=True, slots=True)
class Change:
    """One case on one contender in both results.

    Attributes:
        case: Name of the case.
        contender: Name of the contender.
        before_s: Median seconds an operation in the first result; None: not there.
        after_s: The same of the second.
        verdict: "faster", "slower", "the same within noise", or why there is none.
    """

    case: str
    contender: str
    before_s: float | None
    after_s: float | None
    verdict: str

    @property
    def ratio(self) -> float | None:
        """Seconds after over seconds before."""
        return self.after_s / self.before_s if self.before_s and self.after_s else None


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Compare row by row.

    Args:
        before: A document.
        after: Another of the same command.

    Returns:
        A Change for each row of either, in the order of the first.
    """
    old, new = _rows(before), _rows(after)
    return [_change(key, old.get(key), new.get(key)) for key in {**old, **new}]


def warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say which conditions differ.

    Args:
        before: A document.
        after: Another.

    Returns:
        A line for each.
    """
    lines = []
    for key in ("cpu_model", "cpu_count", "kernel", "file_system", "python", "nats_server"):
        old, new = before["machine"].get(key), after["machine"].get(key)
        if old != new:
            lines.append(f"{key} differs: {old} before, {new} after")
    for key in sorted({*before["options"], *after["options"]} - {"ops", "warmup"}):
        old, new = before["options"].get(key), after["options"].get(key)
        if old != new and not key.startswith("crossovers"):
            lines.append(f"option {key} differs: {old} before, {new} after")
    return lines


def show(console: Console, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print the comparison.

    Args:
        console: Where data goes.
        before: A document.
        after: Another.
    """
    title = f"{after['command']}: {before['datetime']} and {after['datetime']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name, side in (
        *(("workload", "left"), ("contender", "left"), ("before\ns/op", "right")),
        *(("after\ns/op", "right"), ("ratio", "right"), ("verdict", "left")),
    ):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for change in changes(before, after):
        colour = {"faster": "green", "slower": "red"}.get(change.verdict, "")
        table.add_row(
            change.case,
            change.contender,
            _seconds(change.before_s),
            _seconds(change.after_s),
            "" if change.ratio is None else f"{change.ratio:.2f}",
            f"[{colour}]{change.verdict}[/]" if colour else change.verdict,
        )
    add_table(console, table)
    for line in warnings(before, after):
        console.print(f"[yellow]{line}[/]", highlight=False)
    console.print(
        "faster, slower: every operation of one result took less than every one of the other; "
        "runs of different times see a different machine, only rounds of one run are interleaved",
        highlight=False,
    )


def _rows(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (row["case"]["name"], row["contender"]): row for row in document["rows"] if row["samples"]
    }


def _change(
    key: tuple[str, str], before: dict[str, Any] | None, after: dict[str, Any] | None
) -> Change:
    if before is None or after is None:
        return Change(*key, _median(before), _median(after), "only in one of them")
    verdict = _verdict(before, after)
    return Change(*key, _median(before), _median(after), verdict)


def _verdict(before: dict[str, Any], after: dict[str, Any]) -> str:
    work = [
        {name: row["case"][name] for name in ("size_bytes", "count", "workload", "batch")}
        for row in (before, after)
    ]
    if work[0] != work[1]:
        return "not comparable: other work"
    if _levels(before) != _levels(after):
        return f"not comparable: {_levels(before)} against {_levels(after)}"
    old, new = _seconds_of(before), _seconds_of(after)
    if max(new) < min(old):
        return "faster"
    if min(new) > max(old):
        return "slower"
    return "the same within noise"


def _seconds_of(row: dict[str, Any]) -> list[float]:
    return [sample["seconds"] for sample in row["samples"]]


def _levels(row: dict[str, Any]) -> str:
    return ", ".join(sorted({level for sample in row["samples"] for level in sample["levels"]}))


def _median(row: dict[str, Any] | None) -> float | None:
    return statistics.median(_seconds_of(row)) if row else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
