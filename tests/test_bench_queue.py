"""`make bench-queue`: it measures, says what is missing, and judges what it shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOALS = ROOT / "benches" / "queue_goals"
SMALL = ("--scale", "0.01", "--rounds", "1")


def bench(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GOALS), "--path", str(tmp_path), *arguments],
        env=os.environ | {"VECMQ_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "names",
    [("memory",), ("64KB-ten-times", "64KB-worst-stall"), ("rate-10M", "memory-10M")],
)
def test_a_row_has_a_figure_a_goal_and_a_verdict(tmp_path: Path, names: tuple[str, ...]) -> None:
    done = bench(tmp_path, *SMALL, "--only", *names)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(names)
    for line in lines:
        assert float(line[1]) > 0
        assert {"met", "missed"} & set(line)
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_not_built_is_a_row_that_says_so(tmp_path: Path) -> None:
    done = bench(tmp_path, *SMALL, "--only", "rows-rocksdict", "put-p99-rocksdict")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("not measured: run make peers") for line in lines)


@pytest.mark.parametrize("arguments", [("--scale", "0"), ("--rounds", "0"), ("--only", "none")])
def test_bad_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = bench(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
