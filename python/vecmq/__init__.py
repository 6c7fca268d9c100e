"""Moves vectors through one topic over two routes: NATS JetStream and an embedded RocksDB log.

asyncio lives here, blocking twins with the same names in `vecmq.sync`:

    >>> import asyncio, numpy as np, vecmq
    >>> async def main():
    ...     async with vecmq.open(mode="queue") as mq:
    ...         receipt = await mq.publisher("vectors").publish(np.arange(3, dtype=np.float32))
    ...         async for message in mq.subscribe("vectors", group="readers"):
    ...             message.ack()
    ...             return receipt.route, message.array().tolist()
    >>> asyncio.run(main())
    ('queue', [0.0, 1.0, 2.0])
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from vecmq._admin import Deleted, GroupInfo, TopicInfo
from vecmq._batch import Batch
from vecmq._native import Explanation, Message, Receipt, build_info
from vecmq._nats_options import NatsOptions
from vecmq.aio import (
    AttachedHandle,
    Handle,
    Publisher,
    Subscriber,
    attach,
    open,  # noqa: A004 - the module's verb
)
from vecmq.errors import (
    BufferMutatedError,
    ClosedError,
    ConfigError,
    ConflictError,
    CorruptError,
    DeniedError,
    Error,
    ForkError,
    FrameError,
    GroupNotFoundError,
    IncompleteError,
    InvalidHeadersError,
    InvalidNameError,
    LockedError,
    NatsError,
    NoStreamError,
    NotConnectedError,
    PayloadError,
    PublishUnknownError,
    QueueError,
    RejectedError,
    SeqNotFoundError,
    ServerError,
    StorageError,
    TimeoutError,  # noqa: A004 - derives from the builtin one
    TooLargeError,
    TopicNotFoundError,
    UnsupportedError,
)
from vecmq.integrity import CheckReport, Recovery, check
from vecmq.retention import Retention

if TYPE_CHECKING:
    from vecmq.bridge import connect, install, wrap

__all__ = [
    "AttachedHandle",
    "Batch",
    "BufferMutatedError",
    "CheckReport",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "CorruptError",
    "Deleted",
    "DeniedError",
    "Error",
    "Explanation",
    "ForkError",
    "FrameError",
    "GroupInfo",
    "GroupNotFoundError",
    "Handle",
    "IncompleteError",
    "InvalidHeadersError",
    "InvalidNameError",
    "LockedError",
    "Message",
    "NatsError",
    "NatsOptions",
    "NoStreamError",
    "NotConnectedError",
    "PayloadError",
    "PublishUnknownError",
    "Publisher",
    "QueueError",
    "Receipt",
    "Recovery",
    "RejectedError",
    "Retention",
    "SeqNotFoundError",
    "ServerError",
    "StorageError",
    "Subscriber",
    "TimeoutError",
    "TooLargeError",
    "TopicInfo",
    "TopicNotFoundError",
    "UnsupportedError",
    "attach",
    "build_info",
    "check",
    "connect",
    "install",
    "open",
    "wrap",
]

# They import nats-py (150 ms), which most users do not need.
_BRIDGE = ("connect", "install", "wrap")

__version__: str = build_info()["version"]

logging.getLogger("vecmq").addHandler(logging.NullHandler())

if build_info()["profile"] != "release":
    import warnings

    warnings.warn(
        "vecmq was built without optimisation; its speed says nothing (`make build-prod`)",
        RuntimeWarning,
        stacklevel=2,
    )


def __getattr__(name: str) -> Any:
    if name in _BRIDGE:
        return getattr(importlib.import_module("vecmq.bridge"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
