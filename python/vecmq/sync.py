"""The blocking API: the twins of `vecmq`, with the same names.

For scripts, threads and other event loops. Every call may be made from any thread; it blocks
without holding the interpreter, and Ctrl-C ends the wait.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vecmq import _messages
from vecmq._admin import Deleted, TopicAdmin
from vecmq._native import Pending, Receipt
from vecmq._native import Publisher as NativePublisher
from vecmq._nats_options import NatsOptions
from vecmq._options import (
    ACK_WAIT_S,
    MESSAGE_BYTES_MAX,
    SWEEP_AGE_S,
    TIMEOUT_S,
    Codec,
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
from vecmq._subscribe_sync import Subscriber
from vecmq.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from vecmq.integrity import Recovery
    from vecmq.retention import Retention
    from vecmq.server import EmbeddedServer

__all__ = ["AttachedHandle", "Handle", "Publisher", "Subscriber", "attach", "open"]


class Publisher:
    """Publishes to one topic. Made by `Handle.publisher`."""

    def __init__(self, native: NativePublisher, topic: str) -> None:
        self._native = native
        self.topic = topic

    def publish(
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

        As `vecmq.Publisher.publish`: arguments, copies and errors are the same.

        Args:
            payload: ndarray or buffer of any shape; dtype and shape travel with it. Not mutated.
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
            rows_count).

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload exceeds `message_bytes_max` of the handle.
            PublishUnknownError: Time was over and the message may have been stored.
            ClosedError: The handle was closed.
        """
        item = _messages.item(payload, headers)
        coding = check_publish(timeout_s, route, codec, codec_level)
        if expected_last_seq is None:
            return self._native.publish_wait([item], route, timeout_s, coding)[0]
        seq = check_seq(expected_last_seq)
        return self._native.publish_async(item, route, timeout_s, coding, seq).result()

    def publish_async(
        self,
        payload: object,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        route: Route | None = None,
        codec: Codec | None = None,
        codec_level: int | None = None,
    ) -> Pending:
        """Hand one message over without waiting for its receipt.

        The fastest way to publish one by one: messages leave in the order of the calls, and the
        call blocks only while 4,096 publishes of this publisher are without a receipt. Copies as
        `publish`; the payload is borrowed until the receipt is there.

        Args:
            payload: ndarray or buffer of any shape; dtype and shape travel with it. Not mutated.
            headers: str to str; keys starting with "Nats-" or "Vecmq-" are reserved.
            timeout_s: Seconds > 0 until the receipt has to be there; None waits.
            route: "queue" or "nats" to choose the route by hand; None leaves it to the router.
            codec: Codec of this message, as for `open`; None: the publisher's.
            codec_level: Level of codec "zstd", which has to be named with it.

        Returns:
            Pending: `result(timeout_s=None)` blocks for the receipt, or raises the error that
            `publish` raises once a message is on its way; `done()` says whether it would block.

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload exceeds `message_bytes_max` of the handle.
            InvalidHeadersError: Headers that cannot be sent.
            ConfigError: A bad timeout, route, codec or level.
            ClosedError: The handle was closed.
        """
        coding = check_publish(timeout_s, route, codec, codec_level)
        item = _messages.item(payload, headers)
        return self._native.publish_async(item, route, timeout_s, coding, None)

    def publish_many(
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
            As `publish`; the first error. The other messages go on.
        """
        items = _messages.items(payloads, headers)
        coding = check_publish(timeout_s, route, codec, codec_level)
        return self._native.publish_wait(items, route, timeout_s, coding) if items else []

    def publish_rows(
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
        return self._native.publish_wait([item], route, timeout_s, coding)[0]


class Handle(TopicAdmin):
    """One open directory, one connection, or both. Made by `open`."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
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
        return Publisher(self._stores.hub.publisher(topic, codec, codec_level), topic)

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
        subscriber = Subscriber(native, topic, group, ack_wait_s)
        self._subscribers.add(subscriber)
        return subscriber

    def retain(self) -> Deleted:
        """Delete what retention allows, now; it runs by itself too, every minute and sooner.

        Returns:
            Deleted(messages, size_bytes).

        Raises:
            UnsupportedError: Mode "nats".
            StorageError: The log could not be written.
            ClosedError: The handle was closed.
        """
        return Deleted(*self._stores.hub.retain())

    def sweep_topic(self, topic: str, age_s: float = SWEEP_AGE_S) -> int:
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
        return self._stores.hub.sweep_topic(topic, age_s)

    def purge_topic(self, topic: str) -> Deleted:
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
        return Deleted(*self._stores.hub.purge_topic(topic))

    def delete_topic(self, topic: str) -> None:
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
        self._stores.hub.delete_topic(topic)

    def close(self) -> None:
        """Close subscriptions, the stores and the embedded server. A second call does nothing.

        Publishes still in flight end with ClosedError; their fate is resolved at the next open.

        Raises:
            StorageError: The last write to the log failed.
        """
        for subscriber in list(self._subscribers):
            subscriber.close()
        self._stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
) -> Handle:
    """Open a directory and a connection; use it in ``with`` or close it by hand.

    As `vecmq.open`: arguments and errors are the same.

    Args:
        path: Directory of the queue and of the embedded server's store. None: a temporary one.
        mode: "hybrid" (both routes in one order), "queue" (no NATS) or "nats" (no RocksDB).
        nats: URL or NatsOptions of a server. None: an embedded nats-server on loopback.
        threshold_bytes: Fixed size from which messages take the NATS route. None: learned.
        codec: "raw", "planes", "pk3", "zstd", "lz4" or "auto".
        codec_level: Level of codec "zstd", 1 (None) to 19.
        level: What receipts promise: "stored" or "durable".
        message_bytes_max: Largest payload in bytes, published or received.
        retention: What may be deleted; None keeps everything.
        attach: Other processes of this user may subscribe through this one (see `attach`).
        replicas: Servers of a cluster that hold a copy of the streams that are made, 1 to 5.
        atomic: A message of several frames is in the stream whole or not at all, by JetStream's
            atomic batches (server >= 2.12; 1,000 frames at most). About twice the time; readers
            see whole messages only either way.

    Returns:
        A Handle.

    Raises:
        ConfigError: A value is out of its range, or two contradict each other.
        LockedError: Another process or handle owns the directory.
        ServerError: The embedded server did not start.
        NotConnectedError: The server could not be reached.
        StorageError: The directory cannot be used.
        CorruptError: The log in the directory is damaged.
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
    return Handle(Stores(options))


# At the end: it takes Subscriber from here.
from vecmq._attach_sync import AttachedHandle, attach  # noqa: E402
