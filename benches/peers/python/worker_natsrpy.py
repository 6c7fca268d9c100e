"""natsrpy: `publish(wait=True)` with acknowledgements in flight, `fetch`.

natsrpy hands each message to a task of its own, so several in flight can overtake each other.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Awaitable
from typing import Any

from jetstream import ACK_PENDING_MSGS, CONSUMER, Client, JetStream
from natsrpy import Nats
from natsrpy.js import AckPolicy, PullConsumerConfig, StorageType, StreamConfig
from peer import main

TIMEOUT_S = 60.0


class Natsrpy(Client):
    """A connection of natsrpy."""

    # More overtake each other more often, and are no faster.
    window_msgs = 128
    fetch_msgs = 512

    def __init__(self) -> None:
        self.versions = {"natsrpy": importlib.metadata.version("natsrpy")}
        self._last: Any = None

    async def connect(self, url: str, token: str | None, window: int) -> None:  # noqa: ARG002
        """Connects."""
        self._nats = Nats([url], token=token)
        await self._nats.startup()
        self._js = await self._nats.jetstream(timeout=TIMEOUT_S, ack_timeout=TIMEOUT_S)

    async def close(self) -> None:
        """Disconnects."""
        await self._nats.shutdown()

    async def make_stream(self, name: str) -> None:
        """Makes a stream."""
        await self._js.streams.create(StreamConfig(name, [name], storage=StorageType.FILE))

    async def delete_stream(self, name: str) -> None:
        """Deletes a stream."""
        await self._js.streams.delete(name)

    async def publish(self, name: str, payload: bytes) -> Awaitable[Any]:
        """Hands a message over."""
        ack: Awaitable[Any] = self._js.publish(name, payload, wait=True)
        return ack

    async def subscribe(self, name: str, batch: int) -> None:  # noqa: ARG002
        """Makes a pull consumer."""
        stream = await self._js.streams.get(name)
        config = PullConsumerConfig(
            durable_name=CONSUMER, ack_policy=AckPolicy.ALL, max_ack_pending=ACK_PENDING_MSGS
        )
        self._consumer = await stream.consumers.create(config)

    async def receive(self, batch: int, timeout_s: float) -> list[bytes]:
        """Receives what there is."""
        # Without `expires` it does not wait for a first message.
        messages = await self._consumer.fetch(max_messages=batch, expires=timeout_s)
        if not messages:
            return []
        self._last = messages[-1]
        return [message.payload for message in messages]

    async def acknowledge(self) -> None:
        """Acknowledges all that was received."""
        await self._last.ack()


if __name__ == "__main__":
    sys.exit(main(lambda spec: JetStream(spec, Natsrpy)))
