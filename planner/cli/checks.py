"""Holding predictions against what others print, as commands: start-up logs, published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.options import (
    Csv,
    Html,
    Json,
    Kv,
    Md,
    Png,
    Svg,
    Tp,
    Weights,
    complete_engines,
    complete_gpus,
    complete_models,
)
from planner.cli.output import Outputs, chart_outputs, render, table_outputs
from planner.errors import InputError

if TYPE_CHECKING:
    import altair as alt
    from rich.console import Console

    from planner.report.tables import Table


def check_log(
    ctx: typer.Context,
    log: Annotated[str, typer.Argument(metavar="FILE", help="Start-up log of an engine, or - for standard input.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model, where the log does not say.", autocompletion=complete_models),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", "-g", help="The GPU, where the log does not say.", autocompletion=complete_gpus),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Engine or version, where the log does not say.", autocompletion=complete_engines)
    ] = None,
    tp: Tp = None,
    weights: Weights = None,
    kv: Kv = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """Hold an engine's start-up log against the plan of the same: printed, predicted, and why they differ."""
    from planner.report.tables import log_table
    from planner.settle import MAX_GPUS
    from planner.units import parse_tokens
    from planner.verbs.checklog import check_log as run

    answer = run(
        log,
        model=model,
        gpu=gpu,
        engine=engine,
        tp=None if tp is None else parse_tokens(tp, "--tp", MAX_GPUS),
        weights=weights,
        kv=kv,
        settings=ctx.meta["settings"],
    )

    def show() -> None:
        from planner.report.terminal import console, show_log

        show_log(answer, console())

    outputs: Outputs = [(json, lambda stream: stream.write(answer.to_json() + "\n"))]
    render([*outputs, *table_outputs(log_table(answer), None, csv, md)], show)


@dataclass(frozen=True)
class Held:
    """What was held against published figures: every one, errors by group, and how a person sees them."""

    table: Table
    summary: Table
    show: Callable[[Console], None]
    draw: Callable[[], alt.TopLevelMixin]


def _capacity() -> Held:
    from planner.report.tables import capacity_summary, capacity_table
    from planner.report.terminal import show_capacity
    from planner.verbs.validate import capacity

    checks = capacity()
    points = [
        {
            "group": check.engine, "measured": check.printed_tokens, "ideal": None, "expected": check.tokens,
            "label": f"{check.id}: {check.model}",
        }
        for check in checks
        if check.printed_tokens and check.tokens
    ]  # fmt: skip
    return Held(
        capacity_table(checks), capacity_summary(checks), lambda out: show_capacity(checks, out),
        _scatter(points, "Tokens of the KV cache", "Engine", quantity="tokens", unit="thousands", per_unit=1e3),
    )  # fmt: skip


def _times() -> Held:
    from planner.report.tables import times_summary, times_table
    from planner.report.terminal import show_times
    from planner.verbs.validate_times import times

    checks = times()
    points = [
        {
            "group": check.source_table, "measured": check.measured_s, "ideal": check.ideal_s, "expected": check.expected_s,
            "label": f"{check.id}: {check.model} on {check.gpus} {check.gpu}",
        }
        for check in checks
        if check.error is not None and not check.suspect
    ]  # fmt: skip
    return Held(
        times_table(checks), times_summary(checks), lambda out: show_times(checks, out),
        _scatter(points, "Published times", "From"),
    )  # fmt: skip


def _serving() -> Held:
    from planner.report.tables import runs_summary, runs_table
    from planner.report.terminal import show_runs
    from planner.verbs.validate_serving import runs

    checks = runs()
    points = [
        {
            "group": check.model, "measured": check.measured_tpot_s, "ideal": check.ideal_tpot_s, "expected": check.tpot_s,
            "label": f"{check.id}: {check.concurrency} requests on {check.gpus} {check.gpu}",
        }
        for check in checks
        if check.mode == "together" and check.tpot_s is not None
    ]  # fmt: skip
    return Held(
        runs_table(checks), runs_summary(checks), lambda out: show_runs(checks, out),
        _scatter(
            points, "Time per output token of serving runs", "Model",
            subtitle=["Most of these runs were fitted to; of runs left out of the fit the median error is 7 % as well."],
        ),
    )  # fmt: skip


def _scatter(points: Sequence[Mapping[str, Any]], title: str, by: str, **axes: Any) -> Callable[[], alt.TopLevelMixin]:
    """What draws predictions against measurements."""

    def draw() -> alt.TopLevelMixin:
        from planner.report.charts import scatter_errors

        return scatter_errors(points, title=title, by=by, **axes)

    return draw


FIGURES: dict[str, Callable[[], Held]] = {"capacity": _capacity, "times": _times, "serving": _serving}
"""What `validate` can hold against published figures."""


def validate(
    what: Annotated[
        str | None,
        typer.Argument(
            help=f"What to hold against published figures: {', '.join(FIGURES)}; all by default.",
            autocompletion=lambda incomplete: [name for name in FIGURES if name.startswith(incomplete)],
        ),
    ] = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
    html: Html = None,
    png: Png = None,
    svg: Svg = None,
) -> None:
    """How far off kvplan has been, against what engines and papers have printed."""
    if what is not None and what not in FIGURES:
        raise InputError(f"nothing is published of {what[:40]!r}; validate {' or '.join(FIGURES)}")
    if what is None and (json or csv or md or html or png or svg):
        raise InputError(f"say which figures to write: validate {' or '.join(FIGURES)}")
    for held in (FIGURES[name]() for name in ([what] if what else FIGURES)):
        outputs = table_outputs(held.table, json, csv, None)
        pictures = chart_outputs(held.draw, held.table.title, html, png, svg)
        render([*outputs, *table_outputs(held.summary, None, None, md)], partial(_show, held), pictures)


def _show(held: Held) -> None:
    from planner.report.terminal import console

    held.show(console())
