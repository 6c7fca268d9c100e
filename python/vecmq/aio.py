"""The asyncio API. `vecmq.sync` has blocking twins with the same names.

Publishing a small message is a write to the embedded log: it is done when the call returns, and the
await costs no turn of the event loop. Large messages finish through one watched socket that wakes
the loop once for all that gathered.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vecmq import _messages
from vecmq._admin import Deleted, TopicAdmin
from vecmq._loop import Loop, Opening
from vecmq._native import Publisher as NativePublisher
from vecmq._native import Receipt
from vecmq._nats_options import NatsOptions
from vecmq._options import (
    ACK_WAIT_S,
    MESSAGE_BYTES_MAX,
    SWEEP_AGE_S,
    TIMEOUT_S,
    Codec,
    Coding,
    Level,
    Mode,
    Route,
    Start,
    Stores,
    check_codec,
    check_delivery,
    check_options,
    check_publish,
    check_seq,
)
from vecmq._subscribe_aio import Subscriber
from vecmq.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from vecmq.integrity import Recovery
    from vecmq.retention import Retention
    from vecmq.server import EmbeddedServer

__all__ = ["AttachedHandle", "Handle", "Publisher", "Subscriber", "attach", "open"]


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
        codec: Codec | None = None,
        codec_level: int | None = None,
        expected_last_seq: int | None = None,
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
            codec: Codec of this message, as for `open`; None: the publisher's.
            codec_level: Level of codec "zstd", which has to be named with it.
            expected_last_seq: Seq of the topic's last message, 0 for none: the message is refused
                unless the topic still ends there (in mode "nats": with it, or with messages that
                left together with it).

        Returns:
            Receipt(route, seq, id, level, duplicate, frames_count, payload_bytes, wire_bytes,
            rows_count, codec, codec_why).

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload exceeds `message_bytes_max` of the handle.
            InvalidHeadersError: Headers that cannot be sent.
            ConfigError: A bad timeout, route, codec or level.
            BufferMutatedError: The payload changed before its receipt; nothing was delivered.
            PublishUnknownError: Time was over and the message may have been stored.
            TimeoutError: Time was over and the message was not sent.
            StorageError: The log could not be written, or time was over and the server says that
                its disk takes nothing more; the message may have been stored then.
            RejectedError: The server refused it, and the queue could not take it.
            ClosedError: The handle was closed.
        """
        item = _messages.item(payload, headers)
        coding = check_publish(timeout_s, route, codec, codec_level)
        if expected_last_seq is None:
            return (await self._submit([item], timeout_s, route, coding))[0]
        seq = check_seq(expected_last_seq)
        return await self._loop.hand_over(self._native, item, route, timeout_s, coding, seq)

    async def publish_async(
        self,
        payload: object,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        route: Route | None = None,
        codec: Codec | None = None,
        codec_level: int | None = None,
    ) -> asyncio.Future[Receipt]:
        """Hand one message over and return a future of its receipt.

        The fastest way to publish one by one: messages leave in the order of the calls, and the
        call waits only while 4,096 publishes of the event loop are without a receipt. Copies as
        `publish`; the payload is borrowed until the future is done.

        Args:
            payload: ndarray or buffer of any shape; dtype and shape travel with it. Not mutated.
            headers: str to str; keys starting with "Nats-" or "Vecmq-" are reserved.
            timeout_s: Seconds > 0 until the receipt has to be there; None waits.
            route: "queue" or "nats" to choose the route by hand; None leaves it to the router.
            codec: Codec of this message, as for `open`; None: the publisher's.
            codec_level: Level of codec "zstd", which has to be named with it.

        Returns:
            A future with the receipt, or with one of the errors that `publish` raises once a
            message is on its way.

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload exceeds `message_bytes_max` of the handle.
            InvalidHeadersError: Headers that cannot be sent.
            ConfigError: A bad timeout, route, codec or level.
            ClosedError: The handle was closed.
        """
        coding = check_publish(timeout_s, route, codec, codec_level)
        item = _messages.item(payload, headers)
        loop = self._loop
        if loop.is_full():
            await loop.room()
        return loop.hand_over(self._native, item, route, timeout_s, coding, None)

    async def publish_many(
        self,
        payloads: Iterable[object],
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        route: Route | None = None,
        codec: Codec | None = None,
        codec_level: int | None = None,
    ) -> list[Receipt]:
        """Publish several messages, in order, and return their receipts.

        The small ones reach the log in one write; the large ones are on the way together.

        Args:
            payloads: Payloads as for `publish`.
            headers: Headers of every message.
            timeout_s: Seconds > 0 until all receipts have to be there; None waits.
            route: As for `publish`.
            codec: Codec of these messages, as for `publish`.
            codec_level: As for `publish`.

        Returns:
            A receipt for each payload, in order.

        Raises:
            As `publish`; the first error, after every message has ended. What is refused for its
            form is refused before anything is written.
        """
        items = _messages.items(payloads, headers)
        coding = check_publish(timeout_s, route, codec, codec_level)
        return await self._submit(items, timeout_s, route, coding) if items else []

    async def publish_rows(
        self,
        rows: object,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        route: Route | None = None,
        codec: Codec | None = None,
        codec_level: int | None = None,
    ) -> Receipt:
        """Publish every row of an n x d array as a message of its own, packed.

        Each row has its own seq and its own ack; a frame holds many. Copies: as for `publish`.

        Args:
            rows: Array of 1 to 1,000,000 rows, with two or more dimensions.
            headers: Headers of every message.
            timeout_s: As for `publish`.
            route: As for `publish`.
            codec: Codec of these messages, as for `publish`.
            codec_level: As for `publish`.

        Returns:
            One Receipt: seq of the first row, rows_count rows with consecutive seqs (in mode "nats"
            the rows share the seq of their group).

        Raises:
            As `publish`; PayloadError also for fewer than two dimensions or no row.
        """
        item = _messages.rows_item(rows, headers)
        coding = check_publish(timeout_s, route, codec, codec_level)
        return (await self._submit([item], timeout_s, route, coding))[0]

    async def _submit(
        self,
        items: list[_messages.Item],
        timeout_s: float | None,
        route: Route | None,
        coding: Coding | None,
    ) -> list[Receipt]:
        loop = self._loop
        loop.check()
        token = loop.tokens(len(items))
        receipts = self._native.publish(items, route, timeout_s, coding, loop.native, token)
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

    def publisher(
        self, topic: str, *, codec: Codec | None = None, codec_level: int | None = None
    ) -> Publisher:
        """Return a publisher of the topic; the topic is made where it does not exist yet.

        Args:
            topic: 1 to 200 printable ASCII characters without whitespace and ``. * > / \\``.
            codec: Codec of its messages, as for `open`; None: the handle's.
            codec_level: Level of codec "zstd", as for `open`.

        Returns:
            A Publisher; any number may publish to one topic.

        Raises:
            InvalidNameError: The name breaks the rules.
            ConfigError: Unknown codec, or a level that it does not have.
            ClosedError: The handle was closed.
        """
        check_codec(codec, codec_level)
        return Publisher(self._stores.hub.publisher(topic, codec, codec_level), self._loop, topic)

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
                consumer that dies of a message is counted; in mode "nats" nothing is read ahead
                instead, a round trip a message: the server counts what it sends.
            dead_letter_topic: Its messages keep payload and headers and get the headers
                "Dead-Letter-Topic", "-Group", "-Seq" and "-Deliveries". None: ``<topic>-dead``.

        Returns:
            A Subscriber. It starts at the group's cursor: the first message that was not acked.

        Raises:
            InvalidNameError: A name breaks the rules.
            ConfigError: A bad `start`, time or count; the topic itself for dead letters.
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

    async def sweep_topic(self, topic: str, age_s: float = SWEEP_AGE_S) -> int:
        """Purge what killed publishers have left in the stream of a topic: groups never whole.

        Readers were never given any of it. Topics that are read in mode "nats" are swept every ten
        minutes, with an age of an hour.

        Args:
            topic: A topic.
            age_s: Seconds >= 0 since the last frame of a group; more than any publish may take, or
                a publish that is still tried becomes a message that has lost its first frames.

        Returns:
            Groups purged; `stats` counts them under "swept".

        Raises:
            ConfigError: A negative age.
            UnsupportedError: Mode "queue".
            NotConnectedError: The server cannot be reached.
            ClosedError: The handle was closed.
        """
        if not age_s >= 0:
            raise ConfigError(f"age_s: expected seconds >= 0, got {age_s!r}")
        return await asyncio.to_thread(self._stores.hub.sweep_topic, topic, age_s)

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

        Publishers and subscribers of it end with TopicNotFoundError, in mode "nats" with
        NoStreamError.

        Args:
            topic: An existing topic.

        Raises:
            TopicNotFoundError: There is no such topic.
            NotConnectedError: The server cannot be reached; nothing was deleted.
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


def open(
    path: str | os.PathLike[str] | None = None,
    mode: Mode = "hybrid",
    nats: str | NatsOptions | None = None,
    *,
    threshold_bytes: int | None = None,
    codec: Codec = "raw",
    codec_level: int | None = None,
    level: Level = "stored",
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    retention: Retention | None = None,
    attach: bool = True,
    replicas: int = 1,
    atomic: bool = False,
) -> Opening[Handle]:
    """Open a directory and a connection: ``async with open(...)`` or ``await open(...)``.

    Args:
        path: Directory of the queue and of the embedded server's store, made 0700 where it does not
            exist. None: a temporary one that is deleted on close.
        mode: "hybrid" (both routes in one order), "queue" (no NATS) or "nats" (no RocksDB).
        nats: URL or NatsOptions of a server. None: an embedded nats-server on loopback.
        threshold_bytes: Fixed size from which messages take the NATS route. None: learned.
        codec: "raw"; "planes" (byte planes: dense floats), "pk3" (float32 and bfloat16, near memory
            speed), "zstd" and "lz4" (what repeats); "auto" picks by a probe what pays on the link
            (`NatsOptions.link_bytes_per_s`): raw for the queue and a server of this host. A chunk
            that does not shrink is stored raw. Subscribers need not know.
        codec_level: Level of codec "zstd", 1 (None) to 19.
        level: What receipts promise: "stored" survives kill -9 of any process, "durable" a power
            cut.
        message_bytes_max: Largest payload in bytes, published or received.
        retention: What may be deleted; None keeps everything.
        attach: Other processes of this user may subscribe through this one (see `attach`).
        replicas: Servers of a cluster that hold a copy of the streams that are made, 1 to 5.
        atomic: A message of several frames is in the stream whole or not at all, by JetStream's
            atomic batches (server >= 2.12; 1,000 frames at most). About twice the time; readers
            see whole messages only either way.

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
        codec_level=codec_level,
        level=level,
        message_bytes_max=message_bytes_max,
        retention=retention,
        attach=attach,
        replicas=replicas,
        atomic=atomic,
    )

    async def make() -> Handle:
        # Off the loop: recovery, the server's start and the connect block.
        return Handle(await asyncio.to_thread(Stores, options))

    return Opening(make)


# At the end: it takes Subscriber from here.
from vecmq._attach_aio import AttachedHandle, attach  # noqa: E402
