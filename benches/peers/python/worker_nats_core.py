"""nats-core with nats-jetstream: `publish` in several tasks, the pull consumer's `fetch`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
from collections.abc import Awaitable
from typing import Any

import nats.client
import nats.jetstream
from jetstream import ACK_PENDING_MSGS, CONSUMER, Client, JetStream
from peer import main

TIMEOUT_S = 60.0
# nats-core 0.2.0 loses what is published while it waits for a full socket. With room for all that
# is in flight it never waits.
ROOM_BYTES = 64 << 20


class NatsCore(Client):
    """A connection of nats-core."""

    window_msgs = 2000
    fetch_msgs = 2000
    is_on_uvloop = True

    def __init__(self) -> None:
        names = ("nats-core", "nats-jetstream")
        self.versions = {name: importlib.metadata.version(name) for name in names}
        self._last: Any = None
        self._messages: Any = None
        # Nothing came from the batch that was asked for last.
        self._is_empty = True

    async def connect(self, url: str, token: str | None, window: int) -> None:  # noqa: ARG002
        """Connects."""
        self._nats = await nats.client.connect(url, token=token)
        connection: Any = self._nats._connection  # noqa: SLF001
        connection._writer.transport.set_write_buffer_limits(high=ROOM_BYTES)  # noqa: SLF001
        self._js = nats.jetstream.new(self._nats)

    async def close(self) -> None:
        """Disconnects."""
        await self._nats.close()

    async def make_stream(self, name: str) -> None:
        """Makes a stream."""
        await self._js.create_stream(name=name, subjects=[name], storage="file")

    async def delete_stream(self, name: str) -> None:
        """Deletes a stream."""
        await self._js.delete_stream(name)

    async def publish(self, name: str, payload: bytes) -> Awaitable[Any]:
        """Hands a message over."""
        if self.is_paced:
            return asyncio.create_task(self.publish_one(name, payload))
        return asyncio.create_task(self._js.publish(name, payload, timeout=TIMEOUT_S))

    async def publish_one(self, name: str, payload: bytes) -> None:
        """Publishes and waits; without the flush a message waits 5 ms for others."""
        ack = asyncio.create_task(self._js.publish(name, payload, timeout=TIMEOUT_S))
        await asyncio.sleep(0)
        await self._nats.flush()
        await ack

    async def subscribe(self, name: str, batch: int) -> None:  # noqa: ARG002
        """Makes a pull consumer."""
        self._consumer = await self._js.create_consumer(
            name, CONSUMER, CONSUMER, ack_policy="all", max_ack_pending=ACK_PENDING_MSGS
        )
        self._messages = None

    async def receive(self, batch: int, timeout_s: float) -> list[bytes]:
        """Receives the next message of a batch, which is asked for when there is none."""
        while True:
            if self._messages is None:
                self._messages = await self._consumer.fetch(max_messages=batch, max_wait=timeout_s)
            try:
                self._last = await anext(self._messages)
            except StopAsyncIteration:
                is_empty, self._messages = self._is_empty, None
                self._is_empty = True
                if is_empty:
                    return []
                continue
            self._is_empty = False
            return [self._last.data]

    async def acknowledge(self) -> None:
        """Acknowledges all that was received."""
        await self._last.ack()


if __name__ == "__main__":
    sys.exit(main(lambda spec: JetStream(spec, NatsCore)))
