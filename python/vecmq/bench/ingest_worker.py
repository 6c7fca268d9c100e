"""An operation of `vecmq.bench.ingest`, and the process that does it: vectors, ledger, index."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

import numpy as np

import vecmq
import vecmq.sync
from vecmq.errors import ConfigError, Error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Ids = NDArray[np.int64]

__all__ = ["FLOOR", "NEIGHBOURS", "PROBES", "Data", "Index", "Ledger", "Operation", "Work", "main"]

# The route without a queue.
FLOOR: Final = "none"
CLUSTERS: Final = 256
SPREAD: Final = 1.6
QUERIES: Final = 4096
NEIGHBOURS: Final = 10
# Lists of the index that a search looks at.
PROBES: Final = 16
TRAINING_ROWS: Final = 40
TRAINING_ITERATIONS: Final = 10
# Rows that are added while searches wait.
ADD_ROWS: Final = 1024
RECALL_QUERIES: Final = 100
FETCH_MSGS: Final = 4096
STALL_S: Final = 30.0
EXTRA_S: Final = 0.1
PUBLISH_TIMEOUT_S: Final = 60.0
IDLE_S: Final = 0.0005
EXIT_TERMINATED: Final = 143
# Latencies that an operation reports of each kind, evenly picked of all.
LATENCIES_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Work:
    """One operation, as its worker is told.

    Attributes:
        route: One of ROUTES.
        vectors: Vectors.
        dimensions: Of a vector.
        batch_rows: Vectors of a small batch.
        bulk_rows: Vectors of a bulk batch.
    """

    route: str
    vectors: int
    dimensions: int
    batch_rows: int
    bulk_rows: int

    def batches(self) -> Iterator[slice]:
        """Give the rows of each batch: as many vectors in small batches as in bulk ones.

        Yields:
            Slices, in order.
        """
        small_count = max(self.bulk_rows // self.batch_rows, 1)
        first = number = 0
        while first < self.vectors:
            number += 1
            is_bulk = number % (small_count + 1) == 0
            last = min(first + (self.bulk_rows if is_bulk else self.batch_rows), self.vectors)
            yield slice(first, last)
            first = last


# ---- the vectors, and what came of them


class Data:
    """Seeded vectors around 256 centres, and others around the same centres to search for.

    Args:
        vectors: How many.
        dimensions: Of each.
        seed: The same seed gives the same vectors.
    """

    def __init__(self, vectors: int, dimensions: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._centres = self._random.standard_normal((CLUSTERS, dimensions), dtype=np.float32)
        lists = max(int(vectors**0.5), 1)
        self.lists_count: Final = lists
        self.training: Final = self._make(lists * TRAINING_ROWS)
        self.queries: Final = self._make(QUERIES)
        self.vectors: Final = self._make(vectors)

    def _make(self, count: int) -> Vectors:
        made = self._random.standard_normal((count, self._centres.shape[1]), dtype=np.float32)
        made *= SPREAD
        made += self._centres[self._random.integers(CLUSTERS, size=count)]
        return made


class Ledger:
    """Compares what is received with what was sent, bit by bit, and counts what is not right.

    Args:
        vectors: What is sent, in order; the number of a row is its id.
    """

    def __init__(self, vectors: Vectors) -> None:
        self._bits = vectors.view(np.uint32)
        self._is_seen = np.zeros(len(vectors), dtype=bool)
        self._next = 0
        self._ids_by_row: dict[bytes, int] = {}
        self.received_count = 0
        self.duplicate_count = 0
        self.unordered_count = 0
        self.wrong_count = 0
        self.verify_s = 0.0

    @property
    def lost_count(self) -> int:
        """Vectors that have not come."""
        return len(self._bits) - int(np.count_nonzero(self._is_seen))

    @property
    def is_complete(self) -> bool:
        """As many have come as were sent, right or not."""
        return self.received_count >= len(self._bits)

    def take(self, rows: NDArray[Any]) -> tuple[Vectors, Ids]:
        """Compare.

        Args:
            rows: What was received, n x d.

        Returns:
            Those that are right and have not come before, and their ids.
        """
        started = time.thread_time()
        try:
            self.received_count += len(rows)
            if rows.dtype != np.float32 or rows.shape[1:] != self._bits.shape[1:]:
                self.wrong_count += len(rows)
                return np.empty((0, self._bits.shape[1]), np.float32), np.empty(0, np.int64)
            bits = np.ascontiguousarray(rows).view(np.uint32)
            last = self._next + len(bits)
            ids = np.arange(self._next, last)
            is_next = np.array_equal(bits, self._bits[self._next : last])
            if not is_next or self._is_seen[ids].any():
                is_new, ids = self._look_up(bits)
                rows = rows[is_new]
            self._is_seen[ids] = True
            self._next = int(ids[-1]) + 1 if len(ids) else self._next
            return rows, ids
        finally:
            self.verify_s += time.thread_time() - started

    def counts(self) -> dict[str, int]:
        """Give the counts by name."""
        return {
            "received_count": self.received_count,
            "lost_count": self.lost_count,
            "duplicate_count": self.duplicate_count,
            "unordered_count": self.unordered_count,
            "wrong_count": self.wrong_count,
        }

    def _look_up(self, bits: NDArray[np.uint32]) -> tuple[list[int], Ids]:
        """Find each row by its bytes: which of them are new, and their ids."""
        if not self._ids_by_row:
            self._ids_by_row = {row.tobytes(): number for number, row in enumerate(self._bits)}
        is_new: list[int] = []
        ids: list[int] = []
        highest = self._next - 1
        for at, row in enumerate(bits):
            found = self._ids_by_row.get(row.tobytes())
            if found is None:
                self.wrong_count += 1
            elif self._is_seen[found] or found in ids:
                self.duplicate_count += 1
            else:
                self.unordered_count += found < highest
                highest = max(highest, found)
                is_new.append(at)
                ids.append(found)
        return is_new, np.array(ids, dtype=np.int64)


# ---- the index


class _Gate:
    """Readers at the same time, each with a lock of its own; a writer waits for all of them.

    The turnstile keeps readers that never pause from starving the writer.
    """

    def __init__(self, readers_count: int) -> None:
        self._turnstile = threading.Lock()
        self._readers = [threading.Lock() for _ in range(readers_count)]

    @contextmanager
    def read(self, reader: int) -> Iterator[None]:
        with self._turnstile:
            self._readers[reader].acquire()
        try:
            yield
        finally:
            self._readers[reader].release()

    @contextmanager
    def write(self) -> Iterator[None]:
        with ExitStack() as stack:
            for lock in (self._turnstile, *self._readers):
                stack.enter_context(lock)
            yield


class Index:
    """faiss' IVF-flat with ids; searched and queried by two threads while a third one adds.

    faiss releases the interpreter in every call. It allows searches at the same time but nothing
    beside an add; what takes an add its time, the choice of the lists, only reads.

    Args:
        data: What it is trained with, and how many vectors to make room for.
    """

    SEARCH: Final = 0
    QUERY: Final = 1

    def __init__(self, data: Data) -> None:
        self._faiss: Any = importlib.import_module("faiss")
        dimensions = data.vectors.shape[1]
        self._quantizer = self._faiss.IndexFlatL2(dimensions)
        self._index = self._faiss.IndexIVFFlat(self._quantizer, dimensions, data.lists_count)
        self._index.cp.niter = TRAINING_ITERATIONS
        self._index.train(data.training)
        self._index.nprobe = min(PROBES, data.lists_count)
        self._index.set_direct_map_type(self._faiss.DirectMap.Hashtable)
        self._gate = _Gate(2)
        self.version: Final = str(self._faiss.__version__)
        self.ids: Final = np.empty(len(data.vectors), dtype=np.int64)
        self.count = 0

    def add(self, rows: Vectors, ids: Ids) -> None:
        """Add vectors.

        Args:
            rows: n x d.
            ids: Of each.
        """
        for first in range(0, len(rows), ADD_ROWS):
            piece = np.ascontiguousarray(rows[first : first + ADD_ROWS])
            own = np.ascontiguousarray(ids[first : first + ADD_ROWS])
            lists = self._quantizer.assign(piece, 1)
            pointers = [self._faiss.swig_ptr(part) for part in (piece, own, lists)]
            with self._gate.write():
                self._index.add_core(len(piece), *pointers)
            self.ids[self.count : self.count + len(own)] = own
            self.count += len(own)

    def search(self, vector: Vectors) -> Ids:
        """Find the nearest neighbours.

        Args:
            vector: 1 x d.

        Returns:
            Ids, the nearest first; -1 where there are fewer.
        """
        with self._gate.read(self.SEARCH):
            found: Ids = self._index.search(vector, NEIGHBOURS)[1][0]
        return found

    def query(self, number: int) -> Vectors:
        """Give a vector by its id.

        Args:
            number: Its id.

        Returns:
            The vector.
        """
        with self._gate.read(self.QUERY):
            found: Vectors = self._index.reconstruct(number)
        return found

    def recalls(self, data: Data) -> tuple[float, float]:
        """Compare with the true neighbours, found by comparing with every vector that was sent.

        Args:
            data: The vectors, and what to search for.

        Returns:
            Shares of the true neighbours that are found as in the run, and in all lists.
        """
        queries = data.queries[:RECALL_QUERIES]
        truth = self._faiss.knn(queries, data.vectors, NEIGHBOURS)[1]
        shares = []
        for probes in (self._index.nprobe, data.lists_count):
            parameters = self._faiss.SearchParametersIVF(nprobe=probes)
            found = self._index.search(queries, NEIGHBOURS, params=parameters)[1]
            hits = [len(np.intersect1d(*pair)) for pair in zip(found, truth, strict=True)]
            shares.append(sum(hits) / truth.size)
        return shares[0], shares[1]


# ---- one operation


class _Publishing(Protocol):
    """What an operation needs of `vecmq.sync.Handle`."""

    def publisher(self, topic: str) -> Any: ...
    def subscribe(self, topic: str, group: str) -> Any: ...


class _Task(threading.Thread):
    """A thread whose error is kept for the thread that waits."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - raised again by the thread that waits
            self.error = error

    def finish(self) -> None:
        self.join()
        if self.error is not None:
            raise self.error


class Operation:
    """One ingest: prepared off the clock, then run.

    Args:
        mq: An open handle; None: the vectors reach the index without a queue.
        work: The workload.
        number: Number of the operation; seeds the vectors.
    """

    def __init__(self, mq: _Publishing | None, work: Work, number: int) -> None:
        self._work = work
        self._data = Data(work.vectors, work.dimensions, number)
        self._index = Index(self._data)
        self._ledger = Ledger(self._data.vectors)
        self._over = threading.Event()
        self._search_ns = array("q")
        self._query_ns = array("q")
        self._wrong_queries = 0
        self._batches: dict[str, int] = {"queue": 0, "nats": 0}
        self._random = np.random.default_rng(number)
        self._publisher = mq.publisher("ingest") if mq else None
        self._subscriber = mq.subscribe("ingest", group="ingest") if mq else None

    def run(self) -> dict[str, Any]:
        """Ingest everything while searching and querying.

        Returns:
            The sample: scalars, and the latencies of searches and queries.

        Raises:
            Error: Publishing or receiving failed.
        """
        readers = [_Task("ingest-search", self._search), _Task("ingest-query", self._query)]
        publishing = _Task("ingest-publish", self._publish)
        started = time.perf_counter()
        for task in (publishing, *readers):
            task.start()
        try:
            self._receive()
            seconds = time.perf_counter() - started
        finally:
            self._over.set()
        for task in (publishing, *readers):
            task.finish()
        self._receive_extra()
        recall, recall_of_all = self._index.recalls(self._data)
        return {
            "seconds": seconds,
            "vectors_per_s": self._index.count / seconds,
            "verify_s": self._ledger.verify_s,
            "search_count": len(self._search_ns),
            "search_rps": len(self._search_ns) / seconds,
            "query_count": len(self._query_ns),
            "query_rps": len(self._query_ns) / seconds,
            "queue_batches_count": self._batches["queue"],
            "nats_batches_count": self._batches["nats"],
            **self._ledger.counts(),
            "wrong_queries_count": self._wrong_queries,
            "recall": recall,
            "recall_of_all_lists": recall_of_all,
            "search_ns": _thin(self._search_ns),
            "query_ns": _thin(self._query_ns),
        }

    @property
    def versions(self) -> dict[str, str]:
        """Of the index library."""
        return {"faiss": self._index.version}

    def _publish(self) -> None:
        if self._publisher is None:
            return
        for rows in self._work.batches():
            if self._over.is_set():
                return
            vectors = self._data.vectors[rows]
            receipt = self._publisher.publish_rows(vectors, timeout_s=PUBLISH_TIMEOUT_S)
            self._batches[receipt.route] += 1

    def _receive(self) -> None:
        if self._subscriber is None:
            for first in range(0, self._work.vectors, FETCH_MSGS):
                rows = self._data.vectors[first : first + FETCH_MSGS]
                self._index.add(*self._ledger.take(rows))
            return
        while not self._ledger.is_complete:
            batch = self._subscriber.fetch(FETCH_MSGS, timeout_s=STALL_S)
            if not batch:
                return
            self._index.add(*self._ledger.take(batch.array()))
            batch.ack()

    def _receive_extra(self) -> None:
        """Look for messages beyond the last one."""
        if self._subscriber is None:
            return
        extra = self._subscriber.fetch(FETCH_MSGS, timeout_s=EXTRA_S)
        if extra:
            self._ledger.take(extra.array())
        self._subscriber.close()

    def _search(self) -> None:
        index, queries = self._index, self._data.queries
        for number in self._while_running():
            at = number % QUERIES
            started = time.perf_counter_ns()
            index.search(queries[at : at + 1])
            self._search_ns.append(time.perf_counter_ns() - started)

    def _query(self) -> None:
        index, vectors = self._index, self._data.vectors
        shares = self._random.random(QUERIES)
        for number in self._while_running():
            wanted = int(index.ids[int(shares[number % QUERIES] * index.count)])
            started = time.perf_counter_ns()
            found = index.query(wanted)
            self._query_ns.append(time.perf_counter_ns() - started)
            self._wrong_queries += found.tobytes() != vectors[wanted].tobytes()

    def _while_running(self) -> Iterator[int]:
        """Count requests from the first vector in the index to the end; one at least."""
        while self._index.count == 0:
            if self._over.is_set():
                return
            time.sleep(IDLE_S)
        yield 0
        number = 1
        while not self._over.is_set():
            yield number
            number += 1


def _thin(latencies: array[int]) -> list[int]:
    step = -(-len(latencies) // LATENCIES_MAX) or 1
    return list(latencies[::step])


# ---- the worker process


def main() -> int:
    """Do operations for a `vecmq.bench.process.Worker`; the first argument is the work.

    Returns:
        Exit code.
    """
    # Only answers go to the pipe, whatever else prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    # One thread a request, as one of many clients has; before faiss is imported, which reads it.
    os.environ["OMP_NUM_THREADS"] = "1"
    work = Work(**json.loads(sys.argv[1]))
    path = json.loads(sys.stdin.readline())["path"]
    try:
        _serve(work, path, answers)
    except Error as error:
        _answer(answers, {"error": type(error).__name__, "message": str(error)})
        return 1
    except BrokenPipeError:
        return 1
    finally:
        shutil.rmtree(path, ignore_errors=True)
    return 0


def _serve(work: Work, path: str, answers: TextIO) -> None:
    with ExitStack() as stack:
        mq = None
        if work.route != FLOOR:
            mode: Any = work.route
            mq = stack.enter_context(vecmq.sync.open(path, mode=mode))
        pids = [mq.server.pid] if mq and mq.server else []
        versions = {"vecmq": vecmq.__version__}
        _answer(answers, {"ready": True, "versions": versions, "server_pids": pids, "batch": None})
        operation: Operation | None = None
        for line in sys.stdin:
            match line.split():
                case ["prepare", number]:
                    operation = Operation(mq, work, int(number))
                    _answer(answers, {"prepared": True})
                case ["go"] if operation is not None:
                    _answer(answers, operation.run() | {"versions": operation.versions})
                    operation = None
                case _:
                    raise ConfigError(f"expected 'prepare N', then 'go', got {line!r}")


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())
