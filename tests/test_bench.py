"""The benchmark: it verifies what it receives, refuses what would mislead, and cleans up."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import numpy as np
import psutil
import pytest
from rich.console import Console

import cli_tools
import vecmq
import vecmq.sync
from vecmq.bench import (
    compare,
    contender,
    document,
    latency,
    limits,
    machine,
    mix,
    report,
    runner,
    soak,
    sweep,
    table1,
)
from vecmq.bench.measure import Meter, disk_use
from vecmq.bench.payloads import WINDOW_BYTES, WINDOW_MSGS, Checker, Payloads, windows
from vecmq.bench.process import BenchError
from vecmq.bench.worker import Operation, ServerSpec, Spec
from vecmq.errors import ConfigError
from vecmq.server import EmbeddedServer

SAMPLE: dict[str, Any] = {
    "seconds": 0.5,
    "published_s": 0.4,
    "verify_s": 0.01,
    "levels": ["stored"],
    "wire_bytes": 1100,
    "latencies_ns": None,
    "received_count": 1,
    "lost_count": 0,
    "duplicate_count": 0,
    "unordered_count": 0,
    "wrong_count": 0,
    "stats": {},
    "client_cpu_s": 0.1,
    "server_cpu_s": 0.0,
    "client_start_bytes": 1,
    "client_peak_bytes": 1 << 21,
    "server_peak_bytes": 0,
    "is_peak_exact": True,
    "points": [],
    "apparent_bytes": 1100,
    "allocated_bytes": 4096,
}
MEASURED_FROM_OUTSIDE = {
    *("client_cpu_s", "server_cpu_s", "client_start_bytes", "client_peak_bytes"),
    *("server_peak_bytes", "is_peak_exact", "points", "apparent_bytes", "allocated_bytes"),
}
LIMITS = limits.Limits(1e9, 1e9, 1e9, 1e-4)
TOOLS = Path(__file__).parent


def no_progress(*_: object) -> None:
    pass


def plan_of(
    tmp_path: Path,
    cases: tuple[runner.Case, ...] = (runner.Case("1 KB", 1024, 100),),
    routes: tuple[str, ...] = ("queue",),
    **values: Any,
) -> runner.Plan:
    contenders = values.pop("contenders", None) or tuple(contender.find_routes(routes))
    values = {"ops": 1, "path": tmp_path, "baseline": contenders[0].name, **values}
    return runner.Plan("table1", "Table 1", cases, contenders, **values)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return cli_tools.Command(capsys, monkeypatch)


@pytest.fixture
def release_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line refuses debug builds; its other answers are tested on them as well."""
    monkeypatch.setattr(vecmq, "build_info", lambda: {"version": "0", "profile": "release"})


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
    assert 0 < sample["published_s"] <= sample["seconds"] < 60


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
        late = Operation(mq, work, 1).run()["latencies_ns"]
    assert len(late) == 400
    assert late[-1] > late[0] * 2
    assert all(value > 0 for value in late)


def test_a_rate_is_kept(tmp_path: Path) -> None:
    work = Spec("queue", "latency", 1024, 200, str(tmp_path / "store"), rate_per_s=1000.0)
    with vecmq.sync.open(work.path, mode="queue") as mq:
        sample = Operation(mq, work, 1).run()
    assert sample["published_s"] >= 0.199


def test_meter_sees_memory_and_processor_time() -> None:
    command = [sys.executable, "-c", "x = bytearray(64 << 20)\nwhile True: pass"]
    with subprocess.Popen(command) as process:
        meter = Meter(process.pid)
        meter.start()
        time.sleep(1)
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
    assert 1e-7 < found.fdatasync_s < 10
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


def shown(result: runner.Result, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    report.show(console, result)
    return console.export_text()


def worker_processes() -> list[int]:
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and "vecmq.bench.worker" in process.cmdline()
    ]


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


def test_a_server_of_the_users_is_left_as_it_was(tmp_path: Path, server: Any) -> None:
    own = ServerSpec(server.url, token=server.token)
    plan = plan_of(tmp_path, routes=contender.ROUTES, server=own)
    result = runner.run(plan, no_progress)
    assert result.is_good
    assert [len(row.samples) for row in result.rows] == [1, 1, 1]
    assert not streams(server)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def streams(server: EmbeddedServer) -> list[str]:
    async def names() -> list[str]:
        client = await nats.connect(server.url, token=server.token)
        async with client:
            found = await client.jetstream().streams_info()
            return [str(info.config.name) for info in found]

    return asyncio.run(names())


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
    assert "missing: not built" in text


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


# ---- figures


def row_of(seconds: list[float], name: str = "queue", **changes: Any) -> runner.Row:
    samples = [SAMPLE | {"seconds": value} | changes for value in seconds]
    (who,) = contender.find_routes([name])
    case = runner.Case("1 KB", 1024, 50_000)
    return runner.Row(case, who, samples=samples, warmups=[SAMPLE])


def test_ratios_are_those_of_the_rounds() -> None:
    ratio = row_of([2.0, 4.0, 9.0]).ratio(row_of([1.0, 4.0, 3.0], "nats"))
    assert ratio == runner.Ratio(2.0, 1.0, 3.0)
    assert not ratio.is_clear
    assert runner.Ratio(2.0, 1.1, 3.0).is_clear


def test_other_levels_are_not_compared() -> None:
    durable = row_of([1.0], levels=["durable"])
    assert durable.ratio(row_of([1.0], "nats")) is None


def test_crossover_lies_where_the_medians_meet() -> None:
    result = result_of([])
    for size, (queue_s, nats_s) in {1024: (1.0, 4.0), 65536: (2.0, 2.0), 1 << 20: (4, 1)}.items():
        case = runner.Case(sweep.size_name(size), size, 10)
        for name, seconds in (("queue", queue_s), ("nats", nats_s)):
            row = row_of([float(seconds)], name)
            result.rows.append(runner.Row(case, row.contender, samples=row.samples))
    assert [round(size) for size in sweep.crossovers(result)] == [65536]


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("64KB", 65536), ("1.5 MiB", 1572864), ("256", 256), ("8b", 8)]
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert sweep.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "KB", "7", "-8", "nan", "inf", "2GB", "8 parsecs", "1e30"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError):
        sweep.parse_size(text)


def test_mixed_sizes_are_log_uniform() -> None:
    case = mix.case(10_000, 256, 4 << 20)
    assert case.sizes_bytes is not None
    assert min(case.sizes_bytes) >= 256
    assert max(case.sizes_bytes) == case.size_bytes <= 4 << 20
    assert all(size % 8 == 0 for size in case.sizes_bytes)
    below_32_kb = sum(size < 32 << 10 for size in case.sizes_bytes)
    assert 0.48 < below_32_kb / 10_000 < 0.52


def test_latencies_of_all_operations_make_one_histogram() -> None:
    found = latency.summarize([range(1, 1001), range(1001, 2001)])
    assert found.count == 2000
    assert found.percentiles[50.0] == pytest.approx(1000, rel=0.002)
    assert found.percentiles[99.9] == pytest.approx(1998, rel=0.002)
    assert found.max_ns == pytest.approx(2000, rel=0.002)
    assert found.curve[-1][0] == 100.0


# ---- results


def result_of(rows: list[runner.Row], **values: Any) -> runner.Result:
    plan = plan_of(Path(), table1.cases(), contender.ROUTES, **values)
    return runner.Result(plan, machine.facts(Path.cwd()), LIMITS, rows)


def test_pytest_benchmark_compares_results(tmp_path: Path) -> None:
    for name, seconds in (("a", [1.0, 2.0, 3.0]), ("b", [2.0])):
        values = document.document(result_of([row_of(seconds)]))
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    command = ["-m", "pytest_benchmark", "compare", "a.json", "b.json", "--columns=median"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("1KB[queue]") == 2
    assert "2.0000 (1.0)" in done.stdout


def test_csv_has_a_line_for_each_operation() -> None:
    lines = document.to_csv(result_of([row_of([0.5, 0.25])])).splitlines()
    assert len(lines) == 3
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (first["case"], first["contender"], first["round"]) == ("1 KB", "queue", "1")
    assert float(first["msgs_per_s"]) == 100_000


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (row_of([0.1, 0.2]), "faster"),
        (row_of([5.0, 6.0]), "slower"),
        (row_of([0.5, 1.0]), "the same within noise"),
        (row_of([0.1], levels=["durable"]), "not comparable: stored against durable"),
        (row_of([0.1], "nats"), "only in one of them"),
    ],
)
def test_compare_says_what_changed(after: runner.Row, verdict: str) -> None:
    before = document.document(result_of([row_of([0.7, 0.8])]))
    found = compare.changes(before, document.document(result_of([after])))
    assert verdict in [change.verdict for change in found]


def test_compare_names_other_conditions() -> None:
    before = document.document(result_of([row_of([1.0])]))
    after = document.document(result_of([row_of([1.0])], codec="planes"))
    after["machine"]["kernel"] = "1.0"
    lines = compare.warnings(before, after)
    assert [line.split(" differs")[0] for line in lines] == ["kernel", "option codec"]


# ---- the command


def test_a_debug_build_is_refused(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vecmq, "build_info", lambda: {"profile": "debug"})
    outcome = command("bench", "table1", "--scale", "0.001")
    assert outcome.code == 2
    assert not outcome.out


@pytest.mark.usefixtures("release_build")
@pytest.mark.parametrize(
    "tokens",
    [
        ["--scale", "0"],
        ["--scale", "nan"],
        ["--ops", "0"],
        ["--routes", "queue,core"],
        ["--routes", "queue,queue"],
        ["--routes", ""],
        ["--path", "no-such-directory"],
        ["--warmup", "-1"],
        ["--batch", "0"],
        ["--peers", "kafka"],
        ["--routes", "none"],
        ["--context", "no-such-context"],
        ["--context", "a", "--server", "nats://127.0.0.1:1"],
        ["--json", "no-such-directory/a.json"],
        ["--json", "-", "--csv", "-"],
    ],
    ids=" ".join,
)
def test_wrong_values_are_usage_errors(command: Any, tokens: list[str]) -> None:
    outcome = command("bench", "table1", *tokens)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.usefixtures("release_build")
@pytest.mark.parametrize(
    "tokens",
    [
        ["sweep", "--sizes", "7"],
        ["sweep", "--sizes", "1KB,1024"],
        ["sweep", "--volume", "x"],
        ["latency", "--rate", "0"],
        ["latency", "--rate", "nan"],
        ["latency", "--msgs", "0"],
        ["mix", "--msgs", "0"],
        ["mix", "--least", "2MB", "--greatest", "1MB"],
        ["publish", "--pub", "0"],
        ["publish", "--sub", "65"],
        ["soak", "--minutes", "0"],
        ["soak", "--keep-s", "0"],
        ["soak", "--peers", "all"],
        ["codec", "no-such.npy"],
        ["compare", "no-such.json", "no-such.json"],
    ],
    ids=" ".join,
)
def test_wrong_values_of_other_commands_are_usage_errors(command: Any, tokens: list[str]) -> None:
    outcome = command("bench", *tokens)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.usefixtures("release_build")
def test_a_context_names_a_server(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "nats" / "context").mkdir(parents=True)
    context = {"url": server.url, "token": server.token}
    (tmp_path / "nats" / "context" / "here.json").write_text(json.dumps(context))
    tokens = ["publish", "--context", "here", "--msgs", "50", "--ops", "1", "--routes", "nats"]
    outcome = command("bench", *tokens, "--json", "-")
    assert outcome.code == 0, outcome.err
    values = json.loads(outcome.out)
    assert values["options"]["server"] == server.url
    assert server.token not in outcome.out
    assert not streams(server)


@pytest.mark.usefixtures("release_build")
def test_codecs_of_your_own_arrays(command: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    np.save(tmp_path / "floats.npy", rng.standard_normal((500, 16), dtype=np.float32))
    np.save(tmp_path / "zeros.npy", np.zeros(4000, dtype=np.int64))
    outcome = command("bench", "codec", tmp_path, "--json", "-")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["codecs"]
    assert len(rows) == 2 * 5
    ratios = {(row["name"], row["codec"]): row["ratio"] for row in rows}
    assert 1 < ratios["floats.npy", "raw"] < 1.05
    assert ratios["floats.npy", "planes"] < 0.95
    assert ratios["zeros.npy", "zstd1"] < 0.1
    assert all(row["encode_bytes_per_s"] > 0 < row["decode_bytes_per_s"] for row in rows)
    assert "floats.npy" in command("bench", "codec", tmp_path / "floats.npy").out


def result_with(**changes: int) -> runner.Result:
    return result_of([row_of([0.5], **changes)])


@pytest.mark.usefixtures("release_build")
@pytest.mark.parametrize("fault", ["lost", "duplicate", "unordered", "wrong"])
def test_a_lost_message_is_exit_code_1(
    command: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    changes = {f"{fault}_count": 1}
    monkeypatch.setattr(runner, "run", lambda *_: result_with(**changes))
    outcome = command("bench", "table1")
    assert outcome.code == 1
    assert "FAILED" in outcome.out


@pytest.mark.usefixtures("release_build")
def test_json_goes_to_stdout_or_a_file(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "run", lambda *_: result_with())
    on_stdout = command("bench", "table1", "--json", "-")
    in_file = command("bench", "table1", "--json", tmp_path / "result.json")
    assert on_stdout.code == in_file.code == 0
    assert json.loads(on_stdout.out)["schema"] == "vecmq-bench-1"
    assert json.loads((tmp_path / "result.json").read_text())["is_good"]
    assert "Table 1" in in_file.out


CTRL_C = """
import sys, vecmq
from vecmq.cli import main
vecmq.build_info = lambda: {"version": "0", "profile": "release"}
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_prints_what_is_finished(tmp_path: Path) -> None:
    tokens = ["bench", "table1", "--scale", "0.02", "--ops", "50", "--path", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CTRL_C, *tokens],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "hybrid, round 2" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 130, err
    assert "5 MB x 2" in out
    assert "interrupted" in out
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    tokens = ["bench", "table1", "--scale", "0.02", "--ops", "50", "--path", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CTRL_C, *tokens],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "hybrid, warm-up" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert len(children) >= 3
    deadline = time.monotonic() + 30
    while any(child.is_running() for child in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.05)
    # The stores are gone; what the parent made for them is empty.
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
