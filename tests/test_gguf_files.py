"""GGUF as files: sizes of types, parts, truncated, corrupted and hostile headers."""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFEndian, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.checkpoint.gguf import read_gguf
from planner.checkpoint.ggufheader import MAX_TEXTS, TYPES, Omitted, read_header
from planner.errors import CardError
from planner.model import ModelSpec
from planner.precision import FORMATS
from tests.ggufs import llama, write


def test_every_type_has_the_size_that_the_official_package_gives() -> None:
    from gguf import GGML_QUANT_SIZES

    assert {int(kind): size for kind, size in GGML_QUANT_SIZES.items()} == {k: (b, n) for k, (_, b, n) in TYPES.items()}
    for name, block, size in TYPES.values():
        if name in FORMATS and name != "int8":
            assert FORMATS[name].bits * block == size * 8, name


def test_parts_are_read_as_one_whichever_is_named(tmp_path: Path) -> None:
    metadata, shapes = llama()
    whole = read_gguf(write(tmp_path / "whole.gguf", "llama", metadata, shapes)[0])
    parts = write(tmp_path / "model.gguf", "llama", metadata, shapes, part=14)
    assert [p.name for p in parts] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        model = read_gguf(part)
        assert (model.id, model.parameters, model.groups) == ("model", whole.parameters, whole.groups)
    parts[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(CardError, match="part 2 of 3 is missing; download it"):
        read_gguf(parts[0])
    with pytest.raises(CardError, match="is part 2 of 3 by its header"):
        read_gguf(tmp_path / "elsewhere.gguf")
    (tmp_path / "elsewhere.gguf").rename(tmp_path / "model-00001-of-00001.gguf")
    with pytest.raises(CardError, match="is part 2 of 3 by its header"):
        read_gguf(tmp_path / "model-00001-of-00001.gguf")
    with pytest.raises(CardError, match="part 7 of 3 cannot be"):
        read_gguf(tmp_path / "model-00007-of-00003.gguf")


def test_a_file_of_ten_gigabytes_is_planned_from_its_header(tmp_path: Path) -> None:
    metadata, shapes = llama(hidden=4096, count=40, heads=32, kv=8, width=14336, vocab=128256)
    metadata |= {
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(128256)], "tokenizer.ggml.scores": [0.5] * 128256,
        "tokenizer.chat_template": "x" * 50_000,
    }  # fmt: skip
    path = write(tmp_path / "big.gguf", "llama", metadata, shapes)[0]
    assert path.stat().st_size > 19 * 10**9
    started = time.perf_counter()
    model = read_gguf(path)
    assert time.perf_counter() - started < 1
    assert model.layers == 40
    read = read_header(path).metadata
    assert read["tokenizer.ggml.tokens"] == Omitted(128256)
    assert read["tokenizer.chat_template"] == Omitted(50_000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with everything in its header: numbers, texts, arrays, tensors of several types."""
    metadata, shapes = llama(count=2)
    metadata |= {
        "general.name": "Small", "tokenizer.ggml.tokens": ["a", "bc", ""], "attention.scale": 0.5, "flag": True,
        "attention.head_count_kv": [2, 2],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write(path, "llama", metadata, shapes, lambda n: Type.Q8_0 if "attn_q" in n else None)
    return path.read_bytes()


def attempt(data: bytes, folder: Path) -> ModelSpec | None:
    """A model, or ``None`` after one line of complaint; anything else fails the test."""
    path = folder / "damaged.gguf"
    path.write_bytes(data)
    started, model, said = time.perf_counter(), None, ""
    try:
        model = read_gguf(path)
    except CardError as error:
        said = str(error)
    assert time.perf_counter() - started < 1
    assert "\n" not in said
    assert "please report" not in said
    assert len(said) < 500
    return model


def test_truncated_anywhere_is_one_line(small: bytes, tmp_path: Path) -> None:
    header = 4096
    assert attempt(small, tmp_path) is not None
    for length in [*range(0, 600, 7), *range(600, header, 101), len(small) // 2, len(small) - 1]:
        assert attempt(small[:length], tmp_path) is None, length


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_corrupted_anywhere_is_a_model_or_one_line(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, 4096))
        word = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"\x00" * 8, b"\xff" * 4]))
        damaged[at : at + len(word)] = word
    attempt(bytes(damaged), tmp_path_factory.mktemp("damaged"))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def opening(tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "is not a GGUF file"),
        (b"tjgg" + bytes(40), "of a format before GGUF"),
        (opening(version=1), "version 1"),
        (opening(version=9), "version 9"),
        (opening(tensors=2**63), "claims"),
        (opening(pairs=2**40), "claims"),
        (opening(pairs=8000) + bytes(100), "ends in the middle"),
        (opening(pairs=1) + struct.pack("<Q", 2**62) + bytes(20), "name of"),
        (opening(pairs=1) + text("k") + struct.pack("<IQ", 8, 2**62), "ends in the middle"),
        (opening(pairs=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**61), "ends in the middle"),
        (opening(pairs=1) + text("k") + struct.pack("<IIQ", 9, 4, 2**62), "ends in the middle"),
        (opening(pairs=1) + text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20), "arrays within an array"),
        (opening(pairs=1) + text("k") + struct.pack("<I", 77) + bytes(20), "unknown type 77"),
        (opening(pairs=2) + (text("k") + struct.pack("<IB", 7, 1)) * 2, "stands twice"),
        (opening(pairs=1) + text("general.alignment") + struct.pack("<II", 4, 3), "power of two"),
        (opening(tensors=1) + text("t") + struct.pack("<I5Q", 5, 1, 1, 1, 1, 1), "5 dimensions"),
        (opening(tensors=1) + text("t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0), "cannot be fp32"),
        (opening(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 100, 12, 0), "cannot be q4_k"),
        (opening(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 32, 31, 0), "type 31"),
        (opening(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 32, 0, 64), "lie at 64, not 0"),
        (opening(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 32, 0, 0), "download it again"),
        (opening(pairs=1) + text("k") + struct.pack("<IB", 7, 1), "lacks general.architecture"),
    ],
)
def test_hostile_headers_are_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data.ljust(24, b"\x00") if data[:4] == b"GGUF" else data)
    with pytest.raises(CardError, match=words) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)


def hostile(tail: bytes, size: int) -> Callable[[Path], None]:
    """A file whose end is a hole."""

    def made(path: Path) -> None:
        path.write_bytes(tail)
        with path.open("r+b") as stream:
            stream.truncate(size)

    return made


@pytest.mark.parametrize(
    "make",
    [
        hostile(opening(pairs=1) + text("k") + struct.pack("<IIQ", 9, 8, MAX_TEXTS), 2**32),
        hostile(opening(pairs=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**28), 2**32),
        hostile(opening(pairs=8000), 2**40),
        hostile(opening(tensors=2**15, pairs=2**13), 2**40),
        hostile(opening(pairs=1) + text("k") + struct.pack("<IIQ", 9, 0, 2**34), 2**40),
    ],
)
def test_large_counts_take_neither_time_nor_memory(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "hostile.gguf"
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(CardError):
        read_gguf(path)
    assert time.perf_counter() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_as_many_layers_and_kinds_as_may_be_are_quick(tmp_path: Path) -> None:
    metadata, shapes = llama(count=500)
    shapes |= {f"blk.{i}.odd.weight": (i + 1,) for i in range(500)}
    path = write(tmp_path / "many.gguf", "llama", metadata, shapes)[0]
    started = time.perf_counter()
    assert read_gguf(path).layers == 500
    assert time.perf_counter() - started < 1


def test_big_endian_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(CardError, match="big endian"):
        read_gguf(path)


def test_no_file_and_folders_are_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no such file"):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(CardError, match="not a file"):
        read_gguf(tmp_path / "folder.gguf")
    with pytest.raises(CardError, match="no such file"):
        read_gguf(tmp_path / "none-00001-of-00002.gguf")
