"""Core NATS, nothing stored: 5 MB x 100 through the drop-in for nats-py."""

from __future__ import annotations

from typing import Final

from compare import Figure, Goal, Group, ratio
from contest import PYTHON_PEERS, NatsContext, Side, best, built, contest, own
from vecmq.bench.runner import MIB

# Bytes, as the peers publish them, and the same bytes as an array, which they cannot.
KINDS: Final = {"core": "core", "core-array": "array"}
GOALS: Final = {
    f"5MB-{row}-{other}": goal
    for row in KINDS
    for other, goal in (("python", Goal(0.7)), ("vectored", Goal(1.1)))
}
CORE_MSGS: Final = 100


def core(context: NatsContext) -> dict[str, Figure]:
    """Measures against the best Python client and a bare client with vectored writes."""
    count = context.count(CORE_MSGS, 4)
    others = {
        one.name: Side(f"core-{one.name}", one, 5 * MIB, count, kind="core", context=context)
        for one in built([*PYTHON_PEERS, "vectored"])
    }
    ours = {
        row: Side(f"vecmq-{row}", own(client), 5 * MIB, count, kind="core", context=context)
        for row, client in KINDS.items()
    }
    contest(context, [*ours.values(), *others.values()])
    figures = dict.fromkeys(GOALS, Figure(None, "not measured: run make peers"))
    python = [others[name] for name in PYTHON_PEERS if name in others]
    for row, mine in ours.items():
        if "vectored" in others:
            figures[f"5MB-{row}-vectored"] = ratio(mine, others["vectored"])
        if python:
            least = best(python)
            against = ratio(mine, least)
            note = f"{against.note}, {least.name}"
            figures[f"5MB-{row}-python"] = Figure(against.value, note)
    return figures


GROUPS: Final = [Group(tuple(GOALS), core)]
