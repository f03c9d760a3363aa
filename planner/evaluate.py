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
from planner.tensors import Role
from planner.work import Operator, decode_work, prefill_work

if TYPE_CHECKING:
    from planner.arrays import BoolArray, IntArray, Numbers


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
        kv_bytes_per_sequence=deployment.curve.amount(context),
        max_batch=max_batch,
        max_context=deployment.max_context(batch),
        fits=batch <= max_batch,
        ideal=ideal,
        expected=expected,
    )


def decode_times(deployment: Deployment, batch: int | IntArray, context: int | IntArray) -> tuple[StepTime, StepTime]:
    """Time until each of ``batch`` sequences has one more token, ideal and expected [s].

    With several pipeline stages the batch is cut into as many equal parts, which follow one another through the stages.
    """
    stages = decode_operators(deployment, batch, context)
    parts = np.minimum(batch, deployment.pp)
    ideal = stage_times(deployment, stages, IDEAL, parts)
    return ideal, stage_times(deployment, stages, deployment.efficiency.shares, parts)


def prefill_times(deployment: Deployment, tokens: int, sequences: int = 1) -> tuple[StepTime, StepTime]:
    """Time to prefill prompts of so many tokens together on idle devices, ideal and expected [s].

    With several pipeline stages the prompts are cut into as many equal parts, which follow one another through the stages.
    """
    parts = min(sequences, deployment.pp)
    stages = prefill_operators(deployment, tokens, sequences / parts)
    ideal = stage_times(deployment, stages, IDEAL, parts, steady=False)
    return ideal, stage_times(deployment, stages, deployment.efficiency.prompt, parts, steady=False)


def expected_step_s(deployment: Deployment, batch: int, context: int) -> float:
    """Expected decode step of one workload [s]."""
    return float(decode_times(deployment, batch, context)[1].step_s)


def interval_s(deployment: Deployment, step_s: Numbers, ideal_s: Numbers) -> tuple[Numbers, Numbers]:
    """Where 80 % of measured decode steps are meant to lie: factors on the expected time, but never under the ideal [s]."""
    low, high = deployment.efficiency.interval
    return np.maximum(step_s * low, ideal_s), step_s * high


BLOCK_SCALED = "fp8-block128"
"""Weights whose activations are quantised on the fly, block by block; so are 8-bit experts, as released."""

Stages = list[tuple[list[Operator], int]]
"""Operators of each stage, like stages once with their number."""


def stage_times(
    deployment: Deployment, stages: Stages, shares: Shares, parts: Numbers = 1, steady: bool = True
) -> StepTime:
    """Time of work that passes through the stages in so many parts; see `roofline.add_stages`."""
    return add_stages([(step_time(operators, deployment.gpu, shares), n) for operators, n in stages], parts, steady)


def decode_operators(d: Deployment, batch: Numbers | IntArray, context: Numbers | IntArray) -> Stages:
    """Work of one decode step of one part of the batch, stage by stage; like stages once, with their number."""
    part = np.asarray(batch / np.minimum(batch, d.pp), dtype=float)
    held = np.asarray(context, dtype=float)
    return [
        (decode_work(d.model, stage, d.precision, d.sharding, part, held, d.source_tokens) + _further(d, stage), times)
        for stage, times in _distinct(d.stages)
    ]


def prefill_operators(d: Deployment, tokens: int, together: Numbers = 1, before: int = 0) -> Stages:
    """Work of prefilling so many prompts together, stage by stage; like stages once, with their number.

    The prompt of an encoder-decoder is its source; the decoder starts from one token. Of other prompts ``before`` tokens may
    be in the cache already, and ``tokens`` more are added.
    """
    prompt = 1.0 if d.model.encoder else float(tokens)
    return [
        (
            prefill_work(d.model, stage, d.precision, d.sharding, prompt, d.source_tokens, together, float(before))
            + _further(d, stage),
            times,
        )
        for stage, times in _distinct(d.stages)
    ]


def _further(d: Deployment, stage: Stage) -> list[Operator]:
    """Kernels that the engine starts beyond those of the model's operators."""
    forms, layers = d.precision.weights, sum(count for _, count in stage.groups)
    form = forms[Role.EXPERT if d.routes else Role.FFN]
    blocks = form.id == BLOCK_SCALED or (d.routes and form.compute[0] == "fp8")
    further = layers * (d.setup.block_kernels * blocks + d.setup.expert_kernels * d.routes)
    return [Operator("engine", launches=further)] if further else []


def _distinct(stages: tuple[Stage, ...]) -> list[tuple[Stage, int]]:
    counts: dict[object, tuple[Stage, int]] = {}
    for stage in stages:
        alike = (tuple((id(group), n) for group, n in stage.groups), stage.first, stage.last)
        counts[alike] = (stage, counts.get(alike, (stage, 0))[1] + 1)
    return list(counts.values())


OCTAVES = tuple(2**i for i in range(17))
"""Batches that a search for a crossover starts from."""


def crossover(deployment: Deployment, context: int, grid: IntArray, expected: StepTime) -> tuple[int, str] | None:
    """Smallest batch at which weights, once they are the bound of the expected step, no longer are, and what then is.

    ``None`` if they are never the bound, or are it up to the end of the grid. Finer grids narrow the place down, each one
    evaluation; small batches of models with experts may be bound by launches before they are by weights.

    Parameters
    ----------
    grid, expected
        Rising batches, `OCTAVES` among them, and their expected steps.
    """
    while True:
        bound = np.broadcast_to(expected.bound, grid.shape)
        weights = np.flatnonzero(bound == 0)
        after = np.flatnonzero(bound[weights[0] :]) + weights[0] if weights.size else weights
        if not after.size:
            return None
        low, high = int(grid[after[0] - 1]), int(grid[after[0]])
        if high - low == 1:
            return high, BOUNDS[int(bound[after[0]])]
        grid = np.append(np.arange(low, high, max(1, (high - low) // 512)), high)
        stages = decode_operators(deployment, grid, context)
        expected = stage_times(deployment, stages, deployment.efficiency.shares, np.minimum(grid, deployment.pp))
