"""The verb `validate serving`: published TTFT and TPOT of serving runs against what kvplan says of the same.

What a run does not print is taken to be the same for all: an 8-bit cache with quantised checkpoints and a 16-bit one with
others; lengths drawn from 0.8 to 1.0 of the nominal ones, 0.9 on average, where the run draws them; TensorRT-LLM before 1.2
where it has no version. `validation/README.md` says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median

from planner.checkpoint.load import load_model
from planner.deployment import Deployment
from planner.errors import KvplanError
from planner.result import Result
from planner.serving import Load, Serving, serve, serve_apart
from planner.settle import deploy
from planner.tensors import Role
from planner.verbs.validate import table_rows

ENGINES = {"tensorrt-llm": "trtllm"}
"""Engines whose name in the table is not kvplan's."""
UNDATED = {"trtllm": "1.1"}
"""Versions of runs without one and with workers together: most are of 2025. Those with workers apart are later."""
DRAWN_SHARE = 0.9
"""Mean of lengths drawn evenly from 0.8 to 1.0 of the nominal one, as InferenceMAX does."""
QUANTISED_BITS = 10

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ServingCheck(Result):
    """One serving run, measured against predicted.

    Attributes
    ----------
    kind
        ``dense`` or ``experts``.
    mode
        ``together``, or ``apart`` where prefill and decode have workers of their own.
    measured_ttft_s, measured_tpot_s, ttft_s, tpot_s, ideal_ttft_s, ideal_tpot_s
        As printed, expected and ideal [s]; ``None`` where kvplan cannot plan the run, for the ``reason`` given.
    ttft_error, tpot_error, ideal_ttft_error, ideal_tpot_error
        Expected and ideal over measured, less one.
    ttft_inside, tpot_inside
        Whether the interval holds what was measured.
    """

    id: str
    mode: str
    model: str
    kind: str = ""
    gpu: str
    gpus: int
    engine: str
    version: str
    weights: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    origin: str = ""
    measured_ttft_s: float
    ttft_s: float | None = None
    ideal_ttft_s: float | None = None
    ttft_error: float | None = None
    ideal_ttft_error: float | None = None
    ttft_inside: bool | None = None
    measured_tpot_s: float
    tpot_s: float | None = None
    ideal_tpot_s: float | None = None
    tpot_error: float | None = None
    ideal_tpot_error: float | None = None
    tpot_inside: bool | None = None
    reason: str = ""
    note: str
    source: str


def runs() -> tuple[ServingCheck, ...]:
    """Every serving run of the project's table, measured against predicted.

    >>> len(runs()) >= 400
    True
    """
    return tuple(_check(row) for row in table_rows("serving.csv"))


def _check(row: Row) -> ServingCheck:
    given = ServingCheck(
        id=row["id"], mode="apart" if row["disaggregated"] == "yes" else "together", model=row["model"], gpu=row["gpu"],
        gpus=int(row["gpus"]), engine=row["engine"], version=row["version"], weights=row["weights"],
        input_tokens=int(row["input_tokens"]), output_tokens=int(row["output_tokens"]),
        concurrency=int(row["concurrency"]), measured_ttft_s=float(row["ttft_s"]), measured_tpot_s=float(row["tpot_s"]),
        note=row["note"], source=f"{row['title']}, {row['locator']}",
    )  # fmt: skip
    try:
        d, found = _apart(row) if row["disaggregated"] == "yes" else _together(row)
    except KvplanError as error:
        return ServingCheck(**{**given.to_dict(), "reason": str(error)})
    eff, apart = d.efficiency, given.mode == "apart"
    times = {name: float(getattr(found, f"{name}_s")) for name in ("ttft", "tpot", "ideal_ttft", "ideal_tpot")}
    answer: dict[str, object] = {f"{name}_s": value for name, value in times.items()}
    for figure, measured, interval in (
        ("ttft", given.measured_ttft_s, eff.apart_first_interval if apart else eff.first_interval),
        ("tpot", given.measured_tpot_s, eff.apart_interval if apart else eff.interval),
    ):
        answer[f"{figure}_error"] = times[figure] / measured - 1
        answer[f"ideal_{figure}_error"] = times[f"ideal_{figure}"] / measured - 1
        answer[f"{figure}_inside"] = interval[0] <= measured / times[figure] <= interval[1]
    about = {"kind": "experts" if d.routes else "dense", "origin": eff.origin, "weights": d.weights_label}
    return ServingCheck(**{**given.to_dict(), **answer, **about})


def _together(row: Row) -> tuple[Deployment, Serving]:
    d = _deployment(row, "")
    return d, serve(d, _load(row))


def _apart(row: Row) -> tuple[Deployment, Serving]:
    prefill, decode = _deployment(row, "prefill_"), _deployment(row, "decode_")
    return decode, serve_apart(prefill, decode, _load(row), int(row["prefill_workers"]), int(row["decode_workers"]))


def _load(row: Row) -> Load:
    share = DRAWN_SHARE if row["lengths"] == "drawn" else 1.0
    return Load(
        int(float(row["input_tokens"]) * share), int(float(row["output_tokens"]) * share), float(row["concurrency"]),
        rounds=float(row["rounds"]), one_length=row["lengths"] == "fixed",
    )  # fmt: skip


def _deployment(row: Row, side: str) -> Deployment:
    tp, dp, ep = (int(row[f"{side}{kind}_parallel"] or 1) for kind in ("tensor", "data", "expert"))
    engine = ENGINES.get(row["engine"], row["engine"])
    version = re.match(r"[0-9]+(\.[0-9]+)*", row["version"])
    number = version[0] if version else "" if side else UNDATED.get(engine, "")
    context = int(row["input_tokens"]) + int(row["output_tokens"])
    return _deployed(row["model"], row["gpu"], row["weights"], row["kv"], engine, number, tp, dp, ep > 1, context)


@lru_cache(maxsize=256)
def _deployed(
    model: str, gpu: str, weights: str, kv: str, engine: str, version: str, tp: int, dp: int, ep: bool, context: int
) -> Deployment:
    spec = load_model(model)
    bits = spec.weight_formats(weights or None)[Role.EXPERT if any(r.experts for r in spec.ffn) else Role.FFN].bits
    return deploy(
        spec, gpu, context=context, tp=tp, pp=1, dp=dp, ep=ep and tp * dp > 1, weights=weights or None, pad_heads=True,
        kv=kv or ("fp8" if bits < QUANTISED_BITS else "bf16"), engine=f"{engine}@{version}" if version else engine,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ServingErrors(Result):
    """Errors over the runs of one group; absolute, as shares of 1, unless said otherwise.

    Attributes
    ----------
    by, group, figure
        What the runs were grouped by, the group, and TTFT or TPOT.
    bias_error
        Median of the signed errors.
    inside
        Share of the measurements that the interval held.
    """

    by: str
    group: str
    figure: str
    count: int
    ideal_median: float
    ideal_mean: float
    median: float
    mean: float
    bias_error: float
    inside: float


GROUPINGS = {"mode": "workers", "kind": "kind", "engine": "engine", "gpu": "device", "model": "model"}
"""Columns that `summary` groups by, in words."""


def summary(checks: Iterable[ServingCheck]) -> tuple[ServingErrors, ...]:
    """Errors by workers together or apart; of those together, by kind of model, engine, device and model."""
    used = [check for check in checks if check.tpot_s is not None]
    return tuple(
        _errors(by, group, figure, [check for check in of if getattr(check, column) == group])
        for column, by in GROUPINGS.items()
        for of in ([check for check in used if column == "mode" or check.mode == "together"],)
        for figure in ("tpot", "ttft")
        for group in dict.fromkeys(getattr(check, column) for check in of)
    )


def _errors(by: str, group: str, figure: str, checks: list[ServingCheck]) -> ServingErrors:
    signed = [getattr(check, f"{figure}_error") for check in checks]
    ideal = [abs(getattr(check, f"ideal_{figure}_error")) for check in checks]
    expected = [abs(error) for error in signed]
    return ServingErrors(
        by=by, group=group, figure=figure.upper(), count=len(checks), ideal_median=median(ideal), ideal_mean=fmean(ideal),
        median=median(expected), mean=fmean(expected), bias_error=median(signed),
        inside=fmean(bool(getattr(check, f"{figure}_inside")) for check in checks),
    )  # fmt: skip


def misses(checks: Iterable[ServingCheck], each: int) -> tuple[ServingCheck, ...]:
    """The runs whose TPOT is missed most, so many of each engine."""
    used = sorted((c for c in checks if c.tpot_error is not None), key=lambda c: -abs(c.tpot_error or 0.0))
    engines = dict.fromkeys(check.engine for check in used)
    return tuple(c for engine in engines for c in [check for check in used if check.engine == engine][:each])
