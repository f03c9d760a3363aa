"""One model on one replica of GPUs: how it is cut, in which formats, under which engine, and what memory that leaves."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.attention import UNBOUNDED
from planner.catalog import load_gpu
from planner.efficiency import Efficiency, efficiency_of
from planner.errors import InputError, UnknownNameError
from planner.gpu import GpuSpec
from planner.memory import CacheCurve, activation_bytes, cache_curve, weight_bytes
from planner.model import ModelSpec, formats_label
from planner.precision import find_format
from planner.serving import Engine, load_engine
from planner.stage import Sharding, Stage, stages_of
from planner.tensors import ceil_div
from planner.units import parse_bytes, parse_fraction, parse_tokens
from planner.work import Precision

if TYPE_CHECKING:
    from planner.arrays import Int

MAX_GPUS = 2**16
MAX_BATCH = 2**20


@dataclass(frozen=True)
class Deployment:
    """A choice of everything but the workload; build it with `deploy`."""

    model: ModelSpec
    gpu: GpuSpec
    sharding: Sharding
    pp: int
    weights: str | None
    precision: Precision
    engine: Engine
    memory_fraction: float
    kv_memory: int | None
    source_tokens: int
    pad_heads: bool = False
    fixed_degrees: bool = False
    """Whether the caller chose ``tp`` or ``pp``."""
    gpu_name: str = ""
    """What the caller calls the GPU: its id, or the path of its file."""
    notes: tuple[str, ...] = ()

    @property
    def tp(self) -> int:
        return self.sharding.tp

    @property
    def count(self) -> int:
        """GPUs of the replica."""
        return self.tp * self.pp

    @property
    def weights_label(self) -> str:
        return formats_label(self.precision.weights)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return stages_of(self.model, self.pp)

    @cached_property
    def efficiency(self) -> Efficiency:
        return efficiency_of(self.gpu)

    # -- memory of one GPU, by stage ------------------------------------------------------------------------------

    @cached_property
    def budget_bytes(self) -> int:
        """What the engine may use of one GPU [B]."""
        return int(self.gpu.usable_bytes * self.memory_fraction)

    @cached_property
    def stage_weight_bytes(self) -> tuple[int, ...]:
        """Weights on one GPU of each stage [B]."""
        return tuple(weight_bytes(s.all_tensors(), self.precision.weights, self.tp) for s in self.stages)

    @cached_property
    def stage_curves(self) -> tuple[CacheCurve, ...]:
        """Cache of one sequence on one GPU of each stage."""
        ranks = self.sharding.head_ranks
        return tuple(cache_curve(s, self.precision.kv, ranks, self.source_tokens) for s in self.stages)

    @cached_property
    def curve(self) -> CacheCurve:
        """Cache of one sequence over the whole model, unsharded."""
        return cache_curve(stages_of(self.model, 1)[0], self.precision.kv, 1, self.source_tokens)

    @cached_property
    def activation_bytes(self) -> int:
        """Activations that the engine's profiling run reserves [B]."""
        run = self.engine.profile_of(self.gpu)
        return activation_bytes(self.model, self.tp, run.tokens, run.sequences, self.engine.sampler_bytes)

    @cached_property
    def overhead_bytes(self) -> int:
        """What is neither weights nor activations nor cache [B]."""
        return self.engine.overhead_bytes(self.count)

    @cached_property
    def stage_pool_bytes(self) -> tuple[int, ...]:
        """What is left for the cache on one GPU of each stage; negative if the weights alone do not fit [B]."""
        if self.kv_memory is not None:  # as asked, but no more than there is
            return tuple(min(self.kv_memory, room) for room in self.stage_room)
        return self.stage_room

    @property
    def stage_room(self) -> tuple[int, ...]:
        """What weights, activations and overhead leave of the budget, which is the whole GPU under ``kv_memory`` [B]."""
        budget = self.budget_bytes if self.kv_memory is None else self.gpu.usable_bytes
        return tuple(budget - w - self.activation_bytes - self.overhead_bytes for w in self.stage_weight_bytes)

    def reserved_tokens(self, context: Int) -> Int:
        """Tokens that the engine sets aside for a sequence: the context in whole blocks."""
        block = self.engine.block_tokens
        return ceil_div(context, block) * block

    def max_batch(self, context: Int) -> Int:
        """Most sequences of ``context`` tokens whose caches fit: the smallest over stages of pool // bytes a sequence."""
        reserved = self.reserved_tokens(context)
        best = np.full_like(context, UNBOUNDED)
        for pool, curve in zip(self.stage_pool_bytes, self.stage_curves, strict=True):
            each = np.maximum(curve.nbytes(reserved), 1)
            best = np.minimum(best, self.sharding.batch_ranks * (max(pool, 0) // each))
        return int(best) if isinstance(context, int) else best

    def max_context(self, batch: Int) -> Int:
        """Longest context at which ``batch`` sequences fit [tokens]; `UNBOUNDED` where memory sets no limit."""
        local: Int = ceil_div(batch, self.sharding.batch_ranks)
        best = np.full_like(batch, UNBOUNDED)
        for pool, curve in zip(self.stage_pool_bytes, self.stage_curves, strict=True):
            best = np.minimum(best, curve.longest(max(pool, 0) // local))
        block = self.engine.block_tokens
        best = np.where(best >= UNBOUNDED, UNBOUNDED, best // block * block)
        return int(best) if isinstance(batch, int) else best

    def pool_tokens(self, context: int) -> int:
        """Tokens that the pools hold in sequences of ``context`` tokens, in whole blocks; `UNBOUNDED` if none is cached."""
        tokens = UNBOUNDED
        for pool, curve in zip(self.stage_pool_bytes, self.stage_curves, strict=True):
            if each := curve.nbytes(context):
                tokens = min(tokens, self.sharding.batch_ranks * (max(pool, 0) * context // each))
        return tokens if tokens >= UNBOUNDED else tokens // self.engine.block_tokens * self.engine.block_tokens

    def stage_cache_bytes(self, batch: int, context: int) -> tuple[int, ...]:
        """Cache of ``batch`` sequences of ``context`` tokens on one GPU of each stage, in the engine's blocks [B]."""
        local = ceil_div(batch, self.sharding.batch_ranks)
        reserved = self.reserved_tokens(context)
        return tuple(local * curve.nbytes(reserved) for curve in self.stage_curves)

    def fullest_stage(self, batch: int, context: int) -> int:
        """The stage whose GPUs have the least left for ``batch`` sequences of ``context`` tokens."""
        used = self.stage_cache_bytes(batch, context)
        return min(range(len(used)), key=lambda stage: self.stage_pool_bytes[stage] - used[stage])

    def missing_bytes(self, batch: int, context: int) -> int:
        """What the fullest GPU lacks for ``batch`` sequences of ``context`` tokens, or for ``kv_memory`` [B]."""
        stage = self.fullest_stage(batch, context)
        wanted = 0 if self.kv_memory is None else self.kv_memory - min(self.stage_room)
        return max(0, wanted, self.stage_cache_bytes(batch, context)[stage] - self.stage_pool_bytes[stage])


_GPU = re.compile(r"(?:([0-9]{1,9})\s*[xX×]\s*)?(\S.*)")
_REVERSED = re.compile(r"(.+?)\s*[xX×]\s*([0-9]{1,9})")


def parse_gpu(text: str) -> tuple[int | None, str]:
    """Split ``4xh100`` into how many and which.

    >>> parse_gpu("4xh100"), parse_gpu("mi300x")
    ((4, 'h100'), (None, 'mi300x'))
    """
    match = _GPU.fullmatch(text.strip())
    if match is None:
        raise InputError(f"cannot read GPU {text[:40]!r}; write it like --gpu h100 or --gpu 4xh100")
    count = int(match[1]) if match[1] else None
    if count is not None and not 1 <= count <= MAX_GPUS:
        raise InputError(f"a replica has between 1 and {MAX_GPUS:,} GPUs, not {count:,}")
    return count, match[2]


def _device(name: str | Path | GpuSpec) -> GpuSpec:
    try:
        return load_gpu(name)
    except UnknownNameError:
        turned = _REVERSED.fullmatch(str(name))
        if turned is None:
            raise
        raise UnknownNameError(
            f"unknown GPU {str(name)[:60]!r}; the count comes first: {turned[2]}x{turned[1]}"
        ) from None


def deploy(
    model: ModelSpec, gpu: str | Path | GpuSpec, *, context: int,
    count: int | None = None, tp: int | None = None, pp: int | None = None,
    weights: str | None = None, kv: str | None = None, engine: str = "vllm", memory_fraction: float | str | None = None,
    kv_memory: int | str | None = None, source: int | None = None, kv_shard: str = "heads", pad_heads: bool = False,
) -> Deployment:  # fmt: skip
    """Check every choice and settle those left open.

    Parameters
    ----------
    gpu
        A GPU, or ``"4xh100"`` for a replica of four. Without a count and without ``tp`` the smallest power of two of
        GPUs is taken that leaves room for one sequence of ``context`` tokens.
    count
        GPUs of the replica, where ``gpu`` does not say.
    tp, pp
        Tensor and pipeline-parallel degree; their product is the number of GPUs.
    weights, kv
        Formats; ``None`` is the checkpoint's own and 16 bit.
    memory_fraction
        Share of the GPU that the engine takes; ``None`` is the engine's default.
    kv_memory
        Cache memory of one GPU, given instead of derived [B].
    source
        Source length of an encoder-decoder [tokens].
    kv_shard
        ``"heads"``, or ``"batch"`` to deal the cache out by sequence.
    pad_heads
        Allow a ``tp`` that does not divide the heads, the rest being padding.

    Raises
    ------
    InputError, UnknownNameError
        If a choice is unknown, impossible, or contradicts another.
    """
    named, name = parse_gpu(gpu) if isinstance(gpu, str) else (None, gpu)
    spec = _device(name)
    if count is not None and named is not None and count != named:
        raise InputError(f"{gpu!r} names {named} GPUs, not {count}; give one of the two")
    count = named if count is None else parse_tokens(count, "number of GPUs", MAX_GPUS)
    if kv_shard not in ("heads", "batch"):
        raise InputError(f"kv_shard is 'heads' or 'batch', not {kv_shard!r}")
    profile = load_engine(engine)
    kv = "bf16" if kv is None or kv == "auto" else kv
    precision = Precision(model.weight_formats(weights), find_format(kv, kv=True))
    if source is not None and not model.source_tokens:
        raise InputError(f"{model.id} is a decoder only and has no source; leave --source out")
    fraction = (
        profile.memory_fraction if memory_fraction is None else parse_fraction(memory_fraction, "memory fraction")
    )
    first = Deployment(
        model=model,
        gpu=spec,
        sharding=Sharding(1, kv_shard == "batch"),
        pp=1,
        weights=weights,
        precision=precision,
        engine=profile,
        memory_fraction=fraction,
        kv_memory=None if kv_memory is None else parse_bytes(kv_memory, "KV memory"),
        source_tokens=model.source_tokens if source is None else parse_tokens(source, "source length"),
        pad_heads=pad_heads,
        gpu_name=str(name) if isinstance(name, (str, Path)) and str(name).lower().endswith(".toml") else spec.id,
        fixed_degrees=tp is not None or pp is not None,
    )
    tp = None if tp is None else _degree(tp, "--tp")
    pp = None if pp is None else _degree(pp, "--pp")
    if pp is not None and pp > model.layers:
        raise InputError(
            f"--pp {pp} is more than the {model.layers} layers of {model.id}; use --pp {model.layers} or less"
        )
    if count is None and tp is None:
        return _smallest(first, context, pp or 1)
    tp, pp = _degrees(model, spec, count, tp, pp)
    if not pad_heads:
        check_tp(model, tp)
    notes = _link_notes(spec, tp, pp)
    if pp > 1 and not first.fixed_degrees and tp * pp <= spec.link.devices:
        heads = " and ".join(map(str, model.query_heads))
        notes += (f"{tp * pp} GPUs do not divide the {heads} query heads: TP {tp} and {pp} pipeline stages instead.",)
    return replace(first, sharding=replace(first.sharding, tp=tp), pp=pp, notes=notes)


def _degree(value: int, what: str) -> int:
    if isinstance(value, str):
        raise InputError(f"{what} must be a whole number, not the text {value!r}")
    return parse_tokens(value, what, MAX_GPUS)


def check_tp(model: ModelSpec, tp: int) -> None:
    """Refuse a tensor-parallel degree that does not divide the query heads."""
    for heads in model.query_heads:
        if heads % tp:
            fine = [d for d in range(1, min(heads, 64) + 1) if all(h % d == 0 for h in model.query_heads)]
            raise InputError(
                f"--tp {tp} does not divide the {heads} query heads of {model.id}; use one of {', '.join(map(str, fine))}"
            )


def _degrees(model: ModelSpec, gpu: GpuSpec, count: int | None, tp: int | None, pp: int | None) -> tuple[int, int]:
    """Settle both degrees when at least one of count and ``tp`` is given."""
    if count is None:
        return tp or 1, pp or 1
    if tp is not None and pp is not None and tp * pp != count:
        raise InputError(
            f"--tp {tp} times --pp {pp} is {tp * pp}, not the {count} GPUs of --gpu {count}x...; change one"
        )
    if tp is None and pp is None:
        fits = [d for d in range(1, min(count, gpu.link.devices) + 1) if count % d == 0]
        tp = max(d for d in fits if all(h % d == 0 for h in model.query_heads))
    known = tp or pp or 1
    other, rest = divmod(count, known)
    if rest:
        raise InputError(f"--{'tp' if tp else 'pp'} {known} does not divide the {count} GPUs; change one")
    tp, pp = (tp, other) if tp else (other, known)
    if pp > model.layers:
        raise InputError(
            f"{count} GPUs as {tp} x {pp} need {pp} stages, more than the {model.layers} layers of {model.id}"
        )
    return tp, pp


def _smallest(first: Deployment, context: int, pp: int) -> Deployment:
    """The smallest power-of-two degree that leaves room for one sequence, or the largest of the node if none does."""
    model, gpu = first.model, first.gpu
    degrees = [2**i for i in range(17) if 2**i <= gpu.link.devices and all(h % 2**i == 0 for h in model.query_heads)]
    for tp in degrees:
        found = replace(first, sharding=replace(first.sharding, tp=tp), pp=pp)
        if found.missing_bytes(1, context) == 0:
            why = f"TP {tp} is the smallest tensor-parallel degree with room for one sequence of {context:,} tokens"
            return replace(found, notes=(f"{why}; --gpu N×{gpu.id} or --tp asks for another.",))
    why = f"no tensor-parallel degree up to {degrees[-1]} (one node of {gpu.id}) leaves room for one sequence"
    return replace(found, notes=(f"{why} of {context:,} tokens.",))


def _link_notes(gpu: GpuSpec, tp: int, pp: int) -> tuple[str, ...]:
    linked = f"the {gpu.link.devices} devices that {gpu.link.kind} links"
    if tp > gpu.link.devices:
        return (f"TP {tp} spans more than {linked}; time assumes the same link throughout.",)
    if tp * pp > gpu.link.devices:
        return (f"{tp * pp} GPUs are more than {linked}; stages on other nodes are taken to be as near.",)
    return ()
