"""How far off times are from published ones: ceilings that may only come down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from planner.report.tables import times_summary, times_table
from planner.verbs import validate_times
from planner.verbs.validate import table_rows
from planner.verbs.validate_times import TimeCheck, left_out, misses, summary, times

CHECKS = times()
BY_ID = {check.id: check for check in CHECKS}
ERRORS = {row.group: row for row in summary(CHECKS)}

# Median and mean absolute error of expected times by source: lower them when predictions get better, never raise them.
CEILINGS = {
    "shazeer2019": (0.173, 0.308),
    "ainslie2023": (0.324, 0.329),
    "pope2022": (0.154, 0.319),
    "gpt-fast": (0.0744, 0.0991),
    "fastertransformer": (0.251, 0.274),
    "tensorrt-llm": (0.110, 0.148),
    "llama.cpp": (0.240, 0.320),
}


NAMES = {
    "shazeer2019": "Shazeer 2019, TPU v2",
    "ainslie2023": "Ainslie et al. 2023, TPU v4",
    "pope2022": "Pope et al. 2022, TPU v4",
    "gpt-fast": "gpt-fast, A100",
    "fastertransformer": "FasterTransformer, A100",
    "tensorrt-llm": "TensorRT-LLM, A100 to H200, L40S",
    "llama.cpp": "llama.cpp, 21 devices",
    "prefill": "*prefill*",
    "decode": "*decode*",
    "total": "*both*",
}
"""Groups as the page beside the table calls them."""
BY_SOURCE = {row.group: row for row in summary(CHECKS) if row.by in ("source", "phase")}
PAGE = Path(__file__).parent.parent / "validation" / "README.md"


def page_rows() -> list[str]:
    """Rows of the page's table, from what is predicted now."""
    found = []
    for group, name in NAMES.items():
        e = BY_SOURCE[group]
        shares = [f"{v:.1%}" for v in (e.ideal_median, e.ideal_mean, e.median, e.mean)]
        cells = [name, str(e.count), *shares, f"{e.bias_error:+.1%}", f"{e.inside:.1%}"]
        found.append("| " + " | ".join(cells).replace("%", " %") + " |")
    return [re.sub(r"-(?=\d+\.\d %)", "−", row) for row in found]


def test_the_page_has_these_errors() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [row for row in page_rows() if row not in page]


@pytest.mark.parametrize("source", CEILINGS)
def test_errors_by_source_only_shrink(source: str) -> None:
    found, (median, mean) = ERRORS[source], CEILINGS[source]
    assert found.median <= median
    assert found.mean <= mean


def test_expected_times_are_nearer_than_ideal_ones() -> None:
    assert set(CEILINGS) == {row.group for row in summary(CHECKS) if row.by == "source"}
    assert all(ERRORS[source].median < ERRORS[source].ideal_median for source in CEILINGS)


def test_every_time_is_listed_and_planned() -> None:
    assert [check.id for check in CHECKS] == [row["id"] for row in table_rows("published_times.csv")]
    assert not [check.reason for check in CHECKS if check.reason]
    assert sum(row.count for row in summary(CHECKS) if row.by == "device") == len(CHECKS) - len(left_out(CHECKS))


def test_what_cannot_be_planned_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    row = table_rows("published_times.csv")[-1] | {"gpu": "h1000"}
    monkeypatch.setattr(validate_times, "table_rows", lambda name: [row])
    (check,) = times()
    assert "h1000" in check.reason
    assert check.error is None
    assert left_out([check]) == (check,)
    assert summary([check]) == ()


def test_nothing_is_faster_than_ideal() -> None:
    """But llama.cpp's prefill, which multiplies 4-bit weights in int8, where kvplan counts 16-bit products."""
    faster = [c for c in CHECKS if (c.ideal_error or 0) > 0 and not c.suspect]
    assert {(c.engine, c.phase) for c in faster} <= {("llama.cpp", "prefill")}
    assert len(faster) <= 15


def measured(name: str) -> float:
    seconds = BY_ID[name].measured_s
    assert seconds is not None
    return seconds


def test_quantities_of_one_run_agree() -> None:
    """Times a token, of a step and of a pass, that the papers print of the same runs."""
    assert measured("shazeer2019-001") == pytest.approx(measured("shazeer2019-017"), rel=0.01)
    assert measured("shazeer2019-002") == pytest.approx(measured("shazeer2019-018"), rel=0.01)
    assert 64 * measured("pope2022-009") == pytest.approx(measured("pope2022-002"), rel=0.01)


def test_a_throughput_becomes_the_time_of_its_run() -> None:
    check = next(c for c in CHECKS if c.quantity == "tokens_per_s" and c.phase == "total")
    assert check.batch
    assert check.output_tokens
    assert measured(check.id) == check.batch * check.output_tokens / check.value


def test_a_batch_that_is_not_printed_is_the_best_that_fits() -> None:
    found = [c for c in CHECKS if c.source_table == "ainslie2023"]
    assert all((c.batch or 0) <= 256 and (c.tensor_parallel or 0) * (c.data_parallel or 0) == 8 for c in found)
    mha, mqa, gqa = (BY_ID[f"ainslie2023-00{i}"].expected_s or 0.0 for i in (2, 3, 4))
    assert mqa < gqa < mha


def test_intervals_hold_what_is_said_to_be_inside() -> None:
    for c in CHECKS:
        assert c.inside == (c.low_s <= c.measured_s <= c.high_s)  # type: ignore[operator]


def factor(check: TimeCheck) -> float:
    ratio = 1 + (check.error or 0.0)
    return max(ratio, 1 / ratio)


def test_misses_come_largest_first_and_so_many_of_each_source() -> None:
    found = misses(CHECKS, 3)
    for source in CEILINGS:
        factors = [factor(c) for c in found if c.source_table == source]
        assert len(factors) == 3
        assert factors == sorted(factors, reverse=True)


def test_tables_hold_every_time_and_every_group() -> None:
    assert len(times_table(CHECKS).rows) == len(CHECKS)
    assert {row["by"] for row in times_summary(CHECKS).rows} == {"source", "phase", "engine", "device"}


if __name__ == "__main__":
    print("\n".join(page_rows()))
