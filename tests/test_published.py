"""Published capacities against kvplan: the table in validation/ is recomputed, and its errors may only shrink."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from planner import load_model, plan

FOLDER = Path(__file__).parent.parent / "validation"
ROWS = list(csv.DictReader((FOLDER / "published_capacities.csv").read_text(encoding="utf-8").splitlines()))
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")

# Within 5 %, but for OPT-66B: 5.2 % at the share of memory that the other two imply (validation/README.md).
ALLOWED = {"opt-66b": 0.053}


@pytest.mark.parametrize("row", ROWS, ids=[f"{r['model']} {r['attention']} {r['kv_shard']} {r['batch']}" for r in ROWS])
def test_published_capacity(row: dict[str, str]) -> None:
    model = load_model(row["model"])
    if row["attention"]:
        model = model.with_attention(row["attention"], head_dim=int(row["head_dim"]) if row["head_dim"] else None)
    share, _, of = row["budget"].partition("% of ")
    fraction = float(share) / 100
    answer = plan(
        model,
        row["gpu"],
        tp=int(row["tensor_parallel"]),
        weights=row["weights"],
        kv=row["kv"],
        batch=int(row["batch"]),
        context=2048,
        engine="none",
        kv_shard=row["kv_shard"],
        pad_heads=True,
        memory_fraction=fraction if of == "usable" else None,
        kv_memory=None if of == "usable" else int(fraction * 2**30 * float(of.removesuffix(" GiB"))),
    )
    predicted = getattr(answer.memory, row["quantity"])
    published = float(row["published"])
    error = predicted / published - 1
    assert abs(error) <= ALLOWED.get(row["model"], 0.05)
    shown = f"| {published:,.0f} | {predicted:,} | {error * 100:+.1f} % |".replace("| -", "| −")
    assert shown in PAGE
