"""`make bench-queue`: the queue against its peers, a line a goal; see goals/command.py."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "goals"))

import command
import rows
from compare import Context

if __name__ == "__main__":
    goals = command.Goals(
        program="bench-queue",
        summary="The queue against its peers, a line a goal.",
        groups=rows.GROUPS,
        goals=rows.GOALS,
        open_context=lambda *options: nullcontext(Context(*options)),
    )
    sys.exit(command.main(goals, sys.argv[1:]))
