"""Builds natscli, whose `nats bench` NATS users know, as a peer of `vecmq bench`.

    python build.py DIRECTORY      builds into it, prints the manifest entry

Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parent / "worker.py"
MODULE = "github.com/nats-io/natscli"
VERSION = "v0.5.1"
GO_WANTED = "needs Go >= 1.26"
NAME = "nats-bench"


def build(target: Path) -> dict[str, Any]:
    """Builds natscli.

    Args:
        target: Directory for everything that is made.

    Returns:
        The entry of the list of peers.
    """
    if shutil.which("go") is None:
        return {NAME: {"missing": f"{GO_WANTED}: not found on the PATH"}}
    target = target.absolute()
    target.mkdir(parents=True, exist_ok=True)
    binary = target / "nats"
    if linked_version(binary) != VERSION:
        print(f"natscli {VERSION}: go install", file=sys.stderr, flush=True)
        # go refuses GOBIN for another platform than this one.
        foreign = ("GOOS", "GOARCH")
        variables = {name: text for name, text in os.environ.items() if name not in foreign}
        command = ["go", "install", "-trimpath", "-ldflags", "-s -w", f"{MODULE}/nats@{VERSION}"]
        done = subprocess.run(command, check=False, env=variables | {"GOBIN": str(target)})
        if done.returncode != 0:
            return {NAME: {"missing": f"`go install` failed ({GO_WANTED})"}}
    # Beside the program: the list outlives the clone that it was made from.
    worker = Path(shutil.copy(WORKER, target / "worker.py"))
    return {
        NAME: {
            "command": [sys.executable, str(worker), str(binary)],
            "versions": {"natscli": linked_version(binary).removeprefix("v")},
            "server": True,
            "workloads": ["pubsub", "publish"],
            "sizes_max_bytes": 8 << 20,
            "verified": False,
            "note": "`nats bench js pub fast` and `consume`; one payload for all messages of an "
            "operation, one size, not verified",
        }
    }


def linked_version(binary: Path) -> str:
    """Returns natscli's version in a program; "" when there is none."""
    command = ["go", "version", "-m", str(binary)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    fields = [line.split() for line in done.stdout.splitlines()]
    return next((field[2] for field in fields if field[:2] == ["mod", MODULE]), "")


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1])), indent=1))
