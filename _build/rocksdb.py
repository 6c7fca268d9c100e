"""Compiles RocksDB once per machine and keeps the archive in the user's cache.

The C++ takes about half an hour of processor time, and cargo would start it again whenever a change
of vecmq's own dependencies re-keys librocksdb-sys. So a crate of its own (`_build/rocksdb`) builds
librocksdb.a, it is kept under a key of everything that went into it, and every build of vecmq
links it through ROCKSDB_LIB_DIR. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from collections.abc import Iterator
from pathlib import Path

import environment
from environment import ROOT, BuildError

CRATE = ROOT / "_build" / "rocksdb"
PACKAGE = "librocksdb-sys"
ARCHIVE = "librocksdb.a"
PROGRESS_S = 10.0
LOG_LINES = 40


def say(text: str) -> None:
    """Prints one line of progress at once; standard output belongs to the caller."""
    print(text, file=sys.stderr, flush=True)


def locked_version() -> str:
    """Returns the version of librocksdb-sys that the crate is locked to, "0.19.0+11.8.1"."""
    packages = tomllib.loads((CRATE / "Cargo.lock").read_text())["package"]
    return next(str(package["version"]) for package in packages if package["name"] == PACKAGE)


def first_line(*command: str) -> str:
    """Returns the first line that a command prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.partition("\n")[0]


def target_triple() -> str:
    """Returns what is compiled for."""
    chosen = os.environ.get("CARGO_BUILD_TARGET")
    if chosen:
        return chosen
    printed = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return next(line.split()[1] for line in printed.splitlines() if line.startswith("host:"))


def key() -> str:
    """Returns a short hash of everything that decides what the archive contains."""
    flags = ("CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CXXFLAGS", "ROCKSDB_CXX_STD")
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    ingredients = [
        (CRATE / "Cargo.toml").read_text(),
        (CRATE / "Cargo.lock").read_text(),
        (ROOT / ".cargo" / "config.toml").read_text(),
        *(f"{name}={os.environ.get(name, '')}" for name in flags),
        first_line(*compiler, "--version"),
        target_triple(),
    ]
    return hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:12]


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """Ends cargo with the compilers it started; cargo alone would leave them running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def run_logged(command: list[str], variables: dict[str, str], log: Path, progress: Progress) -> int:
    """Runs cargo in a process group of its own; whatever ends this process ends the group too."""

    def stop(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    handled = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
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
            while True:
                try:
                    return cargo.wait(PROGRESS_S)
                except subprocess.TimeoutExpired:
                    say(progress.line())
        finally:
            if cargo.poll() is None:
                end_group(cargo)
    finally:
        for number, previous in handled.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; two builds at once must not compile the same C++ twice."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"RocksDB: another build is at it, waiting for {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def count_sources() -> int:
    """Returns how many C++ files RocksDB has; downloads the crate when it is not there yet."""
    command = ["cargo", "metadata", "--format-version=1", "--locked"]
    printed = subprocess.run(command, cwd=CRATE, check=True, stdout=subprocess.PIPE).stdout
    packages = json.loads(printed)["packages"]
    manifest = next(found["manifest_path"] for found in packages if found["name"] == PACKAGE)
    return len(Path(manifest).with_name("rocksdb_lib_sources.txt").read_text().split())


def clock(seconds: float) -> str:
    """Formats a time as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Says every ten seconds how far the C++ is, from the object files that lie there."""

    def __init__(self, name: str, build_dir: Path, total: int, kept_in: Path) -> None:
        self.name = name
        self.build_dir = build_dir
        self.total = total
        self.kept_in = kept_in
        self.started = time.monotonic()
        self.compiling_since: float | None = None

    def objects(self) -> int:
        """Counts the object files of RocksDB itself, not those of zstd and lz4."""
        pattern = f"**/build/{PACKAGE}-*/out/*.o"
        since = time.time() - (time.monotonic() - self.started) - 1
        count = 0
        for path in self.build_dir.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                count += path.stat().st_mtime >= since
        return count

    def line(self) -> str:
        """Returns the line to print now."""
        now = time.monotonic()
        elapsed = clock(now - self.started)
        done = self.objects()
        if not done:
            return f"{self.name}: building the Rust tools it needs, {elapsed} elapsed"
        self.compiling_since = self.compiling_since or now - PROGRESS_S
        left = (now - self.compiling_since) / done * max(0, self.total - done)
        return (
            f"{self.name}: {done}/{self.total} C++ files, {elapsed} elapsed, about {clock(left)} "
            f"left; done once, kept in {self.kept_in}"
        )


def compile_archive(build_dir: Path, kept_in: Path) -> Path:
    """Runs cargo with visible progress.

    Args:
        build_dir: cargo's target directory.
        kept_in: Where the archive will lie; for the progress lines.

    Returns:
        The finished archive inside the build directory.

    Raises:
        BuildError: cargo failed; the message ends with the last lines of its log.
    """
    name = f"RocksDB {locked_version().partition('+')[2]}"
    progress = Progress(name, build_dir, count_sources(), kept_in)
    build_dir.mkdir(parents=True, exist_ok=True)
    log_path = build_dir / "cargo.log"
    unlinked = {"ROCKSDB_LIB_DIR", "ROCKSDB_STATIC", "ROCKSDB_COMPILE"}
    variables = {name: value for name, value in os.environ.items() if name not in unlinked}
    variables |= environment.bindgen_variables() | {"CARGO_TARGET_DIR": str(build_dir)}
    command = ["cargo", "build", "--release", "--locked"]
    say(f"{name}: {progress.total} C++ files to compile with {os.cpu_count()} processors")
    code = run_logged(command, variables, log_path, progress)
    found = list(build_dir.glob(f"**/build/{PACKAGE}-*/out/{ARCHIVE}"))
    if code != 0 or not found:
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise BuildError(f"{name}: `{shlex.join(command)}` failed ({code}); its log:\n{tail}")
    say(f"{name}: done in {clock(time.monotonic() - progress.started)}")
    return max(found, key=lambda path: path.stat().st_mtime)


def ensure_archive(cache: Path) -> Path:
    """Returns the directory with librocksdb.a, after compiling it where it is missing.

    Args:
        cache: The cache directory; see `environment.cache_dir`.

    Returns:
        <cache>/rocksdb/<version>-<key>, a value for ROCKSDB_LIB_DIR.

    Raises:
        BuildError: cargo failed; the message ends with the last lines of its log.
    """
    kept = cache / "rocksdb" / f"{locked_version()}-{key()}"
    if (kept / ARCHIVE).is_file():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with file_lock(cache / "rocksdb.lock"):
        if (kept / ARCHIVE).is_file():
            return kept
        build_dir = cache / "rocksdb-build"
        built = compile_archive(build_dir, kept)
        unfinished = kept.with_name(f"{kept.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        shutil.copyfile(built, unfinished / ARCHIVE)
        unfinished.rename(kept)
        shutil.rmtree(build_dir, ignore_errors=True)
    return kept


if __name__ == "__main__":
    try:
        environment.require_tools()
        print(ensure_archive(environment.cache_dir()))
    except BuildError as error:
        sys.exit(f"vecmq build: {error}")
