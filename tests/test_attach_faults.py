"""Attached subscribers and owners that are killed, stopped, forked, or talk nonsense."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
from pathlib import Path

import psutil
import pytest

import vecmq
import vecmq.sync
from attach_tools import ATTACH, OPEN, Process
from subscriber_tools import LONG_S, fetch_all

SUBSCRIBE = f"{ATTACH}; s = mq.subscribe('t', 'g', ack_wait_s=None)"
FETCH = "batch = s.fetch(10, timeout_s=20); out = [m.seq for m in batch]"


def test_a_killed_subscriber_before_its_ack(tmp_path: Path) -> None:
    cycles = 5
    with vecmq.sync.open(tmp_path, "queue") as mq:
        for cycle in range(cycles):
            mq.publisher("t").publish_many([b"x"] * 10)
            with Process(tmp_path) as other:
                other.run(SUBSCRIBE)
                seqs = other.run(FETCH)
                assert len(seqs) == 10
                with vecmq.sync.attach(tmp_path) as attached:
                    waiting = attached.subscribe("t", "g")
                    assert not waiting.fetch(10, timeout_s=0.1)
                    other.kill()
                    again = fetch_all(waiting, 10)
                    assert [m.seq for m in again] == seqs
                    assert {m.deliveries for m in again} == {2}
                    for message in again:
                        message.ack()
                    waiting.ack_through(10 * (cycle + 1))
        assert mq.groups("t")[0].lag == 0
    print(f"killed before the ack: {cycles} cycles, {cycles * 10} messages, lost 0")


def test_a_killed_subscriber_right_after_its_ack(tmp_path: Path) -> None:
    cycles, duplicated = 20, 0
    with vecmq.sync.open(tmp_path, "queue") as mq:
        for _ in range(cycles):
            mq.publisher("t").publish_many([b"x"] * 10)
            with Process(tmp_path) as other:
                other.run(SUBSCRIBE)
                assert len(other.run(FETCH)) == 10
                how = "batch.ack()" if _ % 2 else "[m.ack() for m in batch]"
                other.tell(f"{how}\nos.kill(os.getpid(), 9)")
                other.child.wait()
                subscriber = mq.subscribe("t", "g")
                # The owner reads what was written before the end; then the group is free.
                mq.publisher("t").publish(b"end")
                while True:
                    (message, *rest) = fetch_all(subscriber, 1)
                    message.ack()
                    if bytes(message.payload) == b"end":
                        break
                    duplicated += 1
                assert not rest
                subscriber.close()
        assert mq.groups("t")[0].lag == 0
    print(f"killed after the ack: {cycles} cycles, {cycles * 10} acked, duplicated {duplicated}")
    assert duplicated == 0


@pytest.mark.parametrize("mode", ["queue", "hybrid"])
def test_a_killed_owner_and_a_new_one(tmp_path: Path, mode: str) -> None:
    with Process(tmp_path, mode) as owner:
        owner.run(OPEN)
        owner.run("mq.publisher('t').publish_many([b'x'] * 30)")
        with vecmq.sync.attach(tmp_path) as attached:
            subscriber = attached.subscribe("t", "g")
            acked = fetch_all(subscriber, 10)
            vecmq.Batch(acked).ack()
            subscriber.ack_through(10)
            held = fetch_all(subscriber, 5)
            owner.kill()
            with pytest.raises(vecmq.NotConnectedError):
                fetch_all(subscriber, 1000)
            with pytest.raises(vecmq.NotConnectedError):
                held[0].ack()
            with pytest.raises(vecmq.NotConnectedError):
                subscriber.seek("first")
            with pytest.raises(vecmq.NotConnectedError):
                attached.topics()
            with pytest.raises(vecmq.NotConnectedError):
                vecmq.sync.attach(tmp_path)
            assert (tmp_path / "queue" / "ATTACH").exists()
            with Process(tmp_path, mode) as second:
                second.run(OPEN)
                assert attached.topics() == ["t"]
                again = fetch_all(attached.subscribe("t", "g"), 20)
                assert [m.seq for m in again] == list(range(11, 31))
                vecmq.Batch(again).ack()
                second.run("mq.close()")
                with pytest.raises(vecmq.NotConnectedError):
                    attached.topics()


def test_a_waiting_fetch_ends_with_its_owner(tmp_path: Path) -> None:
    with Process(tmp_path) as owner, Process(tmp_path) as other:
        owner.run(OPEN)
        other.run(SUBSCRIBE)
        other.tell("s.fetch()")
        owner.run("time.sleep(0.3)")
        owner.kill()
        assert other.answer() == "NotConnectedError"


def test_an_owner_that_closes_while_subscribers_wait(tmp_path: Path) -> None:
    with Process(tmp_path) as other:
        with vecmq.sync.open(tmp_path, "queue") as mq:
            other.run(SUBSCRIBE)
            mq.publisher("t").publish(b"x")
            assert other.run(FETCH) == [1]
            other.tell("s.fetch()")
        assert other.answer() == "NotConnectedError"
        # The directory is free at once.
        with vecmq.sync.open(tmp_path, "queue") as mq:
            assert mq.groups("t")[0].lag == 1


def test_a_forked_child_keeps_no_message(tmp_path: Path) -> None:
    # The child holds the sockets of its parent: no end of file comes when that is killed.
    fork = """
child = os.fork()
if child == 0:
    try:
        s.fetch(1, timeout_s=1)
    except vecmq.ForkError:
        os.write(1, b"'forked'\\n")
    time.sleep(60)
    os._exit(0)
out = child
"""
    with vecmq.sync.open(tmp_path, "queue") as mq, Process(tmp_path) as other:
        mq.publisher("t").publish_many([b"x"] * 10)
        other.run(SUBSCRIBE)
        assert len(other.run(FETCH)) == 10
        answers = {other.run(fork), other.answer()}
        (child,) = answers - {"forked"}
        try:
            assert len(answers) == 2
            other.kill()
            assert len(fetch_all(mq.subscribe("t", "g"), 10)) == 10
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_killed_owner_with_a_forked_child(tmp_path: Path) -> None:
    with Process(tmp_path) as owner:
        owner.run(OPEN)
        child = owner.run(
            "child = os.fork()\nif child == 0:\n    time.sleep(60)\n    os._exit(0)\nout = child"
        )
        try:
            with vecmq.sync.attach(tmp_path) as attached:
                subscriber = attached.subscribe("t", "g")
                owner.kill()
                with pytest.raises(vecmq.NotConnectedError):
                    subscriber.fetch(timeout_s=LONG_S)
                with pytest.raises(vecmq.NotConnectedError):
                    vecmq.sync.attach(tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_stopped_subscriber_takes_no_memory_of_the_owner(tmp_path: Path) -> None:
    payload, count = bytes(1 << 20), 300
    own = psutil.Process()
    with vecmq.sync.open(tmp_path, "queue") as mq, Process(tmp_path) as other:
        publisher, busy = mq.publisher("t"), mq.subscribe("t", "busy")

        def pass_on() -> int:
            """Publish all of it and receive it with another group."""
            for _ in range(count):
                publisher.publish(payload)
                (message,) = fetch_all(busy, 1)
                message.ack()
                del message
            return own.memory_info().rss

        before = pass_on()
        other.run(f"{ATTACH}; s = mq.subscribe('t', 'slow', start='new')")
        other.tell("batch = []\nwhile len(batch) < 300: batch += s.fetch(512, timeout_s=20)")
        other.child.send_signal(signal.SIGSTOP)
        grown = pass_on() - before
        other.child.send_signal(signal.SIGCONT)
        print(f"{count} MiB past a stopped subscriber: {grown / 2**20:.0f} MiB more in the owner")
        assert grown < 160 << 20
        assert mq.groups("t")[0].lag == 0
        assert other.answer() is None
        assert other.run("out = len(batch)") == count


def connect(path: Path) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.settimeout(LONG_S)
    raw.connect(str(path / "queue" / "ATTACH"))
    return raw


def request(kind: int, meta: bytes, payload_bytes: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, len(meta), payload_bytes) + meta


HELLO = request(1, b"VQAT\x01\x00")


def read_all(raw: socket.socket) -> bytes:
    found = b""
    try:
        while part := raw.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_nonsense_ends_its_own_connection_only(tmp_path: Path) -> None:
    chance = random.Random(5)
    subscribe = request(5, struct.pack("<I1sI1sBBBB", 1, b"t", 1, b"g", 0, 0, 0, 0))
    nonsense = [
        b"\xff" * 64,
        request(1, b"VQAT\x02\x00"),
        request(2, b""),
        HELLO + struct.pack("<IIQ", 2, 0xFFFFFFFF, 0),
        HELLO + request(2, b"", 1 << 62),
        HELLO + request(7, b"\xff" * 4),
        HELLO + subscribe + request(7, struct.pack("<IQQ", 1, 9, 3)),
        HELLO + subscribe + request(7, struct.pack("<I", 0xFFFFFFFF)),
        HELLO + subscribe + request(200, b""),
        HELLO + subscribe + subscribe,
    ]
    for _ in range(200):
        start = HELLO + (subscribe if chance.random() < 0.5 else b"")
        meta = chance.randbytes(chance.randrange(40))
        nonsense.append(start + request(chance.randrange(1, 13), meta) + request(250, b""))
    with vecmq.sync.open(tmp_path, "queue") as mq, vecmq.sync.attach(tmp_path) as attached:
        subscriber = attached.subscribe("t", "other")
        for bad in nonsense:
            with connect(tmp_path) as raw:
                raw.sendall(bad)
                read_all(raw)  # the owner ends it
        mq.publisher("t").publish(b"still here")
        assert bytes(fetch_all(subscriber, 1)[0].payload) == b"still here"
    print(f"{len(nonsense)} connections of nonsense, owner alive")


def test_an_owner_of_another_version_and_one_that_talks_nonsense(tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    answers = [
        (request(1, b"\x09\x00"), vecmq.UnsupportedError),
        (request(77, b""), vecmq.UnsupportedError),
        (request(1, b"\x01"), vecmq.CorruptError),
        (struct.pack("<IIQ", 1, 0xFFFFFFFF, 0), vecmq.TooLargeError),
        (b"", vecmq.NotConnectedError),
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "queue" / "ATTACH"))
        listener.listen(10)
        for answer, error in answers:
            with Process(tmp_path) as other:
                other.tell(ATTACH)
                raw, _ = listener.accept()
                with raw:
                    raw.sendall(answer)
                    raw.shutdown(socket.SHUT_WR)
                    assert other.answer() == error.__name__


def test_a_socket_that_cannot_be_made_does_not_hinder_the_owner(tmp_path: Path) -> None:
    (tmp_path / "queue" / "ATTACH" / "in-the-way").mkdir(parents=True)
    with vecmq.sync.open(tmp_path, "queue") as mq:
        mq.publisher("t").publish(b"x")
        with pytest.raises(vecmq.NotConnectedError):
            vecmq.sync.attach(tmp_path)
