"""Builds the worker of `vecmq bench` that speaks bare NATS: the floor under every client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cargo_worker import build_worker, read_package

HERE = Path(__file__).resolve().parent
NAME = "vectored"


def build(target: Path) -> dict[str, Any]:
    """Builds the worker.

    Args:
        target: Directory for everything that is made.

    Returns:
        The entry of the list of peers.
    """
    entry = build_worker(HERE, target, "vectored-worker")
    if "missing" not in entry:
        entry |= {
            "versions": {NAME: read_package(HERE)["version"]},
            "server": True,
            "workloads": ["pubsub", "publish"],
            "sizes_max_bytes": 8 << 20,
            "note": "no client library but a floor: blocking sockets, header and payload in one "
            "writev, acks in flight; push consumer that acknowledges nothing; one process, "
            "two connections",
        }
    return {NAME: entry}
