"""Start-up logs held against the plan: what is found in them, how far off, and why."""

# ruff: noqa: E501 - the lines of a log are as long as the engines print them
from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError, KvplanError
from planner.lognames import find_device, find_model, weight_format
from planner.startlog.lines import engines
from planner.verbs.checklog import LogReport, check_log

ROOT = Path(__file__).parent.parent

V0 = """\
INFO 11-21 10:00:00 llm_engine.py:237] Initializing a V0 LLM engine (v0.8.2) with config: model='meta-llama/Llama-3.1-8B-Instruct', dtype=torch.bfloat16, max_seq_len=20000, tensor_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto
INFO 11-21 10:00:20 model_runner.py:1067] Model loading took 14.9888 GB and 5.5 seconds
INFO 11-21 10:00:21 worker.py:267] the current vLLM instance can use total_gpu_memory (23.58GiB) x gpu_memory_utilization (0.90) = 21.22GiB
INFO 11-21 10:00:21 worker.py:267] model weights take 14.99GiB; non_torch_memory takes 0.35GiB; PyTorch activation peak memory takes 2.07GiB; the rest of the memory reserved for KV Cache is 3.81GiB.
INFO 11-21 10:00:21 executor_base.py:111] # cuda blocks: 1952, # CPU blocks: 2048
INFO 11-21 10:00:21 executor_base.py:116] Maximum concurrency for 20000 tokens per request: 1.56x
"""
HYBRID = """\
(APIServer pid=1) INFO 05-19 05:24:00 [utils.py:233] non-default args: {'model': 'nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16', 'max_model_len': 262144, 'max_num_seqs': 8}
(EngineCore pid=7) WARNING 05-19 05:42:00 [kv_cache_utils.py:1152] Add 1 padding layers, may waste at most 4.35% KV cache memory
(EngineCore pid=7) INFO 05-19 05:42:00 [gpu_worker.py:440] Available KV cache memory: 34.32 GiB
(EngineCore pid=7) INFO 05-19 05:42:00 [kv_cache_utils.py:1708] GPU KV cache size: 5,769,184 tokens
(EngineCore pid=7) INFO 05-19 05:42:00 [kv_cache_utils.py:1709] Maximum concurrency for 262,144 tokens per request: 22.01x
"""
SGLANG = """\
[2025-07-22 10:00:00] server_args=ServerArgs(model_path='/models/Qwen3-235B-A22B-FP8', tp_size=4, mem_fraction_static=0.93)
[2025-07-22 10:02:00 TP0] KV Cache is allocated. #tokens: 367404, K size: 8.23 GB, V size: 8.23 GB
"""
TRTLLM = """\
[TensorRT-LLM] TensorRT-LLM version: 1.0.0
[07/24/2025-08:13:02] [TRT-LLM] [I] Rank 0 uses 8.46 GB for model weights.
[07/24/2025-08:13:02] [TRT-LLM] [I] Rank 0 prefetching /root/.cache/huggingface/hub/models--nvidia--Llama-3.1-8B-Instruct-FP8/snapshots/026c7c29fdd02d53f17c125d2dec8cb1a2251c23/model-00001-of-00002.safetensors to memory...
[TensorRT-LLM][INFO] Number of tokens per block: 32.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 58.00 GiB for max tokens in paged KV cache (475136).
"""
LLAMACPP = """\
ggml_cuda_init: found 2 CUDA devices:
  Device 0: NVIDIA GeForce RTX 4060 Ti, compute capability 8.9, VMM: yes
  Device 1: NVIDIA GeForce RTX 3060, compute capability 8.6, VMM: yes
llm_load_print_meta: general.name     = Meta-Llama-3-8B-Instruct
llm_load_print_meta: model ftype      = Q4_K - Medium
llm_load_tensors: offloaded 33/33 layers to GPU
llm_load_tensors:        CPU buffer size =   281.81 MiB
llm_load_tensors:      CUDA0 buffer size =  2403.49 MiB
llm_load_tensors:      CUDA1 buffer size =  2000.00 MiB
llama_new_context_with_model: n_ctx      = 512
llama_new_context_with_model: KV self size  =   64.00 MiB, K (f16):   32.00 MiB, V (f16):   32.00 MiB
"""


def check(text: str | bytes, **told: object) -> LogReport:
    return check_log(io.BytesIO(text.encode() if isinstance(text, str) else text), **told)  # type: ignore[arg-type]


def dense(
    gib: float, tokens: int, model: str = "meta-llama/Llama-3.1-8B-Instruct", more: str = "", **config: object
) -> str:
    """A log of vLLM with values of one's own."""
    words = "".join(f", {name}={value}" for name, value in {"tensor_parallel_size": 1, **config}.items() if value)
    return (
        f"(EngineCore_DP0 pid=7) INFO 11-20 10:00:09 [core.py:93] Initializing a V1 LLM engine (v0.11.2) with config: model='{model}', dtype=torch.bfloat16, max_seq_len=8192{words}\n"
        f"(EngineCore_DP0 pid=7) INFO 11-20 10:00:59 [gpu_worker.py:349] Available KV cache memory: {gib} GiB\n"
        f"(EngineCore_DP0 pid=7) INFO 11-20 10:01:00 [kv_cache_utils.py:1229] GPU KV cache size: {tokens:,} tokens\n"
        + more
    )


def errors(report: LogReport) -> dict[str, float]:
    return {figure.name: figure.error for figure in report.figures if figure.error is not None}


def said(report: LogReport) -> str:
    return " ".join([*report.explanations, *report.notes])


def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "planner", "check-log", *words]
    return subprocess.run(command, input=given, capture_output=True, env=env, timeout=60, check=False)


# -- each engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "told", "planned", "figure"),
    [
        (V0, {}, ("vllm", "0.8.2", "llama3.1-8b", 1, "bf16", "bf16"), "tokens of that memory"),
        (
            HYBRID,
            {"gpu": "gb10"},
            ("vllm", "0.26", "nemotron-3-nano-30b-a3b", 1, "bf16", "bf16"),
            "tokens of that memory",
        ),
        (SGLANG, {}, ("sglang", "0.5.9", "qwen3-235b-a22b-fp8", 4, "bf16", "fp8-block128"), "tokens of that memory"),
        (TRTLLM, {}, ("trtllm", "1.0.0", "llama3.1-8b-fp8", 1, "bf16", "fp8"), "weights on a GPU"),
        (LLAMACPP, {}, ("llamacpp", None, "llama3-8b", 1, "fp16", "q4_k_m"), "weights, all devices"),
    ],
)
def test_what_is_planned_is_what_the_log_describes(
    log: str, told: dict[str, str], planned: tuple[object, ...], figure: str
) -> None:
    report = check(log, **told)
    found = (report.engine, report.version, report.model, report.tensor_parallel, report.kv, report.weights)
    assert found == tuple(new if old is None else old for new, old in zip(found, planned, strict=True))
    assert abs(errors(report)[figure]) < 0.005


def test_a_log_of_the_first_generation_says_all_that_is_needed() -> None:
    report = check(V0, gpu="rtx-3090")
    assert {"weights on a GPU", "other memory", "activation peak", "memory for the cache", "tokens"} <= {
        f.name for f in report.figures
    }
    assert abs(errors(report)["tokens"]) < 0.05
    assert report.explanations == ()
    assert report.notes == ()


def test_the_device_is_known_by_its_memory_and_the_others_that_have_as_much_are_named() -> None:
    report = check(V0)
    assert report.gpu is not None
    assert {"rtx-3090", "rtx-4090"} & {report.gpu, *said(report).replace(",", " ").replace("(", " ").split()}
    assert check(V0 + "GPU 0: NVIDIA GeForce RTX 4090\n").gpu == "rtx-4090"


def test_padding_is_told() -> None:
    assert "A layer of padding is in the printed memory" in said(check(HYBRID))


def test_a_format_of_the_cache_that_is_not_known_is_said() -> None:
    strange = check(V0.replace("kv_cache_dtype=auto", "kv_cache_dtype=zzz"))
    assert any("'zzz'" in note for note in strange.notes)
    assert not any("--kv says" in note for note in check(V0).notes)


def test_a_cache_of_the_context_that_was_asked_for_is_not_predicted_from_a_budget() -> None:
    report = check(LLAMACPP)
    assert [figure.name for figure in report.figures] == [
        "weights, all devices",
        "bytes a token",
        "tokens of that memory",
    ]
    assert report.gpu == "rtx-4060-ti-16gb"


def test_layers_on_the_host_leave_the_weights_out() -> None:
    report = check(LLAMACPP.replace("33/33", "30/33"))
    assert "weights, all devices" not in errors(report)


# -- versions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "version", "why"),
    [
        (V0.replace("(v0.8.2) ", "").replace("a V0 ", "an "), "0.7", "first generation"),
        (HYBRID, "0.26", "whole requests"),
        (HYBRID.replace("5,769,184", "1,198,272"), "0.19", "0.19 is assumed"),
        (dense(4.0, 32768).replace("v0.11.2", "vdev"), "0.19", "prints no version"),
        (V0.replace("v0.8.2", "v0.6.6.post1"), "0.6.6", ""),
        (V0.replace("v0.8.2", "v0.1.0"), None, "Nothing is known of vLLM before"),
    ],
)
def test_a_version_that_is_not_known_is_inferred_or_assumed_with_a_note(
    log: str, version: str | None, why: str
) -> None:
    report = check(log, gpu="gb10")
    assert version in (None, report.version)
    assert why in said(report)


# -- explanations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "told", "expected"),
    [
        (dense(4.0, 65536), {}, "The tokens fit if the cache is 8-bit (--kv fp8)."),
        (dense(4.0, 65536, tensor_parallel_size=0), {}, "8-bit (--kv fp8) or it runs on 2 GPUs (--tp 2)."),
        (dense(4.0, 32768), {"kv": "fp8"}, "The tokens fit if the cache is 16-bit (--kv bf16)."),
        (dense(4.0, 32768, tensor_parallel_size=2), {}, "the memory is of all 2 GPUs together"),
        (dense(4.0, 60000, tensor_parallel_size=2), {}, "has 3.66 GiB"),
        (dense(4.0, 12345), {}, "No other reading"),
        (
            dense(4.0, 32768, more="INFO Model loading took 8.46 GiB memory and 3 seconds\n"),
            {},
            "as large as those in fp8 (--weights fp8)",
        ),
        (
            dense(4.0, 32768, more="INFO Model loading took 18.5 GiB memory and 3 seconds\n"),
            {},
            "3.54 GiB larger than bf16 ones: something else is loaded",
        ),
        (
            dense(4.0, 32768, more="INFO Model loading took 3.5 GiB memory and 3 seconds\n"),
            {},
            "smaller than bf16 ones",
        ),
        (dense(20.0, 163840), {"gpu": "h100"}, "--gpu-memory-utilization: about 0."),
        (dense(70.0, 573440), {"gpu": "h100"}, "less memory than the printed cache"),
        (dense(4.0, 32768, model="meta-llama/Llama-3.1-70B-Instruct"), {"gpu": "l4"}, "no memory for the cache"),
        (dense(-2.5, 1).replace("GPU KV cache size: 1 tokens", ""), {"gpu": "l4"}, "2.50 GiB more are in use"),
    ],
)
def test_differences_are_explained_by_the_simplest_reading(log: str, told: dict[str, str], expected: str) -> None:
    assert expected in said(check(log, **told))


def test_what_agrees_is_not_explained() -> None:
    assert check(dense(4.0, 32768)).explanations == ()


def test_tokens_of_one_group_are_told_from_those_of_the_pool() -> None:
    log = "(APIServer pid=1) INFO [api_server.py:1] vLLM API server version 0.19.0\n" + HYBRID.replace(
        "5,769,184", "1,198,272"
    )
    assert "one of 5 groups of layers" in said(check(log)) or "groups of layers as if" in said(check(log))


def test_a_sequence_that_does_not_fit_is_held_against_the_layout() -> None:
    text = "ValueError: To serve at least one request with the models's max seq len (16384), (3.0 GiB KV cache is needed, which is larger than the available KV cache memory (1.87 GiB).\n"
    report = check(text, model="qwen2.5-14b", engine="vllm@0.15")
    assert abs(errors(report)["cache of one sequence"]) < 1e-6


def test_replicas_print_what_each_holds() -> None:
    more = "INFO [kv_cache_utils.py:1234] Maximum concurrency for 8,192 tokens per request: 4.00x\n"
    report = check(dense(4.0, 32768, more=more, data_parallel_size=2))
    assert errors(report)["sequences of that memory"] == errors(report)["tokens of that memory"] == 0


def test_ranks_that_print_their_memory_are_counted() -> None:
    log = "".join(
        f"[2026-02-27 17:10:28 TP{rank}] KV Cache is allocated. #tokens: 32768, K size: 1.00 GB, V size: 1.00 GB\n"
        for rank in (0, 1)
    )
    report = check(log, model="llama3.1-8b")
    assert report.tensor_parallel == 2
    assert "TP 2 is assumed" in said(report)
    assert abs(errors(report)["tokens of that memory"]) < 0.005


def test_memory_of_window_layers_alone_is_not_taken_for_the_whole() -> None:
    log = (
        "[2026-01-31 13:50:00] server_args=ServerArgs(model_path='XiaomiMiMo/MiMo-V2-Flash', tp_size=4, page_size=64)\n"
        "[2026-01-31 13:50:39 TP2] Use sliding window memory pool. full_layer_tokens=375360, swa_layer_tokens=300288\n"
        "[2026-01-31 13:50:39 TP2] KV Cache is allocated. #tokens: 300288, K size: 8.38 GB, V size: 5.59 GB\n"
    )
    report = check(log)
    assert "layers with a window alone" in said(report)
    assert "tokens of that memory" not in errors(report)
    whole = check(
        log + "[2026-01-31 13:50:39 TP2] KV Cache is allocated. #tokens: 375360, K size: 1.21 GB, V size: 0.81 GB\n"
    )
    assert abs(errors(whole)["tokens of that memory"]) < 0.01


def test_a_draft_model_is_named() -> None:
    log = dense(
        4.0, 32768, speculative_config="SpeculativeConfig(method='eagle', model='org/net-draft', num_spec_tokens=3)"
    )
    assert "org/net-draft" in said(check(log))


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quantization", "model", "weights"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", None, "llama3.3-70b", None),
        ("meta-llama/Llama-3.1-8B-Instruct", "fp8", "llama3.1-8b", "fp8"),
        ("/models/Qwen3-8B-AWQ", "awq_marlin", "qwen3-8b", "int4"),
        ("TheBloke/Llama-2-7B-Chat-AWQ", "awq", "llama2-7b", "int4"),
        ("Qwen/Qwen3-32B-GPTQ-Int8", "gptq", "qwen3-32b", "int8"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "bitsandbytes", "llama3.1-8b", "nf4"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "compressed-tensors", "llama3.3-70b", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "compressed-tensors", "llama3.1-8b", "int8"),
        ("nvidia/Qwen3-8B-NVFP4", "modelopt_fp4", "qwen3-8b", "nvfp4"),
        ("openai/gpt-oss-20b", "mxfp4", "gpt-oss-20b", None),
        ("/kaggle/input/gpt-oss-120b/transformers/default/1", None, "gpt-oss-120b", None),
        ("/opt/models/qwen2_5_14b_instruct_awq", "awq", "qwen2.5-14b", "int4"),
        ("/models/unsloth/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf", None, "qwen3-8b", "q4_k_m"),
        (
            "/hub/models--meta-llama--Meta-Llama-3.1-8B-Instruct/snapshots/0e9e39f249a16976918f6564b8830bc894c89659",
            None,
            "llama3.1-8b",
            None,
        ),
        ("Meta Llama 3.1 70B Instruct", "Q4_K - Medium", "llama3.1-70b", "q4_k_m"),
        ("C:\\models\\Qwen3-8B\\", None, "qwen3-8b", None),
    ],
)
def test_names_and_paths_are_models(name: str, quantization: str | None, model: str, weights: str | None) -> None:
    found = find_model([name], quantization)
    assert found is not None
    assert (found.model.id, found.weights) == (model, weights)


@pytest.mark.parametrize(
    "name", ["/model", "model", "", "org/net-8b", "/data/1/2", "Qwen/Qwen3-Reranker-0.6B", "-awq", "///"]
)
def test_names_that_are_no_models_are_not_guessed(name: str) -> None:
    assert find_model([name], None) is None


def test_the_served_name_helps_where_the_path_says_nothing() -> None:
    log = dense(4.0, 32768, model="/model", served_model_name="llama-3.1-8b-instruct")
    assert check(log).model == "llama3.1-8b"


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA_H100_80GB_HBM3", "h100-sxm"), ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"), ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti-16gb"), ("NVIDIA GB10", "dgx-spark-gb10"),
        ("AMD Radeon RX 7900 XTX", "rx-7900-xtx"), ("AMD Instinct MI300X", "mi300x"), ("Apple M3 Max", "apple-m3-max"),
        ("NVIDIA GeForce RTX 3060 Ti", None), ("NVIDIA GeForce RTX 5090 Laptop GPU", None), ("Tesla V100S-PCIE-32GB", None), ("", None),
    ],
)  # fmt: skip
def test_devices_are_found_by_name_or_not_at_all(name: str, device: str | None) -> None:
    found = find_device(name)
    assert (found.id if found else None) == device


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("Q6_K", "q6_k"),
        ("mostly Q4_0", "q4_0"),
        ("IQ4_XS - 4.25 bpw", "iq4_xs"),
        ("F16", "fp16"),
        ("moe_wna16", "int4"),
        ("auto", None),
        (None, None),
    ],
)
def test_formats_of_weights(words: str | None, form: str | None) -> None:
    assert weight_format(words) == form


# -- the command -------------------------------------------------------------------------------------------------------


def test_standard_input_and_every_output(tmp_path: Path) -> None:
    shown = run("-", given=V0.encode())
    assert shown.returncode == 0, shown.stderr
    assert b"Printed against predicted" in shown.stdout
    done = run(
        "-", "--json", "-", "--csv", str(tmp_path / "log.csv"), "--md", str(tmp_path / "log.md"), given=V0.encode()
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "llama3.1-8b"
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert len(rows) == len(json.loads(done.stdout)["figures"])
    assert (tmp_path / "log.md").read_text().count("|") > 20


@pytest.mark.parametrize(
    ("log", "words", "expected"),
    [
        (b"", (), b"no start-up lines of vLLM, SGLang, TensorRT-LLM or llama.cpp"),
        (b"hello\nworld\n", (), b"no start-up lines"),
        (bytes(range(256)) * 64, (), b"no start-up lines"),
        (b"GPU 0: NVIDIA L40S\n", (), b"no start-up lines"),
        (b"INFO GPU KV cache size: 33,504 tokens\n", (), b"does not say which model runs; give --model"),
        (dense(4.0, 32768, model="org/net-8b").encode(), (), b"of which there is no card; give --model"),
        (V0.encode(), ("--gpu", "nonsense"), b"unknown GPU"),
        (V0.encode(), ("--engine", "nonsense"), b"unknown engine"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(log: bytes, words: tuple[str, ...], expected: bytes) -> None:
    done = run("-", *words, given=log)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert expected in done.stderr


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run(str(tmp_path / "none.log"))
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"cannot read" in done.stderr


def test_a_log_without_figures_says_so() -> None:
    done = run(
        "-",
        given=b"INFO [api_server.py:1] vLLM API server version 0.19.0\nINFO Starting to load model Qwen/Qwen3-8B...\n",
    )
    assert done.returncode == 0
    assert b"none of the figures" in done.stdout


# -- whatever comes ----------------------------------------------------------------------------------------------------

EXAMPLES = sorted(
    {line.example for engine in engines() for line in engine.line}
    | set((V0 + HYBRID + SGLANG + TRTLLM + LLAMACPP).splitlines())
)
NUMBERS = st.one_of(
    st.integers(0, 2**70).map(str),
    st.floats(0, 1e9).map(lambda x: f"{x:.3f}"),
    st.sampled_from(["0", "1", "-1", "2", "65537"]),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_content_raises_anything_but_a_refusal(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.one_of(st.sampled_from(EXAMPLES), st.text(max_size=30)), max_size=12))
    text = "\n".join(parts)
    for _ in range(data.draw(st.integers(0, 6))):
        digits = [at for at, letter in enumerate(text) if letter.isascii() and letter.isdigit()]
        if digits:
            at = data.draw(st.sampled_from(digits))
            text = text[:at] + data.draw(NUMBERS) + text[at + 1 :]
    model = data.draw(
        st.sampled_from(["llama3.1-8b", "qwen3.5-35b-a3b", "gemma3-27b", "deepseek-v3", "flan-t5-xxl", "mamba-2.8b"])
    )
    gpu = data.draw(st.sampled_from([None, "h100", "l4"]))
    try:
        report = check(text.encode("utf-8", "surrogatepass"), model=model, gpu=gpu)
    except KvplanError as error:
        lines = [str(error)]
    else:
        lines = [*report.explanations, *report.notes]
        assert json.loads(report.to_json())["model"] == report.model
    assert not [line for line in lines if "\n" in line]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_without_an_engine_are_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="no start-up lines"):
        check(content, model="llama3.1-8b")
