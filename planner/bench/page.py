"""A profile as a page of HTML: predicted against measured as a picture, and every table."""

from __future__ import annotations

import html
from collections.abc import Sequence

from planner.bench.profile import Profile
from planner.bench.summary import Compared, compared
from planner.report.charts import scatter_errors
from planner.report.drawing import embedded
from planner.report.drawing import page as whole
from planner.report.tables import Table

_STYLE = """
body { font-size: 15px; line-height: 1.5; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; width: 100% }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d9dee5; text-align: left; white-space: nowrap }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
"""
_NAMES = {"whole": "layers and loops", "moe": "experts", "gemm": "products"}


def page(profile: Profile, head: Sequence[str], notes: Sequence[str], tables: Sequence[Table]) -> str:
    """The whole report. The emptiest call has no ideal time, so it is not in the picture.

    Raises
    ------
    InputError
        If nothing was predicted that could be drawn.
    """
    title, about = head
    listed = "".join(f"<li>{html.escape(n)}</li>" for n in notes)
    top = f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p><ul>{listed}</ul>"
    chart = scatter_errors(
        [_point(c) for c in compared(profile) if c.measured.kind != "launch"],
        title="Predicted against measured", by="Operators", unit="µs", per_unit=1e-6,
        subtitle=["Expected: from this run's fit, at shapes that it was fitted to and at those that were held out."],
    )  # fmt: skip
    return whole(title, top, embedded(chart), *(_table(t) for t in tables), style=_STYLE)


def _point(c: Compared) -> dict[str, object]:
    m = c.measured
    return {
        "group": _NAMES.get(m.kind, m.kind.replace("-", " ")), "measured": m.median_s, "ideal": c.ideal_s,
        "expected": c.expected_s, "label": f"{m.operator}, {m.shape}{', held out' if m.held_out else ''}",
    }  # fmt: skip


def _table(table: Table) -> str:
    kinds = [' class="n"' if c.unit else "" for c in table.columns]
    top = "".join(f"<th{k}>{html.escape(c.label)}</th>" for c, k in zip(table.columns, kinds, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{k}>{html.escape(cell)}</td>" for cell, k in zip(cells, kinds, strict=True)) + "</tr>"
        for cells in table.shown()
    )
    return f'<h2>{html.escape(table.title)}</h2><div class="scroll"><table><tr>{top}</tr>{rows}</table></div>'
