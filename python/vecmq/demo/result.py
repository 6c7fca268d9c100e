"""What the demo is asked to do, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import vecmq
from vecmq.demo import plan

if TYPE_CHECKING:
    from vecmq.demo.vectors import Corpus

__all__ = ["DemoOptions", "DemoResult", "Match", "RouteResult", "SizeResult", "summary"]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo is to do.

    Attributes:
        path: Directory of the stores and the ledger; None: a temporary one, without a ledger.
        is_resume: Continue what the directory holds; without a directory it means nothing.
        codec: Codec of the frames.
        limit: Items of the plan; None is all, or what the ledger says.
        seed: Seed of the plan; None is the usual one, or what the ledger says.
    """

    path: Path | None = None
    is_resume: bool = False
    codec: Literal["auto", "raw", "zstd", "planes", "pk3", "lz4"] = "raw"
    limit: int | None = None
    seed: int | None = None


@dataclass(slots=True)
class RouteResult:
    """What one route did in this run; lost and duplicates of all runs on the directory.

    Attributes:
        messages: Messages acknowledged.
        publish_s: Seconds spent from publish to receipt, summed.
        payload_bytes: Bytes handed in.
        wire_bytes: Bytes stored, headers included.
        latencies_s: Publish to receipt of each call, in seconds.
        lost: Acknowledged and not received.
        duplicates: Received twice.
    """

    messages: int = 0
    publish_s: float = 0.0
    payload_bytes: int = 0
    wire_bytes: int = 0
    latencies_s: list[float] = field(default_factory=list)
    lost: int = 0
    duplicates: int = 0

    def latency_s(self, share: float) -> float | None:
        """Give a percentile of publish to receipt (nearest rank).

        Args:
            share: 0.5 for p50, 0.99 for p99.

        Returns:
            Seconds; None when nothing was published.
        """
        ordered = sorted(self.latencies_s)
        return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


@dataclass(frozen=True, slots=True)
class SizeResult:
    """Where one kind of payload went in this run, and why the next one would go there.

    Attributes:
        kind: "control", "row", "block" or "batch".
        bytes_min: Smallest payload in bytes.
        bytes_max: Largest payload in bytes.
        calls: Publish calls by route.
        reason: The router's own words for the middle size, at the end of the run.
    """

    kind: plan.Kind
    bytes_min: int
    bytes_max: int
    calls: dict[str, int]
    reason: str


@dataclass(frozen=True, slots=True)
class Match:
    """A sentence near the query.

    Attributes:
        similarity: Cosine of the angle between both vectors, as received.
        sentence: The text.
    """

    similarity: float
    sentence: str


@dataclass(slots=True)
class DemoResult:
    """What came of a run. The counts of what was wrong are over all runs on the directory.

    Attributes:
        items_count: Items of the plan.
        published_count: Items acknowledged, in all runs.
        earlier_count: Items acknowledged before this run.
        crashes_count: Runs before this one, which ended before their end.
        seconds: This run's publishing and reading, in seconds.
        received_count: Messages read from the first one on.
        routes: By route.
        sizes: By kind of payload.
        query: Sentence that was asked for; None when no vector was received.
        nearest: Its nearest neighbours among what was received.
        wrong_count: Messages that are not bit-equal to what was published.
        unordered_count: Messages out of the order of publishing, and receipts with another seq.
        again_count: Items published again because a crash had left them without a receipt.
        is_interrupted: Ctrl-C came before the end.
    """

    items_count: int
    published_count: int = 0
    earlier_count: int = 0
    crashes_count: int = 0
    seconds: float = 0.0
    received_count: int = 0
    routes: dict[str, RouteResult] = field(default_factory=dict)
    sizes: list[SizeResult] = field(default_factory=list)
    query: str | None = None
    nearest: list[Match] = field(default_factory=list)
    wrong_count: int = 0
    unordered_count: int = 0
    again_count: int = 0
    is_interrupted: bool = False

    @property
    def lost_count(self) -> int:
        """Messages acknowledged and not received, over both routes."""
        return sum(route.lost for route in self.routes.values())

    @property
    def duplicates_count(self) -> int:
        """Messages received twice, over both routes."""
        return sum(route.duplicates for route in self.routes.values())

    @property
    def is_good(self) -> bool:
        """Nothing lost, doubled, changed or out of order, and all published unless interrupted."""
        return (
            self.lost_count
            == self.duplicates_count
            == self.wrong_count
            == self.unordered_count
            == 0
            and self.again_count <= self.crashes_count
            and (self.is_interrupted or self.published_count == self.items_count)
        )


def summary(result: DemoResult, options: DemoOptions, corpus: Corpus) -> dict[str, Any]:
    """Give the result as JSON values, schema "vecmq-demo-1".

    Args:
        result: What came of the run.
        options: What it was asked to do.
        corpus: Its vectors.

    Returns:
        Plain dicts, lists, strings and numbers.
    """
    return {
        "schema": "vecmq-demo-1",
        "build": vecmq.build_info(),
        "codec": options.codec,
        "sentences_count": len(corpus.sentences),
        "vectors_bytes": int(corpus.vectors.nbytes),
        "items_count": result.items_count,
        "published_count": result.published_count,
        "earlier_count": result.earlier_count,
        "crashes_count": result.crashes_count,
        "received_count": result.received_count,
        "seconds": result.seconds,
        "lost_count": result.lost_count,
        "duplicates_count": result.duplicates_count,
        "wrong_count": result.wrong_count,
        "unordered_count": result.unordered_count,
        "again_count": result.again_count,
        "is_interrupted": result.is_interrupted,
        "is_good": result.is_good,
        "routes": {
            name: {
                "messages": route.messages,
                "publish_s": route.publish_s,
                "payload_bytes": route.payload_bytes,
                "wire_bytes": route.wire_bytes,
                "latency_p50_s": route.latency_s(0.50),
                "latency_p99_s": route.latency_s(0.99),
                "lost": route.lost,
                "duplicates": route.duplicates,
            }
            for name, route in result.routes.items()
        },
        "sizes": [
            {
                "kind": size.kind,
                "bytes_min": size.bytes_min,
                "bytes_max": size.bytes_max,
                "calls": size.calls,
                "reason": size.reason,
            }
            for size in result.sizes
        ],
        "query": result.query,
        "nearest": [
            {"similarity": match.similarity, "sentence": match.sentence} for match in result.nearest
        ],
    }
