"""Latencies of an open loop as an HdrHistogram.

Messages are due at a fixed rate whether the ones before are done or not, and each latency counts
from the moment the message was due: a stall delays everything behind it, and all of that shows
(no coordinated omission).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from hdrh.histogram import HdrHistogram

__all__ = ["PERCENTILES", "Latency", "summarize"]

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
# 1 ns to 1 h with 3 digits.
HIGHEST_NS: Final = 3_600_000_000_000
DIGITS: Final = 3
# The curve of the picture: so many points each time the rest of the messages is halved.
TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies in nanoseconds.

    Attributes:
        count: Messages.
        percentiles: Latency by percentile (PERCENTILES).
        max_ns: The greatest.
        mean_ns: The mean.
        curve: (percentile, latency), ascending.
        encoded: The whole histogram (HdrHistogram V2, compressed, base64).
    """

    count: int
    percentiles: dict[float, int]
    max_ns: int
    mean_ns: float
    curve: list[tuple[float, int]]
    encoded: str

    def document(self) -> dict[str, Any]:
        """Give the values as JSON values."""
        return {
            "count": self.count,
            "percentiles_ns": {f"{key:g}": value for key, value in self.percentiles.items()},
            "max_ns": self.max_ns,
            "mean_ns": self.mean_ns,
            "curve_ns": [list(point) for point in self.curve],
            "hdrhistogram": self.encoded,
        }


def summarize(samples_ns: Iterable[Iterable[int]]) -> Latency:
    """Put the latencies of several operations into one histogram.

    Args:
        samples_ns: Latencies of each operation.

    Returns:
        Latency; all zero without a message.
    """
    histogram = HdrHistogram(1, HIGHEST_NS, DIGITS)
    for latencies in samples_ns:
        for value in latencies:
            histogram.record_value(max(value, 1))
    curve = [
        (point.percentile_level_iterated_to, int(point.value_iterated_to))
        for point in histogram.get_percentile_iterator(TICKS)
    ]
    return Latency(
        count=histogram.get_total_count(),
        percentiles={at: int(histogram.get_value_at_percentile(at)) for at in PERCENTILES},
        max_ns=int(histogram.get_max_value()),
        mean_ns=float(histogram.get_mean_value()),
        curve=curve,
        encoded=histogram.encode().decode(),
    )
