"""Groups and topics of mode nats as an operator sees them, and its dead letters."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nats
import numpy as np
import pytest

import vecmq
import vecmq.sync
from cli_tools import Command
from server_tools import wait_until
from subscriber_tools import LONG_S, fetch_all

LARGE = 3 << 20  # three frames
ACK_WAIT_S = 0.5


@pytest.fixture
def mq(tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    with vecmq.sync.open(tmp_path, "nats") as opened:
        yield opened


def own_options(mq: vecmq.sync.Handle) -> vecmq.NatsOptions:
    assert mq.server is not None
    return vecmq.NatsOptions(mq.server.url, token=mq.server.token)


def lag_of(mq: vecmq.sync.Handle, group: str) -> int:
    # A subscription makes its group in the background.
    return {one.name: one.lag for one in mq.groups("t")}.get(group, -1)


def test_lag_and_place_of_groups(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    for size in (10, LARGE, 20, 30):
        publisher.publish(b"x" * size)
    info = mq.topic_info("t")
    assert (info.messages, info.groups, info.retention) == (4, [], None)
    assert info.size_bytes > LARGE
    subscriber = mq.subscribe("t", "g")
    first, second, *_ = fetch_all(subscriber, 4)
    assert info.first_seq == first.seq
    assert second.seq < info.next_seq
    (group,) = mq.groups("t")
    assert (group.name, group.lag, group.handed_out) == ("g", 4, 4)
    assert (group.done_above, group.subscribers) == (None, None)
    first.ack()
    second.ack()
    wait_until(lambda: lag_of(mq, "g") == 2)
    (group,) = mq.groups("t")
    assert second.seq < group.next_seq
    mq.subscribe("t", "idle", start="new").close()
    assert lag_of(mq, "idle") == 0
    publisher.publish(b"y")
    wait_until(lambda: lag_of(mq, "idle") == 1)
    assert [one.name for one in mq.topic_info("t").groups] == ["g", "idle"]


def test_a_group_is_deleted_when_nobody_reads_it(mq: vecmq.sync.Handle) -> None:
    mq.publisher("t").publish(b"x")
    subscriber = mq.subscribe("t", "g")
    fetch_all(subscriber, 1)[0].ack()
    with pytest.raises(vecmq.ConfigError):
        mq.delete_group("t", "g")
    subscriber.close()

    def deleted() -> bool:
        # The server forgets what a closed subscriber asked for a moment later.
        try:
            mq.delete_group("t", "g")
        except vecmq.ConfigError:
            return False
        return True

    wait_until(deleted)
    assert mq.groups("t") == []
    with pytest.raises(vecmq.GroupNotFoundError):
        mq.delete_group("t", "g")
    # Made anew, it begins at its start.
    assert fetch_all(mq.subscribe("t", "g"), 1)[0].deliveries == 1


def test_topics_are_the_servers_and_are_deleted(mq: vecmq.sync.Handle) -> None:
    mq.publisher("t").publish(b"x" * LARGE)
    mq.publisher("u").publish(b"y")
    with vecmq.sync.open(mode="nats", nats=own_options(mq)) as other:
        assert other.topics() == ["t", "u"]
        assert other.topic_info("t").messages == 1
        other.delete_topic("t")
        assert other.topics() == ["u"]
        for missing in (other.topic_info, other.groups, other.delete_topic):
            with pytest.raises(vecmq.TopicNotFoundError):
                missing("t")
        assert other.topics() == ["u"]
        # A name that is free again.
        other.publisher("t").publish(b"new")
        (message,) = fetch_all(other.subscribe("t", "g"), 1)
        assert bytes(message.payload) == b"new"


async def test_a_stream_of_another_is_no_topic(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path, "nats") as mq:
        assert mq.server is not None
        client = await nats.connect(mq.server.url, token=mq.server.token)
        try:
            await client.jetstream().add_stream(name="foreign", subjects=["elsewhere"])
            assert mq.topics() == []
            with pytest.raises(vecmq.ConfigError):
                await mq.delete_topic("foreign")
            assert (await client.jetstream().stream_info("foreign")).config.name == "foreign"
        finally:
            await client.close()


def test_the_command_line_lists_and_deletes(
    mq: vecmq.sync.Handle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = Command(capsys, monkeypatch)
    mq.publisher("t").publish_many([b"x" * 20_000] * 3)
    subscriber = mq.subscribe("t", "g")
    fetch_all(subscriber, 3)
    subscriber.close()
    options = own_options(mq)
    monkeypatch.setenv("NATS_TOKEN", str(options.token))
    where = ("--nats", mq.server.url) if mq.server is not None else ()
    (topic,) = command("nats", "topics", *where, "--json").lines
    assert (topic["name"], topic["messages"]) == ("t", 3)
    (group,) = command("nats", "groups", "t", *where, "--json").lines
    assert (group["name"], group["lag"]) == ("g", 3)
    assert command("nats", "topics", *where).out.splitlines()[1].split()[-1] == "t"
    assert command("nats", "groups", "t", *where).out.splitlines()[1].split()[0] == "3"
    assert command("nats", "delete", "t", *where).code == 2
    # The server forgets what a closed subscriber asked for a moment later.
    wait_until(lambda: command("nats", "delete", "t", "--group", "g", "--yes", *where).code == 0)
    assert command("nats", "groups", "t", *where, "--json").lines == []
    assert command("nats", "delete", "t", "--yes", *where).code == 0
    assert command("nats", "topics", *where, "--json").lines == []
    assert command("nats", "topics").code == 2


@pytest.mark.parametrize("size", [100, LARGE])
def test_dead_letters(mq: vecmq.sync.Handle, size: int) -> None:
    vector = np.arange(size // 4, dtype="f4")
    publisher = mq.publisher("t")
    bad = publisher.publish(vector, headers={"kind": "bad"}).seq
    good = publisher.publish(b"good").seq
    subscriber = mq.subscribe("t", "g", max_deliver=3)
    seen = Counter[int]()
    while lag_of(mq, "g"):
        for message in subscriber.fetch(10, timeout_s=0.2):
            seen[message.seq] += 1
            if message.seq == bad:
                message.nak()
            else:
                message.ack()
    assert seen == {bad: 3, good: 1}
    (letter,) = mq.subscribe("t-dead", "g").fetch(10, timeout_s=LONG_S)
    assert (letter.array() == vector).all()
    assert letter.headers == {
        "kind": "bad",
        "Dead-Letter-Topic": "t",
        "Dead-Letter-Group": "g",
        "Dead-Letter-Seq": str(bad),
        "Dead-Letter-Deliveries": "3",
    }
    assert mq.topic_info("t-dead").messages == 1
    with pytest.raises(vecmq.ConfigError):
        mq.subscribe("t", "g", max_deliver=1, dead_letter_topic="t")


DIES = """
import os, sys, vecmq, vecmq.sync
mq = vecmq.sync.open(mode="nats", nats=vecmq.NatsOptions(sys.argv[1], token=sys.argv[2]))
subscriber = mq.subscribe("t", "g", max_deliver=2, ack_wait_s=0.5)
(message,) = subscriber.fetch(1, timeout_s=60)
print(int(message.array()[0]), message.deliveries, flush=True)
os._exit(9)
"""


def test_a_message_that_kills_its_consumers_becomes_a_dead_letter(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    for number in range(5):
        publisher.publish(np.full(20_000, number, dtype="u4"))
    options = own_options(mq)
    died = []
    for _ in range(2):
        child = subprocess.run(
            [sys.executable, "-c", DIES, mq.server.url if mq.server else "", str(options.token)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert child.returncode == 9, child.stderr
        died.append(child.stdout.split())
        time.sleep(2 * ACK_WAIT_S)
    assert died == [["0", "1"], ["0", "2"]]
    subscriber = mq.subscribe("t", "g", max_deliver=2, ack_wait_s=ACK_WAIT_S)
    # What comes after it was never with anybody: the server counts what it sends.
    got = []
    while lag_of(mq, "g"):
        for message in subscriber.fetch(1, timeout_s=0.2):
            got.append((int(message.array()[0]), message.deliveries))
            message.ack()
    assert sorted(got) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    (letter,) = mq.subscribe("t-dead", "g").fetch(10, timeout_s=LONG_S)
    assert int(letter.array()[0]) == 0
