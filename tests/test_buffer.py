"""The buffer boundary: what is borrowed, what is copied, what is released, what is noticed."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from vecmq import _native
from vecmq._payload import normalise

MIB = 1 << 20


@pytest.fixture
def mq(tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    with vecmq.sync.open(tmp_path / "mq", threshold_bytes=64 * 1024) as handle:
        yield handle


def address(buffer: object) -> int:
    return int(np.frombuffer(buffer, dtype=np.uint8).ctypes.data)  # type: ignore[call-overload]


def test_raw_frames_are_slices_of_the_callers_memory() -> None:
    array = np.random.default_rng(1).standard_normal((3000, 256), dtype=np.float32)
    view, dtype, itemsize, shape, _ = normalise(array)
    frames = _native.make_frames(view, dtype, itemsize, shape, bytes(16), 1, 1, MIB, "raw")
    assert len(frames) == 3
    position = array.ctypes.data
    for _fields, body in frames:
        assert address(body) == position
        position += len(body)
    assert position == array.ctypes.data + array.nbytes


def test_received_arrays_are_aligned_read_only_views(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    small, large = np.arange(100, dtype=np.float32), np.arange(MIB, dtype=np.float32)
    publisher.publish(small)
    publisher.publish(large)
    subscriber = mq.subscribe("t", group="g")
    received = [subscriber.fetch(1, timeout_s=10)[0] for _ in range(2)]
    assert [message.route for message in received] == ["queue", "nats"]
    for message, sent in zip(received, (small, large), strict=True):
        array = message.array()
        assert np.array_equal(array, sent)
        assert array.ctypes.data % 64 == 0
        assert array.ctypes.data == address(message.payload)
        assert not array.flags.writeable
        assert message.payload.readonly
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(TypeError):
            message.payload[0] = 1


def test_a_received_array_outlives_everything(tmp_path: Path) -> None:
    sent = np.arange(MIB, dtype=np.float32)
    with vecmq.sync.open(tmp_path / "mq") as mq:
        mq.publisher("t").publish(sent)
        array = mq.subscribe("t", group="g").fetch(timeout_s=10)[0].array()
    gc.collect()
    assert np.array_equal(array, sent)


@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
def test_payloads_are_released_after_the_receipt(mq: vecmq.sync.Handle, size_bytes: int) -> None:
    publisher = mq.publisher("t")
    payload = bytearray(size_bytes)
    array = np.zeros(size_bytes, dtype=np.uint8)
    before = sys.getrefcount(array)
    publisher.publish(payload)
    publisher.publish(array)
    gc.collect()
    assert sys.getrefcount(array) == before
    payload.append(1)  # a bytearray with an export refuses to be resized


def test_a_payload_that_changes_before_its_receipt_is_noticed(mq: vecmq.sync.Handle) -> None:
    """Another thread writes into the array all the time: a publish is refused or whole."""
    publisher = mq.publisher("t")
    array = np.zeros(8 * MIB, dtype=np.uint8)
    stop = threading.Event()

    def scribble() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            array[:] = value

    writer = threading.Thread(target=scribble)
    writer.start()
    refused = receipts = 0
    try:
        for _ in range(20):
            try:
                publisher.publish(array, timeout_s=20)
                receipts += 1
            except vecmq.BufferMutatedError:
                refused += 1
    finally:
        stop.set()
        writer.join()
    publisher.publish(b"end")
    subscriber = mq.subscribe("t", group="g")
    torn = delivered = 0
    while True:
        message = subscriber.fetch(1, timeout_s=20)[0]
        if bytes(message.payload[:3]) == b"end":
            break
        delivered += 1
        torn += len(np.unique(message.array())) > 2
    print(f"refused {refused}, receipts {receipts}, delivered {delivered}, torn {torn}")
    assert refused > 0
    assert delivered == receipts


def test_read_only_payloads_are_not_checked_twice(mq: vecmq.sync.Handle) -> None:
    array = np.arange(MIB, dtype=np.float32)
    array.flags.writeable = False
    receipt = mq.publisher("t").publish(array)
    assert receipt.payload_bytes == array.nbytes
    assert receipt.wire_bytes > array.nbytes
    assert receipt.frames_count == 4 or receipt.frames_count == 5
