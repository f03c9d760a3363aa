"""The profile in validation/: what the page beside it says of it is what it holds."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from planner import plan
from planner.bench.layers import Shape
from planner.bench.profile import Profile, load
from planner.bench.report import operator_table
from planner.bench.summary import error_rows, ratios
from planner.report.data import write_csv

FOLDER = Path(__file__).parent.parent / "validation"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
KEPT = FOLDER / "bench_cpu.json"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load(KEPT)


def error_lines(profile: Profile) -> list[str]:
    """Errors at shapes that were not fitted, as the page has them."""
    rows = [(e.what, e.count, e.median, e.mean, e.earlier_median or 0.0) for e in error_rows(profile)]
    return [f"| {what} | {count} | {a:.1%} | {b:.1%} | {c:.0%} |".replace("%", " %") for what, count, a, b, c in rows]


def ratio_lines(profile: Profile) -> list[str]:
    """Attention variants at batches and contexts where all three were measured, as the page has them."""
    medians: dict[tuple[int, int], dict[str, float]] = {}
    for m in profile.measured:
        if m.kind == "decode-attention":
            shape = m.parts[0].shape
            medians.setdefault((int(shape["batch"]), int(shape["context"])), {})[m.operator.split()[1]] = (
                m.median_s * 1e3
            )
    by_point: dict[tuple[int, int], list[str]] = {}
    for r in ratios(profile):
        by_point.setdefault((r.batch, r.context), []).append(f"{r.measured:.2f} / {r.predicted or 0:.2f}")
    return [
        f"| {b} × {c:,} | " + " | ".join([*(f"{medians[b, c][v]:.3g}" for v in ("MHA", "GQA-8", "MQA")), *both]) + " |"
        for (b, c), both in by_point.items()
    ]


def plan_lines(profile: Profile) -> list[str]:
    """The small model's decode loop, as plans with the profile expect it."""
    lines = []
    for m in profile.measured:
        if m.operator == "decode loop":
            attention = next(p for p in m.parts if p.kind == "decode-attention")
            batch, context = int(attention.shape["batch"]), int(attention.shape["context"])
            step = plan(
                Shape.of(m.parts).spec(), KEPT, batch=batch, context=context, weights="bf16", kv="bf16", engine="none"
            ).decode.step_s
            lines.append(
                f"| {batch} × {context:,} | {m.median_s * 1e3:.1f} | {step * 1e3:.1f} | {step / m.median_s - 1:+.1%} |"
            )
    return [line.replace("%", " %").replace("-", "−") for line in lines]


def test_the_page_has_its_figures(profile: Profile) -> None:
    for line in (*error_lines(profile), *ratio_lines(profile), *plan_lines(profile)):
        assert line in PAGE, line
    exact = sum(c.predicted_bytes == c.tensor_bytes for c in profile.memory)
    assert f"{exact} of {len(profile.memory)} caches" in PAGE
    assert profile.repeat_difference is not None
    assert f"{profile.repeat_difference:.1%}".replace("%", " %") in PAGE


def test_batches_are_those_predicted(profile: Profile) -> None:
    for b in profile.batches:
        assert abs(b.predicted - b.measured) <= 1
        assert f"{b.variant} {b.predicted:,} of {b.measured:,}" in PAGE


def test_the_table_is_the_profiles(profile: Profile) -> None:
    shown = io.StringIO()
    write_csv(operator_table(profile), shown)
    ours, kept = (
        list(csv.DictReader(io.StringIO(text))) for text in (shown.getvalue(), (FOLDER / "bench_cpu.csv").read_text())
    )
    assert [(r["operator"], r["shape"], r["measured_s"]) for r in ours] == [
        (r["operator"], r["shape"], r["measured_s"]) for r in kept
    ]


def test_it_is_small() -> None:
    assert KEPT.stat().st_size < 500_000
    assert {p.name for p in FOLDER.glob("bench_*")} == {"bench_cpu.json", "bench_cpu.csv"}


if __name__ == "__main__":
    found = load(KEPT)
    print("\n".join((*error_lines(found), "", *ratio_lines(found), "", *plan_lines(found))))
