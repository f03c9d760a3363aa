"""Work to time on a device.

An operator moves its bytes while it does its arithmetic (Williams, Waterman and Patterson 2009, CACM 52(4), "Roofline"),
each at the share of peak that is achieved; where both take about as long, neither hides the other wholly, which a soft
maximum says. What is sent and what every kernel costs at least come on top:

    t = soft(bytes / (memory * bandwidth), flops / (compute * peak)) + activations / (share * bandwidth)
        + sent / (link * link_bandwidth) + launches * launch_s
    soft(a, b) = (a^4 + b^4)^(1/4)

Operators follow one another, so a step is their sum. The ideal has every share at 1, the plain maximum and no floor, keeps
activations on chip, and hides what is sent behind the rest wherever it is shorter.
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
    """Achieved shares of a device's peaks, 0 to 1.

    Attributes
    ----------
    memory, narrow, cache
        Shares of memory bandwidth at which weights, weights of fewer than `NARROW_BITS` bits that every token is multiplied
        by, and caches with states stream.
    compute, compute8, compute4
        Shares of the dense peak of the format that products run in, by its bits.
    grouped
        Share of these that grouped products of routed experts reach.
    link
        Share of link bandwidth.
    activations
        Share of memory bandwidth at which activations between operators move; infinite where they stay on chip, or where
        their time is in the other shares.
    launch_s
        Time that every kernel costs at least [s].
    soft
        Whether moving and arithmetic add up softly, rather than the shorter being hidden.
    """

    memory: float = 1.0
    narrow: float = 1.0
    cache: float = 1.0
    compute: float = 1.0
    compute8: float = 1.0
    compute4: float = 1.0
    grouped: float = 1.0
    link: float = 1.0
    activations: float = float("inf")
    launch_s: float = 0.0
    soft: bool = False

    def streams(self, op: Operator) -> float:
        """Share of bandwidth that an operator's weights stream at."""
        return self.narrow if op.weight_bits < NARROW_BITS and not op.grouped else self.memory

    def computes(self, op: Operator, rate: str) -> float:
        """Share of the peak ``rate`` that an operator computes at."""
        found = {8: self.compute8, 4: self.compute4}.get(_BITS.get(rate, 16), self.compute)
        return found * self.grouped if op.grouped else found


NARROW_BITS = 6
_BITS = {"fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
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
        if not _nothing(op.activation_bytes) and shares.activations < np.inf and happens(op, gpu):
            activations = activations + op.activation_bytes / (gpu.bandwidth_bytes_per_s * shares.activations)
        if _nothing(op.weight_bytes) and _nothing(op.cache_bytes) and _nothing(op.flops):
            continue
        read_s, held_s, compute_s = operator_seconds(op, gpu, shares)
        flops = flops + op.flops
        if _nothing(op.cache_bytes):
            streams = read_s >= compute_s
            taken = _soft(read_s, compute_s) if shares.soft else np.maximum(read_s, compute_s)
            weights = weights + streams * taken
            nbytes = nbytes + op.weight_bytes
        else:
            memory_s = read_s + held_s
            streams = memory_s >= compute_s
            taken = _soft(memory_s, compute_s) if shares.soft else np.maximum(memory_s, compute_s)
            held = streams * taken if _nothing(read_s) else streams * taken * (held_s / memory_s)
            cache = cache + held
            weights = weights + (0.0 if _nothing(read_s) else streams * taken - held)
            nbytes = nbytes + op.weight_bytes + op.cache_bytes
        compute = compute + (1 - streams) * taken
    floor = launches * shares.launch_s
    local = weights + cache + compute + floor + activations
    step = np.maximum(local, sent) if shares == IDEAL else local + sent
    return StepTime(step, (weights, cache, compute, sent, floor, activations), flops, nbytes)


def happens(op: Operator, gpu: GpuSpec) -> bool:
    """Whether an operator is there on a device: some are only where it computes in their format."""
    rate = gpu.compute_rate(op.compute)
    return not op.only_in or (rate is not None and rate[0] == op.only_in)


def operator_seconds(op: Operator, gpu: GpuSpec, shares: Shares) -> tuple[Numbers, Numbers, Numbers]:
    """Time that an operator's weights, its cache and its arithmetic would take, each alone [s]."""
    bandwidth, rate = gpu.bandwidth_bytes_per_s, gpu.compute_rate(op.compute)
    compute_s = op.flops / (rate[1] * shares.computes(op, rate[0])) if rate else 0.0
    return op.weight_bytes / (bandwidth * shares.streams(op)), op.cache_bytes / (bandwidth * shares.cache), compute_s


def _soft(one: Numbers, other: Numbers) -> Numbers:
    """Fourth root of the sum of fourth powers: the larger where they differ, 19 % more where they are alike."""
    a, b = one * one, other * other
    total: Numbers = np.sqrt(np.sqrt(a * a + b * b))
    return total


def _nothing(amount: Numbers) -> bool:
    """Whether an operator has none of something, which most have of most; a plain zero, never an array."""
    return isinstance(amount, float) and amount == 0.0


def add_stages(times: Sequence[tuple[StepTime, int]], parts: Numbers = 1, steady: bool = True) -> StepTime:
    """Pipeline stages, each given with the number of its like, that ``parts`` of a batch pass through.

    A part is done after all stages, and the next round of it cannot start before the slowest stage has served every part:

        step = max(sum of stages, parts * slowest stage)

    Unless the round is one of many (``steady``), it is over when its last part is through:

        step = sum of stages + (parts - 1) * slowest stage
    """
    if len(times) == 1 and times[0][1] == 1:
        return times[0][0]
    through = sum(count * time.step_s for time, count in times)
    slowest = functools.reduce(np.maximum, [time.step_s for time, _ in times])
    waits = np.maximum(1.0, parts * slowest / through) if steady else 1.0 + (parts - 1) * slowest / through
    return StepTime(
        step_s=through * waits,
        parts=tuple(sum(n * time.parts[i] for time, n in times) * waits for i in range(len(BOUNDS))),
        flops=parts * sum(count * time.flops for time, count in times),
        nbytes=parts * sum(count * time.nbytes for time, count in times),
    )
