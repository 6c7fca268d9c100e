"""The command line of `make bench-queue` and `make bench-nats`: measures rows, prints a line each.

    name   ratio   goal   met|missed

Everything is measured in one run, the two sides of a ratio in turns, and a ratio is the median over
the rounds. What was met or missed is for people to judge: the exit code is 0 all the same, and 1
when a row could not be measured. A row whose peer is not built says so and is no failure. Ctrl-C
ends the run; the rows that were measured are there by then, and the code is 130.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compare import Context, Figure, Goal, Group, Missing, progress
from vecmq.errors import Error

ROUNDS: Final = 5
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Goals:
    """A set of rows.

    Attributes:
        program: Name of the command.
        summary: What it does, for --help.
        groups: Rows, in the order of the output.
        goals: By the rows' names.
        open_context: Makes ready what the rows need: (directory, scale, rounds).
    """

    program: str
    summary: str
    groups: Sequence[Group]
    goals: Mapping[str, Goal]
    open_context: Callable[[Path, float, int], AbstractContextManager[Context]]


def main(goals: Goals, arguments: list[str]) -> int:
    """Measures and prints.

    Args:
        goals: What to measure.
        arguments: Of the command line.

    Returns:
        Exit code.
    """
    chosen = parse(goals, arguments)
    wanted = set(chosen.only or goals.goals)
    measured: dict[str, Figure] = {}
    failed = False
    if chosen.path is not None:
        chosen.path.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f"vecmq-{goals.program}-", dir=chosen.path) as directory,
        goals.open_context(Path(directory), chosen.scale, chosen.rounds) as context,
    ):
        try:
            for group in goals.groups:
                if wanted.isdisjoint(group.names):
                    continue
                figures, is_good = measure(group, context)
                failed |= not is_good
                for name in group.names:
                    if name in wanted:
                        measured[name] = figures[name]
                        show(goals, name, figures[name])
        except KeyboardInterrupt:
            progress("interrupted: the rows above are complete")
            return EXIT_INTERRUPTED
        finally:
            if chosen.json is not None:
                document = to_values(goals, measured, context)
                chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(failed)


def parse(goals: Goals, arguments: list[str]) -> argparse.Namespace:
    """Reads the command line.

    Args:
        goals: What can be measured.
        arguments: The words.

    Returns:
        Values with the names of the options.
    """
    names = list(goals.goals)
    parser = argparse.ArgumentParser(prog=goals.program, description=goals.summary)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the messages, 0.001 to 1"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted rounds, 1 to 100")
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--path", type=Path, help="directory for the stores, made where it is none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, and the rows")
    chosen = parser.parse_args(arguments)
    if not 0.001 <= chosen.scale <= 1:
        parser.error(f"--scale: expected 0.001 to 1, got {chosen.scale}")
    if not 1 <= chosen.rounds <= 100:
        parser.error(f"--rounds: expected 1 to 100, got {chosen.rounds}")
    return chosen


def measure(group: Group, context: Context) -> tuple[dict[str, Figure], bool]:
    """Measures a group.

    Args:
        group: The rows.
        context: Of this run.

    Returns:
        A figure for each row, and whether they could be measured or need not be.
    """
    try:
        return group.measure(context), True
    except Missing as missing:
        return {name: Figure(None, str(missing)) for name in group.names}, True
    except Error as error:
        return {name: Figure(None, f"failed: {error}") for name in group.names}, False


def show(goals: Goals, name: str, figure: Figure) -> None:
    """Prints a row.

    Args:
        goals: All of them.
        name: Of the row.
        figure: What was measured.
    """
    width = max(len(name) for name in goals.goals)
    print(f"{name:{width}} {goals.goals[name].verdict(figure)}", flush=True)


def to_values(goals: Goals, measured: Mapping[str, Figure], context: Context) -> dict[str, Any]:
    """Gives what --json writes.

    Args:
        goals: All of them.
        measured: The rows so far.
        context: Of this run.

    Returns:
        JSON values.
    """
    rows = {
        name: {
            "value": figure.value,
            "goal": f"{goals.goals[name].side} {goals.goals[name].limit:g}",
            "note": figure.note,
        }
        for name, figure in measured.items()
    }
    options = {"scale": context.scale, "rounds": context.rounds}
    return {"options": options, "rows": rows, "samples": context.samples}
