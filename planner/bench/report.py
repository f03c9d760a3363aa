"""A profile as tables, and as files: CSV of operators, Markdown, and a page of HTML that needs nothing else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from planner.bench.profile import Profile, describe
from planner.bench.summary import Compared, compared, error_rows, ratios, sentences
from planner.columns import Column
from planner.errors import InputError
from planner.files import writing
from planner.report.data import write_csv, write_markdown
from planner.report.tables import Table

OPERATOR_COLUMNS = (
    Column("operator", "Operator"),
    Column("shape", "Shape"),
    Column("format", "Format"),
    Column("backend", "Kernel"),
    Column("ideal_s", "Ideal", "s"),
    Column("earlier_s", "Known before", "s"),
    Column("expected_s", "Fitted", "s"),
    Column("measured_s", "Measured", "s"),
    Column("spread", "Spread", "%"),
    Column("earlier_error", "Error before", "%"),
    Column("error", "Error", "%"),
    Column("held_out", "Held out"),
)
RATIO_COLUMNS = (
    Column("batch", "Batch", "number"),
    Column("context_tokens", "Context", "tokens"),
    Column("ratio", "Ratio"),
    Column("measured", "Measured", "x"),
    Column("predicted", "Predicted", "x"),
    Column("by_bytes", "By bytes", "x"),
    Column("beyond_cache", "Beyond last-level cache"),
)
ERROR_COLUMNS = (
    Column("what", "Shapes not fitted"),
    Column("count", "Count", "number"),
    Column("median", "Median error", "%"),
    Column("mean", "Mean error", "%"),
    Column("earlier_median", "Median before", "%"),
)
KERNEL_COLUMNS = (
    Column("kind", "Class"),
    Column("kernel", "Kernel"),
    Column("format", "Format"),
    Column("memory", "Of bandwidth", "%"),
    Column("compute", "Of peak", "%"),
    Column("launch_s", "Launch", "s"),
    Column("points", "Fitted to", "number"),
    Column("held_out", "Judged on", "number"),
    Column("median", "Median error", "%"),
)
MEMORY_COLUMNS = (
    Column("variant", "Variant"),
    Column("format", "Format"),
    Column("batch", "Batch", "number"),
    Column("context_tokens", "Context", "tokens"),
    Column("predicted_bytes", "Predicted", "number"),
    Column("tensor_bytes", "Tensors", "number"),
    Column("allocator_bytes", "Allocator", "number"),
)
BATCH_COLUMNS = (
    Column("variant", "Variant"),
    Column("budget_bytes", "Budget", "B"),
    Column("weight_bytes", "Weights", "B"),
    Column("context_tokens", "Context", "tokens"),
    Column("predicted", "Predicted batch", "number"),
    Column("measured", "Real batch", "number"),
    Column("refused_by", "Refused by"),
)


ENDINGS = (".html", ".md", ".csv", ".json")


def operator_table(profile: Profile) -> Table:
    """Every operator: ideal, known before, fitted, measured."""
    return Table("Operators", OPERATOR_COLUMNS, tuple(_operator(c) for c in compared(profile)))


def _operator(c: Compared) -> dict[str, object]:
    m = c.measured
    return {
        "operator": m.operator, "shape": m.shape, "format": m.parts[0].form, "backend": m.backend, "ideal_s": c.ideal_s,
        "earlier_s": m.earlier_s, "expected_s": c.expected_s, "measured_s": m.median_s, "spread": m.timing.spread,
        "earlier_error": c.earlier_error, "error": c.error, "held_out": m.held_out,
    }  # fmt: skip


def named_tables(profile: Profile) -> dict[str, Table]:
    """Everything that a profile holds, as tables by a short name; those that would be empty are left out."""
    found = {
        "operators": operator_table(profile),
        "errors": Table("Errors at shapes that were not fitted", ERROR_COLUMNS, tuple(
            {"what": e.what, "count": e.count, "median": e.median, "mean": e.mean, "earlier_median": e.earlier_median}
            for e in error_rows(profile))),
        "variants": Table("Attention variants", RATIO_COLUMNS, tuple(
            {"batch": r.batch, "context_tokens": r.context, "ratio": f"{r.more} : {r.fewer}", "measured": r.measured,
             "predicted": r.predicted, "by_bytes": r.by_bytes, "beyond_cache": r.beyond_cache} for r in ratios(profile))),
        "efficiencies": Table("Fitted efficiencies", KERNEL_COLUMNS, tuple(
            {**{c.name: getattr(k, c.name, None) for c in KERNEL_COLUMNS}, "median": k.median_error}
            for k in profile.kernels)),
        "caches": Table("Caches, in bytes", MEMORY_COLUMNS, tuple(
            {"variant": c.variant, "format": c.form, "batch": c.batch, "context_tokens": c.context,
             "predicted_bytes": c.predicted_bytes, "tensor_bytes": c.tensor_bytes, "allocator_bytes": c.allocator_bytes}
            for c in profile.memory)),
        "batches": Table("Largest batch beside the weights", BATCH_COLUMNS, tuple(
            {"variant": b.variant, "budget_bytes": b.budget_bytes, "weight_bytes": b.weight_bytes,
             "context_tokens": b.context,
             "predicted": b.predicted, "measured": b.measured, "refused_by": b.refused_by} for b in profile.batches)),
    }  # fmt: skip
    return {name: table for name, table in found.items() if table.rows}


def tables(profile: Profile) -> list[Table]:
    """Everything that a profile holds, as tables, the long one of operators last; empty ones are left out."""
    first, *others = named_tables(profile).values()
    return [*others, first]


_NARROW = {
    "operators": ("operator", "shape", "ideal_s", "earlier_s", "expected_s", "measured_s", "spread", "error"),
    "efficiencies": ("kind", "kernel", "format", "memory", "compute", "launch_s", "median"),
}
"""Columns that a screen of 80 characters has."""


def screen_tables(profile: Profile, width: int) -> list[Table]:
    """The tables of a screen: with fewer columns where it is narrow, and of the caches only what was not predicted."""
    found = named_tables(profile)
    if "caches" in found:
        off = tuple(r for r in found["caches"].rows if r["predicted_bytes"] != r["tensor_bytes"])
        found["caches"] = Table("Caches that differ, in bytes", MEMORY_COLUMNS, off)
    if width < 100:
        for name in _NARROW.keys() & found.keys():
            kept = tuple(c for c in found[name].columns if c.name in _NARROW[name])
            found[name] = Table(found[name].title, kept, found[name].rows)
    elif "operators" in found:
        kept = tuple(c for c in OPERATOR_COLUMNS if c.name not in ("format", "backend", "earlier_error"))
        found["operators"] = Table(found["operators"].title, kept, found["operators"].rows)
    return [table for table in found.values() if table.rows]


def write_answer(profile: Profile, stream: IO[str]) -> None:
    """Everything that a profile says, raw timings aside, as one object of JSON in base units."""
    answer = {
        "device": profile.facts.model_dump(), "date": profile.date, "size": profile.size, "format": profile.main,
        "peaks": profile.peaks.model_dump(), "usage": profile.usage.model_dump() if profile.usage else None,
        "repeat_difference": profile.repeat_difference,
        **{name: [dict(row) for row in table.rows] for name, table in named_tables(profile).items()},
        "notes": notes(profile),
    }  # fmt: skip
    json.dump(answer, stream, indent=2, allow_nan=False)
    stream.write("\n")


def head(profile: Profile) -> list[str]:
    """Title and what was measured when."""
    f = profile.facts
    software = ", ".join(filter(None, (f"torch {f.torch}", f.driver, f.capability, f.system)))
    return [f"kvplan bench: {f.name}", f"{describe(f)}; {software}; {profile.date}; {profile.size} run."]


def notes(profile: Profile) -> list[str]:
    """Sentences, remarks and what was not measured."""
    skipped = [f"Not measured: {words}" for words in profile.skipped]
    return [*sentences(profile), *profile.remarks, *skipped]


def write_report(profile: Profile, path: str) -> None:
    """Write a report of the kind that the file's ending says: ``.html``, ``.md``, ``.csv`` or ``.json``.

    Raises
    ------
    InputError
        If the ending is another.
    OutputError
        If the file cannot be written.
    """
    check_kind(path)
    with writing(path) as stream:
        write_kind(profile, path, stream)


def write_kind(profile: Profile, path: str, stream: IO[str]) -> None:
    """Write a report of the kind that a file's ending says."""
    match Path(path).suffix.lower():
        case ".html":
            stream.write(page(profile))
        case ".md":
            write_markdown(tables(profile), stream, head(profile), notes(profile))
        case ".csv":
            write_csv(operator_table(profile), stream)
        case _:
            write_answer(profile, stream)


def check_kind(path: str) -> None:
    """Refuse a report whose kind its ending does not say.

    Raises
    ------
    InputError
        If the ending is unknown.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f"cannot tell what kind of report {path[:80]!r} is to be; end it in {', '.join(ENDINGS)}")


# -- HTML --------------------------------------------------------------------------------------------------------------

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:84rem;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;width:100%}
th,td{padding:.25rem .6rem;border-bottom:1px solid #d9dee5;text-align:left;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}
@media(prefers-color-scheme:dark){body{color:#e4e8ee;background:#12161c}th,td{border-color:#2d3540}}
"""
_COLOURS = {"gemm": "#2f6fb0", "decode-attention": "#c2571a", "whole": "#111827", "moe": "#7a3fa0"}


def page(profile: Profile) -> str:
    """The whole report as one page, with the picture of predicted against measured inside."""
    title, about = head(profile)
    listed = "".join(f"<li>{html.escape(n)}</li>" for n in notes(profile))
    body = [f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p><ul>{listed}</ul>", _picture(compared(profile))]
    body += [_html_table(t) for t in tables(profile)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _html_table(table: Table) -> str:
    kinds = [' class="n"' if c.unit else "" for c in table.columns]
    top = "".join(f"<th{k}>{html.escape(c.label)}</th>" for c, k in zip(table.columns, kinds, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{k}>{html.escape(cell)}</td>" for cell, k in zip(cells, kinds, strict=True)) + "</tr>"
        for cells in table.shown()
    )
    return f'<h2>{html.escape(table.title)}</h2><div class="scroll"><table><tr>{top}</tr>{rows}</table></div>'


def _picture(found: Sequence[Compared]) -> str:
    """Predicted against measured on logarithmic axes; held-out shapes are filled, fitted ones hollow."""
    points = [(c, c.expected_s) for c in found if c.expected_s]
    if not points:
        return ""
    values = [v for c, e in points for v in (c.measured.median_s, e)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    size, pad = 520.0, 56.0

    def at(seconds: float) -> float:
        return pad + (math.log10(seconds) - low) / max(1, high - low) * (size - 2 * pad)

    lines = [
        f'<line x1="{pad}" y1="{size - pad}" x2="{size - pad}" y2="{pad}" stroke="#8a94a3" stroke-dasharray="4 3"/>'
    ]
    for power in range(low, high + 1):
        p = at(10.0**power)
        label = f"{10.0 ** (power + 6):g} µs" if power < -3 else f"{10.0 ** (power + 3):g} ms"
        lines.append(f'<text x="{p}" y="{size - pad + 18}" text-anchor="middle">{label}</text>')
        lines.append(f'<text x="{pad - 6}" y="{size - p + 4}" text-anchor="end">{label}</text>')
        lines.append(f'<line x1="{p}" y1="{pad}" x2="{p}" y2="{size - pad}" stroke="#8a94a3" stroke-opacity=".25"/>')
    lines += _dots(points, at, size)
    axes = (
        f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">predicted</text>'
        f'<text transform="translate(12 {size / 2}) rotate(-90)" text-anchor="middle">measured</text>'
    )
    return (
        "<h2>Predicted against measured</h2><p>Filled: shapes that were not fitted. The dashed line is where both agree.</p>"
        f'<svg viewBox="0 0 {size:g} {size:g}" width="{size:g}" role="img" aria-label="predicted against measured times" '
        f'font-size="11" fill="currentColor">{"".join(lines)}{axes}</svg>'
    )


def _dots(points: Iterable[tuple[Compared, float]], at: Callable[[float], float], size: float) -> list[str]:
    found = []
    for c, expected in points:
        m = c.measured
        colour = _COLOURS.get(m.kind, "#3b8f5a")
        fill = colour if m.held_out else "none"
        told = html.escape(f"{m.operator}, {m.shape}: {c.error:+.1%}" if c.error is not None else m.operator)
        x, y = at(expected), size - at(m.median_s)
        found.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"><title>{told}</title></circle>'
        )
    return found
