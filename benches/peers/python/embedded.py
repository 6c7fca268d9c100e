"""Peers without a server: one thread writes, another one reads, in one process.

RocksDB can be opened by one process only, so the two cannot be apart.
"""

from __future__ import annotations

import gc
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer import (
    EXTRA_S,
    STALL_S,
    Checker,
    Spec,
    cut,
    make_payloads,
    make_sample,
    receive_window,
)

# Below this a sleep oversleeps; the wait for the next due message turns into a loop.
SPIN_S = 0.0002


class Store(ABC):
    """A store that the library has open.

    Attributes:
        versions: Of the library.
        window_msgs: Messages a call that are best when they are small.
    """

    versions: dict[str, str]
    window_msgs = 512

    @abstractmethod
    def open(self, path: Path) -> None:
        """Makes a store in a directory that does not exist yet."""

    @abstractmethod
    def close(self) -> None:
        """Closes it."""

    @abstractmethod
    def write(self, payloads: list[bytes]) -> None:
        """Writes messages in one call; they are stored when it returns."""

    @abstractmethod
    def read(self, count: int) -> list[bytes]:
        """Takes the next messages, at most `count` of them, and at least one if there is one."""


class Embedded:
    """Writes and reads one store for each operation.

    Args:
        spec: The workload.
        store: The library.
    """

    def __init__(self, spec: Spec, store: Store) -> None:
        self._spec = spec
        self._store = store
        self._window = spec.window(store.window_msgs)
        self._fetch = receive_window(spec, store.window_msgs)
        self._path: Path | None = None
        self._payloads: list[bytes] = []
        self._windows: list[list[bytes]] = []
        self._written = 0
        self._is_failed = False
        self._change = threading.Condition()

    def ready(self) -> dict[str, Any]:
        """Gives the first answer's "versions" and "batch"."""
        return {"versions": self._store.versions, "batch": self._window}

    def prepare(self, number: int) -> None:
        """Makes store and payloads, and deletes those of the operation before."""
        self.close()
        self._path = self._spec.path / f"bench-{number}"
        self._store.open(self._path)
        self._written = 0
        self._payloads = []
        self._windows = []
        self._payloads = make_payloads(self._spec, number)
        self._windows = cut(self._payloads, self._window)
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def run(self) -> dict[str, Any]:
        """Writes and reads.

        Returns:
            The sample.
        """
        checker = Checker(self._payloads)
        reader = _Reader(self, checker)
        started = time.monotonic_ns()
        if self._spec.workload != "publish":
            reader.start()
        try:
            for window in self._due(started):
                self._store.write(window)
                with self._change:
                    self._written += len(window)
                    self._change.notify()
        except BaseException:
            # Else the reader would wait for what does not come.
            with self._change:
                self._is_failed = True
                self._change.notify()
            raise
        published = time.monotonic_ns()
        if self._spec.workload == "publish":
            reader.start()
        reader.join()
        if reader.error is not None:
            raise reader.error
        times = (started, published, reader.ended_ns)
        return make_sample(self._spec, times, checker.sample(), checker.received_at_ns)

    def close(self) -> None:
        """Closes and deletes the store."""
        if self._path is not None:
            self._store.close()
            shutil.rmtree(self._path, ignore_errors=True)
        self._path = None

    def receive(self, checker: Checker) -> int:
        """Reads and verifies until the last message or a stall.

        Args:
            checker: Takes the messages.

        Returns:
            When the last one was verified.
        """
        taken = 0
        while checker.missing_count and self._wait(taken):
            payloads = self._store.read(min(self._fetch, checker.missing_count))
            taken += len(payloads)
            checker.take(payloads)
        ended = time.monotonic_ns()
        time.sleep(EXTRA_S)
        checker.take(self._store.read(self._fetch))
        return ended

    def _wait(self, taken: int) -> bool:
        """Waits until more than `taken` is written; neither library tells a reader of a write."""
        if self._written > taken:
            return True
        with self._change:
            self._change.wait_for(lambda: self._is_failed or self._written > taken, STALL_S)
        return self._written > taken

    def _due(self, started_ns: int) -> Iterator[list[bytes]]:
        """Gives the calls; at a rate, each time everything that is due."""
        payloads = self._payloads
        if self._spec.rate_per_s is None:
            yield from self._windows
            return
        step_ns = 1e9 / self._spec.rate_per_s
        first = 0
        while first < len(payloads):
            now_ns = time.monotonic_ns()
            due = int((now_ns - started_ns) / step_ns) + 1
            last = min(due, first + self._window, len(payloads))
            if last > first:
                yield payloads[first:last]
                first = last
                continue
            wait_s = (started_ns + first * step_ns - now_ns) / 1e9
            time.sleep(max(wait_s - SPIN_S, 0.0))


class _Reader(threading.Thread):
    """The reading thread; its error is kept for the thread that waits."""

    def __init__(self, peer: Embedded, checker: Checker) -> None:
        super().__init__(name="reader", daemon=True)
        self._peer = peer
        self._checker = checker
        self.ended_ns = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.ended_ns = self._peer.receive(self._checker)
        except Exception as error:  # noqa: BLE001, told by the thread that waits
            self.error = error
