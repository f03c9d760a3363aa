"""The verb `plan`: one model on one replica of GPUs, with everything that follows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from planner.attention import UNBOUNDED, LatentAttention, bounded
from planner.catalog import load_model, normalise
from planner.deployment import MAX_BATCH, Deployment, deploy, parse_gpu
from planner.errors import InputError
from planner.evaluate import crossover, decode_times, prefill_times
from planner.gpu import GpuSpec
from planner.memory import weight_bytes
from planner.model import ModelSpec
from planner.remedies import remedies
from planner.result import (
    Crossover,
    DecodePlan,
    DeploymentFacts,
    FrontierPoint,
    GpuFacts,
    MemoryPlan,
    ModelFacts,
    Plan,
    PrefillPlan,
    Workload,
)
from planner.roofline import BOUNDS
from planner.tensors import Role, ceil_div
from planner.units import format_tokens, parse_tokens

DEFAULT_CONTEXT = 8192


class Options(TypedDict, total=False):
    """Options that `plan` hands to `deployment.deploy`; see there."""

    tp: int | None
    pp: int | None
    weights: str | None
    kv: str | None
    engine: str
    memory_fraction: float | str | None
    kv_memory: int | str | None
    source: int | None
    kv_shard: str
    pad_heads: bool


def plan(
    model: str | Path | ModelSpec, gpu: str | GpuSpec, *, batch: int | str = 1, context: int | str | None = None,
    attention: str | None = None, **options: Unpack[Options],
) -> Plan:  # fmt: skip
    """Plan a model on GPUs: memory, the largest batch and context that fit, and the decode step.

    Parameters
    ----------
    model
        Id, alias, Hugging Face id, path of a card, or a spec.
    gpu
        Id or alias, with a count for a replica of several: ``"4xh100"``.
    batch
        Sequences decoded together.
    context
        Tokens that each sequence holds, such as ``8192`` or ``"8k"``; by default 8,192 or the model's limit.
    attention
        What if: ``mha``, ``gqa[:N]``, ``mqa`` or ``mla[:RANK]`` instead of the model's own attention.
    **options
        ``tp``, ``pp``, ``weights``, ``kv``, ``engine``, ``memory_fraction``, ``kv_memory``, ``source``, ``kv_shard`` and
        ``pad_heads``; see `planner.deployment.deploy`.

    Returns
    -------
    Plan
        Frozen; ``to_json()`` serialises it. A workload that does not fit is an answer with ``memory.fits`` false,
        ``memory.missing_bytes_per_gpu`` and ``remedies``.

    Raises
    ------
    KvplanError
        If a name is unknown or a number impossible; the message says what to do.

    >>> p = plan("llama3-70b", "4xh100", context=8192, batch=16)
    >>> p.memory.kv_bytes_per_token, p.memory.kv_bytes_per_sequence, round(p.decode.ideal_step_s * 1e3, 2)
    (327680, 2684354560, 13.58)
    """
    spec = load_model(model)
    if attention is not None:
        spec = spec.with_attention(attention)
    tokens = check_context(spec, context)
    sequences = check_batch(batch)
    deployment = deploy(spec, gpu, context=tokens, **options)
    decodes = _decode_table(deployment, sequences, tokens)
    memory = _memory(deployment, sequences, tokens)
    crossing = crossover(deployment, tokens)
    return Plan(
        model=_model_facts(spec),
        gpu=_gpu_facts(deployment),
        deployment=deployment_facts(deployment),
        workload=Workload(batch=sequences, context=tokens, source=deployment.source_tokens),
        memory=memory,
        decode=next(d for d in decodes if d.batch == sequences),
        decode_by_batch=decodes,
        crossover=Crossover(batch=crossing[0], bound=crossing[1]) if crossing else None,
        prefill=_prefill(deployment, tokens),
        frontier=tuple(_frontier(deployment, tokens)),
        remedies=() if memory.fits else tuple(remedies(deployment, sequences, tokens)),
        notes=tuple(_notes(deployment, gpu)),
    )


def check_context(model: ModelSpec, context: int | str | None) -> int:
    """Read a context and hold it against the model's limit."""
    if context is None:
        return min(DEFAULT_CONTEXT, model.context_limit)
    tokens = parse_tokens(context, "context")
    if tokens > model.context_limit:
        raise InputError(
            f"context {tokens:,} is above the limit of {model.id}, {model.context_limit:,} tokens; "
            f"use --context {format_tokens(model.context_limit).replace(',', '')} or less"
        )
    return tokens


def check_batch(batch: int | str) -> int:
    """Read a batch."""
    return parse_tokens(batch, "batch", MAX_BATCH)


def _model_facts(model: ModelSpec) -> ModelFacts:
    return ModelFacts(
        id=model.id, name=model.name, parameters=model.total_parameters, active_parameters=model.active_parameters,
        layers=model.layers, context_limit=model.context_limit, variants=model.variants,
        source=tuple(map(str, model.source)),
    )  # fmt: skip


def _gpu_facts(deployment: Deployment) -> GpuFacts:
    gpu = deployment.gpu
    rate = gpu.compute_rate(deployment.precision.weights[Role.FFN])
    return GpuFacts(
        id=gpu.id, name=gpu.name, count=deployment.count, usable_bytes=gpu.usable_bytes,
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s, peak_flop_per_s=rate[1] if rate else None,
        peak_format=rate[0] if rate else None, link_bytes_per_s=gpu.link_bytes_per_s,
        source=tuple(map(str, gpu.source)),
    )  # fmt: skip


def deployment_facts(deployment: Deployment) -> DeploymentFacts:
    """How the model is deployed, as shown."""
    return DeploymentFacts(
        tensor_parallel=deployment.tp, pipeline_parallel=deployment.pp, weights=deployment.weights_label,
        kv=deployment.precision.kv.id, engine=deployment.engine.id, engine_version=deployment.engine.version,
        memory_fraction=deployment.memory_fraction, kv_shard="batch" if deployment.sharding.over_batch else "heads",
    )  # fmt: skip


def _memory(d: Deployment, batch: int, context: int) -> MemoryPlan:
    local = ceil_div(batch, d.sharding.batch_ranks)
    used = [local * c.nbytes(d.reserved_tokens(context)) for c in d.stage_curves]
    tightest = min(range(len(used)), key=lambda s: d.stage_pool_bytes[s] - used[s])
    max_batch = d.max_batch(context)
    missing = d.missing_bytes(batch, context)
    return MemoryPlan(
        weight_bytes=weight_bytes(d.model.all_tensors(), d.precision.weights),
        weight_bytes_per_gpu=d.stage_weight_bytes[tightest],
        kv_bytes_per_token=d.curve.growing,
        kv_bytes_per_token_saturated=d.curve.saturated,
        kv_bytes_per_sequence=d.curve.nbytes(context),
        state_bytes_per_sequence=d.curve.fixed,
        kv_bytes_per_gpu=used[tightest],
        kv_pool_bytes_per_gpu=max(d.stage_pool_bytes[tightest], 0),
        kv_pool_tokens=_pool_tokens(d, context),
        budget_bytes_per_gpu=d.budget_bytes,
        activation_bytes_per_gpu=d.activation_bytes,
        overhead_bytes_per_gpu=d.overhead_bytes,
        missing_bytes_per_gpu=missing,
        fits=missing == 0,
        max_batch=bounded(max_batch),
        max_context=bounded(d.max_context(batch)),
    )


def _pool_tokens(d: Deployment, context: int) -> int | None:
    """Tokens that the pools hold in sequences of this context, in whole blocks."""
    tokens = UNBOUNDED
    for pool, curve in zip(d.stage_pool_bytes, d.stage_curves, strict=True):
        each = curve.nbytes(context)
        if each:
            tokens = min(tokens, d.sharding.batch_ranks * (max(pool, 0) * context // each))
    return bounded(tokens) and tokens // d.engine.block_tokens * d.engine.block_tokens


def _decode_table(d: Deployment, batch: int, context: int) -> tuple[DecodePlan, ...]:
    """Decode steps of the planned batch, of powers of two up to the largest batch that fits, and of that one."""
    largest = min(d.max_batch(context), MAX_BATCH)
    ladder = [2**i for i in range(21) if 2**i < largest]
    if len(ladder) > 8:  # eight rungs, evenly spread
        ladder = [ladder[round(i * (len(ladder) - 1) / 7)] for i in range(8)]
    batches = np.array(sorted({batch, *ladder, *([largest] if largest else [])}), dtype=np.int64)
    ideal, expected = decode_times(d, batches, context)
    low, high = d.efficiency.interval
    shape = batches.shape
    steps, ideals = np.broadcast_to(expected.step_s, shape), np.broadcast_to(ideal.step_s, shape)
    intensity = np.broadcast_to(expected.arithmetic_intensity, shape)
    parts = [np.broadcast_to(p, shape) for p in expected.parts]
    bound = np.broadcast_to(expected.bound, shape)
    rows = []
    for i, b in enumerate(batches.tolist()):
        step = float(steps[i])
        rows.append(
            DecodePlan(
                batch=b,
                context=context,
                fits=b <= largest,
                step_s=step,
                ideal_step_s=float(ideals[i]),
                interval_s=(step * low, step * high),
                origin=d.efficiency.origin,
                bound=BOUNDS[int(bound[i])],
                parts_s={name: float(part[i]) for name, part in zip(BOUNDS, parts, strict=True)},
                tokens_per_s=b / step,
                tokens_per_s_per_sequence=1 / step,
                arithmetic_intensity=float(intensity[i]),
            )
        )
    return tuple(rows)


def _prefill(d: Deployment, tokens: int) -> PrefillPlan:
    if d.gpu.compute_rate(d.precision.weights[Role.FFN]) is None:
        return PrefillPlan(ttft_s=None, ideal_s=None)
    ideal, expected = prefill_times(d, tokens)
    return PrefillPlan(ttft_s=float(expected.step_s), ideal_s=float(ideal.step_s))


def _frontier(d: Deployment, context: int) -> Iterator[FrontierPoint]:
    """Largest batch at doublings of the context up to the model's limit, the limit itself and the planned context."""
    limit = d.model.context_limit
    doublings = [c for c in (2**i for i in range(7, 31)) if c < limit][-8:]
    contexts = np.array(sorted({*doublings, limit, context}), dtype=np.int64)
    for tokens, most in zip(contexts.tolist(), d.max_batch(contexts).tolist(), strict=True):
        yield FrontierPoint(context=tokens, max_batch=bounded(most))


def _notes(d: Deployment, asked: str | GpuSpec) -> Iterator[str]:
    """What a reader should know beside the numbers."""
    gpu, model, eff = d.gpu, d.model, d.efficiency
    if isinstance(asked, str) and normalise(parse_gpu(asked)[1]) != normalise(gpu.id):
        yield f"{parse_gpu(asked)[1]} is {gpu.name} ({gpu.id})."
    yield from d.notes
    if gpu.memory.usable_gib is None:
        yield f"No driver report of {gpu.id}'s usable memory is known; the marketed {gpu.memory.nominal_gb:g} GB is used."
    rate = gpu.compute_rate(d.precision.weights[Role.FFN])
    if rate is not None and rate[0] == "fp32" and d.precision.weights[Role.FFN].id != "fp32":
        yield f"Only an fp32 peak of {gpu.id} is known; compute and prefill times use it and may be too long."
    if rate is None:
        yield f"No peak compute rate of {gpu.id} is known: decode time counts memory only, and there is no prefill time."
    if d.count > 1 and gpu.link_bytes_per_s is None:
        yield f"No link bandwidth of {gpu.id} is known: decode time leaves communication out."
    rows = [row for group in model.groups for row in group.attention]
    fewest = min((getattr(row, "kv_heads", d.tp) for row in rows), default=d.tp)
    if d.sharding.head_ranks > fewest:
        yield f"{fewest} KV head(s) on {d.tp} ranks: each is kept {ceil_div(d.tp, fewest)} times."
    if d.sharding.head_ranks > 1 and any(isinstance(row, LatentAttention) for row in rows):
        yield f"MLA's latent cannot be split by heads: each of the {d.tp} ranks keeps all of it."
    if d.tp > 1 and any((k := getattr(row, "kv_heads", 0)) % d.tp and d.tp % max(k, 1) for row in rows):
        yield f"KV heads do not divide evenly over {d.tp} ranks; engines may refuse this degree."
    low, high = eff.interval
    yield (
        f"Expected times are {eff.origin}, for {eff.name} devices: {eff.memory:.0%} of bandwidth and {eff.compute:.0%} of "
        f"peak; 80 % of measurements lie within {low:.2f} to {high:.2f} times."
    )
    if model.note:
        yield model.note
