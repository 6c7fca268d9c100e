"""``vecmq sub``."""

from __future__ import annotations

import contextlib
import json as json_text
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

import vecmq
from vecmq.cli.base import ANYWHERE, UsageError, Where, app, examples, print_line
from vecmq.errors import Error

if TYPE_CHECKING:
    from vecmq import Message

__all__ = ["sub"]

FETCH_MSGS: Final = 64
HEAD: Final = f"{'seq':>10}  {'route':<6}{'bytes':>12}  {'kind':<24}headers"


@app.command(
    help_epilogue=examples(
        "vecmq sub vectors --group indexer --path data",
        "vecmq sub vectors --group indexer --path data --out received --count 1000",
        "vecmq sub vectors --group watch --nats nats://127.0.0.1:4222 --follow --json",
    )
)
def sub(
    topic: str,
    *,
    group: str,
    where: Where = ANYWHERE,
    out: Path | None = None,
    count: int | None = None,
    timeout_s: float = 1.0,
    follow: bool = False,
    start: Literal["first", "new"] = "first",
    json: bool = False,
) -> int:
    """Receive messages, print a line for each, and acknowledge them.

    A message is acknowledged after its line is printed and its file is in place, so Ctrl-C loses
    nothing: the group goes on where it stopped. Ends when nothing came for --timeout-s. A directory
    that another process has open is read through that process.

    Args:
        topic: The topic.
        group: Durable name of the subscription group, which keeps its place.
        where: Where messages are stored.
        out: Write each message into this directory, as SEQ.npy (arrays) or SEQ.bin (bytes, and
            dtypes that .npy has no name for).
        count: Stop after this many messages; exit code 1 when fewer came.
        timeout_s: Stop when nothing came for this many seconds.
        follow: Wait for messages until --count or Ctrl-C.
        start: Where a new group begins.
        json: Print one JSON object a message.
    """
    if count is not None and count < 1:
        raise UsageError(f"--count: expected messages > 0, got {count}")
    if out is not None:
        _make_directory(out)
    done = 0
    with where.open_or_attach() as mq, mq.subscribe(topic, group=group, start=start) as subscriber:
        if not json:
            print_line(HEAD)
        names = _Names()
        while count is None or done < count:
            wanted = FETCH_MSGS if count is None else min(FETCH_MSGS, count - done)
            batch = subscriber.fetch(wanted, timeout_s=None if follow else timeout_s)
            if not batch:
                break
            with _acked() as handled:
                for message in batch:
                    file = _write(out, names.next(message), message) if out else None
                    _print_message(message, file, as_json=json)
                    handled.append(message)
                    done += 1
    if count is not None and done < count:
        raise Error(f"expected {count} messages, got {done} before {timeout_s} s without one")
    return 0


@contextlib.contextmanager
def _acked() -> Iterator[list[Message]]:
    """Acknowledge what was handled, also when the rest was interrupted."""
    handled: list[Message] = []
    try:
        yield handled
    finally:
        if handled:
            vecmq.Batch(handled).ack()


class _Names:
    """File names of messages; rows that share a seq (mode "nats") get a number of their own."""

    def __init__(self) -> None:
        self._seq = -1
        self._row = 0

    def next(self, message: Message) -> str:
        """Give the name without its ending."""
        self._row = self._row + 1 if message.seq == self._seq else 0
        self._seq = message.seq
        return f"{message.seq}-{self._row}" if self._row else f"{message.seq}"


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make {path}: {error}") from None


def _write(directory: Path, name: str, message: Message) -> Path:
    """Write the message as a whole or not at all."""
    array = message.array() if message.dtype is not None else None
    # A dtype that is not numpy's own (bfloat16) comes back from .npy as raw bytes: keep those.
    is_npy = array is not None and np.dtype(array.dtype.str) == array.dtype
    file = directory / f"{name}.{'npy' if is_npy else 'bin'}"
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with open(unfinished, "wb") as stream:
        if array is not None and is_npy:
            np.save(stream, array, allow_pickle=False)
        else:
            stream.write(message.payload)
    os.replace(unfinished, file)
    return file


def _print_message(message: Message, file: Path | None, *, as_json: bool) -> None:
    if as_json:
        values = {
            "seq": message.seq,
            "route": message.route,
            "id": message.id,
            "size_bytes": message.size_bytes,
            "dtype": message.dtype,
            "shape": message.shape,
            "headers": message.headers,
            "file": None if file is None else str(file),
        }
        print_line(json_text.dumps(values))
        return
    shape = "x".join(str(length) for length in message.shape or ())
    kind = "bytes" if message.dtype is None else f"{message.dtype} {shape or 'scalar'}"
    headers = " ".join(f"{key}={value}" for key, value in message.headers.items())
    line = f"{message.seq:>10}  {message.route:<6}{message.size_bytes:>12}  {kind:<24}{headers}"
    print_line(line.rstrip())
