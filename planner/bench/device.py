"""The device in front of us: which it is, what it is called in the catalogue, and how to wait for it.

torch is loaded here and nowhere else in kvplan.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from planner.bench.naming import spec_of
from planner.errors import InputError
from planner.row import Count, Maybe, Row, Text

KINDS = ("cuda", "rocm", "mps", "cpu")
"""torch calls ROCm's devices ``cuda`` too."""


def need_torch() -> Any:
    """The torch module.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        import torch
    except (ImportError, OSError):
        raise InputError("measuring needs torch; install kvplan[bench]: pip install 'kvplan[bench]'") from None
    return torch


class Facts(Row):
    """What a device says of itself.

    Attributes
    ----------
    catalogue
        Its id in the GPU catalogue; empty if it is not there.
    total_bytes, cache_bytes
        Memory, and last-level cache; 0 where nobody says [B].
    units
        Streaming multiprocessors, or threads that a CPU computes with.
    clock_mhz
        Highest clock that it may run at, where it can be read [MHz].
    """

    kind: Literal["cuda", "mps", "cpu"]
    name: Text
    catalogue: str = ""
    total_bytes: Count
    cache_bytes: Maybe
    units: Count
    driver: str = ""
    torch: Text
    python: Text
    system: Text
    capability: str = ""
    clock_mhz: Annotated[float, Field(gt=0, lt=1e6)] | None = None

    @property
    def id(self) -> str:
        """Its id in the catalogue, or one made of its name; a CPU's says that it is one, as a GPU may have its name."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:50] or self.kind
        return self.catalogue or (f"{name}-cpu" if self.kind == "cpu" and "cpu" not in name else name)

    @property
    def identity(self) -> tuple[str, str, int, int]:
        """What two runs on one machine share: kind, name, memory to the GiB, and units."""
        return self.kind, self.name, round(self.total_bytes / 2**30), self.units


@dataclass(frozen=True, slots=True)
class Device:
    """A device that runs: torch's handle of it and its facts.

    Attributes
    ----------
    remarks
        What was chosen for it, in words.
    """

    torch: Any
    target: Any
    facts: Facts
    remarks: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.facts.kind

    @property
    def has_grouped_products(self) -> bool:
        """Whether torch has a kernel of products by group here; elsewhere it reads the groups' ends back to the host."""
        return self.kind == "cuda" and not self.torch.version.hip and self.facts.capability.split(".")[0] in ("9", "10")

    def sync(self) -> None:
        """Wait until everything that was launched is done."""
        if self.kind == "cuda":
            self.torch.cuda.synchronize(self.target)
        elif self.kind == "mps":
            self.torch.mps.synchronize()

    def empty_cache(self) -> None:
        """Give freed memory back, so that the next operator finds it; a device that is broken cannot even do that."""
        with suppress(RuntimeError):
            if self.kind == "cuda":
                self.torch.cuda.empty_cache()
            elif self.kind == "mps":
                self.torch.mps.empty_cache()

    def allocated(self) -> int | None:
        """Bytes that the device's allocator has handed out; ``None`` on a CPU, whose allocator does not count [B]."""
        if self.kind == "cuda":
            return int(self.torch.cuda.memory_allocated(self.target))
        return int(self.torch.mps.current_allocated_memory()) if self.kind == "mps" else None

    def reserved(self) -> int:
        """Bytes that the process has taken from the device, whether in use or not; 0 where nobody counts [B]."""
        return int(self.torch.cuda.memory_reserved(self.target)) if self.kind == "cuda" else 0

    def free_bytes(self) -> int:
        """Memory that is free now [B]."""
        if self.kind == "cuda":
            return int(self.torch.cuda.mem_get_info(self.target)[0])
        if self.kind == "mps":
            return int(self.torch.mps.recommended_max_memory()) - int(self.torch.mps.driver_allocated_memory())
        return _meminfo().get("MemAvailable", self.facts.total_bytes // 2)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""
        words = str(error).lower()
        said = ("out of memory", "can't allocate memory", "alloc_failed")
        return isinstance(error, (MemoryError, self.torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and any(one in words for one in said)
        )


def find_device(name: str | None = None, threads: int | None = None) -> Device:
    """The device asked for, or the best there is: CUDA or ROCm, then MPS, then the CPU.

    Parameters
    ----------
    name
        ``cuda``, ``cuda:1``, ``rocm``, ``mps`` or ``cpu``.
    threads
        Threads of a CPU; without it, as many as help at the moment.

    Raises
    ------
    InputError
        If torch is missing or has no such device.
    """
    torch = need_torch()
    kind = (name or "").partition(":")[0]
    if name and not re.fullmatch(r"(cuda|rocm)(:[0-9]{1,3})?|mps|cpu", name):
        raise InputError(f"unknown device {name[:40]!r}; use one of cuda, cuda:1, rocm, mps, cpu")
    gpu, hip = torch.cuda.is_available(), bool(torch.version.hip)
    have = {"cuda": gpu, "rocm": gpu and hip, "mps": torch.backends.mps.is_available(), "cpu": True}
    chosen = kind or next(k for k in KINDS if have[k])
    if not have[chosen]:
        there = ", ".join(k for k in KINDS if have[k] and not (k == "cuda" and hip))
        raise InputError(f"torch {torch.__version__} finds no {chosen} device here; it has {there}")
    if chosen == "cpu":
        return _cpu(torch, threads)
    if chosen == "mps":
        return _mps(torch, torch.device("mps"))
    return _cuda(torch, torch.device("cuda", _index((name or "").partition(":")[2], torch.cuda.device_count())))


def _index(asked: str, count: int) -> int:
    """Which GPU: the one asked for, or under torchrun that of the process, of those that the process sees."""
    if asked and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("torchrun gives every process a GPU of its own; leave the number out of --device")
    return int(asked or int(os.environ.get("LOCAL_RANK", "0")) % max(1, count))


def _common(torch: Any) -> dict[str, Any]:
    release = re.match(r"[0-9]+(\.[0-9]+)?", platform.release())
    system = " ".join(filter(None, (platform.system(), release and release[0], platform.machine())))
    return {"torch": torch.__version__, "python": platform.python_version(), "system": system}


def _cuda(torch: Any, target: Any) -> Device:
    count = torch.cuda.device_count()
    if target.index >= count:
        raise InputError(f"there is no {target}; this machine has {count} of them, from cuda:0")
    torch.cuda.set_device(target)
    p = torch.cuda.get_device_properties(target)
    spec = spec_of(p.name, p.total_memory)
    cache = int((spec.memory.cache_mb or 0) * 1e6) if spec else 0
    facts = Facts(
        kind="cuda", name=p.name, catalogue=spec.id if spec else "", total_bytes=p.total_memory,
        cache_bytes=cache or int(getattr(p, "L2_cache_size", 0)), units=p.multi_processor_count, driver=_driver(torch),
        capability=getattr(p, "gcnArchName", "") if torch.version.hip else f"{p.major}.{p.minor}",
        clock_mhz=_cuda_clock(target.index), **_common(torch),
    )  # fmt: skip
    return Device(torch, target, facts)


def _driver(torch: Any) -> str:
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    version = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
    return f"{version[0].strip()}, {runtime}" if version else runtime


def _cuda_clock(index: int) -> float | None:
    shown = _output(["nvidia-smi", f"--id={index}", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"])
    return float(shown.strip()) if re.fullmatch(r"[0-9.]+", shown.strip()) else None


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _mps(torch: Any, target: Any) -> Device:
    name = _output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip() or "Apple GPU"
    total = int(_output(["sysctl", "-n", "hw.memsize"]).strip() or torch.mps.recommended_max_memory())
    spec = spec_of(name, total)
    cache = int((spec.memory.cache_mb or 0) * 1e6) if spec else 0
    facts = Facts(
        kind="mps", name=name, catalogue=spec.id if spec else "", total_bytes=total, cache_bytes=cache,
        units=1, driver=f"macOS {platform.mac_ver()[0]}", **_common(torch),
    )  # fmt: skip
    return Device(torch, target, facts)


def _cpu(torch: Any, threads: int | None) -> Device:
    remarks: tuple[str, ...] = ()
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= 4096:
        raise InputError(f"threads must lie between 1 and 4096, not {threads}")
    if threads is None:
        at_start = min(torch.get_num_threads(), most)
        threads = min(unclaimed(at_start), helpful_threads(torch, at_start))
        if threads < at_start:
            remarks = (
                f"Other programs keep this CPU busy, so that {at_start} threads would wait for each other: measured on "
                f"{threads}. Close them, or ask for --threads {at_start}.",
            )
    torch.set_num_threads(threads)
    memory = _meminfo().get("MemTotal") or _physical_memory()
    facts = Facts(
        kind="cpu", name=_cpu_name(), total_bytes=memory, cache_bytes=_cpu_cache(), units=threads,
        capability=torch.backends.cpu.get_cpu_capability(), clock_mhz=_cpu_clock(), **_common(torch),
    )  # fmt: skip
    return Device(torch, torch.device("cpu"), facts, remarks)


def unclaimed(processors: int) -> int:
    """Processors that other programs leave, by the load average of the last minute; at least one."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return processors
    return max(1, min(processors, round(processors - load)))


def helpful_threads(torch: Any, most: int) -> int:
    """How many threads a product runs fastest with now: all of them, or one where others hold the processors.

    Threads wait for the slowest at the end of every operator, which on a busy machine is one that is not running.
    """
    if most == 1:
        return 1
    before, left = torch.get_num_threads(), torch.randn(256, 256)
    medians = {}
    for count in (most, 1):
        torch.set_num_threads(count)
        samples = []
        for _ in range(40):
            start = time.perf_counter()
            left @ left
            samples.append(time.perf_counter() - start)
        medians[count] = statistics.median(samples[5:])
    torch.set_num_threads(before)
    return most if medians[most] <= medians[1] else 1


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {m[1]: int(m[2]) * 1024 for line in lines if (m := re.match(r"(\w+):\s+([0-9]+) kB", line))}


def _physical_memory() -> int:
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    name = found[1] if found else _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return " ".join(name.split()) or platform.machine() or "CPU"


def _cpu_cache() -> int:
    """The largest cache that sysfs or sysctl names [B]."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        m = re.fullmatch(r"([0-9]+)([KM]?)", path.read_text(encoding="ascii").strip())
        sizes.append(int(m[1]) * {"": 1, "K": 2**10, "M": 2**20}[m[2]] if m else 0)
    if max(sizes) == 0:
        keys = ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize")
        sizes += [int(_output(["sysctl", "-n", key]).strip() or 0) for key in keys]
    return max(sizes) or 32 * 2**20


def _cpu_clock() -> float | None:
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text(encoding="ascii")
        return float(text) / 1e3 or None
    except (OSError, ValueError):
        return None
