"""Derivations: every figure that `explain` explains, with its formula, the numbers put in, and its sources.

A figure is a row: what it means, its unit, its formula in symbols, a function that writes the formula with this plan's
numbers, and where the formula and the numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from planner.attention import AttentionRow
from planner.cached import UNBOUNDED, Cached
from planner.deployment import Deployment
from planner.evaluate import decode_operators, prefill_operators
from planner.gpu import GpuSpec
from planner.memory import widest_intermediate
from planner.precision import find_format
from planner.result import Plan
from planner.roofline import IDEAL, Shares
from planner.tensors import Role, Tensor, ceil_div
from planner.work import Operator


@dataclass(frozen=True)
class Case:
    """What an explanation is made from."""

    d: Deployment
    p: Plan
    batch: int
    context: int


@dataclass(frozen=True)
class Quantity:
    """One figure: how it is written out with numbers, and where the plan has it."""

    meaning: str
    unit: str
    formula: str
    substitute: Callable[[Case], str]
    result: Callable[[Plan], float | int | None]
    sources: Callable[[Case], tuple[str, ...]]


# -- substitutions -----------------------------------------------------------------------------------------------------


def _times(count: int, term: str) -> str:
    return term if count == 1 else f"{count} * {term}"


def _sum(terms: list[str]) -> str:
    return " + ".join(terms) or "0"


def _tensor_sum(tensors: list[tuple[Tensor, int]], active: bool = False) -> str:
    terms = []
    for t, count in tensors:
        copies = count * (t.used if active else t.copies)
        terms.append(_times(copies, f"{t.units} * {t.unit_size}" if t.units > 1 else str(t.unit_size)))
    return _sum(terms)


def _weights(d: Deployment, tensors: list[tuple[Tensor, int]], tp: int) -> str:
    """Parameters times bytes of each, like formats together; a role whose bytes come out uneven is rounded up by itself."""
    by_role: dict[Role, int] = {}
    for t, count in tensors:
        by_role[t.role] = by_role.get(t.role, 0) + count * t.per_rank(tp)
    even: dict[Fraction, int] = {}
    uneven = []
    for role, n in by_role.items():
        size = d.precision.weights[role].bits / 8
        if n * size.numerator % size.denominator:
            uneven.append(f"-(-{n} * {size.numerator} // {size.denominator})")
        else:
            even[size] = even.get(size, 0) + n
    return _sum([*(f"{n} * {size}" for size, n in even.items()), *uneven])


def _vectors(cached: tuple[Cached, ...], d: Deployment) -> str:
    """Bytes of one entry of like cached vectors: ``8 * (128 + 128) * 2``."""
    forms = [c.form(d.precision.kv) for c in cached]
    widths = [
        f"{c.width} * {f.bits / 8} + {f.vector_bytes}" if f.vector_bytes else f"{c.width}"
        for c, f in zip(cached, forms, strict=True)
    ]
    if len(set(forms)) == 1 and len({c.vectors for c in cached}) == 1:
        inside = f"({' + '.join(widths)})" if len(widths) > 1 or forms[0].vector_bytes else widths[0]
        return _times(cached[0].vectors, inside if forms[0].vector_bytes else f"{inside} * {forms[0].bits / 8}")
    return f"({_sum([_vectors((c,), d) for c in cached])})"


def _entries(c: Case, saturated: bool | None = None) -> list[tuple[str, Cached]]:
    """Rates of all cached vectors that grow with the context, in numbers, those that are kept alike together."""
    found = []
    for row, count in _rows(c):
        alike: dict[tuple[int, int], list[Cached]] = {}
        for cached in () if row.attends_source else row.cached(1):
            if cached.owned and not (saturated and cached.kept < UNBOUNDED):
                alike.setdefault((cached.kept, cached.every), []).append(cached)
        found += [(_times(count, _vectors(tuple(like), c.d)), like[0]) for like in alike.values()]
    return found


def _rows(c: Case) -> list[tuple[AttentionRow, int]]:
    return [(row, group.count) for group in c.d.model.groups for row in group.attention]


def _per_token(c: Case, saturated: bool) -> str:
    return _sum([f"{rate} / {one.every}" if one.every > 1 else rate for rate, one in _entries(c, saturated)])


def _per_sequence(c: Case) -> str:
    terms = []
    for rate, one in _entries(c):
        kept = f"min({c.context}, {one.kept})" if one.kept < UNBOUNDED else str(c.context)
        terms.append(f"{rate} * ({kept} // {one.every})" if one.every > 1 else f"{rate} * {kept}")
    fixed = _fixed_terms(c)
    return _sum([*terms, *fixed])


def _fixed_terms(c: Case) -> list[str]:
    d = c.d
    crossed = [(row, count) for row, count in _rows(c) if row.attends_source]
    terms = [f"{_times(count, _vectors(row.cached(1), d))} * {d.source_tokens}" for row, count in crossed]
    for group in d.model.groups:
        if state := group.state:
            parts = [
                f"{elements} * {find_format(form).bits / 8}"
                for elements, form in (
                    (state.state_formula, state.state_format),
                    (f"{state.conv_elements}", state.conv_format),
                )
                if elements != "0"
            ]
            terms.append(_times(group.count, f"({_sum(parts)})"))
    return terms


def _fixed(c: Case) -> str:
    return _sum(_fixed_terms(c))


def _pool(c: Case) -> str:
    d = c.d
    stage = min(range(len(d.stages)), key=lambda s: d.stage_pool_bytes[s])
    rest = f"{d.stage_weight_bytes[stage]} - {d.activation_bytes} - {d.overhead_bytes}"
    if d.kv_memory is not None:
        return f"max(0, min({d.kv_memory}, {d.gpu.usable_bytes} - {rest}))"
    return f"max(0, {d.budget_bytes} - {rest})"


def _overhead(c: Case) -> str:
    rows = c.d.engine.overhead_gib
    return f"int({rows.single if c.d.count == 1 else rows.parallel!r} * 2**30)"


def _weights_per_gpu(c: Case) -> str:
    stage = max(range(len(c.d.stages)), key=lambda s: c.d.stage_weight_bytes[s])
    return _weights(c.d, c.d.stages[stage].all_tensors(), c.d.tp)


def _cache_per_gpu(c: Case) -> str:
    d = c.d
    local = ceil_div(c.batch, d.sharding.batch_ranks)
    return f"{local} * {max(curve.nbytes(d.reserved_tokens(c.context)) for curve in d.stage_curves)}"


def _missing(c: Case) -> str:
    d, stage = c.d, c.d.fullest_stage(c.batch, c.context)
    terms = ["0", f"{d.stage_cache_bytes(c.batch, c.context)[stage]} - {d.stage_pool_bytes[stage]}"]
    if d.kv_memory is not None:
        terms.append(f"{d.kv_memory} - {min(d.stage_room)}")
    return f"max({', '.join(terms)})".replace("- -", "+ ")


def _activation(c: Case) -> str:
    run, model = c.d.engine.profile_of(c.d.gpu), c.d.model
    layers = f"{run.tokens} * (2 * {model.hidden} + {widest_intermediate(model, c.d.tp)}) * 2"
    return f"max({layers}, {c.d.engine.sampler_bytes} * {run.sequences} * {model.vocab})"


def _max_batch(c: Case) -> str:
    d = c.d
    reserved = d.reserved_tokens(c.context)
    terms = [
        f"{d.sharding.batch_ranks} * ({max(pool, 0)} // {max(curve.nbytes(reserved), 1)})"
        for pool, curve in dict.fromkeys(zip(d.stage_pool_bytes, d.stage_curves, strict=True))
    ]
    return terms[0].removeprefix("1 * ") if len(terms) == 1 else f"min({', '.join(terms)})"


def _max_context(c: Case) -> str:
    d = c.d
    local = ceil_div(c.batch, d.sharding.batch_ranks)
    answers = {}
    for pool, curve in zip(d.stage_pool_bytes, d.stage_curves, strict=True):
        share = max(pool, 0) // local
        answers[curve.longest(share)] = (share, curve)
    longest = min(answers)
    if longest >= UNBOUNDED:
        return "None"
    share, curve = answers[longest]
    # The line of the curve that the answer lies on: windows shorter than it are full, the others still fill.
    full = sum(term.nbytes(longest) for term in curve.terms if term.kept <= longest) + curve.fixed
    slope = sum(term.slope for term in curve.terms if term.kept > longest)
    block = d.engine.block_tokens
    if any(term.every > 1 for term in curve.terms):  # a staircase: the longest was found by bisection
        return f"{longest} // {block} * {block}"
    inside = f"({share} - {full}) // {slope}" if full else f"{share} // {slope}"
    return f"{inside} // {block} * {block}" if block > 1 else f"max(0, {inside})"


def _pool_tokens(c: Case) -> str:
    d, terms = c.d, []
    for pool, curve in dict.fromkeys(zip(d.stage_pool_bytes, d.stage_curves, strict=True)):
        terms.append(f"{d.sharding.batch_ranks} * ({max(pool, 0)} * {c.context} // {max(curve.nbytes(c.context), 1)})")
    block = d.engine.block_tokens
    inside = terms[0] if len(terms) == 1 else f"min({', '.join(terms)})"
    return f"{inside} // {block} * {block}"


def _step(c: Case, shares: Shares) -> str:
    stages = decode_operators(c.d, c.batch, c.context)
    parts = min(c.batch, c.d.pp)
    terms = [_stage_step(operators, c.d.gpu, shares) for operators, _ in stages]
    through = _sum([_times(n, f"({t})") if n > 1 else t for t, (_, n) in zip(terms, stages, strict=True)])
    if parts == 1 or len(c.d.stages) == 1:
        return through
    return f"max({through}, {parts} * max({', '.join([*terms, '0'])}))"


def _ttft(c: Case, shares: Shares) -> str:
    if c.p.prefill.ttft_s is None:
        return "None"
    stages = prefill_operators(c.d, c.context)
    return _sum([_times(n, f"({_stage_step(ops, c.d.gpu, shares)})") for ops, n in stages])


def _stage_step(operators: list[Operator], gpu: GpuSpec, shares: Shares) -> str:
    """One stage as a sum over operators, like ones together in the way that `roofline.step_time` sums them."""
    bandwidth = gpu.bandwidth_bytes_per_s * shares.memory
    local, sent, launches = [], 0.0, 0.0
    for op in operators:
        moved, rate = float(op.weight_bytes + op.cache_bytes), gpu.compute_rate(op.compute)
        memory_s = moved / bandwidth
        compute_s = float(op.flops) / (rate[1] * shares.compute) if rate else 0.0
        if memory_s >= compute_s and moved:
            local.append(f"{moved:.10g} / {_share(shares.memory, gpu.bandwidth_bytes_per_s)}")
        elif rate and compute_s:
            local.append(f"{float(op.flops):.10g} / {_share(shares.compute, rate[1])}")
        sent += float(op.sent_bytes)
        launches += op.launches
    link = f"{sent:.10g} / {_share(shares.link, gpu.link_bytes_per_s)}" if sent and gpu.link_bytes_per_s else "0"
    if shares == IDEAL:
        return f"max({_sum(local)}, {link})" if link != "0" else _sum(local)
    return _sum([*local, *([link] if link != "0" else []), f"{launches:g} * {shares.launch_s:g}"])


def _share(share: float, peak: float | None) -> str:
    return f"{peak:.10g}" if share == 1 else f"({share:g} * {peak:.10g})"


# -- sources -----------------------------------------------------------------------------------------------------------


def _model_sources(c: Case) -> tuple[str, ...]:
    return tuple(map(str, c.d.model.source))


def _cache_sources(c: Case) -> tuple[str, ...]:
    attention = (row.reference for row, _ in _rows(c))
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


_CACHE = "sum over attention rows of layers * kv_heads * (key width + value width) * bytes per element"
_STEP = (
    "sum over operators of max(bytes / (memory * bandwidth), flops / (compute * peak)) + sent / (link * link bandwidth) "
    "+ launches * launch_s"
)

QUANTITIES: dict[str, Quantity] = {
    "parameters": Quantity(
        "All parameters of the model.", "parameters", "sum over tensors of count * slices * parameters per slice",
        lambda c: _tensor_sum(list(c.d.model.all_tensors())), lambda p: p.model.parameters, _model_sources,
    ),
    "active_parameters": Quantity(
        "Parameters that one token uses: all but the experts it is not routed to.", "parameters",
        "sum over tensors of count * slices * parameters per slice, with top_k experts instead of all",
        lambda c: _tensor_sum(list(c.d.model.all_tensors()), active=True), lambda p: p.model.active_parameters,
        _model_sources,
    ),
    "weight_bytes": Quantity(
        "Weights of the whole model.", "B", "sum over formats of parameters * bytes per parameter",
        lambda c: _weights(c.d, list(c.d.model.all_tensors()), 1), lambda p: p.memory.weight_bytes, _model_sources,
    ),
    "weight_bytes_per_gpu": Quantity(
        "Weights on the fullest GPU.", "B",
        "sum over formats of parameters on the rank * bytes; heads, columns and vocabulary are dealt out, norms replicated",
        _weights_per_gpu, lambda p: p.memory.weight_bytes_per_gpu,
        lambda c: ("Tensor parallelism: Megatron-LM, arXiv:1909.08053, section 3", *_model_sources(c)),
    ),
    "kv_bytes_per_token": Quantity(
        "What one more token adds to the cache of the whole model while every window still grows.", "B", _CACHE,
        lambda c: _per_token(c, False), lambda p: p.memory.kv_bytes_per_token, _cache_sources,
    ),
    "kv_bytes_per_token_saturated": Quantity(
        "What one more token adds once every window is full.", "B", _CACHE + ", rows without a window only",
        lambda c: _per_token(c, True), lambda p: p.memory.kv_bytes_per_token_saturated, _cache_sources,
    ),
    "kv_bytes_per_sequence": Quantity(
        "Cache of one sequence of the planned context, whole model.", "B",
        _CACHE + " * min(context, window) + recurrent state",
        _per_sequence, lambda p: p.memory.kv_bytes_per_sequence, _cache_sources,
    ),
    "state_bytes_per_sequence": Quantity(
        "What a sequence holds whatever its length: recurrent state, and cross-attention over the source.", "B",
        "sum over state rows of layers * (state * bytes + convolution inputs * bytes) + " + _CACHE
        + " * source tokens, cross-attention rows only", _fixed, lambda p: p.memory.state_bytes_per_sequence,
        _cache_sources,
    ),
    "budget_bytes_per_gpu": Quantity(
        "What the engine may use of one GPU.", "B", "memory_fraction * usable memory",
        lambda c: f"int({c.d.memory_fraction!r} * {c.d.gpu.usable_bytes})", lambda p: p.memory.budget_bytes_per_gpu,
        _budget_sources,
    ),
    "activation_bytes_per_gpu": Quantity(
        "Activations reserved for the engine's profiling run.", "B",
        "max(tokens * (2 * hidden + widest intermediate) * 2, sampler_bytes * sequences * vocabulary)",
        _activation, lambda p: p.memory.activation_bytes_per_gpu, _budget_sources,
    ),
    "overhead_bytes_per_gpu": Quantity(
        "Driver context, communication buffers and CUDA graphs.", "B",
        "the engine profile's GiB, on one GPU or on one of several, * 2**30", _overhead,
        lambda p: p.memory.overhead_bytes_per_gpu, lambda c: tuple(map(str, c.d.engine.source)),
    ),
    "usable_bytes": Quantity(
        "Memory of one GPU that a framework can address.", "B", "as the driver reports it, else the marketed capacity",
        lambda c: str(c.d.gpu.usable_bytes), lambda p: p.gpu.usable_bytes, lambda c: tuple(map(str, c.d.gpu.source)),
    ),
    "kv_pool_bytes_per_gpu": Quantity(
        "What is left for the cache on one GPU.", "B", "memory_fraction * usable - weights - activations - overhead",
        _pool, lambda p: p.memory.kv_pool_bytes_per_gpu, _memory_sources,
    ),
    "kv_pool_tokens": Quantity(
        "Tokens that the pools hold in sequences of the planned context, in whole blocks.", "tokens",
        "pool * context // cache of one sequence on the GPU, in blocks", _pool_tokens, lambda p: p.memory.kv_pool_tokens,
        _memory_sources,
    ),
    "kv_bytes_per_gpu": Quantity(
        "Cache of the planned batch on the fullest GPU, in the engine's blocks.", "B",
        "sequences on the rank * cache of one of them", _cache_per_gpu, lambda p: p.memory.kv_bytes_per_gpu,
        _cache_sources,
    ),
    "missing_bytes_per_gpu": Quantity(
        "What the fullest GPU lacks for the planned workload.", "B", "cache of the batch on the GPU - pool", _missing,
        lambda p: p.memory.missing_bytes_per_gpu, _memory_sources,
    ),
    "max_batch": Quantity(
        "Most sequences of the planned context that fit.", "sequences", "pool // cache of one sequence on the GPU",
        _max_batch, lambda p: p.memory.max_batch, _memory_sources,
    ),
    "max_context": Quantity(
        "Longest context at which the planned batch fits.", "tokens",
        "(pool // batch - cache of full windows) // bytes per token of the rows that still grow, in blocks",
        _max_context, lambda p: p.memory.max_context, _memory_sources,
    ),
    "ideal_step_s": Quantity(
        "The limit of one decode step: full bandwidth and peak, communication hidden.", "s",
        "sum over operators of max(bytes / bandwidth, flops / peak), or the time on the link where that is longer",
        lambda c: _step(c, IDEAL), lambda p: p.decode.ideal_step_s, _time_sources,
    ),
    "step_s": Quantity(
        "Expected time of one decode step.", "s", _STEP, lambda c: _step(c, c.d.efficiency.shares),
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
        lambda c: _intensity(c), lambda p: p.decode.arithmetic_intensity, _time_sources,
    ),
    "ttft_s": Quantity(
        "Expected time to prefill one prompt of the planned context on idle devices.", "s", _STEP,
        lambda c: _ttft(c, c.d.efficiency.shares), lambda p: p.prefill.ttft_s, _expected_sources,
    ),
    "ideal_s": Quantity(
        "The limit of prefilling one prompt of the planned context.", "s",
        "sum over operators of max(bytes / bandwidth, flops / peak), or the time on the link where that is longer",
        lambda c: _ttft(c, IDEAL), lambda p: p.prefill.ideal_s, _time_sources,
    ),
}  # fmt: skip


def _intensity(c: Case) -> str:
    flops = nbytes = 0.0
    for operators, times in decode_operators(c.d, c.batch, c.context):
        flops += times * sum(float(op.flops) for op in operators)
        nbytes += times * sum(float(op.weight_bytes + op.cache_bytes) for op in operators)
    return f"{flops:.9e} / {nbytes:.9e}"
