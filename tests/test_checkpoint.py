"""Configurations of strangers: known, unknown, quantised, hostile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import CardError, load_model, model_ids, plan
from planner.checkpoint.architecture import architecture_names, load_architecture
from planner.checkpoint.config import model_of
from planner.checkpoint.expression import Scope, compiled
from planner.checkpoint.modules import Patterns
from planner.checkpoint.template import at_of
from planner.model import ModelSpec
from planner.report.card import card_text
from planner.row import Source, select_layers
from planner.tensors import Role

HERE = Source(title="made up for a test", locator="tests/test_checkpoint.py", date="2026-11-24")
FOLDER = Path(__file__).parent.parent / "planner" / "checkpoint" / "architectures"
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
}  # fmt: skip


def read(config: dict[str, Any], **options: Any) -> ModelSpec:
    return model_of(config, "toy", HERE, **options)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# -- the architecture files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", architecture_names())
def test_an_architecture_file_is_whole(name: str) -> None:
    table = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    known = {"title", "like", "aliases", "source", "note", "defaults", "let", "model", "configs", "decoder", "encoder"}
    known |= {"attention", "state", "ffn", "extra", "other", "drafter", "known_by"}
    assert set(table) <= known
    assert table["title"]
    assert table["source"]
    load_architecture(name)
    for text in _formulas(table):
        compiled(text)


def _formulas(table: dict[str, Any], within: str = "") -> list[str]:
    words = (
        "kind",
        "name",
        "role",
        "state_format",
        "conv_format",
        "mechanism",
        "title",
        "like",
        "source",
        "note",
        "decoder",
    )
    found = []
    for key, value in table.items():
        if isinstance(value, dict) and key != "configs":
            found += _formulas(value, key)
        elif isinstance(value, str) and key not in (*words, "known_by"):
            found.append(value)
    return found


@pytest.mark.parametrize("name", architecture_names())
def test_what_an_architecture_names_is_there(name: str) -> None:
    arch = load_architecture(name)
    for nested in filter(None, arch.configs.values()):
        load_architecture(nested)
    assert not arch.decoder or arch.configs[arch.decoder]


def test_no_two_architectures_claim_one_name() -> None:
    names = [a.lower() for n in architecture_names() for a in _aliases(n)] + architecture_names()
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)


def _aliases(name: str) -> list[str]:
    found: list[str] = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")).get("aliases", [])
    return found


@pytest.mark.parametrize(
    "text", ["__import__('os')", "a.__class__", "(lambda: 1)()", "open('x')", "[].append(1)", "a := 1", "f'{a}'", "1 +"]
)
def test_formulas_are_arithmetic_only(text: str) -> None:
    with pytest.raises(CardError):
        Scope({"a": 1}).value(text)


def test_a_hostile_value_is_not_multiplied_out() -> None:
    for config in ({"a": "x" * 100, "b": 10**15}, {"a": [1], "b": 10**15}, {"a": 10, "b": 10**9}):
        for text in ("a * b", "a ** b"):
            if text == "a * b" and config["a"] == 10:
                continue
            with pytest.raises(CardError, match="cannot derive"):
                Scope(config).value(text)


def test_a_scope_looks_in_derivations_then_keys_then_defaults() -> None:
    scope = Scope({"b": 2, "c": None}, {"a": "b + d", "b": "b * 10"}, {"c": 5, "d": "b + 1"})
    assert (scope["a"], scope["b"], scope["c"], scope["d"], scope["e"]) == (41, 20, None, 21, None)


@given(st.sets(st.integers(0, 39), min_size=1))
def test_layers_are_written_as_they_are_read(layers: set[int]) -> None:
    assert select_layers(at_of(sorted(layers), 40), 40) == layers


# -- known and unknown -------------------------------------------------------------------------------------------------


def test_a_config_is_read_as_the_model_it_describes() -> None:
    model = read(LLAMA)
    each = 64 * 64 * 2 + 2 * 64 * 16 + 3 * 64 * 128 + 2 * 64
    assert model.total_parameters == 2 * 100 * 64 + 64 + 3 * each
    assert plan(model, "h100", context=512).memory.kv_bytes_per_token == 3 * 2 * 2 * 8 * 2


def test_an_unknown_architecture_with_standard_keys_is_planned_with_a_note() -> None:
    model = read({**LLAMA, "model_type": "novel", "attention_dropout": 0.1, "mystery": None})
    assert model.total_parameters == read(LLAMA).total_parameters
    assert "novel is unknown: planned as a standard decoder" in model.note
    assert model.note in plan(model, "h100", context=512).notes


def test_other_spellings_of_the_standard_keys() -> None:
    other = {
        "model_type": "novel", "n_embd": 64, "n_inner": 128, "n_layer": 3, "n_head": 8, "num_kv_heads": 2, "n_vocab": 100,
        "n_positions": 512,
    }  # fmt: skip
    assert read(other).total_parameters == read(LLAMA).total_parameters


def test_a_key_that_nobody_understands_is_refused_by_name() -> None:
    strange = {**LLAMA, "model_type": "novel", "state_space_rank": 4}
    with pytest.raises(CardError, match=r"'state_space_rank'.*--assume-decoder"):
        read(strange)
    assert read(strange, assume_decoder=True).total_parameters == read(LLAMA).total_parameters


def test_an_unknown_wrapper_is_planned_as_its_language_model() -> None:
    model = read({"model_type": "novel_vl", "vision_tower": {"depth": 3}, "text_config": LLAMA})
    assert model.total_parameters == read(LLAMA).total_parameters
    assert "only its text_config is planned" in model.note


# -- quantisation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["llava", "qwen2_vl", "qwen2_5_vl", "hunyuan_vl", "paddleocr_vl"])
def test_an_older_file_has_its_decoders_keys_at_the_top(wrapper: str) -> None:
    keys = {**LLAMA, "head_dim": 8}
    flat = read({**keys, "model_type": wrapper})
    nested = read({"model_type": wrapper, "text_config": {k: v for k, v in keys.items() if k != "model_type"}})
    assert flat.layers == 3
    assert flat.total_parameters == nested.total_parameters


def test_a_wrapper_without_its_decoders_table_is_what_its_class_says() -> None:
    first = read({**LLAMA, "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]})
    assert first == read({**LLAMA, "model_type": "llava_llama"})


def test_experts_beside_a_layers_own_are_dealt_out_to_ranks() -> None:
    model = read({
        **LLAMA, "model_type": "ernie4_5_vl_moe", "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": [32, 16],
        "moe_num_shared_experts": 1, "moe_layer_start_index": 0,
    })  # fmt: skip
    experts = next(row.tensor for row in model.extra if row.name == "vision experts")
    assert experts.parameters == 4 * 3 * 64 * 16
    assert experts.per_rank(4) == experts.parameters // 4


def bits(quantization: dict[str, Any], **config: Any) -> dict[str, float]:
    formats = read({**LLAMA, **config, "quantization_config": quantization}).weight_formats()
    roles = {"attention": Role.ATTENTION, "ffn": Role.FFN, "head": Role.HEAD, "embedding": Role.EMBEDDING}
    return {name: round(float(formats[role].bits), 4) for name, role in roles.items()}


GROUP = {"weights": {"num_bits": 4, "type": "int", "group_size": 64, "symmetric": True}, "targets": ["Linear"]}


@pytest.mark.parametrize(
    ("table", "attention", "ffn", "head"),
    [
        ({"quant_method": "fp8"}, 8, 8, 16),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8.002, 8.002, 16),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 4.1562, 4.1562, 16),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1, "lm_head": True}, 4, 4, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5, 4.5, 16),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.127, 4.127, 16),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, 8, 16),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": GROUP}, "ignore": ["lm_head"]}, 4.25, 4.25, 16),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": GROUP}}, 4.25, 4.25, 4.25),
        ({"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*self_attn*"]}, 16, 4.5, 16),
        ({"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}, 8, 8, 16),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp"]}, 8, round(8 + 8 / 3, 4), 16),
        ({"quant_method": "fp8", "ignore": [r"re:.*layers\.[01]\..*"]}, round(8 + 16 / 3, 4), round(8 + 16 / 3, 4), 16),
        ({"quant_method": "novel"}, 16, 16, 16),
    ],
)
def test_quantisation_tables(table: dict[str, Any], attention: float, ffn: float, head: float) -> None:
    assert bits(table) == {"attention": attention, "ffn": ffn, "head": head, "embedding": 16}


def test_an_unknown_method_says_so() -> None:
    assert (
        "'novel' is unknown: planned in 16 bit"
        in read({**LLAMA, "quantization_config": {"quant_method": "novel"}}).note
    )


def test_fp32_checkpoints_are_loaded_in_16_bit_and_say_so() -> None:
    model = read({**LLAMA, "torch_dtype": "float32"})
    assert "--weights fp32" in model.note
    assert model.weight_formats()[Role.FFN].id == "bf16"


def test_patterns_of_a_layer_stay_in_it() -> None:
    out = Patterns(["model.layers.1.*", "model.layers.7.self_attn*", "gate"])
    mlp, attention = ("mlp.up_proj",), ("self_attn.q_proj",)
    assert [out.match(n, mlp) for n in (1, 7, 10)] == [True, False, False]
    assert [out.match(n, attention) for n in (1, 7, 17)] == [True, True, False]


def test_a_regular_expression_that_could_run_for_ever_is_not_run() -> None:
    out = Patterns(["re:(a+)+$", "re:.*.*.*.*.*x", "re:(", "re:" + "a" * 500])
    assert len(out.refused) == 4
    assert not out.match(0, ("a" * 60,))


# -- cards -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_ids())
def test_a_card_written_is_the_card_read(name: str) -> None:
    model = load_model(name)
    assert ModelSpec(id=name, **tomllib.loads(card_text(model))) == model


def test_a_config_becomes_a_card(tmp_path: Path) -> None:
    model = load_model(written(tmp_path, json.dumps({**LLAMA, "quantization_config": {"quant_method": "fp8"}})))
    (tmp_path / "toy.toml").write_text(card_text(model))
    again = load_model(tmp_path / "toy.toml")
    assert again.total_parameters == model.total_parameters
    assert again.weight_formats() == model.weight_formats()


# -- hostile -----------------------------------------------------------------------------------------------------------


def llama(**changed: Any) -> str:
    return json.dumps({**LLAMA, **changed})


HOSTILE: dict[str, str | bytes] = {
    "deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "deep list": '{"a":' + "[" * 40 + "]" * 40 + "}",
    "layers": llama(num_hidden_layers=10**18),
    "negative": llama(num_attention_heads=-8),
    "zero": llama(num_attention_heads=0),
    "float": llama(hidden_size=64.5),
    "string": llama(num_hidden_layers="3"),
    "text": llama(num_attention_heads="a" * 10_000),
    "list": llama(num_attention_heads=[8]),
    "table": llama(hidden_size={}),
    "true": llama(num_hidden_layers=True),
    "null": llama(num_hidden_layers=None),
    "nan": '{"model_type": "llama", "hidden_size": NaN}',
    "infinity": '{"model_type": "llama", "hidden_size": 1e999}',
    "digits": '{"model_type": "llama", "hidden_size": ' + "9" * 100_000 + "}",
    "duplicate": '{"model_type": "llama", "model_type": "qwen2"}',
    "large": '{"model_type": "llama", "x": "' + "a" * 100_000_000 + '"}',
    "empty": "",
    "array": "[]",
    "nothing": "{}",
    "binary": b"\x00\xff\x00",
    "layer types": json.dumps({"model_type": "gemma3_text", "layer_types": ["full_attention"]}),
    "name": '{"model_type": "../../etc/passwd"}',
    "hidden name": '{"model_type": "_decoder"}',
    "colour": '{"model_type": "\\u001b[31mred"}',
    "nested": '{"model_type": "gemma3", "text_config": []}',
    "no experts": json.dumps({"model_type": "qwen3_moe", "decoder_sparse_step": 0}),
}

_MEASURED = """
import sys
from planner.cli import main
try:
    main()
finally:
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
"""


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_config_is_one_line_and_exit_2(case: str, tmp_path: Path) -> None:
    path = written(tmp_path, HOSTILE[case])
    words = [sys.executable, "-c", _MEASURED, str(path), "--gpu", "h100"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent.parent)
    *lines, kib = done.stderr.splitlines()
    assert done.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("kvplan: ")
    assert len(lines[0]) < 620
    assert lines[0].isprintable()
    assert done.stdout == ""
    assert int(kib) < 200 * 1024


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)
KEYS = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
        "vocab_size", "layer_types", "sliding_window", "text_config", "vision_config", "quantization_config", "torch_dtype",
        "num_experts", "max_position_embeddings", "tie_word_embeddings", "architectures"]  # fmt: skip


@given(st.sampled_from(architecture_names()), st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4))
def test_any_values_are_a_model_or_one_line(name: str, values: dict[str, Any]) -> None:
    with contextlib.suppress(CardError):
        assert read({"model_type": name, **values}).total_parameters > 0
