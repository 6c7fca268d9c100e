"""Builds a worker of `vecmq bench` that is a Rust program; standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any


def build_worker(folder: Path, target: Path, worker: str) -> dict[str, Any]:
    """Builds the program in a folder with a Cargo.toml.

    Args:
        folder: Where its Cargo.toml is.
        target: Directory for everything that is made.
        worker: Name of the program.

    Returns:
        How to start it, as in the list of peers, or why it is missing.
    """
    wanted = read_package(folder)["rust-version"]
    if shutil.which("cargo") is None:
        return {"missing": f"needs Rust >= {wanted}: cargo is not on the PATH"}
    target = target.absolute()
    # With a target platform the program would be elsewhere, and not for this machine.
    variables = {name: text for name, text in os.environ.items() if name != "CARGO_BUILD_TARGET"}
    variables["CARGO_TARGET_DIR"] = str(target)
    command = ["cargo", "build", "--release", "--locked"]
    done = subprocess.run(command, check=False, cwd=folder, env=variables)
    if done.returncode != 0:
        return {"missing": f"`cargo build` failed (needs Rust >= {wanted})"}
    return {"command": [str(target / "release" / worker)]}


def read_package(folder: Path) -> dict[str, Any]:
    """Returns what Cargo.toml says of the package in a folder."""
    package: dict[str, Any] = tomllib.loads((folder / "Cargo.toml").read_text())["package"]
    return package


def locked_version(folder: Path, name: str) -> str:
    """Returns the version of a package in the folder's Cargo.lock."""
    packages = tomllib.loads((folder / "Cargo.lock").read_text())["package"]
    return next(str(package["version"]) for package in packages if package["name"] == name)
