"""What every row of data shares: it is frozen, it checks itself, and it refuses keys it does not know."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_LAYERS = 4096

Count = Annotated[int, Field(strict=True, ge=1, le=10**15)]
Maybe = Annotated[int, Field(strict=True, ge=0, le=10**15)]
Layers = Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""One printable line."""
Positive = Annotated[float, Field(ge=1e-3, lt=1e9, allow_inf_nan=False)]


class Row(BaseModel):
    """Base of every row read from TOML."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Source(Row):
    """Where a fact comes from. No source, no number."""

    title: Text
    locator: Text
    date: Text
    note: str = ""

    def __str__(self) -> str:
        return f"{self.title} ({self.locator}, {self.date})"


def one_line(error: ValidationError) -> str:
    """The complaint of a validation that helps most, as one line: an unknown key before what is missing without it."""
    found: list[Any] = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    first = found[0]
    skip = {"heads", "latent", "cross", "function-after"}
    where = ".".join(str(part)[:40] for part in first["loc"] if part not in skip)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(Row), n=1)
        message = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"


def _known_keys(kind: type[Row]) -> set[str]:
    """Keys of all rows there are."""
    return set(kind.model_fields).union(*(_known_keys(sub) for sub in kind.__subclasses__()))


_SLICE = re.compile(r"-?[0-9]{1,9}|(-?[0-9]{0,9}):(-?[0-9]{0,9})(:[0-9]{1,9})?")


def select_layers(at: str, layers: int) -> frozenset[int]:
    """Layer numbers that an ``at`` expression names: Python slices and indices, separated by spaces.

    >>> sorted(select_layers("5::6", 20)), sorted(select_layers(":2 -1", 20))
    ([5, 11, 17], [0, 1, 19])

    Raises
    ------
    ValueError
        If the text is not such an expression or names no layer.
    """
    chosen: set[int] = set()
    everything = range(layers)
    for part in at.split():
        if not _SLICE.fullmatch(part):
            raise ValueError(f"at = {at[:60]!r} is not a list of layer numbers and slices, such as '5::6' or ':3'")
        bounds = [int(n) if n else None for n in part.split(":")]
        if len(bounds) == 1:
            index = bounds[0]
            if index is None or not -layers <= index < layers:
                raise ValueError(f"at = {at[:60]!r} names layer {part}, but there are {layers}")
            chosen.add(everything[index])
        else:
            if bounds[2:] == [0]:
                raise ValueError(f"at = {at[:60]!r} has a step of zero")
            chosen.update(everything[slice(*bounds)])
    if not chosen:
        raise ValueError(f"at = {at[:60]!r} names none of the {layers} layers")
    return frozenset(chosen)
