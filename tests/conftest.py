"""What all Python tests share: one real nats-server, fresh directories, Hypothesis profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vecmq.server import EmbeddedServer

# No deadline: a loaded machine is not a failure. `make test-slow` takes the slow profile.
settings.register_profile("fast", max_examples=50, deadline=None)
settings.register_profile(
    "slow", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("VECMQ_HYPOTHESIS", "fast"))


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL, token included, of a real nats-server; without one the tests fail, they do not skip."""
    with EmbeddedServer(tmp_path_factory.mktemp("nats")) as server:
        yield server.url


@pytest.fixture
def queue_dir(tmp_path: Path) -> Path:
    """Path of a queue directory that does not exist yet."""
    return tmp_path / "queue"
