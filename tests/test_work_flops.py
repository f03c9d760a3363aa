"""Small models of many kinds, built and run for real on the CPU: torch counts the FLOPs that the plan says a pass has.

torch's counter sees matrix products (``mm``, ``bmm``) and convolutions. Products with weights are compared with the
operators that read weights, the others with those that do not. Where transformers' eager code does something else than an
engine, the difference is derived here and must be exact:

- it compares every token with every key it was given and masks afterwards; an engine skips what is masked;
- it expands the latents of the whole cache at every step (MLA); an engine decodes, and reads sparsely, with the latents;
- it updates states with element-wise operations, which the counter does not see, and convolves padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from planner.attention import AttentionRow, CompressedAttention, HeadAttention, LatentAttention
from planner.cached import UNBOUNDED
from planner.model import LayerGroup, ModelSpec
from planner.precision import find_kv
from planner.stage import Sharding, stages_of
from planner.tensors import Role
from planner.work import Precision, decode_work, prefill_work
from tests.test_real_caches import CASES as BUILT
from tests.test_real_caches import MOE, SMALL, SOURCE, built

PROMPT = 41
H, V = SMALL["hidden_size"], SMALL["vocab_size"]

GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
V4 = {
    **MOE, "head_dim": 16, "q_lora_rank": 16, "o_lora_rank": 8, "o_groups": 2, "num_key_value_heads": 1,
    "n_routed_experts": 4, "sliding_window": 16, "index_topk": 4, "index_head_dim": 16, "index_n_heads": 2,
    "qk_rope_head_dim": 8,
}  # fmt: skip
CHUNKS = {
    "attention_chunk_size": 16, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
    "interleave_moe_layer_step": 2, "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
}  # fmt: skip
KEPT = (
    "GQA", "local and global", "windows and sinks", "keys wider than values", "layers that share a cache", "experts", "MLA",
    "MLA with an indexer", "gated delta net", "Mamba", "Mamba-2", "one mixer a layer", "short convolutions",
    "lightning attention", "encoder-decoder",
)  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{case: BUILT[case] for case in KEPT},
    "learned positions": ("gpt2", GPT),
    "biases everywhere": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "MQA beside its feed-forward": ("falcon", {"multi_query": True, "parallel_attn": True}),
    "one window": ("mistral", {"sliding_window": 16, "head_dim": 8}),
    "chunks": ("llama4_text", CHUNKS),
    "shared experts": ("qwen2_moe", {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 24}),
    "compressed": ("deepseek_v4", V4),
}


@dataclasses.dataclass(frozen=True)
class Pass:
    """``new`` tokens of one sequence after ``held``."""

    spec: ModelSpec
    new: int
    held: int

    @property
    def decodes(self) -> bool:
        return self.new == 1

    def keys(self, row: AttentionRow) -> int:
        """Keys that transformers compares each new token with; a window of w keeps w - 1 between steps."""
        return SOURCE if row.attends_source else self.new + min(self.held, (row.window or 10**9) - 1)

    def seen(self, row: AttentionRow, every: int = 1, most: int = 10**9, window: bool = True) -> int:
        """Entries that the new tokens must be compared with, token by token."""
        total = 0
        for i in range(self.held + 1, self.held + self.new + 1):
            near = min(i, row.window) if row.window and window else i
            if row.chunked and not self.decodes:
                near = (i - 1) % (row.window or i) + 1
            total += SOURCE if row.attends_source else min(near // every, most)
        return total


def eager(row: AttentionRow, p: Pass) -> int:
    """FLOPs of one layer's attention in transformers: queries with all keys, weights with all values."""
    pairs = p.new * p.keys(row)
    if isinstance(row, CompressedAttention):
        far = (p.held + p.new) // row.every if row.every else 0
        index = 2 * row.indexer.heads * row.indexer.head_dim * p.new * far if row.indexer else 0
        return 4 * row.heads * row.head_dim * (pairs + p.new * far) + index
    if isinstance(row, LatentAttention):
        # Scores of the indexer's heads are weighted and summed by a product, which the plan leaves out.
        index = (2 * row.indexer.heads * row.indexer.head_dim + 2 * row.indexer.heads) if row.indexer else 0
        return pairs * (2 * row.heads * (row.query_dim + row.v_head_dim) + index)
    assert isinstance(row, HeadAttention)
    return pairs * 2 * row.heads * (row.head_dim + row.value_dim)


def engine(row: AttentionRow, p: Pass) -> int:
    """FLOPs of one layer's attention in an engine: what the mask hides is skipped, latents are read as they are cached."""
    most = row.indexer.top_k if row.indexer else row.read or 10**9
    index = 2 * row.indexer.heads * row.indexer.head_dim if row.indexer else 0
    if isinstance(row, CompressedAttention):
        near = p.seen(row) * 4 * row.heads * row.head_dim
        if not row.every:
            return near
        far = p.seen(row, row.every, most, window=False) * 4 * row.heads * row.head_dim
        return near + far + index * p.seen(row, row.every, window=False)
    if isinstance(row, LatentAttention):
        absorbed = p.decodes or most < 10**9
        width = row.latent_dim + row.kv_lora_rank if absorbed else row.query_dim + row.v_head_dim
        return p.seen(row, most=most) * 2 * row.heads * width + index * p.seen(row)
    assert isinstance(row, HeadAttention)
    return p.seen(row) * 2 * row.heads * (row.head_dim + row.value_dim)


def over_layers(spec: ModelSpec, of: Callable[[AttentionRow], int]) -> int:
    return sum(group.count * of(row) for group in spec.groups for row in group.attention)


def encoder(spec: ModelSpec) -> int:
    """FLOPs of an encoder's attention: every token with every other."""
    rows = [(g.count, row) for g in spec.encoder_groups for row in g.attention]
    return sum(n * SOURCE**2 * 2 * r.heads * 2 * r.query_dim for n, r in rows)


IN_STEPS = ("mamba", "conv")
SEEN = {"mamba": 2, "mamba2": 2, "delta": 0, "linear": 4, "conv": 0}
"""FLOPs of an element of state in one step that are products in transformers: reading out, and adding for lightning."""


def states(group: LayerGroup, p: Pass) -> tuple[int, int, int]:
    """Of like layers of fixed state: FLOPs in products, in convolutions, and in the plan."""
    if not group.state:
        return 0, 0, 0
    row, kernel = group.state, group.state.kernel
    convolved = 2 if p.decodes else p.new + kernel - 1  # it pads, and drops what is too much
    elements = row.state_elements * p.new
    products = 6 + 2 * (row.kind == "delta")  # type: ignore[attr-defined]
    planned = products * elements + 2 * row.conv_channels * kernel * p.new
    found = (
        SEEN[row.kind] * elements,  # type: ignore[attr-defined]
        2 * row.conv_channels * kernel * convolved if kernel else 0,
        planned,
    )
    return tuple(group.count * n for n in found)  # type: ignore[return-value]


def beside(model_type: str, p: Pass) -> tuple[int, int]:
    """What else transformers multiplies: with weights, and without."""
    new, layers, copies = p.new, p.spec.layers, 4
    if p.spec.encoder and not p.decodes:
        return 2 * V * H * (new - 1), 0  # logits of every token
    if model_type == "gemma3n_text":
        # AltUp's routers and coefficients of copies of the hidden state, which the plan counts with the norms, and the
        # mixing of the copies.
        return 2 * new * layers * (2 * copies * H + copies**3 + copies**2), 2 * new * layers * copies**2 * H
    if model_type == "deepseek_v4":
        # Hyper-connections of copies of the hidden state, in the same way, and the output's first projection, which is
        # done in groups: no product of two matrices.
        mixing = 2 * new * (2 * layers * (2 + copies) * copies**2 * H + copies**2 * H)
        groups = sum(t.parameters * 2 * new * g.count for g in p.spec.groups for t in g.tensors if t.name == "o_a_proj")
        return mixing - groups, groups + 2 * new * 2 * layers * copies**2 * H
    if model_type == "llama4_text":
        # Every expert multiplies every token, in a batch of products.
        one = sum(t.active_parameters * g.count for g in p.spec.groups for t in g.tensors if t.role is Role.EXPERT)
        return -2 * new * one, 2 * new * one * max(row.experts for row in p.spec.ffn)
    return 0, 0


def up_projection(row: AttentionRow, p: Pass) -> int:
    """FLOPs of expanding latents of earlier tokens in transformers beyond those that an engine expands in a chunk."""
    if not isinstance(row, LatentAttention) or not (p.decodes or row.read_tokens < UNBOUNDED):
        return 0
    return 2 * p.held * row.kv_lora_rank * row.heads * (row.qk_nope_head_dim + row.v_head_dim)


def counted(model: Any, p: Pass, inputs: dict[str, Any]) -> tuple[dict[str, int], Any]:
    """FLOPs by kind of operation that torch counts in one pass, and what the pass returns."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(**inputs, use_cache=True)
    found = {str(op).removeprefix("aten."): n for op, n in counter.get_flop_counts()["Global"].items()}
    return {"weights": found.pop("mm", 0) + found.pop("addmm", 0), "others": found.pop("bmm", 0), **found}, out


def planned(p: Pass) -> tuple[float, float, float]:
    """FLOPs of the plan with weights, of attention, and of states."""
    precision, stage = Precision(p.spec.weight_formats("bf16"), find_kv("bf16")), stages_of(p.spec, 1)[0]
    source = SOURCE if p.spec.encoder else 0
    if p.decodes:
        operators = decode_work(p.spec, stage, precision, Sharding(), 1.0, float(p.held + 1), source)
    else:
        operators = prefill_work(p.spec, stage, precision, Sharding(), float(p.new), source, before=float(p.held))
    flops = {"weights": 0.0, "attention": 0.0, "state": 0.0}
    for op in operators:
        flops[op.name if op.name in flops else "weights"] += float(op.flops)
    return flops["weights"], flops["attention"], flops["state"]


@pytest.mark.parametrize("case", CASES)
def test_torch_counts_what_is_planned(case: str) -> None:
    model, spec = built(*CASES[case])
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    cache: dict[str, Any] = {}
    chunks = (PROMPT,) if spec.state or spec.encoder else (PROMPT - 9, 9)  # states go on token by token only
    held = 0
    for new in (*chunks, 1):
        p = Pass(spec, new, held)
        ids = torch.randint(3, 60, (1, new))
        if spec.encoder:
            inputs = {"decoder_input_ids": ids, **(cache or {"input_ids": torch.randint(3, 60, (1, SOURCE))})}
        else:
            inputs = {"input_ids": ids, "logits_to_keep": 1, **cache}
        found, out = counted(model, p, inputs)
        name = "cache_params" if "cache_params" in out else "past_key_values"
        cache = {name: out[name]}
        if spec.encoder:
            cache["encoder_outputs"] = (out.encoder_last_hidden_state,)
        check(p, found, CASES[case][0])
        held += new


def check(p: Pass, found: dict[str, int], model_type: str) -> None:
    """Hold torch's count against the plan's, what is known to differ accounted for."""
    weights, attention, state = planned(p)
    more_weights, more = beside(model_type, p)
    assert found["weights"] == weights + more_weights + over_layers(p.spec, lambda row: up_projection(row, p))

    encoded = 0 if p.held else encoder(p.spec)
    assert attention == over_layers(p.spec, lambda row: engine(row, p)) + encoded
    updates = [states(group, p) for group in p.spec.groups]
    assert state == sum(plan for _, _, plan in updates)
    assert found.get("convolution", 0) == sum(convolved for _, convolved, _ in updates)
    if p.decodes or all(getattr(row, "kind", "") in IN_STEPS for row in p.spec.state):  # others prefill in blocks
        compared = over_layers(p.spec, lambda row: eager(row, p)) + encoded
        assert found["others"] == compared + sum(products for products, _, _ in updates) + more


def test_chunks_are_imported_as_chunks() -> None:
    _, spec = built(*CASES["chunks"])
    assert [row.chunked for row in spec.attention] == [True, False]
