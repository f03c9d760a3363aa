"""Start-up logs: every engine's lines in its own format, whatever stands around them, and nothing else believed."""

# ruff: noqa: E501 - the lines of a log are as long as the engines print them
from __future__ import annotations

import io
import json
import random
import sys
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.startlog.lines import Engine, Line, engines
from planner.startlog.log import MAX_VALUES, StartLog, kinds
from planner.startlog.pairs import pairs
from planner.startlog.reader import read_start_log
from planner.startlog.stream import MAX_LINE
from planner.units import GIB, MIB

VLLM = """\
(APIServer pid=1) INFO 11-20 10:00:00 [api_server.py:1977] vLLM API server version 0.11.2
(APIServer pid=1) INFO 11-20 10:00:00 [utils.py:253] non-default args: {'model_tag': 'org/net-70b', 'model': 'org/net-70b', 'max_model_len': 32000, 'gpu_memory_utilization': 0.93, 'max_num_seqs': 96, 'enable_expert_parallel': True, 'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 2, 'model': 'org/net-draft'}}
(APIServer pid=1) INFO 11-20 10:00:05 [model.py:1745] Using max model len 32000
(APIServer pid=1) INFO 11-20 10:00:05 [scheduler.py:216] Chunked prefill is enabled with max_num_batched_tokens=8192.
(EngineCore_DP0 pid=7) INFO 11-20 10:00:09 [core.py:93] Initializing a V1 LLM engine (v0.11.2) with config: model='org/net-70b', speculative_config=SpeculativeConfig(method='mtp', model='org/net-draft', num_spec_tokens=2), tokenizer='org/net-70b', dtype=torch.bfloat16, max_seq_len=32000, load_format=auto, tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=1, quantization=compressed-tensors, enforce_eager=False, kv_cache_dtype=fp8_e4m3, device_config=cuda, observability_config=ObservabilityConfig(model=None), seed=0, enable_prefix_caching=True, compilation_config={"level":3,"model":"x"}
(Worker_TP0 pid=8) INFO 11-20 10:00:40 [gpu_model_runner.py:3338] Model loading took 16.50 GiB memory and 12.345678 seconds
(Worker_TP1 pid=9) INFO 11-20 10:00:41 [gpu_model_runner.py:3338] Model loading took 16.75 GiB memory and 13.1 seconds
(Worker_TP0 pid=8) INFO 11-20 10:00:59 [gpu_worker.py:349] Available KV cache memory: 5.25 GiB
(Worker_TP1 pid=9) INFO 11-20 10:00:59 [gpu_worker.py:349] Available KV cache memory: 5.00 GiB
(EngineCore_DP0 pid=7) WARNING 11-20 10:01:00 [kv_cache_utils.py:979] Add 8 padding layers, may waste at most 15.38% KV cache memory
(EngineCore_DP0 pid=7) INFO 11-20 10:01:00 [kv_cache_utils.py:1229] GPU KV cache size: 33,504 tokens
(EngineCore_DP0 pid=7) INFO 11-20 10:01:00 [kv_cache_utils.py:1234] Maximum concurrency for 32,000 tokens per request: 1.05x
(Worker_TP0 pid=8) INFO 11-20 10:01:19 [gpu_model_runner.py:4244] Graph capturing finished in 20 secs, took 0.75 GiB
(Worker_TP1 pid=9) INFO 11-20 10:01:19 [gpu_model_runner.py:4244] Graph capturing finished in 20 secs, took 0.50 GiB
(APIServer pid=1) INFO 11-20 10:01:20 [loggers.py:147] Engine 000: vllm cache_config_info with initialization after num_gpu_blocks is: 2094
(APIServer pid=1) INFO 11-20 10:01:30 [loggers.py:127] Engine 000: Avg prompt throughput: 10.0 tokens/s, GPU KV cache usage: 3.1%
"""
VLLM_LOG = StartLog(
    engine="vllm",
    version="0.11.2",
    model="org/net-70b",
    draft_model="org/net-draft",
    dtype="bfloat16",
    quantization="compressed-tensors",
    kv_cache_dtype="fp8_e4m3",
    tensor_parallel=2,
    pipeline_parallel=1,
    data_parallel=1,
    expert_parallel=True,
    max_model_len=32000,
    memory_fraction=0.93,
    max_num_seqs=96,
    max_num_batched_tokens=8192,
    padding_layers=8,
    enforce_eager=False,
    prefix_caching=True,
    speculative_tokens=2,
    weight_bytes=(int(16.5 * GIB), int(16.75 * GIB)),
    kv_bytes=(int(5.25 * GIB), 5 * GIB),
    kv_tokens=(33504,),
    blocks=(2094,),
    concurrency=(1.05,),
    concurrency_len=(32000,),
    graph_bytes=(int(0.75 * GIB), int(0.5 * GIB)),
)

VLLM_V0 = """\
INFO 12-20 20:25:00 api_server.py:585] vLLM API server version 0.6.6.post1
INFO 12-20 20:25:01 api_server.py:586] args: Namespace(host=None, model='org/net-8b', dtype='auto', max_model_len=4096, tensor_parallel_size=1, block_size=16, gpu_memory_utilization=0.9, max_num_seqs=256, quantization=None)
INFO 12-20 20:25:09 llm_engine.py:237] Initializing an LLM engine (v0.6.6.post1) with config: model='org/net-8b', speculative_config=None, dtype=torch.float16, max_seq_len=4096, tensor_parallel_size=1, kv_cache_dtype=auto, enforce_eager=True
INFO 12-20 20:25:26 model_runner.py:1077] Loading model weights took 14.5000 GB
INFO 12-20 20:25:46 worker.py:241] Memory profiling takes 0.52 seconds
INFO 12-20 20:25:46 worker.py:241] the current vLLM instance can use total_gpu_memory (23.50GiB) x gpu_memory_utilization (0.90) = 21.15GiB
INFO 12-20 20:25:46 worker.py:241] model weights take 14.50GiB; non_torch_memory takes 0.25GiB; PyTorch activation peak memory takes 1.50GiB; the rest of the memory reserved for KV Cache is 4.75GiB.
INFO 12-20 20:25:46 distributed_gpu_executor.py:57] # GPU blocks: 2432, # CPU blocks: 2048
INFO 12-20 20:25:46 distributed_gpu_executor.py:61] Maximum concurrency for 4096 tokens per request: 9.50x
"""
VLLM_V0_LOG = StartLog(
    engine="vllm",
    version="0.6.6.post1",
    model="org/net-8b",
    dtype="float16",
    kv_cache_dtype="auto",
    tensor_parallel=1,
    max_model_len=4096,
    memory_fraction=0.9,
    max_num_seqs=256,
    block_size=16,
    enforce_eager=True,
    legacy=True,
    total_bytes=(int(23.5 * GIB),),
    weight_bytes=(int(14.5 * GIB),),
    non_torch_bytes=(GIB // 4,),
    activation_bytes=(int(1.5 * GIB),),
    kv_bytes=(int(4.75 * GIB),),
    blocks=(2432,),
    concurrency=(9.5,),
    concurrency_len=(4096,),
)

SGLANG = """\
[2026-02-26 05:19:58] server_args=ServerArgs(model_path='org/net-30b', tokenizer_path='org/net-30b', model_loader_extra_config='{"tp_size": 9}', context_length=None, dtype='auto', quantization='fp8', kv_cache_dtype='auto', mem_fraction_static=0.85, max_running_requests=None, chunked_prefill_size=8192, page_size=64, tp_size=2, pp_size=1, dp_size=2, ep_size=2, enable_dp_attention=True, disable_radix_cache=True, disable_cuda_graph=False, speculative_num_draft_tokens=4, speculative_draft_model_path='org/net-draft')
[2026-02-26 05:20:10 TP0] Load weight begin. avail mem=78.50 GB
[2026-02-26 05:20:10 TP1] Load weight begin. avail mem=78.25 GB
[2026-02-26 05:21:05 TP0] Load weight end. elapsed=55.50 s, type=NetForCausalLM, dtype=torch.bfloat16, avail mem=50.00 GB, mem usage=28.50 GB.
[2026-02-26 05:21:05 TP1] Load weight end. elapsed=55.60 s, type=NetForCausalLM, dtype=torch.bfloat16, avail mem=50.00 GB, mem usage=28.25 GB.
[2026-02-26 05:21:06 TP0] Mamba Cache is allocated. max_mamba_cache_size: 124, conv_state size: 0.25GB, ssm_state size: 17.50GB
[2026-02-26 05:21:07 TP0] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 330323, K size: 10.25 GB, V size: 10.25 GB
[2026-02-26 05:21:07 TP1] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 330323, K size: 10.25 GB, V size: 10.25 GB
[2026-02-26 05:21:08 TP0] Load weight begin. avail mem=12.00 GB
[2026-02-26 05:21:09 TP0] Load weight end. elapsed=0.50 s, type=NetForCausalLMNextN, dtype=torch.bfloat16, avail mem=11.00 GB, mem usage=1.00 GB.
[2026-02-26 05:21:09 TP0] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 330323, K size: 0.25 GB, V size: 0.25 GB
[2026-02-26 05:21:29 TP0] Capture cuda graph end. Time elapsed: 11.24 s. mem usage=0.75 GB. avail mem=9.25 GB.
[2026-02-26 05:21:29 TP0] Capture draft decode CUDA graph end. elapsed=1.24 s, mem usage=0.25 GB, avail mem=9.00 GB.
[2026-02-26 05:21:30 TP0] max_total_num_tokens=330323, chunked_prefill_size=4096, max_prefill_tokens=16384, max_running_requests=124, context_len=131072, available_gpu_mem=9.00 GB
"""
SGLANG_LOG = StartLog(
    engine="sglang",
    model="org/net-30b",
    draft_model="org/net-draft",
    dtype="bfloat16",
    quantization="fp8",
    kv_cache_dtype="bfloat16",
    tensor_parallel=2,
    pipeline_parallel=1,
    data_parallel=2,
    expert_parallel=True,
    attention_dp=True,
    max_model_len=131072,
    memory_fraction=0.85,
    max_num_seqs=124,
    max_num_batched_tokens=4096,
    block_size=64,
    enforce_eager=False,
    prefix_caching=False,
    speculative_tokens=4,
    free_bytes=(int(78.5 * GIB), int(78.25 * GIB)),
    weight_bytes=(int(29.5 * GIB), int(28.25 * GIB)),
    graph_bytes=(GIB,),
    kv_bytes=(21 * GIB, int(20.5 * GIB)),
    k_bytes=(int(10.5 * GIB), int(10.25 * GIB)),
    v_bytes=(int(10.5 * GIB), int(10.25 * GIB)),
    kv_tokens=(330323,),
    state_slots=(124,),
    state_bytes=(int(17.75 * GIB),),
)

TRTLLM = """\
[TensorRT-LLM] TensorRT-LLM version: 1.2.0
[12/20/2025-04:20:00] [TRT-LLM] [I] LLM Args: model='org/net-8b' dtype='auto' tensor_parallel_size=2 pipeline_parallel_size=1 moe_expert_parallel_size=-1 max_seq_len=None kv_cache_config=KvCacheConfig(enable_block_reuse=True, free_gpu_memory_fraction=0.5, dtype='fp8', tokens_per_block=32) enable_attention_dp=False
[TensorRT-LLM][INFO] Number of tokens per block: 32.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 0.50 GiB for max tokens in paged KV cache (8224).
[12/20/2025-04:21:50] [TRT-LLM] [I] Memory used after loading model weights (inside torch) in memory usage profiling: 15.50 GiB
[12/20/2025-04:21:51] [TRT-LLM] [I] Memory dynamically allocated during inference (inside torch) in memory usage profiling: 0.75 GiB
[12/20/2025-04:21:51] [TRT-LLM] [I] Memory used outside torch (e.g., NCCL and CUDA graphs) in memory usage profiling: 4.25 GiB
[12/20/2025-04:21:51] [TRT-LLM] [I] Peak memory during memory usage profiling (torch + non-torch): 20.00 GiB, available KV cache memory when calculating max tokens: 63.00 GiB, fraction is set 0.5, kv size is 73728. device total memory 79.25 GiB, , tmp kv_mem 0.50 GiB
[12/20/2025-04:21:51] [TRT-LLM] [I] Estimated max memory in KV cache : 63.00 GiB
[TensorRT-LLM][INFO] Max KV cache blocks per sequence: 65 [window size=2049], tokens per block=32, primary blocks=13189, secondary blocks=0, max sequence length=2049
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 62.75 GiB for max tokens in paged KV cache (422048).
[12/20/2025-04:22:10] [TRT-LLM] [I] max_seq_len=2049, max_num_requests=64, max_num_tokens=8192, max_batch_size=64
"""
TRTLLM_LOG = StartLog(
    engine="trtllm",
    version="1.2.0",
    model="org/net-8b",
    dtype="auto",
    kv_cache_dtype="fp8",
    tensor_parallel=2,
    pipeline_parallel=1,
    attention_dp=False,
    max_model_len=2049,
    memory_fraction=0.5,
    max_num_seqs=64,
    max_num_batched_tokens=8192,
    block_size=32,
    prefix_caching=True,
    total_bytes=(int(79.25 * GIB),),
    weight_bytes=(int(15.5 * GIB),),
    activation_bytes=(int(0.75 * GIB),),
    non_torch_bytes=(int(4.25 * GIB),),
    kv_bytes=(int(62.75 * GIB),),
    kv_tokens=(422048,),
    blocks=(13189,),
    token_bytes=(73728,),
)

TRTLLM_ENGINE = """\
[TensorRT-LLM][INFO] Loaded engine size: 6656 MiB
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 1024.00 MiB for execution context memory.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 512.00 MB GPU memory for runtime buffers.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 4.50 GB GPU memory for decoder.
[TensorRT-LLM][INFO] Memory usage when calculating max tokens in paged kv cache: total: 79.25 GiB, available: 63.50 GiB
[TensorRT-LLM][INFO] Number of blocks in KV cache primary pool: 4607
[TensorRT-LLM][INFO] Max KV cache pages per sequence: 65
[TensorRT-LLM][INFO] Number of tokens per block: 64.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 63.00 GiB for max tokens in paged KV cache (294848).
"""
TRTLLM_ENGINE_LOG = StartLog(
    engine="trtllm",
    block_size=64,
    total_bytes=(int(79.25 * GIB),),
    free_bytes=(int(63.5 * GIB),),
    weight_bytes=(6656 * MIB,),
    activation_bytes=(6 * GIB,),
    kv_bytes=(63 * GIB,),
    kv_tokens=(294848,),
    blocks=(4607,),
)

LLAMACPP = """\
ggml_cuda_init: found 2 CUDA devices (Total VRAM: 48160 MiB):
  Device 0: NVIDIA GeForce RTX 4090, compute capability 8.9, VMM: yes, VRAM: 24080 MiB
  Device 1: NVIDIA GeForce RTX 4090, compute capability 8.9, VMM: yes, VRAM: 24080 MiB
build: 8123 (a4417ddd) with cc (Ubuntu 13.3.0) 13.3.0 for x86_64-linux-gnu
llama_params_fit: successfully fit params to free device memory
llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 4090) (0000:01:00.0) - 23800 MiB free
llama_model_load_from_file_impl: using device CUDA1 (NVIDIA GeForce RTX 4090) (0000:02:00.0) - 23600 MiB free
llama_model_loader: - kv   2:                               general.name str              = Net 12B it
print_info: file type   = Q4_K - Medium
print_info: general.name     = Net 12B it
load_tensors: offloaded 49/49 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   540.00 MiB
load_tensors:        CUDA0 model buffer size =  3200.50 MiB
load_tensors:        CUDA1 model buffer size =  3190.25 MiB
llama_context: n_seq_max     = 4
llama_context: n_ctx         = 8192
llama_context: n_ctx_seq     = 2048
llama_context: n_batch       = 2048
llama_context: n_ubatch      = 512
llama_context:  CUDA_Host  output buffer size =     3.79 MiB
llama_kv_cache_iswa: creating non-SWA KV cache, size = 8192 cells
llama_kv_cache:      CUDA0 KV buffer size =    68.00 MiB
llama_kv_cache: size =   68.00 MiB (  8192 cells,   8 layers,  4/1 seqs), K (q8_0):   34.00 MiB, V (q8_0):   34.00 MiB
llama_kv_cache_iswa: creating     SWA KV cache, size = 4608 cells
llama_kv_cache: size =  765.00 MiB (  4608 cells,  40 layers,  4/1 seqs), K (q8_0):  382.50 MiB, V (q8_0):  382.50 MiB
llama_memory_recurrent: size =  598.50 MiB (     4 cells,  65 layers,  4 seqs  2 rs_seq), R (f32):   22.50 MiB, S (f32):  576.00 MiB
sched_reserve:      CUDA0 compute buffer size =   135.00 MiB
sched_reserve:      CUDA1 compute buffer size =   130.00 MiB
sched_reserve:  CUDA_Host compute buffer size =    16.00 MiB
"""
LLAMACPP_LOG = StartLog(
    engine="llamacpp",
    version="8123",
    model="Net 12B it",
    gpu="NVIDIA GeForce RTX 4090",
    quantization="Q4_K - Medium",
    kv_cache_dtype="q8_0",
    max_model_len=2048,
    max_num_seqs=4,
    max_num_batched_tokens=512,
    total_bytes=(24080 * MIB, 24080 * MIB),
    free_bytes=(23800 * MIB, 23600 * MIB),
    gpu_layers=49,
    model_layers=49,
    weight_bytes=(int(3200.5 * MIB), int(3190.25 * MIB)),
    host_weight_bytes=(540 * MIB,),
    activation_bytes=(135 * MIB, 130 * MIB),
    kv_bytes=(833 * MIB,),
    k_bytes=(int(416.5 * MIB),),
    v_bytes=(int(416.5 * MIB),),
    kv_tokens=(8192,),
    swa_tokens=(4608,),
    state_slots=(4,),
    state_bytes=(int(598.5 * MIB),),
)

LLAMACPP_OLD = """\
main: build = 3001 (a4417ddd)
llm_load_print_meta: model ftype      = Q4_0
llm_load_print_meta: general.name     = Net v2
llm_load_tensors:        CPU buffer size =    70.3125 MiB
llm_load_tensors:      CUDA0 buffer size =  3577.50 MiB
llama_new_context_with_model: n_ctx      = 2048
llama_new_context_with_model: n_ubatch   = 512
llama_kv_cache_init:      CUDA0 KV buffer size =  1024.00 MiB
llama_new_context_with_model: KV self size  = 1024.00 MiB, K (f16):  512.00 MiB, V (f16):  512.00 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =   164.00 MiB
llama_new_context_with_model:  CUDA_Host compute buffer size =    12.01 MiB
"""
LLAMACPP_OLD_LOG = StartLog(
    engine="llamacpp",
    version="3001",
    model="Net v2",
    quantization="Q4_0",
    kv_cache_dtype="f16",
    max_model_len=2048,
    max_num_batched_tokens=512,
    weight_bytes=(int(3577.5 * MIB),),
    host_weight_bytes=(int(70.3125 * MIB),),
    activation_bytes=(164 * MIB,),
    kv_bytes=(GIB,),
    k_bytes=(GIB // 2,),
    v_bytes=(GIB // 2,),
)

CASES = [
    (VLLM, VLLM_LOG),
    (VLLM_V0, VLLM_V0_LOG),
    (SGLANG, SGLANG_LOG),
    (TRTLLM, TRTLLM_LOG),
    (TRTLLM_ENGINE, TRTLLM_ENGINE_LOG),
    (LLAMACPP, LLAMACPP_LOG),
    (LLAMACPP_OLD, LLAMACPP_OLD_LOG),
]
ROWS = [
    pytest.param(engine, line, id=f"{engine.engine}-{at}")
    for engine in engines()
    for at, line in enumerate(engine.line)
    if not line.around
]


def read(log: str | bytes) -> StartLog:
    return read_start_log(io.BytesIO(log.encode() if isinstance(log, str) else log))


@pytest.mark.parametrize(("log", "expected"), CASES)
def test_what_each_engine_prints(log: str, expected: StartLog) -> None:
    assert read(log) == expected


@pytest.mark.parametrize(("engine", "line"), ROWS)
def test_every_row_matches_its_example_and_names_its_source(engine: Engine, line: Line) -> None:
    log = read(line.example)
    assert log.engine is not None
    assert line.source
    assert line.regex.search(line.example)
    named = set(line.regex.groupindex) & kinds().keys() | line.sums.keys() | line.sets.keys()
    if log.engine == engine.engine:
        assert all(getattr(log, field) not in (None, ()) for field in named)


def test_every_field_is_printed_by_some_engine() -> None:
    printed: set[str] = set()
    for engine in engines():
        for line in engine.line:
            printed |= set(line.regex.groupindex) | line.sums.keys() | line.sets.keys()
            printed |= {field.removeprefix("!") for field in line.keys.values()}
    assert {field.name for field in fields(StartLog)} - {"engine"} <= printed


@pytest.mark.parametrize(("engine", "line"), ROWS)
def test_no_pattern_repeats_without_bound(engine: Engine, line: Line) -> None:
    bare = line.pattern.replace("\\+", "").replace("\\*", "")
    while "[" in bare:
        start = bare.index("[")
        bare = bare[:start] + bare[bare.index("]", start + 2) + 1 :]
    assert "*" not in bare
    assert "+" not in bare
    assert ",}" not in bare


@pytest.mark.parametrize(("engine", "line"), ROWS)
def test_hostile_lines_end(engine: Engine, line: Line) -> None:
    for part in (line.literal, line.example[: len(line.example) * 2 // 3], line.example):
        assert isinstance(read((part * (MAX_LINE // len(part) + 1))[: MAX_LINE + 99]), StartLog)


def wrappings(log: str) -> dict[str, bytes]:
    lines = log.splitlines()
    docker = [json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-01-02T03:04:05.6Z"}) for line in lines]
    cloud = [
        json.dumps({"severity": "INFO", "labels": {"pod": ["a"]}, "jsonPayload": {"message": line}}) for line in lines
    ]
    stamp = "2026-01-02T03:04:05.678901234Z"
    return {
        "windows": "\r\n".join(lines).encode(),
        "powershell": ("\ufeff" + log).encode("utf-16-le"),
        "kubernetes": "".join(f"{stamp} stderr F {line}\n" for line in lines).encode(),
        "compose": "".join(f"\x1b[36mserver-1  | \x1b[0m{line}\n" for line in lines).encode(),
        "stern": "".join(f"pod/server-7d9 server {line}\n" for line in lines).encode(),
        "docker json": "\n".join(docker).encode(),
        "cloud json": "\n".join(cloud).encode(),
        "coloured json": "\n".join(json.dumps({"msg": f"\x1b[32m{line}\x1b[0m"}) for line in lines).encode(),
        "progress": "".join(f"Loading shards:  50%|##  | 1/2\r{line}\rdone\n" for line in lines).encode(),
        "nul": log.replace(" ", " \0").encode(),
        "many": json.dumps({"log": log}).encode(),
    }


@pytest.mark.parametrize(("log", "expected"), CASES)
@pytest.mark.parametrize("wrapping", sorted(wrappings("")))
def test_whatever_carries_the_lines(log: str, expected: StartLog, wrapping: str) -> None:
    assert read(wrappings(log)[wrapping]) == expected


def test_reductions() -> None:
    log = read(VLLM)
    assert (log.pool_bytes, log.pool_tokens, log.pool_sequences) == (5 * GIB, 33504, 1.05)
    assert (log.rank_weight_bytes, log.rank_graph_bytes) == (int(16.75 * GIB), int(0.75 * GIB))
    assert read(VLLM_V0).pool_tokens == 2432 * 16
    assert read(VLLM_V0).rank_non_torch_bytes == GIB // 4
    assert (read(SGLANG).slots, read(TRTLLM).device_bytes) == (124, int(79.25 * GIB))
    assert read(LLAMACPP).rank_activation_bytes == 135 * MIB
    empty = StartLog()
    assert empty.pool_tokens is empty.pool_bytes is empty.slots is empty.rank_weight_bytes is None


def test_a_log_of_no_engine_is_empty() -> None:
    assert read("hello\nGPU KV cache usage: 3.1%\n") == StartLog() == read(b"")


def test_the_last_of_several_starts_counts() -> None:
    failed = VLLM.replace("5.00 GiB", "0.50 GiB").replace("0.93", "0.5").replace("33,504", "9,000")
    assert read(failed + VLLM) == VLLM_LOG
    assert read(SGLANG.replace("0.85", "0.5") + SGLANG) == SGLANG_LOG


def test_a_sequence_that_does_not_fit() -> None:
    log = read(
        "ValueError: To serve at least one request with the models's max seq len (131072), (8.25 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (7.00 GiB). Based on the available memory, the estimated ..."
    )
    assert (log.needed_len, log.needed_bytes, log.kv_bytes) == ((131072,), (int(8.25 * GIB),), (7 * GIB,))


def test_newer_accounts_of_vllm() -> None:
    log = read(
        "(Worker_TP0 pid=9) INFO 08-14 14:07:22 [gpu_model_runner.py:6806] Estimated CUDA graph memory: 0.50 GiB total\n"
        "(Worker_TP0 pid=9) INFO 08-14 14:08:01 [gpu_worker.py:640] Free memory on device (78.75/79.25 GiB) on startup. "
        "Desired GPU memory utilization is (0.92, 72.91 GiB). Actual usage is 51.25 GiB for consumed memory (weights + "
        "non-torch), 2.5 GiB for peak activation, and 0.25 GiB for CUDAGraph memory. Replace gpu_memory_utilization config "
        "with `--kv-cache-memory=1` (0 GiB). Current kv cache memory in use is 18.5 GiB.\n"
    )
    assert log == StartLog(
        engine="vllm",
        memory_fraction=0.92,
        total_bytes=(int(79.25 * GIB),),
        free_bytes=(int(78.75 * GIB),),
        consumed_bytes=(int(51.25 * GIB),),
        activation_bytes=(int(2.5 * GIB),),
        graph_bytes=(GIB // 4,),
        graph_estimate_bytes=(GIB // 2,),
        kv_bytes=(int(18.5 * GIB),),
    )


def test_cache_memory_that_was_asked_for() -> None:
    log = read(
        "INFO [utils.py:233] non-default args: {'model': 'm', 'kv_cache_memory_bytes': 32212254720}\n"
        "INFO [gpu_worker.py:491] Initial free memory 78.5 GiB, reserved 30.0 GiB memory for KV Cache as specified by "
        "kv_cache_memory_bytes config and skipped memory profiling.\n"
        "INFO [config.py:422] Setting attention block size to 784 tokens to ensure that attention page size is >= mamba "
        "page size.\nINFO GPU KV cache size: 62,720 tokens, Maximum concurrency for 31,360 tokens per request: 2.00x\n"
    )
    assert (log.kv_memory_bytes, log.kv_bytes, log.free_bytes) == (30 * GIB, (30 * GIB,), (int(78.5 * GIB),))
    assert (log.block_size, log.kv_tokens, log.concurrency) == (784, (62720,), (2.0,))


def test_pools_of_sliding_window_layers() -> None:
    log = read(
        "[2026-02-26 05:21:06 TP0] Use sliding window memory pool. full_layer_tokens=181760, swa_layer_tokens=9088\n"
        "[2026-02-26 05:21:07 TP0] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 9088, K size: 0.50 GB, V size: 0.50 GB\n"
        "[2026-02-26 05:21:07 TP0] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 181760, K size: 2.00 GB, V size: 2.00 GB\n"
        "[2026-02-26 05:21:07 TP0] SWAKVPool mem usage: 5.00 GB, swa size: 9088, full size: 181760\n"
    )
    assert (log.kv_tokens, log.swa_tokens, log.kv_bytes) == ((181760,), (9088,), (5 * GIB,))


def test_arguments_of_a_dictionary() -> None:
    log = read(
        "[2026-09-24 01:50:02] server_args={'model_path': '/models/x', 'model_loader_extra_config': {'tp_size': 99}, "
        "'tp_size': 2, 'kv_cache_dtype': 'fp8_e4m3', 'context_length': 262144, 'chunked_prefill_size': -1}"
    )
    assert log == StartLog(
        engine="sglang", model="/models/x", tensor_parallel=2, kv_cache_dtype="fp8_e4m3", max_model_len=262144
    )


@pytest.mark.parametrize(
    "text",
    [
        "Available KV cache memory: nan GiB",
        "Available KV cache memory: 0.0 GiB",
        "Available KV cache memory: 99999999999999999999 GiB",
        "Available KV cache memory: 5.1",
        "GPU KV cache size: 0 tokens",
        "GPU KV cache size: 12.5 tokens",
        "the current vLLM instance can use total_gpu_memory (0.00GiB) x gpu_memory_utilization (1.90) = 0.00GiB",
        "non-default args: {'max_model_len': -1, 'gpu_memory_utilization': 7, 'max_num_seqs': 'many', 'model': 'cut",
        "[2026-08-28 21:34:13] Load weight end. elapsed=94.49 s, type=NetMTP, avail mem=30.67 GB, mem usage=-1.86 GB.",
    ],
)
def test_values_that_cannot_be_are_dropped(text: str) -> None:
    assert replace(read(text), engine=None, legacy=None) == StartLog()


@pytest.mark.parametrize(
    "text",
    [
        "(EngineCore_0 pid=7) INFO 08-20 18:04:22 [gpu_worker.py:276] Available KV cache memory: -2.5 GiB",
        "INFO [worker.py:295] model weights take 6.59GiB; non_torch_memory takes -0.05GiB; PyTorch activation peak memory "
        "takes 4.93GiB; the rest of the memory reserved for KV Cache is -2.50GiB.",
    ],
)
def test_memory_that_is_not_there_is_told_from_memory_that_is(text: str) -> None:
    log = read(text)
    assert (log.missing, log.pool_bytes) == (int(2.5 * GIB), None)


def test_lists_of_devices_name_no_engine_and_outlast_a_new_start() -> None:
    table = "|   0  NVIDIA H100 80GB HBM3          On  |   00000000:18:00.0 Off |                    0 |\n"
    assert read(table) == StartLog()
    assert read(table + VLLM).gpu == "NVIDIA H100 80GB HBM3"
    assert read("GPU 0: NVIDIA L40S\n" + VLLM) == replace(VLLM_LOG, gpu="NVIDIA L40S")
    assert read("GPU 0: NVIDIA L40S\n" + LLAMACPP) == LLAMACPP_LOG
    around = {id(line): line for engine in engines() for line in engine.line if line.around}.values()
    assert all(line.source and line.regex.search(line.example) for line in around)


def test_the_banner_tells_version_and_model() -> None:
    banner = (
        "(APIServer pid=6) INFO 04-18 20:22:57 [utils.py:299]        █     █     █▄   ▄█\n"
        "(APIServer pid=6) INFO 04-18 20:22:57 [utils.py:299]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.19.0\n"
        "(APIServer pid=6) INFO 04-18 20:22:57 [utils.py:299]   █▄█▀ █     █     █     █  model   org/net-8b\n"
    )
    assert read(banner) == StartLog(engine="vllm", version="0.19.0", model="org/net-8b")


def test_values_are_bounded_in_number() -> None:
    log = read("GPU KV cache size: 33,504 tokens\n" * (MAX_VALUES + 50))
    assert log.kv_tokens == (33504,) * MAX_VALUES
    assert read("[01:02:03 TP0] KV Cache is allocated. #tokens: 8, KV size: 4000000000.00 GB\n" * 9).kv_bytes == (
        4 * 10**9 * GIB,
    )


def test_only_the_start_of_an_enormous_line_is_read() -> None:
    line = "GPU KV cache size: 33,504 tokens "
    assert read(line + "x" * 3 * 2**20 + " GPU KV cache size: 7 tokens\nGPU KV cache size: 9 tokens").kv_tokens == (
        33504,
        9,
    )
    assert read("x" * 3 * 2**20 + line + "\r" + line).kv_tokens == (33504,)


def test_ranks_that_share_a_line() -> None:
    line = (
        "(Worker_TP0 pid=8) Available KV cache memory: 5.00 GiB(Worker_TP1 pid=9) Available KV cache memory: 4.00 GiB"
    )
    assert read(line).kv_bytes == (5 * GIB, 4 * GIB)


def test_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serve.log"
    path.write_text(VLLM)
    assert read_start_log(path) == read_start_log(str(path)) == VLLM_LOG
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SGLANG.encode())))
    assert read_start_log("-") == SGLANG_LOG


@pytest.mark.parametrize("name", ["missing.log", ".", "a\0b", "x" * 5000])
def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="give the start-up log") as caught:
        read_start_log(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_stream_that_fails_or_holds_text_is_refused() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(InputError, match="Input/output error"):
        read_start_log(cast(IO[bytes], Broken()))
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(InputError, match="closed"):
        read_start_log(closed)
    with pytest.raises(InputError, match="text"):
        read_start_log(cast(IO[bytes], io.StringIO("GPU KV cache size: 33,504 tokens")))


class Endless(io.RawIOBase):
    """A block over and over, up to a size, then an end."""

    def __init__(self, block: bytes, size: int, end: bytes) -> None:
        self.block, self.left, self.end = block, size, end

    def read(self, size: int = -1) -> bytes:
        if self.left <= 0:
            end, self.end = self.end, b""
            return end
        self.left -= len(self.block)
        return self.block


STATS = (
    b"INFO 11-06 10:51:48 [loggers.py:127] Engine 000: Avg generation throughput: 55.0 tokens/s, GPU KV cache usage: 3.1%\n"
    b'(APIServer pid=1) INFO:     127.0.0.1:54322 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
)


@pytest.mark.parametrize(
    ("block", "size"),
    [
        (random.Random(7).randbytes(2**20), 100 * 2**20),
        ((STATS * 6000)[: 2**20], 40 * 2**20),
        (b"GPU KV cache size: " * 55_000, 100 * 2**20),
        (b"\0" * 2**20, 20 * 2**20),
    ],
    ids=["random", "traffic", "one line", "nul"],
)
def test_a_hundred_megabytes_of_noise_take_little_memory(block: bytes, size: int) -> None:
    engines()
    tracemalloc.start()
    log = read_start_log(cast(IO[bytes], Endless(block, size, b"\n" + VLLM.encode())))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert log == VLLM_LOG
    assert peak < 24 * 2**20


noise = st.one_of(
    st.binary(max_size=80).map(lambda data: data.replace(b"\n", b" ").replace(b"\r", b" ")),
    st.sampled_from([b"\x1b[2K", b"{", b'{"log": "', b"'" * 50, b"\xff\xfe", b"[" * 70, b"100%|####| 2/2"]),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CASES), st.data())
def test_whole_lines_give_the_same_values_in_any_noise(case: tuple[str, StartLog], data: st.DataObject) -> None:
    log, expected = case
    parts = []
    for line in log.encode().splitlines():
        if data.draw(st.booleans()):
            parts.append(data.draw(noise))
        colour = data.draw(st.sampled_from([b"", b"\x1b[0;36m", b"\x1b[1;31;40m"]))
        at = data.draw(st.integers(0, len(line)))
        parts.append(line[:at] + colour + line[at:])
    assert read(b"\n".join(parts)) == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_may_interleave_in_any_order(data: st.DataObject) -> None:
    lines = VLLM.splitlines()
    by_rank = {
        rank: [line for line in lines if line.startswith(f"({rank}")] for rank in ("Worker_TP0", "Worker_TP1", "Engine")
    }
    first = [line for line in lines if line.startswith("(APIServer")]
    mixed = []
    while left := [rank for rank, waiting in by_rank.items() if waiting]:
        mixed.append(by_rank[data.draw(st.sampled_from(left))].pop(0))
    log = read("\n".join(first + mixed))
    assert sorted(log.kv_bytes) == sorted(VLLM_LOG.kv_bytes)
    assert sorted(log.weight_bytes) == sorted(VLLM_LOG.weight_bytes)
    same = {"kv_bytes": (), "weight_bytes": (), "graph_bytes": ()}
    assert replace(log, **same) == replace(VLLM_LOG, **same)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), st.data())
def test_no_damage_raises(case: tuple[str, StartLog], data: st.DataObject) -> None:
    log = bytearray(case[0].encode())
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(log)))
        match data.draw(st.sampled_from(["insert", "cut", "swap"])):
            case "insert":
                log[at:at] = data.draw(st.binary(max_size=30))
            case "cut":
                del log[at : at + data.draw(st.integers(0, 200))]
            case _:
                log[at:] = log[at:][::-1] if data.draw(st.integers(0, 9)) == 0 else log[at:]
    found = read(bytes(log))
    for field in fields(found):
        value = getattr(found, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            assert isinstance(one, str) or one is None or 0 <= one <= 2**62


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_raise(data: bytes) -> None:
    assert isinstance(read(data), StartLog)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("abc='\"\\ ,:()[]{}0.1"), max_size=120))
def test_no_settings_raise(text: str) -> None:
    for key, value in pairs(text):
        assert isinstance(key, str)
        assert isinstance(value, str)
    read(f"server_args=ServerArgs(model_path={text}")
