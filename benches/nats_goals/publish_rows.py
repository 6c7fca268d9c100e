"""Large messages from Python: stored until the last receipt, and until the last is received."""

from __future__ import annotations

from typing import Final

from compare import Figure, Goal, Group, peer, ratio
from contest import (
    LARGE,
    PYTHON_PEERS,
    NatsContext,
    Side,
    best,
    built,
    contest,
    in_window,
    own,
    window,
)

# By the size: against nats-py awaiting each, against the best with a window, against natsmq.
REACH: Final = {"5MB": (0.4, 0.65, 0.35), "1MB": (0.4, 0.7, 0.6), "64KB": (0.4, 0.65, 0.4)}

GOALS: Final = {
    f"{size}-{row}": Goal(limit)
    for size, limits in REACH.items()
    for row, limit in zip(
        ("publish-nats-py", "publish-window", "pubsub-natsmq"), limits, strict=True
    )
}


def published(size: str, size_bytes: int, full: int) -> Group:
    """Makes the rows of publishing alone.

    Args:
        size: Name of the size.
        size_bytes: Of a message.
        full: Messages at scale 1.

    Returns:
        The group.
    """

    def measure(context: NatsContext) -> dict[str, Figure]:
        count = context.count(full, 4)
        mine = Side(
            f"publish-{size}", own("many"), size_bytes, count, kind="publish", context=context
        )
        waiting = Side(
            f"nats-py-one-{size}",
            peer("nats-py"),
            size_bytes,
            count,
            batch=1,
            kind="publish",
            context=context,
        )
        others = []
        for one in built(PYTHON_PEERS):
            msgs = window(context, one.name, size_bytes, full)
            others.append(in_window(context, one.name, size_bytes, full, msgs))
        contest(context, [mine, waiting, *others])
        least = best(others)
        against = ratio(mine, least)
        return {
            f"{size}-publish-nats-py": ratio(mine, waiting),
            f"{size}-publish-window": Figure(against.value, f"{against.note}, {least.name}"),
        }

    return Group((f"{size}-publish-nats-py", f"{size}-publish-window"), measure)


def received(size: str, size_bytes: int, full: int) -> Group:
    """Makes the row against Milvus' natsmq, which has its server in its own process.

    Args:
        size: Name of the size.
        size_bytes: Of a message.
        full: Messages at scale 1.

    Returns:
        The group.
    """

    def measure(context: NatsContext) -> dict[str, Figure]:
        count = context.count(full, 4)
        mine = Side(f"pubsub-{size}", own("many"), size_bytes, count, context=context)
        theirs = Side(f"natsmq-{size}", peer("milvus-natsmq"), size_bytes, count, context=context)
        contest(context, [mine, theirs])
        return {f"{size}-pubsub-natsmq": ratio(mine, theirs)}

    return Group((f"{size}-pubsub-natsmq",), measure)


GROUPS: Final = [
    *(published(*one) for one in LARGE),
    *(received(*one) for one in LARGE),
]
