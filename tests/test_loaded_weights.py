"""Weight bytes against "model loading took X GiB" of engines' start-up logs.

`validation/loaded_weights.csv` holds logs in which model and format are certain, each with its source. What an engine keeps
beyond the checkpoint's weights is named in the column `beyond`. The floors may only move up.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from planner import load_model
from planner.memory import weight_bytes
from planner.precision import find_format
from planner.stage import Sharding, stages_of
from planner.units import GIB

PATH = Path(__file__).parent.parent / "validation" / "loaded_weights.csv"
ROWS = list(csv.DictReader(PATH.read_text(encoding="utf-8").splitlines()))


def error(row: dict[str, str]) -> float:
    """Predicted over reported weights of one rank, less one."""
    model = load_model(row["model"])
    weights = row["weights"] or None
    nbytes = weight_bytes(
        stages_of(model, 1)[0].all_tensors(), model.weight_formats(weights), Sharding(int(row["tensor_parallel"]))
    )
    if row["draft_layers"] and model.drafter:
        nbytes += find_format("bf16").nbytes(model.drafter.parameters)
    return nbytes / GIB / float(row["loaded_gib"]) - 1


def test_three_of_four_are_within_two_per_cent() -> None:
    assert len(ROWS) >= 30
    assert sum(abs(error(r)) <= 0.02 for r in ROWS) / len(ROWS) >= 0.75


@pytest.mark.parametrize("row", ROWS, ids=[f"{r['model']} {r['loaded_gib']}" for r in ROWS])
def test_a_log_agrees_or_says_what_the_engine_keeps_beyond(row: dict[str, str]) -> None:
    assert row["source"]
    off = error(row)
    assert off <= 0.02
    assert (off < -0.02) == bool(row["beyond"])


def report() -> None:
    """Print the table of errors."""
    for row in ROWS:
        print(f"{row['model']:32} TP {row['tensor_parallel']} {row['weights'] or 'released':10} {error(row):+.1%}")


if __name__ == "__main__":
    report()
