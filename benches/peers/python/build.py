"""Makes a virtual environment for each Python peer of `vecmq bench`.

    python build.py DIRECTORY      builds into it, prints the manifest entries

A client gets the newest Python on this machine that suits it; what is looked at is what is on the
PATH, and pyenv's versions. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Version = tuple[int, int, int]

# The workers' own code.
OLDEST: Version = (3, 11, 0)
PROBE = (
    "import sys, sysconfig\n"
    "if sys.implementation.name == 'cpython' and not sysconfig.get_config_var('Py_GIL_DISABLED'):\n"
    "    print(*sys.version_info[:3])"
)
SHARED = ("peer.py", "jetstream.py", "embedded.py")
STAMP = "complete"


@dataclass(frozen=True)
class Peer:
    """A client library.

    Attributes:
        needs: Which Python it wants, in words.
        suits: Whether a Python will do.
        shown: Packages whose versions are shown.
        note: How it is run.
        is_nats: A nats-server is started for it.
    """

    needs: str
    suits: Callable[[Version], bool]
    shown: tuple[str, ...]
    note: str
    is_nats: bool = True


def _has_back_pressure(version: Version) -> bool:
    """CVE-2024-12254: asyncio's writelines, which nats-py uses, never waits for the socket."""
    return not ((3, 12, 0) <= version < (3, 12, 9) or (3, 13, 0) <= version < (3, 13, 2))


PEERS = {
    "nats-py": Peer(
        "CPython >= 3.11, but not 3.12.0-3.12.8 and 3.13.0-3.13.1",
        _has_back_pressure,
        ("nats-py", "uvloop"),
        "JetStream on uvloop; `publish_async`, acks in flight; pull subscription, `fetch`; "
        "publisher and subscriber are two processes",
    ),
    "nats-core": Peer(
        "CPython >= 3.13",
        lambda version: version >= (3, 13, 0),
        ("nats-core", "nats-jetstream", "uvloop"),
        "JetStream on uvloop; `publish` in concurrent tasks; pull consumer, `fetch`; its socket "
        "buffer is enlarged because 0.2.0 loses messages when that is full; two processes",
    ),
    "natsio": Peer(
        "CPython >= 3.13",
        lambda version: version >= (3, 13, 0),
        ("natsio",),
        "JetStream; `publish_async`, acks in flight; pull consumer, `consume`; two processes",
    ),
    "natsrpy": Peer(
        "CPython >= 3.11",
        lambda _: True,
        ("natsrpy",),
        "JetStream; `publish` one after the other, `wait=True` for the last of a batch, whose ack "
        "counts for all (with acks in flight, faster at 1 KB alone, messages overtake each other); "
        "pull consumer, `fetch`; two processes",
    ),
    "rocksdict": Peer(
        "CPython >= 3.11",
        lambda _: True,
        ("rocksdict",),
        "a dictionary on RocksDB, not a queue: WriteBatch, WAL on and not synced; a thread "
        "iterates, its place is kept nowhere; no compression, no compaction",
        is_nats=False,
    ),
    "rocksq": Peer(
        "CPython 3.11 or 3.12",
        lambda version: version < (3, 13, 0),
        ("rocksq",),
        "`push` and `pop` of its blocking queue, two threads; what is popped is gone",
        is_nats=False,
    ),
}


def build(target: Path) -> dict[str, Any]:
    """Makes the environments.

    Args:
        target: Directory for everything that is made.

    Returns:
        The entries of the list of peers.
    """
    target = target.absolute()
    target.mkdir(parents=True, exist_ok=True)
    pythons = find_pythons()
    return {name: build_peer(name, target, pythons) for name in PEERS}


def build_peer(name: str, target: Path, pythons: dict[Version, Path]) -> dict[str, Any]:
    """Makes the environment of one peer.

    Args:
        name: One of PEERS.
        target: Directory for everything that is made.
        pythons: What `find_pythons` gave.

    Returns:
        Its entry in the list of peers.
    """
    peer = PEERS[name]
    suitable = sorted(filter(peer.suits, pythons), reverse=True)
    if not suitable:
        found = ", ".join(map(dotted, sorted(pythons))) or "none"
        return {"missing": f"needs {peer.needs}; on the PATH and in pyenv: {found}"}
    reasons = []
    for version in suitable:
        reason = make_environment(name, target / name, pythons[version], version)
        if reason is None:
            return make_entry(name, target, version)
        reasons.append(f"Python {dotted(version)}: {reason}")
    return {"missing": f"needs {peer.needs}; " + "; ".join(reasons)}


def make_environment(name: str, path: Path, python: Path, version: Version) -> str | None:
    """Makes a virtual environment with what is pinned, unless it is there.

    Args:
        name: One of PEERS.
        path: Where.
        python: What makes it.
        version: Of that Python.

    Returns:
        None, or why it could not be made.
    """
    requirements = HERE / "requirements" / f"{name}.txt"
    wanted = f"{python} {dotted(version)}\n{requirements.read_text()}"
    stamp = path / STAMP
    if stamp.exists() and stamp.read_text() == wanted and os.access(interpreter(path), os.X_OK):
        return None
    print(f"{name}: pip install on Python {dotted(version)}", file=sys.stderr, flush=True)
    shutil.rmtree(path, ignore_errors=True)
    pip = [str(interpreter(path)), "-m", "pip", "install", "--quiet", "--no-input"]
    # A compiler's errors would tell nobody that there is no wheel.
    pip += ["--disable-pip-version-check", "--only-binary=:all:", "-r", str(requirements)]
    for command in ([str(python), "-m", "venv", str(path)], pip):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(path, ignore_errors=True)
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            return lines[-1] if lines else f"`{command[2]}` exited with {done.returncode}"
    stamp.write_text(wanted)
    return None


def make_entry(name: str, target: Path, version: Version) -> dict[str, Any]:
    """Makes the entry of a peer whose environment is there.

    Args:
        name: One of PEERS.
        target: Directory for everything that is made.
        version: Of the environment's Python.

    Returns:
        The entry.
    """
    peer = PEERS[name]
    worker = f"worker_{name.replace('-', '_')}.py"
    # Beside the environments: the list outlives the clone that it was made from.
    for file in (*SHARED, worker):
        shutil.copy(HERE / file, target)
    requirements = (HERE / "requirements" / f"{name}.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", requirements, re.MULTILINE))
    return {
        "command": [str(interpreter(target / name)), str(target / worker)],
        "versions": {shown: pinned[shown] for shown in peer.shown} | {"python": dotted(version)},
        "server": peer.is_nats,
        "workloads": ["pubsub", "publish", "latency"],
        "sizes_max_bytes": 8 << 20 if peer.is_nats else None,
        "note": peer.note,
    }


def find_pythons() -> dict[Version, Path]:
    """Finds the Pythons of this machine.

    Returns:
        One program for each version.
    """
    candidates = [Path(sys.executable)]
    for folder in os.get_exec_path():
        candidates += sorted(Path(folder).glob("python3*"))
    candidates += sorted(pyenv_versions().glob("*/bin/python3"))
    found: dict[Version, Path] = {}
    for candidate in candidates:
        # Not python3-config and the like.
        if re.fullmatch(r"python3(\.\d+)?|python", candidate.name) is None:
            continue
        version = ask_version(candidate)
        if version is not None and version >= OLDEST:
            found.setdefault(version, candidate)
    return found


def pyenv_versions() -> Path:
    """Returns where pyenv keeps its versions, whether it is there or not."""
    if shutil.which("pyenv") is None:
        return Path.home() / ".pyenv" / "versions"
    command = ["pyenv", "root"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return Path(done.stdout.strip() or Path.home() / ".pyenv") / "versions"


def ask_version(python: Path) -> Version | None:
    """Asks a Python for its version; None: it is not a CPython that can be used."""
    try:
        command = [str(python), "-I", "-c", PROBE]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = done.stdout.split()
    # A shim of pyenv fails for a version that is not chosen.
    if done.returncode != 0 or len(numbers) != 3:
        return None
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def interpreter(path: Path) -> Path:
    """Returns the Python of a virtual environment."""
    return path / "bin" / "python"


def dotted(version: Version) -> str:
    """Writes a version as usual."""
    return ".".join(map(str, version))


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1])), indent=1))
