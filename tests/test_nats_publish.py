"""Publishing in mode "nats": packs, one call without waiting, expected seqs, atomic groups."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import nats
import numpy as np
import pytest
from nats.js.api import ConsumerConfig, DeliverPolicy

import vecmq
import vecmq.sync
from vecmq._options import Mode
from vecmq.pack_reader import unpack
from vecmq.reader import Reader
from vecmq.server import EmbeddedServer

KIB = 1024
MIB = 1024 * KIB
WRONG_LAST_SEQ = 10071


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "server") as running:
        yield running


def options(server: EmbeddedServer) -> vecmq.NatsOptions:
    return vecmq.NatsOptions(url=server.url, token=server.token)


def mixed(count: int) -> list[object]:
    """Bytes, arrays and empty payloads; runs of one size, and messages that leave alone."""
    chooser = random.Random(6)
    rng = np.random.default_rng(6)
    makers: list[Callable[[], object]] = [
        lambda: rng.random(256, np.float32),
        lambda: rng.random((2, 32), np.float32),
        lambda: rng.bytes(64 * chooser.randrange(1, 9)),
        lambda: rng.bytes(chooser.randrange(3000)),
        lambda: b"",
        lambda: rng.bytes(20 * KIB),
    ]
    payloads: list[object] = []
    while len(payloads) < count:
        maker = chooser.choice(makers)
        payloads += [maker() for _ in range(chooser.choice([1, 1, 5, 40]))]
    return payloads[:count]


def receive(subscriber: vecmq.sync.Subscriber, count: int) -> list[vecmq.Message]:
    received: list[vecmq.Message] = []
    while len(received) < count:
        received += subscriber.fetch(512, timeout_s=20) or pytest.fail(f"{len(received)} came")
    return received


def raw(payload: object) -> bytes:
    if isinstance(payload, np.ndarray):
        return payload.tobytes()
    assert isinstance(payload, bytes)
    return payload


def dtype(payload: object) -> str | None:
    return str(payload.dtype) if isinstance(payload, np.ndarray) else None


@pytest.mark.parametrize("mode", ["queue", "nats", "hybrid"])
def test_messages_keep_order_id_seq_and_headers(tmp_path: Path, mode: Mode) -> None:
    payloads = mixed(3000)
    with vecmq.sync.open(tmp_path / "mq", mode) as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        headers = [{"n": str(n)} if n % 7 == 0 else None for n in range(len(payloads))]
        pending = [
            publisher.publish_async(payload, header)
            for payload, header in zip(payloads, headers, strict=True)
        ]
        receipts = [one.result() for one in pending]
        assert all(one.done() for one in pending)
        received = receive(subscriber, len(payloads))
        assert not subscriber.fetch(timeout_s=0.2)
    assert [bytes(message.payload) for message in received] == [raw(one) for one in payloads]
    assert [message.dtype for message in received] == [dtype(one) for one in payloads]
    assert [message.headers for message in received] == [header or {} for header in headers]
    assert [message.id for message in received] == [receipt.id for receipt in receipts]
    seqs = [message.seq for message in received]
    assert seqs == [receipt.seq for receipt in receipts]
    assert seqs == sorted(set(seqs))


def test_small_messages_share_messages_of_the_stream(server: EmbeddedServer) -> None:
    with vecmq.sync.open(mode="nats", nats=options(server)) as mq:
        publisher = mq.publisher("t")
        pending = [publisher.publish_async(bytes([n % 256]) * 200) for n in range(5000)]
        receipts = [one.result() for one in pending]
        stored = asyncio.run(stream_messages(server))
        print(f"{len(receipts)} messages in {stored} of the stream")
        assert stored < len(receipts) / 4
        # Each has its share of what went over the wire.
        assert all(200 <= receipt.wire_bytes < 1000 for receipt in receipts)
        assert {receipt.frames_count for receipt in receipts} == {1}
        lone = publisher.publish(b"alone")
        assert asyncio.run(stream_messages(server)) == stored + 1
        assert lone.seq > receipts[-1].seq


async def stream_messages(server: EmbeddedServer) -> int:
    client = await nats.connect(server.url, token=server.token)
    try:
        return (await client.jetstream().stream_info("t")).state.messages
    finally:
        await client.close()


def test_packs_are_read_without_the_core(server: EmbeddedServer) -> None:
    payloads = mixed(600)
    with vecmq.sync.open(mode="nats", nats=options(server)) as mq:
        publisher = mq.publisher("t")
        headers = {"who": "\u00fcn\u00ef"}
        pending = [publisher.publish_async(payload, headers) for payload in payloads]
        ids = [one.result().id for one in pending]
    found = asyncio.run(read_all(server))
    assert [one[0] for one in found] == ids
    assert [one[1] for one in found] == [raw(payload) for payload in payloads]
    assert [one[2] for one in found] == [dtype(payload) for payload in payloads]


async def read_all(server: EmbeddedServer) -> list[tuple[str, bytes, str | None]]:
    """Every message of the stream, by nats-py and the pure reader."""
    client = await nats.connect(server.url, token=server.token)
    found: list[tuple[str, bytes, str | None]] = []
    try:
        context = client.jetstream()
        count = (await context.stream_info("t")).state.messages
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        subscription = await context.subscribe("t", ordered_consumer=True, config=config)
        reader = Reader()
        for _ in range(count):
            message = await subscription.next_msg(timeout=10)
            whole = reader.accept(message.headers or {}, message.data)
            assert whole is not None  # small ones have one frame
            if whole.rows == 1:
                found.append((whole.id, bytes(whole.payload), whole.dtype))
                continue
            for packed in unpack(whole):
                assert packed.headers == (("who", "\u00fcn\u00ef"),)
                one = packed.message
                found += [(one.id, bytes(one.payload), one.dtype)] if one.rows == 1 else rows(one)
    finally:
        await client.close()
    return found


def rows(message: object) -> list[tuple[str, bytes, str | None]]:
    """The rows of a run of arrays."""
    size = len(message.payload) // message.rows  # type: ignore[attr-defined]
    producer, _, seq = message.id.rpartition("-")  # type: ignore[attr-defined]
    return [
        (
            f"{producer}-{int(seq) + row}",
            bytes(message.payload[row * size : (row + 1) * size]),  # type: ignore[attr-defined]
            message.dtype,  # type: ignore[attr-defined]
        )
        for row in range(message.rows)  # type: ignore[attr-defined]
    ]


def test_messages_of_a_pack_are_acknowledged_one_by_one(server: EmbeddedServer) -> None:
    with vecmq.sync.open(mode="nats", nats=options(server)) as mq:
        publisher = mq.publisher("t")
        pending = [publisher.publish_async(f"{n}".encode()) for n in range(300)]
        seqs = [one.result().seq for one in pending]
        with mq.subscribe("t", "g", ack_wait_s=2.0) as subscriber:
            for message in receive(subscriber, len(seqs)):
                if message.seq != seqs[150]:
                    message.ack()
            again = subscriber.fetch(1, timeout_s=20)
            assert [message.seq for message in again] == [seqs[150]]
            assert again[0].deliveries == 2
            again[0].ack()
            assert not subscriber.fetch(1, timeout_s=3.5)


@pytest.mark.parametrize("mode", ["queue", "nats", "hybrid"])
def test_a_topic_is_taken_only_where_it_is_expected_to_end(tmp_path: Path, mode: Mode) -> None:
    with vecmq.sync.open(tmp_path / "mq", mode, threshold_bytes=64 * KIB) as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        first = publisher.publish(b"first", expected_last_seq=0)
        large = publisher.publish(bytes(3 * MIB), expected_last_seq=first.seq)
        for payload in (b"late", bytes(3 * MIB)):
            with pytest.raises(vecmq.RejectedError) as caught:
                publisher.publish(payload, expected_last_seq=first.seq)
            assert caught.value.code == WRONG_LAST_SEQ
        last = publisher.publish(b"last", expected_last_seq=large.seq)
        received = receive(subscriber, 3)
        assert [message.seq for message in received] == [first.seq, large.seq, last.seq]
        assert not subscriber.fetch(timeout_s=0.2)


async def test_futures_are_done_in_order(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path / "mq", mode="nats") as mq:
        publisher = mq.publisher("t")
        # More than the window: the call waits for room.
        futures = [await publisher.publish_async(bytes(100)) for _ in range(10_000)]
        receipts = await asyncio.gather(*futures)
        seqs = [receipt.seq for receipt in receipts]
        assert seqs == sorted(set(seqs))
        receipt = await publisher.publish(b"x", expected_last_seq=seqs[-1])
        with pytest.raises(vecmq.RejectedError):
            await publisher.publish(b"x", expected_last_seq=receipt.seq - (1 << 20))


async def test_what_cannot_be_published_is_refused_by_the_call(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path / "mq", mode="nats", message_bytes_max=100) as mq:
        publisher = mq.publisher("t")
        with pytest.raises(vecmq.TooLargeError):
            await publisher.publish_async(bytes(101))
        with pytest.raises(vecmq.PayloadError):
            await publisher.publish_async("text")
        with pytest.raises(vecmq.ConfigError):
            await publisher.publish(b"x", expected_last_seq=-1)
        assert (await (await publisher.publish_async(bytes(100)))).payload_bytes == 100


def test_atomic_groups_arrive_whole(server: EmbeddedServer) -> None:
    payloads = [np.random.default_rng(n).bytes(n * MIB + n) for n in (0, 1, 5, 9, 0, 30)]
    with vecmq.sync.open(mode="nats", nats=options(server), atomic=True) as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
        receipts = publisher.publish_many(payloads)
        received = receive(subscriber, len(payloads))
        assert [bytes(message.payload) for message in received] == payloads
        assert [message.seq for message in received] == [receipt.seq for receipt in receipts]


def test_a_refused_atomic_group_leaves_nothing(server: EmbeddedServer) -> None:
    with vecmq.sync.open(mode="nats", nats=options(server), atomic=True) as mq:
        publisher = mq.publisher("t")
        last = publisher.publish(b"x")
        stored = asyncio.run(stream_messages(server))
        with pytest.raises(vecmq.RejectedError):
            publisher.publish(bytes(5 * MIB), expected_last_seq=last.seq - (1 << 20))
        assert asyncio.run(stream_messages(server)) == stored
        publisher.publish(bytes(5 * MIB), expected_last_seq=last.seq)


def test_an_atomic_group_has_a_thousand_frames_at_most(tmp_path: Path) -> None:
    with (
        EmbeddedServer(tmp_path / "server", max_payload_bytes=16 * KIB) as server,
        vecmq.sync.open(mode="nats", nats=options(server), atomic=True) as mq,
    ):
        publisher = mq.publisher("t")
        with pytest.raises(vecmq.TooLargeError):
            publisher.publish(bytes(17 * MIB))
        assert publisher.publish(bytes(MIB)).frames_count > 1


def test_a_stream_without_batches_takes_no_atomic_groups(server: EmbeddedServer) -> None:
    with vecmq.sync.open(mode="nats", nats=options(server)) as mq:
        mq.publisher("t").publish(b"x")
    with (
        vecmq.sync.open(mode="nats", nats=options(server), atomic=True) as mq,
        pytest.raises(vecmq.ConfigError),
    ):
        mq.publisher("t").publish(b"x")
    with pytest.raises(vecmq.ConfigError):
        vecmq.sync.open(mode="queue", atomic=True)
    with pytest.raises(vecmq.ConfigError):
        vecmq.sync.open(mode="nats", replicas=6)
