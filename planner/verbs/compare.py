"""The verb `compare`: one model with several attention variants, on the same GPUs under the same workload."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from planner.axes import parse_names
from planner.checkpoint.load import load_model
from planner.gpu import GpuSpec
from planner.model import ModelSpec
from planner.result import DeploymentFacts, GpuFacts, ModelFacts, Plan, Result, Workload
from planner.verbs.plan import Options, plan

QUALITY = {
    "mqa": "Quality, MQA: Shazeer 2019 (arXiv:1911.02150, section 4) trained 6-layer WMT14 EN-DE models from scratch: "
    "dev BLEU 26.7 and ln(PPL) 1.424 with MHA (8 heads), 26.5 and 1.439 with MQA, at equal parameters.",
    "gqa": "Quality, GQA: Ainslie et al. 2023 (arXiv:2305.13245, table 1) uptrained T5-XXL with 5 % of its pre-training: "
    "average over 7 tasks 47.2 with MHA, 47.1 with GQA-8, 46.6 with MQA; 1.51, 0.28 and 0.24 s per sample on TPU v4.",
}
"""What papers measured of model quality with these variants; a what-if here is about memory and time only."""


@dataclass(frozen=True, kw_only=True)
class Variant(Result):
    """One attention variant of the model.

    Attributes
    ----------
    attention
        As asked, or ``published``.
    variant
        What it is, such as ``GQA-8``.
    factor_vs_mha, factor_vs_published
        How many times smaller the cache of one sequence is than with multi-head attention, and than as published.
    """

    attention: str
    variant: str
    parameters: int
    kv_bytes_per_token: int | float
    kv_bytes_per_sequence: int
    factor_vs_mha: float
    factor_vs_published: float
    fits: bool
    max_batch: int | None
    max_context: int | None
    decode_ideal_step_s: float
    decode_step_s: float
    decode_step_low_s: float
    decode_step_high_s: float
    decode_origin: str
    decode_bound: str


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """Everything `compare` answers; the first of ``variants`` is the model as published."""

    model: ModelFacts
    gpu: GpuFacts
    deployment: DeploymentFacts
    workload: Workload
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]


def compare(
    model: str | Path | ModelSpec, gpu: str | Path | GpuSpec, attention: Iterable[str] | str = ("mha", "gqa", "mqa"), *,
    batch: int | str = 1, context: int | str | None = None, **options: Unpack[Options],
) -> Comparison:  # fmt: skip
    """Compare attention variants of a model.

    Parameters
    ----------
    attention
        Variants: ``mha``, ``gqa`` (8 groups, or the model's own), ``gqa:N``, ``mqa``, ``mla[:RANK]``.
    model, gpu, batch, context, **options
        As in `plan`. The GPUs are those of the published model, also where a variant would need fewer or more.

    Raises
    ------
    KvplanError
        If a name is unknown or a number impossible.

    >>> c = compare("llama3-70b", "4xh100", ["mha", "mqa"])
    >>> [(v.variant, v.factor_vs_mha) for v in c.variants]
    [('GQA-8', 8.0), ('MHA', 1.0), ('MQA', 64.0)]
    """
    spec = load_model(model)
    wanted = parse_names(attention) if isinstance(attention, str) else list(attention)
    names = list(dict.fromkeys(str(a).strip().lower() for a in wanted))
    published = plan(spec, gpu, batch=batch, context=context, **options)
    settled: Options = {
        **options,
        "tp": published.deployment.tensor_parallel,
        "pp": published.deployment.pipeline_parallel,
    }

    def changed(name: str) -> Plan:
        return plan(spec, gpu, batch=batch, context=context, attention=name, **settled)

    plans = {"published": published, **{name: changed(name) for name in names}}
    heads = plans.get("mha") or changed("mha")
    # What holds for one variant only, such as a head that is kept on every rank.
    own = [
        f"{', '.join(p.model.variants)}: {note}"
        for name, p in plans.items()
        for note in p.notes
        if note not in published.notes and "ranks" in note
    ]
    return Comparison(
        model=published.model,
        gpu=published.gpu,
        deployment=published.deployment,
        workload=published.workload,
        variants=tuple(_variant(name, p, heads, published) for name, p in plans.items()),
        notes=(*published.notes, *own, *(note for kind, note in QUALITY.items() if any(kind in n for n in names))),
    )


def _variant(name: str, p: Plan, heads: Plan, published: Plan) -> Variant:
    own = p.memory.kv_bytes_per_sequence
    return Variant(
        attention=name,
        variant=", ".join(dict.fromkeys(v.partition(",")[0] for v in p.model.variants)),
        parameters=p.model.parameters,
        kv_bytes_per_token=p.memory.kv_bytes_per_token,
        kv_bytes_per_sequence=own,
        factor_vs_mha=heads.memory.kv_bytes_per_sequence / own,
        factor_vs_published=published.memory.kv_bytes_per_sequence / own,
        fits=p.memory.fits,
        max_batch=p.memory.max_batch,
        max_context=p.memory.max_context,
        decode_ideal_step_s=p.decode.ideal_step_s,
        decode_step_s=p.decode.step_s,
        decode_step_low_s=p.decode.interval_s[0],
        decode_step_high_s=p.decode.interval_s[1],
        decode_origin=p.decode.origin,
        decode_bound=p.decode.bound,
    )
