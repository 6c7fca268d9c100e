"""`make bench-nats`: the NATS route against its peers, a line a goal; see goals/command.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "goals"))

import command
import nats_rows
from contest import open_context

if __name__ == "__main__":
    goals = command.Goals(
        program="bench-nats",
        summary="The NATS route against its peers on one warm server, a line a goal.",
        groups=nats_rows.GROUPS,
        goals=nats_rows.GOALS,
        open_context=open_context,
    )
    sys.exit(command.main(goals, sys.argv[1:]))
