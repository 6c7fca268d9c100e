"""Mode "hybrid": two routes, one order. The threshold is fixed, so that every run sends alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vector_tools import (
    BATCH_MSGS,
    KIB,
    MIB,
    THRESHOLD_BYTES,
    Vector,
    assert_moves,
    note_bytes,
    opened,
    receive,
    vector,
    vectors,
)

pytestmark = pytest.mark.benchmark(group="hybrid")


def mixed() -> list[Vector]:
    """512 messages of 1 KiB, after every 64th one of 1 MiB."""
    payloads = []
    for number, small in enumerate(vectors(BATCH_MSGS, KIB), 1):
        payloads.append(small)
        if number % 64 == 0:
            payloads.append(vector(MIB, number))
    return payloads


@pytest.mark.parametrize(
    ("size_bytes", "route"), [(KIB, "queue"), (64 * KIB, "nats"), (MIB, "nats"), (5 * MIB, "nats")]
)
def test_publish(benchmark: BenchmarkFixture, tmp_path: Path, size_bytes: int, route: str) -> None:
    payload = vector(size_bytes)
    with opened(tmp_path, "hybrid", threshold_bytes=THRESHOLD_BYTES) as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        assert_moves(subscriber, publisher, [payload])
        receipt = benchmark(publisher.publish, payload)
        assert receipt.route == route
    note_bytes(benchmark, size_bytes)


def test_round_trip_mixed(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Small and large messages through both routes, received in publish order and acked."""
    payloads = mixed()
    with opened(tmp_path, "hybrid", threshold_bytes=THRESHOLD_BYTES) as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        assert_moves(subscriber, publisher, payloads)
        before = mq.stats()

        def move() -> int:
            publisher.publish_many(payloads)
            return len(receive(subscriber, len(payloads)))

        assert benchmark(move) == len(payloads)
        after = mq.stats()
        assert after["published_queue"] > before["published_queue"]
        assert after["published_nats"] > before["published_nats"]
    note_bytes(benchmark, sum(payload.nbytes for payload in payloads))


def test_explain(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    with opened(tmp_path, "hybrid") as mq:
        mq.publisher("t")
        assert benchmark(mq.explain, "t", MIB).route == "nats"
