"""Inference engines as data: their settings under their own names, the defaults of each version, and what they reserve.

An engine is a file (``engines/*.toml``) with its sources. It names its settings (`Knob`), each with the field of `Setup`
that it sets, and gives the values of these fields by version and device (`Case`). The code knows what the fields mean, and
no engine by name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from planner.errors import InputError, unknown_name
from planner.gpu import GpuSpec
from planner.row import Flag, Maybe, Row, Source, Text
from planner.setup import Setup
from planner.units import GIB, MIB, parse_bytes, parse_fraction, parse_tokens

_FOLDER = Path(__file__).parent / "engines"

Version = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)*)?$")]


@dataclass(frozen=True, slots=True)
class Situation:
    """What an engine's defaults may depend on: devices, the kind of model, the longest sequence [tokens]."""

    gpu: GpuSpec
    gpus: int
    family: str
    states: bool
    longest: int


class When(Row):
    """Versions and devices that a row holds for; a condition that is not given always holds."""

    since: Version = ""
    before_version: Version = ""
    at_least_gib: float = 0.0
    below_gib: float | None = None
    vendors: tuple[Text, ...] = ()
    architectures: tuple[Text, ...] = ()
    except_architectures: tuple[Text, ...] = ()
    link: str = ""
    """Part of the name of the link between devices, such as ``NVSwitch``."""
    families: tuple[Text, ...] = ()
    except_families: tuple[Text, ...] = ()
    """Families of models."""
    several: Flag | None = None
    """Whether the GPU works with others."""
    states: Flag | None = None
    """Whether the model has layers of recurrent state."""
    longer_than: Maybe = 0
    """The longest sequence is longer than this [tokens]."""

    def of_version(self, version: str) -> bool:
        """Whether the row is for this version of the engine."""
        if self.before_version and _parts(version) >= _parts(self.before_version):
            return False
        return not self.since or _parts(version) >= _parts(self.since)

    def meets(self, at: Situation) -> bool:
        """Whether the row is for this situation."""
        gpu, gib = at.gpu, at.gpu.usable_bytes / GIB
        return (
            self.at_least_gib <= gib
            and (self.below_gib is None or gib < self.below_gib)
            and (not self.vendors or gpu.vendor in self.vendors)
            and (not self.architectures or gpu.architecture in self.architectures)
            and gpu.architecture not in self.except_architectures
            and self.link in gpu.link.kind
            and (not self.families or at.family in self.families)
            and at.family not in self.except_families
            and (self.several is None or self.several == (at.gpus > 1))
            and (self.states is None or self.states == at.states)
            and at.longest > self.longer_than
        )


class Case(When, Setup):
    """Values that hold for some versions and devices."""


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


class Knob(When):
    """One setting of an engine.

    Attributes
    ----------
    name
        The engine's own name for it.
    sets
        The field of `Setup`, or the choice of a deployment (``tp``, ``kv``, ``context``, ...) that it sets; empty for one
        that is only passed on.
    kind
        How its value is read: a count, a share, bytes, on or off, or a word.
    flag
        On the engine's command line.
    off
        The flag that turns it off, or that it is, where being given means off.
    values
        What kvplan's names of formats are called here.
    file_key
        Place in the engine's settings file, where it has no flag.
    """

    name: Text
    sets: str = ""
    kind: Literal["count", "share", "number", "bytes", "switch", "word", "json"] = "count"
    flag: str = ""
    off: str = ""
    values: dict[str, str] = Field(default_factory=dict)
    file_key: str = ""
    meaning: str = ""

    @property
    def meaning_in_words(self) -> str:
        """What it sets, for people."""
        return "tokens that the model's draft layers propose" if self.kind == "json" else self.meaning

    @property
    def flags(self) -> tuple[str, ...]:
        """Options that kvplan reads it from: the engine's own, long ones only."""
        spelled = {self.flag.rpartition(" ")[2], self.off, "--" + self.name.replace("_", "-")}
        return tuple(sorted(f for f in spelled if f.startswith("--")))

    def read(self, value: object) -> Any:
        """A value as typed, checked.

        Raises
        ------
        InputError
            If it is no value of this kind.
        """
        shown = self.flag or self.name
        if self.kind == "switch":
            known = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
            if str(value).lower() not in known:
                raise InputError(f"{shown} is on or off, not {str(value)[:40]!r}")
            return known[str(value).lower()]
        if self.kind == "share":
            return parse_fraction(value, shown)  # type: ignore[arg-type]
        if self.kind == "bytes":
            number = int(value) if isinstance(value, str) and value.isdecimal() else value
            return parse_bytes(number, shown)  # type: ignore[arg-type]
        if self.kind == "number":
            return _number(value, shown)
        if self.kind in ("count", "json"):
            return parse_tokens(value, shown)  # type: ignore[arg-type]
        return str(value)


class Engine(Row):
    """An inference engine, at one version.

    Attributes
    ----------
    stated
        The version that the file describes, planned for unless another is named.
    oldest
        The oldest version that its cases hold for.
    launch
        The command that starts it, with ``{model}`` where the model goes.
    vendors
        Whose devices the figures were read on; empty for all.
    """

    id: Text
    name: Text
    stated: Text
    oldest: Version = ""
    version: Text
    launch: str = ""
    settings_file: str = ""
    vendors: tuple[Text, ...] = ()
    knob: tuple[Knob, ...] = ()
    case: tuple[Case, ...] = ()
    note: str = ""
    source: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Engine:
        for case in self.case:
            if not case.model_fields_set - set(When.model_fields):
                raise ValueError("a case that sets nothing")
        return self

    @property
    def label(self) -> str:
        """Engine and version as people type them."""
        return f"{self.id}@{self.version}" if self.version != self.stated else self.id

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """Settings of this version."""
        return tuple(k for k in self.knob if k.of_version(self.version))

    def can_set(self, *targets: str) -> bool:
        """Whether a setting sets one of these; an engine without settings does whatever is asked."""
        return not self.knobs or any(k.sets.removeprefix("!") in targets for k in self.knobs)

    @property
    def splits_layers(self) -> bool:
        """Whether several GPUs share a model by its layers, because the engine has no tensor parallelism."""
        return not self.can_set("tp")

    @cached_property
    def _cases(self) -> tuple[tuple[Case, dict[str, Any]], ...]:
        """Cases of this version with the fields that they set."""
        fields = set(Setup.model_fields)
        return tuple(
            (case, {name: getattr(case, name) for name in case.model_fields_set & fields})
            for case in self.case
            if case.of_version(self.version)
        )

    def setup(self, at: Situation, given: Mapping[str, Any]) -> Setup:
        """The defaults of this version in a situation, with what was given in their place."""
        chosen: dict[str, Any] = dict(given)
        for case, values in self._cases:
            if case.meets(at):
                for name, value in values.items():
                    chosen.setdefault(name, value)
        if "memory_fraction" not in chosen and chosen.get("reserve_mib"):
            chosen["memory_fraction"] = _share_left(chosen, at)
        if chosen.get("whole_prompts") and "step_tokens" not in given:
            chosen["step_tokens"] = max(chosen["step_tokens"], at.longest)
        return Setup(**chosen)

    def find_knob(self, name: str) -> Knob:
        """A setting by its own name or flag.

        Raises
        ------
        UnknownNameError
            If this version has no such setting.
        """
        wanted = name.strip().lower().lstrip("-").replace("-", "_")
        for knob in self.knobs:
            if wanted in {f.lstrip("-").replace("-", "_") for f in (knob.name, *knob.flags)}:
                return knob
        later = [k for k in self.knob if k.name == wanted and not k.of_version(self.version)]
        if later:
            raise InputError(
                f"{self.name} {self.version} has no {name}; name another version, as in {self.id}@{self.stated}"
            )
        known = [k.name for k in self.knobs]
        raise unknown_name(
            f"setting of {self.name} {self.version}", name, known, f"'kvplan engines {self.id}' lists them"
        )


def _share_left(chosen: Mapping[str, Any], at: Situation) -> float:
    """The share that a reserve leaves: what it is made of is in MiB, a pass being at least 2,048 tokens."""
    tokens, graph = max(chosen.get("step_tokens", 0), 2048), chosen.get("graph_sequences", 0)
    terms = (("token", tokens), ("graph", graph), ("rank", at.gpus))
    reserve = chosen["reserve_mib"] + sum(chosen.get(f"reserve_{name}_mib", 0.0) * times for name, times in terms)
    reserve = max(reserve, chosen.get("reserve_least_mib", 0.0))
    total = at.gpu.usable_bytes / MIB
    return float(round(max(total - reserve, 0.05 * total) / total, 3))


def _number(value: object, shown: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0 < number <= 100:
        raise InputError(f"{shown} must be a number above 0 and at most 100, not {str(value)[:40]!r}")
    return number


def engine_ids() -> list[str]:
    """Ids of all engines."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


_NAMED = re.compile(r"([a-z][a-z0-9_.-]*)(?:@v?([0-9]+(?:\.[0-9]+){0,3})(?:[.+a-z-].*)?)?")


@lru_cache(maxsize=64)
def load_engine(name: str) -> Engine:
    """Load an engine, at the version that its file states or at another: ``vllm``, ``vllm@0.20``.

    Raises
    ------
    UnknownNameError
        If there is no such engine.
    InputError
        If the version is not one, or older than the file knows.

    >>> load_engine("vllm@0.20.0").version
    '0.20.0'
    """
    match = _NAMED.fullmatch(name.strip().lower()) if isinstance(name, str) and len(name) < 100 else None
    found = _engine_of(match[1]) if match else None
    if match is None or found is None:
        shown = name.partition("@")[0] if isinstance(name, str) else str(name)
        if _engine_of(shown.strip().lower()):
            raise InputError(f"cannot read the version in {str(name)[:60]!r}; write it like --engine vllm@0.20")
        raise unknown_name("engine", shown, engine_ids(), f"use one of {', '.join(engine_ids())}, or vllm@VERSION")
    data = tomllib.loads((_FOLDER / f"{found}.toml").read_text(encoding="utf-8"))
    version = match[2] or data["stated"]
    oldest = data.get("oldest", "")
    if match[2] and not oldest:
        raise InputError(f"{data['name']} has no versions; use --engine {found}")
    if oldest and _parts(version) < _parts(oldest):
        raise InputError(f"nothing is known of {data['name']} before {oldest}; use --engine {found}@{oldest} or later")
    return Engine(id=found, version=version, **data)


def _engine_of(name: str) -> str | None:
    """The engine of a name: its id, or its own name however it is spelled."""
    if name in engine_ids():
        return name
    plain = re.sub(r"[^a-z0-9]", "", name)
    files = {engine: tomllib.loads((_FOLDER / f"{engine}.toml").read_text(encoding="utf-8")) for engine in engine_ids()}
    return next((e for e, data in files.items() if plain == re.sub(r"[^a-z0-9]", "", data["name"].lower())), None)
