"""The asyncio API. `vecmq.sync` has blocking twins with the same names.

Publishing a small message is a write to the embedded log: it is done when the call returns, and the
await costs no turn of the event loop. Large messages finish through one watched socket that wakes
the loop once for all that gathered.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from vecmq import _messages
from vecmq._admin import Deleted, TopicAdmin
from vecmq._batch import Batch
from vecmq._loop import Loop
from vecmq._native import Message, Receipt
from vecmq._native import Publisher as NativePublisher
from vecmq._native import Subscriber as NativeSubscriber
from vecmq._options import (
    ACK_WAIT_S,
    MESSAGE_BYTES_MAX,
    TIMEOUT_S,
    Codec,
    Level,
    Mode,
    NatsOptions,
    OpenOptions,
    Route,
    Start,
    Stores,
    check_delivery,
    check_options,
    check_route,
    check_timeout,
    seek_target,
)
from vecmq.errors import ClosedError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from vecmq.integrity import Recovery
    from vecmq.retention import Retention
    from vecmq.server import EmbeddedServer

__all__ = ["AttachedHandle", "Handle", "Publisher", "Subscriber", "attach", "open"]

# Messages that iteration takes from the core at a time.
_ITERATE_MSGS = 512


class Publisher:
    """Publishes to one topic. Made by `Handle.publisher`."""

    def __init__(self, native: NativePublisher, loop: Loop, topic: str) -> None:
        self._native = native
        self._loop = loop
        self.topic = topic

    async def publish(
        self,
        payload: object,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        route: Route | None = None,
    ) -> Receipt:
        """Publish one message and return its receipt.

        The receipt says which route took it. Copies of the payload on the way: queue 1 (into the
        log), NATS 0 for a raw frame of 4 KiB or more, 1 below and for coded frames. A writable
        payload is borrowed until the receipt: changing it meanwhile is an error, not a torn
        message.

        Args:
            payload: ndarray or buffer of any shape; dtype and shape travel with it. Not mutated. An
                array that is not C-contiguous is copied once more.
            headers: str to str; keys starting with "Nats-" or "Vecmq-" are reserved.
            timeout_s: Seconds > 0 until the receipt has to be there; None waits.
            route: "queue" or "nats" to choose the route by hand; None leaves it to the router.

        Returns:
            Receipt(route, seq, id, level, duplicate, frames_count, payload_bytes, wire_bytes,
            rows_count).

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload exceeds `message_bytes_max` of the handle.
            InvalidHeadersError: Headers that cannot be sent.
            ConfigError: A bad timeout or route.
            BufferMutatedError: The payload changed before its receipt; nothing was delivered.
            PublishUnknownError: Time was over and the message may have been stored.
            TimeoutError: Time was over and the message was not sent.
            RejectedError: The server refused it, and the queue could not take it.
            ClosedError: The handle was closed.
        """
        receipts = await self._submit([_messages.item(payload, headers)], timeout_s, route)
        return receipts[0]

    async def publish_many(
        self,
        payloads: Iterable[object],
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        route: Route | None = None,
    ) -> list[Receipt]:
        """Publish several messages, in order, and return their receipts.

        The small ones reach the log in one write; the large ones are on the way together.

        Args:
            payloads: Payloads as for `publish`.
            headers: Headers of every message.
            timeout_s: Seconds > 0 until all receipts have to be there; None waits.
            route: As for `publish`.

        Returns:
            A receipt for each payload, in order.

        Raises:
            As `publish`; the first error, after every message has ended. What is refused for its
            form is refused before anything is written.
        """
        items = _messages.items(payloads, headers)
        return await self._submit(items, timeout_s, route) if items else []

    async def publish_rows(
        self,
        rows: object,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        route: Route | None = None,
    ) -> Receipt:
        """Publish every row of an n x d array as a message of its own, packed.

        Each row has its own seq and its own ack; a frame holds many. Copies: as for `publish`.

        Args:
            rows: Array of 1 to 1,000,000 rows, with two or more dimensions.
            headers: Headers of every message.
            timeout_s: As for `publish`.
            route: As for `publish`.

        Returns:
            One Receipt: seq of the first row, rows_count rows with consecutive seqs (in mode "nats"
            the rows share the seq of their group).

        Raises:
            As `publish`; PayloadError also for fewer than two dimensions or no row.
        """
        receipts = await self._submit([_messages.rows_item(rows, headers)], timeout_s, route)
        return receipts[0]

    async def _submit(
        self, items: list[_messages.Item], timeout_s: float | None, route: Route | None
    ) -> list[Receipt]:
        check_timeout(timeout_s)
        check_route(route)
        loop = self._loop
        loop.check()
        token = loop.tokens(len(items))
        receipts = self._native.publish(items, route, timeout_s, loop.native, token)
        if len(receipts) == 1:  # a gather of one costs as much as all the rest
            receipt = receipts[0] or await loop.future(token)
            assert receipt is not None  # a publish ends with one, or with an error
            return [receipt]
        pending = {
            index: loop.future(token + index)
            for index, receipt in enumerate(receipts)
            if receipt is None
        }
        if pending:
            ended = await asyncio.gather(*pending.values(), return_exceptions=True)
            for index, outcome in zip(pending, ended, strict=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                receipts[index] = outcome
        return [receipt for receipt in receipts if receipt is not None]


class Subscriber:
    """Reads one topic for one subscription group, in order. Made by `Handle.subscribe`.

    ``async for message in subscriber`` yields messages until the subscription is closed.
    """

    def __init__(
        self,
        native: NativeSubscriber,
        loop: Loop,
        topic: str,
        group: str,
        ack_wait_s: float | None,
    ) -> None:
        self._native = native
        self._loop = loop
        self._ahead: deque[Message] = deque()
        self._waiting: asyncio.Future[Receipt | None] | None = None
        self._turn = asyncio.Lock()
        self._closed = False
        self._ack_wait_s = ack_wait_s
        self._ahead_since = 0.0
        self.topic = topic
        self.group = group

    async def fetch(self, max_msgs: int = _ITERATE_MSGS, timeout_s: float | None = None) -> Batch:
        """Return up to `max_msgs` messages, waiting for the first.

        Args:
            max_msgs: Messages, > 0.
            timeout_s: Seconds > 0 to wait for the first message; None waits.

        Returns:
            A Batch; empty when the time was over.

        Raises:
            ConfigError: A bad count or timeout.
            CorruptError: A message that cannot be read; `ack_through` its seq to step over it.
            IncompleteError: A group that has lost frames; step over it likewise.
            ClosedError: The subscription or the handle was closed.
        """
        if not isinstance(max_msgs, int) or max_msgs < 1:
            raise ConfigError(f"max_msgs: expected messages > 0, got {max_msgs!r}")
        check_timeout(timeout_s)
        self._loop.check()
        async with self._turn:
            if self._ahead:
                return Batch(self._ahead.popleft() for _ in range(min(max_msgs, len(self._ahead))))
            return await self._fetch(max_msgs, timeout_s)

    async def _fetch(self, max_msgs: int, timeout_s: float | None) -> Batch:
        loop = self._loop
        deadline = None if timeout_s is None else loop.loop.time() + timeout_s
        while True:
            token = loop.tokens(1)
            messages, look_s = self._native.poll(max_msgs, loop.native, token)
            if messages:
                return Batch(messages)
            # A message may be due again before one comes.
            look = None if look_s is None else loop.loop.time() + look_s
            ends = [end for end in (deadline, look) if end is not None]
            self._waiting = loop.future(token)
            try:
                async with asyncio.timeout_at(min(ends, default=None)):
                    await self._waiting
            except TimeoutError:
                if deadline is not None and loop.loop.time() >= deadline:
                    return Batch()
            finally:
                self._waiting = None

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if self._ahead:
            self._keep_ahead()
        while not self._ahead:
            try:
                self._ahead.extend(await self.fetch(_ITERATE_MSGS))
                self._ahead_since = time.monotonic()
            except ClosedError:
                if self._closed:
                    raise StopAsyncIteration from None
                raise
        return self._ahead.popleft()

    def _keep_ahead(self) -> None:
        # The caller has not seen these yet: their time begins anew while he works.
        wait_s = self._ack_wait_s
        if wait_s is not None and time.monotonic() - self._ahead_since > wait_s / 4:
            for message in self._ahead:
                message.in_progress()
            self._ahead_since = time.monotonic()

    async def batches(self, max_msgs: int = _ITERATE_MSGS) -> AsyncIterator[Batch]:
        """Yield batches of up to `max_msgs` messages until the subscription is closed.

        Args:
            max_msgs: Messages, > 0.

        Yields:
            Batches with at least one message.

        Raises:
            As `fetch`.
        """
        while True:
            try:
                batch = await self.fetch(max_msgs)
            except ClosedError:
                if self._closed:
                    return
                raise
            yield batch

    def ack_through(self, seq: int) -> None:
        """Mark every message up to and including `seq` done, delivered or not.

        Args:
            seq: Position in the topic.

        Raises:
            StorageError: The cursor could not be saved.
            ClosedError: The subscription or the handle was closed.
        """
        self._native.ack_through(seq)
        self._ahead = deque(message for message in self._ahead if message.seq > seq)

    async def seek(
        self, to: int | datetime | Literal["first", "new"], *, inclusive: bool = True
    ) -> None:
        """Move the group, with all its subscribers; what it had acked after that comes again.

        Args:
            to: A seq; an aware datetime (the first message published then or later; "new" where
                there is none); "first" (the oldest message) or "new" (after the newest one).
            inclusive: False: after that seq or time instead of at it.

        Raises:
            SeqNotFoundError: The topic does not hold that seq; the message names the nearest.
            ConfigError: `to` is none of these, or a datetime without a time zone.
            UnsupportedError: Mode "nats".
            ClosedError: The subscription or the handle was closed.
        """
        kind, value = seek_target(to)
        await asyncio.to_thread(self._native.seek, kind, value, inclusive)
        self._ahead.clear()

    def close(self) -> None:
        """End the subscription; its group and cursor stay. A second call does nothing.

        Raises:
            ForkError: Called in a forked child.
        """
        self._closed = True
        self._native.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Handle(TopicAdmin):
    """One open directory, one connection, or both. Made by `open`; belongs to one event loop."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._loop = Loop()
        self._subscribers: weakref.WeakSet[Subscriber] = weakref.WeakSet()

    @property
    def path(self) -> Path | None:
        """The directory; None in mode "nats" with a server of your own."""
        return self._stores.path

    @property
    def mode(self) -> Mode:
        """ "hybrid", "queue" or "nats"."""
        return self._stores.options.mode

    @property
    def recovery(self) -> Recovery | None:
        """What the open replayed, dropped and repaired; None without a queue (mode "nats")."""
        return self._stores.recovery

    @property
    def server(self) -> EmbeddedServer | None:
        """The embedded nats-server, where this handle runs one."""
        return self._stores.server

    def publisher(self, topic: str) -> Publisher:
        """Return a publisher of the topic; the topic is made where it does not exist yet.

        Args:
            topic: 1 to 200 printable ASCII characters without whitespace and ``. * > / \\``.

        Returns:
            A Publisher; any number may publish to one topic.

        Raises:
            InvalidNameError: The name breaks the rules.
            ClosedError: The handle was closed.
        """
        return Publisher(self._stores.hub.publisher(topic), self._loop, topic)

    def subscribe(
        self,
        topic: str,
        group: str,
        start: Start = "first",
        *,
        ack_wait_s: float | None = ACK_WAIT_S,
        max_deliver: int | None = None,
        dead_letter_topic: str | None = None,
    ) -> Subscriber:
        """Join a subscription group of the topic; it is made where it does not exist yet.

        Subscribers of one group compete: each message goes to one of them. Groups are independent.

        Args:
            topic: As for `publisher`.
            group: Durable name that shares one cursor; the rules of topic names.
            start: Where a new group begins: "first" (the oldest message) or "new".
            ack_wait_s: Seconds > 0 after which a message that this subscriber got and did not ack
                is delivered again; None: when the subscriber is closed.
            max_deliver: Deliveries > 0 after which a message goes to `dead_letter_topic` instead of
                being delivered again; None: no limit. Costs a write for every fetch, so that a
                consumer that dies of a message is counted.
            dead_letter_topic: Its messages keep payload and headers and get the headers
                "Dead-Letter-Topic", "-Group", "-Seq" and "-Deliveries". None: ``<topic>-dead``.

        Returns:
            A Subscriber. It starts at the group's cursor: the first message that was not acked.

        Raises:
            InvalidNameError: A name breaks the rules.
            ConfigError: A bad `start`, time or count; `max_deliver` in mode "nats".
            ClosedError: The handle was closed.

        Source: JetStream's consumer options ack_wait (30 s) and max_deliver.
        """
        options = check_delivery(topic, ack_wait_s, max_deliver, dead_letter_topic)
        native = self._stores.hub.subscribe(topic, group, start, *options)
        subscriber = Subscriber(native, self._loop, topic, group, ack_wait_s)
        self._subscribers.add(subscriber)
        return subscriber

    async def retain(self) -> Deleted:
        """Delete what retention allows, now; it runs by itself too, every minute and sooner.

        Returns:
            Deleted(messages, size_bytes).

        Raises:
            UnsupportedError: Mode "nats".
            StorageError: The log could not be written.
            ClosedError: The handle was closed.
        """
        return Deleted(*(await asyncio.to_thread(self._stores.hub.retain)))

    async def purge_topic(self, topic: str) -> Deleted:
        """Delete all messages of a topic, acked or not; seqs go on where they were.

        Messages that are on their way to the stream stay, and with them what came after.

        Args:
            topic: An existing topic.

        Returns:
            Deleted(messages, size_bytes).

        Raises:
            TopicNotFoundError: There is no such topic.
            UnsupportedError: Mode "nats".
            NotConnectedError: The server cannot be reached (mode "hybrid").
            StorageError: The log could not be written.
            ClosedError: The handle was closed.
        """
        return Deleted(*(await asyncio.to_thread(self._stores.hub.purge_topic, topic)))

    async def delete_topic(self, topic: str) -> None:
        """Delete a topic, its messages, its groups and its stream.

        Publishers and subscribers of it end with TopicNotFoundError.

        Args:
            topic: An existing topic.

        Raises:
            TopicNotFoundError: There is no such topic.
            UnsupportedError: Mode "nats".
            NotConnectedError: The server cannot be reached; nothing was deleted (mode "hybrid").
            StorageError: The log could not be written.
            ClosedError: The handle was closed.
        """
        await asyncio.to_thread(self._stores.hub.delete_topic, topic)

    async def close(self) -> None:
        """Close subscriptions, the stores and the embedded server. A second call does nothing.

        Publishes still in flight end with ClosedError; their fate is resolved at the next open.

        Raises:
            StorageError: The last write to the log failed.
        """
        for subscriber in list(self._subscribers):
            subscriber.close()
        try:
            await asyncio.shield(asyncio.to_thread(self._stores.close))
        finally:
            self._loop.close()


class _Opening:
    """Await it for a handle to close by hand, or use it in ``async with``."""

    def __init__(self, options: OpenOptions) -> None:
        self._options = options
        self._handle: Handle | None = None

    def __await__(self) -> Generator[object, None, Handle]:
        return self._open().__await__()

    async def _open(self) -> Handle:
        # Off the loop: recovery, the server's start and the connect block.
        return Handle(await asyncio.to_thread(Stores, self._options))

    async def __aenter__(self) -> Handle:
        self._handle = await self._open()
        return self._handle

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            await self._handle.close()


def open(
    path: str | os.PathLike[str] | None = None,
    mode: Mode = "hybrid",
    nats: str | NatsOptions | None = None,
    *,
    threshold_bytes: int | None = None,
    codec: Codec = "raw",
    level: Level = "stored",
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    retention: Retention | None = None,
    attach: bool = True,
) -> _Opening:
    """Open a directory and a connection: ``async with open(...)`` or ``await open(...)``.

    Args:
        path: Directory of the queue and of the embedded server's store, made 0700 where it does not
            exist. None: a temporary one that is deleted on close.
        mode: "hybrid" (both routes in one order), "queue" (no NATS) or "nats" (no RocksDB).
        nats: URL or NatsOptions of a server. None: an embedded nats-server on loopback.
        threshold_bytes: Fixed size from which messages take the NATS route. None: learned.
        codec: "raw", "zstd1" or "planes" (byte planes, for floats). A chunk that does not shrink is
            stored raw.
        level: What receipts promise: "stored" survives kill -9 of any process, "durable" a power
            cut.
        message_bytes_max: Largest payload in bytes, published or received.
        retention: What may be deleted; None keeps everything.
        attach: Other processes of this user may subscribe through this one (see `attach`).

    Returns:
        Something to await or to enter; it gives a Handle.

    Raises:
        ConfigError: A value is out of its range, or two contradict each other.
        LockedError: Another process or handle owns the directory (when awaited, as all below).
        ServerError: The embedded server did not start.
        NotConnectedError: The server could not be reached.
        StorageError: The directory cannot be used.
        CorruptError: The log in the directory is damaged.

    Source: Milvus `mq.type` chooses one queue per instance; mode "hybrid" takes both.
    """
    options = check_options(
        path,
        mode,
        nats,
        threshold_bytes=threshold_bytes,
        codec=codec,
        level=level,
        message_bytes_max=message_bytes_max,
        retention=retention,
        attach=attach,
    )
    return _Opening(options)


# At the end: it takes Subscriber from here.
from vecmq._attach_aio import AttachedHandle, attach  # noqa: E402
