"""The verb `validate`: how far off kvplan is on what others have published, with nothing fitted to the case at hand.

`capacity` holds kvplan against start-up logs of engines, in two ways. *Bytes a token*: where a log prints the memory for
the cache and the tokens that it holds, both kvplan's layout and the log say how many bytes a token takes. *From scratch*:
where the device, the model, its format and the degrees are known, kvplan predicts the tokens from nothing else, with the
engine's defaults for every setting that the log does not print.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.catalog import load_gpu
from planner.checkpoint.load import load_model
from planner.deployment import Deployment
from planner.errors import KvplanError
from planner.gpu import GpuSpec
from planner.readings import TYPICAL
from planner.result import Result
from planner.settle import deploy
from planner.units import GIB

_HERE = Path(__file__).parent.parent
CLOSE = 0.005


@dataclass(frozen=True, kw_only=True)
class LogCheck(Result):
    """One start-up log, printed against predicted.

    Attributes
    ----------
    kind
        ``dense`` if every layer keeps every token in the same way, else ``hybrid``.
    certain
        Whether model, configuration and format are known rather than inferred from the figures.
    token_bytes, printed_token_bytes
        Memory for the cache on one GPU over tokens, as laid out and as printed; ``None`` where not both are printed.
    tokens, printed_tokens
        From scratch; ``None`` where the case is not known well enough.
    note
        What is odd about the log.
    """

    id: str
    engine: str
    version: str
    model: str
    gpu: str
    tensor_parallel: int
    kind: str
    certain: bool
    token_bytes: float | None
    printed_token_bytes: float | None
    token_bytes_error: float | None
    tokens: int | None
    printed_tokens: int | None
    tokens_error: float | None
    note: str
    source: str


def capacity() -> tuple[LogCheck, ...]:
    """Every start-up log of the project's table, printed against predicted.

    >>> len(capacity()) >= 80
    True
    """
    return tuple(check for row in table_rows("engine_logs.csv") if (check := _check(row)))


@lru_cache(maxsize=8)
def table_rows(name: str) -> list[dict[str, str]]:
    """A table of `validation/`, which lies inside the package in a wheel, and beside it in a checkout."""
    inside = _HERE / "validation" / name
    path = inside if inside.is_file() else _HERE.parent / "validation" / name
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _check(row: dict[str, str]) -> LogCheck | None:
    share = row["memory_fraction"] or row["version"] or row["generation"] == "V0"
    known = row["gpu"] and row["tensor_parallel"] and row["certain"] == "yes" and share
    try:
        d = _deployment(row, load_gpu(row["gpu"] or "h200"))
    except KvplanError:
        return None
    length = _number(row["max_model_len"]) or d.model.context_limit
    printed_tokens = _number(row["kv_tokens"]) or (_number(row["blocks"]) or 0) * d.setup.block_tokens or None
    pool = _pool_bytes(row)
    laid_out, shown = None, None
    if pool and printed_tokens and row["tensor_parallel"]:
        shown = pool / printed_tokens
        laid_out = _bytes_a_token(_deployment(row, d.gpu, pool), pool, length)
    tokens = d.pool_tokens(length) if known and printed_tokens and d.engine.id != "llamacpp" else None
    return LogCheck(
        id=row["id"], engine=row["engine"], version=row["version"], model=d.model.id, gpu=row["gpu"],
        tensor_parallel=d.tp, kind="dense" if _dense(d) else "hybrid", certain=row["certain"] == "yes",
        token_bytes=laid_out, printed_token_bytes=shown, token_bytes_error=_error(laid_out, shown),
        tokens=tokens, printed_tokens=printed_tokens, tokens_error=_error(tokens, printed_tokens), note=row["note"],
        source=row["source"],
    )  # fmt: skip


def _deployment(row: dict[str, str], gpu: GpuSpec, pool: int | None = None) -> Deployment:
    """The deployment that a log describes; with ``pool``, one whose memory for the cache is what was printed."""
    model = load_model(row["model"])
    version = row["version"] or TYPICAL.get((row["engine"], row["generation"]), "")
    if row["version"] in ("", "0.20") and _counts_requests(row):
        version = "0.26"
    engine = f"{row['engine']}@{version}" if version else row["engine"]
    settings = {name: row[column] for name, column in _SETTINGS.items() if row[column]}
    fields: dict[str, Any] = {"kv_memory": pool} if pool else {}
    fields |= {name: read(row[column]) for name, (column, read) in _FIELDS.items() if row[column]}
    if row["total_gib"]:
        gpu = gpu.with_memory(int(float(row["total_gib"]) * GIB))
    if pool:
        gpu = gpu.with_memory(2**41)
    return deploy(
        model, gpu, context=_number(row["max_model_len"]) or model.context_limit, count=None,
        tp=_number(row["tensor_parallel"]) or 1, pp=_number(row["pipeline_parallel"]) or 1,
        dp=_number(row["data_parallel"]) or 1, ep=row["expert_parallel"] == "true", weights=row["weights"] or None,
        kv=row["kv"] or None, engine=engine, settings=settings, fields=fields, pad_heads=True,
    )  # fmt: skip


_SETTINGS: dict[str, str] = {}
_FIELDS: dict[str, tuple[str, Any]] = {
    "memory_fraction": ("memory_fraction", float),
    "max_tokens": ("max_model_len", int),
    "sequences": ("max_num_seqs", int),
    "step_tokens": ("max_num_batched_tokens", int),
    "block_tokens": ("block_size", int),
    "graphs": ("eager", lambda text: text != "true"),
    "draft_tokens": ("speculative_tokens", int),
    "prefix_caching": ("prefix_caching", lambda text: text == "true"),
}


def _bytes_a_token(d: Deployment, pool: int, length: int) -> float | None:
    """Memory for the cache over the tokens that the engine would print, or what a pool of tokens takes for each."""
    if d.setup.layout == "cells":
        return float(d.curve.growing)
    alone = [one.unit_bytes for held in d.stage_pools for one in held if one.unit == "token" and one.counted]
    tokens = d.pool_tokens(length)
    return float(alone[0]) if alone else pool / tokens if tokens else None


def _counts_requests(row: dict[str, str]) -> bool:
    """Whether the printed tokens are requests of the longest length, which vLLM counts from 0.20.1 on."""
    tokens, each, length = (_number(row[name]) for name in ("kv_tokens", "concurrency", "max_model_len"))
    exact = float(row["concurrency"]) * length if row["concurrency"] and length else 0.0
    return row["engine"] == "vllm" and bool(tokens and each and abs(exact / tokens - 1) < 0.01)


def _pool_bytes(row: dict[str, str]) -> int | None:
    """Memory for the cache on one GPU that a log prints [B]."""
    if row["kv_gib"]:
        return int(float(row["kv_gib"]) * GIB)
    if row["k_gib"] and row["v_gib"]:
        return int((float(row["k_gib"]) + float(row["v_gib"])) * GIB)
    return None


def _dense(d: Deployment) -> bool:
    alike = {(one.kept, one.every, bool(one.state_bytes), one.source) for held in d.stage_layers for one in held}
    return len(alike) == 1 and not next(iter(alike))[2]


def _number(text: str) -> int | None:
    return int(float(text)) if text else None


def _error(predicted: float | None, printed: float | None) -> float | None:
    return predicted / printed - 1 if predicted and printed else None


@dataclass(frozen=True, kw_only=True)
class ErrorRow(Result):
    """Errors of one kind over some logs: shares of 1, absolute; ``within`` is the share of them within 0.5 %."""

    figure: str
    logs: str
    count: int
    within: float
    median: float
    p90: float
    worst: float


FIGURES = {"token_bytes": "bytes a token", "tokens": "tokens, from scratch"}


def summary(checks: tuple[LogCheck, ...]) -> tuple[ErrorRow, ...]:
    """Errors by figure, kind of model and engine."""
    engines = dict.fromkeys(check.engine for check in checks)
    groups: dict[str, dict[str, Any]] = {
        "all": {}, "dense": {"kind": "dense"}, "hybrid": {"kind": "hybrid"}, "certain": {"certain": True},
        **{name: {"engine": name} for name in engines},
    }  # fmt: skip
    rows = []
    for of, words in FIGURES.items():
        for name, conditions in groups.items():
            if found := errors(checks, of, **conditions):
                within = sum(e <= CLOSE for e in found) / len(found)
                median, p90 = found[len(found) // 2], found[min(len(found) - 1, int(0.9 * len(found)))]
                rows.append(
                    ErrorRow(
                        figure=words,
                        logs=name,
                        count=len(found),
                        within=within,
                        median=median,
                        p90=p90,
                        worst=found[-1],
                    )
                )
    return tuple(rows)


def misses(checks: tuple[LogCheck, ...], of: str, beyond: float) -> tuple[LogCheck, ...]:
    """Logs whose error is larger, the largest first."""
    found = [check for check in checks if abs(getattr(check, f"{of}_error") or 0.0) > beyond]
    return tuple(sorted(found, key=lambda check: -abs(getattr(check, f"{of}_error"))))


def errors(checks: tuple[LogCheck, ...], of: str, **conditions: Any) -> list[float]:
    """Sorted absolute errors of one kind over the checks that meet the conditions."""
    return sorted(_absolute(checks, of, conditions))


def _absolute(checks: tuple[LogCheck, ...], of: str, conditions: dict[str, Any]) -> Iterator[float]:
    for check in checks:
        value = getattr(check, f"{of}_error")
        if value is not None and all(getattr(check, name) == wanted for name, wanted in conditions.items()):
            yield abs(value)
