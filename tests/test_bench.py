"""The benchmark: it verifies what it receives, and cleans up."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

import vecmq
import vecmq.sync
from bench_tools import (
    MEASURED_FROM_OUTSIDE,
    SAMPLE,
    TOOLS,
    no_progress,
    plan_of,
    running_children,
    shown,
    streams,
)
from cluster_tools import wait_for
from vecmq.bench import (
    contender,
    document,
    limits,
    machine,
    runner,
    soak,
    table1,
)
from vecmq.bench.measure import Meter, disk_use
from vecmq.bench.payloads import WINDOW_BYTES, WINDOW_MSGS, Checker, Payloads, windows
from vecmq.bench.process import BenchError
from vecmq.bench.worker import Operation, ServerSpec, Spec
from vecmq.errors import ConfigError
from vecmq.server import EmbeddedServer

# ---- payloads and checker


def test_payloads_are_unique_and_cut_into_windows() -> None:
    small = Payloads([1024] * 1200, seed=1)
    assert len({bytes(view) for view in small.views}) == 1200
    assert [len(window) for window in windows(small.views)] == [WINDOW_MSGS, WINDOW_MSGS, 176]
    large = Payloads([5 << 20] * 4, seed=1)
    assert [len(window) for window in windows(large.views)] == [WINDOW_BYTES // (5 << 20), 1]
    assert all(view.readonly and view.nbytes == 1024 for view in small.views)


def test_payloads_of_many_sizes_begin_with_their_number() -> None:
    sizes = [8, 4096, 16, 1 << 20]
    views = Payloads(sizes, seed=1).views
    assert [view.nbytes for view in views] == sizes
    assert [int.from_bytes(view[:8], "little") for view in views] == [0, 1, 2, 3]


@pytest.mark.parametrize("size_bytes", [1024, 8192])
def test_checker_passes_what_is_right(size_bytes: int) -> None:
    payloads = Payloads([size_bytes] * 100, seed=1)
    checker = Checker(payloads)
    checker.take(payloads.views[:30])
    assert checker.lost_count == 70
    checker.take(payloads.views[30:])
    faults = (checker.lost_count, checker.duplicate_count, checker.unordered_count)
    assert (*faults, checker.wrong_count) == (0, 0, 0, 0)
    assert checker.received_count == 100


def test_checker_knows_the_order_of_each_publisher() -> None:
    payloads = Payloads([64] * 6, seed=1)
    mixed = Checker(payloads, publishers=2)
    mixed.take([payloads.views[number] for number in (1, 3, 0, 5, 2, 4)])
    assert (mixed.unordered_count, mixed.lost_count) == (0, 0)
    swapped = Checker(payloads, publishers=2)
    swapped.take([payloads.views[number] for number in (3, 1, 0, 2, 4, 5)])
    assert swapped.unordered_count == 1


@pytest.mark.parametrize("size_bytes", [1024, 8192])
def test_checker_sees_every_fault(size_bytes: int) -> None:
    payloads = Payloads([size_bytes] * 100, seed=1)
    views = list(payloads.views)
    changed = bytearray(views[50])
    changed[-1] ^= 1
    views[50] = memoryview(changed)
    views[60] = memoryview(b"short")
    views[70], views[71] = views[71], views[70]
    views[80] = views[20]
    checker = Checker(payloads)
    for at in range(0, 100, 10):
        checker.take(views[at : at + 10])
    assert checker.wrong_count == 2
    assert checker.unordered_count == 1
    assert checker.duplicate_count == 1
    assert checker.lost_count == 3


# ---- one operation


@pytest.mark.parametrize("mode", ["queue", "nats", "hybrid"])
@pytest.mark.parametrize("batch", [None, 1])
def test_an_operation_is_verified(tmp_path: Path, mode: Any, batch: int | None) -> None:
    work = Spec(mode, "pubsub", 128 << 10, 40, str(tmp_path / "store"), batch=batch)
    with vecmq.sync.open(work.path, mode=mode) as mq:
        sample = Operation(mq, work, 1).run()
    assert set(SAMPLE) - set(sample) == MEASURED_FROM_OUTSIDE | {"stats"}
    assert sample["received_count"] == 40
    assert [sample[key] for key in runner.FAULTS] == [0] * 4
    assert sample["levels"] == ["stored"]
    assert sample["wire_bytes"] > 40 * (128 << 10)
    # A message can be received before its publisher has the acknowledgement.
    assert 0 < sample["published_s"] < 60
    assert 0 < sample["seconds"] < 60


@pytest.mark.parametrize("mode", ["queue", "hybrid"])
def test_many_publishers_and_subscribers(tmp_path: Path, mode: Any) -> None:
    work = Spec(mode, "pubsub", 1024, 900, str(tmp_path / "store"), publishers=3, subscribers=2)
    with vecmq.sync.open(work.path, mode=mode) as mq:
        sample = Operation(mq, work, 1).run()
    assert sample["received_count"] == 2 * 900
    assert [sample[key] for key in runner.FAULTS] == [0] * 4


def test_publish_alone_stops_the_clock_at_the_last_receipt(tmp_path: Path) -> None:
    work = Spec("queue", "publish", 1024, 2000, str(tmp_path / "store"))
    with vecmq.sync.open(work.path, mode="queue") as mq:
        sample = Operation(mq, work, 1).run()
    assert sample["seconds"] == sample["published_s"]
    assert sample["received_count"] == 2000


def test_latency_counts_from_the_moment_a_message_is_due(tmp_path: Path) -> None:
    # 400 are due at once; what one waits for those before it counts.
    rate = 1e9
    work = Spec("queue", "latency", 1024, 400, str(tmp_path / "store"), batch=1, rate_per_s=rate)
    with vecmq.sync.open(work.path, mode="queue") as mq:
        sample = Operation(mq, work, 1).run()
    late = sample["latencies_ns"]
    assert len(late) == 400
    # The last one waited for all the others.
    assert late[-1] > sample["published_s"] * 1e9 / 2
    assert all(value > 0 for value in late)


def test_a_rate_is_kept(tmp_path: Path) -> None:
    work = Spec("queue", "latency", 1024, 200, str(tmp_path / "store"), rate_per_s=1000.0)
    with vecmq.sync.open(work.path, mode="queue") as mq:
        sample = Operation(mq, work, 1).run()
    assert sample["published_s"] >= 0.199


def test_meter_sees_memory_and_processor_time() -> None:
    code = "x = bytearray(64 << 20)\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        meter = Meter(process.pid)
        meter.start()
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        # Twice what is asked for below: the meter counts from a little later.
        child = psutil.Process(process.pid)
        wait_for(lambda: sum(child.cpu_times()[:2]) > 0.2)
        # The meter looks every 50 ms.
        wait_for(lambda: len(meter._points) > 1)
        usage = meter.stop()
        process.kill()
    assert usage.client_cpu_s > 0.1
    assert usage.client_peak_bytes > 64 << 20
    assert (usage.server_cpu_s, usage.server_peak_bytes) == (0, 0)
    assert usage.points[-1].at_s > usage.points[0].at_s >= 0
    assert usage.client_peak_bytes >= usage.client_start_bytes > 0


def test_meter_resets_the_peak() -> None:
    large = bytearray(64 << 20)
    peaks = []
    for _ in range(2):
        meter = Meter(os.getpid())
        meter.start()
        usage = meter.stop()
        peaks.append(usage.client_peak_bytes)
        large = bytearray(0)
    assert not large
    if usage.is_peak_exact:
        assert peaks[1] < peaks[0] - (32 << 20)


def test_disk_use_tells_holes_from_data(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as stream:
        stream.truncate(1 << 20)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data").write_bytes(b"x" * 10_000)
    use = disk_use(tmp_path)
    assert use.apparent_bytes == (1 << 20) + 10_000
    assert use.allocated_bytes < 1 << 20


def test_facts_name_versions_and_no_paths(tmp_path: Path) -> None:
    facts = machine.facts(tmp_path)
    assert facts["nats_server"].count(".") == 2
    assert facts["file_system"] not in ("", "unknown")
    assert str(tmp_path) not in json.dumps(facts)


def test_limits_are_those_of_a_machine(tmp_path: Path) -> None:
    found = limits.measure(tmp_path)
    assert 1e8 < found.memcpy_bytes_per_s < 1e12
    assert 1e7 < found.loopback_bytes_per_s < 1e12
    assert 1e6 < found.write_bytes_per_s < 1e12
    assert 1e-8 < found.fdatasync_s < 10
    assert not list(tmp_path.iterdir())


# ---- runs


def test_the_whole_table_at_a_small_scale(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, table1.cases(0.004), contender.ROUTES, baseline="hybrid")
    seen: list[tuple[str, int]] = []

    def progress(_: object, who: Any, number: int, sample: object) -> None:
        if sample:
            seen.append((who.name, number))

    result = runner.run(plan, progress)
    assert result.is_good
    # A B C A B C, once for each workload.
    turn = [(route, number) for number in (0, 1) for route in contender.ROUTES]
    assert seen == turn * len(table1.WORKLOADS)
    values = json.loads(json.dumps(document.document(result)))
    assert values["schema"] == "vecmq-bench-1"
    assert len(values["rows"]) == 12
    for row in values["rows"]:
        (sample,) = row["samples"]
        assert set(sample) == set(SAMPLE) - {"latencies_ns"}
        assert sample["received_count"] == row["case"]["count"]
        assert len(row["warmups"]) == 1
        assert (row["ratio"] is None) == (row["contender"] == "hybrid")
        has_server = row["contender"] != "queue"
        assert (sample["server_peak_bytes"] > 0) == has_server
        assert sample["client_peak_bytes"] >= row["case"]["payload_bytes"]
        assert sample["apparent_bytes"] >= row["case"]["payload_bytes"]
    assert not list(tmp_path.iterdir())
    assert not worker_processes()
    assert_shown_whole(result)


def assert_shown_whole(result: runner.Result) -> None:
    """A narrow terminal cuts no figure."""
    for width in (80, 120):
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown(result, width)


def worker_processes() -> list[int]:
    found = []
    for process in running_children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "vecmq.bench.worker" in process.cmdline():
                found.append(process.pid)
    return found


def test_a_worker_that_fails_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECMQ_NATS_SERVER", "/bin/false")
    plan = plan_of(tmp_path, routes=("queue", "nats"))
    with pytest.raises(BenchError):
        runner.run(plan, no_progress)
    assert not list(tmp_path.iterdir())
    assert not worker_processes()


def test_a_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        runner.run(plan_of(tmp_path, path=tmp_path / "no-such"), no_progress)


def test_too_little_disk_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        runner.run(plan_of(tmp_path, table1.cases(100), ops=1000), no_progress)
    assert not list(tmp_path.iterdir())


def test_a_server_of_the_users_is_left_as_it_was(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "server") as server:
        own = ServerSpec(server.url, token=server.token)
        plan = plan_of(tmp_path, routes=contender.ROUTES, server=own)
        result = runner.run(plan, no_progress)
        assert result.is_good
        assert [len(row.samples) for row in result.rows] == [1, 1, 1]
        assert not streams(server)


def test_a_run_ends_when_its_time_is_over(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ops=runner.OPS_MAX, duration_s=0.5, retention_s=0.1)
    result = runner.run(plan, no_progress)
    (row,) = result.rows
    assert 1 <= len(row.samples) < runner.OPS_MAX
    slower, _ = soak.trend(row)
    assert slower > 0
    console = Console(width=100, record=True, file=io.StringIO())
    soak.show(console, result)
    assert "the last tenth" in console.export_text()


# ---- peers


def test_peers_that_are_missing_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECMQ_CACHE_DIR", str(tmp_path))
    peers = contender.find_peers(["all"])
    assert [peer.name for peer in peers] == list(contender.PEERS)
    assert all("make peers" in (peer.missing or "") for peer in peers)
    routes = contender.find_routes(["queue"])
    result = runner.run(plan_of(tmp_path, contenders=(*routes, *peers)), no_progress)
    assert result.is_good
    text = shown(result)
    assert all(name in text for name in contender.PEERS)
    assert "missing: not built" in " ".join(text.split())


def manifest(cache: Path, **entry: Any) -> None:
    (cache / "peers").mkdir(parents=True)
    command = [sys.executable, str(TOOLS / "bench_peer.py")]
    peer = {"command": command, "workloads": ["pubsub"], "note": "a test", **entry}
    text = json.dumps({"schema": "vecmq-peers-1", "peers": {"rocksq": peer}})
    (cache / "peers" / "peers.json").write_text(text)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("good", None),
        ("fails", "failed: rocksq, 100 x 1024 bytes, pubsub: OSError: no room"),
        ("ends", "ended with exit code 7"),
        ("babbles", "expected a line of JSON"),
    ],
)
def test_a_peer_runs_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, said: str | None
) -> None:
    monkeypatch.setenv("VECMQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("BENCH_PEER", how)
    manifest(tmp_path / "cache")
    contenders = (*contender.find_routes(["queue"]), *contender.find_peers(["rocksq"]))
    result = runner.run(plan_of(tmp_path, contenders=contenders), no_progress)
    ours, theirs = result.rows
    assert len(ours.samples) == 1
    assert result.is_good
    if said is None:
        assert theirs.samples[0]["seconds"] == 0.25
        assert theirs.batch == 7
        assert theirs.ratio(ours) is not None
        assert "a test" in shown(result)
    else:
        assert said in (theirs.why_not or "")
        # What is folded at the end of a line is still there.
        assert said.split()[-1] in shown(result)


def test_what_a_peer_cannot_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECMQ_CACHE_DIR", str(tmp_path))
    manifest(tmp_path, sizes_max_bytes=1000)
    (peer,) = contender.find_peers(["rocksq"])
    cases = (
        runner.Case("large", 1024, 1),
        runner.Case("other", 8, 1, workload="publish"),
        runner.Case("many", 8, 1, publishers=2),
    )
    result = runner.run(plan_of(tmp_path, cases, contenders=(peer,)), no_progress)
    assert [row.why_not for row in result.rows] == [
        "takes messages of at most 1,000 bytes",
        "does not do publish",
        "one publisher and one subscriber only",
    ]


def test_a_peer_whose_files_are_gone_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECMQ_CACHE_DIR", str(tmp_path))
    manifest(tmp_path, command=[str(tmp_path / "gone")])
    (peer,) = contender.find_peers(["rocksq"])
    assert "make peers" in (peer.missing or "")


@pytest.mark.parametrize("text", ["{", '{"schema": "vecmq-peers-0"}'])
def test_a_list_of_peers_that_is_unreadable_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("VECMQ_CACHE_DIR", str(tmp_path))
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "peers.json").write_text(text)
    with pytest.raises(ConfigError):
        contender.find_peers(["all"])
