"""The crate without Python against a bare vectored publisher that sends frames of the same size."""

from __future__ import annotations

from typing import Final, Literal

from compare import Figure, Goal, Group, peer, ratio
from contest import LARGE, ROOT, SMALL_MSGS, NatsContext, Side, contest
from vecmq.bench.contender import Contender
from vecmq.bench.runner import KIB

# Acknowledgements that the bare publisher has in flight, within 16 MiB.
ACKS_COUNT: Final = 4096
WORD_BYTES: Final = 8

Kind = Literal["pubsub", "publish"]
# Small messages until the last is received, large ones until the last receipt.
CASES: Final[tuple[tuple[str, int, int, Kind], ...]] = (
    ("1KB", KIB, SMALL_MSGS, "pubsub"),
    *((size, size_bytes, full, "publish") for size, size_bytes, full in LARGE),
)
GOALS: Final = {f"{size}-rust-vectored": Goal(1.1) for size, _, _, _ in CASES}


def floor() -> Contender:
    """Gives the crate's own worker, benches/nats_floor.rs.

    Returns:
        A contender.
    """
    command = ["cargo", "bench", "--locked", "--quiet", "--bench", "nats_floor"]
    return Contender("rust", (*command, "--manifest-path", str(ROOT / "Cargo.toml"), "--"))


def rust(size: str, size_bytes: int, full: int, kind: Kind) -> Group:
    """Makes the row of a size.

    Args:
        size: Its name.
        size_bytes: Of a message.
        full: Messages at scale 1.
        kind: What an operation is.

    Returns:
        The group.
    """

    def measure(context: NatsContext) -> dict[str, Figure]:
        count = context.count(full, 4)
        bare = peer("vectored")
        mine = Side(f"rust-{size}", floor(), size_bytes, count, kind=kind, context=context)
        contest(context, [mine], 1)
        frames = mine.samples.pop()["frames_count"]
        frame_bytes = max(1, size_bytes * count // frames // WORD_BYTES) * WORD_BYTES
        theirs = Side(
            f"vectored-{size}",
            bare,
            frame_bytes,
            frames,
            batch=ACKS_COUNT,
            kind=kind,
            context=context,
        )
        contest(context, [mine, theirs])
        against = ratio(mine, theirs)
        note = f"{against.note}, {frames:,} frames of {frame_bytes:,} bytes"
        return {f"{size}-rust-vectored": Figure(against.value, note)}

    return Group((f"{size}-rust-vectored",), measure)


GROUPS: Final = [rust(*case) for case in CASES]
