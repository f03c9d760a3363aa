"""A profile: what one run measured on one machine, as versioned JSON that notices when it was cut short or edited.

Raw timings stay in it, so that a later kvplan can fit them again; fitted kernels are beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from planner import __version__
from planner.bench.device import Facts
from planner.bench.part import Part, Peaks
from planner.bench.timing import Timing, bootstrap
from planner.calibrate.model import KernelRow
from planner.errors import CardError, InputError, OutputError
from planner.files import writing
from planner.gpu import GpuSpec
from planner.measured import checksum, contents_of, latest_path, profile_path
from planner.row import Flag, Row, Text, one_line
from planner.usage import Usage

Second = Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)]


class Measured(Row):
    """One operator of one shape, as it was timed.

    Attributes
    ----------
    parts
        What it is made of; one for a plain operator.
    samples_s
        Time of one call, sample by sample [s].
    disturbed
        Share of samples that were set aside.
    earlier_s
        What the best efficiency known before this run predicted; ``None`` where there was none [s].
    """

    operator: Text
    shape: Text
    parts: tuple[Part, ...] = Field(min_length=1)
    held_out: Flag = False
    backend: str = ""
    mode: Literal["graph", "eager"] = "eager"
    disturbed: Share = 0.0
    steady: Flag = True
    samples_s: tuple[Second, ...] = Field(min_length=1)
    earlier_s: Second | None = None

    @property
    def median_s(self) -> float:
        return float(np.median(self.samples_s))

    @property
    def interval_s(self) -> tuple[float, float]:
        return bootstrap(self.samples_s)

    @property
    def kind(self) -> str:
        """Its class, or ``whole`` for what is made of several."""
        return self.parts[0].kind if len(self.parts) == 1 else "whole"

    @property
    def timing(self) -> Timing:
        return Timing(self.samples_s, self.disturbed, self.steady, self.mode)


class MemoryCheck(Row):
    """A cache that was allocated, against its prediction [B].

    Attributes
    ----------
    allocator_bytes
        What the device's allocator handed out, which rounds each tensor up; the tensors' storage on a CPU.
    """

    variant: Text
    form: Text
    batch: Annotated[int, Field(ge=1)]
    context: Annotated[int, Field(ge=1)]
    predicted_bytes: Annotated[int, Field(ge=0)]
    tensor_bytes: Annotated[int, Field(ge=0)]
    allocator_bytes: Annotated[int, Field(ge=0)]


class BatchCheck(Row):
    """The largest batch that fitted beside the weights, against its prediction."""

    variant: Text
    budget_bytes: Annotated[int, Field(ge=0)]
    weight_bytes: Annotated[int, Field(ge=0)]
    predicted_weight_bytes: Annotated[int, Field(ge=0)]
    context: Annotated[int, Field(ge=1)]
    predicted: Annotated[int, Field(ge=0)]
    measured: Annotated[int, Field(ge=0)]
    refused_by: Text


class Profile(Row):
    """What one run found.

    Attributes
    ----------
    kernels
        The law of `calibrate.model` fitted to each class and format.
    usage
        The same in the few numbers that plans use.
    device
        The device as a catalogue entry with these numbers: what plans read; ``None`` without products.
    skipped
        Operators that were not measured, and why.
    repeat_difference
        Largest difference between rates of two runs in a row; ``None`` if there was one run.
    """

    kind: Literal["kvplan-bench"] = "kvplan-bench"
    version: Literal[1] = 1
    kvplan: Text = __version__
    date: Text
    facts: Facts
    peaks: Peaks
    main: Text
    size: Text
    measured: tuple[Measured, ...]
    memory: tuple[MemoryCheck, ...] = ()
    batches: tuple[BatchCheck, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    usage: Usage | None = None
    device: GpuSpec | None = None
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    repeat_difference: Share | None = None

    @property
    def names(self) -> tuple[str, str]:
        """Catalogue id, empty if it has none, and what the driver calls the device."""
        return self.facts.catalogue, self.facts.name


def today() -> str:
    """Now, to the second, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def default_path(facts: Facts) -> Path:
    """Where the profile of a device goes unless told otherwise."""
    return profile_path(facts.id)


def measured_for(gpu_id: str) -> Profile | None:
    """The profile of a catalogue's device that this user measured; ``None`` if there is none.

    Raises
    ------
    CardError
        If there is one that is damaged.
    """
    path = profile_path(gpu_id)
    return load(path) if path.is_file() else None


def latest() -> Profile:
    """The profile that this user measured last: what ``--gpu measured`` means.

    Raises
    ------
    InputError
        If there is none.
    """
    return load(latest_path())


def save(profile: Profile, path: str | Path) -> None:
    """Write a profile whole or not at all, with a checksum of its contents.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    if str(path) != "-":
        make_folder(Path(path).parent)
    with writing(path) as stream:
        write(profile, stream)


def write(profile: Profile, stream: IO[str]) -> None:
    """Write a profile with a checksum of its contents."""
    contents = profile.model_dump(mode="json")
    json.dump({"checksum": checksum(contents), **contents}, stream, indent=1, allow_nan=False)
    stream.write("\n")


def make_folder(folder: Path) -> None:
    """Make the folder that a profile goes to.

    Raises
    ------
    OutputError
        If that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another file with --out") from None


def load(path: str | Path) -> Profile:
    """Read a profile.

    Raises
    ------
    CardError
        If it cannot be read, was cut short or edited, is of a newer version, or holds what is no number.
    """
    contents = contents_of(path)
    try:
        return Profile(**contents)
    except (ValidationError, TypeError) as error:
        why = one_line(error) if isinstance(error, ValidationError) else str(error)
        raise CardError(f"{str(path)[:100]} contradicts itself: {why[:200]}; run 'kvplan bench' again") from None


def merge(profiles: Sequence[Profile]) -> Profile:
    """One profile with the timings of several runs on one machine; nothing is fitted yet (see `fit.refit`).

    Raises
    ------
    InputError
        If there are none, or they are of different machines, or measured with different versions of torch.
    """
    if not profiles:
        raise InputError("there is no profile to merge; name at least one")
    first = profiles[0]
    for other in profiles[1:]:
        if other.facts.identity != first.facts.identity:
            raise InputError(
                f"profiles of different machines cannot be merged: {describe(first.facts)} and {describe(other.facts)}; "
                "keep one file for each"
            )
        if other.facts.torch != first.facts.torch:
            raise InputError(
                f"profiles made with torch {first.facts.torch} and {other.facts.torch} cannot be merged; measure again"
            )
    pooled: dict[tuple[str, str, str], Measured] = {}
    for one in (m for p in profiles for m in p.measured):
        key = (one.operator, one.shape, one.parts[0].form)
        had = pooled.get(key)
        pooled[key] = one if had is None else had.model_copy(update={"samples_s": had.samples_s + one.samples_s})
    return first.model_copy(update={"measured": tuple(pooled.values()), "date": max(p.date for p in profiles)})


def describe(facts: Facts) -> str:
    """A device in a few words."""
    unit = "threads" if facts.kind == "cpu" else "processors"
    return (
        f"{facts.name} ({round(facts.total_bytes / 2**30)} GiB, {facts.units} {unit if facts.units > 1 else unit[:-1]})"
    )
