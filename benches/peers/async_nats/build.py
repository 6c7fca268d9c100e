"""Builds the worker of `vecmq bench` that uses async-nats, the Rust client of NATS.

    python build.py DIRECTORY      builds into it, prints the manifest entry

Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAME = "async-nats"
WORKER = "async-nats-worker"


def build(target: Path) -> dict[str, Any]:
    """Builds the worker.

    Args:
        target: Directory for everything that is made.

    Returns:
        The entry of the list of peers.
    """
    wanted = tomllib.loads((HERE / "Cargo.toml").read_text())["package"]["rust-version"]
    if shutil.which("cargo") is None:
        return {NAME: {"missing": f"needs Rust >= {wanted}: cargo is not on the PATH"}}
    target = target.absolute()
    # With a target platform the program would be elsewhere, and not for this machine.
    variables = {name: text for name, text in os.environ.items() if name != "CARGO_BUILD_TARGET"}
    variables["CARGO_TARGET_DIR"] = str(target)
    command = ["cargo", "build", "--release", "--locked"]
    done = subprocess.run(command, check=False, cwd=HERE, env=variables)
    if done.returncode != 0:
        return {NAME: {"missing": f"`cargo build` failed (needs Rust >= {wanted})"}}
    return {
        NAME: {
            "command": [str(target / "release" / WORKER)],
            "versions": {NAME: locked_version()},
            "server": True,
            "workloads": ["pubsub", "publish", "latency"],
            "sizes_max_bytes": 8 << 20,
            "note": "JetStream; publishes with acks in flight; pull consumer, `messages`; one "
            "process, two connections",
        }
    }


def locked_version() -> str:
    """Returns the version of async-nats in Cargo.lock."""
    packages = tomllib.loads((HERE / "Cargo.lock").read_text())["package"]
    return next(str(package["version"]) for package in packages if package["name"] == NAME)


if __name__ == "__main__":
    print(json.dumps(build(Path(sys.argv[1])), indent=1))
