"""Architectures: model cards whose numbers are formulas over a configuration's keys, one file each.

``architectures/<model_type>.toml`` holds the rows of a card (`planner.model.ModelSpec`) in named tables. A text is a formula
(`planner.checkpoint.expression`); a row's ``where`` says which layers ``i`` have it, and a row without takes the rest.
``like`` starts from another file: tables merge, values replace, ``false`` takes a row away. ``decoder`` names the nested
configuration that the layers are read from, by the architecture that it names itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.checkpoint.expression import compiled

_FOLDER = Path(__file__).parent / "architectures"
FALLBACK = "_decoder"
"""The standard decoder: any architecture whose configuration has no keys that nobody understands."""

ROWS = ("attention", "state", "ffn", "extra", "other")


@dataclass(frozen=True)
class Architecture:
    """One file, with what it starts from merged in.

    Attributes
    ----------
    name
        Its file name: a ``model_type``.
    defaults, derived
        Values of keys that a configuration leaves out, and names that are derived from its keys.
    configs
        Nested configurations, with the architecture of those that do not name their own.
    decoder
        The nested configuration that holds the layers; empty where they are at the top.
    model
        Scalars of the card.
    silent
        Keys that say nothing of the shape; only the standard decoder lists them.
    rows
        For each kind of row the named tables.
    """

    name: str
    title: str
    defaults: Mapping[str, Any]
    derived: Mapping[str, Any]
    configs: Mapping[str, str]
    decoder: str
    model: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    encoder: Mapping[str, Any] | None
    drafter: Mapping[str, Any] | None
    source: str
    note: str
    silent: tuple[str, ...] = ()

    @classmethod
    def around(cls, inner: Architecture, key: str) -> Architecture:
        """An unknown wrapper whose nested configuration ``key`` holds the layers."""
        nothing: dict[str, Any] = {}
        return cls(
            inner.name, inner.title, nothing, nothing, {key: inner.name}, key, nothing, dict.fromkeys(ROWS, nothing), None,
            None, inner.source, inner.note,
        )  # fmt: skip


def architecture_names() -> list[str]:
    """All architectures, sorted."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml") if not p.stem.startswith("_"))


@lru_cache(maxsize=256)
def load_architecture(name: str) -> Architecture:
    """Load one architecture by file name."""
    table = _merged(name)
    return Architecture(
        name=name,
        title=table.get("title", name),
        defaults=table.get("defaults", {}),
        derived=table.get("let", {}),
        configs=table.get("configs", {}),
        decoder=table.get("decoder", ""),
        model=table.get("model", {}),
        rows={kind: {n: row for n, row in table.get(kind, {}).items() if row is not False} for kind in ROWS},
        encoder=table.get("encoder"),
        drafter=table.get("drafter"),
        source=table.get("source", ""),
        note=table.get("note", ""),
        silent=tuple(table.get("silent", ())),
    )


def find_architecture(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The first of some names (a ``model_type``, class names) that has a file or is an alias of one.

    Files without any such name are known by a key that only they have (``known_by``).
    """
    listed = [n for n in names if n]
    for name in listed:
        if not name.startswith("_") and name in _names():
            return name
    found = next((a for name in listed if (a := _index()[0].get(name.lower()))), None)
    return found or next((name for key, name in _index()[1].items() if key in config), None)


def strange_keys(arch: Architecture, config: Mapping[str, Any]) -> list[str]:
    """Keys of a configuration that the standard decoder neither reads nor knows to be beside the point.

    A key that is off (``null``, ``false``, empty) says nothing and is not strange.
    """
    read = {n for text in _texts((arch.defaults, arch.derived, arch.model, arch.rows)) for n in compiled(text)[1]}
    known = read | set(arch.defaults) | set(arch.derived) | set(arch.silent)
    return [
        key for key, value in config.items()
        if value not in (None, False, "", [], {}) and key not in known and not _BESIDE_THE_POINT.search(key)
    ]  # fmt: skip


_BESIDE_THE_POINT = re.compile(
    r"_token(_id|_ids|_index)?$|^_|dropout|^rope_|^rotary_|^initializer_|_pdrop$|^output_|^summary_|_eps(ilon)?$"
)


def _texts(value: Any) -> Iterator[str]:
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ():
        if isinstance(inner, str):
            yield inner
        else:
            yield from _texts(inner)


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(architecture_names())


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, str], dict[str, str]]:
    """Other names of architectures (class names and model types that share a file), and keys that tell them."""
    aliases, keys = {}, {}
    for name in architecture_names():
        text = (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
        if "aliases" in text or "known_by" in text:
            table = tomllib.loads(text)
            aliases.update({alias.lower(): name for alias in table.get("aliases", [])})
            keys.update({table["known_by"]: name} if "known_by" in table else {})
    return aliases, keys


@lru_cache(maxsize=256)
def _merged(name: str) -> dict[str, Any]:
    table = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    if "like" not in table:
        return table
    base = {
        k: v for k, v in _merged(table["like"]).items() if k not in ("aliases", "title", "source", "note", "known_by")
    }
    return _merge(base, {k: v for k, v in table.items() if k != "like"})


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in over.items():
        old = found.get(key)
        found[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found
