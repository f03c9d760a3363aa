"""Weight bytes against "model loading took X GiB" of engines' start-up logs.

`validation/loaded_weights.csv` holds logs in which model and format are certain, each with its source. What an engine keeps
beyond what its profile says is named in the column `beyond`. The floors may only move up.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from planner import KvplanError, load_gpu, load_model
from planner.precision import find_format
from planner.settle import deploy
from planner.units import GIB

PATH = Path(__file__).parent.parent / "validation" / "loaded_weights.csv"
ROWS = list(csv.DictReader(PATH.read_text(encoding="utf-8").splitlines()))


def error(row: dict[str, str]) -> float:
    """Predicted over reported weights of one rank, with what the engine holds beyond the checkpoint, less one."""
    try:
        gpu = load_gpu(row["gpu"])
    except KvplanError:
        gpu = load_gpu("h100")
    engine = f"vllm@{row['version']}" if row["version"] else "vllm@0.19"
    d = deploy(
        load_model(row["model"]), gpu, context=128, tp=int(row["tensor_parallel"]), weights=row["weights"] or None,
        engine=engine if row["engine"] == "vllm" else row["engine"], pad_heads=True,
    )  # fmt: skip
    nbytes = d.stage_weight_bytes[0]
    if row["draft_layers"] and d.model.drafter:
        nbytes += find_format("bf16").nbytes(d.model.drafter.parameters)
    return nbytes / GIB / float(row["loaded_gib"]) - 1


def test_four_of_five_are_within_two_per_cent() -> None:
    assert len(ROWS) >= 30
    assert sum(abs(error(r)) <= 0.02 for r in ROWS) / len(ROWS) >= 0.8


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
