"""FastStream's NatsBroker, unchanged, on `vecmq.install()`: arrays of any size arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import nats.errors
import numpy as np
import pytest
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.security import NatsToken

import vecmq
from bridge_tools import MIB
from vecmq.server import EmbeddedServer

ARRAY = np.random.default_rng(15).random((5_000, 768), np.float32)  # 15 MB


class ArrayCodec:
    """The twelve lines that carry an ndarray through FastStream."""

    async def encode(self, msg: Any, _serializer: Any = None) -> tuple[Any, str | None]:
        if isinstance(msg, np.ndarray):
            return msg, "application/x-ndarray"
        return str(msg).encode(), "text/plain"

    async def decode(self, msg: Any) -> Any:
        if msg.content_type == "application/x-ndarray":
            return msg.raw_message.array()
        return msg.body.decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    store = tmp_path_factory.mktemp("bridge")
    with EmbeddedServer(store / "nats", max_payload_bytes=MIB) as running:
        yield running


def broker(server: EmbeddedServer) -> NatsBroker:
    options: dict[str, Any] = {"codec": ArrayCodec(), "logger": None}
    return NatsBroker(server.url, security=NatsToken(server.token), **options)


async def through(server: EmbeddedServer, published: Any, **where: Any) -> list[Any]:
    got: asyncio.Queue[Any] = asyncio.Queue()
    app = broker(server)

    @app.subscriber("arrays", **where)  # type: ignore[untyped-decorator]
    async def handle(x: Any) -> None:
        await got.put(x)

    async with asyncio.timeout(50), app:
        await app.start()
        stored = {"stream": where["stream"].name} if "stream" in where else {}
        await app.publish("before", "arrays", **stored)
        await app.publish(published, "arrays", **stored)
        return [await got.get() for _ in range(2)]


@pytest.mark.parametrize("pull", [False, True], ids=["push", "pull"])
@pytest.mark.parametrize("native", [True, False])
async def test_arrays_through_a_stream(server: EmbeddedServer, native: bool, pull: bool) -> None:
    name = f"arrays-{native}-{pull}"
    where: dict[str, Any] = {"stream": JStream(name, subjects=["arrays"])}
    if pull:
        where |= {"pull_sub": PullSub(batch_size=1), "durable": "worker"}
    with vecmq.install(native=native):
        before, array = await through(server, ARRAY, **where)
        nc = await nats.connect(server.url, token=server.token)
        await nc.jetstream().delete_stream(name)
        await nc.close()
    assert before == "before"
    np.testing.assert_array_equal(array, ARRAY)


async def test_arrays_without_a_stream(server: EmbeddedServer) -> None:
    with vecmq.install():
        before, array = await through(server, ARRAY)
    assert before == "before"
    np.testing.assert_array_equal(array, ARRAY)


async def test_requests(server: EmbeddedServer) -> None:
    with vecmq.install():
        app = broker(server)

        @app.subscriber("mean")
        async def handle(x: Any) -> str:
            return f"{x.shape}"

        async with asyncio.timeout(50), app:
            await app.start()
            answer = await app.request(ARRAY, "mean", timeout=20)  # type: ignore[arg-type]
            assert answer.body == str(ARRAY.shape).encode()


async def test_it_does_not_go_without(server: EmbeddedServer) -> None:
    with pytest.raises(nats.errors.MaxPayloadError):
        await through(server, ARRAY.tobytes().decode("latin-1"))
