"""The mixtures of GGUF files against the sizes of published ones, and against llama.cpp's rules tensor by tensor."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from planner.catalog import load_card
from planner.memory import weight_bytes
from planner.mixes import MIXES, Shape, find_mix, mix_formats
from planner.model import ModelSpec
from planner.precision import FORMATS
from planner.tensors import Role, Tensor
from tests.specs import build


def size(model: ModelSpec, weights: str) -> int:
    """Bytes of all weights [B]."""
    return weight_bytes(model.all_tensors(), model.weight_formats(weights))


# Sizes of files in GB, from the model pages of bartowski/Meta-Llama-3-8B-Instruct-GGUF, Meta-Llama-3.1-70B-Instruct-GGUF,
# Llama-3.2-1B-Instruct-GGUF and Mixtral-8x22B-v0.1-GGUF on huggingface.co (2024).
PUBLISHED = {
    "llama3-8b": {"q8_0": 8.54, "q6_k": 6.60, "q5_k_m": 5.73, "q4_k_m": 4.920734176, "q3_k_m": 4.02, "q2_k": 3.18},
    "llama3-70b": {
        "q8_0": 74.98, "q6_k": 57.89, "q5_k_m": 49.95, "q5_k_s": 48.66, "q4_k_m": 42.52, "q4_k_s": 40.35, "q4_0": 40.12,
        "iq4_xs": 37.90, "q3_k_l": 37.14, "q3_k_m": 34.27, "iq3_m": 31.94, "q3_k_s": 30.91,
    },
    "llama3.2-1b": {"q8_0": 1.32, "q6_k": 1.02, "q5_k_m": 0.91, "q5_k_s": 0.89, "q4_k_m": 0.81, "q4_k_s": 0.78},
    "mixtral-8x22b": {
        "q5_k_m": 99.96, "q5_k_s": 96.97, "q4_k_m": 85.58, "q4_k_s": 80.47, "q3_k_l": 72.57, "q3_k_m": 67.78, "iq3_m": 64.49,
        "iq3_s": 61.49, "q3_k_s": 61.49, "iq3_xs": 58.22, "q2_k": 52.10,
    },
}  # fmt: skip


@pytest.mark.parametrize(("card", "mix"), [(card, mix) for card, sizes in PUBLISHED.items() for mix in sizes])
def test_published_files_are_that_large(card: str, mix: str) -> None:
    published = PUBLISHED[card][mix] * 1e9
    tokenizer = 8e6  # in the file, but no weight
    assert abs(size(load_card(card), mix) + tokenizer - published) < 0.005 * published + 5e6


def bits(model: ModelSpec, mix: str, role: Role) -> float:
    return float(model.weight_formats(mix)[role].bits)


def test_mixtures_are_in_order_of_size() -> None:
    order = (
        "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "q2_k_s", "iq3_xxs", "iq3_xs", "q3_k_s", "q3_k_m", "q3_k_l",
        "iq4_xs", "iq4_nl", "q4_k_s", "q4_k_m", "q4_1", "q5_k_s", "q5_k_m", "q5_1", "q6_k", "q8_0",
    )  # fmt: skip
    sizes = [size(load_card("llama3-8b"), mix) for mix in order]
    assert sizes == sorted(sizes)


def test_every_mixture_of_every_card_lies_between_its_types() -> None:
    for path in (Path(__file__).parent.parent / "model_cards").glob("[a-z]*.toml"):
        model = load_card(path.stem)
        formats = model.weight_formats("q4_k_m")
        for role in Role:
            if role.linear and model.parameters_by_role.get(role):
                assert 4.5 <= formats[role].bits <= 16, (path.stem, role)
        assert formats[Role.VECTOR].bits == formats[Role.ROUTER].bits == 32
    for mix in MIXES:
        assert 1.5 < bits(load_card("llama3-8b"), mix, Role.FFN) < 9


def test_layers_that_more_bits_help_most_get_them() -> None:
    shape = Shape(layers=32, hidden=4096, sharing=4)
    down = Tensor("down_proj", Role.FFN, 14336, 4096)
    of = [mix_formats("q4_k_m", [(i, down, 1) for i in range(i + 1)], shape)[Role.FFN].bits for i in range(32)]
    total = [Fraction(0), *(bits * (i + 1) for i, bits in enumerate(of))]
    each = [after - before for before, after in pairwise(total)]
    more = [i for i, bits in enumerate(each) if bits == FORMATS["q6_k"].bits]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_heads_embeddings_and_what_is_tied() -> None:
    untied, tied = build(hidden=256), build(hidden=256, tied=True)
    formats = untied.weight_formats("q4_k_m")
    assert (formats[Role.EMBEDDING].id, formats[Role.HEAD].id) == ("q4_k", "q6_k")
    formats = tied.weight_formats("q4_k_m")
    assert formats[Role.EMBEDDING].id == formats[Role.HEAD].id == "q6_k"
    assert untied.weight_formats("q8_0")[Role.HEAD].id == "q8_0"
    assert untied.weight_formats("iq2_xxs")[Role.EMBEDDING].id == "q2_k"


def test_rows_that_are_not_whole_blocks_get_another_type() -> None:
    model = load_card("qwen2.5-0.5b")  # 896 wide: three and a half blocks of 256
    formats = model.weight_formats("q4_k_m")
    assert formats[Role.HEAD].id == "q8_0"
    assert bits(model, "q4_k_s", Role.ATTENTION) > FORMATS["q5_0"].bits - 0.01
    odd = build(hidden=40)
    assert odd.weight_formats("q4_k_m")[Role.EMBEDDING].id == "fp16"


def test_eight_experts_and_shared_keys_change_the_mixture() -> None:
    experts = {"ffn": ({"width": 512, "experts": 8, "top_k": 2},), "hidden": 256}
    row = {"heads": 8, "kv_heads": 8, "head_dim": 32}
    plain = build(hidden=256, attention=(row,))
    assert bits(build(**experts, attention=(row,)), "q4_k_m", Role.ATTENTION) > bits(plain, "q4_k_m", Role.ATTENTION)
    grouped = build(hidden=256, attention=({**row, "kv_heads": 2},))
    q, k, v, o = (FORMATS[name].bits for name in ("q2_k", "q2_k", "q4_k", "q3_k"))
    assert grouped.weight_formats("q2_k")[Role.ATTENTION].bits == (8 * q + 2 * k + 2 * v + 8 * o) / 20
    assert plain.weight_formats("q2_k")[Role.ATTENTION].bits == (q + k + o + o) / 4


@pytest.mark.parametrize(
    ("name", "mix"),
    [("Q4_K_M", "q4_k_m"), (" q4_k ", "q4_k_m"), ("IQ4-XS", "iq4_xs"), ("q8_0", "q8_0"), ("fp8", None), ("bf16", None)],
)
def test_names(name: str, mix: str | None) -> None:
    assert find_mix(name) == mix


def test_a_mixture_is_called_by_its_name_and_plain_formats_stay() -> None:
    model = build(hidden=256)
    assert {model.weight_formats("q4_k_m")[role].id for role in Role if role.linear} == {"q4_k_m"}
    for name in FORMATS:
        formats = model.weight_formats(name)
        assert find_mix(name) or formats[Role.FFN] == FORMATS[name]
