"""The stub file says what the extension has, and the blocking API what the asyncio one has."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vecmq.aio
import vecmq.sync

ROOT = Path(__file__).resolve().parent.parent
# The blocking twin of a special method.
TWINS = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
CLASSES = ["AttachedHandle", "Handle", "Publisher", "Subscriber"]


@pytest.mark.timeout(300)  # mypy reads numpy's stubs first
def test_stub_file_matches_the_extension(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "vecmq._native"]
    command += ["--mypy-config-file", str(ROOT / "pyproject.toml")]
    if sys.version_info < (3, 12):
        # The slot is there, but before 3.12 it has no name that Python could see.
        allowed = tmp_path / "allowed"
        allowed.write_text("vecmq._native.Payload.__buffer__\n")
        command += ["--allowlist", str(allowed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults; annotations differ where the one awaits and the other blocks."""
    found = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


def public(owner: type) -> dict[str, Any]:
    names = (name for name in vars(owner) if not name.startswith("_") or name in TWINS)
    return {TWINS.get(name, name): inspect.getattr_static(owner, name) for name in names}


def blocking_public(owner: type) -> dict[str, Any]:
    twins = set(TWINS.values())
    names = (name for name in vars(owner) if not name.startswith("_") or name in twins)
    return {name: inspect.getattr_static(owner, name) for name in names}


def test_both_apis_give_out_the_same_names() -> None:
    assert sorted(vecmq.aio.__all__) == sorted(vecmq.sync.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_the_same_members(name: str) -> None:
    asynchronous = public(getattr(vecmq.aio, name))
    blocking = blocking_public(getattr(vecmq.sync, name))
    # An asyncio handle is opened by what open() returns, so it has no __aenter__ of its own.
    assert asynchronous.keys() | {"__enter__", "__exit__"} == blocking.keys() | {
        "__enter__",
        "__exit__",
    }
    for member, ours in asynchronous.items():
        theirs = blocking[member]
        assert isinstance(ours, property) == isinstance(theirs, property), member
        if not isinstance(ours, property):
            assert parameters(ours) == parameters(theirs), member


@pytest.mark.parametrize("function", ["attach", "open"])
def test_functions_take_the_same_arguments(function: str) -> None:
    ours, theirs = getattr(vecmq.aio, function), getattr(vecmq.sync, function)
    assert parameters(ours) == parameters(theirs)


@pytest.mark.parametrize("module", [vecmq.aio, vecmq.sync])
@pytest.mark.parametrize("name", CLASSES)
def test_every_public_member_is_documented(module: Any, name: str) -> None:
    for member, found in vars(getattr(module, name)).items():
        if not member.startswith("_") and (callable(found) or isinstance(found, property)):
            assert found.__doc__, f"{module.__name__}.{name}.{member}"
