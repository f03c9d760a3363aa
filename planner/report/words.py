"""A plan in sentences: what the terminal and Markdown say in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.units import format_bytes, format_count, format_gib, format_seconds, format_tokens

if TYPE_CHECKING:
    from planner.result import DeploymentFacts, GpuFacts, Plan, PoolFacts
    from planner.verbs.roofline import Roofline


def title(answer: Plan | Roofline) -> tuple[str, str]:
    """The model, and what it runs on."""
    return answer.model.name, devices(answer.gpu)


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
    engine = "no engine" if deployment.engine == "none" else f"{deployment.engine} {deployment.engine_version}"
    given = deployment.kv_memory
    share = f"{deployment.memory_fraction:.3g} of memory" if given is None else f"{format_bytes(given)} of cache a GPU"
    limits = ""
    if deployment.step_tokens:
        limits = f" · {deployment.step_tokens:,} tokens and {deployment.sequences:,} sequences in a pass"
    yield f"{degrees(deployment)} · {engine} with {share}{limits}"


def degrees(deployment: DeploymentFacts) -> str:
    """How the model is cut."""
    named = {"TP": deployment.tensor_parallel, "DP": deployment.data_parallel, "PP": deployment.pipeline_parallel}
    cut = " × ".join(f"{name} {degree}" for name, degree in named.items() if degree > 1 or name == "TP")
    return cut + (" · experts whole" if deployment.expert_parallel else "")


def roofline_facts(answer: Roofline) -> Iterator[str]:
    """What is placed on which roofline, a line each."""
    deployment = answer.deployment
    what = "decode step, each sequence holding" if answer.phase == "decode" else "prefill of"
    yield f"{what} {answer.tokens:,} tokens · weights {deployment.weights} · KV {deployment.kv} · {degrees(deployment)}"
    roofs = [
        f"{roof.format} {roof.peak_flop_per_s / 1e12:,.4g} TFLOP/s from {roof.ridge_flop_per_byte:,.0f} FLOP/B on"
        for roof in answer.roofs
    ]
    yield " · ".join([f"roof of one GPU: {answer.bandwidth_bytes_per_s / 1e9:,.0f} GB/s", *roofs])


def interval(ends: tuple[float, float] | None) -> str:
    """From when to when, the unit said once if it is the same; nothing if unknown [s].

    >>> interval((0.0142, 0.0333)), interval((0.0009, 0.0012)), interval(None)
    ('14.2 – 33.3 ms', '900.0 µs – 1.20 ms', '')
    """
    if ends is None:
        return ""
    low, high = map(format_seconds, ends)
    number, _, unit = low.rpartition(" ")
    return f"{number if unit == high.rpartition(' ')[2] else low} – {high}"


def pool(plan: Plan) -> Iterator[str]:
    """What the memory for the cache is dealt out in, and what it holds: blocks, tokens, concurrency, states."""
    memory = plan.memory
    dealt = [_dealt_out(one) for one in memory.fullest_gpu.pools if one.unit != "byte" and one.units is not None]
    holds = []
    if memory.kv_pool_tokens is not None and memory.max_concurrency is not None:
        longest = plan.deployment.max_tokens
        holds.append(f"{memory.kv_pool_tokens:,} tokens, {memory.max_concurrency:,.2f} sequences of {longest:,} tokens")
    if memory.state_slots is not None:
        holds.append(f"states of {memory.state_slots:,} sequences")
    if dealt or holds:
        yield "KV pool: " + "; ".join([*dealt, ", ".join(holds)] if holds else dealt)
    ideal, reserved = memory.kv_bytes_per_sequence, memory.kv_reserved_bytes_per_sequence
    if reserved != ideal:
        yield (
            f"A sequence of {plan.workload.context:,} tokens: {format_bytes(ideal)} ideal (what the model needs), "
            f"{format_bytes(reserved)} reserved (what the engine sets aside{_on_ranks(plan)})"
        )


def _on_ranks(plan: Plan) -> str:
    """That what is set aside is the sum over ranks that each keep a copy."""
    ranks, memory = plan.deployment.tensor_parallel, plan.memory
    copied = memory.kv_reserved_bytes_per_sequence > 1.5 * memory.kv_bytes_per_sequence
    return f", over {ranks} ranks" if ranks > 1 and copied else ""


def _dealt_out(one: PoolFacts) -> str:
    """Units of a pool in words."""
    if one.unit == "token":
        return f"{one.units:,} {one.name} of {format_bytes(one.unit_bytes)}"
    run = f" ({one.block_tokens:,} tokens)" if one.block_tokens > 1 else ""
    groups = f" for {one.groups} groups of layers" if one.groups > 1 else ""
    idle = f", {one.padded_layers} layers of padding" if one.padded_layers else ""
    what = "" if one.name == "cache" else f" for {one.name}"
    plural = "" if one.units == 1 else "s"
    return f"{one.units:,} {one.unit}{plural}{what} of {format_bytes(one.unit_bytes)}{run}{groups}{idle}"


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


def serving(plan: Plan) -> Iterator[str]:
    """What requests see, a line each."""
    served = plan.serving
    if served is None:
        return
    ask, rate = asked_of(plan), served.asked_requests_per_s
    if served.room is None and not plan.memory.fits:
        yield "None of these requests fits. What it would be like with room for them:"
    if rate is not None and not served.sustained and plan.memory.fits:
        yield (
            f"{rate:g} requests/s of {ask} CANNOT BE SUSTAINED: the most is {served.highest_requests_per_s:.3g}/s. "
            "Just below that:"
        )
    elif rate is not None:
        yield (
            f"At {rate:g} requests/s of {ask} (at most {served.highest_requests_per_s:.3g}/s), "
            f"{served.concurrency:.3g} in the system:"
        )
    else:
        run = f", {served.rounds * served.concurrency:,.0f} in the run" if served.rounds else ""
        yield f"{served.concurrency:,} request{'s' * (served.concurrency != 1)} in flight of {ask}{run}:"
    for name, value, (low, high), ideal in (
        ("first token", served.ttft_s, served.ttft_interval_s, served.ideal_ttft_s),
        ("each further token", served.tpot_s, served.tpot_interval_s, served.ideal_tpot_s),
    )[: served.output_tokens]:  # an answer of one token has no further ones
        short = "TTFT" if name == "first token" else "TPOT"
        yield f"  {short} {format_seconds(value)} ({interval((low, high))}; ideal {format_seconds(ideal)}): {name}"
    yield (
        f"  {served.requests_per_s:.3g} requests/s · {served.tokens_per_s:,.0f} output tokens/s, "
        f"{served.tokens_per_s_per_gpu:,.0f} a GPU, {served.tokens_per_s_per_user:,.1f} each"
    )
    if served.workers:
        prefill, decode = (f"{n} worker{'s' * (n > 1)}" for n in served.workers)
        yield f"  {prefill} for prefill and {decode} for decode, {served.gpus:,} GPUs in all"
    elif served.running <= served.concurrency - 1:
        full = {"engine": "the engine is set to run no more, and ", "cache": "the cache holds no more, and "}
        why = full.get(served.limited_by or "", "") if rate is None else ""
        yield f"  {served.running:,} of them run at once{half_grown(plan)}; {why}the others wait."


def asked_of(plan: Plan) -> str:
    """What requests ask for: lengths, and what of a prompt is cached and of an answer drafted."""
    served = plan.serving
    assert served is not None
    source = plan.workload.source
    prompt = f"a source of {source:,}" if source else f"{served.input_tokens:,} tokens in"
    hits = f" ({served.prefix_hits:.0%} of them cached)" if served.prefix_hits else ""
    drafts = f", {served.tokens_per_step:.3g} a step by drafting" if served.drafted else ""
    return f"{prompt}{hits} and {served.output_tokens:,} out{drafts}"


def half_grown(plan: Plan) -> str:
    """That more run than would fit with their whole answers, where they do."""
    most = plan.memory.max_batch
    return (
        ""
        if plan.serving is None or most is None or plan.serving.running <= most
        else ", their answers half done on average"
    )


def remarks(plan: Plan) -> Iterator[str]:
    """Where weights stop being the bound, prefill, and the plan's notes."""
    if plan.crossover:
        most = plan.memory.max_batch
        beyond = ", more than fits" if most is not None and plan.crossover.batch > most else ""
        yield f"From batch {plan.crossover.batch:,} on{beyond}, {plan.crossover.bound} rather than weights bounds the step."
    if plan.prefill.ttft_s is not None and plan.prefill.ideal_s is not None:
        ideal, expected = format_seconds(plan.prefill.ideal_s), format_seconds(plan.prefill.ttft_s)
        within = f" ({interval(plan.prefill.interval_s)})" if plan.prefill.interval_s else ""
        yield (
            f"First token of one prompt of {plan.prefill.tokens:,} tokens, on idle devices: {expected}{within}; "
            f"ideal {ideal}."
        )
    yield from plan.notes


def launch_remarks(plan: Plan) -> Iterator[str]:
    """What to know of a launch command: that it does not fit, and what it takes for granted."""
    if not plan.memory.fits:
        yield "This does not fit; the plan without --emit says what would."
    yield from plan.launch_caveats
