"""A catalogue entry of a device that nobody listed, from its profile, CPUs included."""

from __future__ import annotations

import json
import re
from typing import Any

from planner.bench.predict import spec_from
from planner.bench.profile import Profile
from planner.calibrate.model import KernelFile
from planner.catalog import load_gpu
from planner.errors import InputError
from planner.gpu import GpuSpec
from planner.measured import is_id
from planner.row import Source


def gpu_of(profile: Profile, gpu_id: str | None = None) -> GpuSpec:
    """The device of a profile with what it reached: as the catalogue has it or, if it is not there, as it was measured.

    Raises
    ------
    InputError
        If the id is not one that a file can have.
    """
    facts = profile.facts
    if gpu_id is not None and not is_id(gpu_id):
        raise InputError(f"{gpu_id[:60]!r} cannot be a GPU's id; use small letters, digits, dots and hyphens")
    found = {"id": gpu_id or facts.id, "measured": profile.usage}
    if facts.catalogue:
        others = {"aliases": ()} if gpu_id else {}  # another entry cannot answer to the names of this one
        return load_gpu(facts.catalogue).model_copy(update={**found, **others})
    made = spec_from(
        facts.id, facts.name, facts.total_bytes, profile.peaks.bandwidth, profile.peaks.flops, facts.cache_bytes,
        re.sub(r"\(.*?\)", "", facts.name.split()[0]) or "unknown", profile.date[:10],
    )  # fmt: skip
    return made.model_copy(update=found)


def kernel_file(profile: Profile) -> KernelFile:
    """The fitted kernels of a profile in the form of those that the package ships, so that they serve in their place."""
    facts, spec = profile.facts, gpu_of(profile)
    source = Source(title="measured on this machine by kvplan bench", locator=facts.name, date=profile.date[:10])
    return KernelFile(
        device=spec.id, architecture=spec.architecture, origin="measured", sms=facts.units,
        cache_mb=facts.cache_bytes / 1e6, date=profile.date[:10], source=(source,), kernel=profile.kernels,
    )  # fmt: skip


def toml(spec: GpuSpec) -> str:
    """A catalogue file, as `catalog.load_gpu` reads it."""
    fields = spec.model_dump(exclude_none=True, exclude_defaults=True)
    fields.pop("id")  # it is the file's name
    fields.get("measured", {}).pop("file", None)
    rows = {name: value for name, value in fields.items() if _is_rows(value)}
    tables = {name: value for name, value in fields.items() if isinstance(value, dict)}
    lines = _pairs({name: value for name, value in fields.items() if name not in (*rows, *tables)})
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_pairs(table)]
    for name, several in rows.items():
        for row in several:
            lines += [*_tables(name, row)]
    return "\n".join(lines) + "\n"


def _is_rows(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and isinstance(value[0], dict)


def _tables(name: str, row: dict[str, Any]) -> list[str]:
    """One row of an array of tables, and the tables in it."""
    inner = {key: value for key, value in row.items() if isinstance(value, dict)}
    lines = ["", f"[[{name}]]", *_pairs({key: value for key, value in row.items() if value and key not in inner})]
    for key, table in inner.items():
        lines += [f"[{name}.{key}]", *_pairs(table)]
    return lines


def _pairs(fields: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in fields.items()]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if value < 1e6 else f"{value:.0f}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
