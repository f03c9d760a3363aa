"""From timings to the few shares of a device's peaks that plans use, with an interval that plans themselves were held to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.bench.layers import Shape
from planner.bench.part import Part, Peaks
from planner.bench.predict import spec_from
from planner.bench.profile import Measured
from planner.efficiency import shares_of
from planner.precision import find_kv
from planner.roofline import Shares, step_time
from planner.stage import Sharding, stages_of
from planner.usage import Usage
from planner.work import Operator, Precision, decode_work

if TYPE_CHECKING:
    from planner.gpu import GpuSpec


def usage(measured: Sequence[Measured], peaks: Peaks, main: str) -> Usage | None:
    """The few numbers that plans use: ``None`` without products.

    Caches from decode attention, compute from the largest products, launch from the emptiest call, and memory such that a
    plan's decoder layers take what they took. The decode loop was not fitted; what plans of it are off by is the interval.
    """
    products = [(m, p) for m, p in _plain(measured, "gemm") if p.form == main]
    if not products:
        return None
    streams = [(m, p) for m, p in products if p.shape["m"] <= 2] or products
    reads = [(m, p) for m, p in _plain(measured, "decode-attention") if p.shape["kv_heads"] > 1]
    memory, compute = _streamed(streams, peaks), _computed(products, peaks)
    eighths = [(m, p) for m, p in _plain(measured, "gemm") if p.runs_in in ("fp8", "int8")]
    narrow = [(m, p) for m, p in eighths if p.runs_in == "fp8"] or eighths
    experts = _plain(measured, "moe")
    row = Usage(
        memory=memory, cache=_streamed(_longest(reads), peaks) if reads else memory, compute=compute,
        compute8=_computed(narrow, peaks) if narrow else compute,
        grouped=min(1.0, _computed(experts, peaks) / compute) if experts else 1.0,
        launch_s=min((m.median_s for m, _ in _plain(measured, "launch")), default=0.0), interval=(0.7, 1.5),
        points=len(measured), held_out=0, basis="shares of peak measured on this machine by kvplan bench",
    )  # fmt: skip
    gpu = spec_from("bench", "bench", 2**40, peaks.bandwidth, peaks.flops, peaks.cache_bytes)
    row = _through_layers(measured, gpu, row)
    captured = "decode loop, graph"  # where there is one: an eager loop is the host's time
    ratios = _ratios(measured, gpu, row, captured) or _ratios(measured, gpu, row, "decode loop")
    if not ratios:
        return row
    return row.model_copy(update={"interval": interval(ratios), "held_out": len(ratios)})


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Where the next of these ratios lies with 80 %, were their logarithms normal; 1 is in it.

    Student's t with as many degrees of freedom as there are ratios less one (Hahn and Meeker 1991, Statistical Intervals,
    section 4.8). One ratio says nothing of how far others lie apart.

    >>> low, high = interval([1.0, 1.1, 1.0, 1.1])
    >>> round(low, 2), round(high, 2)
    (0.95, 1.16)
    """
    logs = np.log(ratios)
    if len(logs) < 2:
        return min(0.7, float(ratios[0])), max(1.5, float(ratios[0]))
    t = _T80[min(len(logs) - 1, len(_T80)) - 1]
    reach = t * float(np.std(logs, ddof=1)) * math.sqrt(1.0 + 1.0 / len(logs))
    middle = float(np.mean(logs))
    return min(1.0, math.exp(max(-2.0, middle - reach))), max(1.0, math.exp(min(2.0, middle + reach)))


_T80 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)
"""Student's t that 80 % lie within, by degrees of freedom (Student 1908, Biometrika 6(1))."""


def _plain(measured: Iterable[Measured], kind: str) -> list[tuple[Measured, Part]]:
    return [(m, m.parts[0]) for m in measured if m.kind == kind]


def _streamed(found: Sequence[tuple[Measured, Part]], peaks: Peaks) -> float:
    """Share of bandwidth, in the median."""
    return _share([float(p.work().nbytes) / peaks.bandwidth / m.median_s for m, p in found])


def _longest(found: Sequence[tuple[Measured, Part]]) -> list[tuple[Measured, Part]]:
    """The half that takes longest."""
    return sorted(found, key=lambda pair: -pair[0].median_s)[: max(1, len(found) // 2)]


def _computed(found: Sequence[tuple[Measured, Part]], peaks: Peaks) -> float:
    """Share of the peak that the largest calls reach, in the median of the four with the most arithmetic."""
    largest = sorted(found, key=lambda pair: -float(pair[1].work().flops))[:4]
    return _share([float(p.work().flops) / float(peaks.machine(p.runs_in).peak) / m.median_s for m, p in largest])


def _share(found: Sequence[float]) -> float:
    return float(np.clip(np.median(found), 1e-3, 1.0))


# -- layers and loops as plans see them --------------------------------------------------------------------------------


def planned_s(parts: Sequence[Part], gpu: GpuSpec, row: Usage) -> float:
    """What a plan without an engine expects of a decode step, or of one layer of it, that is made of these parts [s]."""
    shares = shares_of(row)
    attention = next(p for p in parts if p.kind == "decode-attention")
    shape = Shape.of(parts)
    if shape.vocab:
        return _step_s(_operators(shape, attention), gpu, shares)
    two, one = (_operators(replace(shape, layers=n, vocab=256), attention) for n in (2, 1))
    return _step_s(two, gpu, shares) - _step_s(one, gpu, shares)


def _operators(shape: Shape, attention: Part) -> list[Operator]:
    spec, form = shape.spec(), attention.form
    precision = Precision(spec.weight_formats(form), find_kv(form))
    batch, context = attention.shape["batch"], attention.shape["context"]
    return decode_work(spec, stages_of(spec, 1)[0], precision, Sharding(), batch, context)


def _step_s(operators: Iterable[Operator], gpu: GpuSpec, shares: Shares) -> float:
    return float(step_time(operators, gpu, shares).step_s)


def _ratios(measured: Sequence[Measured], gpu: GpuSpec, row: Usage, of: str) -> list[float]:
    """Measured over planned times of layers, or of loops, at these shares."""
    return [one.median_s / planned_s(one.parts, gpu, row) for one in measured if one.operator == of]


def _through_layers(measured: Sequence[Measured], gpu: GpuSpec, row: Usage) -> Usage:
    """The same with the memory share at which decoder layers take what they took, in the median."""
    low, high = 1e-3, 1.0
    if not _ratios(measured, gpu, row, "decoder layer"):
        return row
    for _ in range(30):
        middle = math.sqrt(low * high)
        tried = row.model_copy(update={"memory": middle})
        if float(np.median(_ratios(measured, gpu, tried, "decoder layer"))) > 1.0:
            high = middle
        else:
            low = middle
    return row.model_copy(update={"memory": math.sqrt(low * high)})
