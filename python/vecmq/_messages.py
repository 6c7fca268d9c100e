"""From what a user hands in to what the core takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vecmq._payload import normalise
from vecmq.errors import InvalidHeadersError, PayloadError

Headers = Mapping[str, str] | None

Extra = list[tuple[str, str]] | None


class Prepared(tuple[Any, bool, str | None, int, tuple[int, ...] | None, int, Extra]):
    """A message that is described: view, writable, dtype name, itemsize, shape, rows, headers."""

    __slots__ = ()


# What the core takes: a Prepared, or a payload as it was handed in, without headers.
Item = object


def item(payload: object, headers: Headers) -> Item:
    """Prepare one message.

    Raises:
        PayloadError: The payload is neither a buffer nor an array of numbers.
        InvalidHeadersError: The headers are not a mapping of str to str.
    """
    return payload if headers is None else described(payload, headers)


def prepare(payload: object) -> Prepared:
    """Describe what the core was handed and does not know.

    Raises:
        PayloadError: The payload is neither a buffer nor an array of numbers.
    """
    return payload if type(payload) is Prepared else described(payload, None)


def described(payload: object, headers: Headers) -> Prepared:
    """Describe one message.

    Raises:
        PayloadError: The payload is neither a buffer nor an array of numbers.
        InvalidHeadersError: The headers are not a mapping of str to str.
    """
    view, dtype, itemsize, shape, writable = normalise(payload)
    extra = None if headers is None else pairs(headers)
    return Prepared((view, writable, dtype, itemsize, shape, 1, extra))


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
    return list(payloads) if headers is None else [described(one, headers) for one in payloads]


def rows_item(rows: object, headers: Headers) -> Prepared:
    """Prepare the rows of one array, one message each.

    Raises:
        PayloadError: Not an array of at least one row, or with fewer than two dimensions.
        InvalidHeadersError: The headers are not a mapping of str to str.
    """
    view, writable, dtype, itemsize, shape, _, extra = described(rows, headers)
    if dtype is None or shape is None or len(shape) < 2:
        got = "plain bytes" if shape is None else f"shape {shape}"
        raise PayloadError(f"publish_rows takes an array of rows (n x d), got {got}")
    count = shape[0]
    if not 1 <= count <= 1_000_000:
        raise PayloadError(f"publish_rows takes 1 to 1,000,000 rows, got {count}")
    # One row is a message like any other: its shape is the row's.
    row_shape = shape if count > 1 else shape[1:]
    return Prepared((view, writable, dtype, itemsize, row_shape, count, extra))


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
