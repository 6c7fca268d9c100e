"""Subscribers in a directory that another process owns: the asyncio API."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from vecmq._attached import AttachedAdmin, connect
from vecmq._loop import Loop, Opening
from vecmq._options import ACK_WAIT_S, MESSAGE_BYTES_MAX, Start, check_delivery, check_message_bytes
from vecmq.aio import Subscriber

if TYPE_CHECKING:
    import os

    from vecmq._native import Attached

__all__ = ["AttachedHandle", "attach"]


class AttachedHandle(AttachedAdmin):
    """A directory that another process of this host owns. Belongs to one event loop."""

    def __init__(self, native: Attached, path: Path) -> None:
        self._native = native
        self._path = path
        self._loop = Loop()
        self._subscribers: weakref.WeakSet[Subscriber] = weakref.WeakSet()

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
        """Join a subscription group, as `Handle.subscribe` of the owner does; it is asked.

        The answer takes well under a millisecond, in which the event loop waits.

        Subscribers of a group compete, in whatever process they are. `ack` returns when the ack is
        written to the owner, which takes it even if this process is killed right after. One that
        the owner could not save is raised by the next call. When this process ends, what it had
        and did not ack goes to another subscriber at once.

        Args:
            topic: As for `Handle.publisher`.
            group: As for `Handle.subscribe`, as are all that follow.
            start: Where a new group begins: "first" or "new".
            ack_wait_s: Seconds > 0 after which a message that was not acked comes again.
            max_deliver: Deliveries > 0 after which it goes to `dead_letter_topic`.
            dead_letter_topic: None: ``<topic>-dead``.

        Returns:
            A Subscriber; all its calls raise NotConnectedError when the owner is gone.

        Raises:
            InvalidNameError: A name breaks the rules.
            ConfigError: A bad `start`, time or count.
            NotConnectedError: The owner has closed the directory or has ended.
            ClosedError: The handle was closed.
        """
        options = check_delivery(topic, ack_wait_s, max_deliver, dead_letter_topic)
        native = self._native.subscribe(topic, group, start, *options)
        subscriber = Subscriber(native, self._loop, topic, group, ack_wait_s)
        self._subscribers.add(subscriber)
        return subscriber

    async def close(self) -> None:
        """Close subscriptions and connections. A second call does nothing.

        Raises:
            ForkError: Called in a forked child.
        """
        for subscriber in list(self._subscribers):
            subscriber.close()
        self._native.close()
        self._loop.close()


def attach(
    path: str | os.PathLike[str], *, message_bytes_max: int = MESSAGE_BYTES_MAX
) -> Opening[AttachedHandle]:
    """Subscribe in a directory that another process of this host has open.

    Args:
        path: The directory that the owner opened, in mode "hybrid" or "queue".
        message_bytes_max: Largest payload in bytes to receive.

    Returns:
        Something to await or to enter with ``async with``; it gives an AttachedHandle.

    Raises:
        ConfigError: A bad size.
        NotConnectedError: No process owns the directory, or it was opened with ``attach=False``
            (when awaited).
        UnsupportedError: The owner's version of vecmq speaks another protocol.
    """
    check_message_bytes(message_bytes_max)
    directory = Path(path)

    async def make() -> AttachedHandle:
        native = await asyncio.to_thread(connect, directory, message_bytes_max)
        return AttachedHandle(native, directory)

    return Opening(make)
