"""What a person sees: one screen, readable at 80 columns, without colour codes when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from planner.columns import SWEEP_COLUMNS, Column
from planner.report.tables import Table, budget_parts, comparison_table, gpu_table, model_table, plan_tables
from planner.result import Plan
from planner.units import format_bytes, format_count, format_gib, format_seconds, format_tokens

if TYPE_CHECKING:
    from planner.gpu import GpuSpec
    from planner.model import ModelSpec
    from planner.verbs.compare import Comparison
    from planner.verbs.explain import Explanation
    from planner.verbs.sweep import Sweep

MAX_WIDTH = 120

# Part of the bar: glyph that is told apart without colour, and its colour.
_BAR = {
    "weights": ("█", "blue"),
    "KV cache": ("▓", "green"),
    "activations": ("▒", "yellow"),
    "overhead": ("▚", "magenta"),
    "free for KV": ("░", "bright_black"),
    "held back": ("·", "bright_black"),
}


def console(stream: IO[str] | None = None) -> Console:
    """A console on standard output or another stream, at most `MAX_WIDTH` wide."""
    made = Console(file=stream or sys.stdout, highlight=False, soft_wrap=False, emoji=False, markup=False)
    if made.width > MAX_WIDTH:
        made.width = MAX_WIDTH
    return made


def show_plan(plan: Plan, out: Console) -> None:
    """The plan on one screen."""
    _, *remedies, frontier, decode = plan_tables(plan)
    out.print(_headline(plan))
    out.print(_bar(plan, out.width))
    if not plan.memory.fits:
        for table in remedies:
            out.print(_table(table))
        if not remedies:
            out.print(
                Text("  Nothing tried makes it fit: formats, 16 times the GPUs, a larger GPU, a shorter context.\n")
            )
    out.print(_frontier(frontier, plan))
    out.print(_table(_interval_in_one(decode), highlight=f"{plan.workload.batch:,}", tight=out.width < 100))
    out.print(_after(plan))


def _headline(plan: Plan) -> RenderableType:
    model, deployment, memory, load = plan.model, plan.deployment, plan.memory, plan.workload
    count = f"{plan.gpu.count} × " if plan.gpu.count > 1 else ""
    first = Text.assemble((model.name, "bold"), " on ", (f"{count}{plan.gpu.name}", "bold"))
    active = "" if model.active_parameters == model.parameters else f" ({format_count(model.active_parameters)} active)"
    facts = [
        f"{format_count(model.parameters)} parameters{active}",
        f"{model.layers} layers",
        " + ".join(model.variants),
        f"context limit {format_tokens(model.context_limit)}",
    ]
    saturated = memory.kv_bytes_per_token_saturated
    full = "" if saturated == memory.kv_bytes_per_token else f", {format_bytes(saturated)} once windows are full"
    kv = f"KV {deployment.kv} {format_bytes(memory.kv_bytes_per_token)} a token{full}"
    degrees = f"TP {deployment.tensor_parallel}"
    if deployment.pipeline_parallel > 1:
        degrees += f" × PP {deployment.pipeline_parallel}"
    engine = "no engine" if deployment.engine == "none" else f"{deployment.engine} {deployment.engine_version}"
    lines = [
        first,
        Text(" · ".join(facts)),
        Text(f"weights {deployment.weights} {format_bytes(memory.weight_bytes)} · {kv}"),
        Text(f"{degrees} · {engine} with {deployment.memory_fraction:.0%} of memory"),
        Text(""),
        _verdict(plan, load.batch, load.context),
    ]
    return Group(*lines)


def _verdict(plan: Plan, batch: int, context: int) -> Text:
    memory = plan.memory
    what = f"batch {batch:,} × {context:,} tokens"
    if memory.fits:
        most = "any batch" if memory.max_batch is None else f"batch {memory.max_batch:,}"
        longest = "any context" if memory.max_context is None else f"{memory.max_context:,} tokens"
        limited = memory.max_context is None or memory.max_context > plan.model.context_limit
        limit = f" (the model's limit is {plan.model.context_limit:,})" if limited else ""
        room = f" Memory has room for {most} at this context, or for {longest} at this batch{limit}."
        return Text.assemble(("FITS", "bold green"), f": {what}.{room}")
    return Text.assemble(
        ("DOES NOT FIT", "bold red"), f": {what}. One GPU lacks {format_gib(memory.missing_bytes_per_gpu)}."
    )


def _bar(plan: Plan, width: int) -> RenderableType:
    """The memory of one GPU as a stacked bar over its legend; a mark shows what is usable if more is needed."""
    parts = budget_parts(plan)
    usable = plan.gpu.usable_bytes
    total = max(usable, sum(size for _, size in parts))
    cells = max(20, width - 2)
    bar = Text(" ")
    for (name, _), length in zip(parts, _lengths([size for _, size in parts], cells), strict=True):
        glyph, colour = _BAR[name]
        bar.append(glyph * length, style=colour)
    lines: list[RenderableType] = [Text(""), Text(f"Memory of one GPU: {format_gib(usable)} usable", style="bold"), bar]
    if total > usable:
        at = round(cells * usable / total)
        mark = f"^ {format_gib(usable)} usable, {format_gib(total)} needed"
        lines.append(Text(" " * min(at, max(0, width - len(mark) - 1)) + mark, style="red"))
    legend = RichTable.grid(padding=(0, 2, 0, 1))
    for _ in parts:
        legend.add_column(no_wrap=True)
    legend.add_row(*(Text.assemble((_BAR[n][0], _BAR[n][1]), f" {n}") for n, _ in parts))
    legend.add_row(*(Text(f"  {size / 2**30:,.2f} GiB" if size else "  0") for _, size in parts))
    return Group(*lines, legend, Text(""))


def _lengths(sizes: list[int], cells: int) -> list[int]:
    """Cells for each part of a bar: in proportion, at least one for whatever is there, ``cells`` in all."""
    total = max(1, sum(sizes))
    lengths = [max(1, round(cells * size / total)) if size else 0 for size in sizes]
    lengths[lengths.index(max(lengths))] += cells - sum(lengths)
    return lengths


def _frontier(table: Table, plan: Plan) -> RenderableType:
    """Largest batch by context, lying down: contexts as columns."""
    grid = RichTable(box=None, padding=(0, 1), show_header=False, pad_edge=False)
    grid.add_column(no_wrap=True)
    cells = table.shown()
    wanted = format_tokens(plan.workload.context)
    for _ in cells:
        grid.add_column(justify="right", no_wrap=True)
    grid.add_row(Text(" context"), *(Text(c, style="bold" if c == wanted else "") for c, _ in cells))
    grid.add_row(
        Text(" batch"), *(Text(b.replace("no limit", "any"), style="bold" if c == wanted else "") for c, b in cells)
    )
    return Group(Text("Largest batch by context", style="bold"), grid, Text(""))


def _interval_in_one(table: Table) -> Table:
    """The decode table with low and high in one column: what fits on a screen."""
    names = {c.name: c for c in table.columns}
    rows = []
    for row in table.rows:
        low, high = names["step_low_s"].show(row["step_low_s"]), names["step_high_s"].show(row["step_high_s"])
        same = low.rpartition(" ")[2] == high.rpartition(" ")[2]
        rows.append({**row, "interval": f"{low.rpartition(' ')[0] if same else low} – {high}"})
    kept = [c for c in table.columns if c.name not in ("step_low_s", "step_high_s")]
    at = next(i for i, c in enumerate(kept) if c.name == "step_s") + 1
    return Table(table.title, (*kept[:at], Column("interval", "80\u00a0% interval"), *kept[at:]), tuple(rows))


def _table(table: Table, highlight: str = "", tight: bool = False) -> RenderableType:
    """A table; ``tight`` breaks headings so that many columns fit."""
    grid = RichTable(
        box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="", show_edge=False, collapse_padding=tight
    )
    for column in table.columns:
        numeric = bool(column.unit) or column.name == "interval"
        grid.add_column(
            column.label.replace(" ", "\n", 1) if tight else column.label,
            justify="right" if numeric else "left",
            overflow="ellipsis" if tight else "fold",
            no_wrap=tight and column.name != "variants",
            vertical="bottom",
        )
    for cells in table.shown():
        grid.add_row(*cells, style="bold" if highlight and cells[0] == highlight else None)
    return Group(Text(table.title, style="bold"), grid, Text(""))


def _after(plan: Plan) -> RenderableType:
    lines = []
    if plan.crossover:
        lines.append(
            f"From batch {plan.crossover.batch:,} on, {plan.crossover.bound} rather than weights bound the step."
        )
    if plan.prefill.ttft_s is not None and plan.prefill.ideal_s is not None:
        ideal, expected = format_seconds(plan.prefill.ideal_s), format_seconds(plan.prefill.ttft_s)
        lines.append(f"Prefill of one prompt of {plan.workload.context:,} tokens: {expected} expected, {ideal} ideal.")
    return notes([*lines, *plan.notes])


def notes(lines: Iterable[str]) -> RenderableType:
    """Notes as a list whose wrapped lines are indented."""
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column()
    for line in lines:
        grid.add_row("·", Text(line))
    return grid


def show_comparison(comparison: Comparison, out: Console) -> None:
    """Attention variants side by side."""
    gpu, deployment, table = comparison.gpu, comparison.deployment, comparison_table(comparison)
    on = f" on {gpu.count} × {gpu.name}, weights {deployment.weights}, KV {deployment.kv}"
    out.print(Text.assemble((comparison.model.name, "bold"), on))
    hidden = {"attention", "parameters", "fits", "decode_origin", "decode_step_low_s", "decode_step_high_s"}
    if out.width < 100:
        hidden |= {"decode_ideal_step_s", "decode_bound"}
    kept = tuple(c for c in table.columns if c.name not in hidden)
    rows = [
        {**r, "variant": r["variant"] + (" as published" if r["attention"] == "published" else "")} for r in table.rows
    ]
    out.print(_table(Table(table.title, kept, tuple(rows)), tight=True))
    out.print(notes(comparison.notes))


def show_explanation(explanation: Explanation, out: Console) -> None:
    """Formula, numbers, result, sources."""
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("formula", explanation.formula)
    grid.add_row("numbers", explanation.substituted)
    exact = "" if explanation.result is None else f"{explanation.result:,} {explanation.unit}"
    grid.add_row(
        "result", Text(f"{explanation.shown}" + (f"  ({exact})" if exact != explanation.shown else ""), style="bold")
    )
    for index, source in enumerate(explanation.sources):
        grid.add_row("" if index else "sources", source)
    out.print(Text.assemble((explanation.quantity, "bold"), f": {explanation.meaning}"))
    out.print(grid)


def show_catalogue(table: Table, out: Console) -> None:
    """A list of models or GPUs; at smaller widths the columns that can be looked up one by one are left out."""
    hidden = {"name", "architecture"} if out.width < 120 else set()
    if out.width < 100:
        hidden |= {"link_bytes_per_s", "fp8_flop_per_s", "layers"}
    columns = tuple(c for c in table.columns if c.name not in hidden)
    out.print(_table(Table(table.title, columns, table.rows), tight=True))


def show_sweep(table: Sweep, out: Console, rows: int = 20) -> None:
    """The first rows of a sweep and how many there are."""
    hidden = {
        "weight_bytes",
        "kv_bytes_per_token",
        "kv_pool_bytes_per_gpu",
        "arithmetic_intensity_flop_per_byte",
        "kv_bytes",
    }
    hidden |= {
        "decode_origin",
        "decode_step_low_s",
        "decode_step_high_s",
        "pipeline_parallel",
        "engine",
        "gpus",
        "fits",
    }
    if out.width < 110:
        hidden |= {"weight_bytes_per_gpu", "max_context_tokens", "kv", "decode_ideal_step_s", "kv_bytes_per_sequence"}
    columns = tuple(c for c in SWEEP_COLUMNS if c.name not in hidden)
    out.print(_table(Table(f"{table.rows:,} rows", columns, tuple(table.head(rows))), tight=True))
    if table.rows > rows:
        out.print(notes([f"The first {rows} of {table.rows:,} rows; --csv FILE writes them all, with every column."]))


def show_model(model: ModelSpec, out: Console) -> None:
    """One model card."""
    out.print(_card(model_table([model]), model.aliases, [*map(str, model.source), model.note]))


def show_gpu(gpu: GpuSpec, out: Console) -> None:
    """One GPU file."""
    peaks = ", ".join(f"{name} {tflops:g}" for name, tflops in gpu.peak_tflops.items()) or "none known"
    rivals = [f"{r.fact}: {r.value:g} according to {r.source}" for r in gpu.rival]
    lines = [f"Dense peaks [TFLOP/s]: {peaks}", f"Link: {gpu.link.kind}", gpu.note, *map(str, gpu.source), *rivals]
    out.print(_card(gpu_table([gpu]), gpu.aliases, lines))


def _card(table: Table, aliases: Iterable[str], lines: Iterable[str]) -> RenderableType:
    """One row standing up, with its aliases and notes."""
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")
    for column, cell in zip(table.columns, table.shown()[0], strict=True):
        grid.add_row(column.label, cell)
    grid.add_row("Also", ", ".join(aliases) or "no other name")
    return Group(grid, Text(""), notes(filter(None, lines)))
