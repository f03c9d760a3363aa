"""What a plan holds and how it settles what was left open."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner import InputError, KvplanError, compare, gpu_ids, load_gpu, load_model, model_ids, plan, sweep
from planner.cli.settings import take_settings
from planner.settle import deploy
from tests.specs import build, device

KEYS = {
    "model": {"id", "parameters", "active_parameters", "layers", "context_limit"},
    "gpu": {"id", "count", "usable_bytes", "bandwidth_bytes_per_s"},
    "deployment": {"tensor_parallel", "pipeline_parallel", "weights", "kv", "engine"},
    "workload": {"batch", "context"},
    "memory": {
        "weight_bytes", "weight_bytes_per_gpu", "kv_bytes_per_token", "kv_bytes_per_token_saturated",
        "kv_bytes_per_sequence", "state_bytes_per_sequence", "kv_pool_bytes_per_gpu", "kv_pool_tokens",
        "activation_bytes_per_gpu", "other_bytes_per_gpu", "graph_bytes_per_gpu", "fits", "max_batch", "max_context",
    },
    "decode": {
        "step_s", "ideal_step_s", "interval_s", "origin", "bound", "tokens_per_s", "arithmetic_intensity",
    },
    "prefill": {"ttft_s", "ideal_s"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "gpu"),
    [
        ("llama3-70b", "h100"),
        ("llama3-70b", "1xh100"),
        ("mistral-7b-v0.1", "apple-m2-ultra"),
        ("deepseek-v3", "tpu-v5e"),
    ],
)
def test_json_has_the_promised_keys(model: str, gpu: str) -> None:
    data = json.loads(plan(model, gpu).to_json(), parse_constant=pytest.fail)
    for section, keys in KEYS.items():
        assert keys <= set(data[section]), section
    assert {"context", "max_batch"} <= set(data["frontier"][0])
    assert all(isinstance(note, str) for note in data["notes"])
    low, high = data["decode"]["interval_s"]
    assert 0 < low <= data["decode"]["step_s"] <= high


def test_results_are_frozen() -> None:
    p = plan("llama3-70b", "4xh100")
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.memory.fits = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "gpu", "options", "degrees"),
    [
        ("llama3-70b", "4xh100", {}, (4, 1)),
        ("llama3-70b", "16xh100", {}, (8, 2)),  # tensor parallel within the node, pipeline across
        ("llama3-70b", "6xh100", {}, (2, 3)),  # the largest divisor of 6 that divides 64 heads
        ("llama3-70b", "8xh100", {"tp": 2}, (2, 4)),
        ("llama3-70b", "8xh100", {"pp": 4}, (2, 4)),
        ("llama3-70b", "h100", {"tp": 8}, (8, 1)),
        ("llama3-70b", "h100", {"tp": 2, "pp": 2}, (2, 2)),
        ("llama3-8b", "h100", {}, (1, 1)),
        ("llama3-70b", "h100", {"engine": "none"}, (2, 1)),
        ("falcon-7b", "4xh100", {}, (1, 4)),  # 71 heads divide by nothing
    ],
)
def test_degrees(model: str, gpu: str, options: dict[str, Any], degrees: tuple[int, int]) -> None:
    p = plan(model, gpu, **options)
    assert (p.deployment.tensor_parallel, p.deployment.pipeline_parallel) == degrees
    assert p.gpu.count == degrees[0] * degrees[1]


def test_the_automatic_degree_is_the_smallest_with_room_for_one_sequence() -> None:
    p = plan("llama3-70b", "h100", context=8192)
    assert p.memory.fits
    assert any("smallest tensor-parallel degree" in note for note in p.notes)
    half = plan("llama3-70b", "h100", context=8192, tp=p.deployment.tensor_parallel // 2)
    assert not half.memory.fits


def test_one_gpu_that_does_not_fit_says_by_how_much_and_what_would() -> None:
    p = plan("llama3-70b", "1xh100")
    assert not p.memory.fits
    assert p.memory.max_batch == 0
    need = p.memory.weight_bytes_per_gpu + p.memory.activation_bytes_per_gpu + p.memory.other_bytes_per_gpu
    need += p.memory.graph_bytes_per_gpu
    missing = need + p.memory.kv_bytes_per_gpu - p.memory.budget_bytes_per_gpu
    assert p.memory.missing_bytes_per_gpu == missing > 0
    options = {r.option for r in p.remedies}
    assert any(o.startswith("--weights") for o in options)
    assert any(o.startswith("--gpu") for o in options)


def options_of(option: str) -> tuple[str | None, dict[str, Any]]:
    """A remedy's option as arguments of `plan`."""
    own = {"--gpu", "--tp", "--pp", "--weights", "--kv", "--context", "--batch"}
    settings, words = take_settings(option.split(), own)
    pairs: dict[str, Any] = {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}
    gpu = pairs.pop("gpu", None)
    changed = {name: int(value) if name in ("tp", "pp") else value for name, value in pairs.items()}
    return gpu, {**changed, **({"settings": settings} if settings else {})}


def replay(model: str, gpu: str, options: dict[str, Any]) -> int:
    """Plan every remedy exactly as its option says, added to the command as it was; how many there were."""
    p = plan(model, gpu, **options)
    for remedy in () if p.memory.fits else p.remedies:
        other, changed = options_of(remedy.option)
        again = plan(model, other or gpu, **{**options, **changed})
        assert again.memory.fits, remedy
        assert again.memory.max_batch == remedy.max_batch, remedy
        assert again.decode.step_s == pytest.approx(remedy.step_s), remedy
    return 0 if p.memory.fits else len(p.remedies)


@pytest.mark.parametrize(
    ("model", "gpu", "options"),
    [
        ("llama3-70b", "1xh100", {}),
        ("llama3-70b", "4xh100", {"batch": 200}),
        ("llama3-70b", "8xh100", {"batch": 400, "tp": 2, "pp": 4}),
        ("llama3.1-405b", "8xh100", {}),
        ("qwen3-32b", "2xl40s", {"batch": 64, "context": 32_768}),
        ("gemma3-27b", "1xl4", {}),
        ("deepseek-v3", "8xh100", {"context": 32_768}),
        ("command-r-08-2024", "tpu-v3", {"batch": 64}),
        ("dbrx", "a100-sxm-80gb", {"batch": 64}),
        ("kimi-k2.5", "8xrtx-5090", {"batch": 64}),
        ("palm-540b", "64xtpu-v4", {"tp": 64, "pad_heads": True, "batch": 4000, "engine": "none"}),
    ],
)
def test_every_remedy_fits_when_it_is_planned(model: str, gpu: str, options: dict[str, Any]) -> None:
    assert replay(model, gpu, options)


def test_remedies_of_random_plans_fit_when_they_are_planned() -> None:
    rng = random.Random(11)
    models, gpus = model_ids(), gpu_ids()
    tried = 0
    for _ in range(150):
        count = rng.choice(["", "", "1x", "2x", "8x"])
        options = {"batch": rng.choice([1, 16, 64, 300]), "kv": rng.choice([None, "fp8"])}
        tried += replay(rng.choice(models), count + rng.choice(gpus), options)
    assert tried > 50


def test_unknown_peak_and_link_are_said_and_cost_what_they_say() -> None:
    gpu = device(peak_tflops={}, link={"kind": "mystery", "devices": 8})
    p = plan(build(), gpu, tp=2)
    assert p.prefill.ttft_s is None
    assert any("No peak compute rate" in n for n in p.notes)
    assert any("No link bandwidth" in n for n in p.notes)
    assert p.decode.parts_s.link == p.decode.parts_s.compute == 0


def test_h100_means_the_sxm_board_and_says_so() -> None:
    p = plan("llama3-8b", "h100")
    assert p.gpu.id == "h100-sxm"
    assert any(n.startswith("h100 means this, the SXM") for n in p.notes)


def test_windows_alone_leave_the_context_unbounded() -> None:
    model = build(attention=({"heads": 8, "kv_heads": 2, "head_dim": 8, "window": 16},))
    p = plan(model, device(), engine="none")
    assert p.memory.max_context is None
    assert p.memory.kv_bytes_per_token_saturated == 0
    assert p.frontier[0].max_batch == p.frontier[-1].max_batch


def test_a_tied_head_is_copied_to_the_last_of_several_stages() -> None:
    model = build(tied=True)
    one = plan(model, device(), tp=1, engine="none").memory.weight_bytes_per_gpu
    d = deploy(model, device(), context=64, tp=1, pp=2, engine="none")
    assert sum(d.stage_weight_bytes) == one + model.vocab * model.hidden * 2


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0}, {"batch": -1}, {"batch": 1.5}, {"batch": float("nan")}, {"batch": True}, {"batch": 10**30},
        {"context": 0}, {"context": 10**9}, {"context": "8q"}, {"tp": 3}, {"tp": 0}, {"tp": "4"}, {"tp": True}, {"pp": 81},
        {"tp": 2, "pp": 3}, {"memory_fraction": 0}, {"memory_fraction": 1.5}, {"memory_fraction": float("nan")},
        {"weights": "fp3"}, {"kv": "int3"}, {"engine": "nothing"}, {"attention": "mha:3"}, {"attention": "gqa:7"},
        {"attention": "gqa:0"}, {"kv_memory": "many"}, {"kv_memory": -1}, {"source": 100}, {"kv_shard": "sideways"},
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_a_remedy(options: dict[str, Any]) -> None:
    with pytest.raises(KvplanError) as caught:
        plan("llama3-70b", "4xh100", **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20


def test_numpy_numbers_are_numbers() -> None:
    ours = plan("llama3-70b", "4xh100", batch=np.int64(4), context=np.int32(1024))  # type: ignore[arg-type]
    assert ours.to_json() == plan("llama3-70b", "4xh100", batch=4, context=1024).to_json()


def test_specs_and_names_are_the_same() -> None:
    by_name = plan("llama3-8b", "h100-sxm", tp=1)
    by_spec = plan(load_model("llama3-8b"), load_gpu("h100-sxm"), tp=1)
    assert by_name == by_spec


def test_compare_is_plans_side_by_side() -> None:
    c = compare("llama2-7b", "h100", ["mha", "gqa:8", "mqa", "mla"])
    assert [v.attention for v in c.variants] == ["published", "mha", "gqa:8", "mqa", "mla"]
    assert [v.factor_vs_mha for v in c.variants][:4] == [1, 1, 4, 32]
    for v in c.variants[1:]:
        p = plan("llama2-7b", "h100", tp=1, attention=v.attention)
        assert (v.max_batch, v.decode_step_s) == (p.memory.max_batch, p.decode.step_s)
    assert any("1911.02150" in n for n in c.notes)
    assert any("2305.13245" in n for n in c.notes)


def test_sweep_skips_what_cannot_be_and_says_so() -> None:
    table = sweep(["llama3-70b", "falcon-7b"], ["h100"], tp=[1, 8], context=[1024, 4096])
    assert {(d.model.id, d.tp) for d in table.deployments} == {("llama3-70b", 1), ("llama3-70b", 8), ("falcon-7b", 1)}
    assert any("71 query heads" in s for s in table.skipped)
    assert any("above its limit of 2,048" in s for s in table.skipped)
    with pytest.raises(InputError, match="nothing to sweep"):
        sweep(["falcon-7b"], ["h100"], tp=[8])


def test_sweep_table_and_csv_agree(tmp_path: Any) -> None:
    import pandas as pd

    table = sweep(
        ["llama3-70b", "gemma3-4b"], ["4xh100", "l4"], batch=range(1, 20), context=[100, 8192], kv=["bf16", "fp8"]
    )
    frame = table.to_pandas()
    assert len(frame) == len(table)
    table.to_csv(tmp_path / "t.csv")
    again = pd.read_csv(tmp_path / "t.csv")
    assert list(again.columns) == list(frame.columns)
    pd.testing.assert_frame_equal(frame, again, check_dtype=False, rtol=1e-8)


def test_kv_memory_is_no_more_than_there_is() -> None:
    assert not plan("llama3-70b", "1xh100", kv_memory="10GiB").memory.fits
    given = plan("llama3-70b", "4xh100", kv_memory="10GiB").memory
    assert given.kv_pool_bytes_per_gpu == 10 * 2**30
    most = plan("llama3-70b", "4xh100", kv_memory="400GiB")
    spent = most.memory.weight_bytes_per_gpu + most.memory.activation_bytes_per_gpu + most.memory.other_bytes_per_gpu
    spent += most.memory.graph_bytes_per_gpu
    assert most.memory.kv_pool_bytes_per_gpu == most.gpu.usable_bytes - spent
    assert not most.memory.fits
    assert most.memory.missing_bytes_per_gpu == 400 * 2**30 - most.memory.kv_pool_bytes_per_gpu
    assert plan("llama3-70b", "h100", kv_memory="50GiB").deployment.tensor_parallel == 8  # four leave less


def test_the_parts_of_the_bar_are_what_is_usable_and_what_is_missing() -> None:
    from planner.report.tables import budget_parts

    for gpu, options in (
        ("1xh100", {}),
        ("4xh100", {"batch": 100}),
        ("8xa100", {"tp": 2}),
        ("4xh100", {"kv_memory": "5GB"}),
    ):
        p = plan("llama3-70b", gpu, **options)
        parts = budget_parts(p)
        sizes = [part["bytes"] for part in parts]
        assert sum(sizes) == p.gpu.usable_bytes + p.memory.missing_bytes_per_gpu
        assert min(sizes) >= 0


def test_mla_stays_itself_and_gqa_finds_groups_that_divide() -> None:
    own = plan("deepseek-v3", "8xh200")
    assert plan("deepseek-v3", "8xh200", attention="mla").model.parameters == own.model.parameters
    assert plan("gpt2-xl", "h100", attention="gqa").model.variants == ("GQA-5",)
    assert [v.variant for v in compare("falcon-7b", "h100").variants] == ["MQA", "MHA", "MQA", "MQA"]


def test_catalogue_entries_cannot_be_changed_and_travel() -> None:
    gpu = load_gpu("h100")
    with pytest.raises(TypeError, match="cannot be changed"):
        gpu.peak_tflops.update({"bf16": 1.0})
    assert pickle.loads(pickle.dumps(gpu)) == gpu
    assert pickle.loads(pickle.dumps(load_model("gemma3-27b"))) == load_model("gemma3-27b")
    assert hash(plan("llama3-8b", "h100")) == hash(plan("llama3-8b", "h100"))


def test_a_parallel_layer_sums_once() -> None:
    fields = {"layers": 10}
    serial, parallel = (plan(build(parallel=p, **fields), device(), tp=2).decode.parts_s for p in (False, True))
    assert parallel.link < serial.link


def test_sweep_takes_text_single_values_and_arrays() -> None:
    one = sweep("llama3-8b", "h100", tp=1, batch="1:4,8", context="1k:2k").to_pandas()
    assert sorted(set(one.batch)) == [1, 2, 3, 4, 8]
    assert sorted(set(one.context_tokens)) == [1024, 2048]
    many = sweep(
        load_model("llama3-8b"), load_gpu("h100"), tp=np.array([1]), batch=np.arange(1, 4), context=["1k", 2048]
    )
    assert len(many) == 6
    wrong: list[dict[str, Any]] = [{"batch": b"12"}, {"context": [1024.5]}, {"tp": [0]}, {"tp": "x"}, {"batch": []}]
    for bad in wrong:
        with pytest.raises(KvplanError):
            sweep("llama3-8b", "h100", **bad)


@pytest.mark.parametrize(
    ("model", "gpu", "options"),
    [
        (None, "h100", {}), (5, "h100", {}), ("llama3-8b", None, {}), ("llama3-8b", 5, {}), ("llama3-8b", "h100x4", {}),
        ("llama3-8b", "h100", {"kv": 8}), ("llama3-8b", "h100", {"engine": None}), ("llama3-8b", "h100", {"attention": 5}),
        ("llama3-8b", "h100", {"kv_memory": [1]}), ("llama3-8b", "h100", {"memory_fraction": 10**400}),
        ("llama3-8b", "h100", {"weights": ""}), ("llama3-8b", "4xh100", {"count": 8}),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_kindly(model: Any, gpu: Any, options: dict[str, Any]) -> None:
    with pytest.raises(KvplanError):
        plan(model, gpu, **options)


def test_a_gpu_file_may_be_a_path() -> None:
    file = Path(__file__).parent.parent / "planner" / "gpus" / "h100-sxm.toml"
    assert plan("llama3-8b", file, tp=1).memory == plan("llama3-8b", "h100", tp=1).memory
