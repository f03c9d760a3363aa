"""From the work of an operator to its time: at full peaks, with what was known before, with what was measured.

This is the one place that knows how kernels are fitted elsewhere (`planner.calibrate`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from planner.bench.device import Facts
from planner.bench.part import Part, Peaks
from planner.calibrate.model import KernelRow, generic_kernels, load_kernels, shipped, soft_max
from planner.catalog import load_gpu
from planner.efficiency import load_architectures
from planner.errors import KvplanError
from planner.gpu import GpuSpec, Link, Memory, Rates
from planner.row import Source
from planner.usage import Usage


class Predictor(Protocol):
    """Whatever turns one call into a time.

    Attributes
    ----------
    origin
        What it rests on, in words.
    """

    @property
    def origin(self) -> str: ...

    def call_s(self, part: Part) -> float | None:
        """Time of one call [s]; ``None`` for a class that it knows nothing of."""


def total_s(parts: Iterable[Part], predictor: Predictor) -> float | None:
    """Time of parts one after another [s]; ``None`` if one of them is unknown."""
    total = 0.0
    for part in parts:
        one = predictor.call_s(part)
        if one is None:
            return None
        total += part.times * one
    return total or None


def ideal_s(parts: Iterable[Part], peaks: Peaks) -> float:
    """The least time of parts one after another [s]."""
    return sum(part.times * float(peaks.ideal_s(part)) for part in parts)


@dataclass(frozen=True, slots=True)
class ByShares:
    """The roofline of plans (`planner.roofline`), with a few shares for all classes."""

    usage: Usage
    peaks: Peaks
    origin: str

    def call_s(self, part: Part) -> float | None:
        if part.kind in ("host-copy", "all-reduce"):
            return None
        done, machine, use = part.work(), self.peaks.machine(part.runs_in), self.usage
        cached = part.kind.endswith("attention") or part.kind.startswith("mla")
        memory = float(done.nbytes) / (float(machine.bandwidth) * (use.cache if cached else use.memory))
        share = use.compute8 if part.runs_in in ("fp8", "int8") else use.compute
        share = share * use.grouped if part.kind == "moe" else share
        return float(soft_max(memory, float(done.flops) / (float(machine.peak) * share), _BEND)) + use.launch_s


_BEND = 4.0
"""How softly `planner.roofline` adds memory and compute time."""


@dataclass(frozen=True, slots=True)
class ByKernels:
    """The law of `calibrate.model`, with a row for each class and format; what has none goes to ``other``."""

    kernels: tuple[KernelRow, ...]
    peaks: Peaks
    origin: str
    other: Predictor | None = None

    def call_s(self, part: Part) -> float | None:
        row = self.find(part)
        if row is None:
            return self.other.call_s(part) if self.other else None
        return float(row.time(part.work(row.tile, row.whole), self.peaks.machine(row.runs_in)))

    def find(self, part: Part) -> KernelRow | None:
        """The row of a part's class and format."""
        kind, form, kernel = part.group
        rows = [k for k in self.kernels if (k.kind, k.format) == (kind, form)]
        return max(rows, key=lambda k: (k.kernel == kernel, k.kernel == "", k.points), default=None)


def earlier(facts: Facts, peaks: Peaks, kernels: tuple[KernelRow, ...] = ()) -> Predictor:
    """The best that was known before this run: an earlier profile's kernels, published ones, generic ones, or shares.

    Parameters
    ----------
    kernels
        Of an earlier profile of the same device.
    """
    spec = load_gpu(facts.catalogue) if facts.catalogue else None
    row = generic_usage(spec.architecture if spec else "")
    shares = ByShares(row, peaks, f"generic, {row.basis}")
    if kernels:
        return ByKernels(kernels, peaks, "measured earlier", shares)
    try:
        if facts.catalogue in shipped():
            return ByKernels(load_kernels(facts.catalogue).kernel, peaks, "published", shares)
        if spec is not None:
            return ByKernels(generic_kernels(spec.architecture).kernel, peaks, f"generic, {spec.architecture}", shares)
    except (KvplanError, OSError, KeyError):
        pass  # this version ships none
    return shares


def generic_usage(architecture: str) -> Usage:
    """What kvplan ships for an architecture, or for one that nobody measured."""
    rows = load_architectures()
    row = rows.get(architecture, rows["default"])
    return Usage(
        memory=row.memory, cache=row.memory, compute=row.compute, compute8=row.compute, launch_s=row.launch_s,
        interval=row.interval, points=row.points, held_out=row.held_out, basis=row.name,
    )  # fmt: skip


def spec_from(
    gpu_id: str, name: str, total_bytes: int, bandwidth: float, flops: dict[str, float], cache_bytes: int,
    vendor: str = "unknown", date: str = "2026-11-24",
) -> GpuSpec:  # fmt: skip
    """A catalogue entry of a device that nobody listed, from what was measured on it.

    Parameters
    ----------
    bandwidth, flops
        Peaks [B/s, FLOP/s].
    """
    source = Source(title="measured by kvplan bench, the best seen", locator=name, date=date)
    peaks = Rates({form: rate / 1e12 for form, rate in flops.items() if rate >= 1e9})
    return GpuSpec(
        id=gpu_id, name=name, vendor=vendor, architecture="measured", year=int(date[:4]),
        memory=Memory(nominal_gb=total_bytes / 1e9, usable_bytes=total_bytes, type="measured",
                      bandwidth_gb_per_s=bandwidth / 1e9, cache_mb=cache_bytes / 1e6 or None),
        peak_tflops=peaks, link=Link(kind="none", devices=1), source=(source,),
    )  # fmt: skip
