"""Tables of kernel timings: one small schema, read from CSV or parquet.

One row is one call. ``device, class, format, time_s`` are in every table, with the shape columns of the class (`SHAPES`);
others may be left out. Times are seconds and sizes are plain numbers, of one rank.

    device,class,format,m,n,k,time_s
    h100-sxm,gemm,bf16,16,4096,4096,16.6e-6
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    Vector = npt.NDArray[np.float64]

SHAPES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "moe": ("tokens", "experts", "top_k", "hidden", "width"),
    "decode-attention": ("batch", "context", "heads", "kv_heads", "head_dim"),
    "prefill-attention": ("batch", "tokens", "heads", "kv_heads", "head_dim"),
    "mla-decode": ("batch", "context", "heads"),
    "mla-prefill": ("batch", "tokens", "heads"),
    "state-decode": ("batch", "elements"),
    "state-prefill": ("batch", "tokens", "elements"),
    "conv-decode": ("batch", "moved_bytes"),
    "conv-prefill": ("batch", "moved_bytes"),
    "element-wise": ("moved_bytes",),
    "all-reduce": ("message_bytes", "degree"),
    "all-gather": ("message_bytes", "degree"),
    "reduce-scatter": ("message_bytes", "degree"),
    "all-to-all": ("message_bytes", "degree"),
}
"""Columns that give the shape of a call, by class."""

COLUMNS: dict[str, str] = {
    "device": "id or alias of the catalogue",
    "class": "class of the kernel, a key of `SHAPES`",
    "format": "format of weights, or of the cache or state (`planner.precision`)",
    "time_s": "time of one call [s]",
    "runs_in": "format of the products: bf16, fp8, fp4, int8; that of the format if absent",
    "engine": "whose kernel: vllm, sglang, trtllm, nccl; any if absent",
    "kernel": "the engine's name for it",
    "m": "tokens of a product",
    "n": "outputs of a product",
    "k": "inputs of a product",
    "batch": "sequences",
    "tokens": "new tokens: of each sequence in attention, of all in experts",
    "context": "cached tokens of a sequence, before new ones in prefill; 0 if absent there",
    "window": "tokens that a query sees at most; all if absent or 0",
    "heads": "query heads",
    "kv_heads": "key-value heads",
    "head_dim": "width of a head's query and key; 192 in latent attention if absent",
    "value_dim": "width of a head's value in latent attention; 128 if absent",
    "latent": "width of the compressed vector; 512 if absent",
    "rope": "width of the rotary key beside it; 64 if absent",
    "experts": "routed experts of the layer",
    "top_k": "experts of a token",
    "hidden": "width of a token",
    "width": "columns of one expert",
    "gated": "1 with a gate projection, 0 without; 1 if absent",
    "ranks": "ranks that hold whole experts; 1 if absent",
    "skew": "exponent of the experts' loads, 0 for even ones; 0 if absent",
    "elements": "numbers in one sequence's state",
    "vectors": "numbers of one token's inputs and output to a state; 0 if absent",
    "moved_bytes": "bytes read and written [B]",
    "message_bytes": "the whole message of a collective: before it is scattered, after it is gathered [B]",
    "degree": "devices of a collective",
}
"""Every column there is, with what it holds."""

DEFAULTS: dict[str, float] = {
    "context": 0.0, "head_dim": 192.0, "value_dim": 128.0, "latent": 512.0, "rope": 64.0, "gated": 1.0, "ranks": 1.0,
    "skew": 0.0, "vectors": 0.0, "batch": 1.0,
}  # fmt: skip
"""What a shape column is where a table leaves it out (the widths of DeepSeek-V3's latent attention, arXiv:2412.19437)."""

_TEXT = ("device", "class", "format", "runs_in", "engine", "kernel")
_KEYS = ("device", "class", "format")
"""Text that every row has."""
_MOST = 1e13
"""Larger than any shape."""
_ALL = 2.0**50
"""A window that nothing reaches."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Timings of one class, format and kernel, as columns.

    Attributes
    ----------
    shapes
        Columns of `COLUMNS` that are numbers, complete for the class.
    seconds
        Measured times [s].
    """

    device: str
    kind: str
    form: str
    runs_in: str
    engine: str
    kernel: str
    windowed: bool
    shapes: dict[str, Vector]
    seconds: Vector


def read_table(path: str | Path) -> pd.DataFrame:
    """Read one table of timings and check its columns.

    Raises
    ------
    InputError
        If it cannot be read, lacks a column or has one that nobody knows.
    """
    import pandas as pd

    path = Path(path)
    try:
        if path.suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, "str"), keep_default_na=True)
    except ImportError:
        raise InputError(f"reading {path.name} needs pyarrow; install it, or give the table as CSV") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; name a CSV or parquet table") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a table: {_first_line(error)}; give CSV with a header or parquet") from None
    return check(frame, path.name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["it cannot be read"])[0][:120]


def check(frame: pd.DataFrame, name: str = "the table") -> pd.DataFrame:
    """Check a table's columns and times, and complete those that may be left out.

    Raises
    ------
    InputError
        In one line that says what to put right.
    """
    for column in frame.columns:
        if column not in COLUMNS:
            near = difflib.get_close_matches(str(column), COLUMNS, n=1)
            hint = f"did you mean {near[0]}?" if near else "drop it"
            raise InputError(f"{name} has an unknown column {str(column)[:40]!r}; {hint}")
    _need(frame, (*_KEYS, "time_s"), name, "every table")
    if not len(frame):
        raise InputError(f"{name} has no rows; give timings")
    for column in _KEYS:
        if blank := int(frame[column].isna().sum()):
            raise InputError(f"{name} has {blank} rows without a {column}; fill it in or drop them")
    frame = frame.copy()
    for column, value in (("engine", "any"), ("kernel", ""), ("runs_in", "")):
        frame[column] = frame[column].fillna(value) if column in frame else value
    frame["window"] = _numbers(frame, "window", name).fillna(0.0) if "window" in frame else 0.0
    for kind in sorted(set(map(str, frame["class"]))):
        if kind not in SHAPES:
            near = difflib.get_close_matches(kind, SHAPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(SHAPES)}"
            raise InputError(f"{name} has an unknown class {kind[:40]!r}; {hint}")
        _need(frame, SHAPES[kind], name, f"class {kind}")
    times = _numbers(frame, "time_s", name)
    if bad := int((~(np.isfinite(times) & (times > 0))).sum()):
        raise InputError(f"{name} has {bad} times that are not positive; drop those rows or measure again")
    if float(times.max()) > 1e4:
        raise InputError(f"{name} has a time of {float(times.max()):.3g} s; give seconds, not microseconds")
    return frame


def _need(frame: pd.DataFrame, columns: tuple[str, ...], name: str, who: str) -> None:
    if missing := [c for c in columns if c not in frame]:
        raise InputError(
            f"{name} lacks {', '.join(missing)}, which {who} needs; add the column{'s' * (len(missing) > 1)}"
        )


def _numbers(frame: pd.DataFrame, column: str, name: str) -> Any:
    import pandas as pd

    try:
        return pd.to_numeric(frame[column]).astype(float)
    except (ValueError, TypeError):
        raise InputError(f"{name}: column {column} holds something that is not a number; put it right") from None


def groups(frame: pd.DataFrame, name: str = "the table") -> list[Timings]:
    """Timings of a checked table that one set of parameters is fitted to.

    Raises
    ------
    InputError
        If a shape is missing, or not positive.
    """
    keys = ["device", "class", "format", "runs_in", "engine", "kernel"]
    found = []
    for values, part in frame.groupby(keys, sort=True):
        key = dict(zip(keys, map(str, values), strict=True))
        attends = key["class"] in ("decode-attention", "prefill-attention")
        for windowed in (False, True) if attends else (False,):
            rows = part[(part["window"] > 0) == windowed] if attends else part
            if len(rows):
                shapes = _shapes(rows, key["class"], name)
                found.append(
                    Timings(
                        key["device"], key["class"], key["format"], key["runs_in"], key["engine"], key["kernel"],
                        windowed, shapes, rows["time_s"].to_numpy(float),
                    )
                )  # fmt: skip
    return found


def _shapes(rows: pd.DataFrame, kind: str, name: str) -> dict[str, Vector]:
    shapes = {}
    for column in COLUMNS:
        if column in _TEXT or column == "time_s":
            continue
        if column in rows and column != "window":
            values = _numbers(rows, column, name).fillna(DEFAULTS.get(column, np.nan)).to_numpy()
        else:
            values = np.full(len(rows), DEFAULTS.get(column, np.nan))
        shapes[column] = values
    window = rows["window"].to_numpy(float)
    shapes["window"] = np.where(window > 0, window, _ALL)
    for column in SHAPES[kind]:
        if not bool(np.all((shapes[column] > 0) & np.isfinite(shapes[column]))):
            raise InputError(f"{name}: {column} of class {kind} is missing or not positive in some row; put it right")
        if column != "window" and float(shapes[column].max()) > _MOST:
            raise InputError(
                f"{name}: {column} of class {kind} is {shapes[column].max():.3g} in some row; put it right"
            )
    return shapes
