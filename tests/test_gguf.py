"""GGUF as models: rows and bytes from headers that the official writer wrote, and what is refused."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type

from planner.catalog import load_card
from planner.checkpoint.gguf import read_gguf
from planner.checkpoint.ggufheader import read_header
from planner.errors import CardError
from planner.memory import cache_curve, weight_bytes
from planner.model import ModelSpec
from planner.precision import FORMATS, find_kv
from planner.row import select_layers
from planner.stage import stages_of
from planner.tensors import Role
from tests.ggufs import Shapes, attention, dense, ends, experts, keys, layers, llama, mamba2, write


def cached(model: ModelSpec, context: int) -> int:
    """Cache of one sequence in 16 bit [B]."""
    return cache_curve(stages_of(model, 1)[0], find_kv("bf16"), 1).amount(context)


def planned(folder: Path, arch: str, metadata: dict[str, Any], shapes: Shapes, types: Any = None) -> ModelSpec:
    """A file written and read, after checks that hold for every one: parameters and bytes are those of the tensors."""
    path = write(folder / "model.gguf", arch, metadata, shapes, types)[0]
    model = read_gguf(path)
    draft = model.drafter.parameters if model.drafter else 0
    assert model.parameters + draft == sum(prod(shape) for shape in shapes.values())
    if not draft:
        held = sum(t.nbytes for t in read_header(path).tensors)
        assert weight_bytes(model.all_tensors(), model.weight_formats()) == held
    return model


# -- architectures -----------------------------------------------------------------------------------------------------


def test_llama(tmp_path: Path) -> None:
    layer = attention(4096, 32, 8, 128) | dense(4096, 14336)
    shapes = ends(4096, 128256) | layers(32, layer) | {"rope_freqs.weight": (64,)}

    def types(name: str) -> Type | None:
        if "norm" in name or "rope" in name:
            return None
        return Type.Q6_K if name == "output.weight" or "attn_v" in name or "ffn_down" in name else Type.Q4_K

    metadata = keys(4096, 32, context=8192, heads=32, kv=8, general__file_type=15, general__name="Llama 3 8B")
    model, card = planned(tmp_path, "llama", metadata, shapes, types), load_card("llama3-8b")
    assert model.parameters == card.parameters + 64
    assert model.variants == card.variants == ("GQA-8",)
    assert cached(model, 8192) == cached(card, 8192)
    assert (model.name, model.context_limit, model.vocab, model.tied) == ("Llama 3 8B", 8192, 128256, False)
    assert model.weights.label == "Q4_K_M"
    assert model.weight_formats()[Role.HEAD] == FORMATS["q6_k"]
    assert model.weight_formats()[Role.EMBEDDING] == FORMATS["q4_k"]
    assert FORMATS["q4_k"].bits < model.weight_formats()[Role.FFN].bits < FORMATS["q6_k"].bits
    assert model.note == ""


def test_biases_and_a_tied_head(tmp_path: Path) -> None:
    layer = attention(896, 14, 2, 64, bias=True) | dense(896, 4864)
    shapes = ends(896, 151936, tied=True) | layers(24, layer)
    model = planned(
        tmp_path, "qwen2", keys(896, 24, heads=14, kv=2), shapes, lambda n: Type.Q8_0 if "token" in n else None
    )
    card = load_card("qwen2.5-0.5b")
    assert model.parameters == card.parameters
    assert model.tied
    assert model.attention[0] == card.attention[0]
    assert model.weight_formats()[Role.HEAD] == FORMATS["q8_0"], "a tied head is the embedding"


@pytest.mark.parametrize(
    "said", [{}, {"attention__sliding_window_pattern": [True] * 5 + [False] + [True] * 5 + [False]}]
)
def test_windows_by_the_architecture_or_by_the_file(tmp_path: Path, said: dict[str, Any]) -> None:
    layer = attention(256, 4, 1, 64, norm=True) | dense(256, 512)
    layer |= {"post_attention_norm.weight": (256,), "post_ffw_norm.weight": (256,)}
    metadata = keys(256, 12, heads=4, kv=1, attention__sliding_window=512, attention__key_length=64, **said)
    model = planned(tmp_path, "gemma3", metadata, ends(256, 1000, tied=True) | layers(12, layer))
    windows = {i: g.attention[0].window for g in model.groups for i in g.indices}
    assert [i for i in windows if windows[i] is None] == [5, 11]
    assert set(windows.values()) == {512, None}
    assert model.norms_per_layer == 4
    assert cached(model, 4096) == (10 * 512 + 2 * 4096) * 2 * 64 * 2


@pytest.mark.parametrize(
    ("arch", "more", "full"),
    [
        ("gemma2", {}, [1, 3, 5, 7]),
        ("gpt-oss", {"attention__sliding_window": 128}, [1, 3, 5, 7]),
        ("cohere2", {"attention__sliding_window": 128}, [3, 7]),
        ("smallthinker", {"attention__sliding_window": 128}, [0, 4]),
        ("llama4", {}, [3, 7]),
        ("llama4", {"attention__sliding_window": 0}, list(range(8))),
        ("llama", {"attention__sliding_window": 128}, list(range(8))),
        ("phi3", {"attention__sliding_window": 128}, list(range(8))),
        ("exaone4", {"attention__sliding_window": 128}, list(range(8))),
        ("gemma3", {"attention__sliding_window": 128, "attention__sliding_window_pattern": 4}, [3, 7]),
    ],
)
def test_which_layers_keep_everything(tmp_path: Path, arch: str, more: dict[str, Any], full: list[int]) -> None:
    metadata, shapes = llama(count=8, **more)
    model = planned(tmp_path, arch, metadata, shapes)
    assert sorted(i for g in model.groups for i in g.indices if g.attention[0].window is None) == full
    assert ("does not" in model.note or "not the layers" in model.note) == (arch == "llama")


def test_a_mixture(tmp_path: Path) -> None:
    layer = attention(4096, 32, 8, 128) | experts(4096, 14336, 8)
    metadata = keys(4096, 32, heads=32, kv=8, expert_count=8, expert_used_count=2)
    model = planned(tmp_path, "llama", metadata, ends(4096, 32000) | layers(32, layer))
    card = load_card("mixtral-8x7b")
    assert model.parameters == card.parameters
    assert model.active_parameters == card.active_parameters
    assert model.ffn == card.ffn


def test_experts_that_lie_apart(tmp_path: Path) -> None:
    layer = attention(64, 8, 2, 8) | {"ffn_norm.weight": (64,), "ffn_gate_inp.weight": (64, 4)}
    for e in range(4):
        layer |= {
            f"ffn_{part}.{e}.weight": shape
            for part, shape in (("gate", (64, 96)), ("up", (64, 96)), ("down", (96, 64)))
        }
    metadata = keys(64, 2, heads=8, kv=2, expert_count=4, expert_used_count=2)
    model = planned(tmp_path, "llama", metadata, ends(64, 100) | layers(2, layer))
    assert (model.ffn[0].experts, model.ffn[0].width, model.ffn[0].top_k) == (4, 96, 2)


def test_shared_experts_sinks_and_expert_biases(tmp_path: Path) -> None:
    layer = attention(64, 8, 2, 8) | experts(64, 96, 4) | dense(64, 32, "_shexp")
    layer |= {
        "attn_sinks.weight": (8,), "attn_output.bias": (64,), "ffn_gate_inp.bias": (4,), "exp_probs_b.bias": (4,),
        "ffn_gate_exps.bias": (96, 4), "ffn_up_exps.bias": (96, 4), "ffn_down_exps.bias": (64, 4),
        "ffn_gate_inp_shexp.weight": (64,),
    }  # fmt: skip
    metadata = keys(64, 2, heads=8, kv=2, expert_used_count=2)
    model = planned(tmp_path, "qwen2moe", metadata, ends(64, 100) | layers(2, layer))
    row = model.ffn[0]
    assert row.expert_bias
    assert row.router_bias
    assert row.shared_gate
    assert row.shared_width == 32
    assert [(e.name, e.parameters, e.at) for e in model.extra] == [("ffn_gate_inp.bias", 4, "")]


def of_card(card: str) -> tuple[str, dict[str, Any], Shapes]:
    """Architecture, metadata and tensors of a model in the catalogue."""
    if card == "phi-2":
        layer: Shapes = {
            "attn_norm.weight": (2560,), "attn_norm.bias": (2560,), "attn_qkv.weight": (2560, 7680),
            "attn_qkv.bias": (7680,), "attn_output.weight": (2560, 2560), "attn_output.bias": (2560,),
            "ffn_up.weight": (2560, 10240), "ffn_up.bias": (10240,), "ffn_down.weight": (10240, 2560),
            "ffn_down.bias": (2560,),
        }  # fmt: skip
        beside: Shapes = {"output_norm.bias": (2560,), "output.bias": (51200,)}
        return "phi2", keys(2560, 32, heads=32), ends(2560, 51200) | beside | layers(32, layer)
    if card == "olmo2-7b":
        layer = {n: s for n, s in (attention(4096, 32, 32, 128) | dense(4096, 11008)).items() if "norm" not in n}
        norms = ("post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm")
        layer |= {f"{name}.weight": (4096,) for name in norms}
        return "olmo2", keys(4096, 32, heads=32), ends(4096, 100352) | layers(32, layer)
    layer = attention(3584, 16, 8, 256) | dense(3584, 14336)
    layer |= {"post_attention_norm.weight": (3584,), "post_ffw_norm.weight": (3584,)}
    return (
        "gemma2",
        keys(3584, 42, heads=16, kv=8, attention__key_length=256),
        ends(3584, 256000, True) | layers(42, layer),
    )


@pytest.mark.parametrize("name", ["phi-2", "olmo2-7b", "gemma2-9b"])
def test_rows_are_those_of_the_catalogue(tmp_path: Path, name: str) -> None:
    model, card = planned(tmp_path, *of_card(name)), load_card(name)
    assert model.parameters == card.parameters
    assert cached(model, 8192) == cached(card, 8192)
    assert (model.variants, model.norms_per_layer, model.parallel) == (
        card.variants,
        card.norms_per_layer,
        card.parallel,
    )
    assert not model.extra
    assert not model.note


def test_gpt_oss(tmp_path: Path) -> None:
    layer = attention(2880, 64, 8, 64, bias=True) | experts(2880, 2880, 32)
    layer["post_attention_norm.weight"] = layer.pop("ffn_norm.weight")
    layer |= {
        "attn_sinks.weight": (64,), "attn_output.bias": (2880,), "ffn_gate_inp.bias": (32,),
        "ffn_gate_exps.bias": (2880, 32), "ffn_up_exps.bias": (2880, 32), "ffn_down_exps.bias": (2880, 32),
    }  # fmt: skip
    metadata = keys(
        2880, 24, context=131072, heads=64, kv=8, attention__key_length=64, attention__sliding_window=128, expert_count=32,
        expert_used_count=4, general__file_type=38,
    )  # fmt: skip
    shapes = ends(2880, 201088) | layers(24, layer)
    model = planned(tmp_path, "gpt-oss", metadata, shapes, lambda n: Type.MXFP4 if n.endswith("exps.weight") else None)
    card = load_card("gpt-oss-20b")
    assert model.parameters == card.parameters
    assert model.active_parameters == card.active_parameters
    assert cached(model, 65536) == cached(card, 65536)
    assert model.weight_formats()[Role.EXPERT] == FORMATS["mxfp4"]


def latent(split: bool) -> Shapes:
    """Attention of DeepSeek-V2 Lite, its up-projection whole or for keys and values apart."""
    up: Shapes = {"attn_kv_b.weight": (512, 16 * 256)}
    if split:
        up = {"attn_k_b.weight": (128, 512, 16), "attn_v_b.weight": (512, 128, 16)}
    return {
        "attn_norm.weight": (2048,), "attn_q.weight": (2048, 16 * 192), "attn_kv_a_mqa.weight": (2048, 576),
        "attn_kv_a_norm.weight": (512,), "attn_output.weight": (2048, 2048), **up,
    }  # fmt: skip


@pytest.mark.parametrize("split", [False, True])
def test_latent_attention(tmp_path: Path, split: bool) -> None:
    first = latent(split) | dense(2048, 10944)
    rest = latent(split) | experts(2048, 1408, 64) | dense(2048, 2816, "_shexp")
    shapes = ends(2048, 102400) | layers(27, *[first, *[rest] * 26])
    metadata = keys(
        2048, 27, heads=16, kv=1 if split else 16, attention__kv_lora_rank=512, expert_count=64, expert_used_count=6,
        leading_dense_block_count=1, attention__key_length=576 if split else 192,
    )  # fmt: skip
    model, card = planned(tmp_path, "deepseek2", metadata, shapes), load_card("deepseek-v2-lite")
    assert model.parameters == card.parameters
    assert model.active_parameters == card.active_parameters
    assert model.variants == ("MLA",)
    assert cached(model, 4096) == cached(card, 4096) == 27 * 576 * 2 * 4096


def test_an_indexer(tmp_path: Path) -> None:
    layer: Shapes = {
        "attn_norm.weight": (128,), "attn_q_a.weight": (128, 48), "attn_q_a_norm.weight": (48,),
        "attn_q_b.weight": (48, 4 * 24), "attn_kv_a_mqa.weight": (128, 40), "attn_kv_a_norm.weight": (32,),
        "attn_k_b.weight": (16, 32, 4),
        "attn_v_b.weight": (32, 16, 4), "attn_output.weight": (64, 128), "indexer.attn_q_b.weight": (48, 2 * 20),
        "indexer.attn_k.weight": (128, 20), "indexer.k_norm.weight": (20,), "indexer.k_norm.bias": (20,),
        "indexer.proj.weight": (128, 2),
    }  # fmt: skip
    metadata = keys(128, 3, heads=4, kv=1, attention__indexer__top_k=64)
    model = planned(tmp_path, "deepseek32", metadata, ends(128, 100) | layers(3, layer | dense(128, 256)))
    assert cached(model, 100) == 3 * (40 + 20) * 2 * 100


def test_a_mamba_hybrid(tmp_path: Path) -> None:
    mixer = mamba2(128, 256, 16, 8, 2, 4) | dense(128, 512)
    full = attention(128, 4, 2, 32) | dense(128, 512)
    metadata = keys(
        128, 8, heads=4, kv=[0, 0, 0, 2] * 2, ssm__conv_kernel=4, ssm__inner_size=256, ssm__state_size=16,
        ssm__time_step_rank=8, ssm__group_count=2,
    )  # fmt: skip
    model = planned(
        tmp_path, "granitehybrid", metadata, ends(128, 100, tied=True) | layers(8, mixer, mixer, mixer, full)
    )
    assert model.variants == ("GQA-2", "Mamba-2")
    assert [select_layers(row.at, 8) for row in model.attention] == [{3, 7}]
    assert select_layers(model.state[0].at, 8) == {0, 1, 2, 4, 5, 6}
    fixed = 6 * 4 * (256 * 16 + 4 * (256 + 2 * 2 * 16))
    assert cached(model, 1000) == fixed + 2 * 2 * 2 * 32 * 2 * 1000
    assert not model.extra


def test_mamba_and_short_convolutions(tmp_path: Path) -> None:
    mixer: Shapes = {
        "attn_norm.weight": (96,), "ssm_in.weight": (96, 384), "ssm_conv1d.weight": (4, 192), "ssm_conv1d.bias": (192,),
        "ssm_x.weight": (192, 6 + 32), "ssm_dt.weight": (6, 192), "ssm_dt.bias": (192,), "ssm_a": (16, 192), "ssm_d": (192,),
        "ssm_out.weight": (192, 96),
    }  # fmt: skip
    conv: Shapes = {
        "attn_norm.weight": (96,), "shortconv.conv.weight": (3, 96), "shortconv.in_proj.weight": (96, 288),
        "shortconv.out_proj.weight": (96, 96),
    }  # fmt: skip
    metadata = keys(96, 2, ssm__conv_kernel=4, ssm__inner_size=192, ssm__state_size=16, ssm__time_step_rank=6)
    assert planned(tmp_path, "mamba", metadata, ends(96, 100) | layers(2, mixer)).variants == ("Mamba",)
    hybrid = layers(4, conv | dense(96, 256), attention(96, 4, 4, 24) | dense(96, 256))
    metadata = keys(96, 4, heads=4, kv=[0, 4, 0, 4], shortconv__l_cache=3)
    assert planned(tmp_path, "lfm2", metadata, ends(96, 100) | hybrid).variants == ("MHA", "short convolution")


def test_gated_delta_net(tmp_path: Path) -> None:
    mixer: Shapes = {
        "attn_norm.weight": (128,), "attn_qkv.weight": (128, 2 * 64 + 128), "attn_gate.weight": (128, 128),
        "ssm_conv1d.weight": (4, 256), "ssm_dt.bias": (4,), "ssm_a": (4,), "ssm_beta.weight": (128, 4),
        "ssm_alpha.weight": (128, 4), "ssm_norm.weight": (32,), "ssm_out.weight": (128, 128),
        "post_attention_norm.weight": (128,),
    }  # fmt: skip
    full = attention(128, 4, 1, 32, norm=True) | {
        "attn_q.weight": (128, 2 * 4 * 32),
        "post_attention_norm.weight": (128,),
    }
    mlp = {name: shape for name, shape in dense(128, 256).items() if "norm" not in name}
    metadata = keys(
        128, 4, heads=4, kv=1, attention__key_length=32, ssm__conv_kernel=4, ssm__inner_size=128, ssm__state_size=32,
        ssm__time_step_rank=4, ssm__group_count=2,
    )  # fmt: skip
    shapes = ends(128, 100) | layers(4, mixer | mlp, mixer | mlp, mixer | mlp, full | mlp)
    model = planned(tmp_path, "qwen35", metadata, shapes)
    assert model.variants == ("MQA", "gated delta net")
    assert model.attention[0].gate == "element"  # type: ignore[union-attr]
    assert not model.extra


def test_rwkv_and_kimi_are_given_by_their_sizes(tmp_path: Path) -> None:
    mixer: Shapes = {
        "attn_norm.weight": (64,), "attn_norm.bias": (64,), "time_mix_key.weight": (64, 64),
        "time_mix_output.weight": (64, 64),
        "time_mix_lerp_k.weight": (64, 1, 1), "channel_mix_key.weight": (64, 224), "channel_mix_value.weight": (224, 64),
    }  # fmt: skip
    model = planned(tmp_path, "rwkv6", keys(64, 2, wkv__head_size=16), ends(64, 100) | layers(2, mixer))
    assert model.variants == ("RWKV",)
    assert cached(model, 10) == cached(model, 1000) == 2 * 4 * (64 * 16 + 2 * 64)
    kda: Shapes = {
        "attn_norm.weight": (64,), **{f"attn_{n}.weight": (64, 64) for n in ("q", "k", "v", "output")},
        "ssm_norm.weight": (16,), **{f"ssm_conv1d_{n}.weight": (4, 1, 64) for n in "qkv"}, "ssm_f_a.weight": (64, 16),
        "ssm_f_b.weight": (16, 64), "ssm_g_a.weight": (64, 16), "ssm_g_b.weight": (16, 64), "ssm_beta.weight": (64, 4),
        "ssm_a": (1, 4), "ssm_dt.bias": (64,),
    }  # fmt: skip
    metadata = keys(64, 2, heads=4, kv=[0, 0], ssm__conv_kernel=4, kda__head_dim=16)
    model = planned(tmp_path, "kimi-linear", metadata, ends(64, 100) | layers(2, kda | dense(64, 128)))
    assert model.variants == ("Kimi delta attention",)
    assert not model.extra


def test_fused_projections_norms_with_biases_and_positions(tmp_path: Path) -> None:
    layer: Shapes = {
        "attn_norm.weight": (64,), "attn_norm.bias": (64,), "attn_qkv.weight": (64, 192), "attn_qkv.bias": (192,),
        "attn_output.weight": (64, 64), "attn_output.bias": (64,), "ffn_norm.weight": (64,), "ffn_norm.bias": (64,),
        "ffn_up.weight": (64, 256), "ffn_up.bias": (256,), "ffn_down.weight": (256, 64), "ffn_down.bias": (64,),
    }  # fmt: skip
    shapes = (
        ends(64, 100, tied=True) | {"output_norm.bias": (64,), "position_embd.weight": (64, 1024)} | layers(3, layer)
    )
    model = planned(tmp_path, "gpt2", keys(64, 3, heads=4), shapes)
    assert (model.norm_bias, model.learned_positions, model.ffn[0].bias, model.ffn[0].gated) == (
        True,
        1024,
        True,
        False,
    )
    assert not model.extra
    doubled = attention(64, 4, 2, 16) | {
        "ffn_norm.weight": (64,),
        "ffn_up.weight": (64, 256),
        "ffn_down.weight": (128, 64),
    }
    doubled |= {"attn_qkv.weight": (64, 128)}
    doubled = {name: shape for name, shape in doubled.items() if name[:7] not in ("attn_q.", "attn_k.", "attn_v.")}
    model = planned(tmp_path, "phi3", keys(64, 2, heads=4, kv=2), ends(64, 100) | layers(2, doubled))
    assert (model.ffn[0].gated, model.ffn[0].width, model.variants) == (True, 128, ("GQA-2",))


def test_layers_that_read_the_cache_of_others(tmp_path: Path) -> None:
    full = attention(64, 4, 1, 16) | dense(64, 128)
    metadata = keys(64, 6, heads=4, kv=1, attention__shared_kv_layers=2)
    model = planned(tmp_path, "gemma3n", metadata, ends(64, 100) | layers(6, full))
    assert cached(model, 100) == 4 * 2 * 16 * 2 * 100
    borrowing = {n: s for n, s in full.items() if n not in ("attn_k.weight", "attn_v.weight")}
    model = planned(
        tmp_path, "gemma4", metadata, ends(64, 100) | layers(6, full, full, full, full, borrowing, borrowing)
    )
    assert cached(model, 100) == 4 * 2 * 16 * 2 * 100


def test_layers_that_only_draft(tmp_path: Path) -> None:
    layer = attention(64, 4, 2, 16) | dense(64, 128)
    draft = layer | {"nextn.eh_proj.weight": (128, 64), "nextn.enorm.weight": (64,)}
    metadata = keys(64, 4, heads=4, kv=2, nextn_predict_layers=1)
    model = planned(tmp_path, "glm4moe", metadata, ends(64, 100) | layers(4, layer, layer, layer, draft))
    assert model.layers == 3
    assert model.drafter is not None
    assert model.drafter.layers == 1


def test_what_no_row_explains_is_named(tmp_path: Path) -> None:
    metadata, shapes = llama()
    shapes |= {"per_layer_model_proj.weight": (64, 32), "blk.1.laurel_l.weight": (64, 16), "blk.1.odd.bias": (7,)}
    model = planned(tmp_path, "gemma3n", metadata, shapes)
    assert {(e.name, e.role, e.parameters, e.at) for e in model.extra} == {
        ("laurel_l", "attention", 1024, "1"), ("odd.bias", "vectors", 7, "1"),
    }  # fmt: skip
    assert [(o.name, o.parameters) for o in model.other] == [("per_layer_model_proj", 64 * 32)]


# -- disagreement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"attention.head_count_kv": 4}, "2 KV heads rather than 4"),
        ({"attention.head_count": 16, "attention.key_length": 8}, "8 heads rather than 16"),
        ({"attention.head_count": 5}, "8 heads rather than 5"),
        (
            {"attention.key_length": 24, "attention.value_length": 40},
            "8 a head's key width rather than 24 and 8 value width",
        ),
        ({"block_count": 7}, "4 layers rather than 7"),
        ({"embedding_length": 32}, "width 64 rather than 32"),
    ],
)
def test_tensors_win_over_metadata_and_the_note_says_so(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    metadata, shapes = llama()
    model = planned(tmp_path, "llama", metadata | said, shapes)
    assert words in model.note
    assert (model.layers, model.hidden, cached(model, 100)) == (4, 64, 4 * 2 * 2 * 8 * 2 * 100)
    assert (model.attention[0].heads, model.variants) == (8, ("GQA-2",))


def test_an_unknown_architecture_is_planned_as_it_looks(tmp_path: Path) -> None:
    metadata, shapes = llama()
    model = planned(tmp_path, "brandnew", metadata, shapes)
    assert model.variants == ("GQA-2",)
    assert "'brandnew' is not known" in model.note


@pytest.mark.parametrize(
    ("arch", "without", "words"),
    [
        ("brandnew", "attn_output.weight", "do not fit 8 heads"),
        ("brandnew", "brandnew.context_length", "lacks brandnew.context_length"),
        ("brandnew", "brandnew.block_count", "lacks brandnew.block_count"),
        ("llama", "token_embd.weight", "no token_embd.weight"),
        ("llama", "blk.2.", "no tensors of layer 2"),
        ("t5", "", "encoder-decoder"),
        ("clip", "", "name the language model's file"),
        ("bert", "", "keeps no cache"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, arch: str, without: str, words: str) -> None:
    metadata, shapes = llama()
    metadata = {k: v for k, v in metadata.items() if f"{arch}.{k}" != without}
    shapes = {k: v for k, v in shapes.items() if not without or without not in k}
    with pytest.raises(CardError, match=words) as caught:
        read_gguf(write(tmp_path / "model.gguf", arch, metadata, shapes)[0])
    assert "\n" not in str(caught.value)


def test_attention_that_is_not_known_is_not_passed_over(tmp_path: Path) -> None:
    layer: Shapes = {"attn_q_a.weight": (64, 32), "attn_kv.weight": (64, 16), "attn_output_a.weight": (64, 64)}
    metadata, shapes = keys(64, 2, heads=4), ends(64, 100) | layers(2, layer | dense(64, 128))
    with pytest.raises(CardError, match=r"layer 0 has no attention by .* but attn_kv.weight, attn_output_a.weight"):
        read_gguf(write(tmp_path / "model.gguf", "deepseek4", metadata, shapes)[0])


def test_layers_without_attention_are_planned(tmp_path: Path) -> None:
    linear = {"attn_norm.weight": (64,), "attn_output.weight": (64, 64)} | dense(64, 128)
    shapes = ends(64, 100) | layers(4, attention(64, 4, 2, 16) | dense(64, 128), linear, dense(64, 256), linear)
    model = planned(tmp_path, "deci", keys(64, 4, heads=4, kv=[2, 0, 0, 0]), shapes)
    assert cached(model, 10) == 2 * 2 * 16 * 2 * 10
    where = {e.name: select_layers(e.at, 4) for e in model.extra}
    assert where == {"ffn_norm": {0, 1, 3}, "attn_output": {1, 3}}


def test_an_encoder_or_an_adapter_is_no_model(tmp_path: Path) -> None:
    for more, words in (({"attention.causal": False}, "encoder"), ({"general.type": "adapter"}, "adapter")):
        metadata, shapes = llama()
        with pytest.raises(CardError, match=words):
            read_gguf(write(tmp_path / "model.gguf", "llama", metadata | more, shapes)[0])
