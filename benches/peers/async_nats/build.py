"""Builds the worker of `vecmq bench` that uses async-nats, the Rust client of NATS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cargo_worker import build_worker, locked_version

HERE = Path(__file__).resolve().parent
NAME = "async-nats"


def build(target: Path) -> dict[str, Any]:
    """Builds the worker.

    Args:
        target: Directory for everything that is made.

    Returns:
        The entry of the list of peers.
    """
    entry = build_worker(HERE, target, "async-nats-worker")
    if "missing" not in entry:
        entry |= {
            "versions": {NAME: locked_version(HERE, NAME)},
            "server": True,
            "workloads": ["pubsub", "publish", "latency"],
            "sizes_max_bytes": 8 << 20,
            "note": "JetStream; publishes with acks in flight; pull consumer, `messages`; one "
            "process, two connections",
        }
    return {NAME: entry}
