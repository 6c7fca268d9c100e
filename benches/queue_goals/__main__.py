"""`make bench-queue`: the queue against its peers, a line a goal.

    name   ratio   goal   met|missed

Everything is measured in this one run, the two sides of a ratio in turns, and a ratio is the median
over the rounds. What was met or missed is for people to judge: the exit code is 0 all the same, and
1 when a row could not be measured. A row whose peer is not built says so and is no failure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

import rows as definitions
from compare import Context, Figure, Missing
from vecmq.errors import Error

ROUNDS: Final = 5
NAME_COLUMNS: Final = 22


def main(arguments: list[str]) -> int:
    """Measures and prints.

    Args:
        arguments: Of the command line.

    Returns:
        Exit code.
    """
    names = [name for group in definitions.GROUPS for name in group.names]
    parser = argparse.ArgumentParser(prog="bench-queue", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the messages, 0.001 to 1"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted rounds, 1 to 100")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--path", type=Path, help="directory for the stores")
    chosen = parser.parse_args(arguments)
    if not 0.001 <= chosen.scale <= 1:
        parser.error(f"--scale: expected 0.001 to 1, got {chosen.scale}")
    if not 1 <= chosen.rounds <= 100:
        parser.error(f"--rounds: expected 1 to 100, got {chosen.rounds}")
    wanted = set(chosen.only or names)
    failed = False
    with tempfile.TemporaryDirectory(prefix="vecmq-bench-queue-", dir=chosen.path) as directory:
        context = Context(Path(directory), chosen.scale, chosen.rounds)
        for group in definitions.GROUPS:
            if wanted.isdisjoint(group.names):
                continue
            try:
                figures = group.measure(context)
            except Missing as missing:
                figures = {name: Figure(None, str(missing)) for name in group.names}
            except Error as error:
                figures = {name: Figure(None, f"failed: {error}") for name in group.names}
                failed = True
            for name in group.names:
                if name in wanted:
                    show(name, figures[name])
    return int(failed)


def show(name: str, figure: Figure) -> None:
    """Prints a row.

    Args:
        name: Its name.
        figure: What was measured.
    """
    goal = definitions.GOALS[name]
    line = f"{name:{NAME_COLUMNS}} {goal.verdict(figure)}"
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
