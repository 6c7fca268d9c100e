"""What the goals of the queue need of vecmq beyond `vecmq bench`'s own worker; same contract.

The spec's `contender` chooses what an operation is: "rows", "put", "durable", "sustained",
"memory" or "grown". Samples have `seconds` and what else the goal needs; whatever arrives is
compared with what was sent, and a difference is an error.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import vecmq
import vecmq.sync
from vecmq.errors import Error

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIB: Final = 1 << 20
CALL_MSGS: Final = 512
CALL_BYTES: Final = 16 * MIB
STALL_S: Final = 30.0
PASSES: Final = 10
KEPT_BYTES: Final = 256 * MIB
# What "grown" finds on disk: small messages, few to a record, so that there are many records.
GROWN_FILL_MSGS: Final = 16
GROWN_FILL_BYTES: Final = 64


class WrongError(Exception):
    """What arrived is not what was sent."""


class Work:
    """One store, or one for each operation, and what is done with it.

    Args:
        spec: The first line of stdin.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.count: int = spec["count"]
        self.size_bytes: int = spec["size_bytes"]
        self.publishers: int = spec["publishers"]
        self.path = Path(spec["path"])
        self.mq: vecmq.sync.Handle | None = None
        self.number = 0

    def start(self) -> None:
        """Makes what lasts through all operations."""

    def prepare(self, number: int) -> None:
        """Makes an operation's store and payloads, off the clock."""
        self.number = number
        self.close()
        self.mq = vecmq.sync.open(self.path / str(number), mode="queue")

    def run(self) -> dict[str, Any]:
        """Does an operation.

        Returns:
            The sample.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Closes the store and deletes it."""
        if self.mq is not None:
            self.mq.close()
            self.mq = None
        shutil.rmtree(self.path, ignore_errors=True)

    def random(self, count: int) -> NDArray[np.uint64]:
        """Makes messages.

        Args:
            count: How many.

        Returns:
            A row each.
        """
        shape = (count, self.size_bytes // 8)
        rows = np.random.default_rng(self.number).integers(0, 1 << 64, shape, dtype=np.uint64)
        rows[:, 0] = np.arange(count)
        return rows


def handle(work: Work) -> vecmq.sync.Handle:
    """Gives the open handle.

    Args:
        work: After `prepare`.

    Returns:
        Its handle.
    """
    assert work.mq is not None
    return work.mq


def beside(task: Callable[[], None]) -> Callable[[], None]:
    """Runs something in a thread.

    Args:
        task: What to run.

    Returns:
        Waits for its end and raises its error.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001, told by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> None:
        thread.join()
        for error in errors:
            raise error

    return join


class Rows(Work):
    """An n x d array, published and received as such."""

    def prepare(self, number: int) -> None:
        """See Work."""
        super().prepare(number)
        self._rows = self.random(self.count)
        self._rows.flags.writeable = False
        self._publisher = handle(self).publisher("bench")
        self._subscriber = handle(self).subscribe("bench", "bench")

    def run(self) -> dict[str, Any]:
        """See Work."""
        started = time.perf_counter()
        join = beside(self._receive)
        for first in range(0, self.count, CALL_MSGS):
            self._publisher.publish_rows(self._rows[first : first + CALL_MSGS])
        join()
        return {"seconds": time.perf_counter() - started}

    def _receive(self) -> None:
        done = 0
        while done < self.count:
            batch = self._subscriber.fetch(CALL_MSGS, timeout_s=STALL_S)
            if not np.array_equal(batch.array(), self._rows[done : done + len(batch)]):
                raise WrongError(f"rows from {done} on")
            batch.ack()
            done += len(batch)


class Put(Work):
    """One message a call, nobody receives; the time of each call."""

    def prepare(self, number: int) -> None:
        """See Work."""
        super().prepare(number)
        self._payloads = [row.tobytes() for row in self.random(self.count)]
        self._publisher = handle(self).publisher("bench")

    def run(self) -> dict[str, Any]:
        """See Work."""
        clock, publish = time.perf_counter_ns, self._publisher.publish
        taken: list[int] = []
        for payload in self._payloads:
            started = clock()
            publish(payload)
            taken.append(clock() - started)
        p50, p99 = (float(np.percentile(taken, share)) for share in (50, 99))
        return {"seconds": sum(taken) / 1e9, "p50_ns": p50, "p99_ns": p99}


class Durable(Work):
    """Publishers that wait for each receipt, as tasks of one event loop."""

    def prepare(self, number: int) -> None:
        """See Work."""
        self.number = number
        self._payloads = [row.tobytes() for row in self.random(self.count)]

    def run(self) -> dict[str, Any]:
        """See Work."""
        seconds = asyncio.run(self._publish())
        self.close()
        return {"seconds": seconds}

    async def _publish(self) -> float:
        path = self.path / str(self.number)
        async with vecmq.open(path, mode="queue", level="durable") as mq:
            publisher = mq.publisher("bench")

            async def one(first: int) -> None:
                for payload in self._payloads[first :: self.publishers]:
                    receipt = await publisher.publish(payload)
                    if receipt.level != "durable":
                        raise WrongError(receipt.level)

            started = time.perf_counter()
            await asyncio.gather(*(one(first) for first in range(self.publishers)))
            return time.perf_counter() - started


class Sustained(Work):
    """The same messages ten times over without a pause, while retention deletes what was read."""

    def prepare(self, number: int) -> None:
        """See Work."""
        self.number = number
        self.close()
        self._rows = self.random(self.count)
        self._rows.flags.writeable = False
        retention = vecmq.Retention(bytes_max=KEPT_BYTES)
        path = self.path / str(number)
        self.mq = vecmq.sync.open(path, mode="queue", retention=retention)
        self._publisher = self.mq.publisher("bench")
        self._subscriber = self.mq.subscribe("bench", "bench")
        self._passed: list[float] = []
        self._stall_s = 0.0

    def run(self) -> dict[str, Any]:
        """See Work."""
        window = max(1, min(CALL_MSGS, CALL_BYTES // self.size_bytes))
        calls = [list(self._rows[at : at + window]) for at in range(0, self.count, window)]
        stall_s = 0.0
        started = before = time.perf_counter()
        join = beside(self._receive)
        for call in calls * PASSES:
            self._publisher.publish_many(call, timeout_s=STALL_S)
            now = time.perf_counter()
            stall_s = max(stall_s, now - before)
            before = now
        join()
        seconds = self._passed[-1] - started
        first_s = self._passed[0] - started
        return {
            "seconds": seconds,
            "first_s": first_s,
            "rest_ratio": (seconds - first_s) / (PASSES - 1) / first_s,
            "stall_publish_s": stall_s,
            "stall_receive_s": self._stall_s,
            "kept_bytes": disk_bytes(self.path),
        }

    def _receive(self) -> None:
        done = 0
        before = time.perf_counter()
        while done < PASSES * self.count:
            batch = self._subscriber.fetch(CALL_MSGS, timeout_s=STALL_S)
            now = time.perf_counter()
            self._stall_s = max(self._stall_s, now - before)
            for message in batch:
                words = np.frombuffer(message.payload, np.uint64)
                if not np.array_equal(words, self._rows[done % self.count]):
                    raise WrongError(f"message {done}")
                done += 1
                if done % self.count == 0:
                    self._passed.append(time.perf_counter())
            batch.ack()
            before = time.perf_counter()
            if not batch:
                raise WrongError(f"nothing after message {done}")


class Memory(Work):
    """Messages that are windows of one small buffer, so that the payloads take no memory."""

    def prepare(self, number: int) -> None:
        """See Work."""
        super().prepare(number)
        source = np.random.default_rng(number).bytes(2 * CALL_MSGS * self.size_bytes)
        self._source = np.frombuffer(source, np.uint8)
        self._publisher = handle(self).publisher("bench")
        self._subscriber = handle(self).subscribe("bench", "bench")

    def run(self) -> dict[str, Any]:
        """See Work."""
        started = time.perf_counter()
        join = beside(self._receive)
        for first in range(0, self.count, CALL_MSGS):
            last = min(first + CALL_MSGS, self.count)
            self._publisher.publish_many([self._window(number) for number in range(first, last)])
        join()
        return {"seconds": time.perf_counter() - started}

    def _window(self, number: int) -> NDArray[np.uint8]:
        at = number * 8 % (self._source.size // 2)
        return self._source[at : at + self.size_bytes]

    def _receive(self) -> None:
        done = 0
        while done < self.count:
            batch = self._subscriber.fetch(CALL_MSGS, timeout_s=STALL_S)
            for number, message in enumerate(batch, done):
                if message.payload != memoryview(self._window(number)):
                    raise WrongError(f"message {number}")
            batch.ack()
            done += len(batch)


class Grown(Work):
    """Appends, a message a call, to a topic that holds `publishers` messages already."""

    def start(self) -> None:
        """Fills the store, in a process that ends before anything is measured."""
        command = [sys.executable, __file__, "fill", str(self.path), str(self.publishers)]
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            raise WrongError(f"filling the store ended with exit code {code}")
        self.mq = vecmq.sync.open(self.path, mode="queue")
        self._publisher = self.mq.publisher("bench")

    def prepare(self, number: int) -> None:
        """See Work."""
        self.number = number
        self._payloads = [row.tobytes() for row in self.random(self.count)]

    def run(self) -> dict[str, Any]:
        """See Work."""
        publish = self._publisher.publish
        started = time.perf_counter()
        for payload in self._payloads:
            publish(payload)
        return {"seconds": time.perf_counter() - started}


def fill(path: str, count: int) -> None:
    """Puts messages on disk.

    Args:
        path: Directory of the store.
        count: How many.
    """
    payload = bytes(GROWN_FILL_BYTES)
    with vecmq.sync.open(path, mode="queue") as mq:
        publisher = mq.publisher("bench")
        for first in range(0, count, GROWN_FILL_MSGS):
            publisher.publish_many([payload] * min(GROWN_FILL_MSGS, count - first))


def disk_bytes(path: Path) -> int:
    """Adds up what lies in a directory while others delete from it.

    Args:
        path: The directory.

    Returns:
        Bytes.
    """
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name)).st_size  # noqa: PTH118, PTH116
            except FileNotFoundError:
                continue
    return total


KINDS: Final[dict[str, type[Work]]] = {
    "rows": Rows,
    "put": Put,
    "durable": Durable,
    "sustained": Sustained,
    "memory": Memory,
    "grown": Grown,
}


def main() -> int:
    """Takes commands from stdin until its end.

    Returns:
        Exit code.
    """
    if sys.argv[1:2] == ["fill"]:
        fill(sys.argv[2], int(sys.argv[3]))
        return 0
    spec = json.loads(sys.stdin.readline())
    work = KINDS[spec["contender"]](spec)
    try:
        work.start()
        answer({"ready": True, "versions": {}, "server_pids": [], "batch": None})
        for line in sys.stdin:
            match line.split():
                case ["prepare", number]:
                    work.prepare(int(number))
                    answer({"prepared": True})
                case _:
                    answer(work.run())
    except (Error, WrongError) as error:
        answer({"error": type(error).__name__, "message": str(error)})
        return 1
    finally:
        work.close()
    return 0


def answer(values: dict[str, Any]) -> None:
    """Writes a line of JSON.

    Args:
        values: What it says.
    """
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
