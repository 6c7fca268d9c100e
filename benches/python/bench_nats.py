"""Mode "nats": JetStream on an embedded nats-server, level `stored` (the PubAck came)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vector_tools import (
    BATCH_MSGS,
    KIB,
    MIB,
    assert_moves,
    note_bytes,
    opened,
    receive,
    vector,
    vectors,
)

pytestmark = pytest.mark.benchmark(group="nats")


@pytest.mark.parametrize("size_bytes", [KIB, 64 * KIB, MIB, 5 * MIB])
def test_publish(benchmark: BenchmarkFixture, tmp_path: Path, size_bytes: int) -> None:
    """One at a time: every call waits for its PubAck."""
    payload = vector(size_bytes)
    with opened(tmp_path, "nats") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        assert_moves(subscriber, publisher, [payload])
        receipt = benchmark(publisher.publish, payload)
        assert receipt.route == "nats"
    note_bytes(benchmark, size_bytes)


def test_publish_512_at_once(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    payloads = vectors(BATCH_MSGS, KIB)
    with opened(tmp_path, "nats") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        assert_moves(subscriber, publisher, payloads)
        receipts = benchmark(publisher.publish_many, payloads)
        assert len(receipts) == BATCH_MSGS
    note_bytes(benchmark, BATCH_MSGS * KIB)


@pytest.mark.parametrize(("count", "size_bytes"), [(BATCH_MSGS, KIB), (16, MIB), (4, 5 * MIB)])
def test_round_trip(
    benchmark: BenchmarkFixture, tmp_path: Path, count: int, size_bytes: int
) -> None:
    """Published, received and acked."""
    payloads = vectors(count, size_bytes)
    with opened(tmp_path, "nats") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        assert_moves(subscriber, publisher, payloads)

        def move() -> int:
            publisher.publish_many(payloads)
            return len(receive(subscriber, count))

        assert benchmark(move) == count
    note_bytes(benchmark, count * size_bytes)
