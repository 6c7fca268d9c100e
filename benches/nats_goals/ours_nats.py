"""vecmq as a worker of `make bench-nats`; docs/bench-workers.md is the contract.

It stands in the same frame as the Python peers (benches/peers/python): one process publishes, a
child receives, the same payloads, the same check. The spec's `contender` chooses how: "many" hands
all messages to one `publish_many`, "each" one to each `publish_async`; "core" and "array" publish
bytes and arrays through `vecmq.connect`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers" / "python"))

import nats
import numpy as np
from jetstream import Client, JetStream, WaitDue
from peer import Spec, main

import vecmq

TIMEOUT_S = 60.0
# Up to here a copy costs less than an object that compares.
COPIED_BYTES_MAX = 4096
ROOM_BYTES = 1 << 30


class View:
    """A payload that was received, compared without a copy.

    Args:
        payload: A buffer.
    """

    __slots__ = ("_words",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, payload: Any) -> None:
        self._words = np.frombuffer(payload, np.uint64)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, bytes) or len(other) != self._words.nbytes:
            return False
        return bool(np.array_equal(self._words, np.frombuffer(other, np.uint64)))

    def __getitem__(self, where: slice) -> bytes:
        return self._words.view(np.uint8)[where].tobytes()


class Many(Client):
    """A handle of vecmq; all messages in one call."""

    fetch_msgs = 512

    def __init__(self) -> None:
        self.versions = {"vecmq": vecmq.__version__}
        self._batches: list[vecmq.Batch] = []
        self._subscriber: vecmq.Subscriber | None = None
        self._name = ""

    async def connect(self, url: str, token: str | None, window: int) -> None:  # noqa: ARG002
        """Connects."""
        options = vecmq.NatsOptions(url, token=token)
        self._mq = await vecmq.open(mode="nats", nats=options, codec="raw")
        # Mode "nats" does not delete topics.
        self._admin = await nats.connect(url, token=token)

    async def close(self) -> None:
        """Disconnects."""
        await self._admin.close()
        await self._mq.close()

    async def make_stream(self, name: str) -> None:
        """Makes the topic."""
        self._publisher = self._mq.publisher(name)

    async def delete_stream(self, name: str) -> None:
        """Deletes it."""
        await self._admin.jetstream(timeout=TIMEOUT_S).delete_stream(name)

    async def publish(self, name: str, payload: bytes) -> Awaitable[Any]:  # noqa: ARG002
        """Hands a message over."""
        return asyncio.create_task(self._publisher.publish(payload, timeout_s=TIMEOUT_S))

    async def publish_all(
        self,
        name: str,  # noqa: ARG002
        payloads: Sequence[bytes],
        window: int,  # noqa: ARG002
        wait_due: WaitDue | None,
    ) -> None:
        """Publishes all; vecmq has its own window."""
        assert wait_due is None
        await self._publisher.publish_many(payloads, timeout_s=TIMEOUT_S)

    async def subscribe(self, name: str, batch: int) -> None:  # noqa: ARG002
        """Joins a group."""
        self._name = name
        self._subscriber = self._mq.subscribe(name, "bench")

    async def receive(self, batch: int, timeout_s: float) -> list[Any]:
        """Receives what there is."""
        if self._subscriber is None:
            self._subscriber = self._mq.subscribe(self._name, "bench")
        received = await self._subscriber.fetch(batch, timeout_s)
        if received:
            self._batches.append(received)
        return [as_bytes(message.payload) for message in received]

    async def acknowledge(self) -> None:
        """Acknowledges all that was received."""
        for received in self._batches:
            received.ack()
        self._batches = []

    async def unsubscribe(self) -> None:
        """Leaves the group."""
        self._batches = []
        if self._subscriber is not None:
            self._subscriber.close()
            self._subscriber = None


class Later(Many):
    """The same, read when all is published.

    A subscriber of vecmq reads ahead from its first moment, a peer's consumer when it is asked.
    """

    async def subscribe(self, name: str, batch: int) -> None:  # noqa: ARG002
        """Joins with the first `receive`."""
        self._name = name


class Each(Many):
    """A message a call, without waiting for the one before."""

    async def publish_all(
        self,
        name: str,  # noqa: ARG002
        payloads: Sequence[bytes],
        window: int,  # noqa: ARG002
        wait_due: WaitDue | None,
    ) -> None:
        """Publishes all; vecmq has its own window."""
        assert wait_due is None
        publish = self._publisher.publish_async
        pending = [await publish(payload, timeout_s=TIMEOUT_S) for payload in payloads]
        for future in pending:
            await future


class Core(Client):
    """`vecmq.connect`, which is nats-py's client with a native connection."""

    def __init__(self) -> None:
        self.versions = {"vecmq": vecmq.__version__}
        self._subscription: Any = None

    async def connect(self, url: str, token: str | None, window: int) -> None:  # noqa: ARG002
        """Connects."""
        connect: Any = vecmq.connect  # type: ignore[attr-defined]
        self._nats = await connect(url, token=token, native=True)

    async def close(self) -> None:
        """Disconnects."""
        await self._nats.close()

    async def core_publish(self, name: str, payload: bytes) -> None:
        """Publishes."""
        await self._nats.publish(name, self.payload(payload))

    def payload(self, payload: bytes) -> Any:
        """Gives what is handed to `publish`."""
        return payload

    async def flush(self) -> None:
        """Waits for the server."""
        await self._nats.flush(int(TIMEOUT_S))

    async def core_subscribe(self, name: str) -> None:
        """Subscribes."""
        self._subscription = await self._nats.subscribe(name, pending_bytes_limit=ROOM_BYTES)
        await self._nats.flush()

    async def core_receive(self, timeout_s: float) -> list[Any]:
        """Receives the next message."""
        try:
            return [as_bytes((await self._subscription.next_msg(timeout_s)).data)]
        except (nats.errors.TimeoutError, TimeoutError):
            return []

    async def unsubscribe(self) -> None:
        """Ends the subscription."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    async def make_stream(self, name: str) -> None:
        """Not of core NATS."""
        raise NotImplementedError

    async def delete_stream(self, name: str) -> None:
        """Not of core NATS."""
        raise NotImplementedError

    async def publish(self, name: str, payload: bytes) -> Awaitable[Any]:
        """Not of core NATS."""
        raise NotImplementedError

    async def subscribe(self, name: str, batch: int) -> None:
        """Not of core NATS."""
        raise NotImplementedError

    async def receive(self, batch: int, timeout_s: float) -> list[bytes]:
        """Not of core NATS."""
        raise NotImplementedError

    async def acknowledge(self) -> None:
        """Not of core NATS."""
        raise NotImplementedError


class Array(Core):
    """The same with arrays."""

    def payload(self, payload: bytes) -> Any:
        """Gives what is handed to `publish`."""
        return np.frombuffer(payload, np.uint8)


CLIENTS: dict[str, type[Client]] = {"many": Many, "each": Each, "core": Core, "array": Array}


def as_bytes(payload: Any) -> Any:
    """Makes a payload comparable with bytes.

    Args:
        payload: A buffer of whole words.

    Returns:
        Bytes, or a View.
    """
    if isinstance(payload, bytes):
        return payload
    if len(payload) <= COPIED_BYTES_MAX:
        return bytes(payload)
    return View(payload)


def open_session(spec: Spec) -> JetStream:
    """Makes it ready."""
    client = CLIENTS[spec.contender]
    return JetStream(spec, Later if client is Many and spec.workload == "publish" else client)


if __name__ == "__main__":
    sys.exit(main(open_session))
