"""nats-py's own surface on `vecmq.bridge`: the same calls on both clients, the same outcomes."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import nats
import nats.aio.client
import nats.errors
import nats.js.errors
import numpy as np
import pytest
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext
from nats.js.api import PubAck, StreamConfig

import vecmq
from bridge_tools import MIB, random_bytes
from vecmq import bridge
from vecmq.errors import ConfigError, PayloadError, TooLargeError
from vecmq.server import EmbeddedServer

LARGE = np.frombuffer(random_bytes(3 * MIB), np.uint8)
Body = Callable[[Any, str], Awaitable[Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    store = tmp_path_factory.mktemp("bridge")
    with EmbeddedServer(store / "nats", max_payload_bytes=MIB) as running:
        yield running


def surface(function: Any) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def overridden() -> Iterator[tuple[str, Any, Any]]:
    pairs: list[tuple[type, type]] = [
        (bridge.Client, NatsClient),
        (bridge.JetStream, JetStreamContext),
        (bridge.PullSubscription, JetStreamContext.PullSubscription),
        (bridge.Msg, nats.aio.msg.Msg),
    ]
    for ours, theirs in pairs:
        for name, function in vars(ours).items():
            if callable(function) and name in vars(theirs) and not name.startswith("__"):
                yield f"{ours.__name__}.{name}", function, vars(theirs)[name]


@pytest.mark.parametrize(
    ("ours", "theirs"), [pair[1:] for pair in overridden()], ids=[pair[0] for pair in overridden()]
)
def test_signatures_are_nats_pys(ours: Any, theirs: Any) -> None:
    assert surface(ours) == surface(theirs)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_connect_has_the_signature_of_nats_connect_and_options() -> None:
    own = {"codec", "message_bytes_max", "native"}
    found = inspect.signature(bridge.connect).parameters.values()
    assert {p.name for p in found if p.kind is p.KEYWORD_ONLY} == own
    rest = [p for p in found if p.name not in own]
    theirs = list(inspect.signature(nats.connect).parameters.values())
    assert [(p.kind, p.default) for p in rest] == [(p.kind, p.default) for p in theirs]
    assert rest[0].name == theirs[0].name


# What is done on a client with a stream of that name; what it comes to is compared.
async def publish_plain(nc: Any, name: str) -> Any:
    seen = await nc.subscribe(name)
    await nc.publish(name, b"a", reply="r", headers={" K ": " v\r\nw "})
    msg = await seen.next_msg(10)
    return type(msg), msg.data, msg.reply, msg.headers, msg.subject


async def publish_stored(nc: Any, name: str) -> Any:
    js = nc.jetstream()
    headers = {"Nats-Msg-Id": "1"}
    return [await js.publish(name, b"a", headers=headers) for _ in range(2)]


async def publish_wrong_stream(nc: Any, name: str) -> Any:
    await nc.jetstream().publish(name, b"a", stream="other")


async def publish_no_stream(nc: Any, name: str) -> Any:
    await nc.jetstream().publish(f"{name}.nobody", b"a")


async def publish_asynchronously(nc: Any, name: str) -> Any:
    js = nc.jetstream(publish_async_max_pending=3)
    futures = [await js.publish_async(name, b"%d" % n) for n in range(9)]
    await js.publish_async_completed()
    assert js.publish_async_pending() == 0
    return [future.result().seq for future in futures]


async def publish_too_many(nc: Any, name: str) -> Any:
    js = nc.jetstream(publish_async_max_pending=1)
    await js.publish_async(name, b"a")
    await js.publish_async(name, b"b", wait_stall=1e-9)


async def publish_asynchronously_to_nobody(nc: Any, name: str) -> Any:
    await (await nc.jetstream().publish_async(f"{name}.nobody", b"a"))


async def publish_closed(nc: Any, name: str) -> Any:
    await nc.close()
    await nc.publish(name, b"a")


async def publish_bad_subject(nc: Any, _: str) -> Any:
    await nc.publish("a b", b"a")


async def publish_empty_subject(nc: Any, _: str) -> Any:
    await nc.publish("", b"a")


async def publish_bad_header(nc: Any, name: str) -> Any:
    await nc.publish(name, b"a", headers={"a b": "c"})


async def request(nc: Any, name: str) -> Any:
    async def answer(msg: Any) -> None:
        await msg.respond(msg.data + b"!")

    await nc.subscribe(f"{name}.service", cb=answer)
    new = await nc.request(f"{name}.service", b"a", timeout=10)
    old = await nc.request(f"{name}.service", b"a", timeout=10, old_style=True)
    return new.data, old.data


async def request_nobody(nc: Any, name: str) -> Any:
    await nc.request(f"{name}.service", b"a", timeout=10)


async def request_silence(nc: Any, name: str) -> Any:
    await nc.subscribe(f"{name}.service")
    await nc.request(f"{name}.service", b"a", timeout=0.05)


async def fetch(nc: Any, name: str) -> Any:
    js = nc.jetstream()
    for n in range(5):
        await js.publish(name, b"%d" % n)
    pulled = await js.pull_subscribe(name, "d")
    got = [*await pulled.fetch(2, timeout=5), *await pulled.fetch(3, timeout=5)]
    for msg in got:
        await msg.ack()
    return [(msg.data, msg.headers, msg.metadata.sequence) for msg in got]


async def fetch_nothing(nc: Any, name: str) -> Any:
    await (await nc.jetstream().pull_subscribe(name, "d")).fetch(1, timeout=0.1)


async def fetch_too_few(nc: Any, name: str) -> Any:
    await (await nc.jetstream().pull_subscribe(name, "d")).fetch(0)


async def push(nc: Any, name: str) -> Any:
    js = nc.jetstream()
    pushed = await js.subscribe(name, durable="d")
    await js.publish(name, b"a")
    msg = await pushed.next_msg(10)
    await msg.ack_sync(timeout=10)
    return msg.data, (await pushed.consumer_info()).num_ack_pending


async def limited(nc: Any, name: str) -> Any:
    seen = await nc.subscribe(name)
    await seen.unsubscribe(limit=2)
    for n in range(4):
        await nc.publish(name, b"%d" % n)
    got = [(await seen.next_msg(10)).data for _ in range(2)]
    await nc.flush()
    return got, seen.delivered, seen.pending_msgs


async def drained(nc: Any, name: str) -> Any:
    got: list[bytes] = []

    async def callback(msg: Any) -> None:
        got.append(msg.data)

    await nc.subscribe(name, cb=callback)
    await nc.publish(name, b"a")
    await nc.drain()
    return got, nc.is_closed, nc.stats["out_msgs"], nc.stats["in_msgs"]


CALLS: list[Body] = [
    publish_plain,
    publish_stored,
    publish_wrong_stream,
    publish_no_stream,
    publish_asynchronously,
    publish_too_many,
    publish_asynchronously_to_nobody,
    publish_closed,
    publish_bad_subject,
    publish_empty_subject,
    publish_bad_header,
    request,
    request_nobody,
    request_silence,
    fetch,
    fetch_nothing,
    fetch_too_few,
    push,
    limited,
    drained,
]


async def outcome(nc: Any, body: Body) -> Any:
    name = f"s-{uuid.uuid4().hex}"
    await nc.jetstream().add_stream(StreamConfig(name=name, subjects=[name]))
    try:
        async with asyncio.timeout(50):
            returned = await body(nc, name)
        return repr(returned).replace(name, "NAME")
    except Exception as error:  # noqa: BLE001 - whatever it is, both have to raise it
        return type(error), getattr(error, "err_code", None)
    finally:
        await nc.close()


@pytest.mark.parametrize("body", CALLS, ids=lambda body: body.__name__)
async def test_plain_payloads_are_treated_alike(server: EmbeddedServer, body: Body) -> None:
    theirs = await outcome(await nats.connect(server.url, token=server.token), body)
    ours = await outcome(await bridge.connect(server.url, token=server.token), body)
    wrapped = bridge.wrap(await nats.connect(server.url, token=server.token))
    assert theirs == ours == await outcome(wrapped, body)


class TestPublishAsync:
    @pytest.mark.parametrize("native", [True, False])
    async def test_groups_keep_their_order(self, server: EmbeddedServer, native: bool) -> None:
        nc = await bridge.connect(server.url, token=server.token, native=native)
        async with asyncio.timeout(50), nc:
            js, name = nc.jetstream(publish_async_max_pending=4), f"s-{uuid.uuid4().hex}"
            await js.add_stream(name=name, subjects=[name])
            futures = []
            for n in range(20):
                futures.append(await js.publish_async(name, LARGE[: MIB // 4 * (1 + n % 8)]))
                assert js.publish_async_pending() <= 4
            await js.publish_async_completed()
            assert js.publish_async_pending() == 0
            acks = [future.result() for future in futures]
            assert all(isinstance(ack, PubAck) for ack in acks)
            assert sorted(ack.seq for ack in acks) == [ack.seq for ack in acks]

    @pytest.mark.parametrize("native", [True, False])
    async def test_refusals(self, server: EmbeddedServer, native: bool) -> None:
        options: dict[str, Any] = {"native": native, "message_bytes_max": 4 * MIB}
        nc = await bridge.connect(server.url, token=server.token, **options)
        async with asyncio.timeout(50), nc:
            js = nc.jetstream(publish_async_max_pending=1)
            lost = await js.publish_async("nobody", LARGE)
            with pytest.raises(nats.js.errors.TooManyStalledMsgsError):
                await js.publish_async("nobody", LARGE, wait_stall=1e-6)
            with pytest.raises(nats.js.errors.NoStreamResponseError):
                await lost
            with pytest.raises(TooLargeError):
                await js.publish_async("nobody", np.zeros(4 * MIB + 1, np.uint8))
            with pytest.raises(PayloadError):
                await js.publish_async("nobody", "text")
            await js.publish_async_completed()

    @pytest.mark.parametrize("native", [True, False])
    async def test_a_cancelled_group_is_nowhere(self, server: EmbeddedServer, native: bool) -> None:
        nc = await bridge.connect(server.url, token=server.token, native=native)
        async with asyncio.timeout(50), nc:
            js, name = nc.jetstream(), f"s-{uuid.uuid4().hex}"
            await js.add_stream(name=name, subjects=[name])
            pulled: Any = await js.pull_subscribe(name, "d")
            future = await js.publish_async(name, np.zeros(32 * MIB, np.uint8))
            future.cancel()
            await js.publish_async_completed()
            await js.publish(name, b"next")
            (msg,) = await pulled.fetch(1, timeout=10)
            assert msg.data == b"next"


class TestNative:
    """Large payloads over the core's connection come to what they come to over nats-py's."""

    @pytest.mark.parametrize("codec", ["raw", "zstd", "planes"])
    async def test_acknowledgements_and_ids(self, server: EmbeddedServer, codec: Any) -> None:
        nc = await bridge.connect(server.url, token=server.token, codec=codec)
        async with asyncio.timeout(50), nc:
            js, name = nc.jetstream(), f"s-{uuid.uuid4().hex}"
            await js.add_stream(StreamConfig(name=name, subjects=[name], allow_msg_ttl=True))
            headers = {"Nats-Msg-Id": "order-1", "K": " v "}
            arguments: dict[str, Any] = {"headers": headers, "stream": name, "msg_ttl": 100}
            first = await js.publish(name, LARGE, **arguments)
            again = await js.publish(name, LARGE, **arguments)
            assert (first.stream, first.duplicate) == (name, None)
            assert (again.seq, again.duplicate) == (first.seq, True)
            assert headers == {"Nats-Msg-Id": "order-1", "K": " v "}
            pulled: Any = await js.pull_subscribe(name, "d")
            (msg,) = await pulled.fetch(1, timeout=10)
            assert msg.data == LARGE.tobytes()
            assert msg.headers["Nats-Msg-Id"] == "order-1"
            assert (msg.headers["K"], msg.headers["Nats-TTL"]) == ("v", "100")
            assert msg.metadata.sequence.stream == first.seq

    async def test_refusals(self, server: EmbeddedServer) -> None:
        nc = await bridge.connect(server.url, token=server.token)
        async with asyncio.timeout(50), nc:
            js, name = nc.jetstream(), f"s-{uuid.uuid4().hex}"
            limits: dict[str, Any] = {"max_bytes": 2 * MIB, "discard": "new"}
            await js.add_stream(StreamConfig(name=name, subjects=[name], **limits))
            with pytest.raises(nats.js.errors.BadRequestError) as wrong:
                await js.publish(name, LARGE, stream="other")
            assert wrong.value.err_code == 10060
            with pytest.raises(nats.js.errors.ServiceUnavailableError) as full:
                await js.publish(name, LARGE)
            assert full.value.err_code == 10077
            with pytest.raises(nats.js.errors.NoStreamResponseError):
                await js.publish("nobody", LARGE)
            await nc.subscribe("silent")
            await nc.flush()
            with pytest.raises(nats.errors.TimeoutError):
                await js.publish("silent", LARGE, timeout=0.05)
            await nc.close()
            for publish in (js.publish, js.publish_async, nc.publish):
                with pytest.raises(nats.errors.ConnectionClosedError):
                    await publish(name, LARGE)

    async def test_awaited_publishes_keep_their_order(self, server: EmbeddedServer) -> None:
        nc = await bridge.connect(server.url, token=server.token)
        async with asyncio.timeout(50), nc:
            seen = await nc.subscribe("order")
            for n in range(40):
                await nc.publish("order", LARGE if n % 3 == 0 else b"%d" % n)
            got = [(await seen.next_msg(10)).data for _ in range(40)]
            assert [len(data) == LARGE.size for data in got] == [n % 3 == 0 for n in range(40)]
            assert [int(data) for data in got if len(data) < 3] == [n for n in range(40) if n % 3]

    async def test_what_cannot_be_native_goes_over_nats_py(
        self, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        options: dict[str, Any] = {"no_echo": False, "tls_hostname": "localhost"}
        nc = await bridge.connect(server.url, token=server.token, **options)
        async with asyncio.timeout(50), nc:
            seen = await nc.subscribe("s")
            for _ in range(2):
                await nc.publish("s", LARGE)
                assert (await seen.next_msg(10)).data == LARGE.tobytes()
        assert len([record for record in caplog.records if record.name == "vecmq"]) == 1


def now() -> tuple[Any, ...]:
    module: Any = nats
    return module.connect, module.NATS, module.aio.client.Client


class TestFramesOverNatsPy:
    async def test_an_unknown_version_gets_the_same_bytes(
        self, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = await nats.connect(server.url, token=server.token)
        nc = await bridge.connect(server.url, token=server.token, native=False)
        async with asyncio.timeout(50), plain, nc:
            seen = await plain.subscribe("f")
            js, name = nc.jetstream(), f"s-{uuid.uuid4().hex}"
            await js.add_stream(name=name, subjects=[name])
            await plain.flush()
            wires = []
            for version in ("2.16.0", "3.0.0"):
                monkeypatch.setattr(nats.aio.client, "__version__", version)
                await nc.publish("f", LARGE, headers={" K ": " a\r\nb\u00e4 "}, reply="r")
                got = [await seen.next_msg(10) for _ in range(4)]
                wires.append([(m.data, m.reply, (m.headers or {}).get("K")) for m in got])
                ack = await js.publish(name, LARGE)
            assert wires[0] == wires[1]
            assert wires[0][-1][1:] == ("r", "a  b\u00e4")
            assert b"".join(data for data, *_ in wires[0]) == LARGE.tobytes()
            assert ack.seq == 8
            assert nc.last_error is None
            assert nc.stats["out_bytes"] >= 4 * LARGE.size

    async def test_reconnecting_it_takes_what_nats_py_takes(self, server: EmbeddedServer) -> None:
        plain = await nats.connect(server.url, token=server.token)
        ours = await bridge.connect(server.url, token=server.token)
        for nc in (plain, ours):
            nc._status = NatsClient.RECONNECTING
            await nc.publish("s", b"small")
            await nc.publish("s", random_bytes(MIB))
            with pytest.raises(nats.errors.OutboundBufferLimitError):
                await nc.publish("s", random_bytes(MIB))
            nc._status = NatsClient.CONNECTED
            await nc.close()
        ours = await bridge.connect(server.url, token=server.token)
        ours._status = NatsClient.RECONNECTING
        with pytest.raises(nats.errors.OutboundBufferLimitError):
            await ours.publish("s", LARGE)
        assert ours.pending_data_size == 0
        ours._status = NatsClient.CONNECTED
        await ours.close()


class TestInstall:
    async def test_it_swaps_and_undoes(self, server: EmbeddedServer) -> None:
        before = now()
        with vecmq.install(codec="planes"):
            nc = await nats.connect(server.url, token=server.token)
            async with nc:
                assert isinstance(nc, bridge.Client)
                assert isinstance(nc, NatsClient)
                assert nc._vecmq_options.codec == "planes"
            by_hand = nats.aio.client.Client()
            await by_hand.connect(server.url, token=server.token)
            async with by_hand:
                seen = await by_hand.subscribe("s")
                await by_hand.publish("s", LARGE)  # type: ignore[arg-type]
                assert (await seen.next_msg(10)).data == LARGE.tobytes()
        assert now() == before
        undo = vecmq.install()
        assert nats.connect is not before[0]
        undo()
        undo()
        assert nats.connect is before[0]

    def test_wrong_options(self) -> None:
        with pytest.raises(ConfigError):
            vecmq.install(codec="lz5")  # type: ignore[arg-type]
