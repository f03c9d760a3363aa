"""Facts that everyone can check, and the targets that this project set itself from published figures."""

from __future__ import annotations

import pytest

from planner import load_model, plan

# Exact counts of the published configurations; KV bytes of one token in bf16, all layers.
KV_PER_TOKEN = {
    "llama3-70b": 327_680,
    "llama2-7b": 524_288,
    "llama3.1-405b": 516_096,
    "deepseek-v3": 70_272,
    "falcon-7b": 8_192,
    "palm-540b": 120_832,
}


@pytest.mark.parametrize(("model", "expected"), KV_PER_TOKEN.items())
def test_kv_bytes_per_token(model: str, expected: int) -> None:
    p = plan(model, "8xmi300x", kv="bf16", engine="none")
    assert p.memory.kv_bytes_per_token == expected


def test_llama3_70b_counts() -> None:
    p = plan("llama3-70b", "4xh100", weights="bf16")
    assert p.model.parameters == 70_553_706_496
    assert p.memory.weight_bytes == 141_107_412_992


@pytest.mark.parametrize(("batch", "milliseconds"), [(1, 10.57), (16, 13.58), (64, 23.19)])
def test_ideal_decode_floor(batch: int, milliseconds: float) -> None:
    """Weights without the embedding table, plus the cache, over 3.35 TB/s: hand arithmetic from the datasheet."""
    p = plan("llama3-70b", gpu="4xh100", tp=4, weights="bf16", context=8192, batch=batch)
    assert p.decode.ideal_step_s * 1e3 == pytest.approx(milliseconds, rel=0.01)
    assert p.memory.max_batch is not None
    assert 50 <= p.memory.max_batch <= 66


def test_mqa_factor() -> None:
    """For 32 heads MQA is exactly 32 times smaller than MHA; Llama 3 70B's own GQA is 8 times smaller."""
    seven = load_model("llama2-7b")
    heads, one = (plan(seven.with_attention(a), "h100").memory.kv_bytes_per_sequence for a in ("mha", "mqa"))
    assert heads == 32 * one
    own = plan("llama3-70b", "4xh100").memory.kv_bytes_per_sequence
    assert plan("llama3-70b", "4xh100", attention="mha").memory.kv_bytes_per_sequence == 8 * own


def test_gpt_oss_released_bytes() -> None:
    """Experts in mxfp4 at 4.25 bits, everything else in bf16: the size of the released checkpoints."""
    assert plan("gpt-oss-20b", "h100").memory.weight_bytes == 13_761_264_768
    assert plan("gpt-oss-120b", "8xh100").memory.weight_bytes == 65_248_815_744
