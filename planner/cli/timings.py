"""Timings of one's own, as a command."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.options import Csv, Json, Md, complete_gpus
from planner.cli.output import render, table_outputs


def calibrate(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE...", help="Kernel timings, CSV or parquet.")],
    gpu: Annotated[
        str, typer.Option("--gpu", "-g", help="The GPU that was timed.", autocompletion=complete_gpus, metavar="GPU")
    ],
    engine: Annotated[
        str | None, typer.Option(help="Whose kernels: vllm, sglang, trtllm …; by default all in the tables.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write the fits as TOML, - for standard output.")
    ] = None,
    sms: Annotated[int | None, typer.Option(min=1, max=100_000, help="Multiprocessors of the GPU.")] = None,
    cache_mb: Annotated[float | None, typer.Option(min=0, max=1e6, help="Last-level cache of the GPU [MB].")] = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """Fit what a GPU reaches of its peaks to kernel timings, half of which judge the fit."""
    from planner.report.tables import kernel_table
    from planner.verbs.calibrate import calibrate as run

    answer = run(tables, gpu, engine=engine, sms=sms, cache_mb=cache_mb)
    table = kernel_table(answer.fits, f"Kernels of {answer.gpu}, measured")

    def show() -> None:
        from planner.report.terminal import console, show_kernels

        more = [] if out else ["--out FILE keeps them."]
        show_kernels(table, [*answer.notes, *more], console())

    render([(out, lambda stream: stream.write(answer.text)), *table_outputs(table, json, csv, md)], show)
