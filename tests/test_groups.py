"""Subscription groups: acks out of order, redelivery, dead letters, competition, seek."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from cluster_tools import wait_for
from fault_tools import times
from subscriber_tools import LONG_S, fetch_all


@pytest.fixture(params=["queue", "hybrid"])
def handle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    with vecmq.sync.open(tmp_path, request.param) as opened:
        yield opened


def publish(handle: vecmq.sync.Handle, count: int, topic: str = "t") -> None:
    handle.publisher(topic).publish_many([b"%06d" % n for n in range(1, count + 1)])


def seqs(messages: list[vecmq.Message]) -> list[int]:
    return [message.seq for message in messages]


def test_acks_out_of_order_survive_a_reopen(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq:
        publish(mq, 100)
        for message in fetch_all(mq.subscribe("t", "g"), 100):
            if message.seq % 3:
                message.ack()
        (group,) = mq.groups("t")
        assert (group.next_seq, group.lag, group.done_above) == (3, 33, 65)
    with vecmq.sync.open(tmp_path, "queue") as mq:
        (group,) = mq.groups("t")
        assert (group.next_seq, group.lag, group.done_above, group.subscribers) == (3, 33, 65, 0)
        again = fetch_all(mq.subscribe("t", "g"), 33)
        assert seqs(again) == list(range(3, 101, 3))
        assert [bytes(message.payload) for message in again[:2]] == [b"000003", b"000006"]
        for message in reversed(again):
            message.ack()
        (group,) = mq.groups("t")
        assert (group.next_seq, group.lag, group.done_above) == (101, 0, 0)


def test_rows_are_acked_and_delivered_again_one_by_one(tmp_path: Path) -> None:
    rows = np.arange(400, dtype="f4").reshape(100, 4)
    with vecmq.sync.open(tmp_path, "queue") as mq:
        mq.publisher("t").publish_rows(rows)
        messages = fetch_all(mq.subscribe("t", "g"), 100)
        for message in messages:
            if message.seq not in (7, 8, 90):
                message.ack()
    with vecmq.sync.open(tmp_path, "queue") as mq:
        again = fetch_all(mq.subscribe("t", "g"), 3)
        assert seqs(again) == [7, 8, 90]
        assert all((m.array() == rows[m.seq - 1]).all() for m in again)


def test_what_is_not_acked_comes_again_after_ack_wait(handle: vecmq.sync.Handle) -> None:
    publish(handle, 10)
    subscriber = handle.subscribe("t", "g", ack_wait_s=0.1)
    first = fetch_all(subscriber, 10)
    assert [message.deliveries for message in first] == [1] * 10
    for message in first[2:]:
        message.ack()
    # Nothing is published: the wait itself ends when the messages are due.
    again = fetch_all(subscriber, 2)
    assert [(m.seq, m.deliveries) for m in again] == [(1, 2), (2, 2)]
    # An ack of an earlier delivery counts.
    first[0].ack()
    again[1].ack()
    assert handle.groups("t")[0].lag == 0


async def test_asyncio_waits_end_when_messages_are_due(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path, "queue") as mq:
        await mq.publisher("t").publish(b"x")
        subscriber = mq.subscribe("t", "g", ack_wait_s=0.1)
        assert len(await subscriber.fetch()) == 1
        async with asyncio.timeout(LONG_S):
            (again,) = await subscriber.fetch()
        assert again.deliveries == 2
        again.nak(0.05)
        async with asyncio.timeout(LONG_S):
            (again,) = await subscriber.fetch()
        assert again.deliveries == 3


def test_nak_gives_back_at_once_or_later(handle: vecmq.sync.Handle) -> None:
    publish(handle, 3)
    subscriber = handle.subscribe("t", "g")
    first, second, third = fetch_all(subscriber, 3)
    second.nak()
    first.nak(3600)
    third.ack()
    (again,) = subscriber.fetch(10, timeout_s=LONG_S)
    assert (again.seq, again.deliveries) == (2, 2)
    again.ack()
    assert subscriber.fetch(10, timeout_s=0.1) == []
    assert handle.groups("t")[0].lag == 1
    with pytest.raises(vecmq.ConfigError):
        first.nak(-1)


def test_in_progress_keeps_a_message(handle: vecmq.sync.Handle) -> None:
    publish(handle, 2)
    slow = handle.subscribe("t", "g", ack_wait_s=LONG_S)
    (kept,) = slow.fetch(1, timeout_s=LONG_S)
    kept.in_progress()
    other = handle.subscribe("t", "g")
    assert seqs(other.fetch(10, timeout_s=LONG_S)) == [2]
    assert other.fetch(10, timeout_s=0.1) == []
    slow.close()
    # A subscriber that is closed has nothing any more, whatever its wait.
    assert seqs(other.fetch(10, timeout_s=LONG_S)) == [1]


def test_dead_letters(handle: vecmq.sync.Handle) -> None:
    vector = np.arange(8, dtype="f4")
    handle.publisher("t").publish(vector, headers={"kind": "bad"})
    publish(handle, 1)
    subscriber = handle.subscribe("t", "g", max_deliver=3)
    seen = Counter[int]()
    while handle.groups("t")[0].lag:
        for message in subscriber.fetch(10, timeout_s=0.2):
            seen[message.seq] += 1
            if message.seq == 1:
                message.nak()
            else:
                message.ack()
    assert seen == {1: 3, 2: 1}
    (letter,) = handle.subscribe("t-dead", "g").fetch(10, timeout_s=LONG_S)
    assert (letter.array() == vector).all()
    assert letter.headers == {
        "kind": "bad",
        "Dead-Letter-Topic": "t",
        "Dead-Letter-Group": "g",
        "Dead-Letter-Seq": "1",
        "Dead-Letter-Deliveries": "3",
    }
    assert handle.topic_info("t-dead").messages == 1


DIES = """
import os, sys, vecmq.sync
mq = vecmq.sync.open(sys.argv[1], "queue")
(message,) = mq.subscribe("t", "g", max_deliver=2).fetch(1, timeout_s=60)
print(message.seq, message.deliveries, flush=True)
os._exit(9)
"""


def test_a_message_that_kills_its_consumers_becomes_a_dead_letter(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq:
        publish(mq, 3)
    died = []
    for _ in range(2):
        child = subprocess.run(
            [sys.executable, "-c", DIES, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert child.returncode == 9, child.stderr
        died.append(child.stdout.split())
    assert died == [["1", "1"], ["1", "2"]]
    with vecmq.sync.open(tmp_path, "queue") as mq:
        assert seqs(fetch_all(mq.subscribe("t", "g", max_deliver=2), 2)) == [2, 3]
        (letter,) = mq.subscribe("t-dead", "g").fetch(10, timeout_s=LONG_S)
        assert letter.headers["Dead-Letter-Seq"] == "1"


def test_an_ack_after_its_group_was_deleted_is_none_of_the_next(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq:
        mq.publisher("t").publish_many([b"x"] * 10)
        with mq.subscribe("t", "g") as subscriber:
            before = fetch_all(subscriber, 10)
        mq.delete_group("t", "g")
        before[0].ack()
        assert mq.groups("t") == []
        subscriber = mq.subscribe("t", "g")
        before[4].ack()
        assert len(fetch_all(subscriber, 10)) == 10
    with vecmq.sync.open(tmp_path, "queue") as mq:
        assert mq.groups("t")[0].next_seq == 1
        assert len(fetch_all(mq.subscribe("t", "g"), 10)) == 10


def test_competing_subscribers_share_every_message_once(handle: vecmq.sync.Handle) -> None:
    count, large = 2_000, 12
    got: list[list[int]] = [[], [], [], []]
    over = threading.Event()

    def work(own: list[int]) -> None:
        with handle.subscribe("t", "g") as subscriber:
            while not over.is_set():
                batch = subscriber.fetch(25, timeout_s=0.2)
                own.extend(seqs(batch))
                batch.ack()
                # Nobody takes a second batch before another one has got something.
                wait_for(lambda: not own or over.is_set() or sum(map(bool, got)) > 1)

    workers = [threading.Thread(target=work, args=(own,)) for own in got]
    for worker in workers:
        worker.start()
    rows = np.zeros((count // 2, 16), "f4")
    publisher = handle.publisher("t")
    publisher.publish_rows(rows)
    publisher.publish_many([bytes(200_000)] * large)
    publish(handle, count // 2 - large)
    try:
        wait_for(lambda: [group.lag for group in handle.groups("t")] == [0])
    finally:
        over.set()
        for worker in workers:
            worker.join()
    taken = [seq for own in got for seq in own]
    assert sorted(taken) == list(range(1, count + 1))
    busy = sum(bool(own) for own in got)
    print(f"subscribers that got something: {busy}, messages {len(taken)}, lost 0, duplicated 0")
    assert busy > 1


def test_a_second_subscriber_gets_what_the_first_has_only_read_ahead(
    handle: vecmq.sync.Handle,
) -> None:
    publish(handle, 1_000)
    first = handle.subscribe("t", "g")
    assert seqs(first.fetch(1, timeout_s=LONG_S)) == [1]
    second = handle.subscribe("t", "g")
    assert seqs(first.fetch(10, timeout_s=LONG_S)) == list(range(2, 12))
    got = fetch_all(second, 989)
    assert seqs(got) == list(range(12, 1_001))


def test_groups_are_independent(handle: vecmq.sync.Handle) -> None:
    publish(handle, 10)
    one, two = handle.subscribe("t", "one"), handle.subscribe("t", "two")
    new = handle.subscribe("t", "new", start="new")
    for message in fetch_all(one, 10):
        message.ack()
    assert seqs(fetch_all(two, 10)) == list(range(1, 11))
    publish(handle, 1)
    assert seqs(new.fetch(10, timeout_s=LONG_S)) == [11]
    lags = {group.name: group.lag for group in handle.groups("t")}
    assert lags == {"new": 1, "one": 1, "two": 11}
    with pytest.raises(vecmq.ConfigError):
        handle.delete_group("t", "one")
    one.close()
    handle.delete_group("t", "one")
    with pytest.raises(vecmq.GroupNotFoundError):
        handle.delete_group("t", "one")
    assert seqs(fetch_all(handle.subscribe("t", "one"), 11)) == list(range(1, 12))


def test_seek_by_seq(handle: vecmq.sync.Handle) -> None:
    publish(handle, 50)
    subscriber = handle.subscribe("t", "g")
    stale = fetch_all(subscriber, 50)
    subscriber.seek(20)
    # An ack of what was delivered before the seek says nothing about what comes now.
    stale[29].ack()
    assert seqs(fetch_all(subscriber, 31)) == list(range(20, 51))
    subscriber.seek(20, inclusive=False)
    assert seqs(subscriber.fetch(1, timeout_s=LONG_S)) == [21]
    subscriber.seek(50, inclusive=False)
    assert subscriber.fetch(1, timeout_s=0.05) == []
    subscriber.seek("first")
    assert seqs(subscriber.fetch(3, timeout_s=LONG_S)) == [1, 2, 3]
    subscriber.seek("new")
    publish(handle, 1)
    assert seqs(subscriber.fetch(3, timeout_s=LONG_S)) == [51]
    for missing in (0, 52, 1 << 63):
        with pytest.raises(vecmq.SeqNotFoundError):
            subscriber.seek(missing)
    for bad in ("last", -1, 1.5, datetime(2026, 1, 1), None):  # noqa: DTZ001
        with pytest.raises(vecmq.ConfigError):
            subscriber.seek(bad)  # type: ignore[arg-type]


def test_seek_to_what_retention_removed_names_the_nearest(tmp_path: Path) -> None:
    retention = vecmq.Retention(msgs_max=1_000, unacked=True)
    with vecmq.sync.open(tmp_path, "queue", retention=retention) as mq:
        for _ in range(8):
            mq.publisher("t").publish_rows(np.zeros((1_000, 256), "f4"))
        deleted = mq.retain()
        info = mq.topic_info("t")
        assert deleted.messages == info.first_seq - 1 > 0
        assert 1_000 <= info.messages < 3_000
        subscriber = mq.subscribe("t", "g")
        with pytest.raises(vecmq.SeqNotFoundError) as error:
            subscriber.seek(1)
        assert str(info.first_seq) in str(error.value)
        assert subscriber.fetch(1, timeout_s=LONG_S)[0].seq == info.first_seq


def test_seek_by_time(handle: vecmq.sync.Handle) -> None:
    publish(handle, 5)
    threading.Event().wait(0.02)
    between = datetime.now(UTC)
    threading.Event().wait(0.02)
    publish(handle, 5)
    subscriber = handle.subscribe("t", "g")
    subscriber.seek(between)
    assert seqs(subscriber.fetch(2, timeout_s=LONG_S)) == [6, 7]
    subscriber.seek(between - timedelta(days=1))
    assert seqs(subscriber.fetch(1, timeout_s=LONG_S)) == [1]
    info = handle.topic_info("t")
    assert info.first_time_ms is not None
    assert info.last_time_ms is not None
    last = datetime.fromtimestamp(info.last_time_ms / 1000, UTC)
    subscriber.seek(last, inclusive=False)
    assert subscriber.fetch(1, timeout_s=0.05) == []
    subscriber.seek(last)
    assert seqs(subscriber.fetch(1, timeout_s=LONG_S)) == [6]
    subscriber.seek(between + timedelta(days=1))
    assert subscriber.fetch(1, timeout_s=0.05) == []


async def test_seek_moves_all_subscribers_of_the_group(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path, "queue") as mq:
        await mq.publisher("t").publish_many([b"x"] * 10)
        one, two = mq.subscribe("t", "g"), mq.subscribe("t", "g")
        assert seqs(await one.fetch(10)) == list(range(1, 11))
        waiting = asyncio.create_task(two.fetch(3))
        await asyncio.sleep(0)
        await one.seek(5)
        async with asyncio.timeout(LONG_S):
            assert seqs(await waiting) == [5, 6, 7]
            assert seqs(await one.fetch(10)) == [8, 9, 10]


@pytest.mark.parametrize(
    "options",
    [
        {"ack_wait_s": 0},
        {"ack_wait_s": "1"},
        {"max_deliver": 0},
        {"max_deliver": 1.0},
        {"max_deliver": 1 << 32},
        {"dead_letter_topic": "d"},
        {"max_deliver": 1, "dead_letter_topic": "t"},
        {"start": "last"},
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object]) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq, pytest.raises(vecmq.ConfigError):
        mq.subscribe("t", "g", **options)  # type: ignore[arg-type]


def test_mode_nats_competes_and_has_no_log(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "nats") as mq:
        mq.publisher("t").publish_many([b"x"] * 20)
        one, two = mq.subscribe("t", "g"), mq.subscribe("t", "g")
        got = seqs(one.fetch(20, timeout_s=LONG_S))
        one.close()
        (first, *_) = fetch_all(mq.subscribe("t", "other"), 1)
        assert first.deliveries == 1
        first.nak()
        first.in_progress()
        assert got == sorted(got)
        two.close()
        with pytest.raises(vecmq.SeqNotFoundError):
            mq.subscribe("t", "g").seek(1)
        with pytest.raises(vecmq.UnsupportedError):
            mq.purge_topic("t")
        with pytest.raises(vecmq.UnsupportedError):
            mq.set_retention("t", None)


FETCHES = DIES.replace("max_deliver=2", "").replace("(message,) =", "message, *_ =")


def test_a_kill_between_fetch_and_ack_delivers_everything_again(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq:
        publish(mq, 100)
    kills = 4
    for _ in range(kills):
        script = FETCHES.replace("fetch(1,", "fetch(100,")
        child = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False
        )
        assert (child.returncode, child.stdout) == (9, b"1 1\n")
    with vecmq.sync.open(tmp_path, "queue") as mq:
        assert seqs(fetch_all(mq.subscribe("t", "g"), 100)) == list(range(1, 101))
    print(f"kills {kills}, messages 100, lost 0")


ACKS = """
import random, sys, vecmq.sync
mq = vecmq.sync.open(sys.argv[1], "queue")
subscriber = mq.subscribe("t", "g")
messages = []
while batch := subscriber.fetch(10_000, timeout_s=0.2):
    messages += batch
random.Random(int(sys.argv[2])).shuffle(messages)
for at in range(0, len(messages), 7):
    vecmq.Batch(messages[at : at + 7]).ack()
    print(*(message.seq for message in messages[at : at + 7]), flush=True)
"""


def test_acks_out_of_order_survive_kills(tmp_path: Path) -> None:
    cycles, count = times(4), 4_000
    acked, again = 0, 0
    for cycle in range(cycles):
        path = tmp_path / str(cycle)
        with vecmq.sync.open(path, "queue") as mq:
            mq.publisher("t").publish_rows(np.zeros((count // 2, 8), "f4"))
            publish(mq, count // 2)
        command = [sys.executable, "-c", ACKS, str(path), str(cycle)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            # Killed while it acknowledges, after a different number of acks each time.
            lines = [child.stdout.readline() for _ in range(20 + 37 * (cycle % 12))]
            child.kill()
            lines += child.stdout.read().splitlines()
        done = {int(seq) for line in lines[:-1] for seq in line.split()}
        # The last line may be cut short, and what it names may or may not be saved.
        with vecmq.sync.open(path, "queue") as mq:
            left = mq.groups("t")[0].lag
            came = seqs(fetch_all(mq.subscribe("t", "g"), left))
            assert came == sorted(set(came))
            assert not done & set(came), "an acknowledged message came again"
            missing = set(range(1, count + 1)) - done - set(came)
            # Acknowledged and saved, killed before the line was out: one call's at most, and the
            # one whose line was cut.
            assert len(missing) <= 14, "a message that was not acknowledged is gone"
            acked += len(done)
            again += len(came)
    print(f"kills {cycles}, acknowledged {acked}, came again {again}, lost 0, duplicated 0")
    assert acked > 0
