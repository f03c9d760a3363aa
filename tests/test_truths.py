"""Configurations against what their models measure: parameters, cache bytes, windows and states.

`validation/model_truths.jsonl` holds, for each model, the keys of its configuration that matter and what was measured with
transformers 5.23: the class was instantiated on meta tensors and its unique parameters counted, and a shrunken copy was run
for real to weigh its cache, in bf16 with recurrent state as the class keeps it. After a window is full transformers holds
one token less between steps than the window spans, so `window_bytes` are those of `window - 1` tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cached import UNBOUNDED
from planner.checkpoint.config import model_of
from planner.memory import CacheCurve, cache_curve
from planner.model import ModelSpec
from planner.precision import find_kv
from planner.row import Source
from planner.stage import stages_of

PATH = Path(__file__).parent.parent / "validation" / "model_truths.jsonl"
TRUTHS: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
TEXT_SOURCE = 512
"""Source tokens that encoder-decoders of text were measured with."""


def imported(truth: dict[str, Any]) -> tuple[ModelSpec, CacheCurve]:
    source = Source(title="config.json", locator=truth["source"], date="2026-11")
    model = model_of(truth["config"], truth["model"], source)
    tokens = model.source_tokens if "Whisper" in truth["architecture"] else TEXT_SOURCE * bool(model.encoder)
    return model, cache_curve(stages_of(model, 1)[0], find_kv("bf16"), 1, tokens)


def test_the_table_is_large_and_of_many_kinds() -> None:
    assert len(TRUTHS) >= 120
    assert len({t["architecture"] for t in TRUTHS}) >= 60
    assert len({t["model"] for t in TRUTHS}) == len(TRUTHS)


@pytest.mark.parametrize("truth", TRUTHS, ids=[t["model"] for t in TRUTHS])
def test_an_import_is_exact(truth: dict[str, Any]) -> None:
    model, curve = imported(truth)
    assert model.total_parameters == truth["parameters"]
    assert model.active_parameters == truth.get("active", model.active_parameters)
    assert curve.growing == truth.get("kv_growing", curve.growing)
    assert curve.saturated == truth.get("kv_saturated", curve.saturated)
    if "kv_saturated" in truth:
        assert curve.fixed == truth.get("state_bytes", 0) + truth.get("cross_bytes", 0)
    if "window_bytes" in truth:
        window = truth["window"]
        held = sum(term.rate * min(term.kept, window) for term in curve.terms if term.kept < UNBOUNDED)
        assert held * (window - 1) in (truth["window_bytes"] * window, truth["window_bytes"] * (window - 1))
