"""The subscriber of the asyncio API."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from vecmq._batch import Batch, fill, readable
from vecmq._options import check_timeout, seek_target
from vecmq._payload import writable_bytes
from vecmq.errors import ClosedError, ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from types import TracebackType

    from vecmq._loop import Loop
    from vecmq._native import Message, Receipt
    from vecmq._native import Subscriber as NativeSubscriber

__all__ = ["Subscriber"]

# Messages that iteration takes from the core at a time.
_ITERATE_MSGS: Final = 512

# What is written to a caller's memory in the event loop itself: a millisecond at most.
_FILL_INLINE_BYTES: Final = 1 << 20


async def _fill_elsewhere(message: Message, room: Any) -> None:
    filling = asyncio.ensure_future(asyncio.to_thread(fill, message, room))
    try:
        await asyncio.shield(filling)
    except asyncio.CancelledError:
        # The caller's memory is his own again when this returns.
        while not filling.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([filling])
        filling.exception()
        raise


class Subscriber:
    """Reads one topic for one subscription group, in order. Made by `Handle.subscribe`.

    ``async for message in subscriber`` yields messages until the subscription is closed.
    """

    def __init__(
        self,
        native: NativeSubscriber,
        loop: Loop,
        topic: str,
        group: str,
        ack_wait_s: float | None,
    ) -> None:
        self._native = native
        self._loop = loop
        self._ahead: deque[Message] = deque()
        self._waiting: asyncio.Future[Receipt | None] | None = None
        self._turn = asyncio.Lock()
        self._closed = False
        self._ack_wait_s = ack_wait_s
        self._ahead_since = 0.0
        self.topic = topic
        self.group = group

    async def fetch(self, max_msgs: int = _ITERATE_MSGS, timeout_s: float | None = None) -> Batch:
        """Return up to `max_msgs` messages, waiting for the first.

        Args:
            max_msgs: Messages, > 0.
            timeout_s: Seconds > 0 to wait for the first message; None waits.

        Returns:
            A Batch; empty when the time was over.

        Raises:
            ConfigError: A bad count or timeout.
            CorruptError: A message that cannot be read; `ack_through` its seq to step over it.
            IncompleteError: A group that has lost frames; step over it likewise.
            ClosedError: The subscription or the handle was closed.
        """
        if not isinstance(max_msgs, int) or max_msgs < 1:
            raise ConfigError(f"max_msgs: expected messages > 0, got {max_msgs!r}")
        check_timeout(timeout_s)
        return await self._fetch(max_msgs, timeout_s, keep_frames=False)

    async def _fetch(self, max_msgs: int, timeout_s: float | None, *, keep_frames: bool) -> Batch:
        self._loop.check()
        async with self._turn:
            if self._ahead:
                if not keep_frames:
                    readable(self._ahead[0])
                return Batch(self._ahead.popleft() for _ in range(min(max_msgs, len(self._ahead))))
            return await self._poll(max_msgs, timeout_s, keep_frames=keep_frames)

    async def _poll(self, max_msgs: int, timeout_s: float | None, *, keep_frames: bool) -> Batch:
        loop = self._loop
        deadline = None if timeout_s is None else loop.loop.time() + timeout_s
        while True:
            token = loop.tokens(1)
            messages, look_s = self._native.poll(
                max_msgs, loop.native, token, keep_frames=keep_frames
            )
            if messages:
                return Batch(messages)
            # A message may be due again before one comes.
            look = None if look_s is None else loop.loop.time() + look_s
            ends = [end for end in (deadline, look) if end is not None]
            self._waiting = loop.future(token)
            try:
                async with asyncio.timeout_at(min(ends, default=None)):
                    await self._waiting
            except TimeoutError:
                if deadline is not None and loop.loop.time() >= deadline:
                    return Batch()
            finally:
                self._waiting = None
                loop.forget(token)

    async def receive(
        self, timeout_s: float | None = None, *, out: object = None
    ) -> Message | None:
        """Return the next message, or None when the time was over.

        With `out` its bytes are written to memory of the caller's, so that one array is filled
        again and again. Copies: on the NATS route 1 of raw frames, from where the socket put them
        straight into `out`, and 0 of coded ones, which are decoded into it; 1 more for small
        messages that came in one frame with others, for packed rows, and for what was read ahead
        before the first call with `out`. On the queue route 1, of coded ones 1 after decoding.
        The message's own `payload` is then put together only when it is asked for.
        From 1 MiB on a thread does it.

        Args:
            timeout_s: Seconds > 0 to wait; None waits.
            out: Writable C-contiguous ndarray or buffer of exactly the message's bytes; dtype and
                shape are not compared.

        Returns:
            The Message.

        Raises:
            PayloadError: `out` is not that, or not of the message's size: the message is the next
                one again.
            CorruptError: The message cannot be read, `out` holds anything; step over it.
            Others as `fetch`.
        """
        room = None if out is None else writable_bytes(out)
        check_timeout(timeout_s)
        batch = await self._fetch(1, timeout_s, keep_frames=room is not None)
        if not batch:
            return None
        try:
            if room is None or room.nbytes < _FILL_INLINE_BYTES:
                fill(batch[0], room)
            else:
                await _fill_elsewhere(batch[0], room)
        except BaseException:
            self._ahead.appendleft(batch[0])
            raise
        return batch[0]

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if self._ahead:
            self._keep_ahead()
        while not self._ahead:
            try:
                self._ahead.extend(await self.fetch(_ITERATE_MSGS))
                self._ahead_since = time.monotonic()
            except ClosedError:
                if self._closed:
                    raise StopAsyncIteration from None
                raise
        return self._ahead.popleft()

    def _keep_ahead(self) -> None:
        # The caller has not seen these yet: their time begins anew while he works.
        wait_s = self._ack_wait_s
        if wait_s is not None and time.monotonic() - self._ahead_since > wait_s / 4:
            for message in self._ahead:
                message.in_progress()
            self._ahead_since = time.monotonic()

    async def batches(self, max_msgs: int = _ITERATE_MSGS) -> AsyncIterator[Batch]:
        """Yield batches of up to `max_msgs` messages until the subscription is closed.

        Args:
            max_msgs: Messages, > 0.

        Yields:
            Batches with at least one message.

        Raises:
            As `fetch`.
        """
        while True:
            try:
                batch = await self.fetch(max_msgs)
            except ClosedError:
                if self._closed:
                    return
                raise
            yield batch

    def ack_through(self, seq: int) -> None:
        """Mark every message up to and including `seq` done, delivered or not.

        Args:
            seq: Position in the topic.

        Raises:
            StorageError: The cursor could not be saved.
            ClosedError: The subscription or the handle was closed.
        """
        self._native.ack_through(seq)
        self._ahead = deque(message for message in self._ahead if message.seq > seq)

    async def seek(
        self, to: int | datetime | Literal["first", "new"], *, inclusive: bool = True
    ) -> None:
        """Move the group, with all its subscribers; what it had acked after that comes again.

        Args:
            to: A seq; an aware datetime (the first message published then or later; "new" where
                there is none); "first" (the oldest message) or "new" (after the newest one).
            inclusive: False: after that seq or time instead of at it.

        Raises:
            SeqNotFoundError: The topic does not hold that seq; the message names the nearest.
            ConfigError: `to` is none of these, or a datetime without a time zone.
            NotConnectedError: The server cannot be reached (mode "nats").
            ClosedError: The subscription or the handle was closed.
        """
        kind, value = seek_target(to)
        await asyncio.to_thread(self._native.seek, kind, value, inclusive)
        self._ahead.clear()

    def close(self) -> None:
        """End the subscription; its group and cursor stay. A second call does nothing.

        Raises:
            ForkError: Called in a forked child.
        """
        self._closed = True
        self._native.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
