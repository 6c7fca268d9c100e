"""Topics: create, list, info, purge, delete, retention; what lies in the stream goes too."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from vecmq.bench.measure import disk_use

LONG_S = 20.0
MIB = 1 << 20


@pytest.fixture(params=["queue", "hybrid"])
def handle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    with vecmq.sync.open(tmp_path, request.param) as opened:
        yield opened


def disk_bytes(path: Path) -> int:
    # The database removes files in the background.
    return disk_use(path).apparent_bytes


def test_info_counts_what_is_there(handle: vecmq.sync.Handle) -> None:
    handle.create_topic("t")
    handle.create_topic("t")
    empty = handle.topic_info("t")
    assert (empty.first_seq, empty.next_seq, empty.messages, empty.size_bytes) == (1, 1, 0, 0)
    assert (empty.first_time_ms, empty.last_time_ms, empty.groups) == (None, None, [])
    handle.publisher("t").publish_many([b"x" * 100] * 10 + [bytes(50_000)])
    handle.subscribe("t", "g").close()
    info = handle.topic_info("t")
    assert (info.messages, info.open, info.retention) == (11, 0, None)
    assert info.size_bytes >= 10 * 100 + 50_000
    assert info.file_bytes >= 50_000
    assert [(group.name, group.lag) for group in info.groups] == [("g", 11)]
    assert handle.topics() == ["t"]
    with pytest.raises(vecmq.TopicNotFoundError):
        handle.topic_info("other")
    with pytest.raises(vecmq.InvalidNameError):
        handle.create_topic("a b")


def test_purge_deletes_messages_and_keeps_seqs(handle: vecmq.sync.Handle) -> None:
    publisher = handle.publisher("t")
    publisher.publish_many([b"x"] * 5 + [bytes(3 * MIB)] * 3)
    subscriber = handle.subscribe("t", "g")
    assert subscriber.fetch(2, timeout_s=LONG_S)
    assert handle.purge_topic("t").messages == 8
    info = handle.topic_info("t")
    assert (info.first_seq, info.next_seq, info.messages, info.size_bytes) == (9, 9, 0, 0)
    assert info.file_bytes == 0
    assert handle.groups("t")[0].lag == 0
    assert publisher.publish(b"new").seq == 9
    large = publisher.publish(np.arange(MIB, dtype="f4"))
    assert large.seq == 10
    again = subscriber.fetch(1, timeout_s=LONG_S) + subscriber.fetch(1, timeout_s=LONG_S)
    assert [message.seq for message in again] == [9, 10]
    assert again[1].array()[-1] == MIB - 1
    assert handle.purge_topic("t").messages == 2
    assert handle.purge_topic("t").messages == 0


def test_delete_ends_handles_and_the_name_is_free(handle: vecmq.sync.Handle) -> None:
    publisher = handle.publisher("t")
    publisher.publish_many([b"old"] * 5 + [bytes(3 * MIB)] * 3)
    subscriber = handle.subscribe("t", "g")
    (first,) = subscriber.fetch(1, timeout_s=LONG_S)
    handle.delete_topic("t")
    assert handle.topics() == []
    for gone in (
        lambda: handle.topic_info("t"),
        lambda: handle.delete_topic("t"),
        lambda: publisher.publish(b"x"),
        lambda: subscriber.fetch(10, timeout_s=LONG_S) and subscriber.fetch(10, timeout_s=0.1),
        first.ack,
    ):
        with pytest.raises(vecmq.TopicNotFoundError):
            gone()
    subscriber.close()
    again = handle.publisher("t")
    receipts = again.publish_many([b"new", bytes(3 * MIB)])
    assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == [(1, False), (2, False)]
    fresh = handle.subscribe("t", "g")
    got = fresh.fetch(1, timeout_s=LONG_S) + fresh.fetch(1, timeout_s=LONG_S)
    assert [bytes(message.payload) for message in got] == [b"new", bytes(3 * MIB)]


def test_a_deleted_topic_is_gone_after_a_reopen(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq:
        mq.publisher("a").publish_many([bytes(50_000)] * 100)
        mq.publisher("b").publish(b"stays")
        mq.delete_topic("a")
        assert disk_bytes(tmp_path) < 2 * MIB
    with vecmq.sync.open(tmp_path, "queue") as mq:
        assert mq.topics() == ["b"]
        mq.publisher("a").publish(b"x")
        assert mq.topic_info("a").messages == 1
        assert mq.topic_info("b").messages == 1


@pytest.mark.parametrize(
    ("retention", "kept_msgs_max"),
    [
        (vecmq.Retention(msgs_max=500), 500 + 2 * 1100),
        (vecmq.Retention(bytes_max=2 * MIB), 3 * 1100 + 1100),
        (vecmq.Retention(age_ms_max=0), 2 * 1100),
    ],
)
def test_retention_deletes_what_is_acked_and_shrinks_the_disk(
    tmp_path: Path, retention: vecmq.Retention, kept_msgs_max: int
) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq:
        mq.create_topic("t", retention)
        mq.create_topic("other")
        rows = np.zeros((20_000, 256), "f4")
        mq.publisher("t").publish_rows(rows)
        for _ in range(8):
            mq.publisher("t").publish_many([bytes(64 << 10)] * 200)
        mq.publisher("other").publish_rows(rows[:2_000])
        subscriber = mq.subscribe("t", "g")
        assert mq.retain() == vecmq.Deleted(0, 0), "nothing is acked"
        full = disk_bytes(tmp_path)
        subscriber.ack_through(21_000)
        deleted = mq.retain()
        info = mq.topic_info("t")
        # So much was published that retention runs by itself too, and takes its share.
        assert deleted.messages <= 21_600 - info.messages == info.first_seq - 1
        assert info.first_seq <= 21_001, "unacked messages stay"
        subscriber.ack_through(21_600)
        mq.retain()
        info = mq.topic_info("t")
        assert info.messages <= kept_msgs_max
        assert mq.topic_info("other").messages == 2_000
        small = disk_bytes(tmp_path)
        print(f"disk {full} -> {small} bytes, messages 21600 -> {info.messages}")
        # What may stay beyond the limit: the value file that is being written, of 32 MiB.
        assert full > 100 * MIB
        assert small < info.size_bytes + 40 * MIB
    with vecmq.sync.open(tmp_path, "queue") as mq:
        assert dataclasses.replace(mq.topic_info("t"), groups=info.groups) == info
        assert info.retention == retention
        mq.set_retention("t", None)
        assert mq.topic_info("t").retention is None
        with pytest.raises(vecmq.ConfigError):
            mq.set_retention("t", {"msgs_max": 1})  # type: ignore[arg-type]
        with pytest.raises(vecmq.TopicNotFoundError):
            mq.set_retention("none", retention)


async def test_retention_runs_by_itself(tmp_path: Path) -> None:
    retention = vecmq.Retention(bytes_max=8 * MIB, unacked=True)
    async with vecmq.open(tmp_path, "queue", retention=retention) as mq:
        publisher = mq.publisher("t")
        async with asyncio.timeout(LONG_S * 2):
            while mq.topic_info("t").first_seq == 1:
                await publisher.publish_many([bytes(256 << 10)] * 16)
                await asyncio.sleep(0.01)
        assert (await mq.purge_topic("t")).messages > 0
        assert (await mq.retain()).messages == 0
        await mq.delete_topic("t")
