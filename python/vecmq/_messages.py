"""From what a user hands in to what the core takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vecmq._payload import normalise
from vecmq.errors import InvalidHeadersError, PayloadError

Headers = Mapping[str, str] | None

# view, writable, dtype name, itemsize, shape, rows, headers
Item = tuple[Any, bool, str | None, int, tuple[int, ...] | None, int, list[tuple[str, str]] | None]


def item(payload: object, headers: Headers) -> Item:
    """Prepare one message.

    Raises:
        PayloadError: The payload is neither a buffer nor an array of numbers.
        InvalidHeadersError: The headers are not a mapping of str to str.
    """
    view, dtype, itemsize, shape, writable = normalise(payload)
    return view, writable, dtype, itemsize, shape, 1, None if headers is None else pairs(headers)


def items(payloads: Iterable[object], headers: Headers) -> list[Item]:
    """Prepare several messages with the same headers.

    Raises:
        PayloadError: `payloads` is one payload instead of several, or one of them is refused.
        InvalidHeadersError: The headers are not a mapping of str to str.
    """
    if isinstance(payloads, (bytes, bytearray, memoryview, str)):
        raise PayloadError(
            f"publish_many takes several payloads, got one {type(payloads).__name__}; use publish"
        )
    return [item(payload, headers) for payload in payloads]


def rows_item(rows: object, headers: Headers) -> Item:
    """Prepare the rows of one array, one message each.

    Raises:
        PayloadError: Not an array of at least one row, or with fewer than two dimensions.
        InvalidHeadersError: The headers are not a mapping of str to str.
    """
    view, writable, dtype, itemsize, shape, _, extra = item(rows, headers)
    if dtype is None or shape is None or len(shape) < 2:
        got = "plain bytes" if shape is None else f"shape {shape}"
        raise PayloadError(f"publish_rows takes an array of rows (n x d), got {got}")
    count = shape[0]
    if not 1 <= count <= 1_000_000:
        raise PayloadError(f"publish_rows takes 1 to 1,000,000 rows, got {count}")
    # One row is a message like any other: its shape is the row's.
    return view, writable, dtype, itemsize, shape if count > 1 else shape[1:], count, extra


def pairs(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Headers as the core takes them.

    Raises:
        InvalidHeadersError: Not a mapping of str to str.
    """
    if not isinstance(headers, Mapping):
        raise InvalidHeadersError(f"headers: expected a mapping, got {type(headers).__name__}")
    out = []
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidHeadersError(
                f"headers: expected str keys and values, got {key!r}: {type(value).__name__}"
            )
        out.append((key, value))
    return out
