"""A profile: what one run measured on one machine, as versioned JSON that notices when it was cut short or edited.

Raw timings stay in it, so that a later kvplan can fit them again; fitted kernels are beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import Field, ValidationError

from planner import __version__
from planner.bench.device import Facts
from planner.bench.part import Part, Peaks, Usage
from planner.bench.timing import Timing, bootstrap
from planner.calibrate.model import KernelRow
from planner.errors import CardError, InputError
from planner.files import writing
from planner.row import Flag, Row, Text, one_line

VERSION = 1
KIND = "kvplan-bench"
MAX_BYTES = 64 * 2**20
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


def user_folder(environment: Mapping[str, str] | None = None, system: str = sys.platform) -> Path:
    """Where this user's data lies: as the XDG base directory specification, macOS and Windows have it.

    >>> str(user_folder({"XDG_DATA_HOME": "/data"}, "linux"))
    '/data/kvplan'
    """
    env = os.environ if environment is None else environment
    if system == "win32":
        return Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "kvplan"
    if system == "darwin":
        return Path.home() / "Library" / "Application Support" / "kvplan"
    named = env.get("XDG_DATA_HOME", "")
    return (Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "share") / "kvplan"


def default_path(facts: Facts) -> Path:
    """Where the profile of a device goes unless told otherwise."""
    name = facts.catalogue or re.sub(r"[^a-z0-9]+", "-", facts.name.lower()).strip("-") or facts.kind
    return user_folder() / "profiles" / f"{name[:80]}.json"


def measured_for(gpu_id: str) -> Profile | None:
    """The profile of a catalogue's device that this user measured; ``None`` if there is none.

    Raises
    ------
    CardError
        If there is one that is damaged.
    """
    path = user_folder() / "profiles" / f"{gpu_id}.json"
    return load(path) if path.is_file() else None


def latest() -> Profile:
    """The profile that this user measured last: what ``--gpu measured`` means.

    Raises
    ------
    InputError
        If there is none.
    """
    paths = sorted((user_folder() / "profiles").glob("*.json"), key=lambda p: p.stat().st_mtime)
    if not paths:
        raise InputError("nothing has been measured on this machine; run 'kvplan bench' first")
    return load(paths[-1])


def save(profile: Profile, path: str | Path) -> None:
    """Write a profile whole or not at all, with a checksum of its contents.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    contents = profile.model_dump(mode="json")
    if str(path) != "-":
        _make_folder(Path(path).parent)
    with writing(path) as stream:
        json.dump({"checksum": checksum(contents), **contents}, stream, indent=1, allow_nan=False)
        stream.write("\n")


def _make_folder(folder: Path) -> None:
    from planner.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another file with --out") from None


def checksum(contents: Mapping[str, Any]) -> str:
    """SHA-256 of the contents in canonical JSON."""
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def load(path: str | Path) -> Profile:
    """Read a profile.

    Raises
    ------
    CardError
        If it cannot be read, was cut short or edited, is of a newer version, or holds what is no number.
    """
    shown, again = str(path)[:100], "run 'kvplan bench' again"
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise CardError(f"{shown} is larger than any profile; name a file that 'kvplan bench' wrote")
        contents = json.loads(raw.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except OSError as error:
        raise CardError(
            f"cannot read {shown}: {error.strerror or error}; name a file that 'kvplan bench' wrote"
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise CardError(f"{shown} is not a profile; name a file that 'kvplan bench' wrote") from None
    except json.JSONDecodeError as error:
        raise CardError(f"{shown} is cut short or no JSON ({error.msg}, line {error.lineno}); {again}") from None
    except ValueError as error:
        raise CardError(f"{shown} {error}; {again}") from None
    if not isinstance(contents, dict) or contents.get("kind") != KIND:
        raise CardError(f"{shown} is not a profile; name a file that 'kvplan bench' wrote")
    version = contents.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise CardError(
            f"{shown} is of version {version}, and this kvplan reads up to {VERSION}; install a newer kvplan"
        )
    told = contents.pop("checksum", None)
    if told != checksum(contents):
        raise CardError(f"{shown} was edited or damaged: its checksum does not match; {again}")
    try:
        return Profile(**contents)
    except (ValidationError, TypeError) as error:
        why = one_line(error) if isinstance(error, ValidationError) else str(error)
        raise CardError(f"{shown} contradicts itself: {why[:200]}; {again}") from None


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:20])


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is no number")


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
