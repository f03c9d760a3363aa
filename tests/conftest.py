"""Hypothesis runs the same examples everywhere, so that a failure on one machine is one on all."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "kvplan", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kvplan")
