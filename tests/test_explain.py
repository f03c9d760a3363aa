"""Every explained figure: its substituted line, evaluated as arithmetic, gives the figure of the plan."""

from __future__ import annotations

from typing import Any

import pytest

from planner import UnknownNameError, explain, plan
from planner.verbs.explain import quantities

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama3-70b", "4xh100", {"batch": 16}),
    ("llama3-70b", "1xh100", {"batch": 3}),
    ("llama3-70b", "8xa100", {"tp": 2, "pp": 4, "batch": 7, "context": 5001, "weights": "fp8", "kv": "fp8"}),
    ("gemma3-27b", "h100", {"context": 30_000, "batch": 4, "engine": "none"}),
    ("mistral-7b-v0.1", "l4", {"context": 20_000, "batch": 2}),
    ("deepseek-v3", "8xh200", {"batch": 64}),
    ("mixtral-8x7b", "2xmi300x", {"batch": 9}),
    ("gpt-oss-120b", "h100", {"batch": 5, "kv_memory": 2**30}),
    ("flan-t5-xxl", "a100", {"batch": 8, "context": 300, "source": 400}),
    ("palm-540b", "64xtpu-v4", {"tp": 16, "pp": 4, "kv_shard": "batch", "batch": 100, "engine": "none"}),
    ("llama2-7b", "apple-m2-ultra", {"attention": "mqa"}),
    ("qwen3.5-27b", "2xh100", {"batch": 7, "context": 5001, "engine": "none"}),
    ("mamba2-2.7b", "l4", {"batch": 3}),
    ("deepseek-v4-pro", "16xb200", {"batch": 5, "context": 50_001}),
    ("deepseek-v3.2", "8xh200", {"batch": 9, "context": 30_000}),
    ("gemma3n-e4b", "l4", {"batch": 2, "context": 3000}),
    ("llama3-8b", "l4", {"batch": 4, "kv": "int8:q4_0", "weights": "q4_k_m"}),
]


@pytest.mark.parametrize("quantity", quantities())
@pytest.mark.parametrize(("model", "gpu", "options"), CASES, ids=[f"{m} on {g}" for m, g, _ in CASES])
def test_the_arithmetic_is_the_figure(model: str, gpu: str, options: dict[str, Any], quantity: str) -> None:
    e = explain(model, gpu, quantity, **options)
    value = eval(e.substituted, {"__builtins__": {"min": min, "max": max, "int": int}})
    if e.result is None:
        assert value is None
    elif e.unit in ("s", "tokens/s", "FLOP/B"):
        assert value == pytest.approx(e.result, rel=1e-5)
    else:
        assert value == e.result
    assert e.sources
    assert e.formula


def test_every_figure_of_memory_is_explained() -> None:
    """What is not explained is an input, a flag or a difference of two figures that are."""
    named = set(quantities())
    memory = set(plan("llama3-70b", "4xh100").memory.to_dict())
    assert memory - named == {"fullest_gpu", "fits", "state_slots"}


def test_sections_may_be_named_or_left_out() -> None:
    assert explain("llama3-70b", "h100", "decode.step_s") == explain("llama3-70b", "h100", "step_s")


def test_an_unknown_quantity_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean kv_bytes_per_token"):
        explain("llama3-70b", "h100", "kv_byte_per_token")
