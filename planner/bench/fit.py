"""From timings to efficiencies: the law of `calibrate.model` by class and format; see `shares` for what plans use.

Few timings cannot carry many parameters. Sets of parameters are tried from few to many, and the one is kept that predicts
best what it was not fitted to (cross-validation over the shapes of the fit); the error that is reported is over shapes that
were held out from all of this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from planner.bench.device import Facts
from planner.bench.entry import gpu_of
from planner.bench.part import Part, Peaks
from planner.bench.predict import ByKernels
from planner.bench.profile import Measured, Profile
from planner.bench.shares import usage
from planner.calibrate.fit import BOUNDS, FREE, TILES, errors, minimise
from planner.calibrate.model import Kernel, KernelRow, law
from planner.calibrate.shapes import PLAIN, Tile

if TYPE_CHECKING:
    import numpy.typing as npt

    Vector = npt.NDArray[np.float64]

_BASE = ("launch_s", "memory", "compute", "p")
_FEWEST = 4
_FOLDS = 4
_CPU_TILES: dict[str, tuple[Tile, ...]] = {
    "gemm": (PLAIN, (64, 64, 4), (64, 64, 16)), "moe": (PLAIN, (64, 64, 4), (64, 64, 16)),
    "decode-attention": (PLAIN, (512, 1, 2), (512, 1, 4), (512, 1, 8), (512, 1, 16), (512, 1, 32)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Class:
    """Timings of one class and format."""

    kind: str
    form: str
    kernel: str
    parts: tuple[Part, ...]
    seconds: Vector
    peaks: Peaks

    def predict(self, kernel: Any) -> Vector:
        """Time of each call [s]."""
        return np.array([self._one(kernel, part) for part in self.parts])

    def _one(self, k: Any, part: Part) -> float:
        tile = (k.tile_m, k.tile_n, k.tile_min)
        return float(law(k, part.work(tile, False), self.peaks.machine(part.runs_in), False, False))

    def take(self, which: Sequence[int]) -> Class:
        """Some of them."""
        chosen = list(which)
        return Class(
            self.kind, self.form, self.kernel, tuple(self.parts[i] for i in chosen), self.seconds[chosen], self.peaks
        )


def classes(measured: Iterable[Measured], peaks: Peaks, held_out: bool) -> dict[tuple[str, str, str], Class]:
    """Timings by class and format: those of the fit, or those held out."""
    found: dict[tuple[str, str, str], list[Measured]] = {}
    for one in measured:
        if len(one.parts) == 1 and one.held_out is held_out and one.parts[0].group[0] in FREE:
            found.setdefault(one.parts[0].group, []).append(one)
    return {
        key: Class(*key, tuple(m.parts[0] for m in ms), np.array([m.median_s for m in ms]), peaks)
        for key, ms in found.items()
    }


def fit_kernels(measured: Iterable[Measured], peaks: Peaks, cpu: bool) -> tuple[KernelRow, ...]:
    """A row for each class and format that has enough timings, with its error over what was held out."""
    measured = tuple(measured)
    fitted, held = classes(measured, peaks, False), classes(measured, peaks, True)
    rows = []
    for key, group in fitted.items():
        if len(group.seconds) < _FEWEST:
            continue
        kernel = fit_class(group, cpu)
        judged = held.get(key, group)
        off = errors(judged.predict(kernel), judged.seconds)
        rows.append(
            KernelRow(
                **kernel.model_dump(), kind=cast("Any", group.kind), format=group.form, kernel=group.kernel,
                runs_in=group.parts[0].runs_in, points=len(group.seconds),
                held_out=len(held[key].seconds) if key in held else 0,
                mean_error=off.mean, median_error=off.median, interval=off.interval, engine="torch",
            )
        )  # fmt: skip
    return tuple(rows)


def fit_class(group: Class, cpu: bool) -> Kernel:
    """Parameters of one class: of the sets that its number of timings can carry, the one that predicts best."""
    kind = group.kind
    tiles = (_CPU_TILES if cpu else TILES).get(kind, (PLAIN,))
    best: tuple[float, Kernel] | None = None
    for names in _sets(kind, len(group.seconds)):
        kernel, tile = _best_tile(group, names, tiles)
        score = _cross_validated(group, names, tile)
        if best is None or score < 0.97 * best[0]:
            best = (score, kernel)
    assert best is not None
    return best[1]


def _sets(kind: str, count: int) -> list[tuple[str, ...]]:
    """Sets of parameters, from few to as many as so many timings carry."""
    free = FREE.get(kind, FREE["element-wise"])
    base = tuple(n for n in _BASE if n in free)
    pairs = [("launch_s", "memory"), ("launch_s", "compute"), ("launch_s", "memory", "compute")]
    steps = [*pairs, base, (*base, "serial_s"), (*base, "item_s"), (*base, "ramp_bytes", "ramp"), free]
    found = [tuple(dict.fromkeys(n for n in names if n in free)) for names in steps]
    return [names for names in dict.fromkeys(found) if len(names) <= max(2, 2 * count // 3)]


def _best_tile(group: Class, names: Sequence[str], tiles: Sequence[Tile]) -> tuple[Kernel, Tile]:
    fits = [(_fit(group, names, tile), tile) for tile in tiles]
    (values, _), tile = min(fits, key=lambda f: f[0][1])
    return _kernel(values, tile), tile


def _kernel(values: dict[str, float], tile: Tile) -> Kernel:
    fields: dict[str, Any] = {**values, "tile_m": tile[0], "tile_n": tile[1], "tile_min": tile[2]}
    return Kernel(**fields)


def _cross_validated(group: Class, names: Sequence[str], tile: Tile) -> float:
    """Mean error over folds of timings that each fit did not see."""
    count = len(group.seconds)
    order = np.random.default_rng(0).permutation(count)
    off: list[float] = []
    for fold in range(min(_FOLDS, count)):
        out = order[fold::_FOLDS].tolist()
        values, _ = _fit(group.take([i for i in range(count) if i not in out]), names, tile)
        left = group.take(out)
        off += np.abs(np.log(left.predict(_kernel(values, tile)) / left.seconds)).tolist()
    return float(np.mean(off))


def _fit(group: Class, names: Sequence[str], tile: Tile) -> tuple[dict[str, float], float]:
    """Values of the named parameters, and the loss; see `calibrate.fit.minimise`."""
    work = [part.work(tile, False) for part in group.parts]
    machines = [group.peaks.machine(part.runs_in) for part in group.parts]
    table = np.array([_BOUNDS_HERE.get(name, BOUNDS[name]) for name in names])
    logs = np.log(table)
    measured = np.log(group.seconds)

    def residuals(x: Vector) -> Vector:
        values: dict[str, Any] = dict(zip(names, map(math.exp, x), strict=True))
        k = Kernel.model_construct(**values)
        times = [float(law(k, w, m, False, False)) for w, m in zip(work, machines, strict=True)]
        return np.log(np.maximum(times, 1e-300)) - measured

    weight = np.full(len(measured), 1.0 / len(measured))
    x, loss = minimise(residuals, logs[:, 0], logs[:, 1], logs[:, 2], weight, steps=30)
    values = np.clip(np.exp(x), table[:, 1], table[:, 2])
    return dict(zip(names, values.tolist(), strict=True)), loss


_BOUNDS_HERE = {"launch_s": (5e-6, 3e-7, 2e-3), "memory": (0.7, 0.01, 1.0), "compute": (0.5, 0.005, 1.0)}
"""Wider than for GPUs: a CPU's kernels can be further from its peaks."""


def best_peaks(measured: Iterable[Measured], facts: Facts) -> Peaks:
    """What the device did at best: bytes beyond the last-level cache, and arithmetic by format."""
    bandwidth, flops = 0.0, dict[str, float]()
    for one in measured:
        if len(one.parts) > 1:
            continue
        done, form = one.parts[0].work(), one.parts[0].runs_in
        if one.kind in ("memory-read", "memory-copy") and float(done.nbytes) >= 1.5 * facts.cache_bytes:
            bandwidth = max(bandwidth, float(done.nbytes) / one.median_s)
        if float(done.flops) and one.kind == "gemm":
            flops[form] = max(flops.get(form, 0.0), float(done.flops) / one.median_s)
    if not bandwidth:  # nothing but products and attention, whose operands do not fit into the cache together either
        streams = [one for one in measured if one.kind not in ("whole", "all-reduce", "host-copy")]
        bandwidth = max((float(m.parts[0].work().nbytes) / m.median_s for m in streams), default=1e9)
    return Peaks(
        bandwidth=bandwidth, flops=flops or {"bf16": 1e10}, origin="measured", units=facts.units,
        cache_bytes=facts.cache_bytes, estimated=True,
    )  # fmt: skip


def refit(profile: Profile) -> Profile:
    """The profile with everything fitted anew from its raw timings."""
    measured, facts = profile.measured, profile.facts
    peaks = best_peaks(measured, facts) if profile.peaks.origin == "measured" else profile.peaks
    kernels = fit_kernels(measured, peaks, facts.kind == "cpu")
    found = usage(measured, peaks, profile.main)
    if found is not None:
        software = f"kvplan {profile.kvplan}, torch {facts.torch}"
        found = found.model_copy(update={"date": profile.date[:10], "software": software})
    fitted = profile.model_copy(update={"peaks": peaks, "kernels": kernels, "usage": found})
    return fitted.model_copy(update={"device": gpu_of(fitted) if found is not None else None})


def predictor(profile: Profile) -> ByKernels:
    """What the profile predicts times with."""
    return ByKernels(profile.kernels, profile.peaks, "measured")
