"""Headers of GGUF files: metadata and the list of tensors, read without touching a tensor's data.

A count in a file is believed only once what is left of the file could hold that many; arrays that no plan needs, such as a
tokenizer's vocabulary, are passed over. A file in parts is read as one.

References
----------
ggml, ``docs/gguf.md`` and ``src/gguf.cpp``: layout, alignment, and what a reader must refuse.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, NoReturn

from planner.errors import CardError
from planner.row import MAX_LAYERS

MAX_HEADER = 2**28
MAX_KEYS = 2**13
MAX_TENSORS = 2**15
MAX_TEXTS = 2**21
"""Texts in all arrays of a file; the largest vocabulary with its merges has under a million."""
MAX_ELEMENTS = 10**15
_MAX_NAME = 256
_KEPT = 1024
_CHUNK = 2**20
_MAX_PARTS = 1024

_NUMBERS = {n: struct.Struct(f"<{c}") for n, c in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)}
_TEXT, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("fp32", 1, 4), 1: ("fp16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 40), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
    24: ("int8", 1, 1), 25: ("int16", 1, 2), 26: ("int32", 1, 4), 27: ("int64", 1, 8), 28: ("fp64", 1, 8),
    29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18),
}  # fmt: skip
"""Types of tensors by number: our name, elements of a block and its bytes (gguf 0.19, PyPI, ``GGML_QUANT_SIZES``)."""


@dataclass(frozen=True, slots=True)
class Omitted:
    """An array that was passed over, or a long text: only its length is known."""

    count: int


Value = int | float | bool | str | list[int | float | bool] | Omitted


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the header lists it.

    Attributes
    ----------
    shape
        Elements along each dimension; the first is contiguous, and a matrix has its inputs there.
    type
        Id of the weight format (`planner.precision.FORMATS`), or a plain integer type.
    nbytes
        Bytes of its data, without padding [B].
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file, or all parts of one, say before the data."""

    metadata: dict[str, Value]
    tensors: tuple[GgufTensor, ...]


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, of all parts if it is one of several (``name-00001-of-00003.gguf``).

    Raises
    ------
    CardError
        If it is not such a file, is cut short, or a part is missing.
    """
    parts = _parts_of(path)
    read = [_read_one(part) for part in parts]
    first = read[0]
    for index, header in enumerate(read):
        said = header.metadata.get("split.no", index), header.metadata.get("split.count", len(parts))
        if said != (index, len(parts)) and said != (0, 0):
            raise CardError(
                f"{_shown(parts[index])}: is part {_counted(said[0])} of {said[1]} by its header but not by its name; "
                "give the parts their names back, such as model-00001-of-00003.gguf"
            )
    tensors = tuple(t for header in read for t in header.tensors)
    expected = first.metadata.get("split.tensors.count")
    if len(parts) > 1 and isinstance(expected, int) and expected != len(tensors):
        raise CardError(
            f"{_shown(path)}: the parts hold {len(tensors):,} tensors, not {expected:,}; download them again"
        )
    if len(tensors) > MAX_TENSORS:
        raise CardError(f"{_shown(path)}: more than {MAX_TENSORS:,} tensors; a model has a few thousand")
    twice = _repeated([t.name for t in tensors])
    if twice:
        raise CardError(f"{_shown(path)}: the tensor {twice[:60]!r} stands twice; download the file again")
    return GgufHeader(first.metadata, tensors)


_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL)


def _parts_of(path: Path) -> list[Path]:
    """All parts of the file that a path names a part of; the path itself if it is whole."""
    named = _PART.fullmatch(path.name)
    if not named:
        return [path]
    count = int(named[3])
    if not 1 <= int(named[2]) <= count <= _MAX_PARTS:
        raise CardError(
            f"{_shown(path)}: part {int(named[2])} of {count} cannot be; a file has 1 to {_MAX_PARTS:,} parts"
        )
    ending = path.name[-5:]
    parts = [path.with_name(f"{named[1]}-{i:05}-of-{named[3]}{ending}") for i in range(1, count + 1)]
    missing = [i for i, part in enumerate(parts, 1) if not _is_file(part)]
    if len(missing) == count:
        return [path]  # reading it says what is wrong
    if missing:
        which = ", ".join(str(i) for i in missing[:5]) + (" and more" if len(missing) > 5 else "")
        raise CardError(f"{_shown(path)}: part {which} of {count} is missing; download it into the same folder")
    return parts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _shown(path: Path) -> str:
    text = path.name if len(str(path)) > 200 else str(path)
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", text)[:200]


def _counted(index: object) -> object:
    return index + 1 if isinstance(index, int) else index


def _repeated(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _read_one(path: Path) -> GgufHeader:
    try:
        if not path.is_file():
            raise CardError(f"{_shown(path)}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb", buffering=0) as file:
            return _Cursor(file, path.stat().st_size, _shown(path)).header()
    except (OSError, ValueError) as error:
        raise CardError(f"{_shown(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


class _Cursor:
    """The front of a file, read chunk by chunk."""

    def __init__(self, file: BinaryIO, size: int, where: str) -> None:
        self._file, self._size, self._where = file, size, where
        self._data, self._at, self._base = b"", 0, 0
        self._texts = 0

    # -- bytes --------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        return self._base + self._at

    def _refuse(self, why: str) -> NoReturn:
        raise CardError(f"{self._where}: {why}")

    def _check(self, count: int) -> None:
        """Whether so many bytes can follow."""
        if self.position + count > self._size:
            self._refuse("ends in the middle of its header; download it again")
        if self.position + count > MAX_HEADER:
            self._refuse(f"has a header of more than {MAX_HEADER >> 20} MiB; a GGUF file's is a few MiB")

    def _fill(self, count: int) -> None:
        """Have so many bytes in the buffer."""
        self._check(count)
        self._base, self._at = self.position, 0
        self._file.seek(self._base)
        wanted = min(max(count, _CHUNK), self._size - self._base)
        self._data = b""
        while len(self._data) < wanted and (more := self._file.read(wanted - len(self._data))):
            self._data += more
        if len(self._data) < count:
            self._refuse("ends in the middle of its header; download it again")

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            self._fill(count)
        self._at += count
        return self._data[self._at - count : self._at]

    def skip(self, count: int) -> None:
        self._check(count)
        self._at += count

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    # -- values -------------------------------------------------------------------------------------------------------

    def name(self, what: str) -> str:
        length = self.u64()
        if not 1 <= length <= _MAX_NAME:
            self._refuse(f"{what} has a name of {length:,} bytes; the file is damaged, download it again")
        text = self.take(length)
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise CardError(f"{self._where}: {what} has a name that is not UTF-8; download the file again") from None

    def value(self, key: str) -> Value:
        kind = self.u32()
        if kind in _NUMBERS:
            return self._number(kind)
        if kind == _TEXT:
            length = self.u64()
            if length > _KEPT:
                self.skip(length)
                return Omitted(length)
            return self.take(length).decode("utf-8", "replace")
        if kind != _ARRAY:
            self._refuse(f"{key[:60]!r} has a value of unknown type {kind}; the file is damaged, download it again")
        return self._array(key)

    def _number(self, kind: int) -> int | float | bool:
        form = _NUMBERS[kind]
        found: int | float | bool = form.unpack(self.take(form.size))[0]
        return found

    def _array(self, key: str) -> Value:
        kind, count = self.u32(), self.u64()
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            if count > MAX_LAYERS:
                self.skip(count * form.size)
                return Omitted(count)
            return list(struct.unpack(f"<{count}{form.format[1:]}", self.take(count * form.size)))
        if kind != _TEXT:
            what = "arrays within an array" if kind == _ARRAY else f"an array of unknown type {kind}"
            self._refuse(f"{key[:60]!r} holds {what}, which no model needs; download the file again")
        self._pass_texts(key, count)
        return Omitted(count)

    def _pass_texts(self, key: str, count: int) -> None:
        """Pass over texts: each has its length before it."""
        self._check(8 * count)
        self._texts += count
        if self._texts > MAX_TEXTS:
            self._refuse(f"{key[:60]!r} brings its texts to {self._texts:,}; a tokenizer has under {MAX_TEXTS:,}")
        data, at, length = self._data, self._at, _U64.unpack_from
        for _ in range(count):
            if at + 8 > len(data):
                self._at = at
                self._fill(8)
                data, at = self._data, 0
            at += 8 + length(data, at)[0]
        self._at = at
        self._check(0)

    # -- the header ---------------------------------------------------------------------------------------------------

    def header(self) -> GgufHeader:
        self._opening()
        tensors, keys = self.u64(), self.u64()
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            self._refuse(f"claims {tensors:,} tensors and {keys:,} keys; the file is damaged, download it again")
        self._check(33 * tensors + 13 * keys)
        metadata: dict[str, Value] = {}
        for index in range(keys):
            key = self.name(f"key {index}")
            if key in metadata:
                self._refuse(f"the key {key[:60]!r} stands twice; the file is damaged, download it again")
            metadata[key] = self.value(key)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            self._refuse(f"general.alignment is {str(alignment)[:40]}, not a power of two; download the file again")
        return GgufHeader(metadata, self._tensors(tensors, alignment))

    def _opening(self) -> None:
        magic = self.take(4) if self._size >= 24 else b""
        if magic != b"GGUF":
            older = magic[::-1] in (b"ggml", b"ggmf", b"ggjt", b"ggla")
            self._refuse("is of a format before GGUF; convert the model again" if older else "is not a GGUF file")
        version = self.u32()
        if version and not version & 0xFFFF:
            self._refuse("is big endian; convert it with gguf_convert_endian.py")
        if version not in (2, 3):
            self._refuse(f"is of GGUF version {version}, and only 2 and 3 are read; convert the model again")

    def _tensors(self, count: int, alignment: int) -> tuple[GgufTensor, ...]:
        """The list of tensors, whose data must lie one after another and within the file."""
        found, end = [], 0
        for index in range(count):
            tensor, offset = self._tensor(index)
            start = end + -end % alignment
            if offset != start:
                self._refuse(
                    f"the data of {tensor.name[:60]!r} is said to lie at {offset:,}, not {start:,}; download it again"
                )
            end = start + tensor.nbytes
            found.append(tensor)
        start = self.position + -self.position % alignment
        if found and start + end > self._size:
            self._refuse(f"holds {self._size:,} of {start + end:,} bytes; download it again")
        return tuple(found)

    def _tensor(self, index: int) -> tuple[GgufTensor, int]:
        name = self.name(f"tensor {index}")
        dimensions = self.u32()
        if not 1 <= dimensions <= 4:
            self._refuse(f"{name[:60]!r} has {dimensions:,} dimensions, not 1 to 4; download the file again")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        kind, offset = self.u32(), self.u64()
        if kind not in TYPES:
            self._refuse(
                f"{name[:60]!r} is of type {kind}, which is unknown or was withdrawn; quantise the model again"
            )
        form, block, block_bytes = TYPES[kind]
        elements = prod(shape)
        if not 1 <= elements <= MAX_ELEMENTS or shape[0] % block:
            sizes = " × ".join(f"{n:,}" for n in shape)
            self._refuse(f"{name[:60]!r} of {sizes} elements cannot be {form}; download the file again")
        return GgufTensor(name, shape, form, elements // block * block_bytes), offset
