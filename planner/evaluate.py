"""The one engine: memory, fit and decode time of a deployment over arrays of batch and context.

`plan` is this with one row and `sweep` with a million; specs are scalars and workload axes broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.deployment import Deployment
from planner.roofline import BOUNDS, IDEAL, Shares, StepTime, add_stages, step_time
from planner.stage import Stage
from planner.work import Operator, decode_work, prefill_work

if TYPE_CHECKING:
    from planner.arrays import BoolArray, IntArray


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Answers for a grid of batches and contexts; every array has, or broadcasts to, the shape of the grid.

    Attributes
    ----------
    kv_bytes_per_sequence
        Cache of one sequence over the whole model [B].
    max_batch, max_context
        Largest batch at each context [sequences] and longest context at each batch [tokens].
    fits
        Whether batch sequences of context tokens fit.
    ideal, expected
        Decode step at full peaks and at achieved shares of them.
    """

    kv_bytes_per_sequence: IntArray
    max_batch: IntArray
    max_context: IntArray
    fits: BoolArray
    ideal: StepTime
    expected: StepTime


def evaluate(deployment: Deployment, batch: IntArray, context: IntArray) -> Evaluation:
    """Evaluate a deployment.

    Parameters
    ----------
    batch, context
        Integer arrays that broadcast against each other [sequences, tokens].
    """
    max_batch = deployment.max_batch(context)
    ideal, expected = decode_times(deployment, batch, context)
    return Evaluation(
        kv_bytes_per_sequence=deployment.curve.nbytes(context),
        max_batch=max_batch,
        max_context=deployment.max_context(batch),
        fits=batch <= max_batch,
        ideal=ideal,
        expected=expected,
    )


def decode_times(deployment: Deployment, batch: int | IntArray, context: int | IntArray) -> tuple[StepTime, StepTime]:
    """Time until each of ``batch`` sequences has one more token, ideal and expected [s].

    With several pipeline stages the batch is cut into as many parts, each of which passes through all stages while the
    others keep them busy, so a step is the sum of the stages at one part each.
    """
    return _ideal_and_expected(deployment, decode_operators(deployment, batch, context))


def prefill_times(deployment: Deployment, tokens: int) -> tuple[StepTime, StepTime]:
    """Time to prefill one prompt of ``tokens`` tokens on idle devices, ideal and expected [s]."""
    return _ideal_and_expected(deployment, prefill_operators(deployment, tokens))


def expected_step_s(deployment: Deployment, batch: int, context: int) -> float:
    """Expected decode step of one workload [s]."""
    return float(
        _over_stages(deployment, decode_operators(deployment, batch, context), deployment.efficiency.shares).step_s
    )


Stages = list[tuple[list[Operator], int]]
"""Operators of each stage, like stages once with their number."""


def _ideal_and_expected(deployment: Deployment, stages: Stages) -> tuple[StepTime, StepTime]:
    return _over_stages(deployment, stages, IDEAL), _over_stages(deployment, stages, deployment.efficiency.shares)


def _over_stages(deployment: Deployment, stages: Stages, shares: Shares) -> StepTime:
    return add_stages([(step_time(operators, deployment.gpu, shares), times) for operators, times in stages])


def decode_operators(d: Deployment, batch: int | IntArray, context: int | IntArray) -> Stages:
    """Work of one decode step, stage by stage; like stages once, with their number."""
    part = np.asarray(-(-batch // d.pp), dtype=float)
    held = np.asarray(context, dtype=float)
    return [
        (decode_work(d.model, stage, d.precision, d.sharding, part, held, d.source_tokens), times)
        for stage, times in _distinct(d.stages)
    ]


def prefill_operators(d: Deployment, tokens: int) -> Stages:
    """Work of prefilling one prompt, stage by stage; like stages once, with their number."""
    return [
        (prefill_work(d.model, stage, d.precision, d.tp, float(tokens), d.source_tokens), times)
        for stage, times in _distinct(d.stages)
    ]


def _distinct(stages: tuple[Stage, ...]) -> list[tuple[Stage, int]]:
    counts: dict[object, tuple[Stage, int]] = {}
    for stage in stages:
        alike = (tuple((id(group), n) for group, n in stage.groups), stage.first, stage.last)
        counts[alike] = (stage, counts.get(alike, (stage, 0))[1] + 1)
    return list(counts.values())


def crossover(deployment: Deployment, context: int, limit: int = 2**16) -> tuple[int, str] | None:
    """Smallest batch at which weights stop being the bound of the expected step, and what is the bound there.

    ``None`` if they are the bound up to ``limit``. The interval is narrowed with grids of batches, each one evaluation.
    """
    low, high, name = 0, limit, None
    while high - low > 1:
        grid = np.arange(low + 1, high + 1, max(1, (high - low) // 64)) if low else _OCTAVES
        expected = _over_stages(deployment, decode_operators(deployment, grid, context), deployment.efficiency.shares)
        bound = np.broadcast_to(expected.bound, grid.shape)
        other = np.flatnonzero(bound)
        if not other.size:
            break
        first = int(other[0])
        low, high, name = (int(grid[first - 1]) if first else low), int(grid[first]), BOUNDS[int(bound[first])]
    return (high, name) if name else None


_OCTAVES = 2 ** np.arange(17)
