"""What the Python benchmarks share: payloads, stores, and the check of what arrived.

Payloads are made before the clock starts and are read-only: of writable ones the core takes the
checksum twice (see bench_boundary.py). Every benchmark moves its payloads once unmeasured and
compares them bit by bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import vecmq.sync
from vecmq._native import build_info
from vecmq._options import Mode
from vecmq.sync import Handle, Publisher, Subscriber

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

Vector = NDArray[np.float32]

KIB = 1 << 10
MIB = 1 << 20
BATCH_MSGS = 512
THRESHOLD_BYTES = 64 * KIB
TIMEOUT_S = 20.0

if build_info()["profile"] != "release":
    raise RuntimeError("benchmarks of an unoptimised build say nothing: run `make build-prod`")


@contextmanager
def opened(directory: Path, mode: Mode, **options: Any) -> Iterator[Handle]:
    """Open a store and delete it afterwards: pytest would keep those of three runs.

    Args:
        directory: Where it lies, `tmp_path`.
        mode: As for `vecmq.sync.open`.
        **options: The other arguments of it.
    """
    path = directory / "mq"
    try:
        with vecmq.sync.open(path, mode=mode, **options) as handle:
            yield handle
    finally:
        shutil.rmtree(path, ignore_errors=True)


def vector(size_bytes: int, seed: int = 1) -> Vector:
    """Make one read-only float32 vector as embeddings are: every mantissa byte noise."""
    made = np.random.default_rng(seed).standard_normal(size_bytes // 4, dtype=np.float32)
    made.flags.writeable = False
    return made


def sparse(size_bytes: int) -> Vector:
    """Make one read-only float32 vector of which about one element in 32 is not zero."""
    made = np.where(
        np.random.default_rng(2).random(size_bytes // 4) < 1 / 32, vector(size_bytes), 0
    )
    made.flags.writeable = False
    return made


def vectors(count: int, size_bytes: int) -> list[Vector]:
    """Make vectors, each with bytes of its own."""
    return [vector(size_bytes, seed) for seed in range(count)]


def matrix(rows: int, size_bytes: int) -> Vector:
    """Make rows of that size as one read-only array."""
    return vector(rows * size_bytes).reshape(rows, -1)


def receive(subscriber: Subscriber, count: int) -> list[vecmq.Message]:
    """Receive that many messages and mark them done.

    Raises:
        AssertionError: One did not come in time.
    """
    received: list[vecmq.Message] = []
    while len(received) < count:
        batch = subscriber.fetch(min(count - len(received), BATCH_MSGS), TIMEOUT_S)
        assert batch, f"{len(received)} of {count} messages came within {TIMEOUT_S} s"
        received += batch
    subscriber.ack_through(received[-1].seq)
    return received


def assert_moves(subscriber: Subscriber, publisher: Publisher, payloads: Sequence[Vector]) -> None:
    """Move the payloads once, unmeasured.

    Raises:
        AssertionError: What came is not what was sent, bit by bit and in order.
    """
    publisher.publish_many(payloads)
    for message, sent in zip(receive(subscriber, len(payloads)), payloads, strict=True):
        assert message.dtype == "float32"
        assert message.shape == sent.shape
        assert message.payload == sent.view(np.uint8).data, f"seq {message.seq} differs"


def note_bytes(benchmark: BenchmarkFixture, size_bytes: int) -> None:
    """Keep the payload bytes of one call, and bytes a second, with the results (--benchmark-json).

    Args:
        benchmark: After it ran.
        size_bytes: Payload bytes that one measured call moves.
    """
    benchmark.extra_info["payload_bytes"] = size_bytes
    if benchmark.stats is not None:
        benchmark.extra_info["bytes_per_s"] = size_bytes / benchmark.stats.stats.median
