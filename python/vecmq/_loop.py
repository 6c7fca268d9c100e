"""Finishes what an asyncio loop waits for from the core's threads."""

from __future__ import annotations

import asyncio

from vecmq._native import Completions, Receipt
from vecmq.errors import ClosedError, ConfigError


class Loop:
    """Finishes futures of one event loop from the core's threads."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.native = Completions()
        self._futures: dict[int, asyncio.Future[Receipt | None]] = {}
        self._next_token = 0
        self.loop.add_reader(self.native.fileno(), self._drain)

    def tokens(self, count: int) -> int:
        first = self._next_token
        self._next_token += count
        return first

    def future(self, token: int) -> asyncio.Future[Receipt | None]:
        future: asyncio.Future[Receipt | None] = self.loop.create_future()
        self._futures[token] = future
        return future

    def check(self) -> None:
        if asyncio.get_running_loop() is not self.loop:
            raise ConfigError(
                "the handle belongs to another event loop; open one in each loop that uses it"
            )

    def _drain(self) -> None:
        for token, receipt, error in self.native.drain():
            future = self._futures.pop(token, None)
            if future is None or future.done():
                continue  # cancelled: the publish itself went on
            if error is None:
                future.set_result(receipt)
            else:
                future.set_exception(error)

    def close(self) -> None:
        if not self.loop.is_closed():
            self.loop.remove_reader(self.native.fileno())
        for future in self._futures.values():
            if not future.done():
                future.set_exception(ClosedError("the handle was closed"))
        self._futures.clear()
