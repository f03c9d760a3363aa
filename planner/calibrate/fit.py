"""Fit the law's parameters to timings: robust least squares on the logarithm of time.

Levenberg-Marquardt on the logarithms of the parameters within bounds, reweighted so that outliers count linearly
(pseudo-Huber loss: Charbonnier et al. 1997, IEEE TIP 6(2)). No random numbers: the same timings give the same parameters.
Tiles, which are whole numbers, are tried one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.calibrate.model import Kernel, Link, Machine, Work, law, link_law
from planner.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from planner.calibrate.shapes import Tile

    Vector = npt.NDArray[np.float64]

BOUNDS: dict[str, tuple[float, float, float]] = {
    "launch_s": (4e-6, 3e-7, 2e-4), "memory": (0.8, 0.05, 1.0), "compute": (0.7, 0.02, 1.0), "p": (2.0, 1.0, 12.0),
    "ramp_bytes": (1e6, 1e3, 1e8), "ramp": (0.3, 0.01, 1.0), "wave": (0.3, 0.01, 1.0), "serial_s": (1e-10, 1e-14, 1e-7),
    "item_s": (1e-9, 1e-13, 1e-5), "side": (0.6, 0.02, 16.0), "cached": (0.3, 1e-3, 1.0), "cache_reach": (0.5, 0.05, 1.5),
    "host_s": (3e-5, 1e-6, 1e-3), "latency_s": (1e-5, 1e-6, 1e-3), "share": (0.6, 0.01, 1.0),
    "first_s": (5e-6, 1e-6, 1e-4), "first": (0.3, 0.001, 1.0),
}  # fmt: skip
"""Start and bounds of every parameter that is fitted."""

FREE: dict[str, tuple[str, ...]] = {
    "gemm": ("launch_s", "memory", "compute", "p", "ramp_bytes", "ramp", "wave", "serial_s", "side"),
    "decode-attention": ("launch_s", "memory", "compute", "p", "ramp_bytes", "ramp", "serial_s", "item_s"),
    "prefill-attention": ("launch_s", "memory", "compute", "p", "wave", "serial_s", "item_s", "side"),
    "mla-decode": ("launch_s", "memory", "compute", "p", "ramp_bytes", "ramp", "serial_s", "item_s"),
    "mla-prefill": ("launch_s", "memory", "compute", "p", "wave", "serial_s", "item_s"),
    "moe": ("launch_s", "memory", "compute", "p", "ramp_bytes", "ramp", "wave", "item_s", "side"),
    "state-decode": ("launch_s", "memory", "ramp_bytes", "ramp", "item_s"),
    "state-prefill": ("launch_s", "memory", "compute", "p", "wave", "serial_s"),
    "conv-decode": ("launch_s", "memory", "ramp_bytes", "ramp", "item_s"),
    "conv-prefill": ("launch_s", "memory", "ramp_bytes", "ramp", "item_s"),
    "element-wise": ("launch_s", "memory", "ramp_bytes", "ramp", "item_s"),
    "link": ("latency_s", "share", "ramp_bytes", "ramp", "first_s", "first"),
}
"""Parameters that each class needs; the others stay as `Kernel` has them."""

_LEAST = (16, 64)
_MOE_TILES = tuple(
    (m, n, least) for m, n in ((64, 64), (64, 128), (128, 64), (128, 128), (256, 128)) for least in _LEAST
)
_GEMM_TILES = _MOE_TILES + tuple((m, n, least) for m, n in ((32, 64), (64, 32)) for least in _LEAST if least <= m)
TILES: dict[str, tuple[Tile, ...]] = {
    "gemm": _GEMM_TILES,
    "moe": _MOE_TILES,
    "decode-attention": (
        *((512, n, least) for n in (1, 64, 128) for least in (1, 16, 64)),
        *((1, n, least) for n in (1, 128) for least in (1, 64)),
    ),
    "mla-decode": tuple((512, n, least) for n in (1, 64, 128) for least in (1, 16, 64, 128)),
    "prefill-attention": ((64, 64, 16), (128, 64, 16), (128, 128, 16), (256, 128, 16)),
    "mla-prefill": ((64, 64, 16), (128, 64, 16), (128, 128, 16), (256, 128, 16)),
    "state-prefill": ((1, 1, 1), (1, 64, 1), (1, 256, 1)),
}
"""Tiles that are tried."""

_ABSENT = ("ramp", "wave", "serial_s", "item_s", "cached", "host_s")
"""Terms that a fit leaves out by going to their lower bound."""

_LOSS_BEND = 0.1
"""Errors beyond this share count linearly."""
_FEWEST = 12
"""Timings without which nothing is fitted."""


def minimise(
    logarithm: Callable[[Vector], Vector], start: Vector, low: Vector, high: Vector, weight: Vector, steps: int = 60
) -> tuple[Vector, float]:
    """Parameters that minimise the weighted pseudo-Huber loss of residuals, and the loss.

    Parameters
    ----------
    logarithm
        Residuals of log time for logarithms of parameters.
    start, low, high
        Logarithms of the first guess and of the bounds, which the answer keeps.
    weight
        Of each residual.
    """
    x = np.clip(start, low, high)
    residual = logarithm(x)
    loss, damping = _loss(residual, weight), 1e-2
    for _ in range(steps):
        slope = _slopes(logarithm, x, residual, high)
        bent = weight / np.sqrt(1.0 + (residual / _LOSS_BEND) ** 2)
        normal, gradient = slope.T @ (slope * bent[:, None]), slope.T @ (bent * residual)
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        for _ in range(10):
            trial = np.clip(x + _step(normal, gradient, free, damping), low, high)
            after = logarithm(trial)
            gained = loss - _loss(after, weight)
            if gained > 0:
                break
            damping *= 4.0
        else:
            break
        x, residual, loss, damping = trial, after, loss - gained, max(damping / 5.0, 1e-8)
        if gained < 1e-8 * loss:
            break
    return x, loss


def _loss(residual: Vector, weight: Vector) -> float:
    return float(np.sum(weight * _LOSS_BEND**2 * (np.sqrt(1.0 + (residual / _LOSS_BEND) ** 2) - 1.0)))


def _slopes(logarithm: Callable[[Vector], Vector], x: Vector, residual: Vector, high: Vector) -> Vector:
    """Forward differences, backward at the upper bound."""
    columns = []
    for j in range(len(x)):
        step = 1e-4 if x[j] + 1e-4 <= high[j] else -1e-4
        moved = x.copy()
        moved[j] += step
        columns.append((logarithm(moved) - residual) / step)
    return np.stack(columns, axis=1)


def _step(normal: Vector, gradient: Vector, free: npt.NDArray[np.bool_], damping: float) -> Vector:
    """A damped Gauss-Newton step of the parameters that no bound holds, each at most a factor of e."""
    step = np.zeros_like(gradient)
    if free.any():
        part = normal[np.ix_(free, free)]
        scale = np.diag(part) + 1e-9 * (np.trace(part) + 1e-300)
        step[free] = -np.linalg.solve(part + damping * np.diag(scale), gradient[free])
    return np.clip(step, -1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors over timings that were not fitted to, as shares, and the factors that 80 % of them lie between."""

    mean: float
    median: float
    interval: tuple[float, float]


def errors(predicted: Vector, measured: Vector) -> Errors:
    """How far predictions are off.

    >>> errors(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.5, 2.5])).mean.__round__(3)
    0.133
    """
    off = np.abs(predicted / measured - 1.0)
    low, high = np.quantile(measured / predicted, (0.1, 0.9))
    return Errors(float(off.mean()), float(np.median(off)), (float(low), float(high)))


def fit_kernel(
    build: Callable[[Tile, bool], Work], machine: Machine, seconds: Vector, kind: str, *,
    weight: Vector | None = None, also: Sequence[str] = (), start: Mapping[str, float] | None = None,
    skips: Sequence[bool] = (False,),
) -> Kernel:  # fmt: skip
    """Parameters of one kernel from its timings.

    Parameters
    ----------
    build
        Work of every timing, for a tile and `Kernel.whole`.
    also
        Parameters beyond those of the class: ``cached`` and ``cache_reach`` where timings were served from the cache,
        ``host_s`` where they were launched eagerly.
    start
        First guesses other than those of `BOUNDS`.
    skips
        Values of `Kernel.whole` that are tried.

    Raises
    ------
    InputError
        With fewer than a dozen timings, or times that are not positive.
    """
    _check(seconds)
    names = (*FREE[kind], *also)
    best: tuple[float, Kernel] | None = None
    for tile, whole in product(TILES.get(kind, ((1, 1, 1),)), skips):
        work = build(tile, whole)

        def predict(values: dict[str, float], work: Work = work) -> Vector:
            return np.asarray(law(Kernel.model_construct(**values), work, machine, warm=True, eager=True))  # type: ignore[arg-type]

        values, loss = _fit(predict, names, seconds, weight, start or {})
        if best is None or loss < best[0]:
            tiles = {"tile_m": tile[0], "tile_n": tile[1], "tile_min": tile[2]}
            best = (loss, Kernel.model_validate({**values, **tiles, "whole": whole}))
    assert best is not None
    return best[1]


def fit_link(sent: Vector, broadcast: Vector, bandwidth: Any, seconds: Vector) -> Link:
    """Parameters of one collective at one degree: bytes sent by the ring, and in one step [B]; link bandwidth [B/s]."""
    _check(seconds)

    def predict(values: dict[str, float]) -> Vector:
        return np.asarray(link_law(Link.model_construct(**values), sent, broadcast, bandwidth))  # type: ignore[arg-type]

    small = float(np.min(seconds))
    values, _ = _fit(predict, FREE["link"], seconds, None, {"first_s": small, "latency_s": 2.0 * small})
    return Link(**values)


def _fit(
    predict: Callable[[dict[str, float]], Vector], names: Sequence[str], seconds: Vector, weight: Vector | None,
    start: Mapping[str, float],
) -> tuple[dict[str, float], float]:  # fmt: skip
    measured = np.log(seconds)
    bounds = np.log(np.array([BOUNDS[name] for name in names]))
    first = np.log([start.get(name, BOUNDS[name][0]) for name in names])

    def residuals(x: Vector) -> Vector:
        found = predict(dict(zip(names, map(math.exp, x), strict=True)))
        return np.asarray(np.log(np.maximum(found, 1e-300))) - measured

    weight = np.ones_like(measured) if weight is None else weight
    x, loss = minimise(residuals, first, bounds[:, 1], bounds[:, 2], weight / weight.sum())
    # Bounds are exact in what is kept, not as exp(log(bound)) rounds them; a term at its lower bound is not there.
    values = np.clip(np.exp(x), [BOUNDS[n][1] for n in names], [BOUNDS[n][2] for n in names])
    kept = dict(zip(names, values.tolist(), strict=True))
    kept |= {n: 0.0 for n in _ABSENT if n in kept and kept[n] <= 1.001 * BOUNDS[n][1]}
    return kept, loss


def _check(seconds: Vector) -> None:
    if len(seconds) < _FEWEST:
        raise InputError(f"{len(seconds)} timings are too few to fit; give at least {_FEWEST} of one class and format")
    if not bool(np.all(np.isfinite(seconds) & (seconds > 0))):
        raise InputError("a time is zero, negative or not a number; drop the row or measure it again")


def halves(count: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which timings to fit to, and which to hold out: half each, at random, always the same."""
    chosen: Any = np.random.default_rng(0).permutation(count) < (count + 1) // 2
    return chosen, ~chosen
