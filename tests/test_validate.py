"""How far off capacity predictions are on engines' start-up logs: floors that may only move up."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from planner import load_gpu, load_model
from planner.engine import load_engine
from planner.precision import find_kv
from planner.report.tables import capacity_summary, capacity_table
from planner.settle import deploy
from planner.verbs.validate import capacity, errors, misses, summary

PATH = Path(__file__).parent.parent / "validation" / "engine_logs.csv"
ROWS = list(csv.DictReader(PATH.read_text(encoding="utf-8").splitlines()))
CHECKS = capacity()


def share(found: list[float], within: float) -> float:
    return sum(e <= within for e in found) / len(found)


def test_bytes_a_token_are_what_logs_imply() -> None:
    """Floors: raise them when predictions get better, never lower them."""
    assert share(errors(CHECKS, "token_bytes", kind="dense"), 0.005) >= 0.96
    assert share(errors(CHECKS, "token_bytes"), 0.005) >= 0.86
    assert share(errors(CHECKS, "token_bytes", certain=True), 0.005) >= 0.98


def test_tokens_from_scratch_are_what_logs_print() -> None:
    """Floors: raise them when predictions get better, never lower them."""
    found = errors(CHECKS, "tokens")
    assert len(found) >= 48
    assert found[len(found) // 2] <= 0.018
    assert share(found, 0.12) >= 0.86


def test_every_log_is_used_and_none_is_dropped_silently() -> None:
    assert len(ROWS) >= 200
    assert [check.id for check in CHECKS] == [row["id"] for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_every_log_names_what_the_catalogue_has(row: dict[str, str]) -> None:
    assert row["source"]
    assert load_model(row["model"]).weight_formats(row["weights"] or None)
    assert load_engine(row["engine"])
    assert not row["gpu"] or load_gpu(row["gpu"])
    assert not row["kv"] or find_kv(row["kv"])


ACTIVATIONS = list(csv.DictReader((PATH.parent / "activations.csv").read_text(encoding="utf-8").splitlines()))


def test_activation_peaks_are_what_vllm_printed() -> None:
    """Floors: raise them when predictions get better, never lower them."""
    found = []
    for row in ACTIVATIONS:
        d = deploy(
            load_model(row["model"]), row["gpu"], context=int(row["context"]), tp=int(row["tensor_parallel"]),
            engine=f"vllm@{row['version']}", pad_heads=True,
        )  # fmt: skip
        found.append(abs(d.activation_bytes / 2**30 / float(row["activation_gib"]) - 1))
    assert len(found) >= 30
    assert sorted(found)[len(found) // 2] <= 0.015
    assert share(found, 0.03) >= 0.8


def test_misses_come_largest_first() -> None:
    found = misses(CHECKS, "tokens", 0.12)
    sizes = [abs(check.tokens_error or 0) for check in found]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size > 0.12 for size in sizes)


def test_tables_hold_every_log_and_every_kind() -> None:
    assert len(capacity_table(CHECKS).rows) == len(CHECKS)
    rows = summary(CHECKS)
    assert {row.logs for row in rows} >= {"all", "dense", "hybrid", "vllm", "sglang"}
    assert all(0 <= row.median <= row.p90 <= row.worst for row in rows)
    assert len(capacity_summary(CHECKS).shown()) == len(rows)
