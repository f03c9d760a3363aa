"""A profile as tables, and as files: CSV of operators, Markdown, JSON; `page` is the one of HTML."""

from __future__ import annotations

import json
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
            from planner.bench.page import page

            stream.write(page(profile, head(profile), notes(profile), tables(profile)))
        case ".md":
            write_markdown(tables(profile), stream, head(profile), notes(profile))
        case ".csv":
            write_csv(operator_table(profile), stream)
        case _:
            write_answer(profile, stream)


def check_kind(path: str) -> None:
    """Refuse a report whose kind its ending does not say, or which cannot be drawn here.

    Raises
    ------
    InputError
        If the ending is unknown, or a page is wanted without the extra ``charts``.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f"cannot tell what kind of report {path[:80]!r} is to be; end it in {', '.join(ENDINGS)}")
    if path.lower().endswith(".html"):
        from planner.report.drawing import check_installed

        check_installed()
