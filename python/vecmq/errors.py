"""The errors of vecmq: one class for each kind of failure.

Every class derives from `Error`, so ``except vecmq.Error`` catches them all. Classes with a builtin
second base (`ValueError`, `KeyError`, `OSError`, `ConnectionError`, `PermissionError`,
`TimeoutError`) can be caught by it as well. Messages state what was expected and what came, with
units.
"""

from __future__ import annotations

import builtins

__all__ = [
    "BufferMutatedError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "CorruptError",
    "DeniedError",
    "Error",
    "ForkError",
    "FrameError",
    "GroupNotFoundError",
    "IncompleteError",
    "InvalidHeadersError",
    "InvalidNameError",
    "LockedError",
    "NatsError",
    "NoStreamError",
    "NotConnectedError",
    "PayloadError",
    "PublishUnknownError",
    "QueueError",
    "RejectedError",
    "SeqNotFoundError",
    "ServerError",
    "StorageError",
    "TimeoutError",
    "TooLargeError",
    "TopicNotFoundError",
    "UnsupportedError",
]


class Error(Exception):
    """Base class of every error that vecmq raises on purpose."""


class ConfigError(Error, ValueError):
    """An option is out of its range, or two options contradict each other."""


class InvalidNameError(Error, ValueError):
    """A topic or subscription group name breaks the naming rules."""


class InvalidHeadersError(Error, ValueError):
    """Message headers that cannot be sent: reserved key, line break, or too many bytes."""


class PayloadError(Error, TypeError):
    """A payload that is neither a buffer nor an array of numbers."""


class BufferMutatedError(Error):
    """The payload was changed between `publish` and its receipt."""


class FrameError(Error, ValueError):
    """A frame that cannot be made or read."""


class TooLargeError(FrameError):
    """A payload, frame or group is over a limit."""


class CorruptError(FrameError):
    """Bytes that no encoder of vecmq wrote: damaged, truncated or forged."""


class IncompleteError(FrameError):
    """A group of frames ended before all of its frames came."""


class UnsupportedError(FrameError):
    """A frame version or codec that this build does not know."""


class QueueError(Error):
    """The queue route failed."""


class TopicNotFoundError(QueueError, KeyError):
    """The topic does not exist."""

    __str__ = Exception.__str__


class GroupNotFoundError(QueueError, KeyError):
    """The subscription group does not exist."""

    __str__ = Exception.__str__


class SeqNotFoundError(QueueError, LookupError):
    """The topic does not hold that seq; the message names the nearest."""


class ConflictError(QueueError):
    """A topic holds messages that the import into it did not write."""


class LockedError(QueueError):
    """Another process or handle owns the directory; the message names its process id."""


class StorageError(QueueError, OSError):
    """The store refused a read or a write."""


class NatsError(Error, ConnectionError):
    """The NATS route failed."""


class NotConnectedError(NatsError):
    """No connection to the NATS server, or to the process that owns an attached directory."""


class DeniedError(NatsError, PermissionError):
    """The NATS server does not take the credentials, or its permissions forbid a subject."""


class NoStreamError(NatsError):
    """No JetStream stream listens on the subject."""


class RejectedError(NatsError):
    """The server refused the publish; nothing was stored.

    Attributes:
        code: JetStream API error code, for example 10077 (maximum bytes exceeded).
    """

    code: int = 0


class TimeoutError(Error, builtins.TimeoutError):  # noqa: A001 - the same name on purpose
    """The caller's time was over, and it is known that nothing was published."""


class PublishUnknownError(TimeoutError):
    """The caller's time was over, and the message may or may not have been stored.

    Attributes:
        id: Message id; a retry by vecmq itself carries the same one.
    """

    id: str = ""


class ServerError(Error):
    """The embedded nats-server could not be started, or it stopped."""


class ClosedError(Error):
    """The handle was closed."""


class ForkError(Error):
    """The handle was opened by another process; open a new one after a fork."""
