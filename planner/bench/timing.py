"""Time one call correctly: warm until stable, many samples, the median with a bootstrap interval, a warning when it wobbles.

On a CPU a sample during which the scheduler took a processor away is set aside (involuntary context switches, getrusage(2)),
and where that leaves too few, one thread is timed by the processor's own clock, which stands still meanwhile;
on CUDA calls are captured in a graph where that works and timed by events, so that launches from the host do not count.
Every sample goes through several copies of its operands, which together exceed the last-level cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.bench.device import Device

if TYPE_CHECKING:
    import numpy.typing as npt

    Vector = npt.NDArray[np.float64]

Call = Callable[[int], object]
"""Run an operator once, on the copy of its operands of this number."""

FEWEST, MOST = 5, 400
SAMPLE_S = 2e-4
"""Samples are made at least this long, so that the clock's resolution and its cost do not count [s]."""
_MPS_SAMPLE_S = 5e-3
"""Where no event times a call, waiting for the device is part of every sample [s]."""
_GRAPH_S = 2e-3
"""A replay of a graph is made about as long [s]."""
_AHEAD_CYCLES = 1_000_000
"""Half a millisecond at 2 GHz."""
STEADY = 0.05
_SETTLED = 0.01


@dataclass(frozen=True, slots=True)
class Timing:
    """Samples of one operator.

    Attributes
    ----------
    samples
        Time of one call, sample by sample [s].
    disturbed
        Share of samples that were set aside because the processor was taken away.
    steady
        Whether the warm-up came to rest.
    mode
        ``graph`` where a captured graph was replayed, ``eager`` where each call was launched.
    """

    samples: tuple[float, ...]
    disturbed: float = 0.0
    steady: bool = True
    mode: str = "eager"

    @property
    def median_s(self) -> float:
        return float(np.median(self.samples))

    @property
    def interval_s(self) -> tuple[float, float]:
        """95 % interval of the median [s]."""
        return bootstrap(self.samples)

    @property
    def spread(self) -> float:
        """Width of the interval over the median."""
        low, high = self.interval_s
        return (high - low) / self.median_s

    @property
    def unstable(self) -> bool:
        """Whether the median is not to be trusted to a tenth."""
        return self.spread > 0.1


def bootstrap(samples: Sequence[float], level: float = 0.95, draws: int = 500) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron 1979, Annals of Statistics 7(1)), without chance.

    >>> bootstrap([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    values = np.asarray(samples, dtype=float)
    picked = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    medians = np.median(values[picked], axis=1)
    low, high = np.quantile(medians, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def pooled(timings: Sequence[Timing]) -> Timing:
    """Rounds of one operator, taken at different times, as one."""
    samples = tuple(s for t in timings for s in t.samples)
    disturbed = sum(t.disturbed for t in timings) / len(timings)
    return Timing(samples, disturbed, all(t.steady for t in timings), timings[0].mode)


def measure(call: Call, device: Device, budget_s: float, *, copies: int = 1, graph: bool = True) -> Timing:
    """Time a call within a budget; at least a few samples are taken whatever they cost.

    Parameters
    ----------
    call
        The operator; it is given 0, 1, 2, … and picks its operands by that.
    copies
        Copies of its operands that there are; a graph goes through all of them.
    graph
        Whether the call may be captured in a CUDA graph.
    """
    end = time.perf_counter() + budget_s
    numbers = count()
    one = _clocked(lambda: call(next(numbers)), device)
    one()
    first = max(min(one()[0] for _ in range(2)), 1e-9)
    if device.kind == "cuda" and graph:
        calls = int(min(512, max(copies, np.ceil(_GRAPH_S / first))))
        if (replay := captured(call, device, calls)) is not None:
            return _samples(replay, calls, device, end, budget_s, "graph")
    aim = _MPS_SAMPLE_S if device.kind == "mps" else SAMPLE_S
    calls = int(min(1000, max(1, np.ceil(aim / first))))

    def several() -> None:
        for _ in range(calls):
            call(next(numbers))

    return _samples(several, calls, device, end, budget_s, "eager")


def measure_together(call: Call, device: Device, samples: int = 25, calls: int = 4) -> Timing:
    """Time a call that other processes take part in: each makes as many, whatever they cost, or they would wait for ever."""
    numbers = count()

    def several() -> None:
        for _ in range(calls):
            call(next(numbers))

    clocked = _clocked(several, device, waits=True)
    for _ in range(3):
        clocked()
    taken = [clocked() for _ in range(samples)]
    share = sum(interrupted for _, interrupted in taken) / samples
    return Timing(tuple(seconds / calls for seconds, _ in taken), share)


def captured(call: Call, device: Device, calls: int) -> Callable[[], object] | None:
    """Capture several calls, on different operands, in one CUDA graph; ``None`` if the operator cannot be captured."""
    torch = device.torch
    home, aside = torch.cuda.current_stream(device.target), _aside(torch, device.target)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        aside.wait_stream(home)
        with torch.cuda.stream(aside):
            for i in range(3):
                call(i)
        home.wait_stream(aside)
        device.sync()
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            for i in range(calls):
                call(i)
        graph.replay()
        device.sync()
    except RuntimeError:  # out of memory too: a call at a time may still fit
        torch.cuda.set_stream(home)  # a capture that fails leaves its own behind
        with suppress(RuntimeError, AttributeError):  # and, before pytorch#180395, an allocator that thinks it goes on
            torch._C._cuda_endAllocateToPool(device.target.index, pool)
        device.sync()
        device.empty_cache()
        return None
    replay: Callable[[], object] = graph.replay
    return replay


@lru_cache(maxsize=8)
def _aside(torch: Any, target: Any) -> Any:
    """The one stream that graphs are captured on: each further stream would keep a workspace of cuBLAS."""
    return torch.cuda.Stream(target)


def _samples(run: Callable[[], object], calls: int, device: Device, end: float, budget_s: float, mode: str) -> Timing:
    clocked = _clocked(run, device, ahead=mode == "graph")
    steady = _warm(clocked, end - 0.75 * budget_s)
    clean: list[float] = []
    disturbed: list[float] = []
    while len(clean) + len(disturbed) < MOST:
        seconds, taken = clocked()
        (disturbed if taken else clean).append(seconds / calls)
        done = len(clean) + len(disturbed)
        if done >= FEWEST and time.perf_counter() > end:
            break
        if len(clean) >= 20 and len(clean) % 10 == 0 and _narrow(clean):
            break
    share = len(disturbed) / (len(clean) + len(disturbed))
    kept = clean if len(clean) >= FEWEST else clean + disturbed
    return Timing(tuple(kept), share, steady, mode)


def _narrow(samples: Sequence[float]) -> bool:
    low, high = bootstrap(samples, draws=100)
    return high - low < 2 * _SETTLED * float(np.median(samples))


def _warm(clocked: Callable[[], tuple[float, bool]], until: float) -> bool:
    """Run until three samples in a row are within 5 % of each other; whether they came to be."""
    last: list[float] = []
    while True:
        last = [*last, clocked()[0]][-3:]
        if len(last) == 3 and max(last) <= (1 + STEADY) * min(last):
            return True
        if len(last) == 3 and time.perf_counter() > until:
            return False


def _clocked(
    run: Callable[[], object], device: Device, *, ahead: bool = False, waits: bool = False
) -> Callable[[], tuple[float, bool]]:
    """A function that runs once and says how long it took and whether the scheduler interfered.

    ``ahead``: the host is to be ahead of the device. ``waits``: others work while this thread's clock stands.
    """
    if device.kind == "cuda":
        return _by_events(run, device, ahead)
    cpu = device.kind == "cpu"
    switches = _switches if cpu else lambda: 0
    alone = cpu and device.facts.units == 1 and not waits

    def by_clock() -> tuple[float, bool]:
        device.sync()
        before, own, start = switches(), time.thread_time(), time.perf_counter()
        run()
        device.sync()
        seconds, own = time.perf_counter() - start, time.thread_time() - own
        taken = switches() > before
        return (min(seconds, own) if taken and alone else seconds), taken

    return by_clock


def _by_events(run: Callable[[], object], device: Device, ahead: bool) -> Callable[[], tuple[float, bool]]:
    torch = device.torch
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    idle = getattr(torch.cuda, "_sleep", None)

    def by_events() -> tuple[float, bool]:
        if ahead and idle:  # the device is busy while the host queues the graph, so that none of the queueing is timed
            idle(_AHEAD_CYCLES)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e-3, False

    return by_events


def _switches() -> int:
    """Involuntary context switches of this process; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:
        return 0
    usage: Any = resource.getrusage(resource.RUSAGE_SELF)
    return int(usage.ru_nivcsw)


def advice(timings: Sequence[Timing], kind: str) -> str | None:
    """What to do if many timings are unstable, in a line; ``None`` if they are not."""
    shaky = sum(t.unstable for t in timings)
    if not timings or shaky <= 0.1 * len(timings):
        return None
    busy = float(np.mean([t.disturbed for t in timings]))
    why = f"; other programs interrupted {busy:.0%} of samples" if busy > 0.05 else ""
    remedy = {
        "cuda": "close other programs on the GPU and lock its clocks (nvidia-smi --lock-gpu-clocks), or use --full",
        "mps": "close other programs and connect the charger, or use --full",
        "cpu": "close other programs, keep to fewer cores (--threads) or use --full",
    }[kind]
    return f"{shaky} of {len(timings)} timings are unstable{why}: {remedy}"
