"""Random messages, and the check of what arrives: every byte, the order, the count."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WINDOW_BYTES", "WINDOW_MSGS", "Checker", "Payloads", "first_numbers", "windows"]

WINDOW_BYTES: Final = 16 << 20
WINDOW_MSGS: Final = 512
WORD_BYTES: Final = 8
# Up to here one comparison of many messages is cheaper than one of each.
JOINED_BYTES_MAX: Final = 4096


class Payloads:
    """Random messages in one buffer; the first 8 bytes of each are its number, little-endian.

    Args:
        sizes_bytes: Size of each message, a multiple of 8.
        seed: Chooses the bytes.

    Attributes:
        words: All messages, one behind the other, as read-only uint64.
        starts: Index in `words` where each message starts, and the end of the last.
        views: A read-only buffer for each message.
    """

    def __init__(self, sizes_bytes: Sequence[int], seed: int) -> None:
        sizes = np.asarray(sizes_bytes, dtype=np.int64)
        self.starts: Final[NDArray[np.int64]] = _starts(sizes)
        words = np.random.default_rng(seed).integers(
            0, 1 << 64, int(self.starts[-1]), dtype=np.uint64
        )
        words[self.starts[:-1]] = np.arange(len(sizes))
        words.flags.writeable = False
        self.words: Final[NDArray[np.uint64]] = words
        whole = memoryview(words.view(np.uint8))
        ends = (self.starts * WORD_BYTES).tolist()
        self.views: Final = [whole[start:end] for start, end in itertools.pairwise(ends)]


def windows(views: Sequence[memoryview], msgs_max: int = WINDOW_MSGS) -> list[list[memoryview]]:
    """Cut messages into calls.

    Args:
        views: Payloads.
        msgs_max: Messages of a call, at most.

    Returns:
        Lists of at most msgs_max messages and WINDOW_BYTES bytes (but one message at least).
    """
    cut: list[list[memoryview]] = []
    room_bytes = 0
    for view in views:
        if not cut or len(cut[-1]) == msgs_max or view.nbytes > room_bytes:
            cut.append([])
            room_bytes = WINDOW_BYTES
        cut[-1].append(view)
        room_bytes -= view.nbytes
    return cut


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]) // WORD_BYTES


class Checker:
    """Compares what arrives with the payloads.

    Args:
        payloads: What is published.
        publishers: How many publish at once: of P of them number n publishes messages n, n + P...
            in this order.

    Attributes:
        received_count: Messages received.
        duplicate_count: Messages received before.
        unordered_count: Messages that came after a later one of the same publisher.
        wrong_count: Messages that equal no payload.
        verify_s: CPU seconds spent here.
    """

    def __init__(self, payloads: Payloads, publishers: int = 1) -> None:
        self._payloads = payloads
        self._seen: NDArray[np.bool_] = np.zeros(len(payloads.views), dtype=np.bool_)
        # The number that each publisher's messages have reached.
        self._next = [0] * publishers
        self.received_count = 0
        self.duplicate_count = 0
        self.unordered_count = 0
        self.wrong_count = 0
        self.verify_s = 0.0

    @property
    def lost_count(self) -> int:
        """Messages that have not come."""
        return int(np.count_nonzero(~self._seen))

    def take(self, batch: Sequence[memoryview]) -> None:
        """Compare messages.

        Args:
            batch: Payloads in the order of delivery.
        """
        started = time.thread_time()
        self.received_count += len(batch)
        first = self._next[0]
        if len(self._next) == 1 and self._is_run(batch, first):
            self._seen[first : first + len(batch)] = True
            self._next[0] += len(batch)
        else:
            for payload in batch:
                self._take_one(payload)
        self.verify_s += time.thread_time() - started

    def counts(self) -> dict[str, int]:
        """Give what a sample tells of them.

        Returns:
            Counts by their names in a sample.
        """
        return {
            "received_count": self.received_count,
            "lost_count": self.lost_count,
            "duplicate_count": self.duplicate_count,
            "unordered_count": self.unordered_count,
            "wrong_count": self.wrong_count,
        }

    def _is_run(self, batch: Sequence[memoryview], first: int) -> bool:
        """Whether the batch is exactly the messages from that number on."""
        expected = self._payloads.views[first : first + len(batch)]
        if [len(payload) for payload in batch] != [len(payload) for payload in expected]:
            return False
        starts = self._payloads.starts
        if all(len(payload) <= JOINED_BYTES_MAX for payload in batch):
            joined = np.frombuffer(b"".join(batch), dtype=np.uint64)
            words = self._payloads.words[starts[first] : starts[first + len(batch)]]
            return bool(np.array_equal(joined, words))
        return all(self._is_equal(payload, number) for number, payload in enumerate(batch, first))

    def _is_equal(self, payload: memoryview, number: int) -> bool:
        starts = self._payloads.starts
        words = self._payloads.words[starts[number] : starts[number + 1]]
        return len(payload) == words.nbytes and bool(
            np.array_equal(np.frombuffer(payload, np.uint64), words)
        )

    def _take_one(self, payload: memoryview) -> None:
        number = int.from_bytes(payload[:WORD_BYTES], "little")
        if number >= len(self._seen) or not self._is_equal(payload, number):
            self.wrong_count += 1
            return
        if self._seen[number]:
            self.duplicate_count += 1
            return
        publisher = number % len(self._next)
        self.unordered_count += number < self._next[publisher]
        self._seen[number] = True
        self._next[publisher] = max(self._next[publisher], number + 1)


def first_numbers(batch: Sequence[Any]) -> list[int]:
    """Read the numbers of messages that were verified.

    Args:
        batch: Payloads.

    Returns:
        A number for each.
    """
    return [int.from_bytes(payload[:WORD_BYTES], "little") for payload in batch]
