"""Prefill of several prompts at once, by counting."""

from __future__ import annotations

import pytest

from planner import load_model
from planner.evaluate import prefill_times
from planner.precision import find_kv
from planner.settle import deploy
from planner.stage import Sharding, stages_of
from planner.work import Operator, Precision, prefill_work


def work(model_id: str, tokens: float, sequences: float, sharding: Sharding | None = None) -> list[Operator]:
    model = load_model(model_id)
    precision = Precision(model.weight_formats(), find_kv("bf16"))
    stage = stages_of(model, 1)[0]
    return prefill_work(model, stage, precision, sharding or Sharding(), tokens, model.source_tokens, sequences)


@pytest.mark.parametrize("model", ["llama3-8b", "mixtral-8x7b", "mamba2-2.7b", "t5-xxl", "gemma3-27b"])
def test_each_prompt_attends_to_itself_and_weights_are_read_once(model: str) -> None:
    for one, many in zip(work(model, 300, 1), work(model, 300, 7), strict=True):
        assert many.flops == pytest.approx(7 * one.flops)
        assert many.cache_bytes == pytest.approx(7 * one.cache_bytes)
        if one.name not in ("embedding", "experts"):
            assert many.weight_bytes == one.weight_bytes


def test_several_prompts_are_less_attention_than_one_as_long() -> None:
    together, joined = work("llama3-8b", 512, 4), work("llama3-8b", 2048, 1)
    pairs = [sum(op.flops for op in ops if op.name == "attention") for ops in (together, joined)]
    assert pairs[0] / pairs[1] == pytest.approx(4 * 512 * 513 / (2048 * 2049))
    linear = [sum(op.flops for op in ops if op.name in ("projections", "ffn")) for ops in (together, joined)]
    assert linear[0] == linear[1]


def test_data_parallel_groups_prefill_their_own_prompts() -> None:
    for group, alone in zip(work("llama3-8b", 300, 8, Sharding(dp=4)), work("llama3-8b", 300, 2), strict=True):
        assert group.flops == alone.flops
        assert group.weight_bytes == alone.weight_bytes


def test_prompts_follow_one_another_through_stages() -> None:
    """Of four parts and stages, alike but for the head, the last part is through after seven times one stage's time."""
    one = deploy(load_model("llama2-7b"), "h100", context=512, tp=1, pp=4)
    alone, parts = (float(prefill_times(one, 512, n)[0].step_s) for n in (1, 4))
    assert parts / alone == pytest.approx(7 / 4, rel=0.03)
