"""nats-py: `publish_async` with acknowledgements in flight, `pull_subscribe` and `fetch`."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Awaitable
from typing import Any

import nats
import nats.errors
from jetstream import ACK_PENDING_MSGS, CONSUMER, Client, JetStream
from nats.js.api import AckPolicy, ConsumerConfig, StorageType
from peer import main

TIMEOUT_S = 60.0
# Of its own it drops what a subscriber has not taken beyond 128 MB.
ROOM_BYTES = 1 << 31


class NatsPy(Client):
    """A connection of nats-py."""

    # nats-py's own default of what may be pending.
    window_msgs = 4000
    fetch_msgs = 2000
    is_on_uvloop = True

    def __init__(self) -> None:
        self.versions = {"nats-py": importlib.metadata.version("nats-py")}
        self._last: Any = None
        self._subscription: Any = None

    async def connect(self, url: str, token: str | None, window: int) -> None:
        """Connects."""
        self._nats = await nats.connect(url, token=token)
        self._js = self._nats.jetstream(
            timeout=TIMEOUT_S, publish_async_max_pending=max(window, 2) + 1
        )

    async def close(self) -> None:
        """Disconnects."""
        await self._nats.close()

    async def make_stream(self, name: str) -> None:
        """Makes a stream."""
        await self._js.add_stream(name=name, subjects=[name], storage=StorageType.FILE)

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

    async def subscribe(self, name: str, batch: int) -> None:  # noqa: ARG002
        """Makes a pull consumer."""
        config = ConsumerConfig(ack_policy=AckPolicy.ALL, max_ack_pending=ACK_PENDING_MSGS)
        self._subscription = await self._js.pull_subscribe(name, CONSUMER, name, config)

    async def receive(self, batch: int, timeout_s: float) -> list[bytes]:
        """Receives what there is."""
        try:
            messages = await self._subscription.fetch(batch, timeout_s)
        except (nats.errors.TimeoutError, TimeoutError):
            return []
        self._last = messages[-1]
        return [message.data for message in messages]

    async def acknowledge(self) -> None:
        """Acknowledges all that was received."""
        await self._last.ack()

    async def core_publish(self, name: str, payload: bytes) -> None:
        """Publishes."""
        await self._nats.publish(name, payload)

    async def flush(self) -> None:
        """Waits for the server."""
        await self._nats.flush(int(TIMEOUT_S))

    async def core_subscribe(self, name: str) -> None:
        """Subscribes."""
        self._subscription = await self._nats.subscribe(name, pending_bytes_limit=ROOM_BYTES)
        await self._nats.flush()

    async def core_receive(self, timeout_s: float) -> list[bytes]:
        """Receives the next message."""
        try:
            return [(await self._subscription.next_msg(timeout_s)).data]
        except (nats.errors.TimeoutError, TimeoutError):
            return []

    async def unsubscribe(self) -> None:
        """Ends the subscription."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        self._subscription = self._last = None


if __name__ == "__main__":
    sys.exit(main(lambda spec: JetStream(spec, NatsPy)))
