"""What `import vecmq` does not do. How long it takes is for the benchmarks to say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

REPORT = """
import json, os, sys
import {module}
print(json.dumps([sorted(sys.modules), len(os.listdir("/proc/self/task"))]))
"""


def imported(module: str) -> tuple[set[str], int]:
    """Imports a module in a fresh interpreter; returns sys.modules and the number of threads."""
    command = [sys.executable, "-W", "error", "-c", REPORT.format(module=module)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    modules, threads = json.loads(done.stdout)
    return {name.partition(".")[0] for name in modules}, threads


@pytest.mark.parametrize("module", ["vecmq", "vecmq.sync"])
def test_import_is_light(module: str) -> None:
    modules, threads = imported(module)
    heavy = {"numpy", "nats", "cyclopts", "rich", "yaml", "msgspec", "psutil", "sklearn", "pyarrow"}
    assert not modules & heavy
    assert threads == 1, "a thread before the first handle"
