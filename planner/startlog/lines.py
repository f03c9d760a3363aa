"""The lines that engines print, as data: ``patterns/*.toml``, one file an engine, every row with its source."""

from __future__ import annotations

import re
import tomllib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from planner.row import Flag, Maybe, Row, Source, Text
from planner.startlog.log import kinds
from planner.units import GIB, KIB, MIB, TIB

_FOLDER = Path(__file__).parent / "patterns"
_NUMBER = r"(?P<%s>[0-9]{1,20}(?:,[0-9]{3}){0,6}(?:\.[0-9]{1,18})?)"
_SLOT = re.compile(r"\{\{(\w+)\}\}")

BYTES = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB
}  # fmt: skip
Unit = Literal["B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]
Keep = Literal["all", "first", "last", "sum", "max"]


class Line(Row):
    """A line of a log.

    Attributes
    ----------
    literal
        Text that stands in every such line; only lines that hold it are tried.
    pattern
        Regular expression. A group fills the field it is named after, and ``{{field}}`` is a group of a number. The group
        ``unit`` is the unit printed, ``rank`` the rank or device.
    unit
        Unit of the byte fields of the pattern.
    keep
        What becomes of several values of one rank; values of different ranks are always kept apart.
    fallback
        0 for the line to believe; a higher one speaks only where no line with a lower one did.
    sums
        Field and the groups that add up to it.
    keys
        Field for each key of the settings printed after the pattern, ``!field`` where the key says the opposite.
    sets
        Flags that the line itself says.
    clears
        Fields that the line takes back, ``*`` for all: a new start.
    replace
        Parts of a text and what to put instead.
    seen
        Versions or dates that were seen to print it; others may.
    around
        Whether it is no engine's, but stands around logs of any.
    """

    literal: Text
    pattern: Text
    example: Text
    source: Text
    unit: Unit | None = None
    keep: Keep = "all"
    fallback: Annotated[Maybe, Field(lt=4)] = 0
    sums: dict[str, tuple[Text, ...]] = Field(default_factory=dict)
    keys: dict[str, Text] = Field(default_factory=dict)
    sets: dict[str, Flag] = Field(default_factory=dict)
    clears: tuple[Text, ...] = ()
    replace: dict[str, str] = Field(default_factory=dict)
    seen: Text = "any"
    note: str = ""
    around: Flag = False

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The pattern, compiled."""
        return re.compile(_SLOT.sub(lambda slot: _NUMBER % slot[1], self.pattern))

    @model_validator(mode="after")
    def _names_fields(self) -> Self:
        parts = {part for several in self.sums.values() for part in several}
        named = (set(self.regex.groupindex) - parts - {"unit", "rank"}) | self.sums.keys() | self.sets.keys()
        named |= {field.removeprefix("!") for field in self.keys.values()} | set(self.clears) - {"*"}
        if unknown := sorted(named - kinds().keys()):
            raise ValueError(f"{', '.join(unknown)}: no such field of a start-up log")
        if self.literal not in self.example or not self.regex.search(self.example):
            raise ValueError(f"the example of {self.pattern[:60]!r} does not match it")
        return self


class Engine(Row):
    """The lines of an engine.

    Attributes
    ----------
    rank
        Pattern whose group ``rank`` tells ranks apart, from the start of the line.
    units
        What the engine means by a unit it prints, where that is another one.
    """

    engine: Text
    source: tuple[Source, ...] = Field(min_length=1)
    rank: Text | None = None
    units: dict[Unit, Unit] = Field(default_factory=dict)
    line: tuple[Line, ...] = Field(min_length=1)

    @cached_property
    def rank_regex(self) -> re.Pattern[str] | None:
        """The pattern of ranks, compiled."""
        return re.compile(self.rank) if self.rank else None

    def factor(self, unit: str | None) -> int | None:
        """Bytes in a unit as this engine prints it."""
        if not unit:
            return 1
        meant = {str(printed): str(true) for printed, true in self.units.items()}
        return BYTES.get(meant.get(unit, unit))


@lru_cache(maxsize=1)
def engines() -> tuple[Engine, ...]:
    """All engines, by name."""
    found = []
    for path in sorted(_FOLDER.glob("[!_]*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        found.append(Engine(**{**data, "line": [*data["line"], *_around()]}))
    return tuple(found)


def _around() -> list[dict[str, Any]]:
    data = tomllib.loads((_FOLDER / "_around.toml").read_text(encoding="utf-8"))
    return [{**row, "around": True} for row in data["line"]]
