"""Checkpoint folders as the frameworks write them: configuration and tensors, agreeing and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from planner import CardError, UnknownNameError, load_model, plan
from planner.memory import weight_bytes
from planner.model import ModelSpec

SMALL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "tiny-llama")


def saved(folder: Path, model_type: str = "llama", **changed: Any) -> Path:
    """A checkpoint of a small model in bf16, in several shards."""
    kind: Any = AutoModelForCausalLM
    model = kind.from_config(AutoConfig.for_model(model_type, **{**SMALL, **changed}))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    return folder


def edit(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changed}))


def add(folder: Path, **tensors: torch.Tensor) -> None:
    """Put further tensors into the first shard."""
    path = min(folder.glob("*.safetensors"))
    save_file({**load_file(path), **tensors}, path)
    (folder / "model.safetensors.index.json").unlink()


def released(model: ModelSpec) -> int:
    return weight_bytes(model.all_tensors(), model.weight_formats())


def tensor_bytes(folder: Path) -> int:
    return sum(t.numel() * t.element_size() for f in folder.glob("*.safetensors") for t in load_file(f).values())


def test_a_folder_is_its_configuration_and_its_tensors(folder: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = load_model(folder)
    assert model.name == "tiny-llama"
    assert model.note == ""
    assert released(model) == tensor_bytes(folder) == 2 * model.total_parameters
    assert plan(f"{folder}/", "h100", context=256).memory.weight_bytes == tensor_bytes(folder)


def test_naming_a_tensor_file_or_the_configuration_is_enough(folder: Path) -> None:
    whole = load_model(folder).total_parameters
    assert load_model(folder / "config.json").total_parameters == whole
    assert load_model(next(folder.glob("*.safetensors"))).total_parameters == whole


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"vocab_size": 90}, "vocabulary 96 rather than 90"),
        ({"num_key_value_heads": 4}, "2 KV heads rather than 4"),
        ({"intermediate_size": 100}, "feed-forward width 96 rather than 100"),
    ],
)
def test_tensors_win_over_the_configuration(folder: Path, changed: dict[str, int], told: str) -> None:
    right = load_model(folder)
    edit(folder, **changed)
    model = load_model(folder)
    assert told in model.note
    assert (model.total_parameters, model.attention, model.ffn) == (right.total_parameters, right.attention, right.ffn)
    assert released(model) == tensor_bytes(folder)


def test_a_head_that_is_not_there_is_the_embedding(folder: Path) -> None:
    saved(folder / "tied", tie_word_embeddings=True)
    edit(folder / "tied", tie_word_embeddings=False)
    model = load_model(folder / "tied")
    assert model.tied
    assert "no head of its own" in model.note
    assert released(model) == tensor_bytes(folder / "tied")


def test_weights_that_the_configuration_does_not_explain_are_counted(folder: Path) -> None:
    add(folder, **{"model.layers.0.adapter.weight": torch.zeros(7, 9)})
    model = load_model(folder)
    assert "63 parameters more than the configuration explains" in model.note
    assert model.other[-1].parameters == 63


def test_fp8_with_block_scales_is_weighed_to_the_byte(tmp_path: Path) -> None:
    folder = saved(tmp_path / "fp8")
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = torch.ones(1, 1)
        save_file(tensors, path)
    (folder / "model.safetensors.index.json").unlink()
    edit(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    model = load_model(folder)
    assert model.note == ""
    assert released(model) == tensor_bytes(folder)
    assert plan(model, "h100", context=256).deployment.weights == "fp8-block128"


def test_draft_layers_are_not_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mtp")
    whole = load_model(folder).total_parameters
    add(
        folder,
        **{
            "model.layers.3.eh_proj.weight": torch.zeros(64, 128),
            "model.layers.3.mlp.up_proj.weight": torch.zeros(9, 9),
        },
    )
    model = load_model(folder)
    assert model.total_parameters == whole
    assert released(model) == 2 * whole


def test_a_folder_that_is_none_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no such file or folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CardError, match=r"no config\.json"):
        load_model(tmp_path)


def test_an_encoder_decoder_with_a_head_of_its_own(tmp_path: Path) -> None:
    small = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 96}
    kind: Any = AutoModelForSeq2SeqLM
    kind.from_config(AutoConfig.for_model("t5", **small)).to(torch.bfloat16).save_pretrained(tmp_path)
    tied = load_model(tmp_path)
    assert released(tied) == tensor_bytes(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "lm_head.weight": torch.zeros(96, 32, dtype=torch.bfloat16)}, path)
    edit(tmp_path, tie_word_embeddings=False)
    untied = load_model(tmp_path)
    assert untied.total_parameters == tied.total_parameters + 96 * 32
    assert released(untied) == tensor_bytes(tmp_path)
