"""What all Python tests share: Hypothesis profiles."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadline: a loaded machine is not a failure. `make test-slow` takes the slow profile.
settings.register_profile("fast", max_examples=50, deadline=None)
settings.register_profile(
    "slow", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("VECMQ_HYPOTHESIS", "fast"))
