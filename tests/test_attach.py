"""Subscribers in other processes: what they get, and what their acks do."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import vecmq
import vecmq.sync
from attach_tools import ATTACH, Process
from cluster_tools import wait_for
from subscriber_tools import LONG_S, fetch_all
from vecmq.cli import main

FETCH_ALL = """
batch = []
while len(batch) < {count}:
    batch += s.fetch({count} - len(batch), timeout_s=20)
"""


@pytest.fixture(params=["queue", "hybrid"])
def owner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    with vecmq.sync.open(tmp_path, request.param) as opened:
        yield opened


def facts(message: vecmq.Message) -> tuple[object, ...]:
    return (
        message.topic,
        message.seq,
        message.id,
        message.route,
        message.dtype,
        message.shape,
        message.headers,
        message.frames_count,
        message.deliveries,
        bytes(message.payload),
    )


def lags(handle: vecmq.sync.Handle | vecmq.sync.AttachedHandle) -> dict[str, int]:
    return {info.name: info.lag for info in handle.groups("t")}


def test_messages_are_the_same_as_in_the_owner(owner: vecmq.sync.Handle) -> None:
    publisher = owner.publisher("t")
    payloads: list[object] = [b"", b"x", np.float32(3), np.arange(6).reshape(2, 3), b"y" * 5000]
    for number, payload in enumerate(payloads):
        publisher.publish(payload, {"number": str(number), "empty": ""})
    publisher.publish_rows(np.arange(300, dtype="f8").reshape(100, 3), {"of": "rows"})
    publisher.publish_rows(np.zeros((7, 0), dtype="f4"))
    publisher.publish(np.random.default_rng(1).random(700_000))
    publisher.publish(b"last")
    count = len(payloads) + 100 + 7 + 2
    here = fetch_all(owner.subscribe("t", "here"), count)
    assert owner.path is not None
    with vecmq.sync.attach(owner.path) as attached:
        there = fetch_all(attached.subscribe("t", "there"), count)
        assert [facts(message) for message in there] == [facts(message) for message in here]
        vecmq.Batch(there).ack()
        # Nobody says when the owner has read the acks.
        wait_for(lambda: lags(attached)["there"] == 0)
        assert lags(attached)["here"] == count
        assert attached.topics() == owner.topics()
        assert attached.topic_info("t") == owner.topic_info("t")


def test_large_messages_come_in_order_over_both_routes(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "hybrid") as mq, Process(tmp_path) as other:
        other.run(f"{ATTACH}; s = mq.subscribe('t', 'g')")
        other.tell(
            FETCH_ALL.format(count=60)
            + "out = [(m.seq, m.route, int(m.array()[0]), int(m.array()[-1])) for m in batch]\n"
            + "vecmq.Batch(batch).ack()"
        )
        publisher = mq.publisher("t")
        for number in range(60):
            length = 5_000_000 if number % 3 == 0 else 100
            route: Literal["queue", "nats"] = "nats" if number % 2 else "queue"
            publisher.publish(np.full(length, number, dtype="u1"), route=route)
        expected = [(n + 1, "nats" if n % 2 else "queue", n, n) for n in range(60)]
        assert other.answer() == expected
        # An ack counts when the owner has read it, which this question makes sure of.
        assert other.run("out = mq.groups('t')[0].lag") in range(61)
        other.run("s.ack_through(60)")
        assert mq.groups("t")[0].lag == 0


def test_rows_are_one_array_without_a_copy(owner: vecmq.sync.Handle) -> None:
    rows = np.random.default_rng(2).random((3000, 64), dtype="f4")
    owner.publisher("t").publish_rows(rows)
    assert owner.path is not None
    with vecmq.sync.attach(owner.path) as attached:
        batch = attached.subscribe("t", "g").fetch(3000, timeout_s=LONG_S)
        assert len(batch) == 3000
        whole = batch.array()
        assert (whole == rows).all()
        first = batch[0].array()
        assert np.shares_memory(whole, first)
        assert first.ctypes.data % 64 == 0
        assert not whole.flags.writeable


def test_two_processes_compete_and_get_every_message_once(owner: vecmq.sync.Handle) -> None:
    total = 3000
    assert owner.path is not None
    with Process(owner.path) as one, Process(owner.path) as two:
        code = f"""
{ATTACH}
s = mq.subscribe('t', 'g')
"""
        assert one.run(code) is two.run(code) is None
        # Neither goes on before the other has got something.
        begin = "got = s.fetch(7, timeout_s=60); got.ack(); out = [m.seq for m in got]"
        one.tell(begin)
        two.tell(begin)
        publisher = owner.publisher("t")
        publisher.publish_many([b"%d" % n for n in range(100)])
        mine, yours = one.answer(), two.answer()
        over = owner.path / "over"
        work = f"""
out = []
while not os.path.exists({str(over)!r}):
    batch = s.fetch(7, timeout_s=0.2)
    batch.ack()
    out += [m.seq for m in batch]
"""
        one.tell(work)
        two.tell(work)
        for start in range(100, total, 100):
            publisher.publish_many([b"%d" % n for n in range(start, start + 100)])
        wait_for(lambda: lags(owner)["g"] == 0)
        over.touch()
        mine += one.answer()
        yours += two.answer()
        assert sorted(mine + yours) == list(range(1, total + 1))
        assert mine == sorted(mine)
        assert yours == sorted(yours)
        assert mine
        assert yours
        print(f"competing: {len(mine)} + {len(yours)}, lost 0, duplicated 0")


def test_what_a_seek_brings_at_once_is_not_dropped(owner: vecmq.sync.Handle) -> None:
    """The owner answers a wish that is still open right behind its answer to the seek."""
    count = 10
    assert owner.path is not None
    owner.publisher("t").publish_many([b"x"] * count)
    with vecmq.sync.attach(owner.path) as attached:
        subscriber = attached.subscribe("t", "g")
        for _ in range(100):
            batch = fetch_all(subscriber, count)
            assert [message.deliveries for message in batch] == [1] * count
            subscriber.ack_through(batch[-1].seq)
            assert subscriber.fetch(1, timeout_s=0.01) == []
            subscriber.seek("first")


def test_nak_in_progress_seek_and_ack_through(owner: vecmq.sync.Handle) -> None:
    owner.publisher("t").publish_many([b"%d" % n for n in range(10)])
    assert owner.path is not None
    with vecmq.sync.attach(owner.path) as attached:
        subscriber = attached.subscribe("t", "g", ack_wait_s=3600)
        messages = fetch_all(subscriber, 10)
        messages[3].nak()
        (again,) = subscriber.fetch(5, timeout_s=LONG_S)
        assert (again.seq, again.deliveries) == (4, 2)
        again.in_progress()
        subscriber.ack_through(8)
        assert owner.groups("t")[0].next_seq == 9
        subscriber.seek(2)
        assert [m.seq for m in fetch_all(subscriber, 9)] == list(range(2, 11))
        with pytest.raises(vecmq.SeqNotFoundError):
            subscriber.seek(99)
        subscriber.seek("new")
        owner.publisher("t").publish(b"new")
        assert fetch_all(subscriber, 1)[0].seq == 11
        with pytest.raises(vecmq.ConfigError):
            attached.subscribe("t", "g2", start="last")  # type: ignore[arg-type]
        with pytest.raises(vecmq.InvalidNameError):
            attached.subscribe("a.b", "g")
        with pytest.raises(vecmq.TopicNotFoundError):
            attached.topic_info("none")
        # A refused question spoils nothing.
        assert attached.topics() == ["t"]


def test_ack_wait_and_max_deliver(owner: vecmq.sync.Handle) -> None:
    owner.publisher("t").publish(b"poison", {"k": "v"})
    assert owner.path is not None
    with vecmq.sync.attach(owner.path) as attached:
        # Less, and a message may be due again before a slow machine has handed it out.
        subscriber = attached.subscribe("t", "g", ack_wait_s=0.5, max_deliver=2)
        counts = [fetch_all(subscriber, 1)[0].deliveries for _ in range(2)]
        assert counts == [1, 2]
        assert not subscriber.fetch(1, timeout_s=1.5)
        (dead,) = fetch_all(attached.subscribe("t-dead", "g"), 1)
        assert bytes(dead.payload) == b"poison"
        assert dead.headers["Dead-Letter-Seq"] == "1"


def test_a_fetch_that_gave_up_leaves_messages_to_others(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq, vecmq.sync.attach(tmp_path) as attached:
        idle = attached.subscribe("t", "g", ack_wait_s=None)
        assert not idle.fetch(10, timeout_s=0.05)
        busy = attached.subscribe("t", "g", ack_wait_s=None)
        assert not busy.fetch(10, timeout_s=3)  # the first wish has lapsed meanwhile
        mq.publisher("t").publish_many([b"x"] * 20)
        assert [m.seq for m in fetch_all(busy, 20)] == list(range(1, 21))


async def test_asyncio(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path, "queue") as mq, vecmq.attach(tmp_path) as attached:
        subscriber = attached.subscribe("t", "g")
        assert attached.path == tmp_path

        async def publish() -> None:
            for number in range(500):
                await mq.publisher("t").publish(b"%d" % number)

        got = []
        async with asyncio.timeout(LONG_S):
            task = asyncio.create_task(publish())
            async for message in subscriber:
                got.append(int(bytes(message.payload)))
                message.ack()
                if len(got) == 500:
                    break
            await task
            # Waits longer than a wish lasts, then gets what comes.
            waiting = asyncio.create_task(subscriber.fetch(5))
            await asyncio.sleep(2.5)
            await mq.publisher("t").publish(b"late")
            assert [bytes(m.payload) for m in await waiting] == [b"late"]
        assert got == list(range(500))
        subscriber.close()
        with pytest.raises(vecmq.ClosedError):
            await subscriber.fetch()
    handle = await vecmq.open(tmp_path, "queue")
    attached = await vecmq.attach(tmp_path)
    await handle.close()
    with pytest.raises(vecmq.NotConnectedError):
        attached.topics()
    await attached.close()
    with pytest.raises(vecmq.ClosedError):
        attached.topics()


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100)
    with vecmq.sync.open(path, "queue") as mq, vecmq.sync.attach(path) as attached:
        mq.publisher("t").publish(b"far")
        assert bytes(fetch_all(attached.subscribe("t", "g"), 1)[0].payload) == b"far"
    assert not (path / "queue" / "ATTACH").exists()


def test_the_socket_is_the_owners_alone(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue"):
        mode = (tmp_path / "queue" / "ATTACH").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE((tmp_path / "queue").stat().st_mode) == 0o700
    with vecmq.sync.open(tmp_path, "queue", attach=False):
        assert not (tmp_path / "queue" / "ATTACH").exists()
        with pytest.raises(vecmq.NotConnectedError):
            vecmq.sync.attach(tmp_path)
    with pytest.raises(vecmq.NotConnectedError):
        vecmq.sync.attach(tmp_path)
    with pytest.raises(vecmq.ConfigError):
        vecmq.sync.attach(tmp_path, message_bytes_max=0)
    with pytest.raises(vecmq.ConfigError):
        vecmq.sync.open(tmp_path, "queue", attach=1)  # type: ignore[arg-type]


def test_a_message_over_the_limit_of_this_process(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq:
        mq.publisher("t").publish(bytes(20 << 20))
        with vecmq.sync.attach(tmp_path, message_bytes_max=1000) as attached:
            subscriber = attached.subscribe("t", "g")
            with pytest.raises(vecmq.TooLargeError):
                subscriber.fetch(timeout_s=LONG_S)
        with vecmq.sync.attach(tmp_path) as attached:
            assert fetch_all(attached.subscribe("t", "g"), 1)[0].size_bytes == 20 << 20


def test_two_handles_are_independent(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, "queue") as mq, vecmq.sync.attach(tmp_path) as two:
        with vecmq.sync.attach(tmp_path) as one:
            first = one.subscribe("t", "g")
            mq.publisher("t").publish_many([b"a", b"b"])
            assert len(fetch_all(first, 2)) == 2
        with pytest.raises(vecmq.ClosedError):
            first.fetch()
        with pytest.raises(vecmq.ClosedError):
            one.subscribe("t", "g")
        # What the closed one had and did not ack is due at once.
        assert [m.seq for m in fetch_all(two.subscribe("t", "g"), 2)] == [1, 2]


def test_vecmq_sub_attaches_to_the_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with vecmq.sync.open(tmp_path, "hybrid") as mq:
        mq.publisher("t").publish_many([b"one", b"two"])
        tokens = ["sub", "t", "--group", "g", "--path", str(tmp_path), "--count", "2", "--json"]
        assert main([*tokens, "--timeout-s", "20"]) == 0
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == 2
        assert printed.err
        # The acks are in the socket when the command ends; the owner reads them.
        with vecmq.sync.attach(tmp_path) as attached:
            wait_for(lambda: lags(attached)["g"] == 0)
