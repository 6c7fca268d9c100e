"""What the demo publishes, in which order: the same for the same vectors and seed."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HEADER", "Item", "Kind", "digest", "expected", "make", "payload", "size_bytes"]

Kind = Literal["control", "row", "block", "batch"]

HEADER: Final = "plan-index"
# Batches of about 1 to 20 MB (a row is 1 KiB), blocks of rows that are packed into frames.
BATCH_ROWS_MIN: Final = 1_000
BATCH_ROWS_MAX: Final = 20_000
BLOCK_ROWS_MIN: Final = 64
BLOCK_ROWS_MAX: Final = 512
CYCLES: Final = 24
# What one cycle holds, in shuffled order.
CYCLE: Final[tuple[tuple[Kind, int], ...]] = (
    ("control", 3),
    ("row", 50),
    ("block", 1),
    ("batch", 1),
)


@dataclass(frozen=True, slots=True)
class Item:
    """One call of publish: rows `first_row`, `first_row` + 1, ... modulo the corpus.

    Attributes:
        index: Position in the plan, sent as a header.
        kind: "control" (JSON bytes), "row" (one vector), "block" (publish_rows), "batch" (one
            matrix).
        first_row: First row of the corpus.
        rows_count: Rows; of a control message the rows that were sent before it.
    """

    index: int
    kind: Kind
    first_row: int
    rows_count: int

    @property
    def messages_count(self) -> int:
        """Messages that the topic gets from it."""
        return self.rows_count if self.kind == "block" else 1


def make(corpus_rows: int, seed: int, limit: int | None = None) -> list[Item]:
    """Make the plan.

    Args:
        corpus_rows: Rows of the corpus, at least BLOCK_ROWS_MAX.
        seed: Chooses sizes, rows and order.
        limit: Keep the first `limit` items; None keeps all 1,320.

    Returns:
        Items in the order in which they are published.
    """
    assert corpus_rows >= BLOCK_ROWS_MAX
    chance = random.Random(seed)  # noqa: S311 - sizes, not secrets
    items: list[Item] = []
    next_row = sent_rows = 0
    growth = (BATCH_ROWS_MAX / BATCH_ROWS_MIN) ** (1 / (CYCLES - 1))
    batches = [round(BATCH_ROWS_MIN * growth**step) for step in range(CYCLES)]
    chance.shuffle(batches)
    for batch_rows in batches:
        kinds = [kind for kind, count in CYCLE for _ in range(count)]
        chance.shuffle(kinds)
        for kind in kinds:
            if kind == "batch":
                item = Item(len(items), kind, next_row, batch_rows)
                # The next batch goes on where this one ends, so that every sentence travels.
                next_row = (next_row + batch_rows) % corpus_rows
            elif kind == "block":
                rows = chance.randint(BLOCK_ROWS_MIN, BLOCK_ROWS_MAX)
                item = Item(len(items), kind, chance.randrange(corpus_rows - rows + 1), rows)
            elif kind == "row":
                item = Item(len(items), kind, chance.randrange(corpus_rows), 1)
            else:
                item = Item(len(items), kind, 0, sent_rows)
            sent_rows += 0 if kind == "control" else item.rows_count
            items.append(item)
    return items[:limit]


def digest(items: list[Item], corpus_digest: str) -> str:
    """Give a fingerprint of what will be published, payloads included.

    Args:
        items: The plan.
        corpus_digest: Fingerprint of the vectors.

    Returns:
        SHA-256, hexadecimal.
    """
    plan = [(item.kind, item.first_row, item.rows_count) for item in items]
    return hashlib.sha256(json.dumps([corpus_digest, plan]).encode()).hexdigest()


def size_bytes(item: Item, vectors: NDArray[np.float32]) -> int:
    """Give the size of the item's payload in bytes.

    Args:
        item: An item of the plan.
        vectors: The corpus.

    Returns:
        Bytes of one publish call.
    """
    if item.kind == "control":
        return len(control_bytes(item))
    return item.rows_count * int(vectors.itemsize) * int(vectors.shape[1])


def payload(item: Item, vectors: NDArray[np.float32]) -> Any:
    """Make what is handed to publish.

    Args:
        item: An item of the plan.
        vectors: The corpus.

    Returns:
        bytes for a control message, a vector for a row, else a matrix (a view of the corpus where
        the rows lie together).
    """
    if item.kind == "control":
        return control_bytes(item)
    if item.kind == "row":
        return vectors[item.first_row]
    pieces = expected(item, vectors)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def expected(item: Item, vectors: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Give the rows of an item as views of the corpus, without a copy.

    Args:
        item: An item of the plan that is no control message.
        vectors: The corpus.

    Returns:
        Matrices that make up the item one after the other.
    """
    pieces = []
    row, left = item.first_row, item.rows_count
    while left:
        piece = vectors[row : row + left]
        pieces.append(piece)
        left -= len(piece)
        row = 0
    return pieces


def control_bytes(item: Item) -> bytes:
    """Give the bytes of a control message.

    Args:
        item: A control message of the plan.

    Returns:
        A small JSON object.
    """
    return json.dumps({"op": "flush", "plan": item.index, "rows": item.rows_count}).encode()
