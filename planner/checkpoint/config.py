"""A Hugging Face ``config.json`` as a model: find its architecture, derive the rows, read how it is quantised.

With the headers of a checkpoint's tensors beside it, what the tensors show wins over what the configuration says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from planner.checkpoint.architecture import (
    FALLBACK,
    Architecture,
    find_architecture,
    load_architecture,
    strange_keys,
)
from planner.checkpoint.jsonfile import parse_object, read_bytes
from planner.checkpoint.quantization import declared_cache, released_formats
from planner.checkpoint.reconcile import corrected, take_census, with_counted
from planner.checkpoint.template import Card, rows_of, scope_of
from planner.errors import CardError
from planner.model import ModelSpec
from planner.row import Source, one_line

if TYPE_CHECKING:
    from planner.checkpoint.safetensors import Header

_NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder_config")


def read_config(path: Path, *, assume_decoder: bool = False) -> ModelSpec:
    """Read a ``config.json``.

    Parameters
    ----------
    assume_decoder
        Plan an unknown architecture as a standard decoder even if it has keys that nobody understands.

    Raises
    ------
    CardError
        If the file is not such a configuration, or its architecture is unknown.
    """
    config = parse_object(read_bytes(path), str(path)[:200])
    return model_of(config, name_of(path), source_of(path), assume_decoder=assume_decoder)


def source_of(path: Path) -> Source:
    """A file as the source of a model's facts."""
    day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    shown = "".join(sign if sign.isprintable() else "?" for sign in str(path))
    return Source(title=f"{shown.rpartition('/')[2][-200:]} as read", locator=shown[-500:], date=day)


def name_of(path: Path) -> str:
    """What to call a model that lies at a path: its folder, or its file where that says more."""
    path = path.absolute()
    word = path.parent.name if path.stem in ("config", "params") else path.name.removesuffix(".json")
    return word or "model"


def model_of(
    config: Mapping[str, Any], name: str, source: Source, *, quantization: Mapping[str, Any] | None = None,
    headers: Sequence[Header] = (), assume_decoder: bool = False,
) -> ModelSpec:  # fmt: skip
    """The model that a configuration describes.

    Parameters
    ----------
    quantization
        ``hf_quant_config.json``, if there is one beside it.
    headers
        Headers of the checkpoint's tensors; where they disagree with the configuration they win.

    Raises
    ------
    CardError
        If the architecture is unknown or a key that it needs is missing or impossible.
    """
    arch, notes = architecture_of(config, assume_decoder)
    try:
        card = rows_of(arch, scope_of(arch, config))
    except CardError as error:
        raise CardError(f"{source.locator[:120]}: {error} (read as {arch.name})") from None
    census = take_census(headers, card.get("layers", 0)) if headers else None
    changes = corrected(card, census, config.get("tie_word_embeddings") is False) if census else []
    model = _build(card, name, arch, source)
    formats, more = released_formats(config, quantization, model)
    model = model.model_copy(update={"weights": formats, "kv": declared_cache(config, quantization)})
    if census:
        model, gaps = with_counted(model, census)
        changes += gaps
    told = [arch.note, *notes, *more]
    if changes:
        told.append(f"The tensors win over the configuration: {'; '.join(changes)}.")
    return model.model_copy(update={"note": " ".join(filter(None, told))})


def architecture_of(config: Mapping[str, Any], assume_decoder: bool = False) -> tuple[Architecture, list[str]]:
    """The architecture that a configuration names, else what it can be planned as, with a note that says so.

    An unknown wrapper around a language model is planned as that language model, and an unknown decoder as the standard
    one, provided that no key stays that nobody understands.
    """
    classes = config.get("architectures")
    named = [str(n) for n in (config.get("model_type"), *(classes if isinstance(classes, list) else ())) if n]
    if found := find_architecture(named, config):
        return _of_names(found, named, config), []
    shown = (named[0] if named else "no model_type")[:60]
    for key in _NESTED:
        inner = config.get(key)
        if isinstance(inner, dict) and (found := find_architecture([str(inner.get("model_type") or "")], inner)):
            wrapper = Architecture.around(load_architecture(found), key)
            return wrapper, [
                f"{shown} is unknown: only its {key} is planned, without weights of towers and projectors."
            ]
    arch = load_architecture(FALLBACK)
    strange = strange_keys(arch, config)
    if strange and not assume_decoder:
        raise CardError(
            f"architecture {shown} is unknown, and nobody here understands its key {strange[0][:60]!r}"
            + (f" (and {len(strange) - 1} more)" if len(strange) > 1 else "")
            + "; --assume-decoder plans it as a standard decoder all the same"
        )
    return arch, [f"{shown} is unknown: planned as a standard decoder (Llama's layers) by its keys."]


def _of_names(found: str, named: Sequence[str], config: Mapping[str, Any]) -> Architecture:
    """What the names say, or, where that wraps a decoder whose table the file lacks, what a later name says by itself."""
    arch = load_architecture(found)
    if not arch.decoder or isinstance(config.get(arch.decoder), dict):
        return arch
    others = (load_architecture(other) for name in named if (other := find_architecture([name], {})))
    return next((other for other in others if not other.decoder), arch)


def _build(card: Card, name: str, arch: Architecture, source: Source) -> ModelSpec:
    """A model from rows that were derived."""
    shown = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")[:120] or "model"
    try:
        return ModelSpec.derived(id=shown.lower(), name=shown, family=arch.title, source=(source,), **card)
    except ValidationError as error:
        where = source.locator[:120]
        raise CardError(f"{where}: {one_line(error)} (read as {arch.name}); check the configuration") from None
