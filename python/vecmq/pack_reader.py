"""Takes packs apart without the Rust core: small messages that left as one message of a stream.

A frame with `rows` > 1 and no dtype is a pack. Its payload is an inline entry, whose byte table
stands in `src/hybrid/inline.rs`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vecmq.errors import CorruptError
from vecmq.reader import Reader, ReadMessage, crc32c, read_header

__all__ = ["PackedMessage", "unpack"]

_PREFIX = struct.Struct("<B3sI")
_BLOCK = struct.Struct("<II")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_SMALL_BODY_BYTES = 64


@dataclass(frozen=True, slots=True)
class PackedMessage:
    """A message out of a pack.

    Attributes:
        message: The message itself.
        headers: The publisher's headers, in order.
    """

    message: ReadMessage
    headers: tuple[tuple[str, str], ...]


class _Cursor:
    """Takes bytes from the front; every length is checked."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.view) - self.at:
            raise CorruptError(f"pack: cut short at byte {self.at}, {count} bytes expected")
        taken = self.view[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack(self.take(form.size))
        return int(value)

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptError(f"pack: a header is not UTF-8: {error}") from error


def unpack(pack: ReadMessage) -> list[PackedMessage]:
    """Take a pack apart.

    Args:
        pack: A message with `rows` > 1 and no dtype, as `Reader.accept` returns it.

    Returns:
        Its messages, in order; a message with rows of its own counts as one.

    Raises:
        CorruptError: The payload is no pack, or holds another number of messages.
    """
    if pack.rows < 2 or pack.dtype is not None:
        raise CorruptError(f"message {pack.id} is no pack: {pack.rows} rows of {pack.dtype}")
    cursor = _Cursor(pack.payload)
    kind, zeros, blocks = _PREFIX.unpack(cursor.take(_PREFIX.size))
    if kind != 0 or zeros != bytes(3):
        raise CorruptError(f"pack: it begins with kind {kind}, expected 0")
    messages = [message for _ in range(blocks) for message in _block(cursor)]
    rows = sum(one.message.rows for one in messages)
    if rows != pack.rows or cursor.at != len(cursor.view):
        raise CorruptError(f"pack: {rows} messages, its frame header says {pack.rows}")
    return messages


def _block(cursor: _Cursor) -> list[PackedMessage]:
    front = cursor.at
    run, headers_bytes = _BLOCK.unpack(cursor.take(_BLOCK.size))
    headers_end = cursor.at + headers_bytes
    headers = _headers(cursor, headers_end)
    covered = cursor.view[front:headers_end]
    if cursor.at != headers_end or cursor.number(_U32) != crc32c(covered):
        raise CorruptError("pack: the checksum of a block's front does not match")
    reader = Reader()
    message = None
    while message is None:
        message = _frame(cursor, reader)
    if run == 1:
        return [PackedMessage(message, headers)]
    if run == 0 or message.rows != 1 or message.dtype is not None or len(message.payload) % run:
        raise CorruptError(f"pack: {len(message.payload)} bytes are no run of {run} messages")
    size = len(message.payload) // run
    producer_epoch, seq = message.id.rsplit("-", 1)
    return [
        PackedMessage(
            ReadMessage(
                f"{producer_epoch}-{int(seq) + row}",
                message.payload[row * size : (row + 1) * size],
                *(None, None, 1),
            ),
            headers,
        )
        for row in range(run)
    ]


def _headers(cursor: _Cursor, end: int) -> tuple[tuple[str, str], ...]:
    if cursor.at == end:
        return ()
    count = cursor.number(_U16)
    pairs = (
        (cursor.text(cursor.number(_U16)), cursor.text(cursor.number(_U32))) for _ in range(count)
    )
    return tuple(pairs)


def _frame(cursor: _Cursor, reader: Reader) -> ReadMessage | None:
    body_bytes = cursor.number(_U32)
    header, taken = read_header(cursor.view[cursor.at :])
    cursor.take(taken)
    alignment = 16 if body_bytes < _SMALL_BODY_BYTES else 64
    if any(cursor.take(-cursor.at % alignment)):
        raise CorruptError("pack: bytes between a frame's header and its body")
    return reader.accept_frame(header, cursor.take(body_bytes))
