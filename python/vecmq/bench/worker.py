"""A route of vecmq as a worker: publishes and receives in a process of its own.

docs/bench-workers.md is the contract, for peers too. Why a process for each route and workload:
peak memory and CPU time belong to one route alone, no allocator or store is warmed by another one,
and the server of a route is a child that can be measured apart. It lives through all rounds of its
workload, so that its server is warm; between two operations its idle server takes no CPU, so that
the rounds of several contenders can be interleaved.

A thread a publisher publishes its share with `publish_many` in windows of at most 16 MiB or `batch`
messages (with `batch` 1: `publish`, a message a call); a thread a subscriber, each in a group of
its own, receives everything, verifies and acknowledges in batches.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import numpy as np

import vecmq
import vecmq.sync
from vecmq.bench.payloads import WINDOW_MSGS, Checker, Payloads, first_numbers, windows
from vecmq.errors import ConfigError, Error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Operation", "ServerSpec", "Spec", "main"]

FETCH_MSGS: Final = 512
# A subscriber that gets nothing for this long has lost the rest.
STALL_S: Final = 30.0
PUBLISH_TIMEOUT_S: Final = 60.0
EXIT_TERMINATED: Final = 143
# How long to look for messages beyond the last one.
EXTRA_S: Final = 0.1
# Below this a sleep oversleeps; the wait for the next due message turns into a loop.
SPIN_S: Final = 0.0002

Kind = Literal["pubsub", "publish", "latency"]


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """The nats-server to use.

    Attributes:
        url: "nats://host:port".
        token: Token, or None.
        user: User name, or None.
        password: Password of the user.
        creds_path: A .creds file, or None.
        nkey_seed: Seed of an nkey, or None.
        pid: Process id where it runs here for this worker alone; None: a server of the user's.
    """

    url: str
    token: str | None = None
    user: str | None = None
    password: str | None = None
    creds_path: str | None = None
    nkey_seed: str | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker is to do; the fields are those of docs/bench-workers.md.

    Attributes:
        contender: Name in the table; of vecmq a mode of `vecmq.open`.
        workload: What an operation is.
        size_bytes: Bytes of a message, the greatest of sizes_bytes.
        count: Messages of an operation.
        path: Directory that the worker makes and deletes.
        sizes_bytes: A size for each message, or None.
        batch: Messages a call; None: what is best.
        rate_per_s: Messages due in a second (workload "latency").
        publishers: Threads that publish; of P of them number n publishes messages n, n + P...
        subscribers: Threads that receive everything, each in its own group.
        retention_s: Seconds that messages are kept; None: all of them.
        codec: Codec of the frames.
        server: The nats-server to use; None: the route's own.
    """

    contender: str
    workload: Kind
    size_bytes: int
    count: int
    path: str
    sizes_bytes: list[int] | None = None
    batch: int | None = None
    rate_per_s: float | None = None
    publishers: int = 1
    subscribers: int = 1
    retention_s: float | None = None
    codec: Literal["auto", "raw", "zstd", "planes", "pk3", "lz4"] = "raw"
    server: ServerSpec | None = None

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each message."""
        return self.sizes_bytes or [self.size_bytes] * self.count


class Operation:
    """One operation over a topic of its own: prepared off the clock, then run.

    Args:
        mq: An open handle.
        spec: The workload.
        number: Number of the operation; names the topic and seeds the payloads.
    """

    def __init__(self, mq: vecmq.sync.Handle, spec: Spec, number: int) -> None:
        self._spec = spec
        payloads = Payloads(spec.sizes, number)
        # On a server of the user's there may be topics of other runs.
        name = f"bench-{number}" if _is_own(spec) else f"vecmq-bench-{os.getpid()}-{number}"
        self.topic: Final = name
        readers = range(spec.subscribers)
        self._subscribers = [mq.subscribe(name, group=f"bench-{one}") for one in readers]
        self._readers = [
            _Reader(subscriber, Checker(payloads, spec.publishers), spec.count)
            for subscriber in self._subscribers
        ]
        self._writers = [
            _Writer(mq.publisher(name), spec, payloads.views[one :: spec.publishers])
            for one in range(spec.publishers)
        ]

    def run(self) -> dict[str, Any]:
        """Publish and receive everything.

        Returns:
            The sample of docs/bench-workers.md.

        Raises:
            Error: Publishing or receiving failed.
        """
        is_concurrent = self._spec.workload != "publish"
        started = time.perf_counter()
        if is_concurrent:
            _start(self._readers)
        for writer in self._writers:
            writer.started = started
        _start(self._writers)
        _join(self._writers)
        published_s = time.perf_counter() - started
        if not is_concurrent:
            _start(self._readers)
        _join(self._readers)
        checkers = [reader.checker for reader in self._readers]
        for subscriber, checker in zip(self._subscribers, checkers, strict=True):
            extra = subscriber.fetch(FETCH_MSGS, timeout_s=EXTRA_S)
            checker.take([message.payload for message in extra])
            subscriber.close()
        ended = max(reader.ended for reader in self._readers)
        counts = [checker.counts() for checker in checkers]
        return {
            "seconds": ended - started if is_concurrent else published_s,
            "published_s": published_s,
            "verify_s": sum(one.verify_s for one in checkers) if is_concurrent else 0.0,
            "levels": sorted({level for writer in self._writers for level in writer.levels}),
            "wire_bytes": sum(writer.wire_bytes for writer in self._writers),
            "latencies_ns": self._latencies(started),
            **{key: sum(one[key] for one in counts) for key in counts[0]},
        }

    def _latencies(self, started: float) -> list[int] | None:
        """From the moment each message was due to its receipt by the first subscriber."""
        if self._spec.rate_per_s is None:
            return None
        due = started + np.arange(self._spec.count) / self._spec.rate_per_s
        reader = self._readers[0]
        late: NDArray[np.int64] = ((reader.received_at - due) * 1e9).astype(np.int64)
        return [int(value) for value in late if value >= 0]


class _Task(threading.Thread):
    """A thread whose error is kept for the thread that waits."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.error: Error | None = None

    def run(self) -> None:
        try:
            self.work()
        except Error as error:
            self.error = error

    def work(self) -> None:
        raise NotImplementedError


def _start(threads: Sequence[_Task]) -> None:
    for thread in threads:
        thread.start()


def _join(threads: Sequence[_Task]) -> None:
    for thread in threads:
        thread.join()
        if thread.error is not None:
            raise thread.error


class _Writer(_Task):
    """Publishes its share."""

    def __init__(
        self, publisher: vecmq.sync.Publisher, spec: Spec, views: Sequence[memoryview]
    ) -> None:
        super().__init__("bench-writer")
        self._publisher = publisher
        self._spec = spec
        self._views = views
        self._windows = windows(views, spec.batch or WINDOW_MSGS)
        self.started = 0.0
        self.levels: set[str] = set()
        self.wire_bytes = 0

    def work(self) -> None:
        for window in self._due():
            for receipt in self._publish(window):
                self.levels.add(receipt.level)
                self.wire_bytes += receipt.wire_bytes

    def _publish(self, window: Sequence[memoryview]) -> Sequence[vecmq.Receipt]:
        if self._spec.batch == 1:
            return [
                self._publisher.publish(payload, timeout_s=PUBLISH_TIMEOUT_S) for payload in window
            ]
        return self._publisher.publish_many(window, timeout_s=PUBLISH_TIMEOUT_S)

    def _due(self) -> Iterator[Sequence[memoryview]]:
        """Give the windows; at a rate, each time everything that is due."""
        if self._spec.rate_per_s is None:
            yield from self._windows
            return
        rate = self._spec.rate_per_s / self._spec.publishers
        step = self._spec.batch or WINDOW_MSGS
        first = 0
        while first < len(self._views):
            due_count = int((time.perf_counter() - self.started) * rate) + 1
            last = min(due_count, first + step, len(self._views))
            if last > first:
                yield self._views[first:last]
                first = last
                continue
            wait_s = self.started + first / rate - time.perf_counter()
            time.sleep(max(wait_s - SPIN_S, 0.0))


class _Reader(_Task):
    """Receives, verifies and acknowledges until the last message or a stall."""

    def __init__(self, subscriber: vecmq.sync.Subscriber, checker: Checker, count: int) -> None:
        super().__init__("bench-reader")
        self._subscriber = subscriber
        self._count = count
        self.checker: Final = checker
        self.received_at: Final[NDArray[np.float64]] = np.zeros(count)
        self.ended = 0.0

    def work(self) -> None:
        while self.checker.received_count < self._count:
            batch = self._subscriber.fetch(FETCH_MSGS, timeout_s=STALL_S)
            if not batch:
                break
            now = time.perf_counter()
            payloads = [message.payload for message in batch]
            self.checker.take(payloads)
            numbers = np.array(first_numbers(payloads))
            self.received_at[numbers[numbers < self._count]] = now
            batch.ack()
        self.ended = time.perf_counter()


def main() -> int:
    """Take commands from stdin until its end.

    Returns:
        Exit code.
    """
    # Only answers go to the pipe, whatever else prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Ends like any other error: the stores are closed, the server is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    values = json.loads(sys.stdin.readline())
    server = values.pop("server")
    spec = Spec(**values, server=ServerSpec(**server) if server else None)
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
    topics: list[str] = []
    with ExitStack() as stack:
        if spec.server is not None and not _is_own(spec):
            stack.callback(_delete_streams, spec.server, topics)
        mq = stack.enter_context(_open(spec))
        pids = [mq.server.pid] if mq.server else []
        ready = {"ready": True, "versions": {"vecmq": vecmq.__version__}, "server_pids": pids}
        _answer(answers, ready | {"batch": spec.batch or WINDOW_MSGS})
        operation: Operation | None = None
        for line in sys.stdin:
            match line.split():
                case ["prepare", number]:
                    operation = Operation(mq, spec, int(number))
                    topics.append(operation.topic)
                    _answer(answers, {"prepared": True})
                case ["go"] if operation is not None:
                    _answer(answers, operation.run() | {"stats": mq.stats()})
                    operation = None
                case _:
                    raise ConfigError(f"expected 'prepare N', then 'go', got {line!r}")


def _open(spec: Spec) -> vecmq.sync.Handle:
    mode: Any = spec.contender
    server = None if mode == "queue" else spec.server
    path = None if mode == "nats" and server else Path(spec.path)
    nats = (
        None
        if server is None
        else vecmq.NatsOptions(
            url=server.url,
            token=server.token,
            user=server.user,
            password=server.password,
            creds_path=server.creds_path,
            nkey_seed=server.nkey_seed,
        )
    )
    retention = None
    if spec.retention_s is not None:
        retention = vecmq.Retention(age_ms_max=round(spec.retention_s * 1e3))
    return vecmq.sync.open(path, mode=mode, nats=nats, codec=spec.codec, retention=retention)


def _is_own(spec: Spec) -> bool:
    """Whether all that the topics lie on ends with this run."""
    return spec.server is None or spec.server.pid is not None or spec.contender == "queue"


def _delete_streams(server: ServerSpec, topics: list[str]) -> None:
    """Leave nothing on a server of the user's. vecmq itself cannot delete topics yet."""
    import asyncio
    import contextlib

    import nats
    from nats.js.errors import NotFoundError

    async def delete() -> None:
        client = await nats.connect(
            server.url,
            token=server.token,
            user=server.user,
            password=server.password,
            user_credentials=server.creds_path,
            nkeys_seed_str=server.nkey_seed,
        )
        async with client:
            for topic in topics:
                with contextlib.suppress(NotFoundError):
                    await client.jetstream().delete_stream(topic)

    asyncio.run(delete())


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())
