"""1 KB x 50,000 from Python: one `publish` each, until the last is received."""

from __future__ import annotations

from typing import Final

from compare import Figure, Goal, Group, Missing, peer, progress, ratio
from contest import SMALL_MSGS, NatsContext, Side, contest, own
from vecmq.bench.runner import KIB

# Acknowledgements that async-nats has in flight.
ACKS_COUNT: Final = 4096

GOALS: Final = {"1KB-async-nats": Goal(0.25), "1KB-nats-py": Goal(0.08)}


def small(context: NatsContext) -> dict[str, Figure]:
    """Measures against async-nats and nats-py's publish_async, one JetStream message each."""
    count = context.count(SMALL_MSGS)
    mine = Side("each", own("each"), KIB, count, context=context)
    theirs = {}
    for name, batch in (("async-nats", ACKS_COUNT), ("nats-py", None)):
        try:
            side = Side(f"{name}-1KB", peer(name), KIB, count, batch=batch, context=context)
        except Missing as missing:
            progress(f"{name}: {missing}")
        else:
            theirs[name] = side
    contest(context, [mine, *theirs.values()])
    unmeasured = Figure(None, "not measured: run make peers")
    return {
        f"1KB-{name}": ratio(mine, theirs[name]) if name in theirs else unmeasured
        for name in ("async-nats", "nats-py")
    }


GROUPS: Final = [Group(("1KB-async-nats", "1KB-nats-py"), small)]
