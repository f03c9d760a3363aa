"""One model on one replica of GPUs: how it is cut, in which formats, under which engine, and what memory that leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.activations import Peak, peak_of
from planner.budget import Budget
from planner.cached import UNBOUNDED
from planner.copies import copied_bytes
from planner.efficiency import Efficiency, efficiency_of
from planner.engine import Engine, Situation
from planner.formats import formats_label
from planner.gpu import GpuSpec
from planner.memory import CacheCurve, cache_curve, weight_bytes
from planner.model import ModelSpec
from planner.pool import Layers, Pool, drafted, layers_of, like, pools
from planner.setup import Setup
from planner.stage import Sharding, Stage, stages_of
from planner.tensors import Role, ceil_div
from planner.work import Precision

if TYPE_CHECKING:
    from planner.arrays import Int


def situation(gpu: GpuSpec, gpus: int, model: ModelSpec, given: Mapping[str, Any], context: int) -> Situation:
    """What an engine's defaults depend on."""
    return Situation(gpu, gpus, model.family, bool(model.state), given.get("max_tokens") or context)


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
    setup: Setup
    batch: int
    """Sequences that the engine is set to run at once, if by default it would run fewer."""
    context: int
    """Tokens that sequences are planned for; the longest length that the engine is started for, unless that is given."""
    source_tokens: int
    pad_heads: bool = False
    fixed_degrees: bool = False
    """Whether the caller chose ``tp`` or ``pp``."""
    gpu_name: str = ""
    """What the caller calls the GPU: its id, or the path of its file."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``setup`` that the caller chose."""
    notes: tuple[str, ...] = ()

    @property
    def tp(self) -> int:
        return self.sharding.tp

    @property
    def count(self) -> int:
        """GPUs of the replica."""
        return self.sharding.ranks * self.pp

    def defaults(self, given: Mapping[str, Any]) -> Setup:
        """The engine's setup, with what is given in place of its defaults, for as many sequences as are planned at least."""
        at = situation(self.gpu, self.count, self.model, given, self.context)
        found = self.engine.setup(at, given)
        wanted = self.batch if found.sequences_are_all else ceil_div(self.batch, self.sharding.dp)
        if "sequences" not in given and 0 < found.sequences < wanted:
            return self.engine.setup(at, {**given, "sequences": wanted})
        return found

    def for_sequences(self, batch: int) -> Deployment:
        """The same, set up to run so many sequences at once at least."""
        found = replace(self, batch=batch)
        return replace(found, setup=found.defaults(found.given))

    @property
    def most_sequences(self) -> int:
        """Sequences that the engine is set to run at once over all data-parallel groups; `UNBOUNDED` where it is not."""
        return self.setup.sequences * (1 if self.setup.sequences_are_all else self.sharding.dp) or UNBOUNDED

    @cached_property
    def lifted_from(self) -> int | None:
        """The engine's default of sequences at once, where it is too small for the planned batch."""
        if self.batch <= self.sharding.dp:
            return None
        default = replace(self, batch=1).defaults(self.given).sequences
        return default if default != self.setup.sequences else None

    @property
    def weights_label(self) -> str:
        released = self.model.weights.label if self.weights is None else None
        return released or formats_label(self.precision.weights)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return stages_of(self.model, self.pp)

    @cached_property
    def efficiency(self) -> Efficiency:
        return efficiency_of(self.gpu, self.engine.id, self.setup, self.routes)

    @cached_property
    def routes(self) -> bool:
        """Whether the model routes tokens to experts."""
        return any(row.experts for row in self.model.ffn)

    # -- memory of one GPU, by stage ------------------------------------------------------------------------------

    @cached_property
    def stage_weight_bytes(self) -> tuple[int, ...]:
        """Weights on one GPU of each stage, with what the engine holds beyond the checkpoint [B]."""
        formats = self.precision.weights
        return tuple(
            weight_bytes(s.all_tensors(), formats, self.sharding) - self._towers(s) + added
            for s, added in zip(self.stages, self.stage_added_bytes, strict=True)
        )  # fmt: skip

    @cached_property
    def stage_added_bytes(self) -> tuple[int, ...]:
        """Copies and padding of weights that the engine makes on one GPU of each stage [B]."""
        return tuple(copied_bytes(s, self.precision.weights, self.sharding, self.setup) for s in self.stages)

    def _towers(self, stage: Stage) -> int:
        """Towers that the engine is told to leave out [B]."""
        if self.setup.tower or not stage.first:
            return 0
        towers = sum(other.parameters for other in self.model.other if other.is_tower)
        return self.precision.weights[Role.OTHER].nbytes(towers)

    @cached_property
    def curve(self) -> CacheCurve:
        """Cache of one sequence over the whole model, unsharded: what the model needs [B]."""
        return cache_curve(stages_of(self.model, 1)[0], self.precision.kv, 1, self.source_tokens)

    @cached_property
    def activation_bytes(self) -> int:
        """Activations that the engine's profiling run reserves, or those of the planned batch if it makes none [B]."""
        return self.peak.nbytes

    @cached_property
    def peak(self) -> Peak:
        """What a forward pass holds at once."""
        run = self.setup
        if "activations" not in run.before + run.inside:
            run = run.model_copy(update={"sequences": min(run.sequences, self.batch)})
        return peak_of(self.model, self.sharding, run)

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """Memory of one GPU of each stage, line by line."""
        run = self.setup
        return tuple(
            Budget(
                usable=self.gpu.usable_bytes,
                fraction=run.memory_fraction,
                weights=weights,
                drafter=self.drafter_bytes if stage.last else 0,
                other=run.other_bytes,
                activations=self.activation_bytes,
                graphs=run.graph_bytes,
                before=run.before,
                inside=run.inside,
                asked=run.kv_memory,
            )
            for stage, weights in zip(self.stages, self.stage_weight_bytes, strict=True)
        )

    @property
    def drafts(self) -> bool:
        """Whether the model's own draft layers are loaded."""
        return bool(self.setup.draft_tokens and self.model.drafter)

    @cached_property
    def drafter_bytes(self) -> int:
        """Weights of draft layers on one rank, which are taken to be dealt out like the model's own [B]."""
        if not self.drafts or self.model.drafter is None:
            return 0
        form = self.precision.weights[Role.EXPERT if self.routes else Role.FFN]
        return form.nbytes(ceil_div(self.model.drafter.parameters, self.tp))

    @cached_property
    def stage_layers(self) -> tuple[list[Layers], ...]:
        """What the layers of each stage cache on one GPU."""
        ranks, kv = self.sharding.head_ranks, self.precision.kv
        found = tuple(layers_of(s, kv, ranks, self.setup, self.source_tokens) for s in self.stages)
        if self.drafts:
            found[-1].extend(drafted(self.model, kv, ranks, self.setup))
        return tuple(like(held) for held in found)

    @cached_property
    def stage_pools(self) -> tuple[tuple[Pool, ...], ...]:
        """Pools of one GPU of each stage."""
        held = zip(self.stage_layers, self.budgets, strict=True)
        return tuple(pools(layers, self.setup, budget.pool) for layers, budget in held)

    @cached_property
    def _pools(self) -> list[Pool]:
        return [pool for found in self.stage_pools for pool in found]

    def max_batch(self, context: Int) -> Int:
        """Most sequences of ``context`` tokens whose caches fit: the smallest over pools of units // units a sequence."""
        best = np.full_like(context, UNBOUNDED)
        for pool in self._pools:
            each = np.maximum(pool.curve.amount(context), 1)
            best = np.minimum(best, self.sharding.batch_ranks * (pool.units // each))
        return int(best) if isinstance(context, int) else best

    def max_context(self, batch: Int) -> Int:
        """Longest context at which ``batch`` sequences fit [tokens]; `UNBOUNDED` where memory sets no limit."""
        local: Int = ceil_div(batch, self.sharding.batch_ranks)
        best = np.full_like(batch, UNBOUNDED)
        for pool in self._pools:
            best = np.minimum(best, pool.curve.longest(pool.units // local))
        return int(best) if isinstance(batch, int) else best

    def concurrency(self, context: int) -> float:
        """Sequences of ``context`` tokens that the pools hold, in fractions of one."""
        each = [pool.units / need for pool in self._pools if (need := pool.curve.amount(context))]
        return self.sharding.batch_ranks * min(each, default=float("inf"))

    def pool_tokens(self, context: int) -> int:
        """Tokens that the pools hold, as the engine counts them; `UNBOUNDED` if none is cached.

        Either runs of tokens for which there is a block in every group, or whole and broken sequences of the longest length.
        """
        longest = self.setup.max_tokens or context
        tokens = UNBOUNDED
        for pool in (pool for pool in self._pools if pool.counted):
            if each := pool.curve.amount(longest):
                in_blocks = self.setup.tokens_are == "blocks" and pool.unit != "byte"
                held = pool.units // pool.groups * pool.block_tokens if in_blocks else pool.units * longest // each
                tokens = min(tokens, self.sharding.batch_ranks * held)
        return tokens

    @cached_property
    def state_slots(self) -> int | None:
        """Sequences that the pools hold the states of, however short they are; ``None`` for a model without states."""
        slots = [
            pool.units // pool.curve.fixed
            for pool in self._pools
            if pool.curve.fixed and any(one.state_bytes for layers in self.stage_layers for one in layers)
        ]
        return self.sharding.batch_ranks * min(slots) if slots else None

    def reserved_bytes(self, context: int) -> int:
        """What the engine sets aside for one sequence over all GPUs that hold it, in its blocks [B]."""
        found = (pool.curve.amount(context) * pool.unit_bytes for pools in self.stage_pools for pool in pools)
        return self.sharding.head_ranks * sum(found)

    def stage_cache_bytes(self, batch: int, context: int) -> tuple[int, ...]:
        """What ``batch`` sequences of ``context`` tokens take on one GPU of each stage, as the engine deals it out [B]."""
        local = ceil_div(batch, self.sharding.batch_ranks)
        return tuple(
            sum(local * pool.curve.amount(context) * pool.unit_bytes for pool in found) for found in self.stage_pools
        )

    def stage_missing_bytes(self, batch: int, context: int) -> tuple[int, ...]:
        """Memory for the cache that a GPU of each stage lacks for the workload, or for what was asked; negative if none."""
        local = ceil_div(batch, self.sharding.batch_ranks)
        found = []
        for budget, held in zip(self.budgets, self.stage_pools, strict=True):
            needs = [pool.need(local * pool.curve.amount(context)) - budget.pool for pool in held]
            if budget.asked is not None:
                needs.append(budget.asked - budget.room)
            found.append(max(needs))
        return tuple(found)

    def fullest_stage(self, batch: int, context: int) -> int:
        """The stage whose GPUs have the least left for ``batch`` sequences of ``context`` tokens."""
        missing = self.stage_missing_bytes(batch, context)
        return max(range(len(missing)), key=lambda stage: missing[stage])

    def missing_bytes(self, batch: int, context: int) -> int:
        """What the fullest GPU lacks for ``batch`` sequences of ``context`` tokens, or for the cache asked for [B]."""
        return max(0, *self.stage_missing_bytes(batch, context))
