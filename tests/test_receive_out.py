"""Receiving into the caller's memory: copies, damaged messages, a receive that is given up."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import uuid
from pathlib import Path

import nats
import numpy as np
import pytest

import vecmq
import vecmq.sync
from subscriber_tools import LONG_S
from test_bench_nats import GOALS, memcount
from vecmq._native import make_frames

SIZE = 3 << 20  # three frames
COUNT = 5

# The counter counts calls of 64 KiB and more.
RECEIVES = """
import sys, time
sys.path.insert(0, sys.argv[1])
import memcount
import numpy as np
import vecmq.sync

SIZE, COUNT, codec, own_memory = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6] == "1"

def settled():
    seen = -1
    while seen != (now := memcount.counted_bytes()):
        seen = now
        time.sleep(1)
    return seen

with vecmq.sync.open(sys.argv[2], "nats") as mq:
    subscriber = mq.subscribe("t", "g")
    out = np.zeros(SIZE // 4, "u4")
    # From now on it is known whether the caller has memory of his own.
    assert subscriber.receive(0.1, out=out if own_memory else None) is None
    publisher = mq.publisher("t", codec=codec)
    start = settled()
    for number in range(COUNT):
        publisher.publish(np.full(SIZE // 4, number, "u4"))
    came = settled()
    for number in range(COUNT):
        message = subscriber.receive(20, out=out)
        assert (out == number).all(), number
        message.ack()
    handed = memcount.counted_bytes()
    payload = bytes(message.payload)
    assert payload == out.tobytes()
    print(came - start, handed - came)
"""


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_frames_go_straight_into_the_callers_memory(tmp_path: Path, codec: str) -> None:
    library = memcount.build(tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    counts = []
    for own_memory in (0, 1):
        directory = tmp_path / str(own_memory)
        words = (GOALS, directory, SIZE, COUNT, codec, own_memory)
        done = subprocess.run(
            [sys.executable, "-c", RECEIVES, *map(str, words)],
            env=memcount.preloaded(library),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        counts.append([int(word) for word in done.stdout.split()])
    (came_joined, joined), (came_kept, kept) = counts
    payloads = SIZE * COUNT
    print(f"{codec}: read ahead {came_joined} + {joined}, into own memory {came_kept} + {kept}")
    # What was put together ahead is copied once more when it is handed out.
    assert joined == payloads
    if codec == "raw":
        assert kept == payloads
        # The client's read buffer grows in copies that differ from run to run.
        assert came_joined - came_kept > payloads * 3 // 4
    else:
        assert kept == 0


def numbered(number: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.full(SIZE // 4, number, np.uint32)


async def store_damaged(mq: vecmq.sync.Handle, damage: str, codec: str) -> int:
    """Put a group into the stream whose second frame is not what it was; its manifest's place."""
    assert mq.server is not None
    client = await nats.connect(mq.server.url, token=mq.server.token)
    producer, tile, stream_seq = uuid.uuid4(), 1 << 20, 0
    view = memoryview(numbered(2)).cast("B")
    frames = make_frames(view, None, 1, None, producer.bytes, 1, 1, tile, codec)
    for index, (headers, body) in enumerate(frames):
        is_manifest = index == len(frames) - 1
        subject = "t" if is_manifest else f"t.frames.{producer.hex}.1.1.{tile}"
        data = bytearray(body)
        if index == 1:
            if damage == "missing":
                continue
            if damage == "flipped":
                data[len(data) // 2] ^= 1
            else:
                del data[-1]
        ack = await client.jetstream().publish(subject, bytes(data), headers=dict(headers))
        stream_seq = ack.seq
    await client.close()
    return stream_seq


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_message_is_an_error_in_its_place(
    tmp_path: Path, damage: str, codec: vecmq.Codec
) -> None:
    """Frames are decoded in the caller's memory; what cannot be is an error, and the next comes."""
    with vecmq.sync.open(tmp_path, "nats") as mq:
        publisher = mq.publisher("t", codec=codec)
        subscriber, out = mq.subscribe("t", "g"), numbered(0)
        publisher.publish(numbered(1))
        stream_seq = asyncio.run(store_damaged(mq, damage, codec))
        publisher.publish(numbered(3))
        assert subscriber.receive(LONG_S, out=out) is not None
        assert (out == 1).all()
        if damage == "missing":
            # The server offers it again, lest its frames only be late.
            assert subscriber.receive(LONG_S, out=out) is not None
            assert (out == 3).all()
            return
        for _ in range(2):
            with pytest.raises(vecmq.CorruptError):
                subscriber.receive(LONG_S, out=out)
        subscriber.ack_through(stream_seq << 20)
        assert subscriber.receive(LONG_S, out=out) is not None
        assert (out == 3).all()


async def test_a_receive_that_is_cancelled_takes_no_message(tmp_path: Path) -> None:
    """Given up at any moment it leaves its memory alone, and the message is there for the next."""
    count, cancelled, got = 40, 0, list[int]()
    async with vecmq.open(tmp_path, "nats") as mq:
        publisher, subscriber = mq.publisher("t", codec="raw"), mq.subscribe("t", "g")
        sending = asyncio.create_task(
            publisher.publish_many([numbered(number) for number in range(count)])
        )
        given_up = list[np.ndarray[tuple[int], np.dtype[np.uint32]]]()
        while len(got) < count:
            out = numbered(count)
            receiving = asyncio.create_task(subscriber.receive(LONG_S, out=out))
            for _ in range(len(got) % 5):
                await asyncio.sleep(0)
            if len(got) % 2 and len(given_up) < 2 * count and receiving.cancel():
                with contextlib.suppress(asyncio.CancelledError):
                    message = await receiving
                if receiving.cancelled():
                    cancelled += 1
                    given_up.append(out.copy())
                    given_up.append(out)
                    continue
            message = await receiving
            assert message is not None
            assert (out == out[0]).all()
            got.append(int(out[0]))
            message.ack()
        await sending
        assert await subscriber.receive(0.3, out=numbered(0)) is None
    print(f"{cancelled} receives cancelled, {count} messages received once, in order")
    assert got == list(range(count))
    assert cancelled
    for before, after in zip(given_up[::2], given_up[1::2], strict=True):
        assert np.array_equal(before, after)
