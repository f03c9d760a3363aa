"""Headers of safetensors files agree with the official library, and damage is refused in one line."""

from __future__ import annotations

import json
import re
import struct
from contextlib import suppress
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file
from safetensors.torch import save as save_torch

from planner.checkpoint import jsonfile
from planner.checkpoint.safetensors import BITS, Header, headers_from_metadata, read_headers
from planner.errors import CardError

TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "embed": np.zeros((5, 4), np.float16), "norm": np.zeros(4, np.float32), "scale": np.array(1.0),
    "codes": np.zeros((3, 2, 2), np.uint8), "none": np.zeros((0, 7), np.int64), "mask": np.zeros(2, np.bool_),
}  # fmt: skip
KNOWN = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int16: "I16", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32",
    torch.float32: "F32", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.uint16: "U16",
    torch.uint32: "U32", torch.uint64: "U64", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with a header of our own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def outcome(path: Path) -> tuple[Header, ...] | str:
    """Headers, or the line that refuses them."""
    try:
        return read_headers(path)
    except CardError as error:
        return str(error)


def refusal(path: Path) -> str:
    """The one line that refuses a file or folder."""
    line = outcome(path)
    assert isinstance(line, str)
    assert line.isprintable()
    return line


def official(data: bytes) -> set[Header]:
    """What the official library reads."""
    found = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    return {Header(name, t["dtype"], tuple(t["shape"]), len(t["data"])) for name, t in found}


def test_a_file_as_the_official_library_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    headers = {h.name: h for h in read_headers(path)}
    assert headers.keys() == TENSORS.keys()
    assert all(headers[name].shape == array.shape for name, array in TENSORS.items())
    assert all(headers[name].nbytes == array.nbytes for name, array in TENSORS.items())
    assert headers["embed"] == Header("embed", "F16", (5, 4), 40)
    assert set(headers.values()) == official(path.read_bytes())


@pytest.mark.parametrize(("dtype", "name"), KNOWN.items(), ids=KNOWN.values())
def test_every_format_of_torch(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save_torch({"w": torch.zeros(3, 4, dtype=dtype)}))
    assert read_headers(path) == (Header("w", name, (3, 4), 12 * dtype.itemsize),)


def test_formats_narrower_than_a_byte() -> None:
    for dtype, nbytes in (("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)):
        assert headers_from_metadata({"w": tensor(0, nbytes, [2, 4], dtype)}, "f")[0].nbytes == nbytes
        with pytest.raises(CardError, match="not its shape"):
            headers_from_metadata({"w": tensor(0, 1, [1], dtype)}, "f")
    assert all(bits in (4, 6, 8, 16, 32, 64) for bits in BITS.values())


def sharded(folder: Path, index: bool = True) -> None:
    files = {f"model-0000{i}-of-00002.safetensors": {f"layer.{i}": np.zeros((i, 2), np.float32)} for i in (1, 2)}
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    if index:
        places = {tensor: name for name, tensors in files.items() for tensor in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_model(tmp_path: Path, index: bool) -> None:
    sharded(tmp_path, index)
    save_file({"layer.1": TENSORS["embed"]}, tmp_path / "consolidated.safetensors")
    save_file({"layer.1": TENSORS["embed"]}, tmp_path / "adapter_model.safetensors")
    assert read_headers(tmp_path) == (Header("layer.1", "F32", (1, 2), 8), Header("layer.2", "F32", (2, 2), 16))


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    sharded(tmp_path, index)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    assert "'model-00001-of-00002.safetensors' is missing; download it too" in refusal(tmp_path)


def test_of_several_files_the_model_is_read(tmp_path: Path) -> None:
    for name in ("optimizer", "adapter_model", "._model", "pytorch_lora_weights"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    assert "holds no safetensors file of a model" in refusal(tmp_path)
    for name in ("consolidated", "gptq_model-4bit", "model"):
        save_file({name: TENSORS["embed"]}, tmp_path / f"{name}.safetensors")
        assert [h.name for h in read_headers(tmp_path)] == [name]


def test_a_tensor_of_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("model-a", "model-b"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    assert "stands in 'model-a.safetensors' and 'model-b.safetensors'" in refusal(tmp_path)


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:x.safetensors",
     "x.bin", "..", "a\n.safetensors", "\ud800.safetensors"],
)  # fmt: skip
def test_an_index_stays_in_its_folder(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    assert "no safetensors file beside it" in refusal(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"w": [1]}}])
def test_an_index_without_files_is_refused(tmp_path: Path, index: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no weight_map of file names" in refusal(tmp_path)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    save_file(TENSORS, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123")
    assert len(read_headers(tmp_path / "snapshot")) == len(TENSORS)


def test_ten_gigabytes_are_read_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    half = 5_000_000_000
    path.write_bytes(packed({"a": tensor(0, half, [half]), "b": tensor(half, 2 * half, [half // 2], "BF16")}))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 2 * half)
    start = perf_counter()
    assert sum(header.nbytes for header in read_headers(tmp_path)) == 2 * half
    assert perf_counter() - start < 0.5


def test_fifty_thousand_tensors_are_quick(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed({f"model.layers.{i}.w": tensor(i, i + 1, [1, 1]) for i in range(50_000)}, bytes(50_000)))
    start = perf_counter()
    assert len(read_headers(path)) == 50_000
    assert perf_counter() - start < 5


ONE = {"w": tensor(0, 4, [4])}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        (packed(b"", length=2), "cut off: the header has 2 bytes, the file 8"),
        (packed(ONE, length=50_000_000), "cut off: the header has 50,000,000 bytes"),
        (packed(ONE, length=100_000_001), "over 100,000,000"),
        (packed(ONE, length=2**64 - 1), "over 100,000,000"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (packed(ONE, b"123"), "cut off: its tensors have 4 bytes, of which 3 are there"),
        (packed(b"{}", length=0), "not valid JSON"),
        (packed(b"[]"), "holds a list"),
        (packed(b'{"w": '), "not valid JSON"),
        (packed(b'{"\xff": 1}'), "not UTF-8"),
        (packed(b'{"w": 1, "w": 2}'), "'w' stands twice"),
        (packed(b'{"w": NaN}'), "lacks its dtype"),
        (packed(b'{"w": ' + b"9" * 5000 + b"}"), "not valid JSON"),
        (packed(b'{"w":' * 100_000), "not valid JSON"),
        (packed(b'{"w":' * 50 + b"1" + b"}" * 50), "nested deeper"),
        (packed({"w": None}), "lacks its dtype"),
        (packed({"w": {"dtype": "U8"}}), "lacks its dtype"),
        (packed({"w": tensor(0, 4, [4.0])}, bytes(4)), "lacks its dtype, shape"),
        (packed({"w": tensor(0, 4, [True, 4])}, bytes(4)), "lacks its dtype, shape"),
        (packed({"w": tensor(0, 4, [-1, -4])}, bytes(4)), "lacks its dtype, shape"),
        (packed({"w": tensor(0, 4, [1] * 99)}, bytes(4)), "lacks its dtype, shape"),
        (packed({"w": {**ONE["w"], "data_offsets": [0]}}), "data_offsets"),
        (packed({"w": tensor(0, 4, [4], "Q4_K")}, bytes(4)), "unknown dtype 'Q4_K'; known are BF16"),
        (packed({"w": tensor(4, 0, [4])}, bytes(4)), "not its shape"),
        (packed({"w": tensor(0, 4, [3])}, bytes(4)), "not its shape"),
        (packed({"w": tensor(0, 4, [2**62, 2**62])}, bytes(4)), "not its shape"),
        (packed({"v": tensor(0, 4, [4]), "w": tensor(3, 5, [2])}, bytes(5)), "share the bytes from 3 on"),
        (packed({"v": tensor(0, 4, [4]), "w": tensor(1, 2, [1])}, bytes(5)), "share the bytes from 1 on"),
        (packed({"v": tensor(0, 4, [4]), "w": tensor(0, 4, [4])}, bytes(5)), "share the bytes"),
        (packed({"w\n": tensor(0, 4, [4])}, bytes(4)), "cannot be printed"),
        (packed({"\ud800": tensor(0, 4, [4])}, bytes(4)), "cannot be printed"),
    ],
)
def test_damage_is_refused_in_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert says in refusal(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    assert "not a file" in refusal(tmp_path)
    assert "holds no safetensors file" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("part", [b"[],", b'"a",', b"{},", b"1.5,"])
def test_millions_of_parts_are_refused_quickly(tmp_path: Path, part: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed(b'{"w":[' + part * (jsonfile.MAX_PARTS + 1) + b"1]}"))
    start = perf_counter()
    assert "parts" in refusal(path)
    assert perf_counter() - start < 2


GOOD = save(TENSORS, {"format": "pt"})


@given(cut=st.integers(0, len(GOOD) - 1))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    path.write_bytes(GOOD[:cut])
    assert re.search("cut off|too short", refusal(path))


@given(data=st.data())
def test_a_corrupted_file_is_read_as_the_official_library_does_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("bad") / "model.safetensors"
    path.write_bytes(damaged)
    expected = None
    with suppress(safetensors.SafetensorError):
        expected = official(bytes(damaged))
    read = outcome(path)
    if isinstance(read, str):
        assert expected is None or re.search("printed|twice", read)
    else:
        assert expected in (None, set(read))
        assert all(8 * h.nbytes == prod(h.shape) * BITS[h.dtype] for h in read)


@given(text=st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789e-dtypeshaU8', max_size=80).map(str.encode))
def test_any_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(packed(text, bytes(16)))
    read = outcome(path)
    assert not isinstance(read, str) or read.isprintable()
