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
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from planner.errors import InputError, unknown_name
from planner.gpu import GpuSpec
from planner.row import Count, Flag, Maybe, Positive, Row, Source, Text
from planner.units import GIB, MIB, parse_bytes, parse_fraction, parse_tokens

_FOLDER = Path(__file__).parent / "engines"

ALL_GRAPHS = 256
"""Sequences from which on an engine captures every batch that it ever does."""
Line = Literal["weights", "drafter", "other", "activations", "graphs"]
"""What a GPU holds besides the cache."""
Gib = Annotated[float, Field(ge=0, lt=64, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Reserve = Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)]
Version = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)*)?$")]


class Setup(Row):
    """How an engine is set up: everything that its memory follows from, beside model, device and degrees.

    Attributes
    ----------
    memory_fraction
        Share of memory that the budget starts from.
    before, inside
        What is taken off before the share is taken of the rest, and what must fit within the share beside the cache. What
        is in neither lives in what the share leaves.
    layout
        How the cache is laid out; see `planner.pool`.
    block_tokens
        Tokens in one block of the cache.
    max_tokens
        Longest sequence that the engine is started for [tokens]; ``None`` for the planned context.
    step_tokens, sequences
        Most tokens in one forward pass, and most sequences that run at once.
    whole_prompts
        Whether a pass takes at least one prompt of the longest length, because prompts are not cut into chunks.
    graphs, graph_sequences
        Whether decode steps are captured in graphs, and the largest batch that is.
    prefix_caching
        Whether blocks are kept for sequences that begin alike; a state is then kept for several lengths.
    group_windows
        Whether layers with a window hold their window only, in groups of like layers, rather than every token.
    group_chunks
        The same for layers of chunked attention.
    even_within
        How many times as many layers one kind may have as another for groups as large as the larger, with padding.
    passes
        Forward passes that are under way at once, whose tokens a window keeps room for.
    window_share, state_share
        Tokens of window layers for each token of full ones, and bytes of states for each byte of tokens, where they have
        pools of their own.
    draft_tokens
        Tokens that a drafter proposes at each step.
    follow_checkpoint
        Whether the cache takes the format that the checkpoint declares, unless told otherwise.
    tokens_are
        What the engine prints as the size of its cache: ``blocks`` of one group, or ``requests`` of the longest length.
    sampler_bytes
        Peak of sampling for each sequence and vocabulary entry [B].
    sampler_rows
        Rows of the vocabulary in fp32 that sampling holds besides.
    workspace_kept
        Whether the workspace of routed experts is held while sampling.
    latent_rows
        Most earlier tokens whose keys and values MLA expands at once in prefill.
    tower_tokens
        Tokens that a vision tower is profiled with.
    tower
        Whether towers are loaded.
    other_gib, graphs_gib
        Driver context, communication buffers and the like, and captured graphs, on one GPU [GiB].
    absorbed_bytes
        Bytes of each element of MLA's up-projections that is kept a second time, for absorbed decoding.
    expert_steps
        By format of experts, what their width on a rank and the hidden size are padded to multiples of.
    dense_over_all
        Whether data-parallel groups share dense layers, embedding and head; see `stage.Sharding`.
    past_inputs
        Whether a convolution keeps its past inputs only, rather than the present one as well.
    state_format, conv_format
        Formats of recurrent states and of a convolution's inputs, where they are not the model's own.
    state_copies, state_slots
        Slots for states that a running sequence takes, and slots in all, where they are given instead of derived.
    reserve_mib, reserve_token_mib, reserve_graph_mib, reserve_rank_mib, reserve_least_mib
        What the default share leaves, where it is derived: a constant, more for each token of a pass, sequence of a graph
        and rank, and the least that it may be [MiB].
    ranks_are_all
        Whether what the engine calls its tensor-parallel size counts all ranks, those of data-parallel groups too.
    index_format
        Format of an indexer's keys, where it is not that of the cache.
    """

    memory_fraction: Fraction = 1.0
    before: tuple[Line, ...] = ()
    inside: tuple[Line, ...] = ("weights", "drafter", "other", "activations", "graphs")
    layout: Literal["tokens", "blocks", "pools", "cells"] = "tokens"
    kv_memory: Maybe | None = None
    block_tokens: Count = 1
    max_tokens: Count | None = None
    step_tokens: Maybe = 0
    whole_prompts: Flag = False
    sequences: Maybe = 0
    graphs: Flag = False
    graph_sequences: Maybe = 0
    prefix_caching: Flag = False
    group_windows: Flag = True
    group_chunks: Flag = True
    even_within: Annotated[float, Field(ge=1, le=10)] = 1.0
    passes: Count = 1
    window_share: Fraction = 1.0
    state_share: Annotated[float, Field(gt=0, le=100)] = 1.0
    draft_tokens: Maybe = 0
    follow_checkpoint: Flag = False
    tokens_are: Literal["blocks", "requests"] = "blocks"
    sampler_bytes: Maybe = 0
    sampler_rows: Maybe = 0
    workspace_kept: Flag = False
    latent_rows: Maybe = 0
    tower_tokens: Maybe = 0
    tower: Flag = True
    other_gib: Gib = 0.0
    graphs_gib: Gib = 0.0
    absorbed_bytes: Maybe = 0
    expert_steps: dict[str, tuple[Count, Count]] = Field(default_factory=dict)
    dense_over_all: Flag = False
    past_inputs: Flag = False
    state_format: str = ""
    conv_format: str = ""
    state_copies: Count = 1
    state_slots: Count | None = None
    reserve_mib: Positive | None = None
    reserve_token_mib: Reserve = 0.0
    reserve_graph_mib: Reserve = 0.0
    reserve_rank_mib: Reserve = 0.0
    reserve_least_mib: Reserve = 0.0
    ranks_are_all: Flag = False
    index_format: str = ""

    @property
    def other_bytes(self) -> int:
        """Driver context, communication buffers and the like [B]."""
        return int(self.other_gib * GIB)

    @property
    def graph_bytes(self) -> int:
        """Captured graphs [B]: fewer where the engine captures fewer batches, which go up to twice the sequences.

        That they grow with the root of it was fitted to printed figures: 0.19 GiB with 10 sequences, 0.6 with 256.
        """
        share = min(1.0, (self.sequences / ALL_GRAPHS) ** 0.5) if self.sequences else 1.0
        return int(self.graphs_gib * share * GIB) if self.graphs else 0


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

    def meets(self, version: str, at: Situation) -> bool:
        """Whether the row is for this version in this situation."""
        gpu, gib = at.gpu, at.gpu.usable_bytes / GIB
        return (
            self.of_version(version)
            and self.at_least_gib <= gib
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
        spelled = {self.flag, self.off, "--" + self.name.replace("_", "-")}
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

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Settings of this version."""
        return tuple(k for k in self.knob if k.of_version(self.version))

    def setup(self, at: Situation, given: Mapping[str, Any]) -> Setup:
        """The defaults of this version in a situation, with what was given in their place."""
        chosen: dict[str, Any] = dict(given)
        for case in self.case:
            if case.meets(self.version, at):
                for name in case.model_fields_set & set(Setup.model_fields):
                    chosen.setdefault(name, getattr(case, name))
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
    if match is None or match[1] not in engine_ids():
        shown = name.partition("@")[0] if isinstance(name, str) else str(name)
        raise unknown_name("engine", shown, engine_ids(), f"use one of {', '.join(engine_ids())}, or vllm@VERSION")
    data = tomllib.loads((_FOLDER / f"{match[1]}.toml").read_text(encoding="utf-8"))
    version = match[2] or data["stated"]
    oldest = data.get("oldest", "")
    if match[2] and not oldest:
        raise InputError(f"{data['name']} has no versions; use --engine {match[1]}")
    if oldest and _parts(version) < _parts(oldest):
        raise InputError(
            f"nothing is known of {data['name']} before {oldest}; use --engine {match[1]}@{oldest} or later"
        )
    return Engine(id=match[1], version=version, **data)
