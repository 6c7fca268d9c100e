"""All rows of `make bench-nats`, in the order of the output; each group has a file of its own."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Final

import copy_rows
import core_rows
import cost_rows
import link_rows
import publish_rows
import rust_rows
import small_rows
from compare import Goal, Group

_MODULES: Final = [publish_rows, small_rows, rust_rows, core_rows, cost_rows, copy_rows, link_rows]
# What codecs make of embeddings, on one core and without a server; it has GROUPS and GOALS too.
if find_spec("codec_rows") is not None:
    _MODULES.append(importlib.import_module("codec_rows"))

GROUPS: Final[list[Group]] = [group for module in _MODULES for group in module.GROUPS]
GOALS: Final[dict[str, Goal]] = {
    name: goal for module in _MODULES for name, goal in module.GOALS.items()
}
