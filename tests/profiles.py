"""A profile of an H100 whose timings follow a known law, made without torch."""

from __future__ import annotations

from planner.bench import fit
from planner.bench.device import Facts
from planner.bench.part import Part, Peaks
from planner.bench.profile import Measured, MemoryCheck, Profile
from planner.calibrate.model import Kernel, law

FACTS = Facts(kind="cuda", name="NVIDIA H100 80GB HBM3", catalogue="h100-sxm", total_bytes=85 * 10**9,
              cache_bytes=50 * 10**6, units=132, torch="2.13.0", python="3.11.7", system="Linux")  # fmt: skip
PEAKS = Peaks(bandwidth=3.35e12, flops={"bf16": 989e12}, origin="catalogue", units=132, cache_bytes=50 * 10**6)


def gemm(m: int, n: int = 4096, k: int = 4096) -> Part:
    return Part(kind="gemm", form="bf16", runs_in="bf16", shape={"m": float(m), "n": float(n), "k": float(k)})


def true_kernel() -> Kernel:
    return Kernel(launch_s=4e-6, memory=0.86, compute=0.71, p=3.0)


def seconds(part: Part, kernel: Kernel) -> float:
    return float(law(kernel, part.work(kernel.tile), PEAKS.machine("bf16"), False, False))


def measured(part: Part, held_out: bool = False) -> Measured:
    time_s = seconds(part, true_kernel())
    return Measured(operator="GEMM bf16", shape=str(part.shape), parts=(part,), held_out=held_out, mode="graph",
                    samples_s=tuple(time_s * f for f in (0.99, 1.0, 1.0, 1.0, 1.01)))  # fmt: skip


def made(facts: Facts = FACTS) -> Profile:
    """The profile, fitted."""
    shapes = [(m, n) for m in (2, 8, 64, 512, 4096) for n in (4096, 6144, 28672)]
    rows = [measured(gemm(m, n)) for m, n in shapes] + [measured(gemm(m, 8192), True) for m in (4, 32, 1024)]
    check = MemoryCheck(
        variant="MHA", form="bf16", batch=1, context=2, predicted_bytes=4, tensor_bytes=4, allocator_bytes=512
    )
    bare = Profile(date="2026-11-24T00:00:00Z", facts=facts, peaks=PEAKS, main="bf16", size="quick", measured=tuple(rows),
                   memory=(check,))  # fmt: skip
    return fit.refit(bare)
