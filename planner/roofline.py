"""Work to time on a device.

An operator takes as long as the slower of moving its bytes and doing its arithmetic (Williams, Waterman and Patterson 2009,
CACM 52(4), "Roofline"), each at the share of peak that is achieved, plus a launch floor:

    t = max(bytes / (memory * bandwidth), flops / (compute * peak)) + activations / (memory * bandwidth)
        + sent / (link * link_bandwidth) + launches * launch_s

Operators follow one another, so a step is their sum. The ideal has every share at 1 and no floor, keeps activations on chip,
and hides what is sent behind the rest wherever it is shorter.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.gpu import GpuSpec
from planner.work import Operator

if TYPE_CHECKING:
    from planner.arrays import IntArray, Numbers

BOUNDS = ("weights", "cache", "compute", "link", "launch", "activations")
"""What a step can be bound by, in the order of `StepTime.parts`."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Achieved shares of a device's peaks.

    Attributes
    ----------
    memory, compute, link
        Share of memory bandwidth, of the dense peak and of link bandwidth, 0 to 1.
    launch_s
        Time that every kernel costs at least [s].
    """

    memory: float = 1.0
    compute: float = 1.0
    link: float = 1.0
    launch_s: float = 0.0


IDEAL = Shares()


@dataclass(frozen=True, slots=True)
class StepTime:
    """Time of one step and what it goes to, as scalars or arrays over batch and context.

    Attributes
    ----------
    step_s
        Whole step [s].
    parts
        Seconds by bound, in the order of `BOUNDS`; memory time is split between weights and cache by bytes.
    flops, nbytes
        Work of the step [FLOP, B]; bytes are of weights and cache.
    """

    step_s: Numbers
    parts: tuple[Numbers, ...]
    flops: Numbers
    nbytes: Numbers

    @property
    def bound(self) -> IntArray:
        """Index into `BOUNDS` of the largest part."""
        largest: IntArray = np.argmax(np.stack(np.broadcast_arrays(*self.parts)), axis=0)
        return largest

    @property
    def arithmetic_intensity(self) -> Numbers:
        """FLOP for each byte of weights and cache [FLOP/B]."""
        return self.flops / self.nbytes


def step_time(operators: Iterable[Operator], gpu: GpuSpec, shares: Shares) -> StepTime:
    """Time of operators that follow one another on one device.

    A device without a known peak for an operator's format, or without a known link, is taken to spend no time on it; the
    plan says so.
    """
    bandwidth = gpu.bandwidth_bytes_per_s * shares.memory
    link = (gpu.link_bytes_per_s or np.inf) * shares.link
    weights: Numbers = 0.0
    cache: Numbers = 0.0
    compute: Numbers = 0.0
    sent: Numbers = 0.0
    activations: Numbers = 0.0
    launches = 0.0
    flops: Numbers = 0.0
    nbytes: Numbers = 0.0
    for op in operators:
        launches += op.launches
        if not _nothing(op.sent_bytes):
            sent = sent + op.sent_bytes / link
        rate = gpu.compute_rate(op.compute)
        if not (
            _nothing(op.activation_bytes) or shares == IDEAL or (op.only_in and (not rate or rate[0] != op.only_in))
        ):
            activations = activations + op.activation_bytes / bandwidth
        moved = op.weight_bytes if _nothing(op.cache_bytes) else op.weight_bytes + op.cache_bytes
        if _nothing(moved) and _nothing(op.flops):
            continue
        memory_s = moved / bandwidth
        compute_s = op.flops / (rate[1] * shares.compute) if rate else 0.0
        streams = memory_s >= compute_s
        if _nothing(op.cache_bytes):
            weights = weights + streams * memory_s
        else:
            weights = weights + streams * (op.weight_bytes / bandwidth)
            cache = cache + streams * (op.cache_bytes / bandwidth)
        compute = compute + (compute_s > memory_s) * compute_s
        flops = flops + op.flops
        nbytes = nbytes + moved
    floor = launches * shares.launch_s
    local = weights + cache + compute + floor + activations
    step = np.maximum(local, sent) if shares == IDEAL else local + sent
    return StepTime(step, (weights, cache, compute, sent, floor, activations), flops, nbytes)


def _nothing(amount: Numbers) -> bool:
    """Whether an operator has none of something, which most have of most; a plain zero, never an array."""
    return isinstance(amount, float) and amount == 0.0


def add_stages(times: Sequence[tuple[StepTime, int]], parts: Numbers = 1) -> StepTime:
    """Pipeline stages, each given with the number of its like, that ``parts`` of a batch pass through.

    A part is done after all stages, and the next round of it cannot start before the slowest stage has served every part:

        step = max(sum of stages, parts * slowest stage)
    """
    if len(times) == 1 and times[0][1] == 1:
        return times[0][0]
    through = sum(count * time.step_s for time, count in times)
    slowest = functools.reduce(np.maximum, [time.step_s for time, _ in times])
    waits = np.maximum(1.0, parts * slowest / through)
    return StepTime(
        step_s=through * waits,
        parts=tuple(sum(n * time.parts[i] for time, n in times) * waits for i in range(len(BOUNDS))),
        flops=parts * sum(count * time.flops for time, count in times),
        nbytes=parts * sum(count * time.nbytes for time, count in times),
    )
