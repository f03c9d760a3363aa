"""Formulas with a plan's numbers put in: arithmetic that anyone can paste into a Python prompt.

Each function writes one figure out; `derivations` says what the figure means and where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

from planner.attention import AttentionRow
from planner.budget import LINES, Budget
from planner.cached import UNBOUNDED, Cached
from planner.deployment import Deployment
from planner.evaluate import Stages, decode_operators, prefill_operators
from planner.gpu import GpuSpec
from planner.memory import weight_bytes
from planner.packed import WeightedCurve
from planner.pool import Pool
from planner.precision import find_format
from planner.result import Plan, ServingPlan
from planner.roofline import IDEAL, Shares, happens, operator_seconds
from planner.serving import kernels_of
from planner.setup import Line
from planner.stage import Sharding
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


def weights(d: Deployment, tensors: list[tuple[Tensor, int]], sharding: Sharding) -> str:
    """Parameters times bytes of each, like formats together; a role whose bytes come out uneven is rounded up by itself."""
    by_role: dict[Role, int] = {}
    for t, count in tensors:
        by_role[t.role] = by_role.get(t.role, 0) + count * sharding.held(t)
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


def _tightest(d: Deployment) -> Budget:
    """The budget that leaves the cache the least."""
    return min(d.budgets, key=lambda budget: budget.pool)


def limit(c: Case) -> str:
    budget = c.d.budgets[c.d.fullest_stage(c.batch, c.context)]
    return f"int({_less(str(budget.usable), budget, budget.before, group=True)} * {budget.fraction!r})"


def _less(first: str, budget: Budget, lines: Iterable[Line], group: bool = False) -> str:
    """A number less the lines that are there."""
    terms = [f" - {budget.line(name)}" for name in lines if budget.line(name)]
    return f"({first}{''.join(terms)})" if terms and group else first + "".join(terms)


def pool(c: Case) -> str:
    budget = _tightest(c.d)
    if budget.asked is not None:
        return f"max(0, min({budget.asked}, {_less(str(budget.usable), budget, LINES)}))"
    taken = f"int({_less(str(budget.usable), budget, budget.before, group=True)} * {budget.fraction!r})"
    return f"max(0, {_less(taken, budget, budget.inside)})"


def gib(value: float) -> str:
    return f"int({value!r} * 2**30)"


def weights_per_gpu(c: Case) -> str:
    d = c.d
    stage = max(range(len(d.stages)), key=lambda s: d.stage_weight_bytes[s])
    checkpoint = weights(d, d.stages[stage].all_tensors(), d.sharding)
    besides = d.stage_weight_bytes[stage] - weight_bytes(d.stages[stage].all_tensors(), d.precision.weights, d.sharding)
    return f"{checkpoint} + {besides}".replace("+ -", "- ") if besides else checkpoint


def _amount(pool: Pool, context: int) -> str:
    """Units of one sequence, written out: whole entries of each kind of layer, and what does not grow."""
    terms = [str(pool.curve.fixed)] if pool.curve.fixed or not pool.curve.terms else []
    for term in pool.curve.terms:
        held = str(context) if term.kept >= UNBOUNDED else f"min({context}, {term.kept})"
        if term.every > 1:
            held = f"-(-{held} // {term.every})" if term.ahead else f"({held} // {term.every})"
        terms.append(_times(term.rate, held))
    if isinstance(pool.curve, WeightedCurve):
        return f"-(-({_sum(terms)}) // {pool.curve.per})"
    return _sum(terms)


def _units(d: Deployment) -> list[tuple[Pool, str]]:
    """Every stage's pools with their units, written out; like ones once."""
    found = {}
    for budget, held in zip(d.budgets, d.stage_pools, strict=True):
        for one in held:
            size = f" // {one.unit_bytes}" if one.unit_bytes > 1 else ""
            found[one] = f"{max(0, budget.pool)}{size}" if one.share == 1 else str(one.units)
    return list(found.items())


def cache_per_gpu(c: Case) -> str:
    d = c.d
    local = ceil_div(c.batch, d.sharding.batch_ranks)
    stage = max(range(len(d.stages)), key=lambda s: d.stage_cache_bytes(c.batch, c.context)[s])
    return _sum([f"{local} * ({_amount(p, c.context)}) * {p.unit_bytes}" for p in d.stage_pools[stage]])


def reserved(c: Case) -> str:
    pools = [pool for held in c.d.stage_pools for pool in held]
    each = _sum([f"({_amount(p, c.context)}) * {p.unit_bytes}" for p in pools])
    return _times(c.d.sharding.head_ranks, f"({each})")


def missing(c: Case) -> str:
    d, stage = c.d, c.d.fullest_stage(c.batch, c.context)
    budget, local = d.budgets[stage], ceil_div(c.batch, d.sharding.batch_ranks)
    terms = ["0"]
    for one in d.stage_pools[stage]:
        need = f"{local} * ({_amount(one, c.context)}) * {one.unit_bytes}"
        if one.share != 1:
            need = f"-(-{need} * {one.share.denominator} // {one.share.numerator})"
        terms.append(f"{need} - {budget.pool}")
    if budget.asked is not None:
        terms.append(f"{budget.asked} - {budget.room}")
    return f"max({', '.join(terms)})".replace("- -", "+ ")


def activation(c: Case) -> str:
    peak = c.d.peak
    rest = f"{peak.images} + max({peak.layers} + {peak.experts}, {peak.sampler} + {peak.kept})"
    return f"{peak.workspace} + max({peak.tower}, {rest})"


def max_batch(c: Case) -> str:
    terms = [
        _times(c.d.sharding.batch_ranks, f"({units} // max(1, {_amount(one, c.context)}))")
        for one, units in _units(c.d)
    ]
    return terms[0] if len(terms) == 1 else f"min({', '.join(terms)})"


def max_context(c: Case) -> str:
    d = c.d
    local = ceil_div(c.batch, d.sharding.batch_ranks)
    answers = {}
    for one in (pool for held in d.stage_pools for pool in held):
        share = one.units // local
        answers[one.curve.longest(share)] = (share, one.curve)
    longest = min(answers)
    if longest >= UNBOUNDED:
        return "None"
    share, curve = answers[longest]
    if isinstance(curve, WeightedCurve):
        return str(longest)  # rounded as a whole: found by bisection
    # The line of the curve that the answer lies on: windows shorter than it are full, the others still fill.
    growing = [term for term in curve.terms if term.kept > longest]
    full = sum(term.amount(longest) for term in curve.terms if term.kept <= longest) + curve.fixed
    rate, spans = sum(term.rate for term in growing), {term.every for term in growing}
    inside = f"({share} - {full})" if full else str(share)
    if len(spans) == 1 and (inside_every := spans.pop()):
        whole = f"{inside} // {rate}"
        return f"max(0, {whole if inside_every == 1 else f'{whole} * {inside_every}'})" + (
            f" + {inside_every - 1}" if inside_every > 1 and not growing[0].ahead else ""
        )
    return f"{longest}"  # several spans: found by bisection


def pool_tokens(c: Case) -> str:
    d, terms = c.d, []
    longest = d.setup.max_tokens or c.context
    for one, units in ((one, units) for one, units in _units(d) if one.counted):
        if d.setup.tokens_are == "blocks" and one.unit != "byte":
            held = f"{units} // {one.groups} * {one.block_tokens}"
        else:
            held = f"({units}) * {longest} // ({_amount(one, longest)})"
        terms.append(_times(d.sharding.batch_ranks, f"({held})") if d.sharding.batch_ranks > 1 else held)
    return terms[0] if len(terms) == 1 else f"min({', '.join(terms)})"


def concurrency(c: Case) -> str:
    terms = [f"({units}) / ({_amount(one, c.context)})" for one, units in _units(c.d) if one.curve.amount(c.context)]
    least = terms[0] if len(terms) == 1 else f"min({', '.join(terms)})"
    return _times(c.d.sharding.batch_ranks, least)


def step(c: Case, shares: Shares) -> str:
    stages = decode_operators(c.d, c.batch, c.context)
    parts = min(c.batch, c.d.pp)
    terms = [_stage_step(operators, c.d.gpu, shares) for operators, _ in stages]
    through = _sum([_times(n, f"({t})") if n > 1 else t for t, (_, n) in zip(terms, stages, strict=True)])
    if parts == 1 or len(c.d.stages) == 1:
        return through
    return f"max({through}, {parts} * max({', '.join([*terms, '0'])}))"


def ttft(c: Case) -> str:
    if c.p.prefill.ttft_s is None:
        return "None"
    one = replace(c, batch=1, context=_prompt_tokens(c))
    first = _first(c, prefill_operators(c.d, one.context))
    return f"{c.p.prefill.prompt_s!r} + {first} + {step(one, c.d.efficiency.shares)}"


def _prompt_tokens(c: Case) -> int:
    return c.p.serving.input_tokens if c.p.serving else c.context


def _first(c: Case, prompt: Stages) -> str:
    """What passes until a first token is out, beside the prompt and a step."""
    return f"{c.d.setup.first_s:g} + {c.d.efficiency.first_kernel_s:g} * {kernels_of(prompt):g}"


def _served(c: Case) -> ServingPlan:
    if c.p.serving is None:
        raise ValueError("the plan has no serving figures")
    return c.p.serving


def tpot(c: Case) -> str:
    s = _served(c)
    return f"({s.step_s!r} + {s.others!r} / {s.output_tokens} * {s.added_s!r}) / {s.tokens_per_step:g}"


def loaded_ttft(c: Case) -> str:
    s = _served(c)
    first = f"{s.step_s!r} + {s.first_s!r} + (1 + {_times_over(s.ahead, c.d.pp)}) * {s.prompt_s!r}"
    waits = f" + {s.waits!r} * ({s.output_tokens} * {s.tpot_s!r} + {first})" if s.waits else ""
    return first + waits + (f" + {s.queue_s!r}" if s.queue_s else "")


def _times_over(value: float, by: int) -> str:
    return f"{value!r} / {by}" if by > 1 else repr(value)


def requests(c: Case) -> str:
    s = _served(c)
    if s.asked_requests_per_s is not None:
        return f"min({s.asked_requests_per_s!r}, {s.highest_requests_per_s!r})"
    return f"{s.concurrency} / ({s.ttft_s!r} + ({s.output_tokens} - 1) * {s.tpot_s!r})"


def prompt(c: Case, shares: Shares) -> str:
    if c.p.prefill.prompt_s is None:
        return "None"
    stages = prefill_operators(c.d, _prompt_tokens(c))
    return _sum([_times(n, f"({_stage_step(ops, c.d.gpu, shares)})") for ops, n in stages])


def _stage_step(operators: list[Operator], gpu: GpuSpec, shares: Shares) -> str:
    """One stage as a sum over operators, in the way that `roofline.step_time` sums them."""
    local, sent, activations, launches = [], 0.0, 0.0, 0.0
    for op in operators:
        read_s, held_s, compute_s = operator_seconds(op, gpu, shares)
        moving, computing = _moving(op, gpu, shares), _computing(op, gpu, shares)
        if shares.soft and moving and computing:
            local.append(f"(({moving})**4 + ({computing})**4)**0.25")
        elif moving or computing:
            local.append(moving if read_s + held_s >= compute_s else computing)
        if happens(op, gpu):
            activations += float(op.activation_bytes)
        sent += float(op.sent_bytes)
        launches += op.launches
    link = f"{sent:.10g} / {_share(shares.link, gpu.link_bytes_per_s)}" if sent and gpu.link_bytes_per_s else "0"
    if shares == IDEAL:
        return f"max({_sum(local)}, {link})" if link != "0" else _sum(local)
    if shares.activations < inf:
        local.append(f"{activations:.10g} / {_share(shares.activations, gpu.bandwidth_bytes_per_s)}")
    return _sum([*local, *([link] if link != "0" else []), f"{launches:g} * {shares.launch_s:g}"])


def _moving(op: Operator, gpu: GpuSpec, shares: Shares) -> str:
    """Time to move an operator's bytes; empty if it has none."""
    found = [
        f"{float(nbytes):.10g} / {_share(share, gpu.bandwidth_bytes_per_s)}"
        for nbytes, share in ((op.weight_bytes, shares.streams(op)), (op.cache_bytes, shares.cache))
        if float(nbytes)
    ]
    return " + ".join(found)


def _computing(op: Operator, gpu: GpuSpec, shares: Shares) -> str:
    """Time of an operator's arithmetic; empty if it has none or no peak is known."""
    rate = gpu.compute_rate(op.compute)
    if rate is None or not float(op.flops):
        return ""
    return f"{float(op.flops):.10g} / {_share(shares.computes(op, rate[0]), rate[1])}"


def _share(share: float, peak: float | None) -> str:
    return f"{peak:.10g}" if share == 1 else f"({share:.9g} * {peak:.10g})"


def intensity(c: Case) -> str:
    flops = nbytes = 0.0
    for operators, times in decode_operators(c.d, c.batch, c.context):
        flops += times * sum(float(op.flops) for op in operators)
        nbytes += times * sum(float(op.weight_bytes + op.cache_bytes) for op in operators)
    return f"{flops:.9e} / {nbytes:.9e}"
