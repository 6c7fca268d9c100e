"""`vecmq bench` as a command: what it refuses, prints and writes, and how Ctrl-C ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import cli_tools
import vecmq
import vecmq.sync
from bench_tools import (
    is_running,
    result_of,
    row_of,
    streams,
)
from vecmq.bench import (
    runner,
)
from vecmq.server import EmbeddedServer


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return cli_tools.Command(capsys, monkeypatch)


@pytest.fixture
def release_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line refuses debug builds; its other answers are tested on them as well."""
    monkeypatch.setattr(vecmq, "build_info", lambda: {"version": "0", "profile": "release"})


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
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "nats" / "context").mkdir(parents=True)
    with EmbeddedServer(tmp_path / "server") as server:
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
    assert len(rows) == 2 * 7
    ratios = {(row["name"], row["codec"]): row["ratio"] for row in rows}
    assert 1 < ratios["floats.npy", "raw"] < 1.05
    assert ratios["floats.npy", "planes"] < 0.95
    assert ratios["zeros.npy", "zstd"] < 0.1
    assert all(row["encode_bytes_per_s"] > 0 < row["decode_bytes_per_s"] for row in rows)
    assert "floats.npy" in command("bench", "codec", tmp_path / "floats.npy").out


def result_with(**changes: Any) -> runner.Result:
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
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.05)
    # The stores are gone; what the parent made for them is empty.
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
