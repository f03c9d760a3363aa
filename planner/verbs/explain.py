"""The verb `explain`: any figure as formula, substituted numbers, result and sources.

The substituted line is arithmetic that anyone can paste into a Python prompt; a test evaluates it and holds it against
the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from planner.checkpoint.load import load_model
from planner.derivations import QUANTITIES
from planner.errors import unknown_name
from planner.gpu import GpuSpec
from planner.model import ModelSpec
from planner.result import Result
from planner.settle import deploy
from planner.substitutions import Case
from planner.units import format_bytes, format_count, format_seconds
from planner.verbs.plan import Options, check_batch, plan
from planner.verbs.traffic import read_ask, set_up_for


@dataclass(frozen=True, kw_only=True)
class Explanation(Result):
    """How one figure comes about.

    Attributes
    ----------
    formula
        In symbols.
    substituted
        The same with this model's numbers: an arithmetic expression that evaluates to ``result``.
    result, shown
        The figure in base units, and as people read it.
    """

    quantity: str
    meaning: str
    formula: str
    substituted: str
    result: float | int | None
    unit: str
    shown: str
    sources: tuple[str, ...]


def quantities() -> tuple[str, ...]:
    """Names of all figures that `explain` explains."""
    return tuple(QUANTITIES)


def explain(
    model: str | Path | ModelSpec, gpu: str | Path | GpuSpec, quantity: str, *, batch: int | str | None = None,
    context: int | str | None = None, attention: str | None = None, input: int | str | None = None,
    output: int | str | None = None, concurrency: int | str | None = None, rate: float | str | None = None,
    prefix_hits: float | str | None = None, acceptance: float | str | None = None, rounds: float | str | None = None,
    **options: Unpack[Options],
) -> Explanation:  # fmt: skip
    """Explain one figure of a plan.

    Parameters
    ----------
    quantity
        One of `quantities`, such as ``kv_bytes_per_token`` or ``decode.step_s`` (the part before the point may be left out).
    model, gpu, batch, context, attention, input, output, concurrency, rate, prefix_hits, acceptance, rounds, **options
        As in `plan`.

    Raises
    ------
    KvplanError
        If the quantity or another name is unknown.

    >>> e = explain("llama3-70b", "h100", "kv_bytes_per_token")
    >>> e.substituted, e.result
    ('80 * 8 * (128 + 128) * 2', 327680)
    """
    section, _, name = str(quantity).strip().lower().rpartition(".")
    if name not in QUANTITIES or section not in ("", "model", "gpu", "memory", "decode", "prefill", "serving"):
        raise unknown_name("quantity", str(quantity), QUANTITIES, "'kvplan explain --help' lists them all")
    name = "loaded_ttft_s" if (section, name) == ("serving", "ttft_s") else name
    spec = load_model(model)
    spec = spec.with_attention(attention) if attention is not None else spec
    entry = QUANTITIES[name]
    if entry.of_requests and concurrency is rate is None:
        concurrency = 1 if batch is None else batch
    asked: dict[str, Any] = {
        "input": input, "output": output, "concurrency": concurrency, "rate": rate, "prefix_hits": prefix_hits,
        "acceptance": acceptance, "rounds": rounds,
    }  # fmt: skip
    answer = plan(spec, gpu, batch=batch, context=context, **asked, **options)
    sequences, tokens = answer.workload.batch, answer.workload.context
    d = deploy(spec, gpu, context=tokens, batch=check_batch(batch or 1), **options)
    ask = read_ask(None if context is None else tokens, encoder=bool(spec.encoder), limit=spec.context_limit, **asked)
    case = Case(set_up_for(d, ask) if ask else d, answer, sequences, tokens)
    result = entry.result(answer)
    return Explanation(
        quantity=name, meaning=entry.meaning, formula=entry.formula, substituted=entry.substitute(case), result=result,
        unit=entry.unit, shown=_show(result, entry.unit), sources=entry.sources(case),
    )  # fmt: skip


def _show(value: float | int | None, unit: str) -> str:
    if value is None:
        return "unknown" if unit == "s" else "no limit"
    shown = {"B": format_bytes, "s": format_seconds, "parameters": format_count}.get(unit)
    return shown(value) if shown else f"{value:,.6g} {unit}" if isinstance(value, float) else f"{value:,} {unit}"
