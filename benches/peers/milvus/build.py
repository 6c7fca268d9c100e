"""Builds Milvus' two embedded queues, RocksMQ and natsmq, as a worker of `vecmq bench`.

    python build.py DIRECTORY      builds into it, prints the manifest entries

RocksMQ links RocksDB's C++, which takes most of the time (5 to 20 minutes). It is compiled once
and kept in the directory. Not the system's librocksdb: Debian's is built with assertions, which
costs a third of the speed on small messages and ends the process when RocksMQ closes. Standard
library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CRATE = HERE / "rocksdb"
PACKAGE = "librocksdb-sys"
# In the order in which a linker needs them.
ARCHIVES = ("librocksdb.a", "libzstd.a", "libsnappy.a", "liblz4.a")
# RocksDB 6.28 uses uint64_t without including its header, which GCC 13 no longer forgives.
CXXFLAGS = "-include cstdint"
PROGRESS_S = 10.0
LOG_LINES = 30

MODULES = {
    "github.com/milvus-io/milvus/pkg/v2": "milvus",
    "github.com/nats-io/nats-server/v2": "nats-server",
    "github.com/nats-io/nats.go": "nats.go",
}
NOTES = {
    "milvus-rocksmq": "Milvus' package, in one process; RocksDB's WAL is written, not synced",
    "milvus-natsmq": "Milvus' package, in one process with its nats-server; one publish in flight",
}


class BuildError(Exception):
    """The peers cannot be built; the message says why."""


def build(target: Path) -> dict[str, Any]:
    """Builds the worker.

    Args:
        target: Directory for everything that is made.

    Returns:
        The entries of the list of peers.
    """
    try:
        require_tools()
        target = target.absolute()
        target.mkdir(parents=True, exist_ok=True)
        worker = build_worker(target, ensure_rocksdb(target))
        linked = linked_versions(worker)
    except BuildError as error:
        return {name: {"missing": str(error)} for name in NOTES}
    own = {
        "milvus-rocksmq": {"milvus": linked["milvus"], "rocksdb": rocksdb_version()},
        "milvus-natsmq": linked,
    }
    return {
        name: {
            "command": [str(worker)],
            "versions": own[name],
            "server": False,
            "workloads": ["pubsub", "publish", "latency"],
            # natsmq.server.maxPayload of Milvus.
            "sizes_max_bytes": 8 << 20 if name == "milvus-natsmq" else None,
            "note": note,
        }
        for name, note in NOTES.items()
    }


def say(text: str) -> None:
    """Prints one line of progress at once; standard output belongs to the caller."""
    print(text, file=sys.stderr, flush=True)


def require_tools() -> None:
    """Raises BuildError for the first tool that is not installed, or too old."""
    wanted = next(
        line.split()[1] for line in (HERE / "go.mod").read_text().splitlines() if line[:3] == "go "
    )
    if shutil.which("go") is None:
        raise BuildError(f"needs Go >= {wanted}: not found on the PATH")
    # Asked in the module's directory, a newer Go fetches the tool chain that go.mod names.
    command = ["go", "env", "GOVERSION"]
    asked = subprocess.run(command, check=False, cwd=HERE, capture_output=True, text=True)
    if asked.returncode != 0:
        raise BuildError(f"needs Go >= {wanted}: {asked.stderr.strip()}")
    for tool in ("cargo", compiler()[0]):
        if shutil.which(tool) is None:
            raise BuildError(f"needs {tool} for RocksDB: not found on the PATH")


def compiler() -> list[str]:
    """Returns the command of the C++ compiler."""
    return shlex.split(os.environ.get("CXX", "c++"))


def rocksdb_version() -> str:
    """Returns the RocksDB that the crate is locked to; "6.28.2" of "0.6.1+6.28.2"."""
    packages = tomllib.loads((CRATE / "Cargo.lock").read_text())["package"]
    version = next(str(package["version"]) for package in packages if package["name"] == PACKAGE)
    return version.partition("+")[2]


def ensure_rocksdb(target: Path) -> Path:
    """Returns the directory with RocksDB's archives and headers, compiled where it is missing."""
    printed = run([*compiler(), "--version"], CRATE, {})
    # The repository's CPU flags reach this RocksDB as they reach vecmq's own: both compute their
    # checksums in hardware.
    flags = (HERE.parents[2] / ".cargo" / "config.toml").read_text()
    lock = (CRATE / "Cargo.lock").read_text()
    ingredients = [printed.partition("\n")[0], CXXFLAGS, flags, lock]
    key = hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:12]
    kept = target / f"rocksdb-{rocksdb_version()}-{key}"
    if kept.is_dir():
        return kept
    command = ["cargo", "metadata", "--format-version=1", "--locked"]
    packages = json.loads(run(command, CRATE, {}))["packages"]
    manifest = next(found["manifest_path"] for found in packages if found["name"] == PACKAGE)
    sources = Path(manifest).parent
    build_dir = target / "rocksdb-build"
    compile_rocksdb(build_dir, len((sources / "rocksdb_lib_sources.txt").read_text().split()))
    unfinished = kept.with_name(f"{kept.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(sources / "rocksdb" / "include", unfinished / "include")
    for archive in ARCHIVES:
        found = build_dir.glob(f"release/build/*/out/{archive}")
        shutil.copy(max(found, key=lambda path: path.stat().st_mtime), unfinished)
    unfinished.rename(kept)
    shutil.rmtree(build_dir)
    return kept


def compile_rocksdb(build_dir: Path, files: int) -> None:
    """Runs cargo, and says every ten seconds how far it is."""
    name = f"RocksDB {rocksdb_version()} (for Milvus' RocksMQ)"
    build_dir.mkdir(parents=True, exist_ok=True)
    log = build_dir / "cargo.log"
    # Set by vecmq's own build, these would make the crate link another RocksDB.
    own = {"ROCKSDB_LIB_DIR", "ROCKSDB_STATIC", "ROCKSDB_COMPILE", "CARGO_BUILD_TARGET"}
    variables = {key: value for key, value in os.environ.items() if key not in own}
    flags = f"{os.environ.get('CXXFLAGS', '')} {CXXFLAGS}".strip()
    variables |= {"CARGO_TARGET_DIR": str(build_dir), "CXXFLAGS": flags}
    command = ["cargo", "build", "--release", "--locked"]
    started = time.monotonic()
    with log.open("wb") as output:
        cargo = subprocess.Popen(
            command,
            cwd=CRATE,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while cargo.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                cargo.wait(PROGRESS_S)
                break
            done = sum(1 for _ in build_dir.glob(f"release/build/{PACKAGE}-*/out/*.o"))
            elapsed = int(time.monotonic() - started)
            say(f"{name}: {min(done, files)}/{files} C++ files, {elapsed} s; done once")
    finally:
        # cargo alone would leave its compilers running.
        if cargo.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(cargo.pid, signal.SIGKILL)
            cargo.wait()
    if cargo.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        say(tail)
        raise BuildError(f"{name}: `{shlex.join(command)}` failed, see {log}")


def build_worker(target: Path, rocksdb: Path) -> Path:
    """Returns the worker's path, after `go build`."""
    say("milvus-worker: go build")
    worker = target / "milvus-worker"
    command = ["go", "build", "-trimpath", "-buildvcs=false"]
    command += ["-ldflags", f"-s -w -X main.rocksdbVersion={rocksdb_version()}"]
    run([*command, "-o", str(worker), "."], HERE, link_variables(rocksdb))
    return worker


def link_variables(rocksdb: Path) -> dict[str, str]:
    """Returns the variables with which `go build` links RocksDB's archives."""
    libraries = " ".join(f"-l{archive[3:-2]}" for archive in ARCHIVES)
    return {
        "CGO_ENABLED": "1",
        "CGO_CFLAGS": f"-O2 -I{rocksdb / 'include'}",
        "CGO_LDFLAGS": f"-L{rocksdb} {libraries} -lstdc++ -lm -ldl -lpthread",
        # Milvus' binding asks pkg-config for RocksDB; all that it needs is above.
        "PKG_CONFIG": shutil.which("true") or "true",
    }


def linked_versions(worker: Path) -> dict[str, str]:
    """Returns the versions of MODULES that are in the program."""
    lines = run(["go", "version", "-m", str(worker)], HERE, {}).splitlines()
    fields = [line.split() for line in lines]
    return {
        MODULES[field[1]]: field[2].removeprefix("v")
        for field in fields
        if len(field) > 2 and field[0] == "dep" and field[1] in MODULES
    }


def run(command: list[str], directory: Path, variables: dict[str, str]) -> str:
    """Returns what a command prints; a failure becomes a BuildError."""
    done = subprocess.run(
        command,
        check=False,
        cwd=directory,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise BuildError(f"`{shlex.join(command[:2])}` failed with exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1])), indent=1))
