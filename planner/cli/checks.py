"""Holding predictions against what others print, as commands: start-up logs, published figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import Csv, Json, Kv, Md, Tp, Weights, complete_engines, complete_gpus, complete_models
from planner.cli.output import Outputs, render, table_outputs
from planner.errors import InputError

if TYPE_CHECKING:
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


def _capacity() -> Held:
    from planner.report.tables import capacity_summary, capacity_table
    from planner.report.terminal import show_capacity
    from planner.verbs.validate import capacity

    checks = capacity()
    return Held(capacity_table(checks), capacity_summary(checks), lambda out: show_capacity(checks, out))


def _times() -> Held:
    from planner.report.tables import times_summary, times_table
    from planner.report.terminal import show_times
    from planner.verbs.validate_times import times

    checks = times()
    return Held(times_table(checks), times_summary(checks), lambda out: show_times(checks, out))


def _serving() -> Held:
    from planner.report.tables import runs_summary, runs_table
    from planner.report.terminal import show_runs
    from planner.verbs.validate_serving import runs

    checks = runs()
    return Held(runs_table(checks), runs_summary(checks), lambda out: show_runs(checks, out))


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
) -> None:
    """How far off kvplan has been, against what engines and papers have printed."""
    if what is not None and what not in FIGURES:
        raise InputError(f"nothing is published of {what[:40]!r}; validate {' or '.join(FIGURES)}")
    if what is None and (json or csv or md):
        raise InputError(f"say which figures to write: validate {' or '.join(FIGURES)}")
    for held in (FIGURES[name]() for name in ([what] if what else FIGURES)):
        outputs = table_outputs(held.table, json, csv, None)
        render([*outputs, *table_outputs(held.summary, None, None, md)], partial(_show, held))


def _show(held: Held) -> None:
    from planner.report.terminal import console

    held.show(console())
