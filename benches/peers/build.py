"""Builds the peers of `vecmq bench` and writes the list of them: `make peers`.

    python benches/peers/build.py [NAME...] [--list]

A name is a folder here or a peer in it, and chooses the folder; without names all are built. What
cannot be built is in the list too and says why; then the exit code is 1. docs/bench-workers.md
describes the list. Python 3.11, standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
SCHEMA = "vecmq-peers-1"
# Folders with a build.py, and the peers in them, in the order of the tables.
FOLDERS = {
    "milvus": ("milvus-rocksmq", "milvus-natsmq"),
    "natscli": ("nats-bench",),
    "python": ("nats-py", "nats-core", "natsio", "natsrpy", "rocksdict", "rocksq"),
    "async_nats": ("async-nats",),
    "vectored": ("vectored",),
}
# From the quickest to the slowest: what can fail early fails early.
BUILD_ORDER = ("python", "natscli", "vectored", "async_nats", "milvus")

Entries = dict[str, dict[str, Any]]


def main(arguments: Sequence[str]) -> int:
    """Builds peers, or lists them.

    Args:
        arguments: Of the command line.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description="Builds the peers of `vecmq bench`.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a peer, or a folder of peers")
    parser.add_argument("--list", action="store_true", help="show what is built, build nothing")
    options = parser.parse_args(arguments)
    known = {*FOLDERS, *(name for names in FOLDERS.values() for name in names)}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"expected some of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    peers_dir = find_peers_dir()
    if options.list:
        show(read_list(peers_dir))
        return 0
    peers_dir.mkdir(parents=True, exist_ok=True)
    failed = []
    with locked(peers_dir):
        for folder in BUILD_ORDER:
            if options.names and not {folder, *FOLDERS[folder]} & set(options.names):
                continue
            entries = build_folder(folder, peers_dir / folder)
            failed += [name for name, entry in entries.items() if "missing" in entry]
            # After each folder: what is built counts even when the next one is interrupted.
            write_list(peers_dir, read_list(peers_dir) | entries)
    if failed:
        say(f"MISSING: {', '.join(failed)}; the others can be used")
    return 1 if failed else 0


def build_folder(folder: str, target: Path) -> Entries:
    """Builds the peers of a folder.

    Args:
        folder: One of FOLDERS.
        target: Directory for what is made.

    Returns:
        An entry for each peer of the folder.
    """
    names = FOLDERS[folder]
    say(f"{folder}: building {', '.join(names)}")
    started = time.monotonic()
    try:
        built: Entries = load(folder).build(target)
    except Exception as error:  # noqa: BLE001, one peer must not stop the others
        built = {name: {"missing": f"{type(error).__name__}: {error}"} for name in names}
    elapsed = f"{time.monotonic() - started:.1f} s"
    unnamed = {"missing": f"the build of {folder} does not tell of it"}
    entries = {name: built.get(name, unnamed) for name in names}
    for name, entry in entries.items():
        if "missing" in entry:
            say(f"FAILED: {name}: {entry['missing']} ({elapsed})")
        else:
            versions = ", ".join(f"{key} {value}" for key, value in entry["versions"].items())
            say(f"{name}: ready, {versions} ({elapsed})")
    return entries


def load(folder: str) -> ModuleType:
    """Imports a folder's build.py, which is no package."""
    return load_file(f"build_{folder}", HERE / folder / "build.py")


def load_file(name: str, path: Path) -> ModuleType:
    """Imports a file.

    Args:
        name: Name of the module.
        path: The file.

    Returns:
        The module.

    Raises:
        FileNotFoundError: There is no such file.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the names in annotations.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def find_peers_dir() -> Path:
    """Returns the directory of the list, in the cache that vecmq's own build uses."""
    environment = load_file("environment", HERE.parents[1] / "_build" / "environment.py")
    cache: Path = environment.cache_dir()
    return cache / "peers"


@contextmanager
def locked(peers_dir: Path) -> Iterator[None]:
    """Waits until no other process builds into the same directory."""
    with open(peers_dir / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_list(peers_dir: Path) -> Entries:
    """Returns the peers that were built before; none where the list is not there or another."""
    try:
        manifest = json.loads((peers_dir / "peers.json").read_text())
    except (OSError, ValueError):
        return {}
    found: Entries = manifest.get("peers", {}) if manifest.get("schema") == SCHEMA else {}
    return found


def write_list(peers_dir: Path, entries: Entries) -> None:
    """Replaces the list in one step, in the order of the tables."""
    order = [name for names in FOLDERS.values() for name in names]
    sorted_entries = {name: entries[name] for name in order if name in entries}
    manifest = {"schema": SCHEMA, "peers": sorted_entries}
    unfinished = peers_dir / f"peers.json.{os.getpid()}"
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n")
    unfinished.replace(peers_dir / "peers.json")


def show(entries: Entries) -> None:
    """Prints a line for each peer."""
    for folder, names in FOLDERS.items():
        for name in names:
            entry = entries.get(name, {"missing": "not built"})
            if "missing" in entry:
                state = f"missing: {entry['missing']}"
            else:
                state = ", ".join(f"{key} {value}" for key, value in entry["versions"].items())
            print(f"{name:15} {folder:11} {state}")


def say(text: str) -> None:
    """Prints one line of progress at once."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
