"""One run: settle what is measured, measure it, check memory, fit, and judge on shapes that were not fitted."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from planner.bench import memory_check
from planner.bench.attention_operators import choose_ways
from planner.bench.device import Device, Facts, find_device
from planner.bench.fit import best_peaks, predictor, refit
from planner.bench.layers import forget_models
from planner.bench.operator import Operator, Prepared, is_supported
from planner.bench.part import Peaks
from planner.bench.predict import Predictor, earlier, total_s
from planner.bench.profile import BatchCheck, Measured, MemoryCheck, Profile, default_path, load, today
from planner.bench.rig import Rig
from planner.bench.selection import Sizes, chosen_classes, operators, sizes_of
from planner.bench.timing import Timing, advice, measure, measure_together, pooled
from planner.calibrate.model import KernelRow
from planner.catalog import load_gpu
from planner.errors import CardError, InputError
from planner.units import format_bytes

Progress = Callable[[int, int, str], object]
"""Told how many operators are done, how many there are, and what comes next."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do.

    Attributes
    ----------
    seconds
        How long timing may take; memory checks and setting up come on top [s].
    """

    device: Device
    size: str
    sizes: Sizes
    main: str
    forms: tuple[str, ...]
    classes: tuple[str, ...]
    todo: tuple[Operator, ...]
    seconds: float
    rig: Rig

    def words(self, times: int = 1) -> str:
        """The plan of so many runs in a line."""
        facts = self.device.facts
        threads = f" on {facts.units} thread{'s' * (facts.units > 1)}" if facts.kind == "cpu" else ""
        where = f"{facts.name}{threads} ({facts.catalogue or 'not in the catalogue'})"
        kinds, forms = ", ".join(self.classes), ", ".join(self.forms)
        runs = f"{times} runs of " if times > 1 else ""
        took = f"{runs}about {1.3 * self.seconds:.0f} s"
        return f"{where}: {len(self.todo)} operators ({kinds}) in {forms}, with torch {facts.torch}; {took}"


def plan(
    device: str | None = None, size: str = "default", only: str | Sequence[str] | None = None, *, threads: int | None = None,
    seconds: float | None = None,
) -> Plan:  # fmt: skip
    """Find the device and settle what is measured.

    Parameters
    ----------
    device
        ``cuda``, ``mps`` or ``cpu``; by default the best there is.
    size
        ``quick``, ``default`` or ``full``.
    only
        Classes of operators, such as ``"gemm,attention"``; see `selection.CLASSES`.
    seconds
        Time that timing may take, instead of the size's own.

    Raises
    ------
    InputError
        If torch is missing, the device is not there, or a choice is unknown.
    """
    classes = chosen_classes(only)
    found = find_device(device, threads)
    sizes = sizes_of(size, found.kind)
    if seconds is not None and not 0 < seconds < 1e5:
        raise InputError(f"time must be more than 0 s, not {seconds:g}")
    arena = min(sizes.arena_bytes, found.free_bytes() // 4)
    rig = Rig(found, "bf16", arena)
    with inference(found):
        rig.main = main_format(rig)
        wanted = [rig.main, "fp8", "int8"] if found.kind == "cuda" else [rig.main, "bf16", "fp32", "int8"]
        forms = tuple(f for f in dict.fromkeys(wanted) if is_supported(f, rig))
        if found.kind == "cpu" and size != "full":
            forms = tuple(f for f in forms if f != "int8")
        choose_ways(rig, min(c for _, c in sizes.decode) * 2, 0.01 if size == "tiny" else 0.05)
    degree = _processes(found) if "link" in classes else 1
    by_class = {c: operators(sizes, rig.main, forms, found.kind, (c,), degree) for c in classes}
    if not any(by_class.values()):
        raise InputError(
            f"nothing to measure of {', '.join(classes)}: 'host' needs a GPU, and 'link' several processes under torchrun"
        )
    todo = tuple(op for several in by_class.values() for op in several)
    kept = tuple(name for name, several in by_class.items() if several)
    return Plan(found, size, sizes, rig.main, forms, kept, todo, seconds or sizes.seconds, rig)


def known_kernels(facts: Facts) -> tuple[KernelRow, ...]:
    """Kernels of the profile that this user already has of the same machine; none if there is none that can be read."""
    path = default_path(facts)
    try:
        found = load(path) if path.is_file() else None
    except CardError:
        return ()
    return found.kernels if found and found.facts.identity == facts.identity else ()


@contextmanager
def inference(device: Device) -> Iterator[None]:
    """No gradients."""
    with device.torch.inference_mode():
        yield


def main_format(rig: Rig) -> str:
    """What activations are in: bf16, or fp16 on a GPU that only emulates it, or fp32 on a CPU that multiplies it faster."""
    if rig.device.kind == "cuda":
        return "bf16" if rig.device.torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if rig.device.kind != "cpu":
        return next((form for form in ("bf16", "fp16") if is_supported(form, rig)), "fp32")
    torch, times = rig.device.torch, {}
    for form in ("bf16", "fp32"):
        left = torch.randn(64, 512).to(rig.dtype(form))
        right = torch.randn(512, 512).to(rig.dtype(form))
        times[form] = measure(lambda _, a=left, b=right: a @ b, rig.device, 0.02).median_s  # type: ignore[misc]
    return min(times, key=times.__getitem__)


def _processes(device: Device) -> int:
    """Processes that torchrun started, joined; 1 without it."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return 1
    import torch.distributed as distributed

    if not distributed.is_initialized():
        on_gpu = device.kind == "cuda"
        distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device.target if on_gpu else None)
    return int(distributed.get_world_size())


def leave() -> None:
    """Leave the group of processes that `plan` joined, if it did; every one must."""
    if "WORLD_SIZE" not in os.environ:
        return
    import torch.distributed as distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def run(
    plan: Plan, progress: Progress | None = None, *, kernels: tuple[KernelRow, ...] = (), memory: bool = True,
    budget: int | None = None,
) -> Profile:  # fmt: skip
    """Measure everything of a plan, check memory, and fit.

    Parameters
    ----------
    kernels
        Of an earlier profile of this device, whose predictions stand beside the measurements.
    budget
        Memory that the largest batch is searched in [B].
    """
    device, tell = plan.device, progress or (lambda *_: None)
    free = device.free_bytes()
    if budget is not None and budget > free:
        raise InputError(
            f"a budget of {format_bytes(budget)} is more than the {format_bytes(free)} that are free; give less"
        )
    timings: dict[Operator, list[Timing]] = {}
    backends: dict[Operator, str] = {}
    skipped: list[str] = []
    rounds, total = plan.sizes.rounds, plan.sizes.rounds * len(plan.todo)
    left = plan.seconds
    with inference(device):
        done = 0
        for _ in range(rounds):
            for op in plan.todo:
                tell(done, total, f"{op.name}, {op.shape}")
                share = left / max(1, total - done)
                done += 1
                start = time.perf_counter()
                try:
                    timing, backend = _timed(op, plan.rig, share)
                except Exception as error:
                    skipped.append(f"{op.name}, {op.shape}: {_why(error, device)}")
                else:
                    timings.setdefault(op, []).append(timing)
                    backends[op] = backend
                left = max(0.0, left - (time.perf_counter() - start))
        forget_models()
        plan.rig.free()
        checks: list[MemoryCheck] = []
        batches: list[BatchCheck] = []
        if memory:
            tell(total, total, "memory")
            try:
                checks, batches, missed = _memory(device, plan.size, budget)
                skipped += missed
            except Exception as error:
                skipped.append(f"checks of memory: {_why(error, device)}")
    tell(total, total, "")
    if not timings:
        why = f", beginning with {skipped[0]}" if skipped else "; 'kvplan bench --help' lists the classes"
        raise InputError(f"nothing could be measured{why}")
    measured = [_measured(op, pooled(found), backends[op]) for op, found in timings.items()]
    return _profile(plan, measured, checks, batches, skipped, kernels)


def _memory(device: Device, size: str, budget: int | None) -> tuple[list[MemoryCheck], list[BatchCheck], list[str]]:
    """Caches and largest batches against their predictions, and what was skipped."""
    points = memory_check.POINTS if size != "tiny" else ((1, 128), (3, 77))
    checks, missed = memory_check.check_caches(device, points)
    batches, more = memory_check.check_batches(device, budget or _budget(device, size), _context(device, size))
    return checks, batches, [*missed, *more]


def _budget(device: Device, size: str) -> int:
    wanted = {"tiny": 320 * 2**20, "quick": 512 * 2**20}.get(size, 1024 * 2**20)
    return min(wanted if device.kind == "cpu" else 4 * wanted, device.free_bytes() // 4)


def _context(device: Device, size: str) -> int:
    """Length of the sequences that the largest batch is searched with."""
    if size == "tiny":
        return 512
    return 2048 if device.kind == "cpu" else 8192  # CUDA's allocator rounds small pieces


def _timed(op: Operator, rig: Rig, seconds: float) -> tuple[Timing, str]:
    ready: Prepared = op.prepare(rig)
    if op.together:
        return measure_together(ready.call, rig.device), ready.backend
    return measure(ready.call, rig.device, seconds, copies=ready.copies, graph=op.graph), ready.backend


def _why(error: Exception, device: Device) -> str:
    """What became of something that failed; memory that it took is given back."""
    traceback.clear_frames(error.__traceback__)  # they hold its tensors
    gc.collect()
    with suppress(RuntimeError):  # a device that is broken cannot even do that
        device.empty_cache()
    if device.is_out_of_memory(error):
        return "out of memory"
    return " ".join(str(error).split())[:120] or type(error).__name__


def _measured(op: Operator, timing: Timing, backend: str) -> Measured:
    return Measured(
        operator=op.name, shape=op.shape, parts=op.parts, held_out=op.held_out, backend=backend,
        mode="graph" if timing.mode == "graph" else "eager", disturbed=timing.disturbed, steady=timing.steady,
        samples_s=tuple(float(f"{s:.6g}") for s in timing.samples),
    )  # fmt: skip


def _profile(
    plan: Plan, measured: list[Measured], checks: list[Any], batches: list[Any], skipped: list[str],
    kernels: tuple[KernelRow, ...],
) -> Profile:  # fmt: skip
    facts = plan.device.facts
    peaks = catalogue_peaks(plan.device) or best_peaks(measured, facts)
    before = earlier(facts, peaks, kernels)
    remarks = [*plan.device.remarks]
    if words := advice([m.timing for m in measured], facts.kind):
        remarks.append(words)
    if launched := uncaptured(plan.todo, measured, facts.kind):
        remarks.append(f"Not captured in a graph, so that launches are part of their time: {', '.join(launched)}.")
    bare = Profile(
        date=today(), facts=facts, peaks=peaks, main=plan.main, size=plan.size,
        measured=tuple(_with_earlier(m, before) for m in measured), memory=tuple(checks), batches=tuple(batches),
        skipped=tuple(dict.fromkeys(skipped)), remarks=(*remarks, f"Earlier predictions are {before.origin}."),
    )  # fmt: skip
    return refit(bare)


def uncaptured(todo: Sequence[Operator], measured: Sequence[Measured], kind: str) -> list[str]:
    """Names of the operators that were to be replayed from a graph and were not; graphs are CUDA's."""
    eager = {(m.operator, m.shape) for m in measured if m.mode == "eager"}
    return list(dict.fromkeys(op.name for op in todo if kind == "cuda" and op.graph and (op.name, op.shape) in eager))


def _with_earlier(m: Measured, before: Predictor) -> Measured:
    return m.model_copy(update={"earlier_s": total_s(m.parts, before)})


def catalogue_peaks(device: Device) -> Peaks | None:
    """Peaks of a device that the catalogue lists; ``None`` for others."""
    facts = device.facts
    if not facts.catalogue:
        return None
    spec = load_gpu(facts.catalogue)
    return Peaks(
        bandwidth=spec.bandwidth_bytes_per_s, flops=dict(spec.peaks), origin="catalogue", units=facts.units,
        cache_bytes=facts.cache_bytes,
    )  # fmt: skip


def repeated(plan: Plan, times: int, progress: Progress | None = None, **options: Any) -> Profile:
    """Several runs in a row; the last one, with the largest difference between rates of any two."""
    profiles = [run(plan, progress, **options) for _ in range(max(1, times))]
    last = profiles[-1]
    if times < 2:
        return last
    gap = difference(profiles)
    close = "agree" if gap <= 0.05 else "differ; close other programs and lock clocks before trusting them"
    words = f"Rates of {times} runs are within {gap:.1%} of each other: they {close}."
    return last.model_copy(update={"repeat_difference": gap, "remarks": (*last.remarks, words)})


def difference(profiles: Sequence[Profile]) -> float:
    """Largest relative difference between profiles of a rate that plans use: of weights, of caches, of products.

    Rates rather than shares, because a device that the catalogue does not list has its peaks from the same runs.
    """
    gaps = [0.0]
    for name in ("memory", "cache", "compute"):
        values = [float(getattr(p.usage, name)) * _peak(p, name) for p in profiles if p.usage]
        gaps.append(max(values) / min(values) - 1.0 if values else 0.0)
    return max(gaps)


def _peak(profile: Profile, share: str) -> float:
    peaks = profile.peaks
    return float(peaks.machine(profile.main).peak) if share == "compute" else peaks.bandwidth


def validate(profile: Profile, progress: Progress | None = None, *, seconds: float = 20.0) -> Profile:
    """Measure only what the profile's fit did not see — held-out shapes and decode loops — and predict it from the profile.

    The answer is the profile with these measurements in place of its own, its fit untouched.

    Raises
    ------
    InputError
        If the device is not the profile's.
    """
    kind = profile.facts.kind
    again = plan(kind, profile.size, threads=profile.facts.units if kind == "cpu" else None, seconds=seconds)
    if again.device.facts.identity != profile.facts.identity:
        raise InputError(
            f"the profile is of {profile.facts.name}, and this is {again.device.facts.name}; run 'kvplan bench'"
        )
    held = replace(again, todo=tuple(op for op in again.todo if op.held_out), sizes=replace(again.sizes, rounds=1))
    fresh = run(held, progress, memory=False)
    ours = predictor(profile)
    measured = tuple(m.model_copy(update={"earlier_s": total_s(m.parts, ours)}) for m in fresh.measured)
    return profile.model_copy(update={"measured": measured, "date": fresh.date, "remarks": fresh.remarks})
