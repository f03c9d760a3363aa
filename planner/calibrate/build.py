"""From tables of timings to a file of kernels: fit half of each group, judge on the other half, write TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.calibrate.fit import errors, fit_kernel, fit_link, halves
from planner.calibrate.model import Kernel, KernelFile, KernelRow, Link, LinkRow, Machine, Work, law, sent_bytes
from planner.calibrate.shapes import PLAIN, Tile, work
from planner.calibrate.table import Timings
from planner.errors import InputError
from planner.gpu import GpuSpec
from planner.precision import find_format
from planner.row import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Vector = npt.NDArray[np.float64]
    Index = npt.NDArray[np.intp]

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
_MOST = 6000
"""Timings that one fit uses; more of them add time and nothing else."""
ENOUGH = 24
"""Timings of which half can be fitted to."""
_FEW = 10
"""Fewer long calls than this say nothing of them."""
_OVER = 1.5
"""How far beyond the peak times may seem to be: clocks may be raised, and datasheets round."""
_LONG_S = 50e-6
"""Calls longer than this carry a step's time, and are told apart."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Timings of one group on one device, with what the law needs to know of the device."""

    timings: Timings
    machine: Machine
    link: Any

    def take(self, which: Index) -> Sample:
        """Some of them."""
        t = self.timings
        part = Timings(
            t.device, t.kind, t.form, t.runs_in, t.engine, t.kernel, t.windowed,
            {name: column[which] for name, column in t.shapes.items()}, t.seconds[which],
        )  # fmt: skip
        return Sample(part, Machine(*(_rows(v, which) for v in _fields(self.machine))), _rows(self.link, which))

    def work(self, tile: Tile, whole: bool) -> Work:
        """Work of each call."""
        t = self.timings
        return work(t.kind, t.shapes, find_format(t.form).bytes_per_element, t.runs_in, tile, whole)

    def predict(self, kernel: Kernel) -> Vector:
        """Time of each call as timed: repeated, and launched as it was [s]."""
        return np.asarray(law(kernel, self.work(kernel.tile, kernel.whole), self.machine, warm=True, eager=True))


def _fields(machine: Machine) -> tuple[Any, ...]:
    return machine.bandwidth, machine.peak, machine.sms, machine.cache_bytes


def _rows(value: Any, which: Index) -> Any:
    return value[which] if isinstance(value, np.ndarray) else value


def sample(timings: Timings, gpu: GpuSpec, sms: int, cache_mb: float) -> Sample:
    """Timings with their device.

    Raises
    ------
    InputError
        If the device's peak in the format of the products is unknown.
    """
    t = timings
    form = find_format(t.form)
    runs_in = t.runs_in or (gpu.compute_rate(form.compute) or ("",))[0]
    if runs_in not in gpu.peaks:
        raise InputError(f"{gpu.id} has no known peak in {runs_in or t.form}; say in runs_in what {t.kind} computes in")
    named = Timings(t.device, t.kind, t.form, runs_in, t.engine, t.kernel, t.windowed, t.shapes, t.seconds)
    machine = Machine(gpu.bandwidth_bytes_per_s, gpu.peaks[runs_in], sms, cache_mb * 1e6)
    return Sample(named, machine, gpu.link_bytes_per_s or 0.0)


def pooled(samples: Sequence[Sample], engine: str = "any") -> Sample:
    """Samples of one class and format as one, of several engines or devices."""
    first, sizes = samples[0].timings, [len(s.timings.seconds) for s in samples]
    columns = zip(*((*_fields(s.machine), s.link) for s in samples), strict=True)
    *fields, link = (np.concatenate([np.broadcast_to(v, n) for v, n in zip(c, sizes, strict=True)]) for c in columns)
    shapes = {name: np.concatenate([s.timings.shapes[name] for s in samples]) for name in first.shapes}
    seconds = np.concatenate([s.timings.seconds for s in samples])
    joined = Timings(
        first.device, first.kind, first.form, first.runs_in, engine, "", first.windowed, shapes, seconds
    )  # fmt: skip
    return Sample(joined, Machine(*fields), link)


def calibrate(
    groups: Sequence[Timings], gpu: GpuSpec, sms: int, cache_mb: float, *, date: str, source: Sequence[Source],
    origin: str = "measured",
) -> KernelFile:  # fmt: skip
    """Kernels of one device from its groups of timings (`table.groups`), those too few to fit left out.

    Parameters
    ----------
    sms, cache_mb
        Streaming multiprocessors, and last-level cache [MB].

    Raises
    ------
    InputError
        If no group has timings enough.
    """
    kernels: list[KernelRow] = []
    links: list[LinkRow] = []
    for group in (sample(t, gpu, sms, cache_mb) for t in groups if len(t.seconds) >= ENOUGH):
        if group.timings.kind in COLLECTIVES:
            degrees, counts = np.unique(group.timings.shapes["degree"], return_counts=True)
            links += [link_row(group, int(d)) for d, n in zip(degrees, counts, strict=True) if n >= ENOUGH]
        else:
            kernels.append(kernel_row(group))
    if not kernels and not links:
        raise InputError(
            f"no class and format has {ENOUGH} timings of {gpu.id}; half are fitted to and half judge the fit"
        )
    fields = {
        "device": gpu.id, "architecture": gpu.architecture, "origin": origin, "sms": sms, "cache_mb": cache_mb,
        "date": date, "source": tuple(source), "kernel": tuple(kernels), "link": tuple(links),
    }  # fmt: skip
    return KernelFile.model_validate(fields)


def kernel_row(group: Sample, *, also: Sequence[str] = (), note: str = "", other: Sample | None = None) -> KernelRow:
    """Fit half of a group and judge on the other half, or fit all of it and judge on ``other``.

    Raises
    ------
    InputError
        If most of its times are faster than the device's peak.
    """
    _check_possible(group)
    fitted, held = _split(group, other)
    used = fitted.take(_thin(len(fitted.timings.seconds)))
    t = used.timings
    weight = None
    if t.kind.endswith(("attention", "decode")):  # calls of both sizes matter, whatever their number
        long = t.seconds > _LONG_S
        weight = np.where(long, 1.0 / max(long.sum(), 1), 0.4 / max((~long).sum(), 1))
    skips = (False, True) if t.windowed or t.kind == "moe" else (False,)
    kernel = fit_kernel(used.work, used.machine, t.seconds, t.kind, weight=weight, also=also, skips=skips)
    predicted, measured = held.predict(kernel), held.timings.seconds
    off, long = errors(predicted, measured), measured > _LONG_S
    fields = {
        **kernel.model_dump(), **_judged(off, t, len(fitted.timings.seconds), len(measured), note),
        "kind": t.kind, "format": t.form, "runs_in": t.runs_in, "windowed": t.windowed,
        "long_error": errors(predicted[long], measured[long]).mean if long.sum() >= _FEW else None,
    }  # fmt: skip
    return KernelRow.model_validate(fields)


def _check_possible(group: Sample) -> None:
    """Refuse times most of which no device of this peak could reach, such as those in another unit."""
    t = group.timings
    ideal_s = np.asarray(group.work(PLAIN, False).flops) / np.asarray(group.machine.peak)
    over = float(np.median(ideal_s / t.seconds))
    if over > _OVER:
        raise InputError(
            f"times of {t.kind} in {t.form} are {over:,.3g} times faster than {t.device} can multiply in {t.runs_in}; give "
            "time_s in seconds, and what it computes in as runs_in"
        )


def link_row(group: Sample, degree: int, *, note: str = "") -> LinkRow:
    """Fit half of the messages of a collective at one degree and judge on the other half."""
    chosen = group.take(np.flatnonzero(group.timings.shapes["degree"] == degree))
    fitted, held = _split(chosen, None)
    link = fit_link(*_messages(fitted), fitted.link, fitted.timings.seconds)
    off = errors(_link_time(link, held), held.timings.seconds)
    t = group.timings
    judged = _judged(off, t, len(fitted.timings.seconds), len(held.timings.seconds), note)
    return LinkRow.model_validate({**link.model_dump(), **judged, "kind": t.kind, "degree": degree})


def _messages(s: Sample) -> tuple[Vector, Vector]:
    shapes = s.timings.shapes
    message, degree = shapes["message_bytes"], shapes["degree"]
    return np.asarray(sent_bytes(s.timings.kind, message, degree)), (degree - 1) * message


def _link_time(link: Link, s: Sample) -> Vector:
    shapes = s.timings.shapes
    return np.asarray(link.time(s.timings.kind, shapes["message_bytes"], shapes["degree"], s.link))


def _judged(off: Any, t: Timings, points: int, held: int, note: str) -> dict[str, Any]:
    return {
        "engine": t.engine, "kernel": t.kernel, "points": points, "held_out": held, "mean_error": off.mean,
        "median_error": off.median, "interval": off.interval, "note": note,
    }  # fmt: skip


def _split(group: Sample, other: Sample | None) -> tuple[Sample, Sample]:
    if other is not None:
        return group, other
    fit, hold = halves(len(group.timings.seconds))
    return group.take(np.flatnonzero(fit)), group.take(np.flatnonzero(hold))


def _thin(count: int) -> Index:
    return np.unique(np.linspace(0, count - 1, min(count, _MOST)).astype(int))


def toml(file: KernelFile) -> str:
    """A file of kernels as TOML; numbers to four digits."""
    head = file.model_dump(exclude={"source", "kernel", "link"}, exclude_defaults=True)
    lines = _pairs(head)
    for name, rows in (("source", file.source), ("kernel", file.kernel), ("link", file.link)):
        lines += _tables(name, rows)
    return "\n".join(lines) + "\n"


def _tables(name: str, rows: Iterable[Any]) -> list[str]:
    lines = []
    for row in rows:
        values = row.model_dump(exclude_defaults=True)
        first = ("kind", "format", "runs_in", "degree", "engine", "kernel", "windowed")
        ordered = {k: values[k] for k in (*first, *values) if k in values}
        lines += ["", f"[[{name}]]", *_pairs(ordered)]
    return lines


def _pairs(values: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        shown = f"{value:.4g}"
        return shown if any(c in shown for c in ".en") else shown + ".0"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
