"""The four workloads of the Milvus blog's Table 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vecmq.bench.runner import KIB, MIB, Case
from vecmq.errors import ConfigError

__all__ = ["REFERENCE", "WORKLOADS", "Workload", "cases"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A row of the table.

    Attributes:
        name: "5 MB".
        size_bytes: Bytes of a message.
        count: Messages of a full operation.
        natsmq_s: Published seconds of Milvus' natsmq for the full operation (median of 5).
        rocksmq_s: The same of its RocksMQ.
    """

    name: str
    size_bytes: int
    count: int
    natsmq_s: float
    rocksmq_s: float


# The reference figures: Milvus' own Go packages v2.5.15 on ext4, on another, busy machine of the
# same kind. Constants to look at, not a measurement of this run.
WORKLOADS: Final = (
    Workload("5 MB", 5 * MIB, 100, 2.77, 3.43),
    Workload("1 MB", MIB, 500, 1.31, 2.35),
    Workload("64 KB", 64 * KIB, 10_000, 2.81, 5.32),
    Workload("1 KB", KIB, 50_000, 3.77, 1.23),
)
REFERENCE: Final = (
    "reference, not of this run: natsmq / RocksMQ of Milvus v2.5.15 on another, busy machine of "
    "the same kind, s/op of the full counts: "
    + "; ".join(f"{one.name} {one.natsmq_s:.2f} / {one.rocksmq_s:.2f}" for one in WORKLOADS)
)


def cases(scale: float = 1.0, batch: int | None = None) -> tuple[Case, ...]:
    """Make the cases of the table.

    Args:
        scale: Share of the message counts, > 0 and <= 100.
        batch: Messages a call; None: what is best in each client.

    Returns:
        A case a workload; each has one message at least.

    Raises:
        ConfigError: The scale is out of its range.
    """
    if not 0 < scale <= 100:  # NaN fails this too
        raise ConfigError(f"scale: expected > 0 and <= 100, got {scale}")
    return tuple(
        Case(one.name, one.size_bytes, max(1, round(one.count * scale)), batch=batch)
        for one in WORKLOADS
    )
