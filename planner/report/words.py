"""A plan in sentences: what the terminal and Markdown say in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.units import format_bytes, format_count, format_gib, format_seconds, format_tokens

if TYPE_CHECKING:
    from planner.result import GpuFacts, Plan


def title(plan: Plan) -> tuple[str, str]:
    """The model, and what it runs on."""
    return plan.model.name, devices(plan.gpu)


def devices(gpu: GpuFacts) -> str:
    """How many of which."""
    return f"{gpu.count} × {gpu.name}" if gpu.count > 1 else gpu.name


def facts(plan: Plan) -> Iterator[str]:
    """What the model is, what it weighs and how it is deployed, a line each."""
    model, deployment, memory = plan.model, plan.deployment, plan.memory
    active = "" if model.active_parameters == model.parameters else f" ({format_count(model.active_parameters)} active)"
    yield " · ".join(
        (
            f"{format_count(model.parameters)} parameters{active}",
            f"{model.layers} layers",
            " + ".join(model.variants),
            f"context limit {format_tokens(model.context_limit)}",
        )
    )
    saturated = memory.kv_bytes_per_token_saturated
    full = "" if saturated == memory.kv_bytes_per_token else f", {format_bytes(saturated)} once windows are full"
    kv = (
        f"KV {deployment.kv} {format_bytes(memory.kv_bytes_per_token)} a token{full}"
        if memory.kv_bytes_per_token
        else "no KV"
    )
    if memory.state_bytes_per_sequence:
        kv += f" · state {format_bytes(memory.state_bytes_per_sequence)} a sequence"
    yield f"weights {deployment.weights} {format_bytes(memory.weight_bytes)} · {kv}"
    stages = f" × PP {deployment.pipeline_parallel}" if deployment.pipeline_parallel > 1 else ""
    engine = "no engine" if deployment.engine == "none" else f"{deployment.engine} {deployment.engine_version}"
    given = deployment.kv_memory
    share = f"{deployment.memory_fraction:.3g} of memory" if given is None else f"{format_bytes(given)} of cache a GPU"
    yield f"TP {deployment.tensor_parallel}{stages} · {engine} with {share}"


def verdict(plan: Plan) -> tuple[str, str]:
    """Whether the workload fits, and what else would or how much is missing."""
    memory, load = plan.memory, plan.workload
    what = f"batch {load.batch:,} × {load.context:,} tokens"
    if not memory.fits:
        return "DOES NOT FIT", f": {what}. One GPU lacks {format_gib(memory.missing_bytes_per_gpu)}."
    most = "any batch" if memory.max_batch is None else f"batch {memory.max_batch:,}"
    longest = "any context" if memory.max_context is None else f"{memory.max_context:,} tokens"
    limited = memory.max_context is None or memory.max_context > plan.model.context_limit
    limit = f" (the model's limit is {plan.model.context_limit:,})" if limited else ""
    return "FITS", f": {what}. Memory has room for {most} at this context, or for {longest} at this batch{limit}."


def remarks(plan: Plan) -> Iterator[str]:
    """Where weights stop being the bound, prefill, and the plan's notes."""
    if plan.crossover:
        most = plan.memory.max_batch
        beyond = ", more than fits" if most is not None and plan.crossover.batch > most else ""
        yield f"From batch {plan.crossover.batch:,} on{beyond}, {plan.crossover.bound} rather than weights bounds the step."
    if plan.prefill.ttft_s is not None and plan.prefill.ideal_s is not None:
        ideal, expected = format_seconds(plan.prefill.ideal_s), format_seconds(plan.prefill.ttft_s)
        yield f"Prefill of one prompt of {plan.prefill.tokens:,} tokens: {expected} expected, {ideal} ideal."
    yield from plan.notes
