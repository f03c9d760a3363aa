"""The verb `check_log`: an engine's start-up log held against the plan of the same model, device and settings.

What the log prints is read by `planner.startlog`; the plan takes its settings from there and everything else from the
engine's defaults. Where the tokens of the printed memory differ, other readings of the same log are tried one by one and in
pairs, and those that explain the difference are named.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from planner.catalog import gpu_ids, load_card, load_gpu
from planner.checkpoint.load import load_model
from planner.deployment import Deployment
from planner.engine import load_engine
from planner.errors import InputError, KvplanError
from planner.gpu import GpuSpec
from planner.model import ModelSpec
from planner.result import Result
from planner.settle import deploy
from planner.startlog.log import StartLog
from planner.startlog.reader import read_start_log

CLOSE = 0.005
"""Error within which two figures of a layout are taken to be the same."""
SAME_MEMORY = 0.015
"""By how much drivers differ in what they report of one device."""


@dataclass(frozen=True, kw_only=True)
class Figure(Result):
    """One figure, as the log prints it and as kvplan predicts it; ``error`` is predicted over printed, less 1."""

    name: str
    unit: str
    printed: float | None
    predicted: float | None
    error: float | None


@dataclass(frozen=True, kw_only=True)
class LogReport(Result):
    """Everything `check_log` answers.

    Attributes
    ----------
    engine, version, model, gpu, tensor_parallel, kv, weights
        What was planned.
    figures
        Printed against predicted.
    explanations
        Readings of the log under which its tokens and its memory agree, where they did not at first.
    notes
        What was taken for granted.
    """

    engine: str
    version: str
    model: str
    gpu: str | None
    tensor_parallel: int
    kv: str
    weights: str
    figures: tuple[Figure, ...]
    explanations: tuple[str, ...]
    notes: tuple[str, ...]


def check_log(
    source: str | Path | IO[bytes], *, model: str | Path | ModelSpec | None = None, gpu: str | None = None,
    engine: str | None = None, tp: int | None = None, weights: str | None = None, kv: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> LogReport:  # fmt: skip
    """Read a start-up log and hold it against the plan of the same.

    Parameters
    ----------
    source
        A path, ``-`` for standard input, or a stream of bytes.
    model, gpu, engine, tp, weights, kv, settings
        What the log does not say, or says wrongly; as in `plan`.

    Raises
    ------
    InputError
        If the source cannot be read, no engine's lines are in it, or it does not say which model runs and neither do you.

    >>> import io
    >>> lines = b"INFO Model loading took 14.99 GiB\\nINFO Available KV cache memory: 5.0 GiB\\n"
    >>> lines += b"INFO GPU KV cache size: 40,960 tokens\\n"
    >>> report = check_log(io.BytesIO(lines), model="llama3.1-8b", engine="vllm@0.19")
    >>> [(f.name, round(f.error, 3)) for f in report.figures if f.error is not None][-1]
    ('tokens of that memory', 0.0)
    """
    log = read_start_log(source)
    reading = _Reading(log, model, gpu, engine, tp, weights, kv, settings or {})
    d = reading.deployment()
    return LogReport(
        engine=d.engine.id, version=d.engine.version, model=d.model.id, gpu=reading.device.id if reading.device else None,
        tensor_parallel=d.tp, kv=d.precision.kv.id, weights=d.weights_label, figures=tuple(_figures(reading, d)),
        explanations=tuple(_explanations(reading, d)), notes=tuple(reading.notes),
    )  # fmt: skip


class _Reading:
    """A log with everything that a deployment needs, told, printed or assumed."""

    def __init__(
        self, log: StartLog, model: str | Path | ModelSpec | None, gpu: str | None, engine: str | None, tp: int | None,
        weights: str | None, kv: str | None, settings: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.log, self.notes = log, list[str]()
        self.settings = settings
        self.engine = self._engine(engine)
        self.model, self.weights = self._model(model, weights)
        self.device = self._device(gpu)
        self.tp = tp or log.tensor_parallel or 1
        self.kv = kv or _cache_format(log.kv_cache_dtype)

    def _engine(self, told: str | None) -> str:
        named = told or self.log.engine
        if named is None:
            raise InputError(
                "no start-up lines of vLLM, SGLang, TensorRT-LLM or llama.cpp in this log; give it from its start"
            )
        if "@" in named or not self.log.version:
            if "@" not in named:
                self.notes.append(
                    f"The log prints no version; {load_engine(named).version} is assumed (--engine {named}@VERSION)."
                )
            return named
        number = re.match(r"v?b?([0-9]+(?:\.[0-9]+){0,2})", self.log.version)
        versioned = f"{named}@{number[1]}" if number else named
        try:
            load_engine(versioned)
        except KvplanError as error:
            self.notes.append(f"{error}; its stated version is planned.")
            return named
        return versioned

    def _model(self, told: str | Path | ModelSpec | None, weights: str | None) -> tuple[ModelSpec, str | None]:
        if told is not None:
            return load_model(told), weights
        name = self.log.model
        if not name:
            raise InputError("the log does not say which model runs; give --model")
        for candidate, form in _spellings(name, self.log.quantization):
            try:
                return load_card(candidate), weights or form
            except KvplanError:
                continue
        raise InputError(
            f"the log names the model {name[:80]!r}, of which there is no card; give --model ID or a config.json"
        )

    def _device(self, told: str | None) -> GpuSpec | None:
        total = self.log.device_bytes
        if told is None and self.log.gpu:
            told = _known_device(self.log.gpu)
        if told is not None:
            found = load_gpu(told)
        else:
            close = [g for g in map(load_gpu, gpu_ids()) if total and abs(g.usable_bytes / total - 1) < SAME_MEMORY]
            if not close:
                self.notes.append("The log does not say which GPU it is; give --gpu to predict the memory too.")
                return None
            found = min(close, key=lambda g: (abs(g.usable_bytes - (total or 0)), g.id))
            self.notes.append(f"The GPU is taken to be {found.name} by its memory; --gpu names another.")
        return found.with_memory(total) if total else found

    def deployment(self, pool: int | None = None, **changed: Any) -> Deployment:
        """The deployment that the log describes; with ``pool``, one that has this memory for the cache on each GPU."""
        log = self.log
        fields: dict[str, Any] = {
            "max_tokens": log.max_model_len, "sequences": log.max_num_seqs, "step_tokens": log.max_num_batched_tokens,
            "block_tokens": log.block_size, "draft_tokens": log.speculative_tokens,
            "prefix_caching": log.prefix_caching, "graphs": None if log.enforce_eager is None else not log.enforce_eager,
            "memory_fraction": log.memory_fraction, "kv_memory": pool or log.kv_memory_bytes,
        }  # fmt: skip
        gpu = self.device or load_gpu("h200-sxm")
        if pool is not None:
            gpu = gpu.with_memory(2**41)
        attention_dp = (log.data_parallel or 1) if log.attention_dp else 1
        choices: dict[str, Any] = {
            "tp": max(1, self.tp // attention_dp), "pp": log.pipeline_parallel or 1,
            "dp": attention_dp if log.attention_dp else log.data_parallel or 1, "ep": bool(log.expert_parallel),
            "weights": self.weights, "kv": self.kv, "engine": self.engine,
        }  # fmt: skip
        choices |= {k: v for k, v in changed.items() if k in choices}
        fields |= {k: v for k, v in changed.items() if k not in choices}
        return deploy(
            self.model, gpu, context=log.max_model_len or self.model.context_limit, pad_heads=True,
            settings=self.settings, fields={k: v for k, v in fields.items() if v is not None}, **choices,
        )  # fmt: skip


# -- names in logs -----------------------------------------------------------------------------------------------------

_QUANTISED = {
    "awq": "int4", "awq_marlin": "int4", "gptq": "int4", "gptq_marlin": "int4", "int4": "int4", "w4a16": "int4",
    "fp8": "fp8", "w8a8": "int8", "int8": "int8", "bitsandbytes": "nf4", "bnb": "nf4", "nvfp4": "nvfp4",
    "modelopt_fp4": "nvfp4", "modelopt": "fp8", "modelopt_fp8": "fp8", "mxfp4": "mxfp4",
}  # fmt: skip
"""What engines call formats of weights, in kvplan's words."""
_SUFFIX = re.compile(
    r"[-_.](awq|gptq|fp8|int4|int8|w4a16|w8a8|w8a16|nvfp4|mxfp4|bnb|quantized|dynamic|marlin|4bit|8bit|gguf)\b.*", re.I
)


def _spellings(name: str, quantization: str | None) -> Iterator[tuple[str, str | None]]:
    """Names that a card may answer to, most likely first, each with the format of its weights where that is another."""
    last = name.rstrip("/").rpartition("/")[2]
    parent = name.rstrip("/").rpartition("/")[0].rpartition("/")[2].removeprefix("models--").replace("--", "/")
    form = _QUANTISED.get((quantization or "").lower())
    for spelled in (name, last, parent):
        if spelled:
            yield spelled, None
    for spelled in (name, last):
        base = _SUFFIX.sub("", spelled)
        if base != spelled:
            suffix = _SUFFIX.search(spelled)
            yield base, form or _QUANTISED.get(suffix[1].lower() if suffix else "")


def _known_device(name: str) -> str | None:
    """The catalogue's id of a device that a log names."""
    words = re.sub(r"(?i)nvidia|tesla|geforce|amd|instinct|graphics|[_]", " ", name).split()
    for length in range(len(words), 0, -1):
        try:
            return load_gpu("-".join(words[:length])).id
        except KvplanError:
            continue
    return None


def _cache_format(name: str | None) -> str | None:
    """kvplan's name of a cache format that a log prints; ``None`` for "auto" and for what it does not know."""
    text = (name or "").lower().removeprefix("torch.")
    known = {
        "float8": "fp8", "fp8": "fp8", "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "half": "fp16", "f16": "fp16",
        "int8": "int8", "int4": "int4", "nvfp4": "nvfp4", "q8_0": "q8_0", "q4_0": "q4_0", "q5_1": "q5_1",
    }  # fmt: skip
    return next((ours for start, ours in known.items() if text.startswith(start)), None)


# -- figures -----------------------------------------------------------------------------------------------------------


def _figures(reading: _Reading, d: Deployment) -> Iterator[Figure]:
    """Printed against predicted; what the log does not print is left out."""
    log, budget = reading.log, max(d.budgets, key=lambda b: b.weights)
    from_scratch = reading.device is not None
    length = log.max_model_len or d.model.context_limit
    yield from _figure("weights on a GPU", "B", log.rank_weight_bytes, budget.weights + budget.drafter)
    if from_scratch:
        yield from _figure("other memory", "B", log.rank_non_torch_bytes, budget.other)
        yield from _figure("activation peak", "B", log.rank_activation_bytes, budget.activations)
        yield from _figure("graphs", "B", log.rank_graph_bytes, budget.graphs)
        yield from _figure("memory for the cache", "B", log.pool_bytes, min(b.pool for b in d.budgets))
        tokens = d.pool_tokens(length) // max(1, d.sharding.dp)
        yield from _figure("tokens", "tokens", log.pool_tokens, tokens)
    if log.pool_bytes and log.pool_tokens:
        held = _held(reading, log.pool_bytes)
        yield from _figure(
            "bytes a token", "B", log.pool_bytes / log.pool_tokens, log.pool_bytes / held if held else None
        )
        yield from _figure("tokens of that memory", "tokens", log.pool_tokens, held)
    if log.pool_bytes and log.blocks:
        blocks = [
            p.units for found in reading.deployment(log.pool_bytes).stage_pools for p in found if p.unit == "block"
        ]
        yield from _figure("blocks of that memory", "count", min(log.blocks), min(blocks, default=None))
    if log.pool_bytes and log.concurrency:
        at = min(log.concurrency_len, default=length)
        same = reading.deployment(log.pool_bytes, max_tokens=at)
        yield from _figure("sequences of that memory", "sequences", log.pool_sequences, round(same.concurrency(at), 2))


def _figure(name: str, unit: str, printed: float | None, predicted: float | None) -> Iterator[Figure]:
    if printed is None:
        return
    error = predicted / printed - 1 if predicted is not None and printed else None
    yield Figure(name=name, unit=unit, printed=printed, predicted=predicted, error=error)


def _held(reading: _Reading, pool: int, **changed: Any) -> int | None:
    """Tokens that the engine would print for so much memory for the cache on each GPU."""
    try:
        d = reading.deployment(pool, **changed)
    except KvplanError:
        return None
    alone = [p for found in d.stage_pools for p in found if p.unit == "token" and p.counted]
    if alone and len(d.stage_pools[0]) > 1:  # what is printed is the memory of this pool alone
        return pool // alone[0].unit_bytes
    return d.pool_tokens(reading.log.max_model_len or d.model.context_limit) // max(1, d.sharding.dp)


# -- explanations ------------------------------------------------------------------------------------------------------


def _explanations(reading: _Reading, d: Deployment) -> Iterator[str]:
    """Readings under which the printed tokens are what the printed memory holds."""
    log = reading.log
    if not log.pool_bytes or not log.pool_tokens:
        return
    held = _held(reading, log.pool_bytes)
    if held and abs(held / log.pool_tokens - 1) <= CLOSE:
        idle = max(p.padded_layers for found in d.stage_pools for p in found)
        if idle:
            yield f"{idle} layers of padding are in the printed memory: groups of layers are as large as the smallest kind."
        return
    singles = dict(_readings(reading, d))
    tried: list[tuple[tuple[str, ...], dict[str, Any]]] = [((words,), change) for words, change in singles.items()]
    tried += [((a, b), {**singles[a], **singles[b]}) for a, b in itertools.combinations(singles, 2)]
    for number in (1, 2):
        found = [words for words, change in tried if len(words) == number and _explains(reading, change)]
        if found:
            yield from (" and ".join(words)[:1].upper() + " and ".join(words)[1:] + "." for words in found[:3])
            return
    yield "No other reading that was tried explains the difference."


def _readings(reading: _Reading, d: Deployment) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other ways to read the log: what each would mean, and the change of the plan."""
    for form, words in (("fp8", "8-bit"), ("bf16", "16-bit"), ("nvfp4", "4-bit")):
        if d.precision.kv.k.id != form:
            yield f"the cache is {words}", {"kv": form}
    if d.count > 1:
        yield (
            f"the memory is of one of {d.count} GPUs that hold different parts, or of all together",
            {"ranks": d.count},
        )
        yield "the smallest rank has less memory than the one that is printed", {"smaller": True}
    if any(layers.kept < 2**62 for held in d.stage_layers for layers in held):
        yield "layers with a window hold every token", {"group_windows": False}
    if d.model.state:
        other = not d.setup.prefix_caching
        yield f"states are {'' if other else 'not '}kept for prefix caching", {"prefix_caching": other}
    if d.model.drafter and not d.setup.draft_tokens:
        for tokens in (1, 2, 3, 4, 5):
            yield f"a drafter of {tokens} tokens has a cache of its own", {"draft_tokens": tokens}
    if "latent" in {row.kind for row in d.model.attention if hasattr(row, "kind")}:
        yield "rows of the latent are padded from 576 to 640", {"padded": 640 / 576}
    other_count = "requests" if d.setup.tokens_are == "blocks" else "blocks"
    words = "whole requests" if other_count == "requests" else "blocks of one group"
    yield f"the tokens are counted as {words}, as another version does", {"tokens_are": other_count}


def _explains(reading: _Reading, change: Mapping[str, Any]) -> bool:
    log = reading.log
    pool, tokens = log.pool_bytes or 0, log.pool_tokens or 1
    ranks, padded = change.get("ranks", 1), change.get("padded", 1.0)
    rest = {k: v for k, v in change.items() if k not in ("ranks", "padded", "smaller")}
    for scale in (ranks, 1 / ranks):
        held = _held(reading, int(pool * scale / padded), **rest)
        if held and change.get("smaller") and 1 < held / tokens < 1.3 and not rest:
            return True
        if held and not change.get("smaller") and abs(held / tokens - 1) <= CLOSE:
            return True
    return False
