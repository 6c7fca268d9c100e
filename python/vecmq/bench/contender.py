"""Who takes part: the routes of vecmq, and the peers that `make peers` has built."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vecmq._cache import cache_dir
from vecmq.errors import ConfigError

__all__ = ["PEERS", "ROUTES", "Contender", "find_peers", "find_routes"]

ROUTES: Final = ("queue", "nats", "hybrid")
PEERS: Final = (
    "milvus-rocksmq",
    "milvus-natsmq",
    "nats-bench",
    "nats-py",
    "nats-core",
    "natsio",
    "natsrpy",
    "async-nats",
    "rocksdict",
    "rocksq",
    "vectored",
)
MANIFEST_SCHEMA: Final = "vecmq-peers-1"
NOT_BUILT: Final = "not built: run `make peers` in a clone of the repository"


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that speaks the protocol of docs/bench-workers.md.

    Attributes:
        name: Name in the tables.
        command: What starts its worker; empty when it is missing.
        is_route: One of vecmq's own.
        server: A nats-server is started for it.
        workloads: What it can do.
        sizes_max_bytes: Largest message; None: no limit.
        is_verified: Whether it compares what it receives with what was sent.
        versions: Of its parts.
        note: How it is run.
        missing: Why it cannot take part; None: it can.
    """

    name: str
    command: tuple[str, ...] = ()
    is_route: bool = False
    server: bool = False
    workloads: tuple[str, ...] = ("pubsub", "publish", "latency")
    sizes_max_bytes: int | None = None
    is_verified: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""
    missing: str | None = None


def find_routes(names: Sequence[str]) -> list[Contender]:
    """Give vecmq's own contenders.

    Args:
        names: Some of ROUTES, each once.

    Returns:
        Contenders in that order.

    Raises:
        ConfigError: A name is unknown, or there twice.
    """
    _check(names, ROUTES, "routes")
    command = (
        sys.executable,
        *("-W", "ignore:vecmq was built without optimisation"),
        *("-m", "vecmq.bench.worker"),
    )
    return [Contender(name, command, is_route=True) for name in names]


def find_peers(names: Sequence[str]) -> list[Contender]:
    """Give peers; one that cannot run is there all the same and says why.

    Args:
        names: Some of PEERS, each once; ["all"]: all of them.

    Returns:
        Contenders in that order.

    Raises:
        ConfigError: A name is unknown or there twice, or the list of peers cannot be read.
    """
    if list(names) == ["all"]:
        names = PEERS
    _check(names, PEERS, "peers")
    if not names:
        return []
    path = cache_dir() / "peers" / "peers.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return [Contender(name, missing=NOT_BUILT) for name in names]
    except (OSError, ValueError) as error:
        raise ConfigError(f"peers: cannot read {path}: {error}; run `make peers`") from error
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise ConfigError(
            f"peers: expected schema {MANIFEST_SCHEMA} in {path}, "
            f"got {manifest.get('schema')!r}; run `make peers`"
        )
    return [_peer(name, manifest["peers"].get(name)) for name in names]


def _peer(name: str, entry: dict[str, Any] | None) -> Contender:
    if entry is None:
        return Contender(name, missing=NOT_BUILT)
    if "missing" in entry:
        return Contender(name, missing=entry["missing"])
    command = tuple(entry["command"])
    if not os.access(command[0], os.X_OK) or not all(
        part.exists() for part in map(Path, command) if part.is_absolute()
    ):
        return Contender(name, missing="its files are gone: run `make peers` again")
    return Contender(
        name,
        command,
        server=entry.get("server", False),
        workloads=tuple(entry["workloads"]),
        sizes_max_bytes=entry.get("sizes_max_bytes"),
        is_verified=entry.get("verified", True),
        versions=entry.get("versions", {}),
        note=entry.get("note", ""),
    )


def _check(names: Sequence[str], known: Sequence[str], what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"{what}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"{what}: expected each once, got {', '.join(names)}")
