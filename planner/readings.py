"""A start-up log as a deployment: what is told, what the log prints, and what has to be assumed, with a note for each.

The plan of a log takes its settings from there and everything else from the engine's defaults. It is made in two ways: from
scratch, and with the memory for the cache that is printed, for which the tokens then follow from the layout alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.cached import UNBOUNDED
from planner.catalog import load_gpu
from planner.checkpoint.load import load_model
from planner.deployment import Deployment
from planner.engine import load_engine
from planner.errors import InputError, KvplanError
from planner.gpu import GpuSpec
from planner.lognames import cache_format, devices_of, find_device, find_model, weight_format
from planner.measured import find_gpu
from planner.model import ModelSpec
from planner.settle import MAX_GPUS, deploy
from planner.startlog.log import StartLog
from planner.units import format_gib

TYPICAL = {
    ("vllm", "V0"): "0.7",
    ("vllm", ""): "0.19",
    ("vllm", "V1"): "0.19",
    ("vllm", "requests"): "0.26",
    ("sglang", ""): "0.5.9",
    ("trtllm", ""): "1.0",
}
"""Version that is assumed where a log does not print it, by engine and kind of log: one of the middle of those that print
like it. ``requests`` are hybrid models whose tokens are counted as whole requests."""
NO_ENGINE = "no start-up lines of vLLM, SGLang, TensorRT-LLM or llama.cpp in this log; give it from its start"
LEGACY_STEP, LEGACY_WHOLE = 2048, 32768
"""Tokens of a pass of vLLM's first generation at least, and up to which length it takes whole prompts [tokens]."""
ALONE = 2**41
"""Memory of a device beside which what is asked for the cache always fits [B]."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A log with everything that a deployment needs.

    Attributes
    ----------
    device
        ``None`` if nothing says which it is.
    """

    log: StartLog
    engine: str
    model: ModelSpec
    device: GpuSpec | None
    tp: int
    weights: str | None
    kv: str | None
    settings: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def length(self) -> int:
        """The longest sequence that the engine is started for [tokens]."""
        log = self.log
        if log.max_model_len or log.engine != "vllm":
            return log.max_model_len or self.model.context_limit
        return min(log.concurrency_len or log.needed_len, default=self.model.context_limit)

    @property
    def asked_length(self) -> int:
        """The length that the printed number of sequences is for [tokens]."""
        return min(self.log.concurrency_len, default=self.length)

    def deployment(self, pool: int | None = None, **changed: Any) -> Deployment:
        """The deployment that the log describes; with ``pool``, one that has this memory for the cache on each GPU.

        Raises
        ------
        KvplanError
            If what the log says cannot be planned.
        """
        log = self.log
        fields: dict[str, Any] = {
            "max_tokens": self.length, "sequences": log.max_num_seqs, "step_tokens": log.max_num_batched_tokens,
            "block_tokens": log.block_size, "draft_tokens": log.speculative_tokens,
            "prefix_caching": log.prefix_caching, "graphs": None if log.enforce_eager is None else not log.enforce_eager,
            "memory_fraction": log.memory_fraction, "kv_memory": pool or log.kv_memory_bytes,
        }  # fmt: skip
        if log.legacy and log.engine == "vllm":  # whatever the version: V0 lived on beside V1
            whole = max(LEGACY_STEP, self.length) if self.length <= LEGACY_WHOLE else LEGACY_STEP
            fields |= {"step_tokens": log.max_num_batched_tokens or whole, "sequences": log.max_num_seqs or 256}
        gpu = self.device or load_gpu("h200-sxm")
        if pool is not None:
            gpu = gpu.with_memory(max(ALONE, 2 * pool))
        attention_dp = (log.data_parallel or 1) if log.attention_dp else 1
        choices: dict[str, Any] = {
            "tp": max(1, self.tp // attention_dp), "pp": log.pipeline_parallel or 1, "dp": log.data_parallel or 1,
            "ep": bool(log.expert_parallel), "weights": self.weights, "kv": self.kv, "engine": self.engine,
        }  # fmt: skip
        if load_engine(self.engine).splits_layers:  # its degree is of layers, whatever the log or the caller calls it
            choices |= {"tp": 1, "pp": max(choices["tp"], choices["pp"])}
        choices |= {k: v for k, v in changed.items() if k in choices}
        fields |= {k: v for k, v in changed.items() if k not in choices}
        if choices["tp"] * choices["pp"] * choices["dp"] > MAX_GPUS:
            raise InputError(f"the log's degrees of parallelism make more than {MAX_GPUS:,} GPUs; give --tp")
        try:
            return deploy(
                self.model, gpu, context=min(self.length, fields["max_tokens"]), pad_heads=True, settings=self.settings,
                fields={k: v for k, v in fields.items() if v is not None}, **choices,
            )  # fmt: skip
        except ValidationError as error:
            wrong = ", ".join(dict.fromkeys(str(part) for e in error.errors() for part in e["loc"]))
            raise InputError(f"the log's settings cannot be planned ({wrong}); give a log from one start") from None

    def tokens(self, d: Deployment) -> int | None:
        """Tokens of the pool that the log prints, from its blocks if it prints only these."""
        log = self.log
        if log.pool_tokens is None and log.blocks and d.setup.layout == "blocks":
            return min(log.blocks) * d.setup.block_tokens
        return log.pool_tokens

    def held(self, pool: int, **changed: Any) -> int | None:
        """Tokens that the engine would print for so much memory for the cache on each GPU."""
        try:
            d = self.deployment(pool, **changed)
        except KvplanError:
            return None
        if d.setup.layout == "cells":
            return cells_of(d, pool, self.log)
        pools = d.stage_pools[0]
        alone = [p for p in pools if p.unit == "token" and p.counted]
        windows = [p for p in pools if p.unit == "token" and not p.counted]
        swa = min(self.log.swa_tokens, default=0)
        if alone and len(pools) > 1 and (swa or not windows):  # what is printed is without the pools of states
            apart = sum(swa * p.unit_bytes for p in windows)
            return (pool - apart if pool > apart else pool) // alone[0].unit_bytes
        return d.pool_tokens(self.length) // max(1, d.sharding.dp)

    def changed(self, **fields: Any) -> Reading:
        """The same with other assumptions."""
        return replace(self, **fields)


def cells_of(d: Deployment, pool: int, log: StartLog) -> int | None:
    """Cells of a cache of llama.cpp, whose layers with a window have a cache of their own if the log says so."""
    swa = min(log.swa_tokens, default=0)
    layers = [one for held in d.stage_layers for one in held if one.token_bytes]
    windows = sum(one.count * one.token_bytes * swa // one.every for one in layers if swa and one.kept < UNBOUNDED)
    each = sum(one.count * one.token_bytes / one.every for one in layers if not swa or one.kept >= UNBOUNDED)
    return max(0, int((pool - windows) / each)) if each else None


def read(
    log: StartLog, *, model: str | Path | ModelSpec | None = None, gpu: str | None = None, engine: str | None = None,
    tp: int | None = None, weights: str | None = None, kv: str | None = None, settings: Mapping[str, Any] | None = None,
) -> Reading:  # fmt: skip
    """Put together what is told with what a log prints.

    Raises
    ------
    InputError
        If no engine's lines are in it, or it does not say which model runs and neither do you.
    """
    notes: list[str] = []
    named = engine or log.engine
    if named is None:
        raise InputError(NO_ENGINE)
    spec, form, other = _model(log, model, notes)
    device = _device(log, gpu, load_engine(named).vendors, notes)
    reading = Reading(
        log=log, engine=named, model=spec, device=device, tp=_ranks(log, tp, notes), weights=weights or form,
        kv=kv or cache_format(log.kv_cache_dtype) or ("bf16" if other and spec.kv else None), settings=settings or {},
        notes=(),
    )  # fmt: skip
    reading = reading.changed(engine=_version(reading, notes))
    reading = reading.changed(log=_whole_cache(reading, notes))
    asked = (log.kv_cache_dtype or "auto")[:40]
    if asked.lower() not in ("auto", "none", "") and kv is None and cache_format(asked) is None:
        notes.append(f"The log prints a cache in {asked!r}, which is not known; --kv says which format it is.")
    if log.draft_model and not spec.drafter:
        notes.append(f"A draft model, {log.draft_model[:60]}, is loaded beside it; its memory is not planned.")
    return reading.changed(notes=tuple(notes))


def _version(reading: Reading, notes: list[str]) -> str:
    """The engine at the version that is told or printed, else at one that is typical of such logs."""
    named, log = reading.engine, reading.log
    if "@" in named:
        return named
    number = re.match(r"v?b?([0-9]{1,9}(?:\.[0-9]{1,9}){0,2})", log.version or "")
    if number:
        try:
            return f"{named}@{load_engine(f'{named}@{number[1]}').version}"
        except KvplanError as error:
            oldest = load_engine(named).oldest
            notes.append(f"{_sentence(str(error).partition(';')[0])}; version {oldest or 'as stated'} is planned.")
            return f"{named}@{oldest}" if oldest else named
    version, why = _typical(reading)
    if version and log.engine != "llamacpp":
        notes.append(f"The log prints no version; {version} is assumed{why} (--engine {named}@VERSION).")
    return f"{named}@{version}" if version else named


def _typical(reading: Reading) -> tuple[str, str]:
    named, log = reading.engine, reading.log
    if log.legacy and (named, "V0") in TYPICAL:
        return TYPICAL[named, "V0"], ", as its lines are of the first generation"
    version = TYPICAL.get((named, ""), "")
    requests = TYPICAL.get((named, "requests"))
    if requests and _counts_requests(log) and _hybrid(reading.changed(engine=f"{named}@{version}")):
        return requests, ", as its tokens are counted in whole requests"
    return version, ""


def _whole_cache(reading: Reading, notes: list[str]) -> StartLog:
    """The log without its memory for the cache, if that is the memory of layers with a window alone, as in a cut log."""
    log, swa = reading.log, min(reading.log.swa_tokens, default=0)
    if not log.pool_bytes or not swa:
        return log
    pools = reading.deployment(log.pool_bytes).stage_pools[0]
    windows = sum(swa * p.unit_bytes for p in pools if p.unit == "token" and not p.counted)
    if not windows or abs(log.pool_bytes / windows - 1) > 0.01:
        return log
    notes.append(
        f"The memory for the cache that is printed, {format_gib(log.pool_bytes)}, is that of the layers with a window alone."
    )
    return replace(log, kv_bytes=(), k_bytes=(), v_bytes=())


def _counts_requests(log: StartLog) -> bool:
    """Whether the printed tokens are the printed sequences times their length."""
    if not log.pool_tokens or not log.pool_sequences or not log.concurrency_len:
        return False
    return abs(log.pool_sequences * min(log.concurrency_len) / log.pool_tokens - 1) < 0.01


def _hybrid(reading: Reading) -> bool:
    layers = [one for held in reading.deployment(10**10).stage_layers for one in held]
    return len({(one.kept, one.every, bool(one.state_bytes)) for one in layers}) > 1


def _model(log: StartLog, told: str | Path | ModelSpec | None, notes: list[str]) -> tuple[ModelSpec, str | None, bool]:
    """The model, the format of its weights if not as released, and whether its card is of another checkpoint."""
    if told is not None:
        return load_model(told), None, False
    if not log.model:
        raise InputError("the log does not say which model runs; give --model")
    found = find_model([log.model, log.served_model], log.quantization)
    if found is None:
        raise InputError(
            f"the log names the model {log.model[:80]!r}, of which there is no card; give --model ID or a config.json"
        )
    if log.quantization and found.weights is None and found.model.weights.default in ("bf16", "fp16"):
        released = found.model.weights.label or found.model.weights.experts
        if not released and not weight_format(log.quantization):
            notes.append(f"Weights are taken as released, not {log.quantization[:40]}; --weights names their format.")
    return found.model, found.weights, found.other


def _device(log: StartLog, told: str | None, vendors: tuple[str, ...], notes: list[str]) -> GpuSpec | None:
    total = log.device_bytes
    if told is not None:
        found = find_gpu(told)
    elif log.gpu and (named := find_device(log.gpu)):
        found = named
    elif total and (close := [g for g in devices_of(total) if not vendors or g.vendor in vendors]):
        found = close[0]
        others = f" (as much as {either([g.id for g in close[1:4]])} has)" if close[1:] else ""
        notes.append(f"The GPU is taken to be {found.name} by its {format_gib(total)}{others}; --gpu names another.")
    else:
        if log.engine == "llamacpp":
            return None
        lacks = f"The catalogue does not have {log.gpu[:60]}" if log.gpu else "The log does not say which GPU it is"
        notes.append(f"{lacks}; give --gpu to predict the memory too.")
        return None
    return found.with_memory(total) if total else found


def _ranks(log: StartLog, told: int | None, notes: list[str]) -> int:
    """The tensor-parallel degree; if it is not printed, as many as ranks print their memory."""
    if told or log.tensor_parallel:
        return told or log.tensor_parallel or 1
    ranks = max(len(log.kv_bytes), len(log.weight_bytes))
    if log.engine not in ("vllm", "sglang") or ranks < 2 or log.data_parallel or log.pipeline_parallel:
        return 1
    notes.append(f"{ranks} ranks print their memory, so TP {ranks} is assumed; --tp names another.")
    return ranks


def either(words: list[str]) -> str:
    """Words as a choice.

    >>> either(["a", "b", "c"])
    'a, b or c'
    """
    return " or ".join(words) if len(words) < 3 else ", ".join(words[:-1]) + " or " + words[-1]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
