"""Derivations: every figure that `explain` explains, with its formula, the numbers put in, and its sources.

A figure is a row: what it means, its unit, its formula in symbols, a function that writes the formula with this plan's
numbers, and where the formula and the numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner import substitutions as sub
from planner.memory import WHOLE
from planner.result import Plan
from planner.roofline import IDEAL
from planner.substitutions import Case


@dataclass(frozen=True)
class Quantity:
    """One figure: how it is written out with numbers, and where the plan has it."""

    meaning: str
    unit: str
    formula: str
    substitute: Callable[[Case], str]
    result: Callable[[Plan], float | int | None]
    sources: Callable[[Case], tuple[str, ...]]
    of_requests: bool = False
    """Whether the plan has it only where requests are described."""


# -- sources -----------------------------------------------------------------------------------------------------------


def _model_sources(c: Case) -> tuple[str, ...]:
    return tuple(map(str, c.d.model.source))


def _cache_sources(c: Case) -> tuple[str, ...]:
    attention = (row.reference for row, _ in sub.rows(c))
    states = (group.state.reference for group in c.d.model.groups if group.state)
    return (*dict.fromkeys((*attention, *states)), *_model_sources(c))


def _budget_sources(c: Case) -> tuple[str, ...]:
    return (*map(str, c.d.engine.source), *map(str, c.d.gpu.source))


def _memory_sources(c: Case) -> tuple[str, ...]:
    return (*_budget_sources(c), *_cache_sources(c))


def _time_sources(c: Case) -> tuple[str, ...]:
    roofline = "Roofline: Williams, Waterman and Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785"
    return (roofline, *map(str, c.d.gpu.source), *_model_sources(c))


def _expected_sources(c: Case) -> tuple[str, ...]:
    eff = c.d.efficiency
    return (f"Efficiency ({eff.origin}, {eff.name}): {eff.basis}", *map(str, eff.source), *_time_sources(c))


def _serving_sources(c: Case) -> tuple[str, ...]:
    return (
        "Little 1961, Operations Research 9(3), doi:10.1287/opre.9.3.383",
        "Errors on measurements that were not fitted to: 'kvplan validate serving'",
        *_expected_sources(c),
    )


_CACHE = "sum over attention rows of layers * kv_heads * (key width + value width) * bytes per element"
_STEP = (
    "sum over operators of ((bytes / (memory * bandwidth))^4 + (flops / (compute * peak))^4)^(1/4) "
    "+ activations / (share * bandwidth) "
    "+ sent / (link * link bandwidth) + launches * launch_s"
)

QUANTITIES: dict[str, Quantity] = {
    "parameters": Quantity(
        "All parameters of the model.", "parameters", "sum over tensors of count * slices * parameters per slice",
        lambda c: sub.tensor_sum(list(c.d.model.all_tensors())), lambda p: p.model.parameters, _model_sources,
    ),
    "active_parameters": Quantity(
        "Parameters that one token uses: all but the experts it is not routed to.", "parameters",
        "sum over tensors of count * slices * parameters per slice, with top_k experts instead of all",
        lambda c: sub.tensor_sum(list(c.d.model.all_tensors()), active=True), lambda p: p.model.active_parameters,
        _model_sources,
    ),
    "weight_bytes": Quantity(
        "Weights of the whole model.", "B", "sum over formats of parameters * bytes per parameter",
        lambda c: sub.weights(c.d, list(c.d.model.all_tensors()), WHOLE), lambda p: p.memory.weight_bytes, _model_sources,
    ),
    "weight_bytes_per_gpu": Quantity(
        "Weights on the fullest GPU.", "B",
        "sum over formats of parameters on the rank * bytes; heads, columns and vocabulary are dealt out, norms replicated",
        sub.weights_per_gpu, lambda p: p.memory.weight_bytes_per_gpu,
        lambda c: ("Tensor parallelism: Megatron-LM, arXiv:1909.08053, section 3", *_model_sources(c)),
    ),
    "kv_bytes_per_token": Quantity(
        "What one more token adds to the cache of the whole model while every window still grows.", "B", _CACHE,
        lambda c: sub.per_token(c, False), lambda p: p.memory.kv_bytes_per_token, _cache_sources,
    ),
    "kv_bytes_per_token_saturated": Quantity(
        "What one more token adds once every window is full.", "B", _CACHE + ", rows without a window only",
        lambda c: sub.per_token(c, True), lambda p: p.memory.kv_bytes_per_token_saturated, _cache_sources,
    ),
    "kv_bytes_per_sequence": Quantity(
        "Cache of one sequence of the planned context, whole model.", "B",
        _CACHE + " * min(context, window) + recurrent state",
        sub.per_sequence, lambda p: p.memory.kv_bytes_per_sequence, _cache_sources,
    ),
    "state_bytes_per_sequence": Quantity(
        "What a sequence holds whatever its length: recurrent state, and cross-attention over the source.", "B",
        "sum over state rows of layers * (state * bytes + convolution inputs * bytes) + " + _CACHE
        + " * source tokens, cross-attention rows only", sub.fixed, lambda p: p.memory.state_bytes_per_sequence,
        _cache_sources,
    ),
    "budget_bytes_per_gpu": Quantity(
        "What the engine may use of one GPU.", "B", "memory_fraction * (usable memory - what it sets aside before)",
        sub.limit, lambda p: p.memory.budget_bytes_per_gpu,
        _budget_sources,
    ),
    "activation_bytes_per_gpu": Quantity(
        "Activations reserved for the engine's profiling run.", "B",
        "workspace + max(tower, images + max(layers + experts, sampler + workspace kept)): see planner/activations.py",
        sub.activation, lambda p: p.memory.activation_bytes_per_gpu, _budget_sources,
    ),
    "other_bytes_per_gpu": Quantity(
        "Driver context, communication buffers and the like.", "B",
        "the engine's GiB, on one GPU or on one of several, * 2**30", lambda c: sub.gib(c.d.setup.other_gib),
        lambda p: p.memory.other_bytes_per_gpu, lambda c: tuple(map(str, c.d.engine.source)),
    ),
    "graph_bytes_per_gpu": Quantity(
        "Captured graphs of decode steps.", "B", "the engine's GiB * share of the batches that are captured",
        lambda c: str(c.d.setup.graph_bytes), lambda p: p.memory.graph_bytes_per_gpu,
        lambda c: tuple(map(str, c.d.engine.source)),
    ),
    "usable_bytes": Quantity(
        "Memory of one GPU that a framework can address.", "B", "as the driver reports it, else the marketed capacity",
        lambda c: str(c.d.gpu.usable_bytes), lambda p: p.gpu.usable_bytes, lambda c: tuple(map(str, c.d.gpu.source)),
    ),
    "kv_pool_bytes_per_gpu": Quantity(
        "What is left for the cache on one GPU.", "B",
        "memory_fraction * (usable - lines before) - weights and other lines inside",
        sub.pool, lambda p: p.memory.kv_pool_bytes_per_gpu, _memory_sources,
    ),
    "kv_pool_tokens": Quantity(
        "Tokens that the pools hold in sequences of the planned context, in whole blocks.", "tokens",
        "blocks // groups * block_tokens, or blocks * longest sequence // blocks of one",
        sub.pool_tokens, lambda p: p.memory.kv_pool_tokens,
        _memory_sources,
    ),
    "kv_bytes_per_gpu": Quantity(
        "Cache of the planned batch on the fullest GPU, in the engine's blocks.", "B",
        "sequences on the rank * cache of one of them", sub.cache_per_gpu, lambda p: p.memory.kv_bytes_per_gpu,
        _cache_sources,
    ),
    "missing_bytes_per_gpu": Quantity(
        "What the fullest GPU lacks for the planned workload.", "B", "cache of the batch on the GPU - pool", sub.missing,
        lambda p: p.memory.missing_bytes_per_gpu, _memory_sources,
    ),
    "kv_reserved_bytes_per_sequence": Quantity(
        "What the engine sets aside for one sequence of the planned context over all GPUs that hold it.", "B",
        "ranks * sum over stages of units of the sequence * bytes of a unit", sub.reserved,
        lambda p: p.memory.kv_reserved_bytes_per_sequence, _memory_sources,
    ),
    "max_concurrency": Quantity(
        "Sequences of the planned context that the pools hold.", "sequences", "units / units of one sequence",
        sub.concurrency, lambda p: p.memory.max_concurrency, _memory_sources,
    ),
    "max_batch": Quantity(
        "Most sequences of the planned context that fit.", "sequences", "units of the pool // units of one sequence",
        sub.max_batch, lambda p: p.memory.max_batch, _memory_sources,
    ),
    "max_context": Quantity(
        "Longest context at which the planned batch fits.", "tokens",
        "(units // batch - units that no longer grow) // units of a block in the rows that still grow * block_tokens",
        sub.max_context, lambda p: p.memory.max_context, _memory_sources,
    ),
    "ideal_step_s": Quantity(
        "The limit of one decode step: full bandwidth and peak, communication hidden.", "s",
        "sum over operators of max(bytes / bandwidth, flops / peak), or the time on the link where that is longer",
        lambda c: sub.step(c, IDEAL), lambda p: p.decode.ideal_step_s, _time_sources,
    ),
    "step_s": Quantity(
        "Expected time of one decode step.", "s", _STEP, lambda c: sub.step(c, c.d.efficiency.shares),
        lambda p: p.decode.step_s, _expected_sources,
    ),
    "tokens_per_s": Quantity(
        "Tokens of the whole batch a second.", "tokens/s", "batch / step_s",
        lambda c: f"{c.batch} / {c.p.decode.step_s!r}", lambda p: p.decode.tokens_per_s, _expected_sources,
    ),
    "tokens_per_s_per_sequence": Quantity(
        "Tokens of each sequence a second.", "tokens/s", "1 / step_s", lambda c: f"1 / {c.p.decode.step_s!r}",
        lambda p: p.decode.tokens_per_s_per_sequence, _expected_sources,
    ),
    "interval_low_s": Quantity(
        "Lower end of the interval of one decode step.", "s", "max(step_s * interval factor, ideal_step_s)",
        lambda c: f"max({c.p.decode.step_s!r} * {c.d.efficiency.interval[0]!r}, {c.p.decode.ideal_step_s!r})",
        lambda p: p.decode.interval_s[0], _expected_sources,
    ),
    "interval_high_s": Quantity(
        "Upper end of the interval of one decode step.", "s", "step_s * interval factor",
        lambda c: f"{c.p.decode.step_s!r} * {c.d.efficiency.interval[1]!r}", lambda p: p.decode.interval_s[1],
        _expected_sources,
    ),
    "arithmetic_intensity": Quantity(
        "FLOP of a decode step for each byte read from memory.", "FLOP/B", "sum of flops / sum of bytes",
        lambda c: sub.intensity(c), lambda p: p.decode.arithmetic_intensity, _time_sources,
    ),
    "prompt_s": Quantity(
        "Expected time to prefill one prompt, of the planned context or of --input, on idle devices.", "s", _STEP,
        lambda c: sub.prompt(c, c.d.efficiency.prompt), lambda p: p.prefill.prompt_s, _expected_sources,
    ),
    "ttft_s": Quantity(
        "Expected time to the first token of one prompt, of the planned context or of --input, on idle devices.", "s",
        "prompt_s + first_s + first_kernel_s * kernels of the prompt + step of one sequence", sub.ttft,
        lambda p: p.prefill.ttft_s, _expected_sources,
    ),
    "tpot_s": Quantity(
        "Expected time per output token under the load: a decode step, and the prompts of the others that it carries.", "s",
        "(step + (n - 1) / output * what a prompt adds) / tokens a step, n requests on a data-parallel group", sub.tpot,
        lambda p: p.serving.tpot_s if p.serving else None, _serving_sources, of_requests=True,
    ),
    "loaded_ttft_s": Quantity(
        "Expected time to the first token under the load.", "s",
        "step + first_s + first_kernel_s * kernels + (1 + prompts ahead / stages) * prompt, and waits for room, in queues",
        sub.loaded_ttft, lambda p: p.serving.ttft_s if p.serving else None, _serving_sources, of_requests=True,
    ),
    "requests_per_s": Quantity(
        "Requests answered a second, by Little's law.", "1/s",
        "concurrency / (ttft_s + (output - 1) * tpot_s), or a rate that was asked for, if that is less than the highest",
        sub.requests, lambda p: p.serving.requests_per_s if p.serving else None, _serving_sources, of_requests=True,
    ),
    "ideal_s": Quantity(
        "The limit of prefilling one prompt, of the planned context or of --input.", "s",
        "sum over operators of max(bytes / bandwidth, flops / peak), or the time on the link where that is longer",
        lambda c: sub.prompt(c, IDEAL), lambda p: p.prefill.ideal_s, _time_sources,
    ),
}  # fmt: skip
