"""The benchmark: it verifies what it receives, refuses what would mislead, and cleans up."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

import cli_tools
import vecmq
import vecmq.sync
from vecmq.bench import machine, report, table1
from vecmq.bench.measure import Meter, disk_use
from vecmq.bench.worker import WINDOW_BYTES, WINDOW_MSGS, Checker, Payloads, Spec, run_op
from vecmq.errors import ConfigError

SAMPLE = {
    "seconds": 0.5,
    "published_s": 0.4,
    "verify_s": 0.01,
    "levels": ["stored"],
    "payload_bytes": 1024,
    "wire_bytes": 1100,
    "received_count": 1,
    "lost_count": 0,
    "duplicate_count": 0,
    "unordered_count": 0,
    "wrong_count": 0,
    "client_cpu_s": 0.1,
    "server_cpu_s": 0.0,
    "client_start_bytes": 1,
    "client_peak_bytes": 1 << 21,
    "server_peak_bytes": 0,
    "is_peak_exact": True,
    "apparent_bytes": 1100,
    "allocated_bytes": 4096,
    "stats": {},
}


def no_progress(*_: object) -> None:
    pass


def spec(tmp_path: Path, size_bytes: int = 1024, count: int = 100) -> Spec:
    return Spec("queue", "raw", size_bytes, count, str(tmp_path / "store"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return cli_tools.Command(capsys, monkeypatch)


@pytest.fixture
def release_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line refuses debug builds; its other answers are tested on them as well."""
    monkeypatch.setattr(vecmq, "build_info", lambda: {"version": "0", "profile": "release"})


# ---- payloads and checker


def test_payloads_are_unique_and_cut_into_windows(tmp_path: Path) -> None:
    small = Payloads(spec(tmp_path, 1024, 1200), seed=1)
    assert len({bytes(view) for view in small.views}) == 1200
    assert [len(window) for window in small.windows()] == [WINDOW_MSGS, WINDOW_MSGS, 176]
    large = Payloads(spec(tmp_path, 5 << 20, 4), seed=1)
    assert [len(window) for window in large.windows()] == [WINDOW_BYTES // (5 << 20), 1]
    assert all(view.readonly and view.nbytes == 1024 for view in small.views)


@pytest.mark.parametrize("size_bytes", [1024, 8192])
def test_checker_passes_what_is_right(tmp_path: Path, size_bytes: int) -> None:
    payloads = Payloads(spec(tmp_path, size_bytes), seed=1)
    checker = Checker(payloads)
    checker.take(payloads.views[:30])
    assert checker.lost_count == 70
    checker.take(payloads.views[30:])
    faults = (checker.lost_count, checker.duplicate_count, checker.unordered_count)
    assert (*faults, checker.wrong_count) == (0, 0, 0, 0)
    assert checker.received_count == 100


@pytest.mark.parametrize("size_bytes", [1024, 8192])
def test_checker_sees_every_fault(tmp_path: Path, size_bytes: int) -> None:
    payloads = Payloads(spec(tmp_path, size_bytes), seed=1)
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
def test_an_operation_is_verified_and_measured(tmp_path: Path, mode: Any) -> None:
    work = Spec(mode, "raw", 128 << 10, 40, str(tmp_path / "store"))
    with vecmq.sync.open(work.path, mode=mode) as mq:
        sample = run_op(mq, work, 1)
        disk = disk_use(Path(work.path))
    assert set(SAMPLE) - set(sample) == {"apparent_bytes", "allocated_bytes", "stats"}
    assert sample["received_count"] == 40
    assert [sample[key] for key in SAMPLE if key.endswith("_count") and key[0] != "r"] == [0] * 4
    assert sample["levels"] == ["stored"]
    assert sample["wire_bytes"] > sample["payload_bytes"] == 40 * (128 << 10)
    assert 0 < sample["seconds"] < 60
    assert sample["client_peak_bytes"] >= sample["payload_bytes"]
    assert (sample["server_peak_bytes"] > 0) == (mode != "queue")
    assert disk.apparent_bytes >= sample["payload_bytes"]


def test_meter_resets_the_peak() -> None:
    large = bytearray(64 << 20)
    with_large = Meter(None).stop().client_peak_bytes
    del large
    usage = Meter(None).stop()
    if usage.is_peak_exact:
        assert usage.client_peak_bytes < with_large - (32 << 20)
    assert usage.client_peak_bytes >= usage.client_start_bytes > 0
    assert usage.server_peak_bytes == 0


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


# ---- the table


def test_the_whole_table_at_a_small_scale(tmp_path: Path) -> None:
    options = table1.Table1Options(ops=1, scale=0.004, path=tmp_path)
    seen: list[tuple[str, int]] = []

    def progress(_: object, route: str, number: int, sample: object) -> None:
        if sample:
            seen.append((route, number))

    result = table1.run(options, progress)
    assert result.is_good
    # A B C A B C, once for each workload.
    turn = [(route, number) for number in (0, 1) for route in table1.ROUTES]
    assert seen == turn * len(table1.WORKLOADS)
    document = json.loads(json.dumps(result.document()))
    assert document["schema"] == "vecmq-bench-1"
    assert len(document["rows"]) == 12
    for row in document["rows"]:
        (sample,) = row["samples"]
        assert set(sample) == set(SAMPLE)
        assert sample["received_count"] == row["count"]
        assert row["warmup"] is not None
    assert not list(tmp_path.iterdir())
    assert not worker_processes()
    assert_shown_whole(result)


def assert_shown_whole(result: table1.Result) -> None:
    """A narrow terminal cuts no figure; the reference stands beside each row."""
    for width in (80, 120):
        console = Console(width=width, record=True, file=io.StringIO())
        report.show(console, result)
        text = console.export_text()
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
        assert text.count("2.77 / 3.43") == len(result.options.routes)


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
    options = table1.Table1Options(("queue", "nats"), ops=1, scale=0.001, path=tmp_path)
    with pytest.raises(table1.BenchError):
        table1.run(options, no_progress)
    assert not list(tmp_path.iterdir())
    assert not worker_processes()


def test_a_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        table1.run(table1.Table1Options(path=tmp_path / "no-such"), no_progress)


def test_too_little_disk_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        table1.run(table1.Table1Options(ops=1000, scale=100, path=tmp_path), no_progress)
    assert not list(tmp_path.iterdir())


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
    ],
    ids=" ".join,
)
def test_wrong_values_are_usage_errors(command: Any, tokens: list[str]) -> None:
    outcome = command("bench", "table1", *tokens)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1


def result_with(**changes: int) -> table1.Result:
    options = table1.Table1Options(("queue",), ops=1)
    row = table1.Row(table1.WORKLOADS[3], "queue", 50_000, [SAMPLE | changes], SAMPLE)
    return table1.Result(options, machine.facts(Path.cwd()), [row])


@pytest.mark.usefixtures("release_build")
@pytest.mark.parametrize("fault", ["lost", "duplicate", "unordered", "wrong"])
def test_a_lost_message_is_exit_code_1(
    command: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    changes = {f"{fault}_count": 1}
    monkeypatch.setattr(table1, "run", lambda *_: result_with(**changes))
    outcome = command("bench", "table1")
    assert outcome.code == 1
    assert "FAILED" in outcome.out


@pytest.mark.usefixtures("release_build")
def test_json_goes_to_stdout_or_a_file(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(table1, "run", lambda *_: result_with())
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
