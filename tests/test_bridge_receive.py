"""Receiving through `vecmq.bridge`: one message is one delivery, whatever it came in."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import nats
import nats.errors
import nats.js.errors
import numpy as np
import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg as NatsMsg
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from bridge_tools import LARGE, MIB, Errors, client, random_bytes
from vecmq import bridge
from vecmq.bridge import _assembly
from vecmq.errors import CorruptError, IncompleteError, TooLargeError
from vecmq.server import EmbeddedServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    store = tmp_path_factory.mktemp("bridge")
    with EmbeddedServer(store / "nats", max_payload_bytes=MIB) as running:
        yield running


@pytest.fixture
def errors() -> Errors:
    return Errors()


async def stream(nc: NatsClient, **config: Any) -> str:
    name = f"s-{uuid.uuid4().hex}"
    await nc.jetstream().add_stream(StreamConfig(name=name, subjects=[name], **config))
    return name


async def messages_in(nc: NatsClient, name: str) -> int:
    return int((await nc.jetstream().stream_info(name)).state.messages)


async def until_holds(nc: NatsClient, name: str, count: int) -> None:
    """A stream deletes a moment after an acknowledgement was counted."""
    while await messages_in(nc, name) != count:  # noqa: ASYNC110 - the server's
        await asyncio.sleep(0.02)


async def all_acknowledged(subscription: Any) -> None:
    while (await subscription.consumer_info()).num_ack_pending:  # noqa: ASYNC110 - the server's
        await asyncio.sleep(0.02)


async def first(errors: Errors) -> None:
    while not errors:  # noqa: ASYNC110 - an error callback sets nothing
        await asyncio.sleep(0.02)


def frames_of(payload: Any, **headers: str) -> list[tuple[dict[str, str], Any]]:
    """The frames of one message, to be sent by hand."""
    group = bridge.Client().plan(_assembly_normalise(payload), headers)
    return [(fields, bytes(body)) for fields, body in group.frames()]


def _assembly_normalise(payload: Any) -> Any:
    from vecmq._payload import normalise

    return normalise(payload)


class TestCore:
    @pytest.mark.parametrize("native", [True, False])
    @pytest.mark.parametrize("codec", ["raw", "planes"])
    async def test_callback_iterator_and_next_msg(
        self, server: EmbeddedServer, native: bool, codec: Any
    ) -> None:
        async with client(server, native=native, codec=codec) as nc:
            by_callback: list[Any] = []

            async def callback(msg: Any) -> None:
                by_callback.append(msg)

            await nc.subscribe("one.*", cb=callback)
            iterated = await nc.subscribe("one.*")
            waited = await nc.subscribe("one.*")
            await nc.publish("one.x", b"first", headers={"N": "1"})
            await nc.publish("one.x", LARGE, headers={"N": "2"}, reply="answers.here")
            await nc.publish("one.x", LARGE.tobytes())
            await nc.publish("one.x", np.zeros((0, 4), np.int16))
            await nc.publish("one.x", b"last")
            by_waiting = [await waited.next_msg(20) for _ in range(5)]
            by_iterating = []
            async for msg in iterated.messages:
                by_iterating.append(msg)
                if msg.data == b"last":
                    break
            while len(by_callback) < 5:  # noqa: ASYNC110 - it has a task of its own
                await asyncio.sleep(0.01)
            assert len(by_callback) == 5
            every: list[list[Any]] = [by_callback, by_waiting, by_iterating]
            for first, array, plain, empty, last in every:
                assert type(first) is type(last) is NatsMsg
                assert (first.data, first.headers, last.data) == (b"first", {"N": "1"}, b"last")
                assert type(array.data) is bytes
                assert (array.subject, array.reply) == ("one.x", "answers.here")
                assert array.headers == array.header == {"N": "2"}
                np.testing.assert_array_equal(array.array(), LARGE)
                assert np.shares_memory(array.numpy(), np.frombuffer(array.data, np.uint8))
                assert not array.array().flags.writeable
                assert (plain.data, plain.headers, plain.reply) == (LARGE.tobytes(), None, "")
                assert (empty.data, empty.array().shape, empty.dtype) == (b"", (0, 4), "int16")
            assert nc.groups_dropped == 0

    async def test_plain_subscribers_see_plain_bytes(self, server: EmbeddedServer) -> None:
        plain = await nats.connect(server.url, token=server.token)
        async with client(server) as nc:
            seen = await plain.subscribe("p")
            await plain.flush()
            payloads = [b"", b"small", random_bytes(MIB), random_bytes(MIB - 60)]
            for payload in payloads[:3]:
                await nc.publish("p", payload)
            await nc.publish("p", payloads[3], headers={"K": "v"})
            got = [await seen.next_msg(10) for _ in payloads]
            assert [msg.data for msg in got] == payloads
            assert [msg.headers for msg in got] == [None, None, None, {"K": "v"}]
        await plain.close()

    @pytest.mark.parametrize("native", [True, False])
    async def test_the_boundary_keeps_the_connection(
        self, server: EmbeddedServer, native: bool
    ) -> None:
        head = len("NATS/1.0\r\nK: v\r\n\r\n")
        async with client(server, native=native) as nc:
            seen = await nc.subscribe("b")
            sizes = [
                (MIB + extra - (head if headers else 0), headers)
                for headers in (None, {"K": "v"})
                for extra in (-1, 0, 1)
            ]
            for size, headers in sizes:
                await nc.publish("b", random_bytes(size), headers=headers)
            for size, headers in sizes:
                msg = await seen.next_msg(10)
                assert (msg.data, msg.headers) == (random_bytes(size), headers)
            assert nc.last_error is None

    async def test_many_producers_at_once(self, server: EmbeddedServer) -> None:
        async with client(server) as one, client(server, native=False) as other:
            seen: Any = await one.subscribe("many")
            await one.flush()
            arrays = [np.full((3, 100_000), n, np.float32) for n in range(12)]
            publishes = [(one, other)[n % 2].publish("many", a) for n, a in enumerate(arrays)]
            await asyncio.gather(*publishes)
            got = [(await seen.next_msg(20)).array() for _ in arrays]
            assert sorted(int(a[0, 0]) for a in got) == list(range(12))
            assert all((a == a[0, 0]).all() for a in got)

    @pytest.mark.parametrize("native", [True, False])
    async def test_queue_groups(self, server: EmbeddedServer, errors: Errors, native: bool) -> None:
        count = 8
        options: dict[str, Any] = {"native": native}
        async with (
            client(server, errors) as one,
            client(server, errors) as two,
            client(server, errors, **options) as sender,
        ):
            got: list[int] = []
            done = asyncio.Event()

            async def callback(msg: Any) -> None:
                got.append(int(msg.array()[0, 0]))
                assert (msg.array() == msg.array()[0, 0]).all()
                if len(got) == count:
                    done.set()

            for nc in (one, two, one):
                await nc.subscribe("shared.*", "workers", cb=callback)
                await nc.flush()
            everything: Any = await two.subscribe("shared.x")
            await two.flush()
            for n in range(count):
                await sender.publish("shared.x", np.full((3, 200_000), n, np.float32))
            await done.wait()
            assert sorted(got) == list(range(count))
            all_of_it = [(await everything.next_msg(10)).array()[0, 0] for _ in range(count)]
            assert all_of_it == list(range(count))
            assert not errors

    async def test_a_limit_counts_messages(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            limited = await nc.subscribe("limited")
            await limited.unsubscribe(limit=2)
            for _ in range(4):
                await nc.publish("limited", LARGE)
            got = [await limited.next_msg(10) for _ in range(2)]
            assert all(msg.data == LARGE.tobytes() for msg in got)
            with pytest.raises(nats.errors.TimeoutError):
                await limited.next_msg(0.3)

    async def test_requests(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:

            async def answer(msg: Any) -> None:
                await msg.respond(repr((msg.array().shape, msg.headers)).encode())

            await nc.subscribe("service", cb=answer)
            headers = {"K": "v"}
            answered = await nc.request("service", LARGE, timeout=10, headers=headers)
            assert answered.data == repr((LARGE.shape, {"K": "v"})).encode()
            answered = await nc.request("service", LARGE, timeout=10, old_style=True)
            assert answered.data == repr((LARGE.shape, None)).encode()
            with pytest.raises(nats.errors.NoRespondersError):
                await nc.request("nobody", LARGE, timeout=10)

    async def test_answers_are_plain_and_fit(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            refused: list[Exception] = []

            async def answer(msg: Any) -> None:
                try:
                    await msg.respond(LARGE.tobytes())
                except nats.errors.Error as error:
                    refused.append(error)
                    await msg.respond(b"too much")

            await nc.subscribe("service", cb=answer)
            assert (await nc.request("service", b"", timeout=10)).data == b"too much"
            assert isinstance(refused[0], nats.errors.MaxPayloadError)


class TestWhatIsNotDelivered:
    async def test_what_exceeds_the_limit(self, server: EmbeddedServer, errors: Errors) -> None:
        async with client(server, errors) as nc:
            seen = await nc.subscribe("s", pending_bytes_limit=2 * MIB)
            await nc.publish("s", LARGE)
            await nc.publish("s", b"next")
            assert (await seen.next_msg(10)).data == b"next"
            assert nc.groups_dropped == 1
            assert [type(error) for error in errors] == [TooLargeError]

    async def test_a_forged_size_allocates_nothing(
        self, server: EmbeddedServer, errors: Errors
    ) -> None:
        async with client(server, errors, message_bytes_max=2 * MIB) as nc:
            seen = await nc.subscribe("s")
            for fields, body in frames_of(LARGE):
                await NatsClient.publish(nc, "s", body, headers=fields)
            await nc.publish("s", b"next")
            assert (await seen.next_msg(10)).data == b"next"
            assert [type(error) for error in errors] == [TooLargeError]

    async def test_damage(self, server: EmbeddedServer, errors: Errors) -> None:
        async with client(server, errors) as nc:
            seen = await nc.subscribe("s")
            frames = frames_of(LARGE)
            for index, (fields, body) in enumerate(frames):
                data = body[:-1] + bytes([body[-1] ^ 1]) if index == 1 else body
                await NatsClient.publish(nc, "s", data, headers=fields)
            bad = {**frames[0][0], "Vecmq-Frame": "1;raw;nonsense"}
            await NatsClient.publish(nc, "s", b"", headers=bad)
            await nc.publish("s", LARGE)
            again: Any = await seen.next_msg(10)
            np.testing.assert_array_equal(again.array(), LARGE)
            assert [type(error) for error in errors] == [CorruptError, CorruptError]
            assert nc.groups_dropped == 2

    async def test_repeated_and_shuffled_frames(
        self, server: EmbeddedServer, errors: Errors
    ) -> None:
        async with client(server, errors) as nc:
            seen = await nc.subscribe("s")
            first, *middle, last = frames_of(LARGE, K="v")
            for fields, body in (last, *middle, *middle, first, first):
                await NatsClient.publish(nc, "s", body, headers=fields)
            msg: Any = await seen.next_msg(10)
            np.testing.assert_array_equal(msg.array(), LARGE)
            assert msg.headers == {"K": "v"}
            with pytest.raises(nats.errors.TimeoutError):
                await seen.next_msg(0.2)
            assert not errors

    async def test_a_group_that_never_ends(
        self, server: EmbeddedServer, errors: Errors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_assembly, "IDLE_S", 0.2)
        async with client(server, errors) as nc:
            seen = await nc.subscribe("s")
            for fields, body in frames_of(LARGE)[:-1]:
                await NatsClient.publish(nc, "s", body, headers=fields)
            await first(errors)
            assert [type(error) for error in errors] == [IncompleteError]
            assert nc.groups_dropped == 1
            await nc.publish("s", b"next")
            assert (await seen.next_msg(10)).data == b"next"


class TestPull:
    async def test_fetch_counts_messages(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            js, name = nc.jetstream(), await stream(nc)
            sent: list[Any] = [b"a", LARGE, b"b", LARGE[:100], LARGE[::-1], b"c"]
            for payload in sent:
                await js.publish(name, payload, headers={"K": "v"})
            pulled: Any = await js.pull_subscribe(name, "workers")
            got: list[Any] = await pulled.fetch(2, timeout=10)
            assert len(got) == 2
            got += await pulled.fetch(1, timeout=10)
            got += await pulled.fetch(3, timeout=10)
            for payload, msg in zip(sent, got, strict=True):
                assert msg.data == (payload if isinstance(payload, bytes) else payload.tobytes())
                assert msg.headers == {"K": "v"}
                await msg.ack()
            with pytest.raises(nats.errors.TimeoutError):
                await pulled.fetch(1, timeout=0.3)
            await all_acknowledged(pulled)

    @pytest.mark.parametrize("push", [True, False])
    async def test_a_backlog_of_a_work_queue_is_freed(
        self, server: EmbeddedServer, push: bool
    ) -> None:
        """All of it is here before the server has said what kind of stream it is."""
        async with client(server) as nc, client(server) as other:
            name = await stream(nc, retention="workqueue")
            for _ in range(2):
                await nc.jetstream().publish(name, LARGE)
            pulled: Any = None
            if push:
                pulled = await other.jetstream().subscribe(name, durable="d", manual_ack=True)
                got = [await pulled.next_msg(10) for _ in range(2)]
            else:
                pulled = await other.jetstream().pull_subscribe(name, "d")
                got = [(await pulled.fetch(1, timeout=10))[0] for _ in range(2)]
            for msg in got:
                assert msg.data == LARGE.tobytes()
                await msg.ack()
            async with asyncio.timeout(10):
                await until_holds(nc, name, 0)

    async def test_a_fetch_that_ends_leaves_another_its_time(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            js, name = nc.jetstream(), await stream(nc)
            pulled: Any = await js.pull_subscribe(name, "workers")
            short = asyncio.create_task(pulled.fetch(1, timeout=0.5))
            await asyncio.sleep(0.05)
            long = asyncio.create_task(pulled.fetch(1, timeout=20))
            with pytest.raises(nats.errors.TimeoutError):
                await short
            await js.publish(name, LARGE)
            async with asyncio.timeout(10):
                (msg,) = await long
            assert msg.data == LARGE.tobytes()

    @pytest.mark.parametrize("retention", ["limits", "workqueue", "interest"])
    @pytest.mark.parametrize("direct", [True, False])
    async def test_workers_share_messages(
        self, server: EmbeddedServer, errors: Errors, retention: str, direct: bool
    ) -> None:
        count = 12
        async with client(server, errors) as nc, client(server, errors) as other:
            name = await stream(nc, retention=retention, allow_direct=direct)
            js = nc.jetstream()
            config = ConsumerConfig(ack_wait=20)
            workers = [
                await c.jetstream().pull_subscribe(name, "workers", config=config)
                for c in (nc, other)
            ]
            got: list[int] = []

            async def work(pulled: Any) -> None:
                while len(got) < count:
                    try:
                        (msg,) = await pulled.fetch(1, timeout=1)
                    except nats.errors.TimeoutError:
                        continue
                    got.append(int(msg.array()[0, 0]))
                    assert (msg.array() == msg.array()[0, 0]).all()
                    await msg.ack()

            working = [asyncio.create_task(work(worker)) for worker in workers]
            for n in range(count):
                await js.publish(name, np.full((3, 200_000), n, np.float32))
            await asyncio.gather(*working)
            assert sorted(got) == list(range(count))
            await all_acknowledged(workers[0])
            await until_holds(nc, name, 0 if retention != "limits" else count * 3)
            assert not errors

    @pytest.mark.parametrize("retention", ["limits", "workqueue"])
    async def test_what_becomes_of_a_message(self, server: EmbeddedServer, retention: str) -> None:
        async with client(server) as nc:
            name = await stream(nc, retention=retention)
            js = nc.jetstream()
            await js.publish(name, LARGE)
            one: Any = await js.pull_subscribe(name, "w", config=ConsumerConfig(ack_wait=30))
            (msg,) = await one.fetch(1, timeout=10)
            await msg.nak()
            (msg,) = await one.fetch(1, timeout=10)  # the same worker again
            np.testing.assert_array_equal(msg.array(), LARGE)
            assert msg.metadata.num_delivered == 2
            await msg.nak(delay=0.05)
            await one.unsubscribe()
            two: Any = await nc.jetstream().pull_subscribe(name, "w")  # one that saw no frame
            (msg,) = await two.fetch(1, timeout=10)
            np.testing.assert_array_equal(msg.array(), LARGE)
            await msg.in_progress()
            await msg.ack_sync(timeout=10)
            assert msg.is_acked
            with pytest.raises(nats.errors.MsgAlreadyAckdError):
                await msg.ack()
            await js.publish(name, LARGE)
            (msg,) = await two.fetch(1, timeout=10)
            await msg.term()
            with pytest.raises(nats.errors.TimeoutError):
                await two.fetch(1, timeout=0.3)
            await all_acknowledged(two)

    async def test_one_unacknowledged_at_a_time(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            js, name = nc.jetstream(), await stream(nc)
            for _ in range(3):
                await js.publish(name, LARGE)
            config = ConsumerConfig(max_ack_pending=1)
            pulled: Any = await js.pull_subscribe(name, "w", config=config)
            for _ in range(3):
                (msg,) = await pulled.fetch(1, timeout=10)
                np.testing.assert_array_equal(msg.array(), LARGE)
                await msg.ack()

    @pytest.mark.parametrize("policy", [AckPolicy.ALL, AckPolicy.NONE])
    async def test_other_ack_policies(self, server: EmbeddedServer, policy: AckPolicy) -> None:
        async with client(server) as nc:
            js, name = nc.jetstream(), await stream(nc)
            await js.publish(name, b"plain")
            await js.publish(name, LARGE)
            config = ConsumerConfig(ack_policy=policy)
            pulled: Any = await js.pull_subscribe(name, "w", config=config)
            plain, msg = await pulled.fetch(2, timeout=10)
            assert plain.data == b"plain"
            await nc.flush()
            pending = (await pulled.consumer_info()).num_ack_pending
            # No frame was acknowledged: with "all" that would acknowledge the plain message.
            assert pending == (1 + 4 if policy is AckPolicy.ALL else 0)
            await msg.ack()
            await nc.flush()
            await all_acknowledged(pulled)  # the server takes it up beside the connection

    async def test_frames_that_are_gone(self, server: EmbeddedServer, errors: Errors) -> None:
        async with client(server, errors) as nc:
            js, name = nc.jetstream(), await stream(nc)
            await js.publish(name, LARGE)
            await js.publish(name, b"next")
            await js.delete_msg(name, 2)
            pulled: Any = await js.pull_subscribe(name, "w")
            (msg,) = await pulled.fetch(1, timeout=10)
            assert msg.data == b"next"
            await msg.ack()
            await first(errors)
            assert [type(error) for error in errors] == [IncompleteError]
            with pytest.raises(nats.errors.TimeoutError):
                await pulled.fetch(1, timeout=0.3)
            await all_acknowledged(pulled)
            assert nc.groups_dropped == 1

    async def test_frames_that_wait_long_do_not_come_again(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            js, name = nc.jetstream(), await stream(nc, retention="workqueue")
            pulled: Any = await js.pull_subscribe(name, "w", config=ConsumerConfig(ack_wait=1.5))
            waiting = asyncio.create_task(pulled.fetch(1, timeout=20))
            *before, last = frames_of(LARGE)
            for fields, body in before:
                await js.publish(name, body, headers=fields)
            await asyncio.sleep(4)
            await js.publish(name, last[1], headers=last[0])
            (msg,) = await waiting
            np.testing.assert_array_equal(msg.array(), LARGE)
            assert (await pulled.consumer_info()).num_redelivered == 0
            await msg.ack()
            await all_acknowledged(pulled)
            await until_holds(nc, name, 0)


class TestPush:
    async def test_callbacks_acknowledge(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            js, name = nc.jetstream(), await stream(nc)
            got: list[Any] = []
            done = asyncio.Event()

            async def callback(msg: Any) -> None:
                got.append(msg)
                if msg.data == b"last":
                    done.set()

            pushed = await js.subscribe(name, durable="d", cb=callback)
            await js.publish(name, LARGE)
            await js.publish(name, b"last")
            await done.wait()
            np.testing.assert_array_equal(got[0].array(), LARGE)
            assert len(got) == 2
            await nc.flush()
            await all_acknowledged(pushed)

    async def test_queue_groups_share_messages(self, server: EmbeddedServer) -> None:
        count = 12
        async with client(server) as nc, client(server) as other:
            js, name = nc.jetstream(), await stream(nc)
            got: list[int] = []
            done = asyncio.Event()

            async def callback(msg: Any) -> None:
                got.append(int(msg.array()[0, 0]))
                if len(got) == count:
                    done.set()

            for one in (nc, other):
                await one.jetstream().subscribe(name, "workers", cb=callback)
            for n in range(count):
                await js.publish(name, np.full((3, 200_000), n, np.float32))
            await done.wait()
            assert sorted(got) == list(range(count))

    async def test_ordered_consumers(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            js, name = nc.jetstream(), await stream(nc)
            for n in range(6):
                await js.publish(name, LARGE if n % 2 else b"plain")
            ordered = await js.subscribe(name, ordered_consumer=True)
            got = [await ordered.next_msg(10) for _ in range(6)]
            assert [msg.data == b"plain" for msg in got] == [True, False] * 3
            assert got[-1].data == LARGE.tobytes()
