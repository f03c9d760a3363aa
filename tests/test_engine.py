"""Engines as data: versions, settings under their own names, defaults by device, budgets line by line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import InputError, KvplanError, UnknownNameError, load_gpu, load_model, plan
from planner.budget import LINES, Budget
from planner.cli.settings import take_settings
from planner.deployment import Deployment
from planner.engine import Engine, Situation, engine_ids, load_engine
from planner.settle import deploy
from planner.setup import Setup

ENGINES = [name for name in engine_ids() if name != "none"]


def setup(engine: str, gpu: str, gpus: int = 1, *, longest: int = 8192, states: bool = False, **given: Any) -> Setup:
    at = Situation(load_gpu(gpu), gpus, "", states, longest)
    return load_engine(engine).setup(at, given)


def deployed(model: str, gpu: str, **options: Any) -> Deployment:
    return deploy(load_model(model), gpu, context=options.pop("context", 8192), **options)


@pytest.mark.parametrize("name", engine_ids())
def test_every_engine_states_a_version_and_its_sources(name: str) -> None:
    engine = load_engine(name)
    assert engine.source
    assert engine.label == name
    assert all(knob.sets or knob.kind == "word" for knob in engine.knob)
    flags = [flag for knob in engine.knobs for flag in knob.flags]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("name", ENGINES)
def test_every_setting_sets_something_that_exists(name: str) -> None:
    choices = {"tp", "pp", "dp", "ep", "kv", "kv_values", "weights", "all_tokens", "slots", "ep_ranks", "dp_attention"}
    for knob in load_engine(name).knob:
        assert knob.sets.removeprefix("!") in choices | set(Setup.model_fields), knob.name


@pytest.mark.parametrize(
    ("engine", "gpu", "share", "tokens", "sequences"),
    [
        ("vllm@0.19", "h100", 0.9, 8192, 1024), ("vllm@0.20", "h100", 0.92, 8192, 1024), ("vllm", "a100", 0.92, 2048, 256),
        ("vllm", "l4", 0.92, 2048, 256), ("vllm@0.27", "mi300x", 0.92, 8192, 1024),
        ("vllm@0.28", "mi300x", 0.92, 16384, 1024),
        ("sglang@0.4.3", "h100", 0.88, 8192, 2048), ("trtllm", "h100", 0.9, 8192, 2048),
    ],
)  # fmt: skip
def test_defaults_are_those_of_the_version_and_the_device(
    engine: str, gpu: str, share: float, tokens: int, sequences: int
) -> None:
    found = setup(engine, gpu)
    assert (found.memory_fraction, found.step_tokens, found.sequences) == (share, tokens, sequences)


def test_sglangs_share_leaves_its_reserve() -> None:
    """512 + 8 x 59 MiB, 1.5 a prefill token, 2 a captured sequence, 128 a rank; at least 10 GiB on large devices."""
    total = load_gpu("l4").usable_bytes / 2**20
    reserve = 984 + 1.5 * 4096 + 2 * 48 + 128
    assert setup("sglang", "l4").memory_fraction == pytest.approx(1 - reserve / total, abs=1e-3)
    total = load_gpu("h100").usable_bytes / 2**20
    assert setup("sglang", "h100").memory_fraction == pytest.approx(1 - 13912 / total, abs=1e-3)


def test_before_chunks_a_pass_holds_the_longest_prompt() -> None:
    assert setup("vllm@0.7", "rtx-3090", longest=20_000).step_tokens == 20_000
    assert setup("vllm@0.7", "rtx-3090", longest=131_072).step_tokens == 2048
    assert setup("vllm@0.19", "rtx-3090", longest=20_000).step_tokens == 2048


@pytest.mark.parametrize(
    ("engine", "settings", "field", "value"),
    [
        ("vllm", {"max_num_seqs": 64}, "sequences", 64),
        ("vllm", {"--max-num-seqs": "64"}, "sequences", 64),
        ("vllm", {"gpu_memory_utilization": "85%"}, "memory_fraction", 0.85),
        ("vllm", {"enforce_eager": True}, "graphs", False),
        ("vllm", {"max_num_batched_tokens": "4k"}, "step_tokens", 4096),
        ("vllm", {"kv_cache_memory_bytes": 2**33}, "kv_memory", 2**33),
        ("sglang", {"mem_fraction_static": 0.8}, "memory_fraction", 0.8),
        ("sglang", {"disable_radix_cache": "on"}, "prefix_caching", False),
        ("trtllm", {"free_gpu_memory_fraction": 0.5}, "memory_fraction", 0.5),
        ("llamacpp", {"ubatch_size": 2048}, "step_tokens", 2048),
    ],
)
def test_settings_set_what_they_name(engine: str, settings: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(deployed("llama3-8b", "1xh100", engine=engine, settings=settings).setup, field) == value


def test_settings_that_are_choices_of_kvplan_are_the_same_choice() -> None:
    by_flag = deployed("llama3-70b", "8xh100", settings={"tensor_parallel_size": 4, "pipeline_parallel_size": 2})
    by_option = deployed("llama3-70b", "8xh100", tp=4, pp=2)
    assert (by_flag.tp, by_flag.pp) == (by_option.tp, by_option.pp)
    assert deployed("llama3-8b", "h100", settings={"kv_cache_dtype": "fp8"}).precision.kv.id == "fp8"
    assert deployed("llama3-8b", "h100", settings={"kv_cache_dtype": "auto"}).precision.kv.id == "bf16"


@pytest.mark.parametrize(
    ("engine", "settings", "error", "words"),
    [
        ("vllm", {"max_num_seq": 3}, UnknownNameError, "did you mean max_num_seqs"),
        ("vllm", {"mem_fraction_static": 0.8}, UnknownNameError, "kvplan engines vllm"),
        ("vllm@0.8", {"kv_cache_memory_bytes": 1}, InputError, "name another version"),
        ("vllm", {"gpu_memory_utilization": 1.5}, InputError, "at most 1"),
        ("vllm", {"max_num_seqs": -1}, InputError, "between 1"),
        ("vllm", {"max_num_seqs": "nan"}, InputError, "cannot read"),
        ("vllm", {"enforce_eager": "perhaps"}, InputError, "on or off"),
        ("vllm", {"max_model_len": 100}, InputError, "more than the 100 tokens"),
        ("vllm", [("max_num_seqs", 1)], InputError, "names with values"),
        ("sglang", {"mamba_full_memory_ratio": "x"}, InputError, "must be a number"),
    ],
)
def test_bad_settings_say_what_to_do(engine: str, settings: Any, error: type[KvplanError], words: str) -> None:
    with pytest.raises(error, match=words):
        deployed("llama3-8b", "1xh100", engine=engine, settings=settings)


def test_a_setting_and_an_option_that_contradict_are_refused() -> None:
    with pytest.raises(InputError, match="contradicts"):
        deployed("llama3-8b", "1xh100", memory_fraction=0.8, settings={"gpu_memory_utilization": 0.9})
    assert deployed("llama3-8b", "1xh100", memory_fraction=0.8, settings={"gpu_memory_utilization": 0.8})


@pytest.mark.parametrize("name", ["vllm@", "vllm@x", "vllm@0.3", "vlm", "none@1", "vllm@" + "9" * 200, "", "vllm@-1"])
def test_unknown_engines_and_versions_are_refused(name: str) -> None:
    with pytest.raises(KvplanError):
        load_engine(name)


def test_development_versions_are_their_release() -> None:
    assert load_engine("vllm@0.20.2rc1.dev9+g01d4d1ad3").version == "0.20.2"
    assert load_engine("vllm@v0.19.1").version == "0.19.1"


# -- the budget --------------------------------------------------------------------------------------------------------

sizes = st.integers(0, 2**38)


@given(
    st.integers(2**30, 2**40),
    st.floats(0.05, 1),
    sizes,
    sizes,
    sizes,
    st.permutations(LINES),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_lines_are_counted_once(
    usable: int, fraction: float, weights: int, other: int, graphs: int, order: list[Any], first: int, second: int
) -> None:
    cut = sorted((first, second))
    budget = Budget(
        usable, fraction, weights, 0, other, 2**20, graphs, tuple(order[: cut[0]]), tuple(order[cut[0] : cut[1]])
    )
    held = sum(map(budget.line, LINES))
    assert (
        budget.pool
        + sum(map(budget.line, budget.before + budget.inside))
        + (usable - sum(map(budget.line, budget.before)) - budget.limit)
        == usable
    )
    assert budget.outside == held - sum(map(budget.line, budget.before + budget.inside))


def test_vllm_takes_a_share_of_the_total_and_sglang_of_what_is_free() -> None:
    ours, theirs = (deployed("llama3-8b", "1xh100", engine=e).budgets[0] for e in ("vllm", "sglang"))
    assert ours.limit == int(ours.usable * 0.92)
    assert theirs.limit == int((theirs.usable - theirs.other) * theirs.fraction)
    assert theirs.outside == theirs.activations + theirs.graphs


def test_activations_are_subtracted_on_every_gpu() -> None:
    one, two = (plan("llama3-8b", f"{n}xh100", engine="vllm@0.19").memory for n in (1, 2))
    assert one.activation_bytes_per_gpu == two.activation_bytes_per_gpu > 0
    assert one.fullest_gpu.activation_bytes == one.activation_bytes_per_gpu


def test_graphs_are_in_the_share_only_since_they_are_profiled() -> None:
    old, new = (plan("llama3-8b", "1xh100", engine=e).memory.fullest_gpu for e in ("vllm@0.19", "vllm@0.20"))
    assert "graphs" in old.outside
    assert "graphs" not in new.outside


# -- sharding ----------------------------------------------------------------------------------------------------------


def test_data_parallel_attention_keeps_a_cache_a_group_and_shares_experts() -> None:
    tensor, data = deployed("deepseek-v3", "8xh200", tp=8), deployed("deepseek-v3", "8xh200", dp=8, ep=True)
    assert data.count == tensor.count == 8
    assert data.reserved_bytes(8192) < tensor.reserved_bytes(8192) / 7  # the latent is no longer kept eight times
    assert data.max_batch(8192) > 1.5 * tensor.max_batch(8192)
    attention = sum(
        t.parameters * n for t, n in data.stages[0].all_tensors() if t.name in ("q_b_proj", "o_proj", "kv_b_proj")
    )
    assert data.stage_weight_bytes[0] - tensor.stage_weight_bytes[0] > 0.8 * attention


def test_whole_experts_leave_the_fullest_rank_with_one_more() -> None:
    sliced, whole = (deployed("gpt-oss-120b", "8xh100", tp=8, ep=ep, engine="none") for ep in (False, True))
    ours, theirs = whole.stage_weight_bytes[0], sliced.stage_weight_bytes[0]
    assert ours == pytest.approx(theirs, rel=0.01)  # 128 experts over 8 ranks come out even but for a bias
    sliced, whole = (deployed("qwen1.5-moe-a2.7b", "8xh100", tp=8, ep=ep, engine="none") for ep in (False, True))
    assert whole.stage_weight_bytes[0] > sliced.stage_weight_bytes[0]  # 60 experts: eight of them on the fullest rank


def test_dp_must_divide_the_gpus() -> None:
    with pytest.raises(InputError, match="--dp 3 does not divide"):
        deployed("deepseek-v3", "8xh200", dp=3)


# -- options on the command line -----------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=12), max_size=8))
def test_taking_settings_never_fails_in_another_way(words: list[str]) -> None:
    try:
        found, rest = take_settings(words, {"--gpu"})
    except InputError:
        return
    assert len(rest) + len(found) <= len(words)


def test_settings_may_stand_anywhere_and_with_equals() -> None:
    own = {"--gpu"}
    assert take_settings(["--max-num-seqs=8", "m", "--gpu", "h100"], own) == (
        {"--max-num-seqs": "8"}, ["m", "--gpu", "h100"],
    )  # fmt: skip
    with pytest.raises(InputError, match="needs a value"):
        take_settings(["m", "--max-num-seqs"], own)


@pytest.mark.parametrize("name", ENGINES)
def test_engines_are_engines(name: str) -> None:
    assert isinstance(load_engine(name), Engine)
    answer = plan("llama3-8b", "1xh100", engine=name)
    assert answer.memory.fits
    assert answer.launch
    assert answer.launch.startswith(load_engine(name).launch.partition(" {")[0])


@pytest.mark.parametrize(
    ("name", "engine", "version"),
    [
        ("TensorRT-LLM", "trtllm", "1.2"),
        ("tensorrt_llm@1.0.0rc3", "trtllm", "1.0.0"),
        ("llama.cpp", "llamacpp", "9461"),
        ("SGLang@0.5.6.post2", "sglang", "0.5.6"),
    ],
)
def test_engines_go_by_their_own_names_too(name: str, engine: str, version: str) -> None:
    found = load_engine(name)
    assert (found.id, found.version) == (engine, version)


def test_a_version_that_is_none_is_said_to_be() -> None:
    with pytest.raises(InputError, match="cannot read the version"):
        load_engine("vllm@nightly")
