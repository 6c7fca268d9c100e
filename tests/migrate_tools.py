"""Helpers of the tests of RocksMQ directories: the fixture, and what has to be in it."""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import vecmq.sync
from vecmq import migrate

FIXTURE = Path(__file__).resolve().parent / "rocksmq"
MANIFEST: dict[str, Any] = json.loads((FIXTURE / "manifest.json").read_text())
# Milvus' retention has deleted the first pages of this one.
RETAINED = "retained"
ORPHAN = "destroyed"
COPIED = sorted(name for name, topic in MANIFEST["topics"].items() if not topic["destroyed"])


def unpack(directory: Path) -> Path:
    """The directory that Milvus wrote, as a copy of one's own."""
    with tarfile.open(FIXTURE / "rocksmq.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    return directory / "rocksmq"


def expected(topic: str) -> list[tuple[int, int, str]]:
    """Id, size and hash of what Milvus holds of a topic, by the manifest it was written with."""
    keys = set(MANIFEST["store_keys"])
    return [
        (one["id"], one["size_bytes"], one["sha256"])
        for one in MANIFEST["topics"][topic]["messages"]
        if f"{topic}/{one['id']}" in keys
    ]


def seen(message_id: int, payload: memoryview) -> tuple[int, int, str]:
    return message_id, len(payload), hashlib.sha256(payload).hexdigest()


def stored(into: Path, topic: str) -> list[tuple[int, int, str]]:
    """What a vecmq topic holds, in order; every message has to be one of an import."""
    found = []
    with (
        vecmq.sync.open(into, mode="queue") as mq,
        mq.subscribe(topic, group=f"check-{random.random()}".replace(".", "")) as subscriber,
    ):
        while batch := subscriber.fetch(timeout_s=0.05):
            found += [seen(int(m.headers[migrate.ID_HEADER]), m.payload) for m in batch]
    return found


def tree(path: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file of both directories: bytes, mode and time of the last change."""
    parts = [path, path.with_name(path.name + "_meta_kv")]
    files = {one for part in parts for one in [part, *part.rglob("*")]}
    return {
        str(file): (
            file.read_bytes() if file.is_file() else b"",
            file.stat().st_mode,
            file.stat().st_mtime_ns,
        )
        for file in files
    }


def table(directory: Path) -> Path:
    """The largest table of a database."""
    return max(directory.glob("*.sst"), key=lambda file: file.stat().st_size)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)
