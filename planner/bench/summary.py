"""What a run found, in words and figures: errors by class, attention ratios, how well each resource is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planner.bench.attention_operators import variant_of
from planner.bench.fit import predictor
from planner.bench.part import Part, Peaks
from planner.bench.predict import ideal_s, total_s
from planner.bench.profile import Measured, Profile
from planner.units import format_bytes


@dataclass(frozen=True, slots=True)
class Compared:
    """One operator, predicted and measured [s].

    Attributes
    ----------
    expected_s
        From the profile's own fit; ``None`` where its class was not fitted.
    """

    measured: Measured
    ideal_s: float
    expected_s: float | None

    @property
    def error(self) -> float | None:
        """Of the profile's own prediction."""
        return None if self.expected_s is None else self.expected_s / self.measured.median_s - 1.0

    @property
    def earlier_error(self) -> float | None:
        """Of the prediction before this run."""
        before = self.measured.earlier_s
        return None if before is None else before / self.measured.median_s - 1.0


def compared(profile: Profile) -> list[Compared]:
    """Every operator of a profile, with what the profile predicts for it."""
    ours = predictor(profile)
    return [Compared(m, ideal_s(m.parts, profile.peaks), total_s(m.parts, ours)) for m in profile.measured]


@dataclass(frozen=True, slots=True)
class Errors:
    """Absolute errors over some operators, as shares."""

    what: str
    count: int
    median: float
    mean: float
    earlier_median: float | None


def error_rows(profile: Profile) -> list[Errors]:
    """Errors by class over shapes that were not fitted: decode attention, products, … the layer and the loop last."""
    groups: dict[str, list[Compared]] = {}
    for one in compared(profile):
        if one.measured.held_out and one.expected_s is not None:
            groups.setdefault(_class(one.measured), []).append(one)
    rows = [_errors(name, found) for name, found in groups.items()]
    single = [
        c for name, found in groups.items() if not name.startswith(("decoder layer", "decode loop")) for c in found
    ]
    return [_errors("all operators", single), *rows] if single else rows


def _class(m: Measured) -> str:
    if len(m.parts) > 1:
        return m.operator
    part = m.parts[0]
    return f"{part.kernel or part.kind} {part.form}".replace("-", " ")


def _errors(what: str, found: list[Compared]) -> Errors:
    ours = np.abs([c.error for c in found if c.error is not None])
    before = np.abs([c.earlier_error for c in found if c.earlier_error is not None])
    return Errors(
        what, len(found), float(np.median(ours)), float(ours.mean()), float(np.median(before)) if before.size else None
    )


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer one variant's attention takes than another's, at one batch and context.

    Attributes
    ----------
    by_bytes
        The ratio of their caches.
    beyond_cache
        Whether both caches exceed the last-level cache.
    """

    batch: int
    context: int
    more: str
    fewer: str
    measured: float
    predicted: float | None
    by_bytes: float
    beyond_cache: bool


def ratios(profile: Profile) -> list[Ratio]:
    """MHA over GQA and GQA over MQA wherever both were measured."""
    ours, found = predictor(profile), []
    points: dict[tuple[int, int], dict[int, Measured]] = {}
    for m in profile.measured:
        if m.kind == "decode-attention":
            s = m.parts[0].shape
            points.setdefault((int(s["batch"]), int(s["context"])), {})[int(s["kv_heads"])] = m
    for (batch, context), by_heads in sorted(points.items()):
        counts = sorted(by_heads, reverse=True)
        for more, fewer in pairwise(counts):
            a, b = by_heads[more], by_heads[fewer]
            heads = int(a.parts[0].shape["heads"])
            first, second = total_s(a.parts, ours), total_s(b.parts, ours)
            found.append(
                Ratio(
                    batch, context, variant_of(heads, more), variant_of(heads, fewer), a.median_s / b.median_s,
                    first / second if first and second else None, more / fewer,
                    cache_bytes(b.parts[0]) > profile.facts.cache_bytes,
                )
            )  # fmt: skip
    return found


def cache_bytes(part: Part) -> float:
    """Keys and values that decode attention reads [B]."""
    s = part.shape
    return 2 * s["batch"] * s["context"] * s["kv_heads"] * s["head_dim"] * part.element_bytes


def sentences(profile: Profile) -> Iterator[str]:
    """What the profile means, one sentence at a time."""
    peaks, main = profile.peaks, profile.main
    most = "the catalogue's" if peaks.origin == "catalogue" else "the best seen of"
    yield f"Peaks are {most} {_rate(peaks.bandwidth)} and {_flops(peaks, main)} in {main}."
    uses = (
        ("weights stream", "gemm", lambda p: p.shape["m"] <= 2), ("attention reads its cache", "decode-attention", _long),
        ("latent attention reads its cache", "mla-decode", _long),
    )  # fmt: skip
    for words, kind, counts in uses:
        shares = [
            float(m.parts[0].work().nbytes) / m.median_s / peaks.bandwidth
            for m in profile.measured
            if m.kind == kind and m.parts[0].form == main and counts(m.parts[0])
        ]
        if shares:
            yield f"{words.capitalize()} at {float(np.median(shares)):.0%} of {_rate(peaks.bandwidth)}."
    products = [m for m in profile.measured if m.kind == "gemm" and m.parts[0].form == main]
    if products and peaks.origin == "catalogue":
        best = max(float(m.parts[0].work().flops) / m.median_s for m in products)
        yield f"Large products reach {best / float(peaks.machine(main).peak):.0%} of {_flops(peaks, main)}."
    ways = {m.kind: m.backend for m in profile.measured if m.kind in _ATTENTION and m.backend}
    if ways:
        yield "Attention ran as: " + "; ".join(f"{_ATTENTION[kind]}, {way}" for kind, way in ways.items()) + "."
    for m in profile.measured:
        if m.kind == "launch":
            yield f"A call takes at least {m.median_s * 1e6:.2g} µs ({m.mode})."
    for row in error_rows(profile):
        if row.what in ("all operators", "decode loop", "decode loop, graph", "decoder layer"):
            before = "" if row.earlier_median is None else f"; before this run {row.earlier_median:.0%}"
            yield f"Not fitted, {row.what}: median error {row.median:.1%}, mean {row.mean:.1%} of {row.count}{before}."
    exact = [c for c in profile.memory if c.tensor_bytes == c.predicted_bytes]
    if profile.memory:
        yield f"Memory: {len(exact)} of {len(profile.memory)} caches take exactly the bytes predicted."
    for b in profile.batches:
        yield (
            f"Largest batch of {b.variant} at {b.context:,} tokens in {format_bytes(b.budget_bytes)}: predicted "
            f"{b.predicted:,}, real {b.measured:,} ({b.refused_by} refused the next)."
        )


_ATTENTION = {"decode-attention": "decode", "prefill-attention": "prefill", "mla-decode": "latent decode"}


def _long(part: Part) -> bool:
    return part.shape["batch"] * part.shape["context"] >= 4096


def _rate(bandwidth: float) -> str:
    return f"{bandwidth / 1e12:.2f} TB/s" if bandwidth >= 1e12 else f"{bandwidth / 1e9:.1f} GB/s"


def _flops(peaks: Peaks, form: str) -> str:
    rate = float(peaks.machine(form).peak)
    return f"{rate / 1e12:,.4g} TFLOP/s"
