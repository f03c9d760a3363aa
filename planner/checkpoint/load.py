"""Anything that names a model: a card, an alias, a configuration, a checkpoint folder, a GGUF file, a repository on the hub.

A bundled card wins over the network, and nothing touches the network unless the name is not bundled and the extra ``hub`` is
installed. No code that came with a model is run and nothing is unpickled: only JSON, TOML and headers of tensors are read.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from planner.catalog import load_card
from planner.errors import CardError, InputError, UnknownNameError
from planner.model import ModelSpec
from planner.row import Source

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def load_model(name: str | Path | ModelSpec, *, revision: str | None = None, assume_decoder: bool = False) -> ModelSpec:
    """Load a model by whatever names it.

    Parameters
    ----------
    name
        Id or alias of a card, path of a card (``.toml``), of a ``config.json``, of a checkpoint folder (its
        configuration and the headers of its safetensors or GGUF files), of a ``.gguf`` file (any part of several), or
        the id of a repository on the Hugging Face hub.
    revision
        Branch, tag or commit of the repository; a name with a revision is always looked up on the hub.
    assume_decoder
        Plan an unknown architecture as a standard decoder even if it has keys that nobody understands.

    Raises
    ------
    UnknownNameError
        If nothing answers to the name, or if the model's shape is unpublished.
    CardError
        If a file cannot be read or contradicts itself.
    HubError
        If the hub has no such repository, or cannot be reached.

    >>> load_model("meta-llama/Meta-Llama-3-70B").id
    'llama3-70b'
    """
    if isinstance(name, ModelSpec):
        return name
    if not isinstance(name, (str, Path)):
        raise InputError(f"a model is a name, a path or a ModelSpec, not {type(name).__name__}")
    if revision is not None:
        return _from_hub(str(name), revision, assume_decoder)
    if found := _from_path(name, assume_decoder):
        return found
    try:
        return load_card(name)
    except UnknownNameError as error:
        path = Path(name)
        if _is_folder(path):
            return _from_folder(path, assume_decoder)
        if not _REPOSITORY.fullmatch(str(name)) or "shape is unpublished" in str(error):
            raise
        if importlib.util.find_spec("huggingface_hub") is None:
            raise UnknownNameError(f"{error}; pip install 'kvplan[hub]' to look on the Hugging Face hub") from None
        return _from_hub(str(name), None, assume_decoder)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _from_path(name: str | Path, assume_decoder: bool) -> ModelSpec | None:
    """What a path says by its looks; ``None`` if it looks like a name."""
    text = str(name)
    ending = text.lower().rpartition(".")[2] if "." in text else ""
    if ending == "json":
        from planner.checkpoint.config import read_config

        return read_config(Path(name), assume_decoder=assume_decoder)
    if ending == "gguf":
        from planner.checkpoint.gguf import read_gguf

        return read_gguf(Path(name))
    if ending == "safetensors":
        return _from_folder(Path(name).parent, assume_decoder)
    written_as_path = isinstance(name, Path) or text.startswith((".", "/", "~")) or text.endswith("/")
    if ending != "toml" and written_as_path:
        return _from_folder(Path(name).expanduser(), assume_decoder)
    return None


def _from_folder(folder: Path, assume_decoder: bool) -> ModelSpec:
    """A checkpoint folder: its configuration and the headers of its tensors, or its GGUF file."""
    from planner.checkpoint.config import model_of, name_of, source_of
    from planner.checkpoint.jsonfile import parse_object, read_bytes
    from planner.checkpoint.safetensors import read_headers

    shown = str(folder)[:200]
    if not _is_folder(folder):
        raise UnknownNameError(
            f"{shown}: no such file or folder; name a card (.toml), a config.json, a checkpoint folder or a .gguf file"
        )
    path, separate = folder / "config.json", folder / "hf_quant_config.json"
    if not path.is_file():
        return _from_gguf_folder(folder)
    return model_of(
        parse_object(read_bytes(path), str(path)[:200]),
        name_of(path),
        source_of(path),
        quantization=parse_object(read_bytes(separate), str(separate)[:200]) if separate.is_file() else None,
        headers=read_headers(folder) if any(folder.glob("*.safetensors*")) else (),
        assume_decoder=assume_decoder,
    )


def _from_gguf_folder(folder: Path) -> ModelSpec:
    """A folder without a configuration, but with one GGUF file, whole or in parts."""
    from planner.checkpoint.gguf import read_gguf

    shown, files = str(folder)[:200], sorted(folder.glob("*.gguf"))
    if not files:
        raise CardError(f"{shown}: no config.json in this folder; name the folder that holds it")
    if len({re.sub(r"-[0-9]{5}-of-[0-9]{5}", "", f.name) for f in files}) > 1:
        raise CardError(f"{shown}: {len(files)} GGUF files; name one, such as {files[0].name[:80]}")
    return read_gguf(files[0])


def _from_hub(name: str, revision: str | None, assume_decoder: bool) -> ModelSpec:
    from planner.checkpoint.config import model_of
    from planner.checkpoint.hub import fetch

    found = fetch(name, revision)
    commit = found.revision or revision or "main"
    source = Source(title=f"config.json of {name}", locator=f"https://huggingface.co/{name}", date=f"revision {commit}")
    return model_of(
        found.config, name.rpartition("/")[2], source, quantization=found.quantization, headers=found.headers,
        assume_decoder=assume_decoder,
    )  # fmt: skip
