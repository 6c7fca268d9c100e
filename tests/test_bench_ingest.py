"""Table 2: what is lost, doubled or changed on the way into the index is seen."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import vecmq.sync
from bench_tools import running_children
from vecmq.bench import ingest, ingest_worker
from vecmq.bench.process import BenchError, Worker
from vecmq.errors import ConfigError, PublishUnknownError

VECTORS, DIMENSIONS = 2000, 16
Sent = list[Any]


def options_of(tmp_path: Path, **values: Any) -> ingest.IngestOptions:
    small = {"vectors": VECTORS, "dimensions": DIMENSIONS, "ops": 1, "bulk_rows": 512}
    return ingest.IngestOptions(path=tmp_path, **(small | values))


def work_of(route: str = "queue") -> ingest_worker.Work:
    return ingest_worker.Work(route, VECTORS, DIMENSIONS, batch_rows=64, bulk_rows=512)


def no_progress(*_: object) -> None:
    pass


class FakeQueue:
    """A queue that hands over what a fault makes of all that was published.

    Args:
        fault: Takes the rows that were published, gives those that are received.
    """

    def __init__(self, fault: Callable[[Any], Any] = lambda rows: rows) -> None:
        self._fault = fault
        self._batches: Sent = []
        self._published = threading.Event()
        self._count = 0

    def publisher(self, topic: str) -> FakeQueue:
        return self

    def subscribe(self, topic: str, group: str) -> FakeQueue:
        return self

    def publish_rows(self, rows: Any, timeout_s: float) -> Any:
        self._batches.append(rows)
        self._count += len(rows)
        if self._count == VECTORS:
            received = self._fault(np.concatenate(self._batches))
            self._batches = np.array_split(received, 7)
            self._published.set()
        return SimpleNamespace(route="queue")

    def fetch(self, max_msgs: int, timeout_s: float) -> Any:
        assert self._published.wait(30)
        return FakeBatch(self._batches.pop(0)) if self._batches else []

    def close(self) -> None:
        pass


class FakeBatch:
    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def array(self) -> Any:
        return self._rows

    def ack(self) -> None:
        pass


def faults_of(sample: dict[str, Any]) -> dict[str, int]:
    return {key: sample[key] for key in ingest.FAULTS if sample[key]}


def row_of(sample: dict[str, Any]) -> ingest.IngestRow:
    return ingest.IngestRow("queue", [sample])


def ingested(fault: Callable[[Any], Any]) -> dict[str, Any]:
    return ingest_worker.Operation(FakeQueue(fault), work_of(), 1).run()


# ---- one operation


@pytest.mark.parametrize("route", ["queue", "nats", "hybrid"])
def test_an_operation_is_right(tmp_path: Path, route: Any) -> None:
    with vecmq.sync.open(tmp_path / "store", mode=route) as mq:
        sample = ingest_worker.Operation(mq, work_of(route), 1).run()
    assert not faults_of(sample)
    assert sample["received_count"] == VECTORS
    assert sample["recall_of_all_lists"] == 1
    assert 0.5 < sample["recall"] <= 1
    assert len(sample["search_ns"]) == sample["search_count"] > 0
    assert len(sample["query_ns"]) == sample["query_count"] > 0
    assert min(sample["search_ns"]) > 0
    batches_count = len(list(work_of().batches()))
    assert sample["queue_batches_count"] + sample["nats_batches_count"] == batches_count


def test_a_queue_without_faults_is_good() -> None:
    sample = ingested(lambda rows: rows)
    assert not faults_of(sample)
    assert row_of(sample).is_good


def with_a_changed_bit(rows: Any) -> Any:
    rows.view(np.uint32)[700, 3] ^= 1
    return rows


def swapped(rows: Any) -> Any:
    rows[[100, 101]] = rows[[101, 100]]
    return rows


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda rows: np.delete(rows, 700, axis=0), {"lost_count": 1}),
        (lambda rows: rows[:-1], {"lost_count": 1}),
        (lambda rows: np.insert(rows, 5, rows[5], axis=0), {"duplicate_count": 1}),
        (lambda rows: np.concatenate([rows, rows[:10]]), {"duplicate_count": 10}),
        (with_a_changed_bit, {"wrong_count": 1, "lost_count": 1}),
        (swapped, {"unordered_count": 1}),
        (
            lambda rows: rows.astype(np.float64),
            {"wrong_count": VECTORS, "lost_count": VECTORS},
        ),
        (
            lambda rows: np.ascontiguousarray(rows[:, :-1]),
            {"wrong_count": VECTORS, "lost_count": VECTORS},
        ),
    ],
)
def test_every_fault_is_seen(fault: Callable[[Any], Any], expected: dict[str, int]) -> None:
    sample = ingested(fault)
    assert faults_of(sample) == expected
    assert not row_of(sample).is_good


def test_an_index_that_lacks_vectors_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    add = ingest_worker.Index.add
    monkeypatch.setattr(
        ingest_worker.Index, "add", lambda self, rows, ids: add(self, rows[::2], ids[::2])
    )
    sample = ingested(lambda rows: rows)
    assert not faults_of(sample)
    assert sample["recall_of_all_lists"] < 0.9
    assert not row_of(sample).is_good


def test_a_query_that_gives_another_vector_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    query = ingest_worker.Index.query
    monkeypatch.setattr(ingest_worker.Index, "query", lambda self, number: query(self, number) + 1)
    sample = ingested(lambda rows: rows)
    assert list(faults_of(sample)) == ["wrong_queries_count"]
    assert not row_of(sample).is_good


def test_an_error_of_the_publisher_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise PublishUnknownError("no receipt")

    queue = FakeQueue()
    monkeypatch.setattr(queue, "publish_rows", fails)
    monkeypatch.setattr(queue, "fetch", lambda *_, **__: [])
    with pytest.raises(PublishUnknownError):
        ingest_worker.Operation(queue, work_of(), 1).run()


def test_half_of_the_vectors_travel_in_bulk() -> None:
    work = ingest_worker.Work("queue", 8192, 16, batch_rows=64, bulk_rows=1024)
    rows = np.arange(work.vectors)
    sizes = [len(rows[batch]) for batch in work.batches()]
    assert sizes == ([64] * 16 + [1024]) * 4
    assert np.array_equal(np.concatenate([rows[batch] for batch in work.batches()]), rows)


def test_vectors_are_seeded() -> None:
    one, same, other = (ingest_worker.Data(1000, 8, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.vectors, same.vectors)
    assert not np.array_equal(one.vectors, other.vectors)
    assert one.vectors.dtype == np.float32


# ---- a run


def test_all_routes_take_turns_and_leave_nothing(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def progress(route: str, number: int, sample: object) -> None:
        if sample:
            seen.append((route, number))

    result = ingest.run(options_of(tmp_path, routes=("none", "queue", "hybrid"), ops=2), progress)
    assert result.is_good
    assert not result.is_interrupted
    assert seen == [(route, number) for number in (0, 1) for route in ("none", "queue", "hybrid")]
    values = json.loads(json.dumps(result.document()))
    assert (values["schema"], values["command"]) == ("vecmq-bench-1", "ingest")
    assert str(tmp_path) not in json.dumps(values)
    for row in values["ingest"]:
        assert row["received_count"] == 2 * VECTORS
        assert not faults_of(row)
        assert row["vectors_per_s"] > 0
        assert 0 < row["search_p50_ms"] <= row["search_p99_ms"]
        assert 0 < row["query_p50_ms"] <= row["query_p99_ms"]
        assert (row["time_over_none"] is None) == (row["route"] == "none")
        assert (row["server_peak_bytes"] > 0) == (row["route"] == "hybrid")
        assert all(isinstance(value, int | float | str | None) for value in row.values())
    assert len(values["samples"]) == 6
    assert set(values["latencies"]) == {"none", "queue", "hybrid"}
    assert_nothing_is_left(tmp_path)
    for width in (80, 120):
        text = shown(result, width)
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert "0.002 %" in text
        assert "FAILED" not in text


def shown(result: ingest.IngestResult, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    ingest.show(console, result)
    return console.export_text()


def assert_nothing_is_left(directory: Path) -> None:
    assert not list(directory.iterdir())
    assert not running_children()


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Worker.run
    numbers: list[int] = []

    def interrupted(worker: Worker, number: int) -> dict[str, Any]:
        numbers.append(number)
        if len(numbers) == 3:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        return run(worker, number)

    monkeypatch.setattr(Worker, "run", interrupted)
    result = ingest.run(
        options_of(tmp_path, routes=("none", "queue"), ops=100, vectors=50_000), no_progress
    )
    assert numbers == [1, 1, 2]
    assert result.is_interrupted
    assert result.is_good
    assert [len(row.samples) for row in result.rows] == [1, 1]
    assert "interrupted" in shown(result)
    assert_nothing_is_left(tmp_path)


def test_ctrl_c_before_anything_is_finished(tmp_path: Path) -> None:
    def progress(*_: object) -> None:
        raise KeyboardInterrupt

    result = ingest.run(options_of(tmp_path), progress)
    assert result.is_interrupted
    assert result.document()["ingest"] == []
    assert "interrupted" in shown(result)
    assert_nothing_is_left(tmp_path)


def test_a_worker_that_fails_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECMQ_NATS_SERVER", "/bin/false")
    with pytest.raises(BenchError):
        ingest.run(options_of(tmp_path, routes=("nats",)), no_progress)
    assert_nothing_is_left(tmp_path)


def test_a_lost_vector_fails_the_run(tmp_path: Path) -> None:
    result = ingest.run(options_of(tmp_path, routes=("none",)), no_progress)
    assert result.document()["is_good"]
    result.rows[0].samples[0]["lost_count"] = 1
    assert not result.document()["is_good"]
    assert "FAILED" in shown(result)


# ---- what is refused


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"routes": ()}, "routes"),
        ({"routes": ("queue", "kafka")}, "kafka"),
        ({"routes": ("queue", "queue")}, "each once"),
        ({"vectors": 999}, "vectors: expected at least 1,000 vectors, got 999"),
        ({"vectors": 1e6}, "vectors: expected a whole number"),
        ({"dimensions": 1}, "dimensions: expected 2 to 32,768 dimensions, got 1"),
        ({"dimensions": 40_000}, "dimensions"),
        ({"ops": 0}, "ops: expected 1 to 1,000 operations, got 0"),
        ({"ops": True}, "ops"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"batch_rows": 600, "bulk_rows": 512}, "bulk_rows: expected 600 to"),
        ({"bulk_rows": 4097, "dimensions": 16_384}, "256 MiB"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        options_of(tmp_path, **values)


def test_more_vectors_than_memory_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MiB of free memory"):
        ingest.run(options_of(tmp_path, vectors=10**12), no_progress)
    assert_nothing_is_left(tmp_path)


def test_too_little_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ConfigError, match="MiB of free disk"):
        ingest.run(options_of(tmp_path), no_progress)
    assert_nothing_is_left(tmp_path)


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="path"):
        ingest.run(options_of(tmp_path / "none-such"), no_progress)


def test_a_missing_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "faiss" else find(name)
    )
    with pytest.raises(ConfigError, match=r"ingest: needs the extra: pip install 'vecmq\[bench\]'"):
        ingest.run(options_of(tmp_path), no_progress)
