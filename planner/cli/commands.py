"""The verbs as commands: parse, call, render. Each imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Annotated

import typer

from planner import __version__
from planner.cli.options import (
    Acceptance,
    Apart,
    AssumeDecoder,
    Attention,
    Batch,
    Concurrency,
    Context,
    Csv,
    Dp,
    Engine,
    Ep,
    Fraction,
    Gpu,
    Html,
    Input,
    Json,
    Kv,
    KvMemory,
    KvShard,
    Md,
    Model,
    Output,
    PadHeads,
    Png,
    Pp,
    PrefixHits,
    Rate,
    Revision,
    Rounds,
    SourceTokens,
    Svg,
    Tp,
    Weights,
    complete_gpus,
    complete_models,
    complete_quantities,
    complete_variants,
)
from planner.cli.output import Outputs, chart_outputs, render, table_outputs
from planner.errors import InputError

if TYPE_CHECKING:
    import altair as alt

    from planner.model import ModelSpec
    from planner.verbs.plan import Options
    from planner.verbs.sweep import Sweep


_QUANTITIES = (
    "A figure: parameters, active_parameters, weight_bytes[_per_gpu], kv_bytes_per_token[_saturated], "
    "kv_bytes_per_sequence, kv_reserved_bytes_per_sequence, state_bytes_per_sequence, kv_bytes_per_gpu, "
    "budget_bytes_per_gpu, activation_bytes_per_gpu, other_bytes_per_gpu, graph_bytes_per_gpu, kv_pool_bytes_per_gpu, "
    "kv_pool_tokens, max_concurrency, missing_bytes_per_gpu, max_batch, max_context, ideal_step_s, step_s, "
    "interval_low_s, interval_high_s, tokens_per_s[_per_sequence], arithmetic_intensity, prompt_s, ttft_s, ideal_s, "
    "tpot_s, loaded_ttft_s, requests_per_s, usable_bytes."
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kvplan {__version__}")
        raise typer.Exit


def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """How much memory a language model needs on a GPU, what batch × context fits, and how fast it decodes.

    [bold]kvplan llama3-70b --gpu h100[/bold] is short for [bold]kvplan plan llama3-70b --gpu h100[/bold].
    """


def plan(
    ctx: typer.Context,
    model: Model,
    gpu: Gpu,
    tp: Tp = None,
    pp: Pp = None,
    dp: Dp = None,
    ep: Ep = False,
    weights: Weights = None,
    kv: Kv = None,
    context: Context = None,
    batch: Batch = None,
    input: Input = None,
    output: Output = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    prefix_hits: PrefixHits = None,
    acceptance: Acceptance = None,
    rounds: Rounds = None,
    apart: Apart = None,
    engine: Engine = "vllm",
    attention: Attention = None,
    memory_fraction: Fraction = None,
    kv_memory: KvMemory = None,
    source: SourceTokens = None,
    kv_shard: KvShard = "heads",
    pad_heads: PadHeads = False,
    revision: Revision = None,
    assume_decoder: AssumeDecoder = False,
    emit: Annotated[bool, typer.Option("--emit", help="Print the engine's launch command instead.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if it does not fit, or a rate cannot be sustained.")
    ] = False,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> int:
    """Plan one model on one replica of GPUs: memory, the largest batch and context, the decode step."""
    from planner.report import words
    from planner.verbs.plan import plan as run

    options = _options(
        ctx, tp, pp, weights, kv, engine, memory_fraction, kv_memory, source, kv_shard, pad_heads, dp, ep
    )
    spec = _spec(model, revision, assume_decoder)
    answer = run(
        spec, gpu, batch=batch, context=context, attention=attention, input=input, output=output, concurrency=concurrency,
        rate=rate, prefix_hits=prefix_hits, acceptance=acceptance, rounds=rounds, apart=apart, **options,
    )  # fmt: skip

    def show() -> None:
        from planner.report.terminal import console, show_plan

        if not emit:
            show_plan(answer, console())
        elif answer.launch is None:
            raise InputError("--engine none starts nothing; name an engine, such as --engine vllm")
        else:
            print(answer.launch)
            for line in words.launch_remarks(answer):
                print(f"kvplan: {line}", file=sys.stderr)

    def write_csv(stream: IO[str]) -> None:
        from planner.report import data, tables

        data.write_csv(tables.plan_row(answer), stream)

    def write_md(stream: IO[str]) -> None:
        from planner.report import data, tables

        head = [
            " on ".join(words.title(answer)),
            *words.facts(answer),
            "".join(words.verdict(answer)),
            *words.pool(answer),
            *([" ".join(words.serving(answer))] if answer.serving else []),
        ]
        data.write_markdown(
            tables.plan_tables(answer) + tables.serving_tables(answer), stream, head, words.remarks(answer)
        )

    render([(json, lambda stream: stream.write(answer.to_json() + "\n")), (csv, write_csv), (md, write_md)], show)
    return int(check and not (answer.memory.fits and (answer.serving is None or answer.serving.sustained)))


def compare(
    ctx: typer.Context,
    model: Model,
    gpu: Gpu,
    attention: Annotated[
        str,
        typer.Option(
            "--attention",
            "-a",
            help="Variants: mha, gqa (8 groups or its own), gqa:N, mqa, mla[:RANK].",
            autocompletion=complete_variants,
        ),
    ] = "mha,gqa,mqa",
    tp: Tp = None,
    pp: Pp = None,
    weights: Weights = None,
    kv: Kv = None,
    context: Context = None,
    batch: Batch = None,
    engine: Engine = "vllm",
    memory_fraction: Fraction = None,
    kv_memory: KvMemory = None,
    source: SourceTokens = None,
    revision: Revision = None,
    assume_decoder: AssumeDecoder = False,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """Compare attention variants of one model on the same GPUs: cache, largest batch and context, decode step."""
    from planner.verbs.compare import compare as run

    options = _options(ctx, tp, pp, weights, kv, engine, memory_fraction, kv_memory, source)
    answer = run(_spec(model, revision, assume_decoder), gpu, attention, batch=batch or "1", context=context, **options)

    def show() -> None:
        from planner.report.terminal import console, show_comparison

        show_comparison(answer, console())

    from planner.report.tables import comparison_table

    outputs: Outputs = [(json, lambda stream: stream.write(answer.to_json() + "\n"))]
    render([*outputs, *table_outputs(comparison_table(answer), None, csv, md)], show)


def sweep(
    ctx: typer.Context,
    models: Annotated[str, typer.Argument(help="Models, separated by commas.", autocompletion=complete_models)],
    gpu: Annotated[
        str,
        typer.Option("--gpu", "-g", help="GPUs, separated by commas; 4xh100 is four.", autocompletion=complete_gpus),
    ],
    tp: Annotated[str | None, typer.Option(help="Tensor-parallel degrees: 1,2,4,8.")] = None,
    pp: Annotated[str | None, typer.Option(help="Pipeline-parallel degrees.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weight formats: bf16,fp8.")] = None,
    kv: Annotated[str | None, typer.Option(help="KV-cache formats: bf16,fp8.")] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", "-c", help="Contexts: 8k, or 1k:128k (every 1k), or 1k:128k:x2 (doublings)."),
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", "-b", help="Batches: 1,8,64, or 1:512 (every one), 1:512:8, 1:512:x2.")
    ] = "1",
    input: Input = None,
    output: Output = None,
    engine: Engine = "vllm",
    memory_fraction: Fraction = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """Every combination of models, GPUs, degrees, formats, batches and contexts, as one tidy table."""
    from planner.verbs.sweep import sweep as run

    table = run(
        models,
        gpu,
        tp=tp,
        pp=pp,
        weights=weights,
        kv=kv,
        batch=batch,
        context=context,
        input=input,
        output=output,
        engine=engine,
        memory_fraction=memory_fraction,
        settings=ctx.meta["settings"],
    )
    for line in table.skipped:
        print(f"kvplan: left out {line}", file=sys.stderr)

    def streamed(write: Callable[[IO[str], Callable[[int], object]], None]) -> Callable[[IO[str]], None]:
        def writer(stream: IO[str]) -> None:
            with _progress(table) as advance:
                write(stream, advance)

        return writer

    def show() -> None:
        from planner.report.terminal import console, show_sweep

        show_sweep(table, console())

    outputs: Outputs = [
        (json, streamed(table.write_json)),
        (csv, streamed(table.write_csv)),
        (md, streamed(table.write_markdown)),
    ]
    # A sweep that was written to a file is not shown as well.
    render(outputs, show if json is csv is md is None else lambda: None)


@contextlib.contextmanager
def _progress(table: Sweep) -> Iterator[Callable[[int], object]]:
    """A progress bar on standard error, where that is a terminal and the table is long."""
    if not sys.stderr.isatty() or len(table) < 20_000:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=len(table))
        yield lambda rows: progress.advance(task, rows)


def explain(
    ctx: typer.Context,
    model: Model,
    gpu: Gpu,
    quantity: Annotated[
        str,
        typer.Argument(help=_QUANTITIES, autocompletion=complete_quantities),
    ] = "kv_bytes_per_token",
    tp: Tp = None,
    pp: Pp = None,
    dp: Dp = None,
    ep: Ep = False,
    weights: Weights = None,
    kv: Kv = None,
    context: Context = None,
    batch: Batch = None,
    input: Input = None,
    output: Output = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    prefix_hits: PrefixHits = None,
    acceptance: Acceptance = None,
    rounds: Rounds = None,
    engine: Engine = "vllm",
    attention: Attention = None,
    memory_fraction: Fraction = None,
    kv_memory: KvMemory = None,
    source: SourceTokens = None,
    revision: Revision = None,
    assume_decoder: AssumeDecoder = False,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """Explain one figure of a plan: formula, substituted numbers, result and sources."""
    from planner.report.tables import explanation_table
    from planner.verbs.explain import explain as run

    options = _options(ctx, tp, pp, weights, kv, engine, memory_fraction, kv_memory, source, dp=dp, ep=ep)
    spec = _spec(model, revision, assume_decoder)
    answer = run(
        spec, gpu, quantity, batch=batch, context=context, attention=attention, input=input, output=output,
        concurrency=concurrency, rate=rate, prefix_hits=prefix_hits, acceptance=acceptance, rounds=rounds, **options,
    )  # fmt: skip

    def show() -> None:
        from planner.report.terminal import console, show_explanation

        show_explanation(answer, console())

    outputs: Outputs = [(json, lambda stream: stream.write(answer.to_json() + "\n"))]
    render([*outputs, *table_outputs(explanation_table(answer), None, csv, md)], show)


def roofline(
    ctx: typer.Context,
    model: Model,
    gpu: Gpu,
    tp: Tp = None,
    pp: Pp = None,
    dp: Dp = None,
    ep: Ep = False,
    weights: Weights = None,
    kv: Kv = None,
    context: Context = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            "-b",
            help="Batches: 16, or 1,8,64, or 1:256:x2; by default doublings up to what fits.",
            rich_help_panel="Workload",
        ),
    ] = None,
    prefill: Annotated[
        bool,
        typer.Option("--prefill", help="The prefill of one prompt of --context tokens.", rich_help_panel="Workload"),
    ] = False,
    engine: Engine = "vllm",
    attention: Attention = None,
    memory_fraction: Fraction = None,
    kv_memory: KvMemory = None,
    source: SourceTokens = None,
    kv_shard: KvShard = "heads",
    pad_heads: PadHeads = False,
    revision: Revision = None,
    assume_decoder: AssumeDecoder = False,
    html: Html = None,
    png: Png = None,
    svg: Svg = None,
    json: Json = None,
    csv: Csv = None,
    md: Md = None,
) -> None:
    """Place the operators of a step on the GPU's roofline, by batch: what bounds each, and what the time goes to."""
    from planner.report import tables, words
    from planner.verbs.roofline import roofline_of

    options = _options(
        ctx, tp, pp, weights, kv, engine, memory_fraction, kv_memory, source, kv_shard, pad_heads, dp, ep
    )
    spec = _spec(model, revision, assume_decoder)
    answer = roofline_of(spec, gpu, batch=batch, context=context, prefill=prefill, attention=attention, **options)

    def draw() -> alt.TopLevelMixin:
        from planner.report.charts import roofline_chart

        return roofline_chart(answer)

    def write_md(stream: IO[str]) -> None:
        from planner.report.data import write_markdown

        head = [" on ".join(words.title(answer)), *words.roofline_facts(answer)]
        write_markdown(tables.roofline_tables(answer), stream, head, answer.notes)

    def show() -> None:
        from planner.report.terminal import console, show_roofline

        show_roofline(answer, console())

    pictures = chart_outputs(draw, " on ".join(words.title(answer)), html, png, svg)
    outputs: Outputs = [(json, lambda stream: stream.write(answer.to_json() + "\n")), (md, write_md)]
    render([*outputs, *table_outputs(tables.roofline_table(answer), None, csv, None)], show, pictures)


def _spec(model: str, revision: str | None, assume_decoder: bool) -> str | ModelSpec:
    """The model, loaded here where the options say how."""
    if revision is None and not assume_decoder:
        return model
    from planner.checkpoint.load import load_model

    return load_model(model, revision=revision, assume_decoder=assume_decoder)


def _options(
    ctx: typer.Context,
    tp: str | None,
    pp: str | None,
    weights: str | None,
    kv: str | None,
    engine: str,
    memory_fraction: str | None,
    kv_memory: str | None,
    source: str | None,
    kv_shard: str = "heads",
    pad_heads: bool = False,
    dp: str | None = None,
    ep: bool = False,
) -> Options:
    """What the verbs hand on to `settle.deploy`."""
    from planner.settle import MAX_GPUS
    from planner.units import parse_tokens

    def degree(value: str | None, name: str) -> int | None:
        return None if value is None else parse_tokens(value, name, MAX_GPUS)

    return {
        "tp": degree(tp, "--tp"),
        "pp": degree(pp, "--pp"),
        "dp": degree(dp, "--dp"),
        "ep": ep,
        "weights": weights,
        "kv": kv,
        "engine": engine,
        "memory_fraction": memory_fraction,
        "kv_memory": kv_memory,
        "settings": ctx.meta["settings"],
        "source": None if source is None else parse_tokens(source, "source length"),
        "kv_shard": kv_shard,
        "pad_heads": pad_heads,
    }
