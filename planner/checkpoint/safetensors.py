"""Tensor headers of safetensors files: names, formats and sizes, and never the tensors."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.checkpoint.jsonfile import parse_object, read_bytes
from planner.errors import CardError

# Formats and the longest header of safetensors 0.8, https://github.com/huggingface/safetensors, 2026-11.
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
MAX_HEADER = 100_000_000
MAX_TENSORS = 1_000_000
MAX_SHARDS = 4096
PREFIX = 8
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NUMBERED = re.compile(r"(.+)-([0-9]{1,6})-of-([0-9]{1,6})\.safetensors")
_TIERS = [
    re.compile(pattern)
    for pattern in (
        r"model-[0-9]+-of-[0-9]+\.safetensors",
        r"model[^/]*\.safetensors",
        r"(?!\.|consolidated|adapter|optim|.*lora)[^/]*\.safetensors",
        r"consolidated[^/]*\.safetensors",
    )
]


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor as its file announces it.

    Attributes
    ----------
    dtype
        Name of its format, a key of ``BITS``.
    nbytes
        Size of its data [B].
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_headers(path: Path) -> tuple[Header, ...]:
    """Headers of all tensors of a safetensors file, or of the model in a folder.

    Raises
    ------
    CardError
        If there is no such file, a shard is missing, or a header is damaged.
    """
    if not path.is_dir():
        return _read(path)
    shown = str(path)[:200]
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise CardError(f"{shown}: cannot be read ({error.strerror})") from None
    files = weight_files(names, shown, lambda name: read_bytes(path / name, MAX_HEADER))
    if not files:
        raise CardError(f"{shown}: holds no safetensors file of a model; name a folder with model.safetensors")
    return merged(((name, _read(path / name)) for name in files), shown)


def weight_files(names: Collection[str], where: str, read: Callable[[str], bytes]) -> tuple[str, ...]:
    """Which files of a folder hold the model: one, those of the index, or what looks like it.

    Adapters and states of optimizers are none; Mistral's ``consolidated`` files are, where there are no others.

    Parameters
    ----------
    names
        Of all files of the folder.
    read
        Reads one of them, the index.

    Raises
    ------
    CardError
        If the index is wrong or a shard is missing.

    >>> weight_files(["config.json", "model.safetensors", "consolidated.safetensors"], "here", bytes)
    ('model.safetensors',)
    """
    if SINGLE in names:
        return (SINGLE,)
    if INDEX in names:
        files = _shards(parse_object(read(INDEX), f"{where}: {INDEX}"), where)
        missing = next((name for name in files if name not in names), None)
    else:
        tiers = (sorted(filter(tier.fullmatch, names)) for tier in _TIERS)
        files = tuple(next(filter(None, tiers), ()))
        missing = _missing(files)
    if missing:
        raise CardError(f"{where}: the shard {missing!r} is missing; download it too")
    if len(files) > MAX_SHARDS:
        raise CardError(f"{where}: more than {MAX_SHARDS:,} safetensors files; name the folder of one model")
    return files


def _shards(index: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Files that an index names, all of its own folder."""
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CardError(f"{where}: {INDEX} has no weight_map of file names; download it again")
    files = set(placed.values())
    for name in files:
        if not name.endswith(".safetensors") or not name.isprintable() or re.search(r"[/\\:]", name):
            raise CardError(f"{where}: {INDEX} names {name[:60]!r}, no safetensors file beside it; get another")
    return tuple(sorted(files))


def _missing(files: Iterable[str]) -> str | None:
    """The first file that numbered files say there is beside them."""
    series: dict[tuple[str, str], dict[int, str]] = {}
    for name in files:
        if found := _NUMBERED.fullmatch(name):
            stem, number, count = found.groups()
            series.setdefault((stem, count), {})[int(number)] = number
    for (stem, count), there in series.items():
        if len(there) < int(count):
            first = next(n for n in range(1, int(count) + 1) if n not in there)
            return f"{stem}-{first:0{len(count)}}-of-{count}.safetensors"
    return None


def merged(files: Iterable[tuple[str, Iterable[Header]]], where: str) -> tuple[Header, ...]:
    """Headers of several files as those of one model.

    Raises
    ------
    CardError
        If a tensor stands in two of them.
    """
    homes: dict[str, str] = {}
    found: list[Header] = []
    for file, headers in files:
        for header in headers:
            home = homes.setdefault(header.name, file)
            if home != file:
                raise CardError(
                    f"{where}: tensor {header.name[:80]!r} stands in {home!r} and {file!r}; keep one model in a folder"
                )
            found.append(header)
        if len(found) > MAX_TENSORS:
            raise CardError(f"{where}: more than {MAX_TENSORS:,} tensors; name the folder of one model")
    return tuple(found)


def _read(path: Path) -> tuple[Header, ...]:
    """Headers of one file."""
    shown = str(path)[:200]
    try:
        if not path.is_file():
            raise CardError(f"{shown}: {'not a file' if path.exists() else 'no such file'}; name a safetensors file")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = header_length(stream.read(PREFIX), shown, size)
            data = stream.read(length)
    except (OSError, ValueError) as error:
        raise CardError(f"{shown[:60]}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return parse_header(data, shown, size - PREFIX - length)


def header_length(prefix: bytes, where: str, size: int | None = None, limit: int = MAX_HEADER) -> int:
    """Bytes of the JSON that follows the first eight bytes of a file [B].

    Parameters
    ----------
    size
        Of the whole file, where it is known [B].

    Raises
    ------
    CardError
        If the file is none of safetensors.
    """
    if prefix[:PREFIX] == b"version ":
        raise CardError(f"{where}: a pointer of Git LFS rather than the file; run 'git lfs pull'")
    if len(prefix) < PREFIX:
        raise _damaged(where, "too short for safetensors")
    (length,) = struct.unpack("<Q", prefix[:PREFIX])
    if length > limit:
        raise _damaged(where, f"no safetensors file, or its header of {length:,} bytes is over {limit:,}")
    if size is not None and length > size - PREFIX:
        raise _damaged(where, f"cut off: the header has {length:,} bytes, the file {size:,}")
    return int(length)


def parse_header(data: bytes, where: str, room: int | None = None) -> tuple[Header, ...]:
    """Headers in the JSON of a file; ``room`` as for `headers_from_metadata`."""
    return headers_from_metadata(parse_object(data, f"header of {where}"), where, room)


def headers_from_metadata(metadata: Mapping[str, Any], where: str, room: int | None = None) -> tuple[Header, ...]:
    """Headers in the parsed JSON of a file, each checked against the others.

    Parameters
    ----------
    room
        Bytes of data behind the header, where they are known [B].

    Raises
    ------
    CardError
        If a tensor has an unknown format, or data that is not its own or not there.

    >>> headers_from_metadata({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, "w.safetensors")
    (Header(name='w', dtype='BF16', shape=(2, 3), nbytes=12),)
    """
    found: list[Header] = []
    spans: list[tuple[int, int]] = []
    for name, entry in metadata.items():
        if name != "__metadata__":
            header, begin = _header(name, entry, where)
            found.append(header)
            spans.append((begin, begin + header.nbytes))
    reached = 0
    for begin, end in sorted(spans):
        if begin < min(reached, end):
            raise _damaged(where, f"two tensors share the bytes from {begin:,} on")
        reached = max(reached, end)
    if room is not None and reached > room:
        raise _damaged(where, f"cut off: its tensors have {reached:,} bytes, of which {room:,} are there")
    return tuple(found)


def _header(name: str, entry: Any, where: str) -> tuple[Header, int]:
    """One header, and where its data begins."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    tensor = f"tensor {name[:80]!r}"
    if not name.isprintable():
        raise _damaged(where, f"{tensor} has a name that cannot be printed")
    if not isinstance(dtype, str) or not _naturals(shape, 32) or not _naturals(offsets, 2) or len(offsets) != 2:
        raise _damaged(where, f"{tensor} lacks its dtype, shape or data_offsets")
    if dtype not in BITS:
        raise CardError(f"{where}: {tensor} has the unknown dtype {dtype[:20]!r}; known are {', '.join(sorted(BITS))}")
    begin, end = offsets
    if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
        raise _damaged(where, f"{tensor} has {end - begin:,} bytes, which are not its shape in {dtype}")
    return Header(name, dtype, tuple(shape), end - begin), begin


def _naturals(value: Any, most: int) -> bool:
    """Whether a value is a short list of whole numbers."""
    if not isinstance(value, list) or len(value) > most or not set(map(type, value)) <= {int}:
        return False
    return not value or (min(value) >= 0 and max(value) < 2**63)


def _damaged(where: str, what: str) -> CardError:
    return CardError(f"{where}: {what}; download it again")
