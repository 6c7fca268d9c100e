"""A payload and the caller's headers -> frames with the headers that each of them carries."""

from __future__ import annotations

import hashlib
import itertools
import re
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import nats.errors
from nats.js.api import Header

from vecmq._native import make_frames
from vecmq.errors import InvalidHeadersError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vecmq._options import Codec
    from vecmq._payload import Normalised

Fields: TypeAlias = dict[str, str]
Pairs: TypeAlias = list[tuple[str, str]]

SEQS = "Vecmq-Seqs"  # on the manifest: where the other frames are in the stream
MSG_ID = Header.MSG_ID.value
# JetStream is fastest with messages of 1-2 MiB, whatever max_payload allows.
_FRAME_BYTES_MAX = 2 << 20
# Header bytes of a frame besides the caller's and the shape's digits: the longest numbers need 340,
# Vecmq-Seqs 174.
_OWN_HEADER_BYTES_MAX = 576
# JetStream refuses 64 KiB; the manifest, which has them, would be refused after all other frames.
_CALLER_HEADER_BYTES_MAX = 60 << 10
_EPOCH = 1  # a producer id lives as long as its connection object: it never restarts

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
# What nats-py sends: keys are tokens, and a value cannot end its line.
_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NEWLINES = str.maketrans("\r\n", "  ")


class FrameFields(dict[str, str]):
    """Header fields of one frame: clean, so that they may go over the wire as they are."""


class Options(NamedTuple):
    """What `connect` or `wrap` was called with, checked."""

    codec: Codec
    message_bytes_max: int
    native: bool


Frame: TypeAlias = tuple[FrameFields, memoryview]


class Producer:
    """Names the groups of one connection object."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().bytes
        self._seqs = itertools.count(1)

    def next(self) -> tuple[bytes, int]:
        """The producer id and the seq of the next group."""
        return self._id, next(self._seqs)


class Group(NamedTuple):
    """A message that becomes frames: what it holds, how it is cut, who carries which header."""

    normal: Normalised
    producer: bytes
    seq: int
    chunk_bytes_max: int
    codec: Codec
    every: Pairs
    first: Pairs
    last: Pairs

    @property
    def size_bytes(self) -> int:
        return memoryview(self.normal.view).nbytes

    @property
    def is_one_frame(self) -> bool:
        return self.size_bytes <= _whole(self.chunk_bytes_max, self.normal.itemsize)

    @property
    def cut(self) -> tuple[bytes, int, int, int, str]:
        """What the core cuts it by."""
        return self.producer, _EPOCH, self.seq, self.chunk_bytes_max, self.codec

    @property
    def pairs(self) -> tuple[Pairs, Pairs, Pairs]:
        """The caller's headers for every frame, the first and the last."""
        return self.every, self.first, self.last

    def frames(self) -> list[Frame]:
        """Cut the payload as it is now."""
        own = f"{self.producer.hex()}-{_EPOCH}-{self.seq}"
        frames = _cut(self.normal, *self.cut)
        for index, (fields, _) in enumerate(frames):
            fields[MSG_ID] = f"{own}-{index}"
            fields.update(self.every)
        frames[0][0].update(self.first)
        frames[-1][0].update(self.last)
        return frames


def plan(
    normal: Normalised, fields: Fields, max_payload: int, options: Options, producer: Producer
) -> Group:
    """Fix how a message is cut, before anything is sent.

    Args:
        normal: The payload.
        fields: The caller's headers, merged; not changed.
        max_payload: The server's limit in bytes.
        options: The client's.
        producer: Names the group, unless the caller did with Nats-Msg-Id.

    Returns:
        The group.

    Raises:
        TooLargeError: The payload is over `options.message_bytes_max`.
        InvalidHeadersError: Headers that no group can carry.
        nats.errors.BadHeaderError: A key that nats-py refuses, too.
        nats.errors.MaxPayloadError: The headers leave no room.
    """
    size_bytes = memoryview(normal.view).nbytes
    if size_bytes > options.message_bytes_max:
        raise TooLargeError(
            f"payload of {size_bytes} bytes, at most {options.message_bytes_max} bytes"
        )
    size = header_bytes(fields)
    if size > _CALLER_HEADER_BYTES_MAX:
        raise InvalidHeadersError(
            f"headers of {size} bytes, at most {_CALLER_HEADER_BYTES_MAX} bytes"
        )
    shape_bytes = 0 if normal.shape is None else sum(len(str(n)) + 1 for n in normal.shape)
    own_bytes = _OWN_HEADER_BYTES_MAX + shape_bytes + size
    chunk_bytes_max = min(max_payload, _FRAME_BYTES_MAX) - own_bytes
    if chunk_bytes_max < normal.itemsize:
        raise nats.errors.MaxPayloadError
    clean = _clean(fields)
    name_seq = (
        _named_by(clean[MSG_ID], normal, chunk_bytes_max, options.codec)
        if MSG_ID in clean
        else producer.next()
    )
    group = Group(normal, *name_seq, chunk_bytes_max, options.codec, [], [], [])
    one_frame = group.is_one_frame
    for name, value in clean.items():
        if not one_frame and name.lower().startswith(_ONE_FRAME_ONLY):
            raise InvalidHeadersError(f"header {name!r} cannot go with a message of several frames")
        if name in _EVERY_FRAME:
            group.every.append((name, value))
        else:
            (group.first if name in _FIRST_FRAME else group.last).append((name, value))
    return group


def merge(headers: dict[str, Any] | None, stream: str | None, ttl: float | None) -> Fields | None:
    """Make the headers that nats-py would send, in its order, in a dict of our own."""
    if headers is None and stream is None and ttl is None:
        return None
    fields = dict(headers or {})
    if stream is not None:
        fields[Header.EXPECTED_STREAM.value] = stream
    if ttl is not None:
        fields[Header.MSG_TTL.value] = str(int(ttl))
    return fields


def header_bytes(fields: Fields | None) -> int:
    """Count the header bytes that nats-py writes; the server adds them to the payload."""
    if fields is None:
        return 0
    size_bytes = len("NATS/1.0\r\n\r\n")
    for key, value in fields.items():
        if stripped := key.strip():
            size_bytes += len(stripped.encode()) + len(value.strip().encode()) + len(": \r\n")
    return size_bytes


def header_block(fields: Iterable[tuple[str, str]]) -> bytes:
    """The header of clean fields as it goes over the wire."""
    lines = "".join(f"{key}: {value}\r\n" for key, value in fields)
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def checksums(frames: list[Frame]) -> list[list[str]]:
    """List what the frames say of themselves: sizes, dtype, shape and the chunks' checksums."""
    return [
        [value for key, value in fields.items() if key.startswith("Vecmq-") and key != SEQS]
        for fields, _ in frames
    ]


def _clean(fields: Fields) -> Fields:
    clean = {}
    for key, value in fields.items():
        if not (name := key.strip()):
            continue
        if not _KEY.fullmatch(name):
            raise nats.errors.BadHeaderError(name)
        if name.lower().startswith("vecmq-"):
            raise InvalidHeadersError(f"header {name!r}: Vecmq- names are reserved")
        clean[name] = value.strip().translate(_NEWLINES)
    return clean


def _named_by(
    msg_id: str, normal: Normalised, chunk_bytes_max: int, codec: Codec
) -> tuple[bytes, int]:
    # A retry by the caller must make the same frames again, or a half stored group stays one.
    # So the ids follow from his id and from what the frames hold.
    frames = _cut(normal, bytes(16), _EPOCH, 1, chunk_bytes_max, "raw")
    content = repr((msg_id, codec, checksums(frames)))
    return hashlib.blake2b(content.encode(), digest_size=16).digest(), 1


def _whole(chunk_bytes_max: int, itemsize: int) -> int:
    return chunk_bytes_max - chunk_bytes_max % max(itemsize, 1)


def _cut(
    normal: Normalised, producer: bytes, epoch: int, seq: int, chunk_bytes_max: int, codec: str
) -> list[Frame]:
    view, dtype, itemsize, shape, _ = normal
    place = (producer, epoch, seq, chunk_bytes_max, codec)
    return [
        (FrameFields(pairs), memoryview(body))
        for pairs, body in make_frames(view, dtype, itemsize, shape, *place)
    ]
