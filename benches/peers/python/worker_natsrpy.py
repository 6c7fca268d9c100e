"""natsrpy: `publish`, every so often with `wait=True`; `fetch`.

natsrpy hands each message to a task of its own, so that several `publish` at once can overtake
each other. They keep their order when each is handed over before the next, which `publish` without
`wait=True` tells; then the last one's acknowledgement, with its sequence, stands for all.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Awaitable, Sequence
from typing import Any

from jetstream import ACK_PENDING_MSGS, CONSUMER, Client, JetStream, WaitDue
from natsrpy import Nats
from natsrpy.js import AckPolicy, PullConsumerConfig, StorageType, StreamConfig
from peer import PeerError, Spec, cut, main

TIMEOUT_S = 60.0
SMALL_BYTES = 4096


class Natsrpy(Client):
    """A connection of natsrpy."""

    window_msgs = 512
    fetch_msgs = 512

    def __init__(self) -> None:
        self.versions = {"natsrpy": importlib.metadata.version("natsrpy")}
        self._last: Any = None
        self._subscription: Any = None

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

    async def publish_all(
        self, name: str, payloads: Sequence[bytes], window: int, wait_due: WaitDue | None
    ) -> None:
        """Publishes messages in their order and waits for all acknowledgements."""
        number = 0
        for group in cut(payloads, window):
            ack: Any = None
            last = number + len(group) - 1
            for payload in group:
                if wait_due is not None:
                    await wait_due(number)
                ack = await self._js.publish(name, payload, wait=number == last)
                number += 1
            if ack.sequence != number:
                raise PeerError(f"expected {number} messages in the stream, got {ack.sequence}")

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

    async def core_publish(self, name: str, payload: bytes) -> None:
        """Publishes."""
        await self._nats.publish(name, payload)

    async def flush(self) -> None:
        """Waits for the server."""
        await self._nats.flush()

    async def core_subscribe(self, name: str) -> None:
        """Subscribes."""
        self._subscription = await self._nats.subscribe(name).detatch()
        await self._nats.flush()

    async def core_receive(self, timeout_s: float) -> list[bytes]:
        """Receives the next message."""
        try:
            async with asyncio.timeout(timeout_s):
                return [(await anext(self._subscription)).payload]
        except TimeoutError:
            return []

    async def unsubscribe(self) -> None:
        """Ends the subscription."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None


def open_session(spec: Spec) -> JetStream:
    """Makes it ready."""
    if sum(spec.sizes_bytes) <= SMALL_BYTES * spec.count:
        # To wake further threads for each message takes longer than the message.
        os.environ["TOKIO_WORKER_THREADS"] = "1"
    return JetStream(spec, Natsrpy)


if __name__ == "__main__":
    sys.exit(main(open_session))
