"""A model as a card: the TOML that would load as it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from planner.model import ModelSpec

_SCALARS_FIRST = (
    "name",
    "family",
    "aliases",
    "parameters",
    "parameters_within",
    "context_limit",
    "layers",
    "hidden",
    "vocab",
)
_GROUPED = 10**7
"""Numbers from here on are written with underscores."""
_WIDE = 100
"""Arrays longer than this have a line for each item."""


def card_text(model: ModelSpec) -> str:
    """The card of a model: what differs from a row's defaults, tables after scalars.

    >>> from planner.checkpoint.load import load_model
    >>> card_text(load_model("gpt2")).splitlines()[0]
    'name = "GPT-2 124M"'
    """
    return "\n".join(_table("", model, _SCALARS_FIRST)) + "\n"


def _table(name: str, row: BaseModel, first: tuple[str, ...] = ("at", "kind")) -> Iterator[str]:
    """A row's own keys, then the tables within it."""
    fields = {key: getattr(row, key) for key in type(row).model_fields if key != "id" and _told(row, key)}
    ordered = {key: fields[key] for key in (*first, *fields) if key in fields}
    inner = {k: v for k, v in ordered.items() if _is_table(v)}
    yield from (f"{key} = {_value(value)}" for key, value in ordered.items() if key not in inner)
    for key, value in inner.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, tuple):
            for one in value:
                yield from ("", f"[[{path}]]", *_table(path, one))
        elif isinstance(value, Mapping):
            yield from ("", f"[{path}]", *(f"{k} = {_value(v)}" for k, v in value.items()))
        else:
            yield from ("", f"[{path}]", *_table(path, value))


def _told(row: BaseModel, key: str) -> bool:
    """Whether a card must say it: not what the row would have anyway. A kind other than plain attention is always said."""
    value, field = getattr(row, key), type(row).model_fields[key]
    if key == "kind":
        return bool(value != "heads")
    return field.is_required() or value != field.get_default(call_default_factory=True)


def _is_table(value: Any) -> bool:
    several = isinstance(value, tuple) and bool(value) and isinstance(value[0], BaseModel)
    return several or isinstance(value, (BaseModel, Mapping))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= _GROUPED else str(value)
    if isinstance(value, tuple):
        inside = [_value(v) for v in value]
        line = f"[{', '.join(inside)}]"
        return line if len(line) <= _WIDE else "[\n" + "".join(f"    {one},\n" for one in inside) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
