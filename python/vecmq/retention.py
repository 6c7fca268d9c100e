"""How long messages are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vecmq.errors import ConfigError

__all__ = ["Retention"]

LIMIT_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits of what a topic keeps; None is no limit. The first limit that is met deletes.

    Attributes:
        age_ms_max: Milliseconds that a message is kept; on the queue 0 deletes it at the next
            look after its ack.
        bytes_max: Bytes that a topic keeps. The queue deletes its oldest messages beyond it; a
            stream refuses new ones (it never deletes what was acknowledged and not read).
        msgs_max: Messages that a topic keeps; as `bytes_max`.
        unacked: True: delete also what a subscription group has not acked yet. Affects the queue;
            a stream deletes by age alone, acked or not.

    Raises:
        ConfigError: A limit is neither None nor an int from 0 to 2^63 - 1.
    """

    age_ms_max: int | None = None
    bytes_max: int | None = None
    msgs_max: int | None = None
    unacked: bool = False

    def __post_init__(self) -> None:
        """Check the limits."""
        limits = (
            ("age_ms_max", self.age_ms_max, "ms"),
            ("bytes_max", self.bytes_max, "bytes"),
            ("msgs_max", self.msgs_max, "messages"),
        )
        for name, value, unit in limits:
            if value is None:
                continue
            is_int = isinstance(value, int) and not isinstance(value, bool)
            if not is_int or not 0 <= value <= LIMIT_MAX:
                raise ConfigError(
                    f"retention.{name}: expected None or 0 to {LIMIT_MAX} {unit}, got {value!r}"
                )
        if not isinstance(self.unacked, bool):
            raise ConfigError(f"retention.unacked: expected a bool, got {self.unacked!r}")
