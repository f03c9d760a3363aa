"""The verb `roofline`: operators of a step on the roofline of the device, by batch.

A roofline says what a device can do at most for an operator that does so many operations for each byte it moves: bandwidth
times this intensity, and never more than the peak of the format (Williams, Waterman and Patterson 2009, CACM 52(4)).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from planner.axes import parse_axis, thinned
from planner.cached import bounded
from planner.checkpoint.load import load_model
from planner.deployment import Deployment
from planner.errors import InputError
from planner.evaluate import Stages, decode_operators, decode_times, interval_s, prefill_operators, prefill_times
from planner.gpu import GpuSpec
from planner.model import ModelSpec
from planner.result import DeploymentFacts, GpuFacts, ModelFacts, Result
from planner.roofline import BOUNDS, IDEAL, Shares, StepTime, step_time
from planner.settle import MAX_BATCH, deploy, told_tokens
from planner.units import parse_tokens
from planner.verbs.plan import Options, check_context, deployment_facts, plan
from planner.work import Operator

if TYPE_CHECKING:
    from planner.arrays import Numbers

MAX_BATCHES = 4096
LADDER = 8
"""Batches that are taken where none are asked for, at most."""


@dataclass(frozen=True, kw_only=True)
class Roof(Result):
    """The dense peak of a format, and the intensity from which on it rather than bandwidth is the limit [FLOP/s, FLOP/B]."""

    format: str
    peak_flop_per_s: float
    ridge_flop_per_byte: float


@dataclass(frozen=True, kw_only=True)
class OperatorTime(Result):
    """One kind of operator in one step, all layers together, on one GPU of each pipeline stage.

    Attributes
    ----------
    batch
        Sequences decoded together, or prompts.
    format
        Format that its products run in; ``None`` where it has none or the device's rate is unknown.
    flops
        Floating-point operations [FLOP].
    weight_bytes, cache_bytes, activation_bytes, sent_bytes
        Weights read, cache read and written, activations moved between operators, and what is sent to other devices [B].
    launches
        Kernels started.
    arithmetic_intensity
        FLOP for each byte of weights and cache [FLOP/B]; ``None`` where it moves none.
    roof_flop_per_s
        What the device can do at most at this intensity [FLOP/s]; ``None`` without arithmetic.
    achieved_flop_per_s
        FLOP over expected time [FLOP/s]; ``None`` without arithmetic.
    ideal_s, expected_s
        Time at full peaks, and as expected [s].
    share
        Of the operators' expected time, 0 to 1.
    bound
        What takes the largest part of the expected time: weights, cache, compute, link, launch or activations.
    """

    batch: int
    operator: str
    format: str | None
    flops: float
    weight_bytes: float
    cache_bytes: float
    activation_bytes: float
    sent_bytes: float
    launches: float
    arithmetic_intensity: float | None
    roof_flop_per_s: float | None
    achieved_flop_per_s: float | None
    ideal_s: float
    expected_s: float
    share: float
    bound: str


@dataclass(frozen=True, kw_only=True)
class RooflineStep(Result):
    """One step as `plan` has it [s]; ``interval_s`` is ``None`` for a prefill, whose error is unknown."""

    batch: int
    fits: bool
    ideal_step_s: float
    step_s: float
    interval_s: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Roofline(Result):
    """Everything `roofline_of` answers.

    Attributes
    ----------
    phase
        ``decode`` or ``prefill``.
    tokens
        Tokens that each sequence holds, or of the prompt.
    origin
        What expected times rest on.
    bandwidth_bytes_per_s
        Of one GPU [B/s]: the slope of the roof.
    roofs
        Formats that products run in, the slowest first.
    steps, operators
        By batch; ``operators`` also by operator, in the order of the step.
    """

    model: ModelFacts
    gpu: GpuFacts
    deployment: DeploymentFacts
    phase: str
    tokens: int
    origin: str
    bandwidth_bytes_per_s: float
    roofs: tuple[Roof, ...]
    steps: tuple[RooflineStep, ...]
    operators: tuple[OperatorTime, ...]
    notes: tuple[str, ...]


def roofline_of(
    model: str | Path | ModelSpec, gpu: str | Path | GpuSpec, *, batch: int | str | Iterable[int] | None = None,
    context: int | str | None = None, prefill: bool = False, attention: str | None = None, **options: Unpack[Options],
) -> Roofline:  # fmt: skip
    """Place the operators of a step on the roofline of one GPU.

    Layers and tensors of the same kind are one operator, each timed by itself. With pipeline stages the batch is cut into as
    many parts, and an operator is summed over the stages that one part passes through: what it does on one GPU of each.

    Parameters
    ----------
    batch
        Sequences decoded together: one number, several, or text such as ``"1:256:x2"``; by default doublings up to what
        fits. A prefill is of one prompt.
    prefill
        The prefill of a prompt of ``context`` tokens instead of a decode step.
    model, gpu, context, attention, **options
        As in `plan`.

    Raises
    ------
    KvplanError
        If a name is unknown or a number impossible.

    >>> answer = roofline_of("llama3-70b", "4xh100", batch=[1, 16])
    >>> [(r.format, round(r.ridge_flop_per_byte)) for r in answer.roofs]
    [('bf16', 295)]
    >>> [(o.batch, o.arithmetic_intensity) for o in answer.operators if o.operator == "ffn"]
    [(1, 1.0), (16, 16.0)]
    """
    spec = load_model(model)
    if attention is not None:
        spec = spec.with_attention(attention)
    held = check_context(spec, context, told_tokens(**options))
    if prefill and batch is not None:
        raise InputError("a prefill is of one prompt; leave out either --batch or --prefill")
    answer = plan(spec, gpu, context=held, **options)
    wanted = [1] if prefill else _batches(batch, answer.memory.max_batch)
    d = deploy(spec, gpu, context=held, batch=wanted[-1], **options)
    if prefill and answer.prefill.ttft_s is None:
        raise InputError(
            f"no peak compute rate of {d.gpu.id} is known, so prefill has no roofline; leave out --prefill"
        )
    batches = np.array(wanted, dtype=np.int64)
    stages = prefill_operators(d, held) if prefill else decode_operators(d, batches, held)
    ideal, expected = prefill_times(d, held) if prefill else decode_times(d, batches, held)
    return Roofline(
        model=answer.model, gpu=answer.gpu, deployment=deployment_facts(d, held), phase="prefill" if prefill else "decode",
        tokens=answer.prefill.tokens if prefill else held, origin=d.efficiency.origin,
        bandwidth_bytes_per_s=d.gpu.bandwidth_bytes_per_s, roofs=tuple(_roofs(stages, d.gpu)),
        steps=tuple(_steps(d, wanted, held, ideal, expected, prefill)),
        operators=tuple(_operators(d, stages, wanted, d.efficiency.prompt if prefill else d.efficiency.shares)),
        notes=(*_notes(d, wanted, held, prefill), *answer.notes),
    )  # fmt: skip


def _batches(batch: int | str | Iterable[int] | None, most: int | None) -> list[int]:
    """Batches asked for, in order; by default powers of two up to the most that fit, evenly thinned."""
    if batch is None:
        return thinned([2**i for i in range(21) if 2**i <= max(1, MAX_BATCH if most is None else most)], LADDER)
    if isinstance(batch, str):
        found = [parse_tokens(n, "batch", MAX_BATCH) for n in parse_axis(batch, "batch")]
    else:
        several = batch if isinstance(batch, Iterable) else [batch]
        found = sorted({parse_tokens(n, "batch", MAX_BATCH) for n in several})
    if not found:
        raise InputError("no batch is given; name at least one, such as 1 or 1:256:x2")
    if len(found) > MAX_BATCHES:
        raise InputError(f"{len(found):,} batches are more than {MAX_BATCHES:,}; give a larger step, such as 1:512:x2")
    return found


def _roofs(stages: Stages, gpu: GpuSpec) -> Iterator[Roof]:
    """Peaks of the formats that products run in, the slowest first."""
    computing = (op for found, _ in stages for op in found if np.any(np.asarray(op.flops)))
    rates = {rate for op in computing if (rate := gpu.compute_rate(op.compute))}
    for name, peak in sorted(rates, key=lambda rate: rate[1]):
        yield Roof(format=name, peak_flop_per_s=peak, ridge_flop_per_byte=peak / gpu.bandwidth_bytes_per_s)


def _steps(
    d: Deployment, batches: list[int], context: int, ideal: StepTime, expected: StepTime, prefill: bool
) -> Iterator[RooflineStep]:
    shape = (len(batches),)
    steps, ideals = np.broadcast_to(expected.step_s, shape), np.broadcast_to(ideal.step_s, shape)
    low, high = (np.broadcast_to(bound, shape) for bound in interval_s(d, steps, ideals))
    for i, batch in enumerate(batches):
        yield RooflineStep(
            batch=batch, fits=d.missing_bytes(batch, context) == 0, ideal_step_s=float(ideals[i]), step_s=float(steps[i]),
            interval_s=None if prefill else (float(low[i]), float(high[i])),
        )  # fmt: skip


def _operators(d: Deployment, stages: Stages, batches: list[int], shares: Shares) -> Iterator[OperatorTime]:
    """Operators of every batch, those of one name summed over layers and stages."""
    kinds: dict[str, list[tuple[Operator, int]]] = {}
    for found, times in stages:
        for op in found:
            kinds.setdefault(op.name, []).append((op, times))
    kept = {name: columns for name, rows in kinds.items() if (columns := _columns(d, rows, len(batches), shares))}
    whole = np.sum([columns["expected_s"] for columns in kept.values()], axis=0)
    for i, batch in enumerate(batches):
        for name, columns in kept.items():
            yield _operator(batch, name, {key: value[i] for key, value in columns.items()}, float(whole[i]))


_AMOUNTS = ("flops", "weight_bytes", "cache_bytes", "activation_bytes", "sent_bytes", "launches")


def _columns(d: Deployment, rows: list[tuple[Operator, int]], count: int, shares: Shares) -> dict[str, Any]:
    """Work and time of one kind of operator at every batch; each row of it is timed by itself. Empty if it does nothing."""

    def over_batches(values: Iterable[Numbers]) -> Any:
        return np.broadcast_to(np.asarray(sum(values), dtype=float), count)

    found = {name: over_batches(times * getattr(op, name) for op, times in rows) for name in _AMOUNTS}
    if not any(map(np.any, found.values())):
        return {}
    ideal = [(_alone(op, d.gpu, IDEAL), times) for op, times in rows]
    expected = [(_alone(op, d.gpu, shares), times) for op, times in rows]
    rate = next((d.gpu.compute_rate(op.compute) for op, _ in rows if np.any(np.asarray(op.flops))), None)
    moved, bandwidth = found["weight_bytes"] + found["cache_bytes"], d.gpu.bandwidth_bytes_per_s
    with np.errstate(divide="ignore", invalid="ignore"):
        intensity = found["flops"] / moved
    parts = [over_batches(times * time.parts[i] for time, times in expected) for i in range(len(BOUNDS))]
    return {
        **found,
        "ideal_s": over_batches(times * time.step_s for time, times in ideal),
        "expected_s": over_batches(times * time.step_s for time, times in expected),
        "intensity": intensity,
        "roof": np.minimum(intensity * bandwidth, rate[1] if rate else np.inf),
        "format": [rate[0] if rate else None] * count,
        "bound": [BOUNDS[i] for i in np.argmax(parts, axis=0)],
    }


def _alone(op: Operator, gpu: GpuSpec, shares: Shares) -> StepTime:
    return step_time([op], gpu, shares)


def _operator(batch: int, name: str, at: dict[str, Any], whole_s: float) -> OperatorTime:
    """One operator at one batch."""
    flops, expected = float(at["flops"]), float(at["expected_s"])
    moves, computes = at["weight_bytes"] + at["cache_bytes"] > 0, flops > 0
    roof = float(at["roof"]) if computes and moves else None
    return OperatorTime(
        batch=batch, operator=name, format=at["format"] if computes else None,
        **{amount: float(at[amount]) for amount in _AMOUNTS},
        arithmetic_intensity=float(at["intensity"]) if moves else None, roof_flop_per_s=roof,
        achieved_flop_per_s=flops / expected if computes and expected > 0 else None,
        ideal_s=float(at["ideal_s"]), expected_s=expected, share=expected / whole_s if whole_s else 0.0,
        bound=at["bound"],
    )  # fmt: skip


def _notes(d: Deployment, batches: list[int], context: int, prefill: bool) -> Iterator[str]:
    """What a reader should know of the points."""
    most = bounded(d.max_batch(context))
    if most == 0:
        yield "Not even one sequence fits; 'kvplan plan' says what would."
    elif most is not None and batches[-1] > most:
        yield f"Batches above {most:,} do not fit."
    if d.pp > 1:
        cut = (
            ""
            if prefill
            else f" {d.pp} parts of the batch (fewer if there are fewer sequences), which follow one another;"
        )
        yield (
            f"{d.pp} pipeline stages:{cut} an operator is what one part does on one GPU of every stage, and a step also "
            "waits for the slowest stage."
        )
