"""Holding predictions against what others print, as commands: start-up logs, published figures."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.options import Csv, Json, Kv, Md, Tp, Weights, complete_engines, complete_gpus, complete_models
from planner.cli.output import Outputs, render, table_outputs
from planner.errors import InputError


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


def validate(
    what: Annotated[str, typer.Argument(help="What to hold against published figures: capacity.")] = "capacity",
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """How far off kvplan has been, against what engines and papers have printed."""
    from planner.report.tables import capacity_summary, capacity_table
    from planner.verbs.validate import capacity

    if what != "capacity":
        raise InputError(f"nothing is published of {what[:40]!r}; validate capacity")
    checks = capacity()

    def show() -> None:
        from planner.report.terminal import console, show_capacity

        show_capacity(checks, console())

    outputs = table_outputs(capacity_table(checks), json, csv, None)
    render([*outputs, *table_outputs(capacity_summary(checks), None, None, md)], show)
