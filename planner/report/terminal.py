"""What a person sees: one screen, readable at 80 columns, without colour codes when piped."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from planner.columns import Column
from planner.report import words
from planner.report.grid import Grid, notes
from planner.report.tables import (
    Record,
    Table,
    budget_parts,
    capacity_summary,
    capacity_table,
    comparison_table,
    gpu_table,
    knob_table,
    log_table,
    model_table,
    plan_tables,
    roofline_tables,
    runs_summary,
    runs_table,
    serving_tables,
    times_summary,
    times_table,
)
from planner.units import GIB, format_bytes, format_gib, format_tokens

if TYPE_CHECKING:
    from planner.engine import Engine
    from planner.gpu import GpuSpec
    from planner.model import ModelSpec
    from planner.result import Plan
    from planner.usage import Usage
    from planner.verbs.checklog import LogReport
    from planner.verbs.compare import Comparison
    from planner.verbs.explain import Explanation
    from planner.verbs.roofline import Roofline
    from planner.verbs.sweep import Sweep
    from planner.verbs.validate import LogCheck
    from planner.verbs.validate_serving import ServingCheck
    from planner.verbs.validate_times import TimeCheck

MIN_WIDTH, MAX_WIDTH = 60, 120

# Parts of the bar: a glyph that is told apart without colour, and its colour.
_BAR = {
    "weights": ("█", "blue"),
    "KV cache": ("▓", "green"),
    "drafter": ("▤", "cyan"),
    "activations": ("▒", "yellow"),
    "graphs": ("▞", "red"),
    "other": ("▚", "magenta"),
    "free for KV": ("░", "bright_black"),
    "held back": ("·", "bright_black"),
}


class _Trimmed(io.StringIO):
    """A stream that leaves out blanks at the ends of lines, for output that is not a terminal's."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write("\n".join(line.rstrip() for line in text.split("\n")))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def console(stream: IO[str] | None = None) -> Console:
    """A console on standard output or another stream, `MIN_WIDTH` to `MAX_WIDTH` wide."""
    target = stream or sys.stdout
    made = Console(
        file=target if target.isatty() else _Trimmed(target),
        highlight=False,
        soft_wrap=False,
        emoji=False,
        markup=False,
    )
    made.width = max(MIN_WIDTH, min(made.width, MAX_WIDTH))
    return made


def show_plan(plan: Plan, out: Console) -> None:
    """The plan on one screen."""
    _, *remedies, frontier, decode = plan_tables(plan)
    model, gpus = words.title(plan)
    answer, detail = words.verdict(plan)
    out.print(Text.assemble((model, "bold"), " on ", (gpus, "bold")))
    for line in words.facts(plan):
        out.print(Text(line))
    out.print(Text.assemble("\n", (answer, "bold green" if plan.memory.fits else "bold red"), detail, "\n"))
    out.print(_bar(plan, out.width))
    for table in remedies:
        out.print(Grid(_flags_below(table), top=True))
    if not plan.memory.fits and not remedies:
        out.print(Text("Nothing tried makes it fit: formats, 16 times the GPUs, a larger GPU, a shorter context.\n"))
    if any(point.max_batch != 0 for point in plan.frontier):
        out.print(_frontier(frontier, plan.workload.context))
    if plan.serving is None:
        out.print(Grid(_interval_in_one(decode), f"{plan.workload.batch:,}", tight=out.width < 100))
    else:
        out.print(*(Text(line) for line in words.serving(plan)), sep="\n", end="\n\n")
    for table in serving_tables(plan):
        out.print(Grid(_served(table), f"{plan.serving.concurrency:,}" if plan.serving else "", tight=True))
    out.print(notes(words.remarks(plan)))


def _bar(plan: Plan, width: int) -> RenderableType:
    """The memory of one GPU as a stacked bar over its lines; a mark shows what is usable if more is needed."""
    parts = budget_parts(plan)
    sizes = [part["bytes"] for part in parts]
    usable, needed, cells = plan.gpu.usable_bytes, sum(sizes), width - 2
    bar = Text(" ")
    for part, length in zip(parts, _lengths(sizes, cells), strict=True):
        glyph, colour = _BAR[part["part"]]
        bar.append(glyph * length, style=colour)
    lines: list[RenderableType] = [Text(f"Memory of one GPU: {format_gib(usable)} usable", style="bold"), bar]
    if plan.memory.missing_bytes_per_gpu:
        mark = f"^ {format_gib(usable)} usable, {format_gib(needed)} needed"
        at = min(round(cells * usable / needed), width - len(mark) - 1)
        lines.append(Text(" " * max(0, at) + mark, style="red"))
    grid = RichTable.grid(padding=(0, 2, 0, 1))
    for justify in ("left", "right", "left"):
        grid.add_column(no_wrap=justify == "right", justify=justify)
    for part in parts:
        amount = f"{part['bytes'] / GIB:,.2f} GiB" if part["bytes"] else "0"
        grid.add_row(
            Text.assemble(_BAR[part["part"]], f" {part['part']}"), amount, Text(part["remark"], style="bright_black")
        )
    return Group(*lines, grid, *map(Text, words.pool(plan)), Text(""))


def _lengths(sizes: list[int], cells: int) -> list[int]:
    """Cells for each part of a bar: in proportion, at least one for whatever is there, ``cells`` in all."""
    total = max(1, sum(sizes))
    lengths = [max(1, round(cells * size / total)) if size else 0 for size in sizes]
    lengths[lengths.index(max(lengths))] += cells - sum(lengths)
    return lengths


def _frontier(table: Table, context: int) -> RenderableType:
    """Largest batch by context, lying down: contexts as columns."""
    grid = RichTable(box=None, padding=(0, 1), show_header=False, pad_edge=False)
    grid.add_column(no_wrap=True)
    cells = [(tokens, most.replace("no limit", "any")) for tokens, most in table.shown()]
    styles = ["bold" if tokens == format_tokens(context) else "" for tokens, _ in cells]
    for _ in cells:
        grid.add_column(justify="right", no_wrap=True)
    for name, index in ((" context", 0), (" batch", 1)):
        grid.add_row(Text(name), *(Text(cell[index], style=s) for cell, s in zip(cells, styles, strict=True)))
    return Group(Text(table.title, style="bold"), grid, Text(""))


def _flags_below(table: Table) -> Table:
    """The remedies with the engine's own flags under kvplan's option, where they differ."""
    rows = []
    for row in table.rows:
        option, flags = row["option"], row["engine_option"]
        rows.append({**row, "option": f"{option}\n{flags}" if flags and flags not in option else option})
    kept = [replace(c, label="Option, below it the engine's") if c.name == "option" else c for c in table.columns]
    return Table(table.title, tuple(c for c in kept if c.name != "engine_option"), tuple(rows))


def _served(table: Table) -> Table:
    """What requests see, with each interval in one column."""
    shown = [
        ("concurrency", "Requests"), ("ttft_s", "TTFT"), ("ttft", "Interval"), ("tpot_s", "TPOT"),
        ("tpot", "Interval"), ("requests_per_s", "Req/s"), ("tokens_per_s_per_user", "Tok/s each"),
        ("tokens_per_s_per_gpu", "Tok/s a GPU"),
    ]  # fmt: skip
    by_name = {column.name: column for column in table.columns}
    columns = [replace(by_name[name], label=label) if name in by_name else Column(name, label) for name, label in shown]
    rows = tuple(
        {**row, **{f: words.interval((row[f"{f}_low_s"], row[f"{f}_high_s"])) for f in ("ttft", "tpot")}}
        for row in table.rows
    )
    return Table(table.title, tuple(columns), rows)


def _interval_in_one(table: Table) -> Table:
    """The decode table with low and high in one column: what fits on a screen."""
    rows = []
    for row in table.rows:
        shown = words.interval((row["step_low_s"], row["step_high_s"]))
        rows.append(
            {**row, "interval": shown, "bound": row["bound"] if row["fits"] else f"{row['bound']}; does not fit"}
        )
    kept = [column for column in table.columns if column.name not in ("step_low_s", "step_high_s")]
    after = next(i for i, column in enumerate(kept) if column.name == "step_s") + 1
    kept.insert(after, Column("interval", "Interval"))
    return Table(table.title, tuple(kept), tuple(rows))


def show_tables(head: Sequence[str], tables: Iterable[Table], lines: Iterable[str], out: Console) -> None:
    """A heading, sentences under it, tables one after another, and notes."""
    for line, style in zip(head, ("bold", *[""] * len(head)), strict=False):
        out.print(Text(line, style=style))
    out.print()
    for table in tables:
        out.print(Grid(table, tight=True, top=True))
    out.print(notes(lines))


def show_comparison(comparison: Comparison, out: Console) -> None:
    """Attention variants side by side; a variant that is the model's own stands once."""
    deployment, table = comparison.deployment, comparison_table(comparison)
    on = f" on {words.devices(comparison.gpu)}, weights {deployment.weights}, KV {deployment.kv}"
    out.print(Text.assemble((comparison.model.name, "bold"), on))
    hidden = {"attention", "parameters", "fits", "decode_origin", "decode_step_low_s", "decode_step_high_s"}
    if out.width < 100 or any("," in v.variant for v in comparison.variants):
        hidden |= {"decode_ideal_step_s", "decode_bound"}
    kept = tuple(c for c in table.columns if c.name not in hidden)
    own, *others = table.rows
    rows: list[Record] = [{**own, "variant": f"{own['variant']} as published"}]
    rows += [row for row in others if {**row, "attention": "published"} != own]
    out.print(Grid(Table(table.title, kept, tuple(rows)), tight=True))
    out.print(notes(comparison.notes))


def show_roofline(answer: Roofline, out: Console) -> None:
    """Operators on the roofline, at the smallest and the largest batch, and their shares over all."""
    model, gpus = words.title(answer)
    out.print(Text.assemble((model, "bold"), " on ", (gpus, "bold")))
    for line in words.roofline_facts(answer):
        out.print(Text(line))
    out.print()
    least = {"read_bytes": 112, "of_roof": 100, "bar": 80, "teraflops": 80}
    hidden = {name for name, width in least.items() if out.width < width}
    for table in roofline_tables(answer, 8 if out.width >= 100 else 6 if out.width >= 80 else 4):
        out.print(Grid(_with_bars(table, hidden), tight=True))
    out.print(notes(answer.notes))


_CELLS = 6
"""Cells of a whole bar in a table."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def _with_bars(table: Table, hidden: set[str]) -> Table:
    """A table with its shares drawn beside them, less what is hidden."""
    columns = list(table.columns)
    at = next((i for i, column in enumerate(columns) if column.name == "share"), None)
    if at is not None:
        columns.insert(at + 1, Column("bar", ""))
    rows = [{**row, "bar": _share_bar(row["share"])} if at is not None else row for row in table.rows]
    return Table(table.title, tuple(c for c in columns if c.name not in hidden), tuple(rows))


def _share_bar(share: float) -> str:
    """A share as a bar, to an eighth of a cell.

    >>> _share_bar(0.5), _share_bar(0.3), _share_bar(0.001)
    ('███', '█▊', '')
    """
    whole, eighths = divmod(round(share * _CELLS * 8), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()


def show_explanation(explanation: Explanation, out: Console) -> None:
    """Formula, numbers, result, sources."""
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("formula", explanation.formula)
    numbers, room = explanation.substituted, out.width - len("formula") - 2
    grid.add_row("numbers", f"({numbers})" if len(numbers) > room else numbers)  # so that several lines can be pasted
    exact = explanation.shown if explanation.result is None else f"{explanation.result:,} {explanation.unit}"
    shown = exact if exact == explanation.shown else f"{explanation.shown}  ({exact})"
    grid.add_row("result", Text(shown, style="bold"))
    for index, source in enumerate(explanation.sources):
        grid.add_row("" if index else "sources", source)
    out.print(Text.assemble((explanation.quantity, "bold"), f": {explanation.meaning}"))
    out.print(grid)


def show_catalogue(table: Table, out: Console) -> None:
    """A list of models or GPUs; at smaller widths the columns that can be looked up one by one are left out."""
    hidden = {"name"} if out.width >= MAX_WIDTH else {"name", "architecture"}
    if out.width < 100:
        hidden |= {"link_bytes_per_s", "fp8_flop_per_s", "layers"}
    columns = tuple(c for c in table.columns if c.name not in hidden)
    out.print(Grid(Table(table.title, columns, table.rows), tight=True, top=True))


def show_sweep(table: Sweep, out: Console, rows: int = 20) -> None:
    """The first rows of a sweep and how many there are."""
    names = {
        "model",
        "gpu",
        "tensor_parallel",
        "batch",
        "context_tokens",
        "fits",
        "decode_step_s",
        "decode_tokens_per_s",
    }
    if out.width >= 100:
        names |= {"weights", "max_batch", "decode_bound"}
    if out.width >= 120:
        names |= {"kv_bytes_per_sequence", "decode_ideal_step_s"}
    if table.load is not None:
        names = names - {
            "context_tokens",
            "decode_step_s",
            "decode_tokens_per_s",
            "decode_bound",
            "kv_bytes_per_sequence",
        }
        names |= {"ttft_s", "tpot_s", "tokens_per_s_per_gpu"} | (
            {"running", "requests_per_s"} if out.width >= 100 else set()
        )
    columns = tuple(c for c in table.columns if c.name in names)
    title = "1 row" if len(table) == 1 else f"{len(table):,} rows"
    out.print(Grid(Table(title, columns, tuple(table.head(rows))), tight=True))
    if len(table) > rows:
        out.print(notes([f"The first {rows} of {len(table):,} rows; --csv FILE writes them all, with every column."]))


def show_model(model: ModelSpec, out: Console) -> None:
    """One model card."""
    out.print(_card(model_table([model]), model.aliases, [*map(str, model.source), model.note]))


def show_gpu(gpu: GpuSpec, out: Console) -> None:
    """One GPU file."""
    from planner.calibrate.model import shipped

    peaks = ", ".join(f"{name} {tflops:g}" for name, tflops in gpu.peak_tflops.items()) or "none known"
    rivals = [f"{r.fact}: {r.value:g} according to {r.source}" for r in gpu.rival]
    timed = f"Its kernels were timed: 'kvplan gpus {gpu.id} --kernels' shows what they reach." * (gpu.id in shipped())
    lines = [
        f"Dense peaks [TFLOP/s]: {peaks}",
        f"Link: {gpu.link.kind}",
        _measured(gpu.measured) if gpu.measured else "",
        timed,
        gpu.note,
        *map(str, gpu.source),
        *rivals,
    ]
    out.print(_card(gpu_table([gpu]), gpu.aliases, lines))


def _measured(usage: Usage) -> str:
    where = f", {usage.file}" if usage.file else ""
    when = f" on {usage.date}" if usage.date else ""
    return (
        f"Measured by kvplan bench{when}{where}: weights stream at {usage.memory:.0%} and caches at {usage.cache:.0%} of "
        f"bandwidth, products reach {usage.compute:.0%} of peak."
    )


def show_kernels(table: Table, lines: Iterable[str], out: Console) -> None:
    """What kernels and collectives of a device reach of its peaks; at smaller widths with fewer columns."""
    names = {"kind", "format", "engine", "memory", "compute", "launch_s", "mean"}
    names |= {"points", "interval"} if out.width >= 100 else set()
    names |= {"kernel"} if out.width >= MAX_WIDTH else set()
    columns = [*table.columns, Column("interval", "Interval")]
    rows = [
        {
            **row,
            "interval": f"{row['low']:.2f} – {row['high']:.2f}×",
            "kind": row["kind"] + "\nwindowed" * row["windowed"],
        }
        for row in table.rows
    ]
    for title, alone in ((table.title, True), ("Collectives", False)):
        shown = names if alone else (names | {"degree", "link"}) - {"format", "memory", "compute"}
        held = tuple(row for row in rows if (row["degree"] == 1) == alone)
        if held:
            kept = tuple(column for column in columns if column.name in shown)
            out.print(Grid(Table(title, kept, held), tight=True, top=True))
    out.print(notes(lines))


def _card(table: Table, aliases: Iterable[str], lines: Iterable[str]) -> RenderableType:
    """One row standing up, with its aliases and notes."""
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")
    for column, cell in zip(table.columns, table.shown()[0], strict=True):
        grid.add_row(column.label, cell)
    grid.add_row("Also", ", ".join(aliases) or "no other name")
    return Group(grid, Text(""), notes(filter(None, lines)))


def show_engine(engine: Engine, out: Console) -> None:
    """One engine: its settings, and where its figures come from."""
    table = knob_table(engine)
    out.print(Grid(Table(table.title, table.columns[1:], table.rows), top=True))
    out.print(notes(filter(None, [engine.note, *map(str, engine.source)])))


def show_log(report: LogReport, out: Console) -> None:
    """A start-up log against its plan."""
    on = f" on {report.gpu}" if report.gpu else ""
    formats = f"weights {report.weights} · KV {report.kv}"
    what = f" · {report.engine} {report.version}{on} · TP {report.tensor_parallel} · {formats}"
    out.print(Text.assemble((report.model, "bold"), what, "\n"))
    table = log_table(report)
    rows = [
        {**row, **{name: _amount(row[name], row["unit"]) for name in ("printed", "predicted")}} for row in table.rows
    ]
    if rows:
        out.print(Grid(Table(table.title, table.columns, tuple(rows))))
    else:
        out.print(Text("The log prints none of the figures that can be predicted from what is known; see the notes.\n"))
    out.print(notes([*report.explanations, *report.notes]))


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return format_bytes(value) if unit == "B" else f"{value:,.2f}" if unit == "sequences" else f"{value:,.0f}"


def show_capacity(checks: tuple[LogCheck, ...], out: Console) -> None:
    """How far off kvplan is on start-up logs, and the logs that it misses."""
    from planner.verbs.validate import misses

    summary = capacity_summary(checks)
    for figure in dict.fromkeys(row["figure"] for row in summary.rows):
        held = tuple(row for row in summary.rows if row["figure"] == figure)
        out.print(Grid(Table(f"Error of {figure}", summary.columns[1:], held)))
    for of, beyond, what in (("token_bytes", 0.005, "bytes a token"), ("tokens", 0.12, "tokens")):
        found = capacity_table(misses(checks, of, beyond))
        names = {"id", "engine", "version", "model", "gpu", f"{of}_error", "note"}
        columns = tuple(c for c in found.columns if c.name in names)
        rows = tuple({**row, "note": row["note"][:120]} for row in found.rows)
        if rows:
            title = f"{len(rows)} logs with {what} off by more than {100 * beyond:g} %"
            out.print(Grid(Table(title, columns, rows), tight=True, top=True))
    more = "--csv FILE writes each with its source; validation/README.md says what was held against what"
    out.print(notes([f"{len(checks)} logs; {more}."]))


def show_times(checks: tuple[TimeCheck, ...], out: Console) -> None:
    """How far off kvplan is on published times, and the times that it misses most."""
    from planner.verbs.validate_times import left_out, misses

    summary = times_summary(checks)
    hidden = {"by"} if out.width >= 100 else {"by", "ideal_mean", "mean"}
    columns = tuple(c for c in summary.columns if c.name not in hidden)
    for by in dict.fromkeys(row["by"] for row in summary.rows):
        held = tuple(row for row in summary.rows if row["by"] == by)
        out.print(Grid(Table(f"Error of times, by {by}", columns, held), tight=True))
    names = {"id", "gpu", "phase", "batch", "measured_s", "expected_s", "error"}
    names |= {"model", "tensor_parallel"} if out.width >= 100 else set()
    _show_times("The largest misses of each source", misses(checks, 3), names, out)
    apart = left_out(checks)
    _show_times("Not counted", apart, {"id", "error", "note"}, out)
    more = "--csv FILE writes each with its source; validation/README.md says what was held against what"
    out.print(notes([f"{len(checks)} times, {len(checks) - len(apart)} of them counted; {more}."]))


def show_runs(checks: tuple[ServingCheck, ...], out: Console) -> None:
    """How far off kvplan is on serving runs, and the runs that it misses most."""
    from planner.verbs.validate_serving import misses

    summary = runs_summary(checks)
    hidden = {"by"} if out.width >= 100 else {"by", "ideal_mean", "mean"}
    columns = tuple(c for c in summary.columns if c.name not in hidden)
    for by in dict.fromkeys(row["by"] for row in summary.rows):
        held = tuple(row for row in summary.rows if row["by"] == by)
        out.print(Grid(Table(f"Error of serving, by {by}", columns, held), tight=True))
    worst = runs_table(misses(checks, 3))
    names = {"model", "gpu", "engine", "concurrency", "measured_tpot_s", "tpot_s", "tpot_error"}
    names |= {"input_tokens", "output_tokens"} if out.width >= 100 else set()
    columns = tuple(c for c in worst.columns if c.name in names)
    out.print(Grid(Table("The largest misses of each engine", columns, worst.rows), tight=True, top=True))
    failed = sum(bool(check.reason) for check in checks)
    more = "--csv FILE writes each with its source; validation/README.md has the errors of runs left out of the fit"
    out.print(notes([f"{len(checks)} runs, {len(checks) - failed} of them predicted; {more}."]))


def _show_times(title: str, checks: tuple[TimeCheck, ...], names: set[str], out: Console) -> None:
    """Some columns of some times; of a note, from what makes the row suspect on."""
    found = times_table(checks)
    columns = tuple(c for c in found.columns if c.name in names)
    rows = [{**row, "note": row["reason"] or row["note"][max(0, row["note"].find("SUSPECT")) :]} for row in found.rows]
    if rows:
        out.print(Grid(Table(title, columns, tuple(rows)), tight=True, top=True))
