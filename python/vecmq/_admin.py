"""Topics and subscription groups as an operator sees them: what both handles have in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vecmq.errors import ConfigError
from vecmq.retention import Retention

if TYPE_CHECKING:
    from vecmq._native import Attached, Explanation, Hub
    from vecmq._options import Stores

__all__ = ["Deleted", "GroupInfo", "TopicInfo", "read_groups", "read_topic_info"]


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """How far a subscription group is.

    In mode "nats" the server counts messages of its stream: packed rows, and small messages that
    left together, are one.

    Attributes:
        name: Its name.
        next_seq: Every message before this seq is done.
        done_above: Messages above it that are done; None in mode "nats", whose server does not say.
        lag: Messages that are not done.
        handed_out: Messages of them that subscribers have now, read ahead or handed out.
        subscribers: Subscribers now; None in mode "nats", likewise.
    """

    name: str
    next_seq: int
    done_above: int | None
    lag: int
    handed_out: int
    subscribers: int | None


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What a topic holds; exact, after a crash too.

    In mode "nats" it is what the server's stream holds: `messages` as for GroupInfo, `size_bytes`
    with all frames, `file_bytes` and `open` 0.

    Attributes:
        name: Its name.
        first_seq: The oldest seq that is there.
        next_seq: The seq that the next message gets.
        messages: Messages there.
        size_bytes: Bytes of their journal entries, headers included; of a message on the NATS route
            that is the entry that refers to its frames.
        file_bytes: Bytes on the disk in value files (payloads of 16 KiB and more). Small messages
            lie in the database that all topics share.
        first_time_ms: When the oldest message was published, in milliseconds since the Unix epoch;
            None: the topic is empty.
        last_time_ms: When the newest one was.
        open: Messages on their way to the stream.
        retention: The topic's own; None: it has the handle's.
        groups: Its subscription groups, by name.
    """

    name: str
    first_seq: int
    next_seq: int
    messages: int
    size_bytes: int
    file_bytes: int
    first_time_ms: int | None
    last_time_ms: int | None
    open: int
    retention: Retention | None
    groups: list[GroupInfo]


@dataclass(frozen=True, slots=True)
class Deleted:
    """What retention or a purge has deleted.

    Attributes:
        messages: Messages.
        size_bytes: Bytes of their journal entries.
    """

    messages: int
    size_bytes: int


def read_topic_info(native: Hub | Attached, topic: str) -> TopicInfo:
    """Ask the core, of this process or of the owner, what a topic holds."""
    values: dict[str, Any] = native.topic_info(topic)
    own = values.pop("retention")
    retention = None if own is None else Retention(*own)
    return TopicInfo(name=topic, retention=retention, groups=read_groups(native, topic), **values)


def read_groups(native: Hub | Attached, topic: str) -> list[GroupInfo]:
    """Ask the core, of this process or of the owner, how far the groups of a topic are."""
    return [GroupInfo(**values) for values in native.groups(topic)]


class TopicAdmin:
    """Operations on topics that both handles have.

    In mode "nats" `topics`, `topic_info`, `groups` and `delete_group` wait for the server: from an
    event loop call them through `asyncio.to_thread`.
    """

    _stores: Stores

    def topics(self) -> list[str]:
        """Return the names of all topics, sorted.

        In mode "nats": those of the server, and those that this handle has opened.

        Raises:
            NotConnectedError: The server cannot be reached (mode "nats").
            ClosedError: The handle was closed.
        """
        return self._stores.hub.topics()

    def create_topic(self, topic: str, retention: Retention | None = None) -> None:
        """Make a topic, where it does not exist yet, and give it a retention of its own.

        Args:
            topic: 1 to 190 printable ASCII characters without whitespace and ``. * > / \\``.
            retention: Saved with the topic; None: it has the handle's.

        Raises:
            InvalidNameError: The name breaks the rules.
            UnsupportedError: A retention of its own in mode "nats".
            ClosedError: The handle was closed.
        """
        self._stores.hub.publisher(topic)
        if retention is not None:
            self.set_retention(topic, retention)

    def topic_info(self, topic: str) -> TopicInfo:
        """Return what a topic holds, its retention and its groups.

        Args:
            topic: An existing topic.

        Raises:
            TopicNotFoundError: There is no such topic.
            NotConnectedError: The server cannot be reached (mode "nats").
            ClosedError: The handle was closed.
        """
        return read_topic_info(self._stores.hub, topic)

    def groups(self, topic: str) -> list[GroupInfo]:
        """Return how far the subscription groups of a topic are, by name.

        Args:
            topic: An existing topic.

        Raises:
            TopicNotFoundError: There is no such topic.
            NotConnectedError: The server cannot be reached (mode "nats").
            ClosedError: The handle was closed.
        """
        return read_groups(self._stores.hub, topic)

    def delete_group(self, topic: str, group: str) -> None:
        """Delete a subscription group and its cursor: retention waits for it no longer.

        Args:
            topic: An existing topic.
            group: A group without subscribers.

        Raises:
            TopicNotFoundError: There is no such topic.
            GroupNotFoundError: There is no such group.
            ConfigError: The group has subscribers.
            NotConnectedError: The server cannot be reached (mode "nats").
            ClosedError: The handle was closed.
        """
        self._stores.hub.delete_group(topic, group)

    def set_retention(self, topic: str, retention: Retention | None) -> None:
        """Give a topic a retention of its own; it is saved with the topic.

        Args:
            topic: An existing topic.
            retention: None: the topic has the handle's again.

        Raises:
            TopicNotFoundError: There is no such topic.
            ConfigError: Not a Retention.
            UnsupportedError: Mode "nats".
            ClosedError: The handle was closed.
        """
        if retention is not None and not isinstance(retention, Retention):
            raise ConfigError(
                f"retention: expected a Retention or None, got {type(retention).__name__}"
            )
        own = None if retention is None else dataclasses.astuple(retention)
        self._stores.hub.set_retention(topic, own)

    def explain(self, topic: str, size_bytes: int) -> Explanation:
        """Say which route a message of that size takes now, and why.

        Args:
            topic: The topic; today all topics of a handle share what was learned.
            size_bytes: Payload bytes.

        Returns:
            Explanation(route, reason, threshold_bytes, queue_cost_s, nats_cost_s, learned).

        Raises:
            ConfigError: A negative size.
        """
        if not isinstance(size_bytes, int) or size_bytes < 0:
            raise ConfigError(f"size_bytes: expected bytes >= 0, got {size_bytes!r}")
        return self._stores.hub.explain(size_bytes)

    def stats(self) -> dict[str, int]:
        """Return counts since the handle was opened.

        Returns:
            published_queue, published_nats, rerouted, aborted, unknown (messages), threshold_bytes;
            missing: messages whose numbers subscriptions of mode "nats" have not met so far, lost
            by the server or given up by their publisher; swept: groups of frames that killed
            publishers had left and that were purged.

        Raises:
            ForkError: Called in a forked child.
        """
        return self._stores.hub.stats()
