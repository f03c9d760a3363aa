"""Find and load model cards and GPUs: by id, alias or file, with "did you mean".

An id is a file name, so loading by id reads one file. Aliases live inside the files; looking one up greps their text and
parses only the files that mention it. Spelling is forgiving: case, spaces, hyphens, underscores and colons do not count.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from planner.errors import CardError, InputError, UnknownNameError, unknown_name
from planner.gpu import GpuSpec
from planner.model import ModelSpec
from planner.row import one_line

MAX_CARD_BYTES = 2**16
MAX_LINE = 2500
_HERE = Path(__file__).parent
Spec = TypeVar("Spec", ModelSpec, GpuSpec)


@lru_cache(maxsize=1)
def _model_folder() -> Path:
    """Cards lie inside the package in a wheel, and beside it in a checkout."""
    inside = _HERE / "model_cards"
    return inside if inside.is_dir() else _HERE.parent / "model_cards"


def _gpu_folder() -> Path:
    return _HERE / "gpus"


def model_ids() -> list[str]:
    """Ids of all bundled model cards, sorted."""
    return _ids(_model_folder())


def gpu_ids() -> list[str]:
    """Ids of all GPUs in the catalogue, sorted."""
    return _ids(_gpu_folder())


def load_card(name: str | Path | ModelSpec) -> ModelSpec:
    """Load a bundled model by id, alias or Hugging Face id, or a card by its path.

    Raises
    ------
    UnknownNameError
        If no card answers to the name, or if the model's shape is unpublished.
    CardError
        If the card cannot be read or contradicts itself.

    >>> load_card("meta-llama/Meta-Llama-3-70B").id
    'llama3-70b'
    """
    if isinstance(name, ModelSpec):
        return name
    if not isinstance(name, (str, Path)):
        raise InputError(f"a model is a name, a path or a ModelSpec, not {type(name).__name__}")
    return _load(name, _model_folder(), ModelSpec, "model", "'kvplan models' lists them all")


def load_gpu(name: str | Path | GpuSpec) -> GpuSpec:
    """Load a GPU by id, alias or path of a catalogue file.

    Raises
    ------
    UnknownNameError
        If the catalogue has no such device.
    CardError
        If the file cannot be read or contradicts itself.

    >>> load_gpu("h100").name
    'NVIDIA H100 SXM5 80GB'
    """
    if isinstance(name, GpuSpec):
        return name
    if not isinstance(name, (str, Path)):
        raise InputError(f"a GPU is a name, a path or a GpuSpec, not {type(name).__name__}")
    return _load(name, _gpu_folder(), GpuSpec, "GPU", "'kvplan gpus' lists them all")


def matching(name: str | None, ids: list[str], load: Callable[[str], Spec]) -> list[Spec]:
    """What to list: everything, the one that answers to a name, or those whose ids contain it.

    Raises
    ------
    UnknownNameError
        If nothing answers to the name or contains it.
    """
    if name is None:
        return [load(i) for i in ids]
    try:
        return [load(name)]
    except UnknownNameError:
        found = [i for i in ids if normalise(name) in normalise(i)]
        if not found:
            raise
        return [load(i) for i in found]


def aliases(kind: type[Spec]) -> list[str]:
    """Every other name of every model or GPU."""
    return _aliases(_model_folder() if kind is ModelSpec else _gpu_folder())


def normalise(name: str) -> str:
    """Spelling that names are compared in.

    >>> normalise("Llama 3.1:8B") == normalise("llama3.1-8b")
    True
    """
    return name.strip().lower().translate(_IGNORED)


_IGNORED = str.maketrans("", "", " -_:")


@lru_cache(maxsize=8)
def _ids(folder: Path) -> list[str]:
    return sorted(p.stem for p in folder.glob("*.toml") if not p.stem.startswith("_"))


def _load(name: str | Path, folder: Path, kind: type[Spec], what: str, listing: str) -> Spec:
    if isinstance(name, Path) or name.lower().endswith(".toml"):
        return _parse(Path(name), kind)
    key = (kind, normalise(name))
    if key not in _loaded:
        _loaded[key] = _parse(folder / f"{_resolve(name, folder, what, listing)}.toml", kind)
    spec = _loaded[key]
    assert isinstance(spec, kind)
    return spec


_loaded: dict[tuple[type, str], ModelSpec | GpuSpec] = {}


def _resolve(name: str, folder: Path, what: str, listing: str) -> str:
    """The id that a name stands for."""
    wanted = normalise(name)
    by_id = {normalise(i): i for i in _ids(folder)}
    found = by_id.get(wanted) or (_find_alias(folder, wanted) if wanted else None)
    if found is None:
        _refuse_unpublished(folder, wanted)
        if "/" in name[:2] or name.startswith("."):
            raise UnknownNameError(f"{name[:60]!r} is not a card; a card of your own is a file that ends in .toml")
        raise unknown_name(what, name, [*_ids(folder), *_aliases(folder)], listing)
    return found


def _find_alias(folder: Path, wanted: str) -> str | None:
    found = []
    for card in _ids(folder):
        text = _read(folder / f"{card}.toml")
        if wanted in normalise(text) and wanted in map(normalise, _toml(text, card).get("aliases", [])):
            found.append(card)
    if len(found) > 1:
        raise CardError(f"{' and '.join(found)} have the same alias, {wanted[:60]}; remove it from one of these files")
    return found[0] if found else None


def _aliases(folder: Path) -> list[str]:
    return [a for card in _ids(folder) for a in _toml(_read(folder / f"{card}.toml"), card).get("aliases", [])]


def _refuse_unpublished(folder: Path, wanted: str) -> None:
    """Say so when somebody asks for a model whose shape was never published."""
    path = folder / "_unpublished.toml"
    if not path.exists():
        return
    for row in _toml(_read(path), path.name)["model"]:
        if any(wanted.startswith(normalise(prefix)) for prefix in row["prefixes"]):
            raise UnknownNameError(f"{row['message']} Nearest: {', '.join(row['nearest'])}")


def _read(path: Path) -> str:
    """Text of a card. Only regular files are opened, and no more is read than a card may hold."""
    shown = str(path)[:200]
    try:
        if not path.is_file():
            raise CardError(
                f"{shown}: {'not a file' if path.exists() else 'no such file'}; name a card, a page of TOML"
            )
        with path.open("rb") as stream:
            data = stream.read(MAX_CARD_BYTES + 1)
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise CardError(f"{shown}: not UTF-8 text; a card is a page of TOML") from None
    except (OSError, ValueError) as error:
        raise CardError(f"{shown[:60]}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > MAX_CARD_BYTES or max(map(len, text.split("\n"))) > MAX_LINE:
        raise CardError(
            f"{shown}: more than {MAX_CARD_BYTES:,} bytes, or lines over {MAX_LINE:,}; a card is a page of TOML"
        )
    return text


def _toml(text: str, where: object) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise CardError(f"{where}: not valid TOML: {str(error).splitlines()[0]}") from None


def _parse(path: Path, kind: type[Spec]) -> Spec:
    data = _toml(_read(path), path)
    if "id" in data:
        raise CardError(f"{path}: remove the key 'id'; the file name is the id")
    try:
        return kind(id=path.stem, **data)
    except ValidationError as error:
        raise CardError(f"{path}: {one_line(error)}; the README's 'Add a model or a GPU' shows the keys") from None
