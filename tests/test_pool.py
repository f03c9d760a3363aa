"""How engines lay out a cache: blocks of grouped layers, pools by kind, cells; laws, and figures that engines printed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import load_model
from planner.cached import UNBOUNDED
from planner.deployment import Deployment
from planner.memory import CacheCurve, Term
from planner.pool import Layers, grouping, pools
from planner.settle import deploy
from planner.setup import Setup

KIB, GIB = 2**10, 2**30


def holding(model: str, gib: float, *, tp: int = 1, context: int, **options: Any) -> Deployment:
    """A deployment whose cache has so much memory on each GPU."""
    fields = {"kv_memory": int(gib * GIB), **options.pop("fields", {})}
    gpu = options.pop("gpu", "mi355x")
    return deploy(load_model(model), gpu, context=context, tp=tp, fields=fields, **options)


# -- figures that engines printed ----------------------------------------------------------------------------------------


def test_windows_in_groups_of_ten() -> None:
    """Gemma 3 27B on vLLM 0.11: 52 window layers padded to 60, 89,994 blocks, 205,696 tokens, 50.05 requests."""
    d = holding("gemma3-27b", 109.86, context=4096, engine="vllm@0.11", settings={"max_num_batched_tokens": 8192})
    (pool,) = d.stage_pools[0]
    assert (pool.groups, pool.padded_layers, pool.block_tokens) == (7, 8, 16)
    assert abs(pool.units - 89_994) <= 5  # 109.86 GiB are rounded
    assert d.pool_tokens(4096) == pool.units // 7 * 16
    assert d.concurrency(4096) == pytest.approx(50.05, abs=0.01)


def test_a_window_of_the_smallest_gemma() -> None:
    """Gemma 3 1B on vLLM 0.13: 25.39 GiB, 950,864 tokens, 461.21 requests of 2,048."""
    d = holding("gemma3-1b", 25.39, context=2048, engine="vllm@0.13", settings={"max_num_batched_tokens": 8192})
    assert d.pool_tokens(2048) == pytest.approx(950_864, rel=2e-4)
    assert d.concurrency(2048) == pytest.approx(461.21, rel=2e-4)


@pytest.mark.parametrize(
    ("gib", "context", "kv", "fields", "blocks", "block", "tokens"),
    [
        (15.35, 131_072, "bf16", {"prefix_caching": True}, None, 784, 241_051),
        (47.84, 262_144, "fp8", {"prefix_caching": True, "step_tokens": 65_536}, 999, 1568, 1_505_068),
        (9.44, 262_144, "fp8", {"prefix_caching": True, "draft_tokens": 3}, 181, 1600, 265_072),
        (22.72, 262_144, "fp8", {"prefix_caching": True, "draft_tokens": 4}, 433, 1616, 627_117),
    ],
)
def test_blocks_grow_until_one_holds_a_state(
    gib: float, context: int, kv: str, fields: dict[str, Any], blocks: int | None, block: int, tokens: int
) -> None:
    """Qwen 27B hybrids (16 of 64 layers attend) on vLLM 0.23 to 0.29: block size, blocks and tokens as printed."""
    d = holding("qwen3.5-27b", gib, context=context, kv=kv, engine="vllm@0.23", fields=fields)
    (pool,) = d.stage_pools[0]
    assert pool.block_tokens == block
    assert blocks is None or pool.units == blocks
    assert d.pool_tokens(context) == pytest.approx(tokens, rel=1e-3)


def test_a_rank_of_two_has_half_of_both() -> None:
    """Two RTX 3090: 426 blocks over 179 a request are the printed 623,873 tokens."""
    fields = {"prefix_caching": True, "draft_tokens": 3}
    d = holding("qwen3.5-27b", 11.052, tp=2, context=262_144, kv="fp8", engine="vllm@0.26", fields=fields)
    (pool,) = d.stage_pools[0]
    assert (pool.units, pool.curve.amount(262_144)) == (426, 179)
    assert d.pool_tokens(262_144) == 623_873


def test_chunks_hold_every_token_by_default_in_old_versions() -> None:
    """Llama 4 Scout on vLLM 0.12 with chunks held apart: 1.86 requests of 8,388,608; printed tokens count all layers."""
    apart = holding("llama4-scout", 89.71, tp=8, context=8_388_608, engine="vllm@0.12", fields={"group_chunks": True})
    whole = holding("llama4-scout", 89.71, tp=8, context=8_388_608, engine="vllm@0.12")
    assert apart.pool_tokens(8_388_608) == pytest.approx(3_919_664, rel=2e-4)
    assert apart.concurrency(8_388_608) == pytest.approx(1.86, abs=0.01)
    assert whole.concurrency(8_388_608) == pytest.approx(0.467, abs=0.01)


def test_states_have_a_pool_of_their_own() -> None:
    """Qwen 27B hybrid on SGLang, H100, 38.083 GiB to share: 124 slots and 330,323 tokens were printed."""
    d = holding("qwen3.5-27b", 38.083, context=8192, engine="sglang")
    slots, tokens = d.stage_pools[0]
    assert slots.units == 124 // 5
    assert tokens.units == pytest.approx(330_323, rel=1e-3)


def test_an_indexers_keys_are_kept_in_eight_bits() -> None:
    """GLM 5.2 class: 78 x (576 latent + 132 indexer, of which 21 layers have one) in 8 bit."""
    d = holding("deepseek-v3.2", 50, context=8192, kv="bf16", engine="vllm")
    held = sum(layers.count * layers.token_bytes for layers in d.stage_layers[0])
    assert held == 61 * (576 * 2 + 132)


# -- laws --------------------------------------------------------------------------------------------------------------

kinds = st.builds(
    Layers,
    count=st.integers(1, 60),
    token_bytes=st.sampled_from([256, 512, 1024, 4096]),
    kept=st.sampled_from([UNBOUNDED, 128, 1024, 4096]),
)
stacks = st.lists(kinds, min_size=1, max_size=3, unique_by=lambda one: (one.token_bytes, one.kept))
setups = st.builds(
    Setup,
    layout=st.sampled_from(["tokens", "blocks", "pools", "cells"]),
    block_tokens=st.sampled_from([1, 16, 64]),
    step_tokens=st.sampled_from([1, 2048]),
    even_within=st.sampled_from([1.0, 1.5]),
    window_share=st.sampled_from([0.1, 0.8, 1.0]),
)


@given(stacks, setups, st.integers(0, 2**40), st.integers(1, 10**6))
def test_no_layout_hands_out_more_than_there_is(layers: list[Layers], setup: Setup, nbytes: int, context: int) -> None:
    found = pools(layers, setup, nbytes)
    assert sum(pool.units * pool.unit_bytes for pool in found) <= nbytes
    assert sum(pool.share for pool in found) == 1
    for pool in found:
        assert pool.curve.amount(context) <= pool.curve.amount(context + 1)


@given(stacks, setups, st.integers(1, 10**6))
def test_an_engine_sets_aside_at_least_what_the_model_needs(layers: list[Layers], setup: Setup, context: int) -> None:
    need = sum(one.count * one.token_bytes * min(context, one.kept) for one in layers)
    reserved = sum(pool.curve.amount(context) * pool.unit_bytes for pool in pools(layers, setup, 2**40))
    assert reserved >= need or setup.layout == "pools"  # several windows share one pool, each with the longest
    if setup.layout == "pools":
        assert reserved >= sum(one.count * one.token_bytes * min(context, one.kept) for one in layers)


@given(stacks, st.sampled_from([1.0, 1.25, 1.5]))
def test_groups_hold_every_layer(layers: list[Layers], even_within: float) -> None:
    found = grouping(layers, Setup(layout="blocks", block_tokens=16, even_within=even_within))
    assert all(g.groups * found.size >= g.layers.count for g in found.groups)
    assert found.padded_layers >= 0
    if len(layers) == 1:
        assert found.block_bytes == 16 * layers[0].count * layers[0].token_bytes


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.sampled_from([16, 64, 256, UNBOUNDED]), st.sampled_from([1, 4, 16])),
        max_size=4,
    ),
    st.integers(0, 20),
    st.integers(0, 10**6),
)
def test_the_longest_that_fits_ahead_of_its_tokens(rows: list[tuple[int, int, int]], fixed: int, budget: int) -> None:
    terms = tuple(
        Term(rate, kept if kept >= UNBOUNDED else -(-kept // every) * every, every, ahead=True)
        for rate, kept, every in rows
    )
    curve = CacheCurve(terms, fixed)
    longest = curve.longest(budget)
    if longest >= UNBOUNDED:
        assert curve.amount(10**12) <= budget
    else:
        assert longest == 0 or curve.amount(longest) <= budget
        assert curve.amount(longest + 1) > budget


def test_dense_models_are_one_group_of_plain_blocks() -> None:
    d = holding("llama3-8b", 8, context=8192)
    (pool,) = d.stage_pools[0]
    assert (pool.units, pool.unit_bytes, pool.groups) == (4096, 2 * 1024 * KIB, 1)
    assert d.pool_tokens(8192) == 65_536
    assert d.reserved_bytes(8192) == d.curve.amount(8192)


def test_windows_that_are_turned_off_cost_every_token() -> None:
    on, off = (
        holding("gemma3-27b", 50, context=32_768, engine="vllm@0.25", fields={"group_windows": v})
        for v in (True, False)
    )
    assert off.reserved_bytes(32_768) == 62 * 2 * 16 * 128 * 2 * 32_768
    assert on.reserved_bytes(32_768) < off.reserved_bytes(32_768)
    assert on.max_batch(32_768) > off.max_batch(32_768)
    assert on.curve == off.curve  # what the model needs is the same


def test_cells_of_a_window_have_room_for_a_micro_batch() -> None:
    """gpt-oss on llama.cpp: 640 cells of a window of 128 with micro-batches of 512, padded to 256."""
    d = holding("gpt-oss-20b", 10, context=4096, engine="llamacpp", kv="fp16")
    per_cell = 12 * 2 * 8 * 64 * 2
    assert d.reserved_bytes(4096) == per_cell * (4096 + 768)
    assert (
        deploy(load_model("gpt-oss-20b"), "1xl4", context=4096, engine="llamacpp").reserved_bytes(100)
        == 2 * per_cell * 256
    )
