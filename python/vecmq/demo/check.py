"""Compares what was received with the plan: every bit, the order, and what was acknowledged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmq.demo.plan import HEADER, Item, control_bytes, expected

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vecmq import Message
    from vecmq.demo.ledger import Entry

__all__ = ["Check"]


class _Copy:
    """What was received of one publish of one item: a repeat after a crash makes a second one."""

    __slots__ = ("first_id", "first_seq", "received", "route")

    def __init__(self, message: Message) -> None:
        self.first_id = message.id
        self.first_seq = message.seq
        self.route = message.route
        self.received = 0


class Check:
    """Takes the messages of one topic from its first one on, in the order of delivery.

    Attributes:
        received_count: Messages received.
        last_seq: The highest seq received.
        wrong_count: Messages whose bytes, dtype, shape or headers are not those of the plan.
        unordered_count: Messages that did not come in the order of publishing.
        duplicates: Messages delivered or stored twice under one id, by route.
        vectors: What was received, row by row at the place of its sentence; zero where nothing
            came.
        present: Which rows of `vectors` were received.
    """

    def __init__(self, items: list[Item], corpus: NDArray[np.float32]) -> None:
        self._items: Final = items
        self._corpus: Final = corpus
        self._copies: list[list[_Copy]] = [[] for _ in items]
        self._ids: set[str] = set()
        self._last_index = 0
        self.received_count = 0
        self.last_seq = 0
        self.wrong_count = 0
        self.unordered_count = 0
        self.duplicates: Counter[str] = Counter()
        self.vectors: NDArray[np.float32] = np.zeros_like(corpus)
        self.present: NDArray[np.bool_] = np.zeros(len(corpus), dtype=np.bool_)

    def take(self, message: Message) -> None:
        """Compare one message with the plan.

        Args:
            message: The next message of the topic.
        """
        self.received_count += 1
        if message.seq <= self.last_seq or message.id in self._ids:
            self.duplicates[message.route] += 1
            return
        self.last_seq = message.seq
        self._ids.add(message.id)
        item = self._item(message)
        if item is None:
            self.wrong_count += 1
            return
        # An item that was stored and not acknowledged when the process died comes again at once, so
        # even then the plan never goes back.
        self.unordered_count += item.index < self._last_index
        self._last_index = max(self._last_index, item.index)
        copy = self._copy(item, message)
        if not self._same(message, item, copy.received):
            self.wrong_count += 1
        copy.received += 1

    def _copy(self, item: Item, message: Message) -> _Copy:
        """Give the copy that the message belongs to; the rows of a block have consecutive seqs."""
        copies = self._copies[item.index]
        if copies:
            last = copies[-1]
            is_next = message.seq == last.first_seq + last.received
            if is_next and last.received < item.messages_count:
                return last
        copies.append(_Copy(message))
        return copies[-1]

    def _item(self, message: Message) -> Item | None:
        text = message.headers.get(HEADER, "")
        index = int(text) if text.isdecimal() else len(self._items)
        return self._items[index] if index < len(self._items) else None

    def _same(self, message: Message, item: Item, row: int) -> bool:
        if item.kind == "control":
            return message.dtype is None and bytes(message.payload) == control_bytes(item)
        if message.dtype != "float32":
            return False
        array = message.array()
        if item.kind == "batch":
            if array.shape != (item.rows_count, self._corpus.shape[1]):
                return False
            return self._place(array, item.first_row, expected(item, self._corpus))
        # A row, alone or of a block.
        if array.shape != (self._corpus.shape[1],):
            return False
        first_row = item.first_row + row
        return self._place(array[None], first_row, [self._corpus[first_row : first_row + 1]])

    def _place(
        self,
        array: NDArray[np.float32],
        first_row: int,
        pieces: Iterable[NDArray[np.float32]],
    ) -> bool:
        """Keep the received rows, and compare them bit by bit: NaN equals itself, 0 is not -0."""
        start, is_same = 0, True
        for piece in pieces:
            rows = array[start : start + len(piece)]
            is_same &= bool(np.array_equal(rows.view(np.uint32), piece.view(np.uint32)))
            self.vectors[first_row : first_row + len(piece)] = rows
            self.present[first_row : first_row + len(piece)] = True
            start += len(piece)
            first_row = 0
        return is_same

    def lost(self, entries: Iterable[Entry]) -> Counter[str]:
        """Count acknowledged messages that were not received.

        Args:
            entries: Every receipt there is.

        Returns:
            Messages by route; also those of a group of which only a part was delivered.
        """
        lost: Counter[str] = Counter()
        acknowledged = set()
        for entry in entries:
            acknowledged.add(entry.id)
            copy = self._acknowledged(entry)
            lost[entry.route] += entry.rows_count - (copy.received if copy else 0)
        for item, copies in zip(self._items, self._copies, strict=True):
            for copy in copies:
                if copy.first_id not in acknowledged:
                    lost[copy.route] += item.messages_count - copy.received
        return lost

    def _acknowledged(self, entry: Entry) -> _Copy | None:
        copies = self._copies[entry.plan_index]
        return next((copy for copy in copies if copy.first_id == entry.id), None)

    def misplaced_count(self, entries: Iterable[Entry]) -> int:
        """Count receipts whose seq is not the one that the message was received at.

        Args:
            entries: Every receipt there is.

        Returns:
            Receipts.
        """
        count = 0
        for entry in entries:
            copy = self._acknowledged(entry)
            count += copy is not None and copy.first_seq != entry.seq
        return count

    def again_count(self) -> int:
        """Count items that are in the topic more than once, under ids of their own.

        Returns:
            Publishes that a crash left without a receipt and that were then made again.
        """
        return sum(max(len(copies) - 1, 0) for copies in self._copies)
