"""The verb `check_log`: an engine's start-up log held against the plan of the same model, device and settings.

What the log prints is read by `planner.startlog`, and made a deployment by `planner.readings`. Where the tokens of the
printed memory differ, other readings of the same log are tried one by one, then in pairs of unlike ones, and those that
explain the difference are named; a match is one within what the log's rounding leaves open.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from planner.cached import UNBOUNDED
from planner.deployment import Deployment
from planner.errors import KvplanError
from planner.formats import HIGH_PRECISION
from planner.model import ModelSpec
from planner.readings import Reading, cells_of, either, read
from planner.result import Result
from planner.startlog.reader import read_start_log
from planner.tensors import Role
from planner.units import GIB, format_gib

CLOSE = 0.005
"""Error within which two figures of a layout are taken to be the same."""
ROUNDING = 0.006 * GIB
"""What printing memory with two decimals leaves open [B]."""
WEIGHTS_DIFFER, WEIGHTS_FIT = 0.05, 0.015
"""Error from which weights need an explanation, and within which another format is one."""
LITTLE = GIB // 4
"""Difference of weights that needs no explanation [B]."""
FRACTION_STEP = 0.03
"""Difference of a share from which it is taken to have been chosen."""


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
        Why they differ where they do, as far as other readings of the log tell.
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
        If the source cannot be read, no engine's lines are in it, it does not say which model runs and neither do you, or
        what it says cannot be planned.

    >>> import io
    >>> lines = b"INFO Model loading took 14.99 GiB\\nINFO Available KV cache memory: 5.0 GiB\\n"
    >>> lines += b"INFO GPU KV cache size: 40,960 tokens\\n"
    >>> report = check_log(io.BytesIO(lines), model="llama3.1-8b", engine="vllm@0.19")
    >>> [(f.name, round(f.error, 3)) for f in report.figures if f.error is not None][-1]
    ('tokens of that memory', 0.0)
    """
    log = read_start_log(source)
    reading = read(log, model=model, gpu=gpu, engine=engine, tp=tp, weights=weights, kv=kv, settings=settings)
    d = reading.deployment()
    figures = tuple(_cell_figures(reading, d) if d.setup.layout == "cells" else _figures(reading, d))
    return LogReport(
        engine=d.engine.id, version=d.engine.version, model=d.model.id, gpu=reading.device.id if reading.device else None,
        tensor_parallel=d.tp, kv=d.precision.kv.id, weights=d.weights_label, figures=figures,
        explanations=tuple(_explanations(reading, d)), notes=reading.notes,
    )  # fmt: skip


# -- figures -----------------------------------------------------------------------------------------------------------


def _figures(reading: Reading, d: Deployment) -> Iterator[Figure]:
    """Printed against predicted; what the log does not print is left out, and what needs a device if none is known."""
    log, budget = reading.log, max(d.budgets, key=lambda b: b.weights)
    yield from _figure("weights on a GPU", "B", log.rank_weight_bytes, budget.weights + budget.drafter)
    tokens = reading.tokens(d)
    if reading.device is not None:
        yield from _figure("other memory", "B", log.rank_non_torch_bytes, budget.other)
        yield from _figure("activation peak", "B", log.rank_activation_bytes, budget.activations)
        yield from _figure("graphs", "B", log.rank_graph_bytes, budget.graphs)
        least = min(b.pool for b in d.budgets)
        lacking = None if log.missing is None or log.pool_bytes else -log.missing
        yield from _figure("memory for the cache", "B", log.pool_bytes or lacking, least)
        yield from _figure("tokens", "tokens", tokens, _finite(d.pool_tokens(reading.length) // d.sharding.dp))
    if log.needed_bytes and log.needed_len:
        length = min(log.needed_len)
        same = reading.deployment(log.pool_bytes or 2**36, max_tokens=length)
        need = max(sum(p.curve.amount(length) * p.unit_bytes for p in found) for found in same.stage_pools)
        yield from _figure("cache of one sequence", "B", min(log.needed_bytes), need)
    if log.pool_bytes:
        yield from _figures_of_pool(reading, log.pool_bytes, tokens)


def _figures_of_pool(reading: Reading, pool: int, tokens: int | None) -> Iterator[Figure]:
    """What the printed memory for the cache holds."""
    log, held = reading.log, _finite(reading.held(pool))
    if tokens:
        yield from _figure("bytes a token", "B", pool / tokens, pool / held if held else None)
        yield from _figure("tokens of that memory", "tokens", tokens, held)
    if log.blocks and log.kv_tokens:
        found = [p.units for held in reading.deployment(pool).stage_pools for p in held if p.unit == "block"]
        if found:
            yield from _figure("blocks of that memory", "count", min(log.blocks), min(found))
    if log.concurrency:
        at = reading.asked_length
        same = reading.deployment(pool, max_tokens=at)
        each = same.concurrency(at) / same.sharding.dp
        yield from _figure("sequences of that memory", "sequences", log.pool_sequences, round(each, 2))


def _cell_figures(reading: Reading, d: Deployment) -> Iterator[Figure]:
    """The same for a cache that is as large as the context that was asked for, over all devices together."""
    log, cells = reading.log, reading.log.pool_tokens or reading.log.max_model_len
    if log.weight_bytes and log.gpu_layers == log.model_layers:
        d = reading.deployment(tower=False)
        tied = d.precision.weights[Role.EMBEDDING].nbytes(d.model.vocab * d.model.hidden) if d.model.tied else 0
        twice = tied if log.host_weight_bytes else 0
        printed = sum(log.weight_bytes) + sum(log.host_weight_bytes)
        yield from _figure("weights, all devices", "B", printed, sum(b.weights for b in d.budgets) + twice)
        yield from _figure("activation peak", "B", log.rank_activation_bytes, max(b.activations for b in d.budgets))
    if log.pool_bytes and cells:
        held = cells_of(d, log.pool_bytes, log)
        yield from _figure("bytes a token", "B", log.pool_bytes / cells, log.pool_bytes / held if held else None)
        yield from _figure("tokens of that memory", "tokens", cells, held)


def _figure(name: str, unit: str, printed: float | None, predicted: float | None) -> Iterator[Figure]:
    if printed is None:
        return
    error = predicted / printed - 1 if predicted is not None and printed > 0 else None
    yield Figure(name=name, unit=unit, printed=printed, predicted=predicted, error=error)


def _finite(tokens: int | None) -> int | None:
    return tokens if tokens is None or tokens < UNBOUNDED // 2**16 else None


# -- explanations ------------------------------------------------------------------------------------------------------


def _explanations(reading: Reading, d: Deployment) -> Iterator[str]:
    """Why printed and predicted differ, the layout of the cache first."""
    log = reading.log
    if log.missing is not None and not log.pool_bytes:
        yield f"The engine found no memory for the cache: {format_gib(log.missing)} more are in use than it may take."
    yield from _of_tokens(reading, d)
    yield from _of_counting(reading, d)
    yield from _of_weights(reading, d)
    yield from _of_fraction(reading, d)


def _of_tokens(reading: Reading, d: Deployment) -> Iterator[str]:
    """Readings under which the printed tokens are what the printed memory holds."""
    pool, tokens = reading.log.pool_bytes, reading.tokens(d)
    if d.setup.layout == "cells":
        tokens = tokens or reading.log.max_model_len
    if not pool or not tokens:
        return
    held = reading.held(pool)
    if held and abs(held / tokens - 1) <= CLOSE:
        if idle := max(p.padded_layers for found in d.stage_pools for p in found):
            many = "A layer of padding is" if idle == 1 else f"{idle} layers of padding are"
            yield f"{many} in the printed memory: all groups of layers are made equally large."
        return
    singles = list(_readings(reading, d))
    found = [one.words for one in singles if one.explains(reading, pool, tokens)]
    if not found:
        pairs = itertools.combinations([one for one in singles if one.about != ALONE], 2)
        unlike = [(a, b) for a, b in pairs if a.about != b.about]
        found = [f"{a.words} and {b.words}" for a, b in unlike if (a + b).explains(reading, pool, tokens)]
    if found:
        yield "The tokens fit if " + either(found[:3]) + "."
    elif held and 1 < held / tokens < 1.3 and len(reading.log.kv_bytes) < d.count:
        yield (
            f"No other reading that was tried explains the tokens; if the GPU with least memory for the cache is not among "
            f"those printed, it has {format_gib(pool * tokens / held)}."
        )
    else:
        yield "No other reading of the log that was tried explains the tokens of its memory."


ALONE = "alone"
"""What readings are about that are never taken together with another."""


@dataclass(frozen=True, slots=True)
class _Other:
    """Another way to read a log.

    Attributes
    ----------
    about
        What it is about; two of a kind are never taken together.
    change
        Fields and choices of the deployment.
    share
        What the memory for the cache of one GPU is of the printed one.
    times
        How many times the tokens of one GPU are printed.
    """

    about: str
    words: str
    change: Mapping[str, Any]
    share: float = 1.0
    times: int = 1

    def __add__(self, other: _Other) -> _Other:
        change = {**self.change, **other.change}
        return _Other("both", "", change, self.share * other.share, self.times * other.times)

    def explains(self, reading: Reading, pool: int, tokens: int) -> bool:
        """Whether it is what the printed tokens follow from, as exactly as they are printed."""
        held = reading.held(max(1, int(pool * self.share)), **self.change)
        within = min(CLOSE, ROUNDING / pool + 32 / tokens + 2e-4)
        return bool(held) and abs((held or 0) * self.times / tokens - 1) <= within


def _readings(reading: Reading, d: Deployment) -> Iterator[_Other]:
    """Other ways to read the log, the likeliest first."""
    log, model = reading.log, d.model
    for form, words in (("fp8", "8-bit"), ("bf16", "16-bit"), ("nvfp4", "4-bit")):
        if d.precision.kv.k.id != form:
            yield _Other("format", f"the cache is {words} (--kv {form})", {"kv": form})
    if d.count > 1:
        yield _Other("memory", f"the memory is of all {d.count} GPUs together", {}, share=1 / d.count)
        yield _Other("count", f"the tokens are of all {d.count} GPUs together", {}, times=d.count)
    elif log.tensor_parallel is None and not _weights_fit(reading, d):
        for tp in (2, 4, 8):
            yield _Other(ALONE, f"it runs on {tp} GPUs (--tp {tp})", {"tp": tp})
    if (ranks := log.context_parallel or 1) > 1:
        yield _Other("count", f"the tokens are of {ranks} GPUs that share each sequence", {}, times=ranks)
    if any(row.window for row in model.attention):
        words = "layers with a window hold every token"
        yield _Other("windows", words, {"group_windows": False, "group_chunks": False})
    if model.state:
        other = not d.setup.prefix_caching
        words = f"states are {'' if other else 'not '}kept for prefix caching"
        yield _Other("states", words, {"prefix_caching": other})
    if model.drafter and not d.setup.draft_tokens:
        for draft in (1, 2, 3, 4, 5):
            yield _Other("drafter", f"draft layers that propose {draft} tokens have a cache", {"draft_tokens": draft})
    if any(row.kind == "latent" for row in model.attention):
        yield _Other("padding", "latents are padded from 576 to 640", {}, share=576 / 640)
    if d.setup.layout == "blocks":
        other_count = "requests" if d.setup.tokens_are == "blocks" else "blocks"
        words = "in whole requests" if other_count == "requests" else "in blocks of one group of layers"
        yield _Other("count", f"tokens are counted {words}, as other versions do", {"tokens_are": other_count})


def _of_counting(reading: Reading, d: Deployment) -> Iterator[str]:
    """Tokens that are of one group of layers only, which the printed number of sequences gives away."""
    log, tokens = reading.log, reading.log.pool_tokens
    if not tokens or not log.pool_sequences or not log.concurrency_len or log.pool_sequences < 1:
        return
    room = log.pool_sequences * min(log.concurrency_len)
    groups = max((p.groups for found in d.stage_pools for p in found), default=1)
    if groups > 1 and room / tokens > 1.02:
        yield (
            f"The printed tokens are those of one of {groups} groups of layers as if each held every token; sequences of "
            f"{min(log.concurrency_len):,} tokens have {room:,.0f} tokens in that memory."
        )


def _weights_fit(reading: Reading, d: Deployment) -> bool:
    printed = reading.log.rank_weight_bytes
    return bool(printed) and abs(_weights(d) / (printed or 1) - 1) < WEIGHTS_DIFFER


def _weights(d: Deployment) -> int:
    return max(b.weights + b.drafter for b in d.budgets)


def _of_weights(reading: Reading, d: Deployment) -> Iterator[str]:
    """Another format that printed weights fit, or what else may be in them."""
    printed, planned = reading.log.rank_weight_bytes, _weights(d)
    if not printed or d.setup.layout == "cells" or _weights_fit(reading, d) or abs(planned - printed) < LITTLE:
        return
    fitting = []
    for form in ("bf16", "fp8", "int8", "int4", "nf4", "nvfp4", "mxfp4"):
        try:
            same = _weights(reading.deployment(weights=form))
        except KvplanError:
            continue
        if abs(same / printed - 1) < WEIGHTS_FIT:
            fitting.append(f"{form} (--weights {form})")
    differ = f"{format_gib(abs(printed - planned))} {'larger' if printed > planned else 'smaller'}"
    if fitting:
        yield f"The printed weights are as large as those in {either(fitting[:3])}."
    elif printed < planned:
        yield f"The printed weights are {differ} than {d.weights_label} ones: other --weights or --tp, or part is elsewhere."
    else:
        more = "" if d.weights_label in HIGH_PRECISION else "the checkpoint keeps more in 16 bit, or "
        yield f"The printed weights are {differ} than {d.weights_label} ones: {more}something else is loaded with them."


def _of_fraction(reading: Reading, d: Deployment) -> Iterator[str]:
    """The share of the device that the printed memory or tokens speak of, where it is not printed."""
    log, tokens = reading.log, reading.tokens(d)
    if reading.device is None or d.setup.layout == "cells":
        return
    budget = min(d.budgets, key=lambda b: b.pool)
    planned = d.pool_tokens(reading.length) // d.sharding.dp
    if budget.pool <= 0 or not planned:
        if log.pool_bytes or tokens:
            yield f"By the plan {reading.device.id} has no memory for the cache: another --gpu, more of them, fewer bits."
        return
    pool = log.pool_bytes or (int(budget.pool * tokens / planned) if tokens else None)
    asked = log.memory_fraction or log.kv_memory_bytes or "memory_fraction" in d.given or d.setup.kv_memory
    if asked or not pool:
        return
    share = budget.fraction + (pool - budget.pool) / (budget.usable - sum(map(budget.line, budget.before)))
    if share > 1:
        less = f"{reading.device.id} has less memory than the printed cache takes beside the weights"
        yield f"{less}: another --gpu, or a cache of fewer bits."
    elif abs(share - budget.fraction) >= FRACTION_STEP and share > 0:
        knob = next((k for k in d.engine.knobs if k.sets == "memory_fraction"), None)
        name = (knob.flag or knob.name) if knob else "the share that the engine takes"
        yield f"The log does not print {name}: about {share:.2f} rather than {budget.fraction:.2f} gives the printed cache."
