"""The catalogue as commands: models, GPUs and engines, and a model as a card."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import (
    AssumeDecoder,
    Csv,
    Json,
    Md,
    Model,
    Revision,
    complete_engines,
    complete_gpus,
    complete_models,
)
from planner.cli.output import render, table_outputs
from planner.errors import CardError, InputError

if TYPE_CHECKING:
    from planner.calibrate.model import KernelFile


def models(
    name: Annotated[
        str | None, typer.Argument(help="One model, or part of names.", autocompletion=complete_models)
    ] = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """List the bundled models, or show one."""
    from planner.catalog import matching, model_ids
    from planner.checkpoint.load import load_model
    from planner.report.tables import model_table

    found = matching(name, model_ids(), load_model)

    def show() -> None:
        from planner.report.terminal import console, show_catalogue, show_model

        show_model(found[0], console()) if len(found) == 1 else show_catalogue(model_table(found), console())

    render(table_outputs(model_table(found), json, csv, md), show)


def gpus(
    name: Annotated[str | None, typer.Argument(help="One GPU, or part of names.", autocompletion=complete_gpus)] = None,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="Show what one GPU's kernels reach of its peaks, and how well it is known."),
    ] = False,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """List the GPU catalogue, or show one device; 'list' may be left out."""
    from planner.catalog import gpu_ids, load_gpu, matching
    from planner.measured import find_gpu
    from planner.report.tables import gpu_table

    if kernels:
        _kernels(name, json, csv, md)
        return
    found = matching(name, gpu_ids(), load_gpu if name is None else find_gpu)

    def show() -> None:
        from planner.report.terminal import console, show_catalogue, show_gpu

        show_gpu(found[0], console()) if len(found) == 1 else show_catalogue(gpu_table(found), console())

    render(table_outputs(gpu_table(found), json, csv, md), show)


def new_gpu(
    name: Annotated[str, typer.Argument(help="Its id: small letters, digits, dots and hyphens.")],
    profile: Annotated[str, typer.Option("--from", metavar="PROFILE", help="What 'kvplan bench' wrote, or measured.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write it; NAME.toml by default.")
    ] = None,
) -> None:
    """Start a catalogue entry of a device that 'kvplan bench' measured; --gpu FILE.toml plans with it."""
    from planner.bench.entry import gpu_of, toml
    from planner.bench.profile import latest, load
    from planner.measured import LATEST

    found = latest() if profile == LATEST else load(profile)
    text = toml(gpu_of(found, name))
    if out is None and Path(f"{name}.toml").exists():
        raise InputError(f"{name}.toml is there already; remove it, or name another file with --out")
    render([(out or f"{name}.toml", lambda stream: stream.write(text))], lambda: None)


def _kernels(name: str | None, json: str | None, csv: str | None, md: str | None) -> None:
    """The kernels of one GPU, or of its architecture, or of a file that 'kvplan calibrate' wrote."""
    from planner.report.tables import kernel_table
    from planner.verbs.calibrate import fits

    file, device = _kernel_file(name)
    whose = device if file.device else f"{file.architecture} devices, for {device}"
    table = kernel_table(fits(file), f"Kernels of {whose}, {file.origin}")

    def show() -> None:
        from planner.report.terminal import console, show_kernels

        show_kernels(table, map(str, file.source), console())

    render(table_outputs(table, json, csv, md), show)


def _kernel_file(name: str | None) -> tuple[KernelFile, str]:
    """Kernels by the name of a device or of a file, and the device's name."""
    from planner.calibrate.model import read_kernels
    from planner.catalog import gpu_ids, load_gpu, matching
    from planner.measured import find_gpu
    from planner.verbs.calibrate import kernels_of

    if name is not None and name.lower().endswith(".toml"):
        with contextlib.suppress(CardError):  # it may be a catalogue entry instead
            file = read_kernels(Path(name))
            return file, file.device
    found = matching(name, gpu_ids(), load_gpu if name is None else find_gpu)
    if len(found) != 1:
        raise InputError(
            f"{len(found)} GPUs have the name; --kernels shows those of one: kvplan gpus h100-sxm --kernels"
        )
    return kernels_of(found[0]), found[0].name


def engines(
    name: Annotated[
        str | None,
        typer.Argument(help="One engine, or one of its versions: vllm@0.20.", autocompletion=complete_engines),
    ] = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """List the engines, or one engine's settings with their defaults and sources."""
    from planner.engine import engine_ids, load_engine
    from planner.report.tables import engine_table, knob_table

    one = None if name is None else load_engine(name)
    table = engine_table([load_engine(i) for i in engine_ids()]) if one is None else knob_table(one)

    def show() -> None:
        from planner.report.terminal import console, show_catalogue, show_engine

        show_catalogue(table, console()) if one is None else show_engine(one, console())

    render(table_outputs(table, json, csv, md), show)


def card(
    model: Model,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="Where to write it.")] = "-",
    revision: Revision = None,
    assume_decoder: AssumeDecoder = False,
) -> None:
    """Write a model as a card: from a config.json, a checkpoint folder, a GGUF file or the hub."""
    from planner.checkpoint.load import load_model
    from planner.report.card import card_text

    text = card_text(load_model(model, revision=revision, assume_decoder=assume_decoder))
    render([(out, lambda stream: stream.write(text))], lambda: None)
