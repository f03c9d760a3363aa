"""Formulas with a plan's numbers put in: arithmetic that anyone can paste into a Python prompt.

Each function writes one figure out; `derivations` says what the figure means and where it comes from.
"""

from __future__ import annotations

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


def _times(count: int, term: str) -> str:
    return term if count == 1 else f"{count} * {term}"


def _sum(terms: list[str]) -> str:
    return " + ".join(terms) or "0"


def tensor_sum(tensors: list[tuple[Tensor, int]], active: bool = False) -> str:
    terms = []
    for t, count in tensors:
        copies = count * (t.used if active else t.copies)
        terms.append(_times(copies, f"{t.units} * {t.unit_size}" if t.units > 1 else str(t.unit_size)))
    return _sum(terms)


def weights(d: Deployment, tensors: list[tuple[Tensor, int]], tp: int) -> str:
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
    for row, count in rows(c):
        alike: dict[tuple[int, int], list[Cached]] = {}
        for cached in () if row.attends_source else row.cached(1):
            if cached.owned and not (saturated and cached.kept < UNBOUNDED):
                alike.setdefault((cached.kept, cached.every), []).append(cached)
        found += [(_times(count, _vectors(tuple(like), c.d)), like[0]) for like in alike.values()]
    return found


def rows(c: Case) -> list[tuple[AttentionRow, int]]:
    return [(row, group.count) for group in c.d.model.groups for row in group.attention]


def per_token(c: Case, saturated: bool) -> str:
    return _sum([f"{rate} / {one.every}" if one.every > 1 else rate for rate, one in _entries(c, saturated)])


def per_sequence(c: Case) -> str:
    terms = []
    for rate, one in _entries(c):
        kept = f"min({c.context}, {one.kept})" if one.kept < UNBOUNDED else str(c.context)
        terms.append(f"{rate} * ({kept} // {one.every})" if one.every > 1 else f"{rate} * {kept}")
    fixed = _fixed_terms(c)
    return _sum([*terms, *fixed])


def _fixed_terms(c: Case) -> list[str]:
    d = c.d
    crossed = [(row, count) for row, count in rows(c) if row.attends_source]
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


def fixed(c: Case) -> str:
    return _sum(_fixed_terms(c))


def pool(c: Case) -> str:
    d = c.d
    stage = min(range(len(d.stages)), key=lambda s: d.stage_pool_bytes[s])
    rest = f"{d.stage_weight_bytes[stage]} - {d.activation_bytes} - {d.overhead_bytes}"
    if d.kv_memory is not None:
        return f"max(0, min({d.kv_memory}, {d.gpu.usable_bytes} - {rest}))"
    return f"max(0, {d.budget_bytes} - {rest})"


def overhead(c: Case) -> str:
    rows = c.d.engine.overhead_gib
    return f"int({rows.single if c.d.count == 1 else rows.parallel!r} * 2**30)"


def weights_per_gpu(c: Case) -> str:
    stage = max(range(len(c.d.stages)), key=lambda s: c.d.stage_weight_bytes[s])
    return weights(c.d, c.d.stages[stage].all_tensors(), c.d.tp)


def cache_per_gpu(c: Case) -> str:
    d = c.d
    local = ceil_div(c.batch, d.sharding.batch_ranks)
    return f"{local} * {max(curve.nbytes(d.reserved_tokens(c.context)) for curve in d.stage_curves)}"


def missing(c: Case) -> str:
    d, stage = c.d, c.d.fullest_stage(c.batch, c.context)
    terms = ["0", f"{d.stage_cache_bytes(c.batch, c.context)[stage]} - {d.stage_pool_bytes[stage]}"]
    if d.kv_memory is not None:
        terms.append(f"{d.kv_memory} - {min(d.stage_room)}")
    return f"max({', '.join(terms)})".replace("- -", "+ ")


def activation(c: Case) -> str:
    run, model = c.d.engine.profile_of(c.d.gpu), c.d.model
    layers = f"{run.tokens} * (2 * {model.hidden} + {widest_intermediate(model, c.d.tp)}) * 2"
    return f"max({layers}, {c.d.engine.sampler_bytes} * {run.sequences} * {model.vocab})"


def max_batch(c: Case) -> str:
    d = c.d
    reserved = d.reserved_tokens(c.context)
    terms = [
        f"{d.sharding.batch_ranks} * ({max(pool, 0)} // {max(curve.nbytes(reserved), 1)})"
        for pool, curve in dict.fromkeys(zip(d.stage_pool_bytes, d.stage_curves, strict=True))
    ]
    return terms[0].removeprefix("1 * ") if len(terms) == 1 else f"min({', '.join(terms)})"


def max_context(c: Case) -> str:
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


def pool_tokens(c: Case) -> str:
    d, terms = c.d, []
    for pool, curve in dict.fromkeys(zip(d.stage_pool_bytes, d.stage_curves, strict=True)):
        terms.append(f"{d.sharding.batch_ranks} * ({max(pool, 0)} * {c.context} // {max(curve.nbytes(c.context), 1)})")
    block = d.engine.block_tokens
    inside = terms[0] if len(terms) == 1 else f"min({', '.join(terms)})"
    return f"{inside} // {block} * {block}"


def step(c: Case, shares: Shares) -> str:
    stages = decode_operators(c.d, c.batch, c.context)
    parts = min(c.batch, c.d.pp)
    terms = [_stage_step(operators, c.d.gpu, shares) for operators, _ in stages]
    through = _sum([_times(n, f"({t})") if n > 1 else t for t, (_, n) in zip(terms, stages, strict=True)])
    if parts == 1 or len(c.d.stages) == 1:
        return through
    return f"max({through}, {parts} * max({', '.join([*terms, '0'])}))"


def ttft(c: Case, shares: Shares) -> str:
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


def intensity(c: Case) -> str:
    flops = nbytes = 0.0
    for operators, times in decode_operators(c.d, c.batch, c.context):
        flops += times * sum(float(op.flops) for op in operators)
        nbytes += times * sum(float(op.weight_bytes + op.cache_bytes) for op in operators)
    return f"{flops:.9e} / {nbytes:.9e}"
