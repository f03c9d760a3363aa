"""Small models of many kinds, built and run for real on the CPU: the bytes in each layer's cache are those of the plan.

Each model is made from the same configuration that is imported, with random weights in bf16, and reads a prompt. Its
parameters are counted too. One known difference: a window of `w` tokens keeps `w - 1` between steps in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

from planner import load_model
from planner.cached import UNBOUNDED
from planner.checkpoint.config import model_of
from planner.memory import weight_bytes
from planner.model import LayerGroup, ModelSpec
from planner.precision import find_kv
from planner.row import Source

TOKENS = 41
SOURCE = 12
BF16 = find_kv("bf16")

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    "head_dim": 8,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2}
INDEXER = {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2}
HYBRID_LAYERS = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 64}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "MHA": ("llama", {"num_key_value_heads": 4}),
    "GQA": ("llama", {}),
    "MQA": ("llama", {"num_key_value_heads": 1}),
    "MQA under another key": ("gpt_bigcode", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "windows by layer": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "local and global": ("gemma3_text", {"head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 2}),
    "windows and sinks": (
        "gpt_oss", {"head_dim": 8, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "keys wider than values": (
        "mimo_v2_flash", {**MOE, "head_dim": 16, "v_head_dim": 8, "sliding_window": 16, "n_routed_experts": 4}
    ),
    "layers that share a cache": (
        "gemma3n_text",
        {"head_dim": 16, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "sliding_window": 16, "laurel_rank": 4,
         "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "intermediate_size": 48,
         "activation_sparsity_pattern": [0.0] * 6,
         "layer_types": ["sliding_attention", "full_attention"] * 3},
    ),
    "experts": ("qwen3_moe", {**MOE, "num_experts": 4, "head_dim": 8}),
    "MLA": ("deepseek_v3", {**MLA, **MOE}),
    "MLA with an indexer": ("deepseek_v32", {**MLA, **MOE, **INDEXER}),
    "indexers that layers share": (
        "glm_moe_dsa", {**MLA, **MOE, **INDEXER, "indexer_types": ["full", "shared", "full", "shared"]}
    ),
    "gated delta net": (
        "qwen3_next",
        {**DELTA, **MOE, "num_experts": 4, "head_dim": 16, "shared_expert_intermediate_size": 16,
         "layer_types": HYBRID_LAYERS},
    ),
    "Mamba": ("mamba", {"state_size": 8, "time_step_rank": 4}),
    "Mamba-2": ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1}),
    "Mamba among attention": (
        "jamba", {"mamba_dt_rank": 4, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    ),
    "attention beside Mamba-2": ("falcon_h1", {**MAMBA2, "mamba_d_ssm": 64, "head_dim": 8}),
    "one mixer a layer": (
        "nemotron_h",
        {**MOE, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "mamba_num_heads": 8,
         "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 1, "n_routed_experts": 4, "head_dim": 8,
         "moe_shared_expert_intermediate_size": 16},
    ),
    "short convolutions": ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "conv"]}),
    "lightning attention": ("minimax", {"num_local_experts": 4, "head_dim": 8, "layer_types": HYBRID_LAYERS}),
    "encoder-decoder": ("t5", T5),
    "encoder-decoder, gated": ("umt5", {**T5, "feed_forward_proj": "gated-gelu"}),
}  # fmt: skip


def built(model_type: str, changed: dict[str, Any]) -> tuple[Any, ModelSpec]:
    """The real model and the imported one, from one configuration."""
    config = AutoConfig.for_model(model_type, **{**SMALL, **changed})
    told = json.loads(config.to_json_string(use_diff=False))
    spec = model_of(told, model_type, Source(title="a test", locator="tests/test_real_caches.py", date="2026-11-24"))
    torch.manual_seed(0)
    classes = (
        transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if spec.encoder
        else transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    kind: Any = classes[type(config)]
    return kind(config).to(torch.bfloat16).eval(), spec


def tensors_in(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """All tensors with a batch dimension that a layer of a cache holds; views of one storage are one."""
    if isinstance(value, torch.Tensor):
        if value.dim() > 1 and value.numel() and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner, seen)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner, seen)


def held(cache: Any) -> list[int]:
    """Bytes that each layer of a cache holds [B]; MiniMax keeps the states of linear layers beside the others."""
    beside = [*getattr(cache, "linear_cache", []), *[None] * len(cache.layers)]
    layers = [[vars(layer), more] for layer, more in zip(cache.layers, beside, strict=False)]
    return [sum(t.numel() * t.element_size() for t in tensors_in(layer, set())) for layer in layers]


def planned(spec: ModelSpec, crossed: bool = False) -> list[int]:
    """Bytes that the plan says each layer holds [B]."""
    return [_layer(next(g for g in spec.groups if i in g.indices), crossed) for i in range(spec.layers)]


def _layer(group: LayerGroup, crossed: bool) -> int:
    total = group.state.state_bytes(1) if group.state and not crossed else 0
    for row in group.attention:
        if row.attends_source is not crossed:
            continue
        for c in row.cached(1):
            kept = SOURCE if crossed else min(TOKENS, c.kept if c.kept >= UNBOUNDED else c.kept - 1)
            total += c.entry_bytes(BF16) * (kept // c.every) * c.owned
    return total


@pytest.mark.parametrize("case", CASES)
def test_each_layer_caches_what_is_planned(case: str) -> None:
    model, spec = built(*CASES[case])
    unique = {id(p): p.numel() for p in model.parameters()}
    assert spec.total_parameters == sum(unique.values())
    ids = torch.randint(3, 60, (1, TOKENS))
    with torch.no_grad():
        if spec.encoder:
            out = model(input_ids=torch.randint(3, 60, (1, SOURCE)), decoder_input_ids=ids, use_cache=True)
            assert held(out.past_key_values.cross_attention_cache) == planned(spec, crossed=True)
            assert held(out.past_key_values.self_attention_cache) == planned(spec)
        else:
            out = model(input_ids=ids, use_cache=True)
            assert held(out.cache_params if "cache_params" in out else out.past_key_values) == planned(spec)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_checkpoint_is_weighed_to_the_byte(case: str, tmp_path: Path) -> None:
    model, spec = built(*CASES[case])
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    tensors = [t for path in tmp_path.glob("*.safetensors") for t in load_file(path).values()]
    assert weight_bytes(loaded.all_tensors(), loaded.weight_formats()) == sum(
        t.numel() * t.element_size() for t in tensors
    )
    assert loaded.total_parameters == spec.total_parameters
    assert loaded.note == spec.note
