"""Small messages of one call that are alike share an entry of the log; nobody can tell."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from vecmq.errors import BufferMutatedError, PayloadError

STALL_S = 10.0


def random(count: int, size_bytes: int) -> list[bytes]:
    source = np.random.default_rng(count * size_bytes)
    return [source.bytes(size_bytes) for _ in range(count)]


def receive(subscriber: vecmq.sync.Subscriber, count: int) -> list[vecmq.Message]:
    got: list[vecmq.Message] = []
    while len(got) < count:
        batch = subscriber.fetch(count - len(got), timeout_s=STALL_S)
        assert batch, f"{len(got)} of {count} messages came"
        got += batch
    return got


@pytest.mark.parametrize("size_bytes", [0, 1, 63, 64, 65, 1024, 32 * 1024 - 64, 32 * 1024])
def test_every_size_comes_back_in_order(tmp_path: Path, size_bytes: int) -> None:
    sent = random(150, size_bytes)
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        receipts = publisher.publish_many(sent)
        got = receive(subscriber, len(sent))
    assert [bytes(message.payload) for message in got] == sent
    assert [receipt.seq for receipt in receipts] == list(range(1, 151))
    assert [message.seq for message in got] == list(range(1, 151))
    assert [message.id for message in got] == [receipt.id for receipt in receipts]
    assert {(r.rows_count, r.frames_count, r.payload_bytes) for r in receipts} == {
        (1, 1, size_bytes)
    }
    assert all(receipt.wire_bytes >= size_bytes for receipt in receipts)


def test_what_differs_ends_a_run(tmp_path: Path) -> None:
    """Kinds, sizes, dtypes and shapes alternate in runs of one to five."""
    kinds: list[object] = [
        b"a" * 64,
        bytearray(b"b" * 64),
        memoryview(b"c" * 128),
        np.arange(16, dtype=np.float32),
        np.arange(16, dtype=np.int32),
        np.arange(16, dtype=np.float32).reshape(4, 4),
        np.arange(32, dtype=np.float16),
        np.arange(32, dtype=">f4"),
        np.arange(64, dtype=np.float32)[::2],
        np.float64(1.5),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        b"",
    ]
    order = np.random.default_rng(1).permutation(len(kinds) * 5) % len(kinds)
    sent = [kinds[kind] for kind in np.repeat(order, order % 5 + 1)]
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        publisher.publish_many(sent)
        got = receive(subscriber, len(sent))
        for payload, message in zip(sent, got, strict=True):
            if isinstance(payload, (np.ndarray, np.generic)):
                found = message.array()
                assert (found.dtype, found.shape) == (
                    payload.dtype.newbyteorder("="),
                    payload.shape,
                )
                assert np.array_equal(found, payload)
            else:
                assert message.dtype is None
                assert message.payload == payload


def test_headers_stay_with_their_messages(tmp_path: Path) -> None:
    sent = random(20, 64)
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        publisher.publish_many(sent[:10], {"a": "1"})
        publisher.publish_many(sent[10:])
        got = receive(subscriber, len(sent))
    assert [message.headers for message in got] == [{"a": "1"}] * 10 + [{}] * 10


def test_an_ack_in_the_middle_of_a_run_is_kept(tmp_path: Path) -> None:
    sent = random(100, 128)
    for start in (0, 37, 38, 99):
        with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
            if start == 0:
                mq.publisher("t").publish_many(sent)
            subscriber = mq.subscribe("t", "g")
            got = receive(subscriber, len(sent) - start)
            assert [bytes(message.payload) for message in got] == sent[start:]
            if start < 99:
                done = {0: 37, 37: 38, 38: 99}[start]
                subscriber.ack_through(done)
    assert start == 99


def test_a_refused_payload_leaves_nothing_of_its_call(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        for refused in ("text", [1, 2], (b"x", False, None, 1, None, 1, None), object()):
            with pytest.raises(PayloadError):
                publisher.publish_many([b"x" * 64, b"y" * 64, refused])
            with pytest.raises(PayloadError):
                publisher.publish(refused)
        assert not subscriber.fetch(10, timeout_s=0.05)


def test_a_run_that_changes_while_it_is_copied_is_refused_or_whole(tmp_path: Path) -> None:
    """A thread changes one array of each call; a reader finds every checksum right."""
    arrays = [np.zeros(4096, dtype=np.uint8) for _ in range(32)]
    changing, stop = arrays[17], threading.Event()

    def change() -> None:
        for value in itertools.cycle(range(256)):
            changing[:] = value
            if stop.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    stored = 0
    try:
        with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
            publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
            for _ in range(200):
                try:
                    stored += len(publisher.publish_many(arrays))
                except BufferMutatedError:
                    continue
            # A torn copy would be an error here.
            assert {len(message.payload) for message in receive(subscriber, stored)} <= {4096}
            assert not subscriber.fetch(1, timeout_s=0.05)
    finally:
        stop.set()
        thread.join()
