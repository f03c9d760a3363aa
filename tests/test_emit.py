"""Launch commands: the flags that realise a plan, in the words of the engine's version."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from planner import plan
from planner.engine import engine_ids, load_engine
from planner.settle import deploy

ENGINES = [name for name in engine_ids() if name != "none"]


def words(launch: str | None) -> list[str]:
    assert launch is not None
    return shlex.split(launch.replace("\\\n", " "))


def flags_of(launch: str | None) -> dict[str, str]:
    """Flags with the word after each; empty for one that stands alone."""
    found = words(launch)
    after = [*found[1:], ""]
    return {w: "" if n.startswith("--") else n for w, n in zip(found, after, strict=True) if w.startswith("--")}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("model", "gpu", "options"),
    [
        ("llama3-8b", "1xh100", {}),
        ("llama3.1-70b", "8xh100", {"kv": "fp8", "context": 32_768, "batch": 32}),
        ("deepseek-v3", "8xh200", {"dp": 8, "ep": True}),
        ("qwen3-32b", "4xl40s", {"tp": 2, "pp": 2}),
        ("gemma3-27b", "1xh100", {"memory_fraction": 0.8}),
    ],
)
def test_every_flag_is_one_of_the_engines(engine: str, model: str, gpu: str, options: dict[str, Any]) -> None:
    if engine == "llamacpp":  # it has stages only
        options = {name: value for name, value in options.items() if name not in ("dp", "ep", "tp", "pp")}
    launch = plan(model, gpu, engine=engine, **options).launch
    known = {w for k in load_engine(engine).knobs for w in words(k.flag)} | {k.off for k in load_engine(engine).knobs}
    known |= {w for w in words(load_engine(engine).launch) if w.startswith("--")} | {load_engine(engine).settings_file}
    assert set(flags_of(launch)) <= known


@pytest.mark.parametrize("engine", ["vllm", "vllm@0.20", "vllm@0.9", "sglang"])
def test_a_plan_made_from_its_own_flags_is_the_same(engine: str) -> None:
    options: dict[str, Any] = {
        "kv": "fp8",
        "context": 16_384,
        "batch": 8,
        "settings": {"page_size" if "sgl" in engine else "block_size": 32},
    }
    first = plan("llama3.1-70b", "8xh100", tp=4, pp=2, engine=engine, **options)
    settings = {name: value or "true" for name, value in flags_of(first.launch).items() if name != "--model-path"}
    second = plan("llama3.1-70b", "8xh100", engine=engine, context=16_384, batch=8, settings=settings)
    assert second.memory == first.memory
    assert second.deployment == first.deployment


def test_only_what_differs_from_the_engines_own_ways_is_said() -> None:
    assert flags_of(plan("llama3-8b", "1xh100").launch) == {"--max-model-len": "8192"}
    assert flags_of(plan("llama3-8b", "1xh100", settings={"enforce_eager": True}).launch)["--enforce-eager"] == ""


def test_the_model_is_named_as_the_engine_loads_it() -> None:
    assert words(plan("llama3-8b", "1xh100").launch)[:3] == ["vllm", "serve", "meta-llama/Meta-Llama-3-8B-Instruct"]
    asked = "meta-llama/Meta-Llama-3-8B"
    assert words(plan(asked, "1xh100").launch)[2] == asked


def test_a_batch_above_the_engines_limit_raises_it() -> None:
    answer = plan("llama3-8b", "1xl4", batch=300, context=128, weights="int4")
    assert flags_of(answer.launch)["--max-num-seqs"] == "300"
    assert any("its default is 256" in note for note in answer.notes)
    assert answer.deployment.sequences == 300


def test_what_has_no_flag_goes_into_a_file() -> None:
    launch = plan("deepseek-v3", "8xh200", engine="trtllm", kv="fp8").launch
    assert launch is not None
    assert launch.startswith("cat > kvplan-engine.yaml <<'EOF'\nkv_cache_config:\n  dtype: fp8\nEOF\ntrtllm-serve ")
    assert flags_of(launch.partition("EOF\ntrtllm-serve")[2])["--extra_llm_api_options"] == "kvplan-engine.yaml"


def test_slots_share_what_llama_cpp_is_given() -> None:
    flags = flags_of(plan("llama3-8b", "1xl4", engine="llamacpp", weights="q4_k_m", kv="q8_0", batch=4).launch)
    assert flags["--ctx-size"] == str(4 * 8192)
    assert flags["--parallel"] == "4"
    assert flags["--cache-type-k"] == flags["--cache-type-v"] == "q8_0"


def test_sglang_counts_all_ranks_as_tensor_parallel() -> None:
    flags = flags_of(plan("deepseek-v3", "8xh200", engine="sglang", dp=8, ep=True).launch)
    assert (flags["--tp-size"], flags["--dp-size"], flags["--ep-size"]) == ("8", "8", "8")
    assert "--enable-dp-attention" in flags
    flags = flags_of(plan("deepseek-v3", "8xh200", dp=8, ep=True).launch)
    assert "--tensor-parallel-size" not in flags
    assert flags["--data-parallel-size"] == "8"
    assert "--enable-expert-parallel" in flags


def test_what_no_flag_says_is_a_caveat() -> None:
    assert any("int4" in line for line in plan("llama3-8b", "1xl4", weights="int4").launch_caveats)
    assert not plan("llama3-8b", "1xl4", weights="fp8").launch_caveats
    assert plan("llama3-8b", "1xh100", engine="none").launch is None


def test_remedies_are_in_the_engines_own_flags() -> None:
    answer = plan("llama3.1-8b", "1xl4", context=65_536, batch=2)
    flags = {r.engine_option for r in answer.remedies}
    assert "--kv-cache-dtype fp8" in flags or any("--max-model-len" in f for f in flags)
    theirs = {r.engine_option for r in plan("llama3.1-8b", "1xl4", context=65_536, batch=2, engine="sglang").remedies}
    assert any("--tp-size" in f for f in theirs)
    assert not flags & theirs - {""}


def test_a_hostile_name_is_quoted() -> None:
    from planner import load_model
    from planner.emit import launch_command

    d = deploy(load_model("llama3-8b"), "1xh100", context=8192)
    assert words(launch_command(d, 1, 8192, "a b; rm -rf $HOME"))[2] == "a b; rm -rf $HOME"
