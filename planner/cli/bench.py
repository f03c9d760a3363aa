"""Measuring this machine, as a command: parse, measure, render."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import Csv, Json, Md
from planner.cli.output import Outputs, check_outputs, render
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.bench.profile import Profile
    from planner.bench.run import Progress

_WHAT, _HOW = "What is measured", "Output (FILE, or - for standard output)"


def bench(
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="cuda, cuda:1, rocm, mps or cpu; by default the best.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Under half a minute.", rich_help_panel=_WHAT)] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Four times as long, for steadier figures.", rich_help_panel=_WHAT)
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", hidden=True, help="Says nothing about a machine.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="gemm,attention",
            help="Some of memory, gemm, attention, mla, prefill, experts, elementwise, layer, loop, host, link.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, max=9, help="Runs in a row; says how far apart they are.", rich_help_panel=_WHAT)
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Threads of a CPU.", rich_help_panel=_WHAT)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that the largest batch is searched in: 2GiB.", rich_help_panel=_WHAT),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The profile; in your data folder by default.", rich_help_panel=_HOW
        ),
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="FILE.html, .md, .csv or .json.", rich_help_panel=_HOW)
    ] = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """Measure this machine with torch, hold it against the prediction, and keep what it reaches for the other verbs."""
    from planner.bench import profile as profiles
    from planner.bench import report as reports
    from planner.bench import run
    from planner.report.data import write_csv
    from planner.units import parse_bytes

    if quick + full + tiny > 1:
        raise InputError("--quick and --full exclude each other; give one")
    if report is not None:
        reports.check_kind(report)
    check_outputs((out, report, json, csv, md))
    limit = None if budget is None else parse_bytes(budget)
    size = "quick" if quick else "full" if full else "tiny" if tiny else "default"
    first = os.environ.get("RANK", "0") == "0"
    gc.enable()  # a long run makes cycles that hold memory
    plan = run.plan(device, size, only, threads=threads)
    if first:
        print(f"kvplan: {plan.words(repeat)}", file=sys.stderr)
    with _progress(first) as progress:
        known = run.known_kernels(plan.device.facts)
        checks = only is None or "memory" in plan.classes or limit is not None
        found = run.repeated(plan, repeat, progress, kernels=known, memory=checks, budget=limit)
    run.leave()
    if not first:
        return
    path = out or (None if only or tiny else _own_file(found))

    def show() -> None:
        from planner.report.terminal import console, show_tables

        screen = console()
        show_tables(reports.head(found), reports.screen_tables(found, screen.width), reports.notes(found), screen)

    outputs: Outputs = [
        (path, lambda stream: profiles.write(found, stream)),
        (json, lambda stream: reports.write_answer(found, stream)),
        (csv, lambda stream: write_csv(reports.operator_table(found), stream)),
        (md, lambda stream: reports.write_kind(found, "answer.md", stream)),
        (report, lambda stream: reports.write_kind(found, str(report), stream)),
    ]
    render(outputs, show)
    print(f"kvplan: {_kept(found, path)}", file=sys.stderr)


def _own_file(profile: Profile) -> str | None:
    """The file in the user's data folder; none without what plans need."""
    from planner.bench.profile import default_path, make_folder

    if profile.device is None:
        return None
    path = default_path(profile.facts)
    make_folder(path.parent)
    return str(path)


def _kept(profile: Profile, path: str | None) -> str:
    """What plans make of the profile from now on, in a line."""
    from planner.bench.profile import default_path

    if path is None:
        return "no profile was kept, as not everything was measured; --out FILE keeps one"
    if profile.device is None:
        return "the profile has no products, which plans need; leave --only out for --gpu"
    if path != str(default_path(profile.facts)):
        return f"--gpu {path} plans with it" if path.endswith(".json") else "end FILE in .json for --gpu FILE"
    also = f", and so does --gpu {profile.facts.catalogue}" if profile.facts.catalogue else ""
    return f"--gpu measured plans with it{also}"


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[Progress | None]:
    """A progress bar on standard error, where that is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    # drawn between operators only: a thread that draws would take the processor from what is timed
    with Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=None)

        def tell(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total, description=words, refresh=True)

        yield tell
