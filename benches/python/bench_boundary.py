"""The boundary: what a call from Python into the core and back costs.

On the queue with small payloads, where the store takes little beside it.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import vecmq
from vector_tools import (
    BATCH_MSGS,
    KIB,
    assert_moves,
    matrix,
    note_bytes,
    opened,
    receive,
    vector,
    vectors,
)

pytestmark = pytest.mark.benchmark(group="boundary")

# Calls in one turn of the event loop: starting the loop costs more than one of them.
AWAITED = 1000
ROUNDS = 200


@pytest.mark.parametrize("kind", ["bytes", "read_only", "writable"])
def test_publish_call(benchmark: BenchmarkFixture, tmp_path: Path, kind: str) -> None:
    """One blocking call; a writable array is checked for changes as well."""
    array = vector(KIB)
    payload = {"bytes": array.tobytes(), "read_only": array, "writable": array.copy()}[kind]
    with opened(tmp_path, "queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        publisher.publish(payload)
        assert bytes(receive(subscriber, 1)[0].payload) == array.tobytes()
        benchmark(publisher.publish, payload)
    note_bytes(benchmark, KIB)


def test_publish_awaited_1000(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """1,000 awaited calls, one after the other."""
    payload = vector(KIB)
    path = tmp_path / "mq"
    loop = asyncio.new_event_loop()
    try:
        mq = loop.run_until_complete(vecmq.open(path, mode="queue"))
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")

        async def publish() -> int:
            for _ in range(AWAITED):
                last = await publisher.publish(payload)
            return last.seq

        async def receive_one() -> vecmq.Message:
            await publisher.publish(payload)
            return (await subscriber.fetch(1, timeout_s=10))[0]

        received = loop.run_until_complete(receive_one())
        assert np.array_equal(received.array(), payload)
        subscriber.close()
        assert benchmark(lambda: loop.run_until_complete(publish())) > AWAITED
        loop.run_until_complete(mq.close())
    finally:
        loop.close()
        shutil.rmtree(path, ignore_errors=True)
    note_bytes(benchmark, AWAITED * KIB)


def test_publish_rows_512(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """512 messages of 1 KiB in one call, packed; against publish_many in bench_queue.py."""
    rows = matrix(BATCH_MSGS, KIB)
    with opened(tmp_path, "queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        publisher.publish_rows(rows)
        received = receive(subscriber, BATCH_MSGS)
        assert all(np.array_equal(m.array(), row) for m, row in zip(received, rows, strict=True))
        receipt = benchmark(publisher.publish_rows, rows)
        assert receipt.rows_count == BATCH_MSGS
    note_bytes(benchmark, rows.nbytes)


@pytest.mark.parametrize("packed", [False, True], ids=["messages", "rows"])
def test_fetch_512(benchmark: BenchmarkFixture, tmp_path: Path, packed: bool) -> None:
    """512 messages of 1 KiB that lie in the log; each round's are published before its clock."""
    rows = matrix(BATCH_MSGS, KIB)
    payloads = list(rows)
    with opened(tmp_path, "queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        assert_moves(subscriber, publisher, payloads)
        last = 0

        def publish() -> None:
            nonlocal last
            subscriber.ack_through(last)
            if packed:
                last = publisher.publish_rows(rows).seq + BATCH_MSGS - 1
            else:
                last = publisher.publish_many(payloads)[-1].seq

        arguments = (BATCH_MSGS, 10.0)
        batch = benchmark.pedantic(  # type: ignore[no-untyped-call]
            subscriber.fetch, args=arguments, setup=publish, rounds=ROUNDS
        )
        assert np.array_equal(batch.array(), rows)
    note_bytes(benchmark, rows.nbytes)


def test_message_array(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    payload = vector(KIB)
    with opened(tmp_path, "queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        publisher.publish(payload)
        message = receive(subscriber, 1)[0]
        assert np.array_equal(benchmark(message.array), payload)
    note_bytes(benchmark, KIB)


def test_batch_array_512(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """512 messages that were published one by one, joined: one copy."""
    payloads = vectors(BATCH_MSGS, KIB)
    with opened(tmp_path, "queue") as mq:
        mq.publisher("t").publish_many(payloads)
        batch = mq.subscribe("t", "g").fetch(BATCH_MSGS, 10)
        assert np.array_equal(benchmark(batch.array), np.stack(payloads))
    note_bytes(benchmark, BATCH_MSGS * KIB)
