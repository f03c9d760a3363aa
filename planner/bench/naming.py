"""What the catalogue calls a device that a driver names."""

from __future__ import annotations

import re

from planner.catalog import gpu_ids, load_gpu
from planner.gpu import GpuSpec

_QUALIFIERS = {"sxm", "pcie", "nvl", "ti", "super", "max", "ultra", "pro", "ada", "server", "workstation", "laptop"}


def spec_of(name: str, total_bytes: int) -> GpuSpec | None:
    """The catalogue's device of this name, as a driver reports it, and of about this memory.

    >>> found = spec_of("NVIDIA H100 80GB HBM3", 85_000_000_000)
    >>> found.id if found else None
    'h100-sxm'
    """
    words = _words(name)
    if words & {"laptop", "mig"}:
        return None  # other silicon, or a slice of it, under the same name
    best: tuple[tuple[int, int, float], GpuSpec] | None = None
    for gpu_id in gpu_ids():
        own = set(gpu_id.split("-"))
        core = {w for w in own if re.search("[0-9]", w) and not re.fullmatch(r"[0-9]+gb|sxm[0-9]", w)}
        if not core or not core <= words:
            continue
        spec = load_gpu(gpu_id)
        gap = abs(total_bytes / spec.usable_bytes - 1.0)
        if gap > 0.15 and spec.vendor != "Apple":
            continue
        kinds = {re.sub(r"^sxm[0-9]$", "sxm", w) for w in own} & _QUALIFIERS
        wrong = len(kinds ^ (words & _QUALIFIERS))
        rank = (len(core), -wrong, -gap)
        if best is None or rank > best[0]:
            best = (rank, spec)
    return best[1] if best else None


def _words(name: str) -> set[str]:
    """Words of a name; a board that does not say how it is plugged in is the module."""
    found = {re.sub(r"^sxm[0-9]*$", "sxm", w) for w in re.findall(r"[a-z0-9]+", name.lower())}
    return found if found & {"pcie", "nvl"} else found | {"sxm"}
