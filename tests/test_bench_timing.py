"""Timing statistics: medians, bootstrap intervals, warm-up, warnings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from planner.bench.device import find_device  # noqa: E402
from planner.bench.timing import FEWEST, Timing, _warm, advice, bootstrap, measure, pooled  # noqa: E402

SAMPLES = st.lists(st.floats(1e-7, 10.0), min_size=1, max_size=60)


@given(SAMPLES)
def test_the_interval_lies_among_the_samples(samples: list[float]) -> None:
    low, high = bootstrap(samples)
    assert min(samples) <= low <= high <= max(samples)
    assert bootstrap(samples) == (low, high)


@given(SAMPLES, st.floats(0.5, 100.0))
def test_the_interval_scales_with_the_unit(samples: list[float], factor: float) -> None:
    low, high = bootstrap(samples)
    scaled = bootstrap([s * factor for s in samples])
    assert scaled == pytest.approx((low * factor, high * factor), rel=1e-9)


@given(st.floats(1e-6, 1.0), st.integers(5, 50))
def test_equal_samples_are_stable(value: float, count: int) -> None:
    timing = Timing((value,) * count)
    assert timing.median_s == value
    assert timing.spread == 0.0
    assert not timing.unstable


@given(st.lists(st.floats(1e-3, 2e-3), min_size=15, max_size=60))
def test_one_outlier_hardly_moves_the_median(samples: list[float]) -> None:
    timing, hit = Timing(tuple(samples)), Timing((*samples, 100.0))
    assert hit.median_s <= 2e-3
    assert abs(hit.median_s - timing.median_s) <= 1e-3


def test_the_interval_covers_the_true_median_most_of_the_time() -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap(rng.lognormal(0.0, 0.3, 25).tolist())
        covered += low <= 1.0 <= high
    assert covered >= 180


def test_rounds_are_pooled() -> None:
    both = pooled([Timing((1.0, 2.0), 0.2), Timing((3.0,), 0.4, steady=False)])
    assert both.samples == (1.0, 2.0, 3.0)
    assert both.disturbed == pytest.approx(0.3)
    assert not both.steady


def test_a_machine_that_wobbles_is_told_how_to_stop() -> None:
    shaky, calm = Timing((1.0, 1.0, 2.0, 2.0, 1.5), 0.6), Timing((1.0,) * 10)
    assert shaky.unstable
    words = advice([shaky, shaky, calm], "cpu")
    assert words is not None
    assert "2 of 3 timings are unstable" in words
    assert "interrupted 40% of samples" in words
    assert "--threads" in words
    assert "lock its clocks" in str(advice([shaky], "cuda"))
    assert advice([calm] * 20, "cpu") is None
    assert advice([], "cpu") is None


def test_warming_up_ends_when_samples_agree() -> None:
    times = iter([9.0, 5.0, 2.0, 1.0, 1.01, 1.02, 0.1])
    assert _warm(lambda: (next(times), False), 1e18)
    assert next(times) == 0.1


def test_warming_up_gives_up_in_time() -> None:
    growing = iter(range(1, 1000))
    assert not _warm(lambda: (float(2 ** next(growing)), False), 0.0)


def test_a_call_is_given_fresh_operands_every_time() -> None:
    seen: list[int] = []
    timing = measure(seen.append, find_device("cpu", 1), 0.01)
    assert seen == list(range(len(seen)))
    assert len(timing.samples) >= FEWEST
    assert timing.mode == "eager"


def test_a_slow_call_is_timed_at_its_length() -> None:
    device = find_device("cpu", 1)
    left = torch.randn(256, 256)

    def work(_: int) -> Any:
        for _ in range(4):
            left @ left

    one = measure(lambda _: left @ left, device, 0.1)
    four = measure(work, device, 0.1)
    assert 2.0 < four.median_s / one.median_s < 8.0
