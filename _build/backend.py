"""PEP 517 backend: maturin's hooks with the variables of `environment.py` set before a build.

This is what makes a plain `pip install .` work on a machine without libclang and RocksDB.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import maturin
from maturin import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from environment import BuildError, build_variables, lock_target_dir

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def _set_variables() -> None:
    try:
        os.environ.update(build_variables())
        lock_target_dir()
    except BuildError as error:
        sys.exit(f"vecmq build: {error}")


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Builds a wheel; see PEP 517."""
    _set_variables()
    return str(maturin.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Builds an editable wheel; see PEP 660."""
    _set_variables()
    return str(maturin.build_editable(wheel_directory, config_settings, metadata_directory))
