"""One model on one replica of GPUs: how it is cut, in which formats, under which engine, and what memory that leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from planner.cached import UNBOUNDED
from planner.efficiency import Efficiency, efficiency_of
from planner.formats import formats_label
from planner.gpu import GpuSpec
from planner.memory import CacheCurve, activation_bytes, cache_curve, weight_bytes
from planner.model import ModelSpec
from planner.serving import Engine
from planner.stage import Sharding, Stage, stages_of
from planner.tensors import ceil_div
from planner.work import Precision

if TYPE_CHECKING:
    from planner.arrays import Int


@dataclass(frozen=True)
class Deployment:
    """A choice of everything but the workload; build it with `settle.deploy`."""

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
        released = self.model.weights.label if self.weights is None else None
        return released or formats_label(self.precision.weights)

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
