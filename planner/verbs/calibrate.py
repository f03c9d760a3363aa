"""The verb `calibrate`: kernel timings of one's own become the shares of peak that kvplan expects of a device.

Half of the timings of each class and format are fitted to, the other half judge the fit (`planner.calibrate`).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.calibrate import build
from planner.calibrate.model import KernelFile, KernelRow, LinkRow, generic_kernels, load_kernels, shipped
from planner.calibrate.table import Timings, groups, read_table
from planner.catalog import load_gpu, normalise
from planner.errors import InputError
from planner.gpu import GpuSpec
from planner.result import Result
from planner.row import Source

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class KernelFit(Result):
    """How fast kernels of one class and format are, and how well that is known.

    Attributes
    ----------
    degree
        Devices of a collective; 1 for a kernel.
    memory, compute, link
        Shares of bandwidth, of the dense peak of ``runs_in``, and of link bandwidth that large calls reach.
    launch_s
        Time of the smallest call [s].
    points, held_out
        Timings fitted to, and others that the fit is judged on.
    mean, median
        Of ``|predicted / measured - 1|`` over those others.
    low, high
        Factors on the prediction between which 80 % of those others lay.
    origin
        ``measured``, ``published`` or ``generic``.
    """

    kind: str
    format: str
    runs_in: str
    engine: str
    kernel: str
    windowed: bool
    degree: int
    memory: float | None
    compute: float | None
    link: float | None
    launch_s: float
    points: int
    held_out: int
    mean: float
    median: float
    low: float
    high: float
    origin: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Calibration(Result):
    """Fits of one device; ``text`` is the file that holds them, in TOML."""

    gpu: str
    sms: int
    cache_mb: float
    fits: tuple[KernelFit, ...]
    notes: tuple[str, ...]
    text: str


def kernels_of(gpu: GpuSpec) -> KernelFile:
    """The kernels shipped for a device, or those of its architecture.

    >>> kernels_of(load_gpu("h100")).origin, kernels_of(load_gpu("rtx-4090")).origin
    ('published', 'generic')
    """
    return load_kernels(gpu.id) if gpu.id in shipped() else generic_kernels(gpu.architecture)


def fits(file: KernelFile) -> tuple[KernelFit, ...]:
    """Every kernel and collective of a file."""
    return (*(_kernel(row, file.origin) for row in file.kernel), *(_collective(row, file.origin) for row in file.link))


def _kernel(row: KernelRow, origin: str) -> KernelFit:
    return KernelFit(
        kind=row.kind, format=row.format, runs_in=row.runs_in, engine=row.engine, kernel=row.kernel,
        windowed=row.windowed, degree=1, memory=row.memory, compute=row.compute, link=None, launch_s=row.launch_s,
        points=row.points, held_out=row.held_out, mean=row.mean_error, median=row.median_error, low=row.interval[0],
        high=row.interval[1], origin=origin, note=row.note,
    )  # fmt: skip


def _collective(row: LinkRow, origin: str) -> KernelFit:
    least = min(row.latency_s, row.first_s or row.latency_s)
    return KernelFit(
        kind=row.kind, format="-", runs_in="-", engine=row.engine, kernel=row.kernel, windowed=False, degree=row.degree,
        memory=None, compute=None, link=row.share, launch_s=least, points=row.points, held_out=row.held_out,
        mean=row.mean_error, median=row.median_error, low=row.interval[0], high=row.interval[1], origin=origin,
        note=row.note,
    )  # fmt: skip


def calibrate(
    tables: Sequence[str | Path], gpu: str | Path | GpuSpec, *, engine: str | None = None, sms: int | None = None,
    cache_mb: float | None = None,
) -> Calibration:  # fmt: skip
    """Fit kernels of a device to tables of timings.

    Parameters
    ----------
    tables
        CSV or parquet files; see `planner.calibrate.table`.
    gpu
        Whose timings are used; those of other devices are left out, with a note.
    engine
        Whose timings are used; those that name no engine are taken to be its.
    sms, cache_mb
        Streaming multiprocessors, and last-level cache [MB]; ``None`` is what is known of the device or its architecture.

    Raises
    ------
    InputError, UnknownNameError
        If a table cannot be read or has something impossible in it, or none has enough timings of the device.
    """
    spec, known = load_gpu(gpu), kernels_of(load_gpu(gpu))
    if not tables:
        raise InputError("no table of timings; name at least one")
    frame, notes = _chosen([(Path(path), read_table(path)) for path in tables], spec, engine)
    found = groups(frame, " and ".join(Path(path).name for path in tables))
    notes += list(_thin(found))
    if sms is None and known.origin == "generic":
        notes.append(
            f"Multiprocessors of {spec.id} are not known; {known.sms} taken, as of {known.architecture}: --sms."
        )
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    file = build.calibrate(
        found, spec, sms or known.sms, cache_mb or spec.memory.cache_mb or known.cache_mb, date=today,
        source=[Source(title="Kernel timings", locator=Path(path).name, date=today) for path in tables],
    )  # fmt: skip
    return Calibration(
        gpu=spec.id, sms=file.sms, cache_mb=file.cache_mb, fits=fits(file), notes=tuple(notes), text=build.toml(file)
    )


def _chosen(
    tables: list[tuple[Path, pd.DataFrame]], gpu: GpuSpec, engine: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """Timings of the device and engine, with what was left out."""
    import pandas as pd

    frame = pd.concat([frame for _, frame in tables], ignore_index=True)
    names = {normalise(name) for name in (gpu.id, *gpu.aliases)}
    own = frame["device"].map(lambda name: normalise(str(name)) in names)
    notes, others = [], sorted(set(map(str, frame["device"][~own])))
    if not own.any():
        raise InputError(f"no timing is of {gpu.id}, but of {_listed(others)}; name one of them with --gpu")
    if others:
        notes.append(f"{int((~own).sum()):,} timings of {_listed(others)} were left out.")
    frame = frame[own].assign(device=gpu.id)
    if engine is not None:
        frame = frame.assign(engine=frame["engine"].replace("any", engine))
        there = sorted(set(frame["engine"]))
        frame = frame[frame["engine"] == engine]
        if not len(frame):
            raise InputError(f"no timing of {gpu.id} is of {engine}, but of {_listed(there)}; leave --engine out")
        if there != [engine]:
            notes.append(f"Timings of {_listed([name for name in there if name != engine])} were left out.")
    return frame, notes


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} others" if len(names) > 5 else ""
    return ", ".join(name[:40] for name in names[:5]) + more


def _thin(found: Sequence[Timings]) -> Iterator[str]:
    """What has too few timings to be fitted and judged."""
    for t in found:
        by_degree = t.shapes["degree"] if t.kind in build.COLLECTIVES else np.ones(len(t.seconds))
        for degree, count in zip(*np.unique(by_degree, return_counts=True), strict=True):
            if count < build.ENOUGH:
                among = f" among {int(degree)}" if t.kind in build.COLLECTIVES else ""
                yield f"{t.kind} in {t.form}{among} ({t.engine}) has {count} timings, fewer than {build.ENOUGH}: left out."
