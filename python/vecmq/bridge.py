"""Drop-in for nats-py: `wrap` an existing client, then publish arrays and payloads of any size.

Plain bytes that fit into one NATS message stay plain NATS, byte for byte: nats-py's own `publish`
sends them. Arrays, and bytes that do not fit, become frames (`Vecmq-*` headers, body = the bytes)
on the caller's connection and the caller's subject, because the streams of code written against
nats-py listen there and nowhere else:

| frame | Nats-Msg-Id | the caller's headers |
|---|---|---|
| 0 | producer-epoch-seq-0 | what the stream's last message must be, Nats-Rollup |
| 1 to n-2 | producer-epoch-seq-index | |
| n-1, the manifest | the caller's, else producer-epoch-seq-(n-1) | all others |
| every frame | | Nats-Expected-Stream, Nats-TTL |

Frame 0 is acknowledged before the next leaves, so a refusal (no stream, wrong stream, no room)
stores nothing; frames 1 to n-2 are pipelined; the manifest goes last, when all others are stored,
so a reader never sees a group that its publisher gave up. A stream that keeps fewer messages per
subject than the group has frames cannot hold it: leave `max_msgs_per_subject` unset.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext
from nats.js.api import Header

from vecmq._native import make_frames
from vecmq._options import CODECS, MESSAGE_BYTES_MAX, Codec
from vecmq._payload import Normalised, normalise
from vecmq.errors import (
    BufferMutatedError,
    ConfigError,
    InvalidHeadersError,
    PayloadError,
    TooLargeError,
)

if TYPE_CHECKING:
    from nats.js.api import PubAck

__all__ = ["Client", "JetStream", "wrap"]

Fields: TypeAlias = dict[str, str]
Frame: TypeAlias = tuple[Fields, memoryview]

# JetStream is fastest with messages of 1-2 MiB, whatever max_payload allows.
_FRAME_BYTES_MAX = 2 << 20
# Header bytes of a frame besides the caller's and the shape's digits: the longest numbers need 340.
_OWN_HEADER_BYTES_MAX = 384
# JetStream refuses 64 KiB; the manifest, which has them, would be refused after all other frames.
_CALLER_HEADER_BYTES_MAX = 60 << 10
_FRAMES_IN_FLIGHT_MAX = 8
_EPOCH = 1  # a producer id lives as long as its context: it never restarts

_EVERY_FRAME = frozenset({Header.EXPECTED_STREAM.value, Header.MSG_TTL.value})
_FIRST_FRAME = frozenset(
    {
        Header.EXPECTED_LAST_MSG_ID.value,
        Header.EXPECTED_LAST_SEQUENCE.value,
        Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value,
        Header.ROLLUP.value,
    }
)
# They make the server do something with one message that is wrong for one frame of several.
_ONE_FRAME_ONLY = ("nats-batch-", "nats-incr", "nats-schedule")


class Options(NamedTuple):
    """What `wrap` was called with, checked."""

    codec: Codec
    message_bytes_max: int


class Client(NatsClient):
    """A nats-py client whose JetStream contexts take arrays and payloads of any size.

    Made by `wrap`. It shares all state with the wrapped client: both are the same connection.
    """

    __slots__ = ("_vecmq_options",)
    _vecmq_options: Options

    def jetstream(self, **opts: Any) -> JetStream:
        """Make a JetStream context on this connection.

        Args:
            **opts: nats-py's own: prefix, domain, timeout, publish_async_max_pending.

        Returns:
            JetStream, a nats.js.JetStreamContext.
        """
        return JetStream(self, self._vecmq_options, **opts)


class JetStream(JetStreamContext):
    """nats-py's JetStream context with a wider `publish`; everything else is inherited."""

    def __init__(self, conn: NatsClient, options: Options, **opts: Any) -> None:
        super().__init__(conn, **opts)
        self._vecmq_options = options
        self._vecmq_producer = uuid.uuid4().bytes
        self._vecmq_seqs = itertools.count(1)

    async def publish(
        self,
        subject: str,
        payload: Any = b"",
        timeout: float | None = None,  # noqa: ASYNC109 - nats-py's signature
        stream: str | None = None,
        headers: dict[str, Any] | None = None,
        msg_ttl: float | None = None,
    ) -> PubAck:
        """Publish one message and wait until the stream has it.

        Copies besides nats-py's own: 0 (raw), 1 (zstd1, planes). A writable array may be changed
        again once this returns.

        Args:
            subject: Subject that a stream listens on. Subjects that begin with "$" are the
                server's and take plain bytes that fit only.
            payload: bytes, buffer or array, as `vecmq.Publisher.publish` takes it.
            timeout: Seconds for the whole message; None: the context's default for every frame.
            stream: Name of the stream that is expected to take it.
            headers: Headers of the message; never changed. `Nats-Msg-Id` names the whole message:
                a repeat within the stream's duplicate window is stored once.
            msg_ttl: Seconds until the stream deletes it (server >= 2.11).

        Returns:
            PubAck(stream, seq, ..., duplicate); of a group that of its last frame.

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload is over the limit given to `wrap`.
            InvalidHeadersError: A `Vecmq-*` header, one that no group of frames can carry, or more
                than 60 KiB of them on a group.
            BufferMutatedError: The array was changed meanwhile; readers never see the message.
            nats.errors.Error: Whatever nats-py raises, unchanged. `MaxPayloadError` when headers
                and payload cannot fit, before anything is sent: the server would close the
                connection.
        """
        fields = _merge(headers, stream, msg_ttl)
        normal = normalise(payload)
        if normal.dtype is None:
            body = payload if isinstance(payload, bytes) else normal.view
            if _header_bytes(fields) + len(body) <= self._nc.max_payload:
                return await super().publish(subject, body, timeout=timeout, headers=fields)
        if subject.startswith("$"):
            if normal.dtype is None:
                raise nats.errors.MaxPayloadError
            raise PayloadError(f"subject {subject!r} takes plain bytes, got {normal.dtype} array")
        return await self._publish_group(subject, normal, timeout, fields or {})

    async def _publish_group(
        self,
        subject: str,
        normal: Normalised,
        timeout: float | None,  # noqa: ASYNC109
        fields: Fields,
    ) -> PubAck:
        if timeout is not None and not timeout > 0:  # NaN as well
            raise nats.errors.BadTimeoutError
        size_bytes = memoryview(normal.view).nbytes
        limit_bytes = self._vecmq_options.message_bytes_max
        if size_bytes > limit_bytes:
            raise TooLargeError(f"payload of {size_bytes} bytes, at most {limit_bytes} bytes")
        header_bytes = _header_bytes(fields)
        if header_bytes > _CALLER_HEADER_BYTES_MAX:
            raise InvalidHeadersError(
                f"headers of {header_bytes} bytes, at most {_CALLER_HEADER_BYTES_MAX} bytes"
            )
        cut = self._cutter(normal, fields)
        frames = _with_caller_fields(cut(), fields)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        if len(frames) > 1:
            await self._store(subject, frames[:1], deadline)
            await self._store(subject, frames[1:-1], deadline)
            if normal.writable and _checksums(cut()) != _checksums(frames):
                raise BufferMutatedError(
                    f"the payload of {size_bytes} bytes was changed while it was published"
                )
        return await self._publish_frame(subject, frames[-1], deadline)

    def _cutter(self, normal: Normalised, fields: Fields) -> functools.partial[list[Frame]]:
        """Fix what a group's frames depend on; each call cuts the payload as it is then."""
        shape_bytes = 0 if normal.shape is None else sum(len(str(n)) + 1 for n in normal.shape)
        limit_bytes = min(self._nc.max_payload, _FRAME_BYTES_MAX)
        own_bytes = _OWN_HEADER_BYTES_MAX + shape_bytes + _header_bytes(fields)
        chunk_bytes_max = limit_bytes - own_bytes
        if chunk_bytes_max < normal.itemsize:
            raise nats.errors.MaxPayloadError
        codec = self._vecmq_options.codec
        cut = functools.partial(_cut, normal, chunk_bytes_max)
        msg_id = fields.get(Header.MSG_ID.value)
        if msg_id is None:
            return functools.partial(cut, codec, self._vecmq_producer, next(self._vecmq_seqs))
        # A retry by the caller must make the same frames again, or a half stored group stays one.
        # So the ids follow from his id and from what the frames hold.
        content = repr((msg_id, codec, _checksums(cut("raw", bytes(16), 1))))
        producer = hashlib.blake2b(content.encode(), digest_size=16).digest()
        return functools.partial(cut, codec, producer, 1)

    async def _store(self, subject: str, frames: list[Frame], deadline: float | None) -> None:
        """Send frames in order, a window of them in flight, and wait for every ack."""
        in_flight: deque[asyncio.Task[PubAck]] = deque()
        try:
            for frame in frames:
                if len(in_flight) == _FRAMES_IN_FLIGHT_MAX:
                    await in_flight.popleft()
                publish = self._publish_frame(subject, frame, deadline)
                in_flight.append(asyncio.create_task(publish))
            while in_flight:
                await in_flight.popleft()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def _publish_frame(self, subject: str, frame: Frame, deadline: float | None) -> PubAck:
        fields, body = frame
        # Looked up for every frame: a reconnect can lower it, and nats-py forgets to count headers.
        if _header_bytes(fields) + len(body) > self._nc.max_payload:
            raise nats.errors.MaxPayloadError
        timeout = None
        if deadline is not None:
            timeout = deadline - asyncio.get_running_loop().time()
            if timeout <= 0:
                raise nats.errors.TimeoutError
        data: Any = body  # nats-py says bytes, and takes any flat view of bytes
        return await super().publish(subject, data, timeout=timeout, headers=fields)


def wrap(
    nc: NatsClient, *, codec: Codec = "raw", message_bytes_max: int = MESSAGE_BYTES_MAX
) -> Client:
    """Give a nats-py client whose `jetstream()` publishes arrays and payloads of any size.

    Args:
        nc: Client of nats-py, connected or not; it stays usable and is the same connection.
        codec: Compressor of the frames: "raw", "zstd1" or "planes".
        message_bytes_max: Largest payload in bytes.

    Returns:
        Client, also an instance of the class of `nc`.

    Raises:
        TypeError: `nc` is not a nats-py client.
        ConfigError: Unknown codec, or a limit that is no positive number of bytes.

    Example:
        >>> js = vecmq.wrap(await nats.connect(url)).jetstream()  # doctest: +SKIP
        >>> await js.publish("vectors", np.zeros((1000, 768), np.float32))  # doctest: +SKIP
    """
    if not isinstance(nc, NatsClient):
        raise TypeError(f"wrap takes a nats.aio.client.Client, got {type(nc).__name__}")
    if codec not in CODECS:
        raise ConfigError(f"codec: expected one of {', '.join(CODECS)}, got {codec!r}")
    if not isinstance(message_bytes_max, int) or message_bytes_max < 1:
        raise ConfigError(f"message_bytes_max: expected bytes >= 1, got {message_bytes_max!r}")
    client = object.__new__(_client_class(type(nc)))
    client.__dict__ = nc.__dict__  # one state: reconnects and subscriptions are seen by both
    client._vecmq_options = Options(codec, message_bytes_max)
    return client


def _client_class(kind: type[NatsClient]) -> type[Client]:
    if kind is NatsClient:
        return Client
    if issubclass(kind, Client):
        return kind
    return type("Client", (Client, kind), {"__slots__": (), "__doc__": Client.__doc__})


def _merge(headers: dict[str, Any] | None, stream: str | None, ttl: float | None) -> Fields | None:
    """Make the headers that nats-py would send, in its order, in a dict of our own."""
    if headers is None and stream is None and ttl is None:
        return None
    fields = dict(headers or {})
    if stream is not None:
        fields[Header.EXPECTED_STREAM.value] = stream
    if ttl is not None:
        fields[Header.MSG_TTL.value] = str(int(ttl))
    return fields


def _header_bytes(fields: Fields | None) -> int:
    """Count the header bytes that nats-py writes; the server adds them to the payload."""
    if fields is None:
        return 0
    size_bytes = len("NATS/1.0\r\n\r\n")
    for key, value in fields.items():
        if stripped := key.strip():
            size_bytes += len(stripped.encode()) + len(value.strip().encode()) + len(": \r\n")
    return size_bytes


def _cut(
    normal: Normalised, chunk_bytes_max: int, codec: str, producer: bytes, seq: int
) -> list[Frame]:
    frames = []
    cut = make_frames(
        normal.view,
        normal.dtype,
        normal.itemsize,
        normal.shape,
        producer,
        _EPOCH,
        seq,
        chunk_bytes_max,
        codec,
    )
    for index, (pairs, body) in enumerate(cut):
        fields = dict(pairs)
        fields[Header.MSG_ID.value] = f"{producer.hex()}-{_EPOCH}-{seq}-{index}"
        frames.append((fields, memoryview(body)))
    return frames


def _with_caller_fields(frames: list[Frame], fields: Fields) -> list[Frame]:
    """Put each of the caller's headers on the frames that it is meant for."""
    for key, value in fields.items():
        name = key.strip()
        folded = name.lower()
        if folded.startswith("vecmq-"):
            raise InvalidHeadersError(f"header {name!r}: Vecmq- names are reserved")
        if len(frames) > 1 and folded.startswith(_ONE_FRAME_ONLY):
            raise InvalidHeadersError(
                f"header {name!r} cannot go with a message of {len(frames)} frames"
            )
        if name in _EVERY_FRAME:
            meant = frames
        else:
            meant = frames[:1] if name in _FIRST_FRAME else frames[-1:]
        for frame_fields, _ in meant:
            frame_fields[name] = value
    return frames


def _checksums(frames: list[Frame]) -> list[list[str]]:
    """List what the frames say of themselves: sizes, dtype, shape and the chunks' checksums."""
    return [
        [value for key, value in fields.items() if key.startswith("Vecmq-")] for fields, _ in frames
    ]
