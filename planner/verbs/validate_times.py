"""The verb `validate times`: published times of prefill, decode and whole runs against what kvplan says of the same.

Every quantity becomes the time of the run that was measured: ``batch`` prompts prefilled at once, then so many decode steps,
each at the context of the middle one. A run that writes N tokens takes a prefill, which gives the first, and N - 1 steps.
What is published is tokens a second, seconds a step, or device time a token or sample; an error is predicted over measured
time, less one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import log
from statistics import fmean, median

import numpy as np

from planner.checkpoint.load import load_model
from planner.deployment import Deployment
from planner.errors import InputError, KvplanError
from planner.evaluate import decode_times, interval_s, prefill_times
from planner.model import ModelSpec
from planner.result import Result
from planner.row import Source
from planner.settle import deploy
from planner.verbs.validate import table_rows

ENGINES = {"tensorrt-llm": "trtllm", "llama.cpp": "llamacpp"}
"""Engines that kvplan has, by their names in the table; the others are planned without one."""
MOST_A_DEVICE = 32
"""Sequences a device at most where the batch is not printed (Ainslie et al. 2023, arXiv:2305.13245, section 3.1)."""

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TimeCheck(Result):
    """One published time, measured against predicted.

    Attributes
    ----------
    phase
        What was timed: ``prefill``, ``decode``, or ``total`` for both.
    quantity, value
        As published: ``latency_s``, ``step_s``, ``tokens_per_s``, ``machine_s_per_token``, ``chip_s_per_sample``.
    measured_s, ideal_s, expected_s
        Time of the run [s]; ``None`` where kvplan cannot plan it, for the ``reason`` given.
    ideal_error, error
        Ideal and expected over measured, less one.
    low_s, high_s, inside
        The interval of first tokens or of decode steps, the latter taken to hold for whole runs, and whether it holds the
        measured time [s].
    suspect
        Whether the row contradicts others of its table, as the note says; such rows are in no summary.
    """

    id: str
    source_table: str
    model: str
    gpu: str
    gpus: int
    tensor_parallel: int | None
    pipeline_parallel: int | None
    data_parallel: int | None
    weights: str
    kv: str
    engine: str
    version: str
    phase: str
    batch: int | None
    input_tokens: int | None
    output_tokens: int | None
    quantity: str
    value: float
    measured_s: float | None = None
    ideal_s: float | None = None
    expected_s: float | None = None
    ideal_error: float | None = None
    error: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    inside: bool | None = None
    suspect: bool
    reason: str = ""
    note: str
    source: str


def times() -> tuple[TimeCheck, ...]:
    """Every published time of the project's table, measured against predicted.

    >>> len(times()) >= 800
    True
    """
    return tuple(_check(row) for row in table_rows("published_times.csv"))


def _check(row: Row) -> TimeCheck:
    given = TimeCheck(
        id=row["id"], source_table=row["source_table"], model=row["model"] or row["id"], gpu=row["gpu"],
        gpus=int(row["gpus"]), tensor_parallel=_count(row, "tensor_parallel"),
        pipeline_parallel=_count(row, "pipeline_parallel"), data_parallel=_count(row, "data_parallel"),
        weights=row["weights"], kv=row["kv"], engine=row["engine"], version=row["version"], phase=row["phase"],
        batch=_count(row, "batch"), input_tokens=_count(row, "input_tokens"), output_tokens=_count(row, "output_tokens"),
        quantity=row["quantity"], value=float(row["value"]), suspect="SUSPECT" in row["note"], note=row["note"],
        source=f"{row['title']}, {row['locator']}",
    )  # fmt: skip
    try:
        d, batch, ideal, expected = min(_candidates(row), key=lambda found: found[3] / found[1])
        measured = _measured_s(row, batch)
    except KvplanError as error:
        return TimeCheck(**{**given.to_dict(), "reason": str(error)})
    low, high = _interval_s(row, d, expected, ideal)
    found = {
        "model": d.model.name, "batch": batch, "tensor_parallel": d.tp, "pipeline_parallel": d.pp,
        "data_parallel": d.sharding.dp, "weights": d.weights_label, "kv": d.precision.kv.id, "measured_s": measured,
        "ideal_s": ideal, "expected_s": expected, "ideal_error": ideal / measured - 1, "error": expected / measured - 1,
        "low_s": low, "high_s": high, "inside": low <= measured <= high,
    }  # fmt: skip
    return TimeCheck(**{**given.to_dict(), **found})


def _interval_s(row: Row, d: Deployment, expected_s: float, ideal_s: float) -> tuple[float, float]:
    """Where 80 % of such times are meant to lie: of a first token, or of decode steps, taken to hold for whole runs [s]."""
    if row["phase"] == "prefill":
        low, high = d.efficiency.first_interval
        return max(expected_s * low, ideal_s), expected_s * high
    low_s, high_s = interval_s(d, expected_s, ideal_s)
    return float(low_s), float(high_s)


def _candidates(row: Row) -> list[tuple[Deployment, int, float, float]]:
    """Deployment, batch, ideal and expected time [s]: one if the row says how, else every way to share the devices."""
    if row["batch"]:
        degrees = [_count(row, f"{kind}_parallel") or 1 for kind in ("tensor", "pipeline", "data")]
        return [_timed(row, _deployment(row, *degrees), int(row["batch"]))]
    devices = int(row["gpus"])
    found = []
    for tp in (2**i for i in range(devices.bit_length()) if devices % 2**i == 0):
        d = _deployment(row, tp, 1, devices // tp)
        fits = int(d.max_batch(np.asarray(d.context)))
        if batch := min(MOST_A_DEVICE * devices, fits) // d.sharding.dp * d.sharding.dp:
            found.append(_timed(row, d, batch))
    if not found:
        raise InputError(f"{row['id']} does not fit on {devices} {row['gpu']}; name more of them")
    return found


def _timed(row: Row, d: Deployment, batch: int) -> tuple[Deployment, int, float, float]:
    """A deployment with its batch, and how long it takes, ideal and expected [s]."""
    prompt, written = _prompt(row), _written(row)
    steps = written - (row["phase"] == "total")
    ideal = expected = 0.0
    if row["phase"] != "decode":
        ideal, expected = (float(time.step_s) for time in prefill_times(d, prompt, batch))
    if row["phase"] != "prefill" and steps:
        before = 0 if d.model.encoder else prompt
        held = _count(row, "context_tokens") or max(1, before + (steps - 1) // 2)
        step = decode_times(d, batch * (_count(row, "beam") or 1), held)
        ideal, expected = ideal + steps * float(step[0].step_s), expected + steps * float(step[1].step_s)
    return d, batch, ideal, expected


def _prompt(row: Row) -> int:
    return _count(row, "input_tokens") or 0


def _written(row: Row) -> int:
    """Tokens that each sequence has more in the end; where that is not printed, one step is as good as many."""
    return _count(row, "output_tokens") or 1


def _measured_s(row: Row, batch: int) -> float:
    """Time of the run that was measured [s]."""
    value, written = float(row["value"]), _written(row)
    tokens = _prompt(row) if row["phase"] == "prefill" else written
    to_seconds: dict[str, Callable[[], float]] = {
        "latency_s": lambda: value,
        "step_s": lambda: value * written,
        "tokens_per_s": lambda: batch * tokens / value,
        "machine_s_per_token": lambda: value * batch * written,
        "chip_s_per_sample": lambda: value * batch / int(row["gpus"]),
    }
    return to_seconds[row["quantity"]]()


def _deployment(row: Row, tp: int, pp: int, dp: int) -> Deployment:
    model = _model(row["model"], row["config"], row["attention"], row["source_table"])
    source = _prompt(row) if model.encoder else None
    context = _count(row, "context_tokens") or (0 if model.encoder else _prompt(row)) + _written(row)
    return deploy(
        model, row["gpu"], context=context, batch=_count(row, "batch") or 1, tp=tp, pp=pp, dp=dp,
        weights=row["weights"] or None, kv=row["kv"] or None, kv_shard=row["kv_shard"] or "heads",
        engine=ENGINES.get(row["engine"], "none"), source=source, pad_heads=True,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _model(name: str, config: str, attention: str, table: str) -> ModelSpec:
    """A model of the catalogue, or one whose rows the table holds."""
    if not config:
        model = load_model(name)
        return model.with_attention(attention) if attention else model
    rows = json.loads(config)
    source = Source(title=table, locator="validation/published_times.csv", date="2026-11-23")
    return ModelSpec.derived(
        **rows, id=table, name=f"{rows['layers']} × {rows['hidden']:,}", family=table, source=(source,)
    )


def _count(row: Row, column: str) -> int | None:
    return int(row[column]) if row[column] else None


@dataclass(frozen=True, kw_only=True)
class TimeErrors(Result):
    """Errors over the published times of one group; absolute, as shares of 1, unless said otherwise.

    Attributes
    ----------
    by, group
        What the rows were grouped by, and the group.
    bias_error
        Median of the signed errors of expected times.
    inside
        Share of the measured times that the interval held.
    """

    by: str
    group: str
    count: int
    ideal_median: float
    ideal_mean: float
    median: float
    mean: float
    bias_error: float
    inside: float


GROUPINGS = {"source_table": "source", "phase": "phase", "engine": "engine", "gpu": "device"}
"""Columns that `summary` groups by, in words."""


def summary(checks: Iterable[TimeCheck]) -> tuple[TimeErrors, ...]:
    """Errors by source, phase, engine and device, of what could be planned and is not suspect."""
    used = [check for check in checks if check.error is not None and not check.suspect]
    return tuple(
        _errors(by, group, [check for check in used if getattr(check, column) == group])
        for column, by in GROUPINGS.items()
        for group in dict.fromkeys(getattr(check, column) for check in used)
    )


def _errors(by: str, group: str, checks: list[TimeCheck]) -> TimeErrors:
    ideal = [abs(check.ideal_error or 0.0) for check in checks]
    signed = [check.error or 0.0 for check in checks]
    expected = [abs(error) for error in signed]
    return TimeErrors(
        by=by, group=group, count=len(checks), ideal_median=median(ideal), ideal_mean=fmean(ideal),
        median=median(expected), mean=fmean(expected), bias_error=median(signed),
        inside=fmean(bool(check.inside) for check in checks),
    )  # fmt: skip


def misses(checks: Iterable[TimeCheck], each: int) -> tuple[TimeCheck, ...]:
    """The times that are missed by the largest factor, so many of each source."""
    used = [check for check in checks if check.error is not None and not check.suspect]
    used.sort(key=lambda check: -abs(log(1.0 + (check.error or 0.0))))
    tables = dict.fromkeys(check.source_table for check in used)
    return tuple(c for table in tables for c in [check for check in used if check.source_table == table][:each])


def left_out(checks: Iterable[TimeCheck]) -> tuple[TimeCheck, ...]:
    """The times that no summary counts: those that cannot be planned, and the suspect ones."""
    return tuple(check for check in checks if check.error is None or check.suspect)
