"""natsio: `publish_async` with acknowledgements in flight, `consume`."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Awaitable
from typing import Any

import natsio
from jetstream import ACK_PENDING_MSGS, CONSUMER, Client, JetStream
from natsio.jetstream import AckPolicy, ConsumerConfig, NoMessagesError, StreamConfig
from peer import main

TIMEOUT_S = 60.0
# Its default refuses a message of more than 2 MiB.
PENDING_BYTES = 64 << 20
# Of its own it drops what a subscriber has not taken beyond 64 MB.
ROOM_BYTES = 1 << 31


class Natsio(Client):
    """A connection of natsio."""

    # natsio's own default of what may be pending.
    window_msgs = 4000
    fetch_msgs = 2000

    def __init__(self) -> None:
        self.versions = {"natsio": importlib.metadata.version("natsio")}
        self._last: Any = None
        self._messages: Any = None
        self._subscription: Any = None

    async def connect(self, url: str, token: str | None, window: int) -> None:
        """Connects."""
        self._nats = await natsio.connect(url, token=token, max_pending_size=PENDING_BYTES)
        self._js = self._nats.jetstream(timeout=TIMEOUT_S, publish_async_max_pending=window + 1)

    async def close(self) -> None:
        """Disconnects."""
        await self._nats.close()

    async def make_stream(self, name: str) -> None:
        """Makes a stream."""
        await self._js.create_stream(StreamConfig(name=name, subjects=[name]))

    async def delete_stream(self, name: str) -> None:
        """Deletes a stream."""
        await self._js.delete_stream(name)

    async def publish(self, name: str, payload: bytes) -> Awaitable[Any]:
        """Hands a message over."""
        ack: Awaitable[Any] = await self._js.publish_async(name, payload)
        return ack

    async def publish_one(self, name: str, payload: bytes) -> None:
        """Publishes and waits."""
        await self._js.publish(name, payload)

    async def subscribe(self, name: str, batch: int) -> None:
        """Makes a pull consumer, which keeps a batch requested."""
        stream = await self._js.stream(name)
        config = ConsumerConfig(
            durable_name=CONSUMER, ack_policy=AckPolicy.ALL, max_ack_pending=ACK_PENDING_MSGS
        )
        consumer = await stream.create_consumer(config)
        self._messages = consumer.consume(max_messages=batch)

    async def receive(self, batch: int, timeout_s: float) -> list[bytes]:  # noqa: ARG002
        """Receives the next message."""
        try:
            self._last = await self._messages.next(timeout=timeout_s)
        except NoMessagesError:
            return []
        return [self._last.payload]

    async def acknowledge(self) -> None:
        """Acknowledges all that was received."""
        await self._last.ack()

    async def core_publish(self, name: str, payload: bytes) -> None:
        """Publishes."""
        await self._nats.publish(name, payload)

    async def flush(self) -> None:
        """Waits for the server."""
        await self._nats.flush(TIMEOUT_S)

    async def core_subscribe(self, name: str) -> None:
        """Subscribes."""
        self._subscription = self._nats.subscribe(name, pending_bytes_limit=ROOM_BYTES)
        await self._nats.flush()

    async def core_receive(self, timeout_s: float) -> list[bytes]:
        """Receives the next message."""
        try:
            return [(await self._subscription.next_msg(timeout_s)).payload]
        except TimeoutError:
            return []

    async def unsubscribe(self) -> None:
        """Ends the session."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        if self._messages is not None:
            await self._messages.stop()
        self._messages = self._last = None


if __name__ == "__main__":
    sys.exit(main(lambda spec: JetStream(spec, Natsio)))
