"""What both attached handles have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vecmq._admin import GroupInfo, TopicInfo, read_groups, read_topic_info
from vecmq._native import Attached
from vecmq._options import MESSAGE_BYTES_MAX, check_message_bytes

if TYPE_CHECKING:
    import os

__all__ = ["AttachedAdmin", "connect"]


def connect(path: str | os.PathLike[str], message_bytes_max: int = MESSAGE_BYTES_MAX) -> Attached:
    """Connect to the owner of a directory. Blocks.

    Args:
        path: The directory that the owner opened.
        message_bytes_max: Largest payload in bytes to receive.

    Returns:
        The core's handle.

    Raises:
        ConfigError: A bad size.
        NotConnectedError: No process owns the directory, or it takes no subscribers.
        UnsupportedError: The owner's version of vecmq speaks another protocol.
    """
    check_message_bytes(message_bytes_max)
    return Attached(Path(path) / "queue", message_bytes_max)


class AttachedAdmin:
    """Topics and subscription groups of the owner's directory."""

    _native: Attached
    _path: Path

    @property
    def path(self) -> Path:
        """The directory that the owner opened."""
        return self._path

    def topics(self) -> list[str]:
        """Return the names of all topics, sorted.

        Raises:
            NotConnectedError: The owner has closed the directory or has ended.
            ClosedError: The handle was closed.
        """
        return self._native.topics()

    def topic_info(self, topic: str) -> TopicInfo:
        """Return what a topic holds, its retention and its groups.

        Args:
            topic: An existing topic.

        Raises:
            TopicNotFoundError: There is no such topic.
            NotConnectedError: The owner has closed the directory or has ended.
            ClosedError: The handle was closed.
        """
        return read_topic_info(self._native, topic)

    def groups(self, topic: str) -> list[GroupInfo]:
        """Return how far the subscription groups of a topic are, by name.

        Args:
            topic: An existing topic.

        Raises:
            TopicNotFoundError: There is no such topic.
            NotConnectedError: The owner has closed the directory or has ended.
            ClosedError: The handle was closed.
        """
        return read_groups(self._native, topic)
