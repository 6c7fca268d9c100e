"""Receiving in mode nats: whole or not at all, given back, moved, bounded, into own memory."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import nats
import numpy as np
import pytest

import vecmq
import vecmq.sync
from server_tools import wait_until
from subscriber_tools import LONG_S, fetch_all
from vecmq._native import make_frames

LARGE = 3 << 20  # three frames


@pytest.fixture
def mq(tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    with vecmq.sync.open(tmp_path, "nats") as opened:
        yield opened


def beside(mq: vecmq.sync.Handle, **options: object) -> vecmq.sync.Handle:
    """Another handle on the same server."""
    assert mq.server is not None
    own = vecmq.NatsOptions(mq.server.url, token=mq.server.token)
    return vecmq.sync.open(mode="nats", nats=own, **options)  # type: ignore[arg-type]


def large(number: int, size: int = LARGE) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.arange(number, number + size // 4, dtype=np.uint32)


def numbers(messages: list[vecmq.Message]) -> list[int]:
    return [int(message.array()[0]) for message in messages]


def test_workers_of_a_group_share_whole_messages(mq: vecmq.sync.Handle) -> None:
    count, sizes = 90, (LARGE, 40, 200_000)
    got: list[list[int]] = [[], [], []]
    deadline = time.monotonic() + 60

    def is_missing() -> bool:
        return sum(map(len, got)) < count and time.monotonic() < deadline

    def work(own: list[int]) -> None:
        with mq.subscribe("t", "g") as subscriber:
            # A second without a message is the end when all are there.
            while (batch := subscriber.fetch(4, timeout_s=1.0)) or is_missing():
                for message in batch:
                    number = int(message.array()[0])
                    size = sizes[number % len(sizes)]
                    assert np.array_equal(message.array(), large(number, size))
                    own.append(number)
                batch.ack()

    workers = [threading.Thread(target=work, args=(own,)) for own in got]
    for worker in workers:
        worker.start()
    publisher = mq.publisher("t")
    publisher.publish_many([large(n, sizes[n % len(sizes)]) for n in range(count)])
    for worker in workers:
        worker.join()
    assert sorted(number for own in got for number in own) == list(range(count))
    print(f"workers that got something: {sum(bool(own) for own in got)}, messages {count}, torn 0")


def test_ack_nak_term_and_in_progress(mq: vecmq.sync.Handle) -> None:
    for number in range(5):
        mq.publisher("t").publish(large(number, LARGE if number % 2 else 40))
    subscriber = mq.subscribe("t", "g", ack_wait_s=2.0)
    acked, given_back, ended, kept, forgotten = fetch_all(subscriber, 5)
    done = threading.Event()

    def keep() -> None:
        while not done.wait(0.2):
            kept.in_progress()

    keeping = threading.Thread(target=keep, daemon=True)
    keeping.start()
    acked.ack()
    ended.term()
    given_back.nak()
    (again,) = fetch_all(subscriber, 1)
    assert (again.seq, again.deliveries) == (given_back.seq, 2)
    again.ack()
    (due,) = fetch_all(subscriber, 1)
    assert (due.seq, due.deliveries) == (forgotten.seq, 2)
    due.ack()
    assert subscriber.fetch(1, timeout_s=3.0) == []
    done.set()
    keeping.join()
    (due,) = fetch_all(subscriber, 1)
    assert due.seq == kept.seq
    due.ack()
    subscriber.close()
    assert mq.subscribe("t", "g").fetch(1, timeout_s=1.5) == []


def test_what_a_closed_subscriber_had_is_anothers_at_once(mq: vecmq.sync.Handle) -> None:
    count = 60
    mq.publisher("t").publish_many(
        [large(n, LARGE if n % 20 == 0 else 200_000) for n in range(count)]
    )
    first = mq.subscribe("t", "g", ack_wait_s=3600)
    for message in fetch_all(first, 10)[:5]:
        message.ack()
    first.close()
    # Far sooner than the wait of an hour: what was in hand, read ahead and on the way.
    again = fetch_all(mq.subscribe("t", "g"), count - 5)
    assert sorted(numbers(again)) == list(range(5, count))


def test_acks_before_a_close_count(tmp_path: Path) -> None:
    count = 2_000
    with vecmq.sync.open(tmp_path, "nats") as mq:
        publisher = mq.publisher("t")
        for number in range(0, count, 500):
            publisher.publish_many([large(n, 2_000) for n in range(number, number + 500)])
        # Longer than it takes to fetch all of them; the wait below is longer still.
        messages = fetch_all(mq.subscribe("t", "g", ack_wait_s=3.0), count)
        assert numbers(messages) == list(range(count))
        for message in messages:
            message.ack()
    with vecmq.sync.open(tmp_path, "nats") as mq:
        assert mq.subscribe("t", "g").fetch(1, timeout_s=4.5) == []


def test_what_waits_for_its_subscriber_is_not_delivered_again(mq: vecmq.sync.Handle) -> None:
    mq.publisher("t").publish_many([large(n, LARGE) for n in range(8)])
    slow = mq.subscribe("t", "g", ack_wait_s=1.5)
    (first,) = fetch_all(slow, 1)
    first.ack()
    # What the server has not sent yet would be the other's.
    wait_until(lambda: [one.handed_out for one in mq.groups("t")] == [7])
    other = mq.subscribe("t", "g")
    assert other.fetch(8, timeout_s=4.0) == []
    rest = fetch_all(slow, 7)
    assert [message.deliveries for message in rest] == [1] * 7


def test_seek_by_seq(mq: vecmq.sync.Handle) -> None:
    receipts = mq.publisher("t").publish_many([large(n, 40_000) for n in range(20)])
    subscriber = mq.subscribe("t", "g")
    stale = fetch_all(subscriber, 20)
    for message in stale[:10]:
        message.ack()
    subscriber.seek(receipts[4].seq)
    # What was delivered before the seek says nothing about what comes now.
    stale[15].ack()
    assert numbers(fetch_all(subscriber, 16)) == list(range(4, 20))
    subscriber.seek(receipts[4].seq, inclusive=False)
    assert numbers(fetch_all(subscriber, 15)) == list(range(5, 20))
    subscriber.seek("new")
    mq.publisher("t").publish(large(99))
    assert numbers(fetch_all(subscriber, 1)) == [99]
    subscriber.seek("first")
    replay = fetch_all(subscriber, 21)
    assert numbers(replay) == [*range(20), 99]
    assert [message.seq for message in replay[:20]] == [receipt.seq for receipt in receipts]
    for missing in (0, receipts[-1].seq + (1 << 30), receipts[3].seq + 1):
        with pytest.raises(vecmq.SeqNotFoundError):
            subscriber.seek(missing)


def test_seek_into_packed_rows(mq: vecmq.sync.Handle) -> None:
    rows = np.arange(400, dtype="f4").reshape(100, 4)
    first = mq.publisher("t").publish_rows(rows).seq
    subscriber = mq.subscribe("t", "g")
    assert len(fetch_all(subscriber, 100)) == 100
    subscriber.seek(first + 60)
    got = fetch_all(subscriber, 40)
    assert [message.seq for message in got] == list(range(first + 60, first + 100))
    assert all(np.array_equal(m.array(), rows[m.seq - first]) for m in got)


def test_seek_by_time(mq: vecmq.sync.Handle) -> None:
    mq.publisher("t").publish_many([large(n, 40_000) for n in range(5)])
    threading.Event().wait(0.05)
    between = datetime.now(UTC)
    threading.Event().wait(0.05)
    mq.publisher("t").publish_many([large(n, 40_000) for n in range(5, 10)])
    subscriber = mq.subscribe("t", "g")
    subscriber.seek(between)
    assert numbers(fetch_all(subscriber, 5)) == list(range(5, 10))
    subscriber.seek(datetime(2020, 1, 1, tzinfo=UTC))
    assert numbers(fetch_all(subscriber, 10)) == list(range(10))


def test_seek_moves_all_subscribers_of_the_group(mq: vecmq.sync.Handle) -> None:
    receipts = mq.publisher("t").publish_many([large(n, 40_000) for n in range(10)])
    with beside(mq) as elsewhere:
        one, two = mq.subscribe("t", "g"), elsewhere.subscribe("t", "g")
        taken: list[vecmq.Message] = []
        # All: what the other has still in hand when the group is moved it may still give.
        while len(taken) < 10:  # whoever asked first may have got all
            taken += [*one.fetch(10, timeout_s=0.2), *two.fetch(10, timeout_s=0.2)]
        for message in taken:
            message.ack()
        one.seek(receipts[5].seq)
        got: list[int] = []
        while len(got) < 5:
            for subscriber in (one, two):
                batch = subscriber.fetch(10, timeout_s=0.2)
                got += numbers(batch)
                batch.ack()
        assert sorted(got) == list(range(5, 10))


@pytest.mark.parametrize("mode", ["nats", "queue"])
def test_out_is_filled(tmp_path: Path, mode: vecmq.Mode) -> None:
    with vecmq.sync.open(tmp_path, mode) as mq:
        for number in (1, 2):
            mq.publisher("t").publish(large(number))
        mq.publisher("t").publish(b"12345")
        mq.publisher("t").publish(b"")
        subscriber = mq.subscribe("t", "g")
        out = np.zeros(LARGE // 4, np.uint32)
        for number in (1, 2):
            message = subscriber.receive(LONG_S, out=out)
            assert message is not None
            assert np.array_equal(out, large(number))
            message.ack()
        room = bytearray(5)
        for refused in (bytearray(4), b"12345", np.zeros(10, np.uint8)[::2], [1], "12345"):
            with pytest.raises(vecmq.PayloadError):
                subscriber.receive(LONG_S, out=refused)
        assert subscriber.receive(LONG_S, out=room) is not None
        assert room == b"12345"
        assert subscriber.receive(LONG_S, out=bytearray()) is not None
        assert subscriber.receive(0.05, out=room) is None


async def test_out_is_filled_in_asyncio(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    vector = np.arange(1000).astype(ml_dtypes.bfloat16)
    async with vecmq.open(tmp_path, "nats") as mq:
        await mq.publisher("t").publish(vector)
        subscriber = mq.subscribe("t", "g")
        out = np.zeros((10, 100), ml_dtypes.bfloat16)
        with pytest.raises(vecmq.PayloadError):
            await subscriber.receive(LONG_S, out=out[:5])
        message = await subscriber.receive(LONG_S, out=out)
        assert message is not None
        assert message.dtype == "bfloat16"
        assert np.array_equal(out.reshape(-1), vector)


def test_messages_are_shared_with_array_libraries(mq: vecmq.sync.Handle) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    mq.publisher("t").publish(large(7))
    (message,) = fetch_all(mq.subscribe("t", "g"), 1)
    array = message.array()
    place = array.ctypes.data
    assert place % 64 == 0
    assert not array.flags.writeable
    assert pyarrow.py_buffer(message.payload).address == place
    assert np.from_dlpack(array).ctypes.data == place


def test_messages_are_shared_with_torch(mq: vecmq.sync.Handle) -> None:
    torch = pytest.importorskip("torch", exc_type=ImportError)
    mq.publisher("t").publish(large(7).view(np.float32))
    (message,) = fetch_all(mq.subscribe("t", "g"), 1)
    tensor = torch.from_dlpack(message.array())
    assert tensor.data_ptr() == message.array().ctypes.data
    assert np.array_equal(tensor.numpy().view(np.uint32), large(7))
    message.ack()
    room = torch.zeros(LARGE // 4)
    mq.publisher("t").publish(tensor)
    subscriber = mq.subscribe("t", "g")
    assert subscriber.receive(LONG_S, out=room.numpy()) is not None
    assert np.array_equal(room.numpy().view(np.uint32), large(7))


def test_a_group_over_the_limit_is_an_error_in_its_place(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    publisher.publish(large(1, 4_000))
    over = publisher.publish(large(2))
    publisher.publish(large(3, 4_000))
    with beside(mq, message_bytes_max=1 << 20) as small:
        subscriber = small.subscribe("t", "g")
        assert numbers(fetch_all(subscriber, 1)) == [1]
        for _ in range(2):
            with pytest.raises(vecmq.TooLargeError):
                subscriber.fetch(1, timeout_s=LONG_S)
        subscriber.ack_through(over.seq)
        assert numbers(fetch_all(subscriber, 1)) == [3]
        subscriber.ack_through(fetch_all_seq(publisher))
    # It was stepped over for the group, not deleted.
    assert numbers(fetch_all(mq.subscribe("t", "other"), 3)) == [1, 2, 3]


def fetch_all_seq(publisher: vecmq.sync.Publisher) -> int:
    """The seq of a message that was published last."""
    return publisher.publish(b"last").seq


async def leave_frames(mq: vecmq.sync.Handle, groups: int, *, manifest_first: bool = False) -> None:
    """What a publisher leaves that is killed before its manifests, or frames that came late."""
    assert mq.server is not None
    client = await nats.connect(mq.server.url, token=mq.server.token)
    context, producer = client.jetstream(), os.urandom(16)
    for seq in range(1, groups + 1):
        view = memoryview(large(seq)).cast("B")
        frames = make_frames(view, None, 1, None, producer, 1, seq, 1 << 20, "raw")
        if manifest_first:
            await context.publish("t", bytes(frames[-1][1]), headers=dict(frames[-1][0]))
        for headers, body in frames[:-1]:
            subject = f"t.frames.{producer.hex()}.1.{seq}.{1 << 20}"
            await context.publish(subject, bytes(body), headers=dict(headers))
    await client.close()


def test_frames_behind_their_manifest_are_not_swept(mq: vecmq.sync.Handle) -> None:
    """A frame that was refused at first goes again, and then lies behind its manifest."""
    mq.publisher("t").publish(large(3))
    asyncio.run(leave_frames(mq, 2, manifest_first=True))
    assert numbers(fetch_all(mq.subscribe("t", "g"), 3)) == [3, 1, 2]
    assert mq.sweep_topic("t", 0.0) == 0
    assert numbers(fetch_all(mq.subscribe("t", "again"), 3)) == [3, 1, 2]


def test_frames_of_dead_groups_are_swept_and_counted(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    publisher.publish(large(1))
    asyncio.run(leave_frames(mq, 3))
    publisher.publish(large(2))
    subscriber = mq.subscribe("t", "g")
    assert numbers(fetch_all(subscriber, 2)) == [1, 2]
    assert subscriber.fetch(1, timeout_s=0.3) == []
    assert mq.sweep_topic("t") == 0
    assert mq.sweep_topic("t", 0.0) == 3
    assert mq.sweep_topic("t", 0.0) == 0
    assert mq.stats()["swept"] == 3
    assert numbers(fetch_all(mq.subscribe("t", "again"), 2)) == [1, 2]
    for bad in (-1.0, float("nan")):
        with pytest.raises(vecmq.ConfigError):
            mq.sweep_topic("t", bad)


PUBLISHES = """
import sys, threading, numpy as np, vecmq.sync
own = vecmq.NatsOptions(sys.argv[1], token=sys.argv[2])
mq = vecmq.sync.open(mode="nats", nats=own)
publisher = mq.publisher("t")
for start in range(0, 1_000_000, 4):
    many = [np.full(3 << 20, n % 251, np.uint8) for n in range(start, start + 4)]
    print(publisher.publish_many(many)[-1].seq, flush=True)
"""


def test_a_killed_publisher_leaves_no_partial_message(mq: vecmq.sync.Handle) -> None:
    assert mq.server is not None
    kills = 3
    subscriber = mq.subscribe("t", "g")
    whole = swept = 0
    for kill in range(kills):
        command = [sys.executable, "-c", PUBLISHES, mq.server.url, str(mq.server.token)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acked = [int(child.stdout.readline()) for _ in range(2)]
        threading.Event().wait(0.007 * kill)
        child.send_signal(signal.SIGKILL)
        acked += [int(line) for line in child.stdout.read().split("\n") if line]
        child.wait()
        child.stdout.close()
        seen: set[int] = set()
        while batch := subscriber.fetch(8, timeout_s=1.0 if seen >= set(acked) else LONG_S):
            for message in batch:
                values = message.array()
                assert values.size == 3 << 20
                assert (values == values[0]).all()
                seen.add(message.seq)
            batch.ack()
        assert set(acked) <= seen
        whole += len(seen)
        swept += mq.sweep_topic("t", 0.0)
    assert mq.sweep_topic("t", 0.0) == 0
    assert mq.stats()["swept"] == swept
    print(f"kills {kills}, whole messages {whole}, dead groups swept {swept}, partial 0")


LISTENS = """
import sys, time, psutil, vecmq.sync
own = vecmq.NatsOptions(sys.argv[1], token=sys.argv[2])
mq = vecmq.sync.open(mode="nats", nats=own)
before = psutil.Process().memory_info().rss
subscriber = mq.subscribe("t", "g")
subscriber.fetch(1, timeout_s=60)
most = 0
for _ in range(20):
    time.sleep(0.1)
    most = max(most, psutil.Process().memory_info().rss - before)
print(most)
"""


def test_memory_is_bounded_while_nobody_takes(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    for _ in range(16):
        publisher.publish_many([bytes(4 << 20)] * 5)
    assert mq.server is not None
    command = [sys.executable, "-c", LISTENS, mq.server.url, str(mq.server.token)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    held = int(child.stdout) >> 20
    print(f"320 MiB wait, the subscriber holds {held} MiB")
    assert held < 128


def test_a_subscriber_goes_on_after_its_server_was_away(mq: vecmq.sync.Handle) -> None:
    assert mq.server is not None
    publisher = mq.publisher("t")
    publisher.publish_many([large(n, LARGE) for n in range(4)])
    subscriber = mq.subscribe("t", "g")
    for message in fetch_all(subscriber, 2):
        message.ack()
    before = mq.server.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: mq.server is not None and mq.server.pid not in (None, before))
    publisher.publish(large(4, 40))
    assert numbers(fetch_all(subscriber, 3)) == [2, 3, 4]
