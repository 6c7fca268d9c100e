"""Runs workers in turns and compares what they took."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vecmq.bench.contender import Contender, find_peers
from vecmq.bench.process import BenchError, Worker
from vecmq.bench.runner import FAULTS
from vecmq.bench.worker import Kind, Spec

Sample = dict[str, Any]


class Missing(Exception):  # noqa: N818, it is no failure
    """A row cannot be measured here; the message stands in its place."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured for a row.

    Attributes:
        value: The ratio, or the absolute figure; None: there is none.
        note: Why there is none, or what the two sides took.
    """

    value: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to reach.

    Attributes:
        limit: In the figure's unit.
        side: Whether that is the most or the least.
        unit: Written behind both.
        digits: After the point.
    """

    limit: float
    side: Literal["<=", ">="] = "<="
    unit: str = ""
    digits: int = 2

    def verdict(self, figure: Figure) -> str:
        """Writes a row but its name.

        Args:
            figure: What was measured.

        Returns:
            Figure, goal, and whether it is met; or why there is no figure.
        """
        goal = f"{self.side} {self.limit:g}{self.unit}"
        if figure.value is None:
            return f"{'-':>9}  {goal:>10}  {figure.note}"
        # What is shown is what is judged.
        shown = round(figure.value, self.digits)
        is_met = shown <= self.limit if self.side == "<=" else shown >= self.limit
        verdict = "met" if is_met else "missed"
        measured = f"{shown:.{self.digits}f}{self.unit}"
        return f"{measured:>9}  {goal:>10}  {verdict:6}  {figure.note}".rstrip()


@dataclass(frozen=True, slots=True)
class Context:
    """How this run measures.

    Attributes:
        directory: For stores; each group makes its own below.
        scale: Share of the messages.
        rounds: Counted rounds.
        numbers: Of operations; none comes twice, so that no two share a topic.
        samples: Everything that was measured, by the side's name.
    """

    directory: Path
    scale: float
    rounds: int
    numbers: Iterator[int] = field(default_factory=itertools.count)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def count(self, full: int, least: int = 64) -> int:
        """Says how many messages an operation has.

        Args:
            full: At scale 1.
            least: At any scale.

        Returns:
            Messages.
        """
        return max(least, round(full * self.scale))


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together.

    Attributes:
        names: Of the rows.
        measure: Measures them.
    """

    names: tuple[str, ...]
    measure: Callable[[Any], dict[str, Figure]]


@dataclass(slots=True)
class Member:
    """One side of a comparison.

    Attributes:
        name: For its directory and the progress.
        contender: What to start.
        size_bytes: Of a message.
        count: Messages of an operation.
        batch: Messages a call; None: what is best.
        publishers: See docs/bench-workers.md; "grown" finds so many messages on disk.
        workload: See docs/bench-workers.md.
        samples: What each counted operation took.
    """

    name: str
    contender: Contender
    size_bytes: int
    count: int
    batch: int | None = None
    publishers: int = 1
    workload: Kind = "pubsub"
    samples: list[Sample] = field(default_factory=list)

    def spec(self, directory: Path) -> Spec:
        """Makes the first line of the worker.

        Args:
            directory: Of the group.

        Returns:
            The spec.
        """
        return Spec(
            contender=self.contender.name,
            workload=self.workload,
            size_bytes=self.size_bytes,
            count=self.count,
            path=str(directory / self.name),
            batch=self.batch,
            publishers=self.publishers,
        )

    def median(self, key: str) -> float:
        """Gives the median of a number.

        Args:
            key: Its name in the samples.

        Returns:
            Over the counted operations.
        """
        return float(statistics.median(sample[key] for sample in self.samples))


def peer(name: str) -> Contender:
    """Finds a peer.

    Args:
        name: As `make peers` calls it.

    Returns:
        The peer.

    Raises:
        Missing: It is not built.
    """
    found = find_peers([name])[0]
    if found.missing is not None:
        raise Missing("not measured: run make peers")
    return found


def interleave(context: Context, members: Sequence[Member], rounds: int | None = None) -> None:
    """Runs A B C A B C; the first round warms up and is not counted.

    Args:
        context: Of this run.
        members: Get their samples.
        rounds: Other than the context's.

    Raises:
        BenchError: A worker failed, or did not receive what was sent.
    """
    directory = context.directory / members[0].name
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(one.contender, one.spec(directory))) for one in members
        ]
        for number in range(1 + (rounds or context.rounds)):
            for member, worker in zip(members, workers, strict=True):
                sample = worker.run(next(context.numbers))
                if any(sample.get(fault) for fault in FAULTS):
                    counts = {fault: sample.get(fault) for fault in FAULTS}
                    raise BenchError(f"{member.name}: {counts}")
                progress(f"{member.name} {number}: {sample['seconds']:.3f} s")
                if number > 0:
                    member.samples.append(sample)
                    kept = {key: value for key, value in sample.items() if key != "points"}
                    context.samples.setdefault(member.name, []).append(kept)


def ratio(mine: Member, theirs: Member, key: str = "seconds") -> Figure:
    """Compares two sides round by round.

    Args:
        mine: Ours.
        theirs: The peer's.
        key: What is compared.

    Returns:
        The median of the rounds' ratios.
    """
    both = zip(mine.samples, theirs.samples, strict=True)
    value = float(statistics.median(a[key] / b[key] for a, b in both))
    unit, scale = ("us", 1e3) if key.endswith("_ns") else ("s", 1)
    taken = [f"{digits(side.median(key) / scale)}" for side in (mine, theirs)]
    return Figure(value, f"{taken[0]} against {taken[1]} {unit}")


def digits(value: float) -> str:
    """Writes a number with three digits.

    Args:
        value: The number.

    Returns:
        Text.
    """
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def progress(text: str) -> None:
    """Says on stderr what was done.

    Args:
        text: A line.
    """
    print(text, file=sys.stderr, flush=True)
