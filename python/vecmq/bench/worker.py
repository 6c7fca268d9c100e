"""One route and one workload in a process of its own, started by `table1`.

Why a process for each (route, workload): peak memory and CPU time belong to one route alone, no
allocator or store is warmed by another one, and the server of a route is a child that can be
measured apart. It lives through all rounds of its workload, so that its server is warm; between
two operations it holds no payloads and its idle server takes no CPU, so that the rounds of several
routes can be interleaved.

One operation: payloads are made (random bytes, unique; the first 8 bytes are the message's
number), topic and subscription are made, then the clock starts. The main thread publishes with
`publish_many` in windows of at most 16 MiB or 512 messages; a second thread receives, verifies and
acknowledges in batches. The clock ends when the last message was received, verified and
acknowledged. Verifying compares every byte with the original as it arrives (nothing received has
to be kept); it is part of the seconds, and its CPU time is also given on its own, as `verify_s`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import numpy as np

import vecmq.sync
from vecmq.bench.measure import Meter, disk_use
from vecmq.errors import Error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WINDOW_BYTES", "WINDOW_MSGS", "Checker", "Payloads", "Spec", "main", "run_op"]

WINDOW_BYTES: Final = 16 << 20
WINDOW_MSGS: Final = 512
FETCH_MSGS: Final = 512
# A subscriber that gets nothing for this long has lost the rest.
STALL_S: Final = 30.0
EXIT_TERMINATED: Final = 143
# How long to look for messages beyond the last one.
EXTRA_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker is to do.

    Attributes:
        mode: Mode of `vecmq.open`.
        codec: Codec of the frames.
        size_bytes: Bytes of a message, a multiple of 8.
        count: Messages of an operation.
        path: Directory that the worker makes and deletes.
    """

    mode: Literal["queue", "nats", "hybrid"]
    codec: Literal["raw", "zstd1", "planes"]
    size_bytes: int
    count: int
    path: str


class Payloads:
    """Random messages of equal size in one buffer.

    Args:
        spec: Size and count.
        seed: Chooses the bytes.

    Attributes:
        rows: Read-only array of count x size_bytes uint8.
        views: A read-only buffer for each message.
    """

    def __init__(self, spec: Spec, seed: int) -> None:
        words = spec.size_bytes // 8
        numbers = np.random.default_rng(seed).integers(
            0, 1 << 64, (spec.count, words), dtype=np.uint64
        )
        numbers[:, 0] = np.arange(spec.count)
        numbers.flags.writeable = False
        self.rows: Final[NDArray[np.uint8]] = numbers.view(np.uint8)
        whole = memoryview(self.rows.reshape(-1))
        size = spec.size_bytes
        self.views: Final = [whole[at : at + size] for at in range(0, len(whole), size)]

    def windows(self) -> list[list[memoryview]]:
        """Cut the messages into the calls of `publish_many`.

        Returns:
            Lists of at most WINDOW_MSGS messages and WINDOW_BYTES bytes (but one message at least).
        """
        step = max(1, min(WINDOW_MSGS, WINDOW_BYTES // self.rows.shape[1]))
        return [self.views[at : at + step] for at in range(0, len(self.views), step)]


class Checker:
    """Compares what arrives with the payloads: every byte, the order, the count.

    Args:
        payloads: What is published, in order.

    Attributes:
        received_count: Messages received.
        duplicate_count: Messages received before.
        unordered_count: Messages that came after a later one.
        wrong_count: Messages that equal no payload.
        verify_s: CPU seconds spent here.
    """

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads
        self._seen: NDArray[np.bool_] = np.zeros(len(payloads.views), dtype=np.bool_)
        self._next = 0
        self.received_count = 0
        self.duplicate_count = 0
        self.unordered_count = 0
        self.wrong_count = 0
        self.verify_s = 0.0

    @property
    def lost_count(self) -> int:
        """Messages that have not come."""
        return int(np.count_nonzero(~self._seen))

    def take(self, batch: list[memoryview]) -> None:
        """Compare messages.

        Args:
            batch: Payloads in the order of delivery.
        """
        started = time.thread_time()
        self.received_count += len(batch)
        rows = self._payloads.rows[self._next : self._next + len(batch)]
        if len(rows) == len(batch) and self._equal(batch, rows):
            self._seen[self._next : self._next + len(batch)] = True
            self._next += len(batch)
        else:
            for payload in batch:
                self._take_one(payload)
        self.verify_s += time.thread_time() - started

    def _equal(self, batch: list[memoryview], rows: NDArray[np.uint8]) -> bool:
        size = rows.shape[1]
        if any(len(payload) != size for payload in batch):
            return False
        if size <= 4096:
            # Small ones in one go: a comparison each would cost more than receiving them.
            joined = np.frombuffer(b"".join(batch), dtype=np.uint64)
            return np.array_equal(joined, rows.reshape(-1).view(np.uint64))
        return all(
            np.array_equal(np.frombuffer(payload, np.uint8).view(np.uint64), row.view(np.uint64))
            for payload, row in zip(batch, rows, strict=True)
        )

    def _take_one(self, payload: memoryview) -> None:
        rows = self._payloads.rows
        number = int.from_bytes(payload[:8], "little") if len(payload) == rows.shape[1] else -1
        if not 0 <= number < len(rows) or not np.array_equal(
            np.frombuffer(payload, np.uint8), rows[number]
        ):
            self.wrong_count += 1
            return
        if self._seen[number]:
            self.duplicate_count += 1
            return
        self.unordered_count += number < self._next
        self._seen[number] = True
        self._next = max(self._next, number + 1)


def run_op(mq: vecmq.sync.Handle, spec: Spec, number: int) -> dict[str, Any]:
    """Publish and receive one workload over a topic of its own.

    Args:
        mq: An open handle.
        spec: The workload.
        number: Number of the operation; names the topic and seeds the payloads.

    Returns:
        The sample: seconds, counts, and what it used, as JSON values.

    Raises:
        Error: Publishing or receiving failed.
    """
    payloads = Payloads(spec, number)
    windows = payloads.windows()
    topic = f"bench-{number}"
    subscriber = mq.subscribe(topic, group="bench")
    publisher = mq.publisher(topic)
    checker = Checker(payloads)
    reader = _Reader(subscriber, checker, spec.count)
    meter = Meter(mq.server.pid if mq.server else None)
    started = time.perf_counter()
    reader.start()
    levels = set()
    wire_bytes = 0
    for window in windows:
        for receipt in publisher.publish_many(window, timeout_s=60.0):
            levels.add(receipt.level)
            wire_bytes += receipt.wire_bytes
    published_s = time.perf_counter() - started
    reader.join()
    usage = meter.stop()
    if reader.error is not None:
        raise reader.error
    extra = subscriber.fetch(FETCH_MSGS, timeout_s=EXTRA_S)
    checker.take([message.payload for message in extra])
    subscriber.close()
    return {
        "seconds": reader.ended - started,
        "published_s": published_s,
        "verify_s": checker.verify_s,
        "levels": sorted(levels),
        "payload_bytes": spec.size_bytes * spec.count,
        "wire_bytes": wire_bytes,
        "received_count": checker.received_count,
        "lost_count": checker.lost_count,
        "duplicate_count": checker.duplicate_count,
        "unordered_count": checker.unordered_count,
        "wrong_count": checker.wrong_count,
        **usage.document(),
    }


class _Reader(threading.Thread):
    """Receives, verifies and acknowledges until the last message or a stall."""

    def __init__(self, subscriber: vecmq.sync.Subscriber, checker: Checker, count: int) -> None:
        super().__init__(name="bench-reader", daemon=True)
        self._subscriber = subscriber
        self._checker = checker
        self._count = count
        self.error: Error | None = None
        self.ended = 0.0

    def run(self) -> None:
        """Read; an error is kept for the thread that waits."""
        try:
            while self._checker.received_count < self._count:
                batch = self._subscriber.fetch(FETCH_MSGS, timeout_s=STALL_S)
                if not batch:
                    break
                self._checker.take([message.payload for message in batch])
                batch.ack()
        except Error as error:
            self.error = error
        self.ended = time.perf_counter()


def main() -> int:
    """Take commands from stdin until its end: a Spec first, then a number for each operation.

    Returns:
        Exit code.
    """
    # Only answers go to the pipe, whatever else prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Ends like any other error: the stores are closed, the server is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    spec = Spec(**json.loads(sys.stdin.readline()))
    try:
        _serve(spec, answers)
    except Error as error:
        _answer(answers, {"error": type(error).__name__, "message": str(error)})
        return 1
    except BrokenPipeError:
        return 1
    finally:
        shutil.rmtree(spec.path, ignore_errors=True)
    return 0


def _serve(spec: Spec, answers: TextIO) -> None:
    path = Path(spec.path)
    with vecmq.sync.open(path, mode=spec.mode, codec=spec.codec) as mq:
        _answer(answers, {"ready": True})
        for line in sys.stdin:
            sample = run_op(mq, spec, int(line))
            _answer(answers, sample | asdict(disk_use(path)) | {"stats": mq.stats()})


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())
