"""Finishes what an asyncio loop waits for from the core's threads."""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from vecmq._messages import Item
from vecmq._native import Completions, Publisher, Receipt
from vecmq._options import Coding, Route
from vecmq.errors import ClosedError, ConfigError

# Publishes of one loop that may be without a receipt, and how many a full window empties to.
_PENDING_MAX = 4096
_PENDING_LOW = _PENDING_MAX // 2


class Loop:
    """Finishes futures of one event loop from the core's threads."""

    def __init__(self) -> None:
        self.loop = get_running_loop()
        self.native = Completions()
        self._futures: dict[int, asyncio.Future[Receipt | None]] = {}
        self._next_token = 0
        self._room: asyncio.Future[None] | None = None
        self.loop.add_reader(self.native.fileno(), self._drain)

    def tokens(self, count: int) -> int:
        first = self._next_token
        self._next_token += count
        return first

    def future(self, token: int) -> asyncio.Future[Receipt | None]:
        future: asyncio.Future[Receipt | None] = self.loop.create_future()
        self._futures[token] = future
        return future

    def hand_over(
        self,
        publisher: Publisher,
        item: Item,
        route: Route | None,
        timeout_s: float | None,
        coding: Coding | None,
        expected_last_seq: int | None,
    ) -> asyncio.Future[Receipt]:
        """Publish one message; a future of its receipt, which may be there already."""
        # In one piece: publishing one by one is what a caller of this does all the time.
        if get_running_loop() is not self.loop:
            raise _elsewhere()
        token = self._next_token
        self._next_token = token + 1
        receipt = publisher.publish_one(
            item, route, timeout_s, coding, self.native, token, expected_last_seq
        )
        future: asyncio.Future[Receipt] = self.loop.create_future()
        if receipt is None:
            self._futures[token] = future  # type: ignore[assignment] # ends with one, or an error
        else:
            future.set_result(receipt)
        return future

    def forget(self, token: int) -> None:
        """Nobody waits for it any more."""
        self._futures.pop(token, None)
        if len(self._futures) <= _PENDING_LOW:
            self._make_room()

    def is_full(self) -> bool:
        return len(self._futures) >= _PENDING_MAX

    async def room(self) -> None:
        """Wait until the window is half empty."""
        while len(self._futures) > _PENDING_LOW:
            if self._room is None:
                self._room = self.loop.create_future()
            await asyncio.shield(self._room)

    def check(self) -> None:
        if get_running_loop() is not self.loop:
            raise _elsewhere()

    def _drain(self) -> None:
        tokens, results, failed = self.native.drain()
        pop = self._futures.pop
        for token, result in zip(tokens, results, strict=True):
            future = pop(token, None)
            # Cancelled otherwise: the publish itself went on.
            if future is not None and not future.done():
                future.set_result(result)
        for token, error in failed:
            future = pop(token, None)
            if future is not None and not future.done():
                future.set_exception(error)
        if len(self._futures) <= _PENDING_LOW:
            self._make_room()

    def close(self) -> None:
        if not self.loop.is_closed():
            self.loop.remove_reader(self.native.fileno())
        for future in self._futures.values():
            if not future.done():
                future.set_exception(ClosedError("the handle was closed"))
        self._futures.clear()
        self._make_room()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set_result(None)
            self._room = None


def _elsewhere() -> ConfigError:
    return ConfigError(
        "the handle belongs to another event loop; open one in each loop that uses it"
    )


class _Closable(Protocol):
    async def close(self) -> None: ...


HandleT = TypeVar("HandleT", bound=_Closable)


class Opening(Generic[HandleT]):
    """Await it for a handle to close by hand, or use it in ``async with``."""

    def __init__(self, make: Callable[[], Awaitable[HandleT]]) -> None:
        self._make = make
        self._handle: HandleT | None = None

    def __await__(self) -> Generator[object, None, HandleT]:
        return self._make().__await__()

    async def __aenter__(self) -> HandleT:
        self._handle = await self._make()
        return self._handle

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            await self._handle.close()
