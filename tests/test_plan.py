"""What a plan holds and how it settles what was left open."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from planner import InputError, KvplanError, compare, load_gpu, load_model, plan, sweep
from planner.deployment import deploy
from tests.specs import build, device

KEYS = {
    "model": {"id", "parameters", "active_parameters", "layers", "context_limit"},
    "gpu": {"id", "count", "usable_bytes", "bandwidth_bytes_per_s"},
    "deployment": {"tensor_parallel", "pipeline_parallel", "weights", "kv", "engine"},
    "workload": {"batch", "context"},
    "memory": {
        "weight_bytes", "weight_bytes_per_gpu", "kv_bytes_per_token", "kv_bytes_per_token_saturated",
        "kv_bytes_per_sequence", "state_bytes_per_sequence", "kv_pool_bytes_per_gpu", "kv_pool_tokens",
        "activation_bytes_per_gpu", "overhead_bytes_per_gpu", "fits", "max_batch", "max_context",
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
    need = p.memory.weight_bytes_per_gpu + p.memory.activation_bytes_per_gpu + p.memory.overhead_bytes_per_gpu
    missing = need + p.memory.kv_bytes_per_gpu - p.memory.budget_bytes_per_gpu
    assert p.memory.missing_bytes_per_gpu == missing > 0
    options = {r.option for r in p.remedies}
    assert any(o.startswith("--weights") for o in options)
    assert any(o.startswith("--gpu") for o in options)


def options_of(option: str) -> tuple[str | None, dict[str, Any]]:
    """A remedy's option as arguments of `plan`."""
    words = option.split()
    pairs = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    return pairs.pop("gpu", None), pairs


@pytest.mark.parametrize(
    ("model", "gpu", "options"),
    [
        ("llama3-70b", "1xh100", {}),
        ("llama3-70b", "4xh100", {"batch": 200}),
        ("llama3.1-405b", "8xh100", {}),
        ("qwen3-32b", "2xl40s", {"batch": 64, "context": 32_768}),
        ("gemma3-27b", "1xl4", {}),
        ("deepseek-v3", "8xh100", {"context": 32_768}),
    ],
)
def test_every_remedy_fits_when_it_is_planned(model: str, gpu: str, options: dict[str, Any]) -> None:
    p = plan(model, gpu, **options)
    assert not p.memory.fits
    assert p.remedies
    for remedy in p.remedies:
        other, changed = options_of(remedy.option)
        again = plan(model, other or gpu, **{**options, **changed})
        assert again.memory.fits, remedy
        assert again.memory.max_batch == remedy.max_batch, remedy
        assert again.decode.step_s == pytest.approx(remedy.step_s), remedy


def test_unknown_peak_and_link_are_said_and_cost_what_they_say() -> None:
    gpu = device(peak_tflops={}, link={"kind": "mystery", "devices": 8})
    p = plan(build(), gpu, tp=2)
    assert p.prefill.ttft_s is None
    assert any("No peak compute rate" in n for n in p.notes)
    assert any("No link bandwidth" in n for n in p.notes)
    assert p.decode.parts_s["link"] == p.decode.parts_s["compute"] == 0


def test_h100_means_the_sxm_board_and_says_so() -> None:
    p = plan("llama3-8b", "h100")
    assert p.gpu.id == "h100-sxm"
    assert any("H100 SXM5 80GB" in n for n in p.notes)


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
        {"weights": "fp3"}, {"kv": "int4"}, {"engine": "nothing"}, {"attention": "mha:3"}, {"attention": "gqa:7"},
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
    assert len(frame) == table.rows
    table.to_csv(tmp_path / "t.csv")
    again = pd.read_csv(tmp_path / "t.csv")
    assert list(again.columns) == list(frame.columns)
    pd.testing.assert_frame_equal(frame, again, check_dtype=False, rtol=1e-8)
