"""A catalogue entry of a device that nobody listed, from its profile, CPUs included."""

from __future__ import annotations

import json
import re
from typing import Any

from planner.bench.part import Usage
from planner.bench.predict import spec_from
from planner.bench.profile import Profile
from planner.calibrate.model import KernelFile
from planner.catalog import load_gpu
from planner.errors import InputError
from planner.gpu import GpuSpec
from planner.roofline import Shares
from planner.row import Source

_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,59}")


def gpu_of(profile: Profile, gpu_id: str = "") -> GpuSpec:
    """The device of a profile, as the catalogue has it or as it was measured.

    Raises
    ------
    InputError
        If the id is not one that a file can have.
    """
    facts = profile.facts
    if facts.catalogue and not gpu_id:
        return load_gpu(facts.catalogue)
    name = gpu_id or re.sub(r"[^a-z0-9.]+", "-", facts.name.lower()).strip("-.")[:60] or facts.kind
    if not _ID.fullmatch(name):
        raise InputError(f"{name[:60]!r} cannot be a GPU's id; use small letters, digits, dots and hyphens")
    return spec_from(
        name, facts.name, facts.total_bytes, profile.peaks.bandwidth, profile.peaks.flops, facts.cache_bytes,
        facts.name.split()[0], profile.date[:10],
    )  # fmt: skip


def kernel_file(profile: Profile) -> KernelFile:
    """The fitted kernels of a profile in the form of those that the package ships, so that they serve in their place."""
    facts, spec = profile.facts, gpu_of(profile)
    source = Source(title="measured on this machine by kvplan bench", locator=facts.name, date=profile.date[:10])
    return KernelFile(
        device=spec.id, architecture=spec.architecture, origin="measured", sms=facts.units,
        cache_mb=facts.cache_bytes / 1e6, date=profile.date[:10], source=(source,), kernel=profile.kernels,
    )  # fmt: skip


def shares_of(usage: Usage) -> Shares:
    """What the roofline of plans takes."""
    return Shares(
        memory=usage.memory, narrow=usage.memory, cache=usage.cache, compute=usage.compute, compute8=usage.compute8,
        compute4=usage.compute8, grouped=usage.grouped, launch_s=usage.launch_s, soft=True,
    )  # fmt: skip


def toml(spec: GpuSpec) -> str:
    """A catalogue file, as `catalog.load_gpu` reads it."""
    fields = spec.model_dump(exclude_none=True, exclude_defaults=True)
    fields.pop("id")  # it is the file's name
    sources, tables = fields.pop("source"), {k: v for k, v in fields.items() if isinstance(v, dict)}
    lines = _pairs({k: v for k, v in fields.items() if k not in tables})
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_pairs(table)]
    for source in sources:
        lines += ["", "[[source]]", *_pairs({k: v for k, v in source.items() if v})]
    return "\n".join(lines) + "\n"


def _pairs(fields: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in fields.items()]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if value < 1e6 else f"{value:.0f}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
