"""Engine profiles: what an inference engine takes of the memory before the cache gets the rest.

A profile is data (``engines/*.toml``) with its sources and the version it describes. The budget of one GPU is

    pool = memory_fraction * usable - weights - activations - overhead

rounded down to whole blocks of tokens.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from planner.errors import unknown_name
from planner.gpu import GpuSpec
from planner.row import Count, Maybe, Row, Source, Text
from planner.units import GIB

_FOLDER = Path(__file__).parent / "engines"


class Overhead(Row):
    """Memory of one GPU that is neither weights nor activations nor cache: driver context, NCCL, CUDA graphs [GiB].

    Attributes
    ----------
    single, parallel
        On a GPU that works alone, and on one that works with others.
    """

    single: Annotated[float, Field(ge=0, lt=64)]
    parallel: Annotated[float, Field(ge=0, lt=64)]


class Profile(Row):
    """Shape of the forward pass that activations are reserved for, on devices that meet the row's conditions.

    Attributes
    ----------
    at_least_gib, except_architecture
        The row is for devices with this much usable memory, but not of these architectures.
    tokens, sequences
        Tokens in the pass, and how many of them are sampled.
    """

    at_least_gib: float = 0.0
    except_architecture: tuple[Text, ...] = ()
    tokens: Maybe
    sequences: Maybe

    def meets(self, gpu: GpuSpec) -> bool:
        """Whether the row is for this device."""
        return gpu.usable_bytes >= self.at_least_gib * GIB and gpu.architecture not in self.except_architecture


class Engine(Row):
    """An inference engine's budget.

    Attributes
    ----------
    memory_fraction
        Share of the GPU's memory that the engine takes.
    block_tokens
        Tokens in one block of its cache.
    sampler_bytes
        Peak of sampling for each sequence and vocabulary entry [B].
    vendors
        Whose devices the figures were read on; empty for all.
    profile
        Profiling passes by device; the first row that a device meets holds, and none reserves nothing.
    """

    id: Text
    name: Text
    version: Text
    memory_fraction: Annotated[float, Field(gt=0, le=1)]
    block_tokens: Count
    sampler_bytes: Maybe = 0
    profile: tuple[Profile, ...] = ()
    vendors: tuple[Text, ...] = ()
    overhead_gib: Overhead
    note: str = ""
    source: tuple[Source, ...] = Field(min_length=1)

    def overhead_bytes(self, gpus: int) -> int:
        """Overhead on each of ``gpus`` GPUs [B]."""
        return int((self.overhead_gib.single if gpus == 1 else self.overhead_gib.parallel) * GIB)

    def profile_of(self, gpu: GpuSpec) -> Profile:
        """The profiling pass on a device."""
        return next((row for row in self.profile if row.meets(gpu)), Profile(tokens=0, sequences=0))


def engine_ids() -> list[str]:
    """Ids of all engine profiles."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


@lru_cache(maxsize=32)
def load_engine(name: str) -> Engine:
    """Load an engine profile by id.

    Raises
    ------
    UnknownNameError
        If there is no such profile.
    """
    wanted = name.strip().lower() if isinstance(name, str) else ""
    if wanted not in engine_ids():
        raise unknown_name("engine", str(name), engine_ids(), f"use one of {', '.join(engine_ids())}")
    return Engine(id=wanted, **tomllib.loads((_FOLDER / f"{wanted}.toml").read_text(encoding="utf-8")))
