"""The verb `plan`: one model on one replica of GPUs, with everything that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from planner.attention import CompressedAttention, HeadAttention, LatentAttention
from planner.budget import LINES
from planner.cached import bounded
from planner.catalog import normalise
from planner.checkpoint.load import load_model
from planner.deployment import Deployment
from planner.emit import caveats, launch_command
from planner.errors import InputError
from planner.evaluate import OCTAVES, crossover, decode_times, interval_s
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
    GpuMemory,
    MemoryPlan,
    ModelFacts,
    Plan,
    PoolFacts,
    PrefillPlan,
    ServingPlan,
    StepParts,
    Workload,
)
from planner.roofline import BOUNDS
from planner.serving import first_token
from planner.settle import MAX_BATCH, deploy, parse_gpu, told_tokens
from planner.tensors import Role
from planner.units import format_count, format_gib, format_tokens, parse_tokens
from planner.verbs.traffic import Ask, plan_requests, read_ask, set_up_for

DEFAULT_CONTEXT = 8192


class Options(TypedDict, total=False):
    """Options that `plan` hands to `settle.deploy`; see there."""

    count: int | None
    tp: int | None
    pp: int | None
    weights: str | None
    kv: str | None
    dp: int | None
    ep: bool
    engine: str
    memory_fraction: float | str | None
    kv_memory: int | str | None
    settings: Mapping[str, Any] | None
    source: int | None
    kv_shard: str
    pad_heads: bool


def plan(
    model: str | Path | ModelSpec, gpu: str | Path | GpuSpec, *, batch: int | str | None = None,
    context: int | str | None = None, attention: str | None = None, input: int | str | None = None,
    output: int | str | None = None, concurrency: int | str | None = None, rate: float | str | None = None,
    prefix_hits: float | str | None = None, acceptance: float | str | None = None, rounds: float | str | None = None,
    apart: str | None = None, **options: Unpack[Options],
) -> Plan:  # fmt: skip
    """Plan a model on GPUs: memory, the largest batch and context that fit, the decode step, and what requests would see.

    Parameters
    ----------
    model
        Id, alias, Hugging Face id, path of a card, or a spec.
    gpu
        Id or alias, with a count for a replica of several: ``"4xh100"``.
    batch
        Sequences decoded together; by default one, or the requests that run at once.
    context
        Tokens that each sequence holds, such as ``8192`` or ``"8k"``; by default 8,192 or the model's limit, or the tokens
        of a prompt and its answer.
    input, output, concurrency, rate, prefix_hits, acceptance, rounds, apart
        What requests ask for; see `planner.verbs.traffic.read_ask`. Any of them gives the plan its ``serving``.
    attention
        What if: ``mha``, ``gqa[:N]``, ``mqa`` or ``mla[:RANK]`` instead of the model's own attention.
    **options
        ``count``, ``tp``, ``pp``, ``dp``, ``ep``, ``weights``, ``kv``, ``engine``, ``memory_fraction``, ``kv_memory``,
        ``settings``, ``source``, ``kv_shard`` and ``pad_heads``; see `planner.settle.deploy`.

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
    ask = read_ask(
        None if context is None else check_context(spec, context), input=input, output=output, concurrency=concurrency,
        rate=rate, prefix_hits=prefix_hits, acceptance=acceptance, rounds=rounds, apart=apart, encoder=bool(spec.encoder),
        limit=spec.context_limit,
    )  # fmt: skip
    tokens = check_context(spec, ask.tokens if ask and context is None else context, told_tokens(**options))
    sequences = 1 if batch is None else check_batch(batch)
    deployment = deploy(spec, gpu, context=tokens, batch=sequences, **options)
    serving = None
    if ask:
        deployment = set_up_for(deployment, ask)
        serving = plan_requests(deployment, ask)
        sequences = sequences if batch is not None else _held_whole(deployment, serving, tokens)
    decodes, crossing = _decode(deployment, sequences, tokens)
    memory = _memory(deployment, sequences, tokens)
    return Plan(
        model=_model_facts(spec),
        gpu=_gpu_facts(deployment),
        deployment=deployment_facts(deployment, tokens),
        workload=Workload(batch=sequences, context=tokens, source=deployment.source_tokens),
        memory=memory,
        decode=next(d for d in decodes if d.batch == sequences),
        decode_by_batch=decodes,
        crossover=crossing,
        prefill=_prefill(deployment, ask.load.input_tokens if ask else tokens),
        serving=serving,
        frontier=tuple(_frontier(deployment, tokens)),
        launch=_launch(deployment, model, sequences, tokens),
        launch_caveats=tuple(_caveats(deployment, ask)),
        remedies=() if memory.fits else tuple(remedies(deployment, sequences, tokens)),
        notes=tuple(_notes(deployment, model, gpu, ask)),
    )


def _held_whole(d: Deployment, serving: ServingPlan, context: int) -> int:
    """Of the requests that run on one replica those that fit with their whole answers, at least one."""
    replicas = serving.workers[1] if serving.workers else 1
    running = -(-serving.running // replicas)
    return max(1, min(running, d.max_batch(context)))


def check_context(model: ModelSpec, context: int | str | None, told: int | None = None) -> int:
    """Read a context and hold it against the model's limit; without one, what the engine is ``told`` counts too."""
    if context is None:
        return min(DEFAULT_CONTEXT, model.context_limit, told or model.context_limit)
    tokens = parse_tokens(context, "context")
    if tokens > model.context_limit:
        raise InputError(
            f"context {tokens:,} is above the limit of {model.id}, {model.context_limit:,} tokens; "
            f"use --context {format_tokens(model.context_limit).replace(',', '')} or less, or shorter requests"
        )
    return tokens


def check_batch(batch: int | str) -> int:
    """Read a batch."""
    return parse_tokens(batch, "batch", MAX_BATCH)


def _model_facts(model: ModelSpec) -> ModelFacts:
    return ModelFacts(
        id=model.id, name=model.name, parameters=model.total_parameters, active_parameters=model.active_parameters,
        draft_parameters=model.drafter.parameters if model.drafter else 0, layers=model.layers,
        context_limit=model.context_limit, variants=model.variants, source=tuple(map(str, model.source)),
    )  # fmt: skip


def _gpu_facts(deployment: Deployment) -> GpuFacts:
    gpu = deployment.gpu
    rate = gpu.compute_rate(deployment.precision.weights[Role.FFN].compute)
    return GpuFacts(
        id=gpu.id, name=gpu.name, count=deployment.count, usable_bytes=gpu.usable_bytes,
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s, peak_flop_per_s=rate[1] if rate else None,
        peak_format=rate[0] if rate else None, link_bytes_per_s=gpu.link_bytes_per_s,
        source=tuple(map(str, gpu.source)),
    )  # fmt: skip


def deployment_facts(d: Deployment, context: int) -> DeploymentFacts:
    """How the model is deployed, as shown."""
    return DeploymentFacts(
        tensor_parallel=d.tp, pipeline_parallel=d.pp, data_parallel=d.sharding.dp,
        expert_parallel=d.sharding.whole_experts, weights=d.weights_label, kv=d.precision.kv.id, engine=d.engine.id,
        engine_version=d.engine.version, engine_label=d.engine.label,
        memory_fraction=d.setup.memory_fraction, kv_memory=d.setup.kv_memory,
        kv_shard="batch" if d.sharding.over_batch else "heads", max_tokens=d.setup.max_tokens or context,
        step_tokens=d.setup.step_tokens, sequences=d.setup.sequences, block_tokens=d.setup.block_tokens,
        graphs=d.setup.graphs,
    )  # fmt: skip


def _memory(d: Deployment, batch: int, context: int) -> MemoryPlan:
    used, stage = d.stage_cache_bytes(batch, context), d.fullest_stage(batch, context)
    missing = d.missing_bytes(batch, context)
    return MemoryPlan(
        weight_bytes=weight_bytes(d.model.all_tensors(), d.precision.weights),
        weight_bytes_per_gpu=max(d.stage_weight_bytes),
        kv_bytes_per_token=d.curve.growing,
        kv_bytes_per_token_saturated=d.curve.saturated,
        kv_bytes_per_sequence=d.curve.amount(context),
        kv_reserved_bytes_per_sequence=d.reserved_bytes(context),
        state_bytes_per_sequence=d.curve.fixed,
        kv_bytes_per_gpu=max(used),
        kv_pool_bytes_per_gpu=max(0, min(b.pool for b in d.budgets)),
        kv_pool_tokens=bounded(d.pool_tokens(context)),
        max_concurrency=None if d.concurrency(context) == float("inf") else d.concurrency(context),
        state_slots=d.state_slots,
        budget_bytes_per_gpu=d.budgets[stage].limit,
        activation_bytes_per_gpu=d.activation_bytes,
        other_bytes_per_gpu=d.setup.other_bytes,
        graph_bytes_per_gpu=d.setup.graph_bytes,
        missing_bytes_per_gpu=missing,
        fullest_gpu=_gpu_memory(d, stage, used[stage]),
        fits=missing == 0,
        max_batch=bounded(d.max_batch(context)),
        max_context=bounded(d.max_context(batch)),
    )


def _gpu_memory(d: Deployment, stage: int, used: int) -> GpuMemory:
    budget = d.budgets[stage]
    pools = tuple(
        PoolFacts(
            name=pool.name, unit=pool.unit, unit_bytes=pool.unit_bytes, units=bounded(pool.units),
            block_tokens=pool.block_tokens, groups=pool.groups, padded_layers=pool.padded_layers,
        )
        for pool in d.stage_pools[stage]
    )  # fmt: skip
    return GpuMemory(
        stage=stage, usable_bytes=budget.usable, held_back_bytes=budget.left,
        weight_bytes=budget.weights, added_bytes=d.stage_added_bytes[stage], drafter_bytes=budget.drafter,
        other_bytes=budget.other,
        activation_bytes=budget.activations, graph_bytes=budget.graphs, kv_bytes=used,
        kv_pool_bytes=max(0, budget.pool), outside=tuple(n for n in LINES if n not in budget.before + budget.inside),
        pools=pools,
    )  # fmt: skip


def _decode(d: Deployment, batch: int, context: int) -> tuple[tuple[DecodePlan, ...], Crossover | None]:
    """Decode steps of the planned batch, of powers of two up to the largest batch that fits and of that one; and the batch
    at which weights stop being the bound. Both come from one evaluation of all these batches.
    """
    largest = min(d.max_batch(context), MAX_BATCH)
    ladder = [2**i for i in range(21) if 2**i < largest]
    if len(ladder) > 8:  # eight rungs, evenly spread
        ladder = [ladder[round(i * (len(ladder) - 1) / 7)] for i in range(8)]
    shown = {batch, *ladder, *([largest] if largest else [])}
    batches = np.array(sorted(shown | set(OCTAVES)), dtype=np.int64)
    ideal, expected = decode_times(d, batches, context)
    crossing = crossover(d, context, batches, expected)
    shape = batches.shape
    steps, ideals = np.broadcast_to(expected.step_s, shape), np.broadcast_to(ideal.step_s, shape)
    low, high = (np.asarray(bound) for bound in interval_s(d, steps, ideals))
    intensity = np.broadcast_to(expected.arithmetic_intensity, shape)
    parts = [np.broadcast_to(p, shape) for p in expected.parts]
    bound = np.broadcast_to(expected.bound, shape)
    rows = []
    for i, b in enumerate(batches.tolist()):
        if b not in shown:
            continue
        step = float(steps[i])
        rows.append(
            DecodePlan(
                batch=b,
                context=context,
                fits=b <= largest,
                step_s=step,
                ideal_step_s=float(ideals[i]),
                interval_s=(float(low[i]), float(high[i])),
                origin=d.efficiency.origin,
                bound=BOUNDS[int(bound[i])],
                parts_s=StepParts(**{name: float(part[i]) for name, part in zip(BOUNDS, parts, strict=True)}),
                tokens_per_s=b / step,
                tokens_per_s_per_sequence=1 / step,
                arithmetic_intensity=float(intensity[i]),
            )
        )
    return tuple(rows), Crossover(batch=crossing[0], bound=crossing[1]) if crossing else None


def _prefill(d: Deployment, context: int) -> PrefillPlan:
    tokens = d.source_tokens if d.model.encoder else context
    known = d.gpu.compute_rate(d.precision.weights[Role.FFN].compute) is not None
    found = first_token(d, context)
    low, high = d.efficiency.first_interval
    return PrefillPlan(
        tokens=tokens,
        prompt_s=found.prompt_s if known else None,
        ttft_s=found.ttft_s if known else None,
        interval_s=(max(found.ttft_s * low, found.ideal_s), found.ttft_s * high) if known else None,
        ideal_s=found.ideal_s if known else None,
        origin=d.efficiency.origin,
    )


def _frontier(d: Deployment, context: int) -> Iterator[FrontierPoint]:
    """Largest batch at doublings of the context up to the model's limit, the limit itself and the planned context."""
    limit = d.model.context_limit
    doublings = [c for c in (2**i for i in range(7, 31)) if c < limit][-8:]
    contexts = np.array(sorted({*doublings, limit, context}), dtype=np.int64)
    for tokens, most in zip(contexts.tolist(), d.max_batch(contexts).tolist(), strict=True):
        yield FrontierPoint(context=tokens, max_batch=bounded(most))


def _launch(d: Deployment, asked: object, batch: int, context: int) -> str | None:
    """The engine's launch command, for the model as it was asked for."""
    if not d.engine.launch:
        return None
    loaded = str(asked) if isinstance(asked, (str, Path)) else ""
    if not loaded or loaded.endswith(".toml") or not ("/" in loaded or Path(loaded).exists()):
        loaded = next((alias for alias in d.model.aliases if "/" in alias), d.model.id)
    return launch_command(d, batch, context, loaded)


def _caveats(d: Deployment, ask: Ask | None) -> Iterator[str]:
    """What the launch command takes for granted, or leaves out."""
    yield from caveats(d)
    if ask and ask.workers:
        prefill, decode = ask.workers
        yield (
            f"This starts one replica. {prefill} for prefill and {decode} for decode need the engine's settings for prefill "
            "and decode apart, and what moves caches between them."
        )


def _notes(d: Deployment, model_asked: object, asked: str | Path | GpuSpec, ask: Ask | None) -> Iterator[str]:
    """What a reader should know beside the numbers."""
    gpu, model, eff = d.gpu, d.model, d.efficiency
    if isinstance(model_asked, str) and _is_alias(model_asked, model):
        yield f"{model_asked} has the shape of {model.name} ({model.id})."
    name = parse_gpu(asked)[1] if isinstance(asked, str) else gpu.id
    if normalise(name) != normalise(gpu.id) and not gpu.note.startswith(f"{name} means this"):
        yield f"{name} is {gpu.name} ({gpu.id})."
    if gpu.note:
        yield gpu.note
    yield from d.notes
    if not gpu.usable_known:
        yield f"No driver report of {gpu.id}'s usable memory is known; the marketed {gpu.memory.nominal_gb:g} GB is used."
    rate = gpu.compute_rate(d.precision.weights[Role.FFN].compute)
    form = d.precision.weights[Role.FFN]
    if rate is not None and rate[0] != form.compute[0]:
        slow = ", which may make compute and prefill too long" if rate[0] == "fp32" else ""
        yield f"No {form.compute[0]} rate of {gpu.id} is known: products with {form.id} weights run in {rate[0]}{slow}."
    if rate is None:
        yield f"No peak compute rate of {gpu.id} is known: decode time counts memory only, and there is no prefill time."
    if d.count > 1 and gpu.link_bytes_per_s is None:
        yield f"No link bandwidth of {gpu.id} is known: decode time leaves communication out."
    rows = [row for group in model.groups for row in group.attention]
    ranks = d.sharding.head_ranks
    for kv_heads in sorted({row.kv_heads for row in rows if isinstance(row, HeadAttention)}):
        if kv_heads < ranks and ranks % kv_heads == 0:
            heads = "1 KV head" if kv_heads == 1 else f"{kv_heads} KV heads"
            yield f"{heads} on {ranks} ranks: each is kept {ranks // kv_heads} times."
        elif kv_heads % ranks:
            yield f"KV heads ({kv_heads}) do not divide evenly over {ranks} ranks; engines may refuse this degree."
    if ranks > 1 and any(isinstance(row, LatentAttention) for row in rows):
        yield f"MLA's latent cannot be split by heads: each of the {ranks} ranks keeps all of it."
    if ranks > 1 and any(isinstance(row, CompressedAttention) for row in rows):
        yield f"The one key-value vector of a token cannot be split: each of the {ranks} ranks keeps all of it."
    budget = min(d.budgets, key=lambda b: b.left - b.outside)
    if budget.asked is None and budget.outside > budget.left:
        yield (
            f"{d.engine.name} leaves {format_gib(budget.left)} outside its share, less than the "
            f"{format_gib(budget.outside)} that activations and graphs are expected to take there; a smaller share is safer."
        )
    if d.lifted_from is not None:
        yield f"{d.engine.name} is set to run {d.setup.sequences:,} sequences at once; its default is {d.lifted_from:,}."
    if d.engine.vendors and gpu.vendor not in d.engine.vendors:
        yield f"The budget is {d.engine.name}'s on {' and '.join(d.engine.vendors)} devices, borrowed for {gpu.vendor}'s."
    low, high = eff.interval
    yield (
        f"Expected times are {eff.origin}, {eff.whose}: {eff.shares.memory:.0%} of bandwidth, "
        f"{eff.shares.compute:.0%} of peak. The interval, {low:.3g} to {high:.3g} times, {eff.told}."
    )
    if model.drafter and not d.drafts:
        held = format_count(model.drafter.parameters)
        yield f"The checkpoint also holds {held} parameters of {model.drafter.name}, which plain decoding does not load."
    if d.drafts and ask and not ask.load.acceptance:
        yield "No drafted token is taken to be accepted; --acceptance says which share is."
    if model.note:
        yield model.note


def _is_alias(asked: str, model: ModelSpec) -> bool:
    """Whether a name is another than the model's own: one of its aliases, and neither its id nor its name."""
    own = (normalise(model.id), normalise(model.name))
    return normalise(asked) in map(normalise, model.aliases) and normalise(asked.rpartition("/")[2]) not in own
