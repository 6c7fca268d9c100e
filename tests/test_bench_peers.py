"""The list of peers that `make peers` writes: what could not be built is in it and says why."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vecmq.bench.contender import PEERS, find_peers

BUILD = Path(__file__).parents[1] / "benches" / "peers" / "build.py"
GOOD = """
def build(target):
    return {name: {"command": [str(target)], "versions": {name: "1.0"}} for name in %r}
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders of peers, and an empty cache."""
    monkeypatch.setenv("VECMQ_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "peers"


@pytest.fixture
def build(folders: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_peers", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load_file = module.load_file
    monkeypatch.setattr(
        module, "load", lambda folder: load_file(f"build_{folder}", folders / folder / "build.py")
    )
    for folder in module.FOLDERS:
        (folders / folder).mkdir(parents=True)
    return module


def write(folders: Path, build: Any, **sources: str) -> None:
    for folder, names in build.FOLDERS.items():
        source = sources.get(folder, GOOD % (names,))
        (folders / folder / "build.py").write_text(source)


def peers_of(tmp_path: Path) -> dict[str, Any]:
    values = json.loads((tmp_path / "cache" / "peers" / "peers.json").read_text())
    assert values["schema"] == "vecmq-peers-1"
    peers: dict[str, Any] = values["peers"]
    return peers


def test_all_peers_are_built_in_the_order_of_the_tables(
    build: Any, folders: Path, tmp_path: Path
) -> None:
    write(folders, build)
    assert build.main([]) == 0
    assert set(peers_of(tmp_path)) == set(PEERS)
    assert not any("missing" in entry for entry in peers_of(tmp_path).values())


def test_what_cannot_be_built_says_why_and_stops_nothing(
    build: Any, folders: Path, tmp_path: Path
) -> None:
    broken = "def build(target):\n    raise OSError('go is not on the PATH')\n"
    forgetful = GOOD % (("nats-py",),)
    write(folders, build, milvus=broken, python=forgetful)
    assert build.main([]) == 1
    peers = peers_of(tmp_path)
    assert peers["milvus-natsmq"] == {"missing": "OSError: go is not on the PATH"}
    assert "missing" not in peers["nats-py"]
    assert "does not tell of it" in peers["rocksq"]["missing"]
    (found,) = find_peers(["milvus-natsmq"])
    assert found.missing == "OSError: go is not on the PATH"


def test_one_folder_leaves_the_others_as_they_were(
    build: Any, folders: Path, tmp_path: Path
) -> None:
    write(folders, build)
    assert build.main([]) == 0
    write(folders, build, natscli="raise ImportError('no such thing')\n")
    assert build.main(["nats-bench"]) == 1
    peers = peers_of(tmp_path)
    assert set(peers) == set(PEERS)
    assert [name for name, entry in peers.items() if "missing" in entry] == ["nats-bench"]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VECMQ_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(BUILD), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_list_shows_what_is_not_built(tmp_path: Path) -> None:
    shown = run(tmp_path, "--list")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert len(lines) == len(PEERS)
    assert all(line.endswith("missing: not built") for line in lines)


def test_an_unknown_name_is_a_usage_error(tmp_path: Path) -> None:
    outcome = run(tmp_path, "kafka")
    assert outcome.returncode == 2
    assert "got kafka" in outcome.stderr
    assert not (tmp_path / "peers").exists()
