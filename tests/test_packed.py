"""Packed blocks: caches with pages of several sizes, against vLLM's own figures for DeepSeek-V4 (arithmetic written out)."""

from __future__ import annotations

from typing import Any

import pytest

from planner.catalog import load_card
from planner.deployment import Deployment
from planner.packed import Packing, Page, approximate_gcd, pack
from planner.pool import Pool
from planner.settle import deploy
from planner.tensors import ceil_div
from planner.units import GIB

FLASH = {"kv": 37_440, "index": 8_640, "far": 1_728, "state": 32_832}
"""Pages of 64 entries of 584 B, 64 of 132 B, 2 of 584 B, and 4 tokens of 2,048 fp32 numbers, in multiples of 576 B."""


def flash(version: str, context: int, kv_memory: float = 32.08, **fields: Any) -> Deployment:
    given = {"kv_memory": int(kv_memory * GIB), "step_tokens": 8192, **fields}
    model = load_card("deepseek-v4-flash-nvfp4")
    return deploy(model, "2xh200-sxm", context=context, engine=f"vllm@{version}", fields=given)


def pool(d: Deployment) -> Pool:
    return d.stage_pools[0][0]


def pages(rule: str, tokens: int = 8192) -> Packing:
    """The caches of 43 layers: 2 with their window only, 21 that compress 4 tokens, 20 that compress 128."""
    near = Page(43, FLASH["kv"], 64, 127 + tokens, 1)
    whole = [Page(21, FLASH["kv"], 256), Page(21, FLASH["index"], 256), Page(20, FLASH["far"], 256)]
    states = [Page(21, FLASH["state"], 4, 7 + tokens, 1), Page(21, FLASH["index"], 4, 7 + tokens, 1)]
    return pack([near, *whole, *states, Page(20, FLASH["state"], 8, 127 + tokens, 1)], rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "block_bytes"),
    [
        ("0.20", 22 * (37_440 + 8_640 + 1_728)),
        ("0.22", 1_051_776),
        ("0.23", 22 * 37_440 + 21 * 8_640 + 20 * 1_728),
        ("0.26", 1_039_680),
        ("0.27", 21 * 37_440 + 21 * 8_640 + 20 * 1_728),
        ("0.31", 1_002_240),
    ],
)
def test_block_bytes_by_version(version: str, block_bytes: int) -> None:
    found = pool(flash(version, 4096))
    assert (found.unit_bytes, found.groups, found.block_tokens) == (block_bytes, 5, 4)


def test_groups() -> None:
    found = pages("widest").groups
    assert [sum(n for _, n in g.pages) for g in found] == [62, 20, 22, 21, 42]
    assert [g.nbytes for g in pages("slots").groups] == [1_002_240, 748_800, 823_680, 786_240, 967_680]


@pytest.mark.parametrize(
    ("context", "blocks", "tokens"),
    [
        (4096, 16 * 1_002_240 + 65 * (823_680 + 786_240) + 1025 * 967_680 + 513 * 748_800, 90_841),
        (262_144, 1024 * 1_002_240 + 131 * (823_680 + 786_240) + 2051 * 967_680 + 1041 * 748_800, 2_175_276),
    ],
)
def test_two_boots_on_h200(context: int, blocks: int, tokens: int) -> None:
    """One memory of 32.08 GiB, printed tokens at two longest lengths; 33,134 blocks are within the rounding of the GiB."""
    need = ceil_div(blocks, 1_002_240)
    d = flash("0.25", context, 33_134 * 1_039_680 / GIB, max_tokens=context)
    assert need == {4096: 1494, 262_144: 3993}[context] == pool(d).curve.amount(context)
    assert (pool(d).units, d.pool_tokens(context)) == (33_134, tokens)
    assert flash("0.25", context).pool_tokens(context) == pytest.approx(tokens, rel=2e-4)
    assert d.max_batch(context) == {4096: 22, 262_144: 8}[context]


def test_two_boots_on_gh200() -> None:
    """Issue 44376: 6.66 GiB needed for 30,000 tokens with 16,384 in a pass; 13,528 tokens at 5.44 GiB."""
    found = pages("tuples", 16_384)
    assert found.blocks.amount(30_000) == 118 + 2 * 259 + 4099 + 2065 == 6800
    assert round(6800 * found.block_bytes / GIB, 2) == 6.66
    most = found.blocks.amount(13_528)
    assert round(most * found.block_bytes / GIB, 2) == 5.44
    assert (found.blocks.longest(most), found.blocks.amount(13_529)) == (13_528, most + 2)  # a multiple of 4 and 8


@pytest.mark.parametrize("version", ["0.27", "0.31"])
def test_later_versions_count_blocks(version: str) -> None:
    """Whole blocks of every group, windows with room for the tokens of two passes."""
    found = pool(flash(version, 100_000))
    assert found.curve.amount(100_000) == 391 + 2 * (ceil_div(127 + 16_384, 64) + 1) + 4099 + 2065


@pytest.mark.parametrize("version", ["0.20", "0.25", "0.31"])
@pytest.mark.parametrize("batch", [1, 3])
def test_longest_context_is_the_longest(version: str, batch: int) -> None:
    d = flash(version, 4096)
    longest = d.max_context(batch)
    assert d.max_batch(longest) >= batch > d.max_batch(longest + 1)


def test_windows_that_are_not_grouped_keep_every_token() -> None:
    found = pool(flash("0.31", 4096, group_windows=False))
    assert (found.groups, found.curve.amount(256), found.curve.amount(257)) == (1, 1, 2)
    assert found.unit_bytes > 43 * 256 * 584


def test_versions_without_packing_hold_what_the_model_needs() -> None:
    held = [one for layers in flash("0.19", 4096).stage_layers for one in layers]
    assert not any(one.apart for one in held)


def test_rows_say_what_is_not_compressed_yet() -> None:
    rows = [row for row in load_card("deepseek-v4-flash-nvfp4").attention if row.kind == "compressed"]
    assert [[(c.vectors * c.width, c.kept) for c in row.pending()] for row in rows] == [
        [], [(2048, 8), (512, 8)], [(1024, 128)]
    ]  # fmt: skip
    assert [row.near.variant for row in rows] == ["MQA"] * 3


def test_approximate_gcd() -> None:
    assert approximate_gcd([21, 43, 21, 20], at_least=21) == 22
    assert approximate_gcd([4, 8, 12], at_least=4) == 4
    assert approximate_gcd([5], at_least=9) == 9


def test_nothing_to_pack() -> None:
    with pytest.raises(ValueError, match="no caches"):
        pack([], "widest")


def test_windows_alone() -> None:
    found = pack([Page(10, 100, 16, 64, 1), Page(4, 300, 16, 64, 1)], "slots")
    assert (found.block_bytes, [g.pages for g in found.groups]) == (2200, [((100, 10), (300, 4))])


# -- sparse latents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "gpu", "kv", "entry"),
    [
        ("vllm", "8xh200", "fp8", 656 + 132),
        ("vllm@0.12", "8xb200", "fp8", 656 + 132),
        ("vllm", "8xb200", "fp8", 576 + 132),
        ("vllm", "8xh200", "bf16", 1152 + 132),
        ("sglang", "8xh200", "fp8", 656 + 132),
        ("sglang", "8xb200", "fp8", 576 + 132),
        ("sglang", "8xh200", "bf16", 1152 + 132),
    ],
)
def test_sparse_latents(engine: str, gpu: str, kv: str, entry: int) -> None:
    found = deploy(load_card("deepseek-v3.2"), gpu, context=4096, engine=engine, kv=kv).stage_layers
    assert {one.token_bytes for layers in found for one in layers} == {entry}


def test_other_latents_stay_as_wide_as_they_are() -> None:
    found = deploy(load_card("deepseek-v3"), "8xh200", context=4096, engine="vllm", kv="fp8").stage_layers
    assert {one.token_bytes for layers in found for one in layers} == {576}


@pytest.mark.parametrize(("version", "width"), [("0.6", 576), ("0.7.3", 640), ("0.8", 576)])
def test_latents_padded_to_256_bytes(version: str, width: int) -> None:
    found = deploy(load_card("deepseek-v2-lite"), "h200", context=4096, engine=f"vllm@{version}").stage_layers
    assert {one.token_bytes for layers in found for one in layers} == {width * 2}
