"""What all Python tests share: Hypothesis profiles, Ctrl-C, no process left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, settings

from cluster_tools import shared_pids

# No deadline: a loaded machine is not a failure. `make test-slow` takes the slow profile.
settings.register_profile("fast", max_examples=50, deadline=None)
settings.register_profile(
    "slow", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("VECMQ_HYPOTHESIS", "fast"))

# A shell without job control starts what runs in its background with SIGINT ignored, and children
# inherit that: tests that send Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """End what a failed test left running, lest the tests after it fail too."""
    own = psutil.Process()
    before = own.children()
    yield
    for child in own.children():
        if child not in before and child.pid not in shared_pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*child.children(recursive=True), child]:
                    process.kill()
                child.wait(10)
