"""What the bridge's tests share: a connection with a stream, read back by plain nats-py."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import nats
import numpy as np
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, PubAck, StreamConfig

from vecmq import bridge
from vecmq._payload import to_array
from vecmq.reader import Reader
from vecmq.server import EmbeddedServer

if TYPE_CHECKING:
    import pytest
    from nats.aio.client import Client as NatsClient

MIB = 1 << 20
Body = Callable[["Case"], Coroutine[Any, Any, None]]
Run = Callable[..., None]


class Stored(NamedTuple):
    """One NATS message as a plain nats-py subscriber sees it."""

    seq: int
    fields: dict[str, str]
    data: bytes

    @property
    def is_frame(self) -> bool:
        return "Vecmq-Frame" in self.fields


class Case:
    """One test's connection, wrapped context and stream; the stream's name is its subject."""

    def __init__(self, nc: NatsClient, **options: Any) -> None:
        self.nc = nc
        self.client = bridge.wrap(nc, **{"native": False, **options})
        self.js = self.client.jetstream(timeout=20)
        self.subject = f"s-{uuid.uuid4().hex}"

    async def stored(self) -> list[Stored]:
        """Read the stream with nothing but nats-py."""
        js = self.nc.jetstream()
        total = (await js.stream_info(self.subject)).state.messages
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
        subscription = await js.pull_subscribe(self.subject, stream=self.subject, config=config)
        out: list[Stored] = []
        while len(out) < total:
            msgs = await subscription.fetch(min(16, total - len(out)), timeout=20)
            out += [Stored(m.metadata.sequence.stream, dict(m.headers or {}), m.data) for m in msgs]
        return out

    async def received(self) -> list[Any]:
        """Put the stream's messages together with the pure-Python reader."""
        reader = Reader()
        messages = [reader.accept(s.fields, s.data) for s in await self.stored() if s.is_frame]
        return [message for message in messages if message is not None]

    async def only_array(self) -> np.ndarray[Any, Any]:
        """The array of the one message in the stream."""
        (message,) = await self.received()
        return to_array(message.payload, message.dtype, message.shape)

    async def assert_alive(self) -> None:
        """The connection did not pay for what came before."""
        await self.nc.flush()
        assert self.nc.is_connected
        assert self.nc.last_error is None
        assert self.nc.stats["reconnects"] == 0


def runner(server: EmbeddedServer) -> Run:
    """Run async test bodies, each with its own connection and stream."""

    def run(body: Body, config: dict[str, Any] | None = None, **options: Any) -> None:
        asyncio.run(connected(server, body, config or {}, options))

    return run


async def connected(
    server: EmbeddedServer, body: Body, config: dict[str, Any], options: dict[str, Any]
) -> None:
    nc = await nats.connect(server.url, token=server.token, allow_reconnect=False)
    case = Case(nc, **options)
    try:
        stream = StreamConfig(name=case.subject, subjects=[case.subject], **config)
        await case.js.add_stream(stream)
        async with asyncio.timeout(120):
            await body(case)
    finally:
        await nc.close()


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def after_each_frame(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], object]) -> None:
    """Call `do(n)` after the n-th frame was acknowledged, from 1."""
    plain, count = JetStreamContext.publish, iter(range(1, 1000))

    async def publish(self: Any, *args: Any, **kwargs: Any) -> PubAck:
        ack = await plain(self, *args, **kwargs)
        do(next(count))
        return ack

    monkeypatch.setattr(JetStreamContext, "publish", publish)


LARGE = np.frombuffer(random_bytes(3 * MIB), np.float32).reshape(-1, 256)


class Errors(list[Exception]):
    async def add(self, error: Exception) -> None:
        self.append(error)


@asynccontextmanager
async def client(
    server: EmbeddedServer, errors: Errors | None = None, **options: Any
) -> AsyncIterator[bridge.Client]:
    callbacks = {} if errors is None else {"error_cb": errors.add}
    nc = await bridge.connect(server.url, token=server.token, **{**callbacks, **options})
    try:
        async with asyncio.timeout(50):
            yield nc
        assert nc.stats["reconnects"] == 0
    finally:
        await nc.close()
