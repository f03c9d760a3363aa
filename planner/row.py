"""What every row of data shares: it is frozen, it checks itself, and it refuses keys it does not know."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_LAYERS = 4096

Count = Annotated[int, Field(strict=True, ge=1, le=10**15)]
Maybe = Annotated[int, Field(strict=True, ge=0, le=10**15)]
Layers = Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Positive = Annotated[float, Field(gt=0, lt=1e21, allow_inf_nan=False)]


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
    """The first complaint of a validation, as one line that names the key."""
    first: Any = error.errors(include_url=False)[0]
    skip = {"heads", "latent", "cross", "function-after"}
    where = ".".join(str(part) for part in first["loc"] if part not in skip)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"


_SLICE = re.compile(r"-?\d{1,9}|(-?\d{0,9}):(-?\d{0,9})(:\d{1,9})?")


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
            raise ValueError(f"at = {at!r} is not a list of layer numbers and slices, such as '5::6' or ':3'")
        bounds = [int(n) if n else None for n in part.split(":")]
        if len(bounds) == 1:
            index = bounds[0]
            if index is None or not -layers <= index < layers:
                raise ValueError(f"at = {at!r} names layer {part}, but there are {layers}")
            chosen.add(everything[index])
        else:
            if bounds[2:] == [0]:
                raise ValueError(f"at = {at!r} has a step of zero")
            chosen.update(everything[slice(*bounds)])
    if not chosen:
        raise ValueError(f"at = {at!r} names none of the {layers} layers")
    return frozenset(chosen)
