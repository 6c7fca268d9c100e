"""What the client itself takes: CPU a GB against async-nats alone, and memory.

Publishing and receiving follow each other here, so that each is known by itself; the check of what
arrives is taken out of both sides. The server is no process of a client's.
"""

from __future__ import annotations

import statistics
from typing import Final

from compare import Figure, Goal, Group, Member, peer
from contest import NatsContext, Side, contest, own
from vecmq.bench.runner import MIB

MSGS: Final = 100
SIZE_BYTES: Final = 5 * MIB
GB: Final = 1e9
# The window of DESIGN.md: what may be in flight, in bytes.
WINDOW_BYTES: Final = 16 * MIB
ALLOWED_BYTES: Final = 32 * MIB

GOALS: Final = {
    "cpu-sent": Goal(1.2),
    "cpu-received": Goal(1.2),
    "memory-sent": Goal((WINDOW_BYTES + ALLOWED_BYTES) / MIB, unit=" MB", digits=0),
    "memory-received": Goal((WINDOW_BYTES + ALLOWED_BYTES) / MIB, unit=" MB", digits=0),
}


def cost(context: NatsContext) -> dict[str, Figure]:
    """Measures 5 MB x 100, published, then received."""
    count = context.count(MSGS, 4)
    mine = Side("cost", own("many"), SIZE_BYTES, count, kind="publish", context=context)
    theirs = Side(
        "cost-async-nats", peer("async-nats"), SIZE_BYTES, count, kind="publish", context=context
    )
    contest(context, [mine, theirs])
    figures = {}
    for row, key, checked in (
        ("cpu-sent", "publish_cpu_s", 0),
        ("cpu-received", "receive_cpu_s", 1),
    ):
        sides = [per_gb(side, key, checked) for side in (mine, theirs)]
        value = statistics.median(a / b for a, b in zip(*sides, strict=True))
        both = [f"{statistics.median(side):.2f}" for side in sides]
        figures[row] = Figure(value, f"{both[0]} against {both[1]} CPU s a GB")
    for row, key in (
        ("memory-sent", "publish_growth_bytes"),
        ("memory-received", "receive_growth_bytes"),
    ):
        worst = max(sample[key] for sample in mine.samples)
        note = f"median {mine.median(key) / MIB:.0f} MB, payloads not counted"
        figures[row] = Figure(worst / MIB, note)
    return figures


def per_gb(side: Member, key: str, checked: int) -> list[float]:
    """Gives CPU seconds a GB.

    Args:
        side: After its contest.
        key: Where they are in a sample.
        checked: 1: the check of what arrived is among them.

    Returns:
        A number for each round.
    """
    gigabytes = side.size_bytes * side.count / GB
    return [(one[key] - checked * one["verify_cpu_s"]) / gigabytes for one in side.samples]


GROUPS: Final = [Group(tuple(GOALS), cost)]
