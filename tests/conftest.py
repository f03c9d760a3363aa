"""Hypothesis runs the same examples everywhere, and no test sees what the user has measured."""

from __future__ import annotations

import os
import tempfile

from hypothesis import HealthCheck, settings

settings.register_profile(
    "kvplan", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kvplan")

_data = tempfile.TemporaryDirectory(prefix="kvplan-tests-")  # removed when this process ends
os.environ["KVPLAN_DATA"] = _data.name
"""Where profiles are looked for, by processes that tests start too."""
