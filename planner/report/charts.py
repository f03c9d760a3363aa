"""Charts: a roofline with the operators of a step, and predictions against measurements.

`planner.report.drawing.picture` makes them files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from planner.axes import thinned
from planner.errors import InputError
from planner.report import words
from planner.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    GREYS,
    INK,
    ORANGE,
    PALETTE,
    PURPLE,
    RULE,
    SKY,
    VERMILION,
    YELLOW,
    Record,
    configured,
    decades,
    log_scale,
    shapes,
    tooltip,
    values,
)
from planner.units import format_bytes, format_flop, format_seconds

if TYPE_CHECKING:
    import altair as alt

    from planner.verbs.roofline import OperatorTime, Roofline, RooflineStep

_WIDTH, _HEIGHT = 680, 430
"""Of the roofline [pixels]."""
_COLOURS = {
    "attention": VERMILION, "projections": BLUE, "ffn": SKY, "experts": GREEN, "router": BLACK, "lm_head": ORANGE,
    "state": PURPLE, "cross-attention": YELLOW, "indexer": BLACK, "expansion": ORANGE,
}  # fmt: skip
"""The same operator has the same colour in every chart; those that only move bytes are grey."""


# -- the roofline ---------------------------------------------------------------------------------------------------


def roofline_chart(answer: Roofline) -> alt.TopLevelMixin:
    """Operators on the roofline of one GPU, and what the expected step goes to, by batch.

    Both axes of the roofline are logarithmic. A path follows an operator from the smallest batch to the largest; up to eight
    batches on it are points, larger ones for larger batches. Below are the shares of the expected time, operators without
    arithmetic among them.
    """
    import altair as alt

    names = list(dict.fromkeys(one.operator for one in answer.operators))
    chosen = alt.selection_point(fields=["operator"], bind="legend")
    scale = alt.Scale(domain=names, range=_colours(names))
    colour = alt.Color("operator:N", title="Operator", scale=scale)
    head = alt.TitleParams(" on ".join(words.title(answer)), subtitle=_subtitle(answer))
    panels = alt.vconcat(
        _roofline(answer, names, colour, chosen), _shares(answer, colour.legend(None), chosen), spacing=26
    )
    panels = panels.resolve_scale(color="independent", shape="independent", size="independent")
    made: alt.TopLevelMixin = configured(panels.properties(title=head))
    return made


def _colours(names: Sequence[str]) -> list[str]:
    """A colour for each operator."""
    greys = [name for name in names if name not in _COLOURS]
    return [_COLOURS.get(name) or GREYS[greys.index(name) % len(GREYS)] for name in names]


def _subtitle(answer: Roofline) -> list[str]:
    """What is placed, and what its height rests on."""
    facts = next(iter(words.roofline_facts(answer)))
    stages = ["Each point is one part of the batch on one GPU of every pipeline stage"]
    error = (
        "in brackets, where 80 % of measurements are meant to lie"
        if answer.phase == "decode"
        else "a plan gives the interval of first tokens"
    )
    return [
        f"Operators of a {facts} · {answer.deployment.engine_label}",
        f"Height is FLOP over expected time, of one GPU. Expected times are {answer.origin}; {error}",
        *(stages if answer.deployment.pipeline_parallel > 1 else []),
    ]


def _placed(answer: Roofline) -> list[OperatorTime]:
    """Operators that have a place on the roofline."""
    return [one for one in answer.operators if one.roof_flop_per_s and one.achieved_flop_per_s]


def _extent(answer: Roofline) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of both axes [FLOP/B, TFLOP/s]: every point, every ridge and some room around them."""
    placed = _placed(answer)
    bandwidth = answer.bandwidth_bytes_per_s / 1e12
    across = [one.arithmetic_intensity or 1.0 for one in placed] + [roof.ridge_flop_per_byte for roof in answer.roofs]
    left, right = min(across, default=1.0) / 3, max(across, default=100.0) * 8
    high = [roof.peak_flop_per_s / 1e12 for roof in answer.roofs] or [right * bandwidth]
    low = [(one.achieved_flop_per_s or 1e12) / 1e12 for one in placed]
    return (left, right), (min([left * bandwidth, *low]) / 1.5, max(high) * 2)


def _roof_lines(answer: Roofline, left: float, right: float) -> list[Record]:
    """Corners of each roof, the fastest format's reaching down to the left; slower ones leave it at their ridge."""
    bandwidth = answer.bandwidth_bytes_per_s / 1e12
    if not answer.roofs:
        return [{"format": "bandwidth", "x": x, "y": x * bandwidth} for x in (left, right)]
    fastest = answer.roofs[-1]
    return [
        {"format": roof.format, "x": x, "y": min(x * bandwidth, roof.peak_flop_per_s / 1e12)}
        for roof in answer.roofs
        for x in (left if roof is fastest else roof.ridge_flop_per_byte, roof.ridge_flop_per_byte, right)
    ]


def _roofline(answer: Roofline, names: list[str], colour: Any, chosen: Any) -> Any:
    import altair as alt

    (left, right), (low, high) = _extent(answer)
    x = alt.X("x:Q", title="Arithmetic intensity [FLOP/B]", scale=log_scale(left, right), axis=decades(left, right))
    y = alt.Y("y:Q", title="TFLOP/s of one GPU", scale=log_scale(low, high), axis=decades(low, high))
    points = _points(answer)
    shape = alt.Shape("operator:N", title="Operator", scale=alt.Scale(domain=names, range=shapes(len(names))))
    sizes = sorted({row["batch"] for row in points})
    size = alt.Size(
        "batch:Q", title="Batch", scale=alt.Scale(type="log", domain=[sizes[0], sizes[-1]], range=[60, 260]),
        legend=alt.Legend(values=thinned(sizes, 4), format=",d"),
    ) if len(sizes) > 1 else alt.value(150)  # fmt: skip
    seen = alt.when(chosen).then(alt.value(0.9)).otherwise(alt.value(0.08))
    roofs = alt.Chart(values(_roof_lines(answer, left, right))).mark_line(color=INK, strokeWidth=1.6)
    paths = alt.Chart(values(_path(answer))).mark_line(strokeWidth=1.5)
    marks = alt.Chart(values(points)).mark_point(filled=True, stroke="white", strokeWidth=0.8)
    faint = alt.when(chosen).then(alt.value(0.45)).otherwise(alt.value(0.04))
    return alt.layer(
        *_labels(answer, (left, right), (low, high), x, y),
        roofs.encode(x=x, y=y, detail="format:N"),
        paths.encode(x=x, y=y, color=colour, opacity=faint, order="batch:Q"),
        marks.encode(x=x, y=y, color=colour, shape=shape, size=size, opacity=seen, tooltip=tooltip(_POINT))
        .add_params(chosen),
    ).properties(width=_WIDTH, height=_HEIGHT)  # fmt: skip


def _labels(answer: Roofline, across: tuple[float, float], up: tuple[float, float], x: Any, y: Any) -> list[Any]:
    """Names of the roofs: peaks at the right end of their lines, bandwidth along the slope, intensities along the ridges."""
    import altair as alt

    (left, right), (low, high) = across, up
    bandwidth = answer.bandwidth_bytes_per_s / 1e12
    # A slope of one on logarithmic axes, as it comes out in pixels.
    angle = math.degrees(math.atan2(_HEIGHT / math.log(high / low), _WIDTH / math.log(right / left)))
    start = left * (right / left) ** 0.02
    slope = [{"x": start, "y": start * bandwidth, "text": f"{bandwidth * 1e3:,.0f} GB/s"}]
    peaks = [
        {"x": right, "y": roof.peak_flop_per_s / 1e12,
         "text": f"{roof.format} {roof.peak_flop_per_s / 1e12:,.4g} TFLOP/s"}
        for roof in answer.roofs
    ]  # fmt: skip
    ridges = [
        {"x": roof.ridge_flop_per_byte, "y": roof.peak_flop_per_s / 1e12, "foot": low,
         "text": f"{roof.format} ridge, {roof.ridge_flop_per_byte:,.0f} FLOP/B"}
        for roof in answer.roofs
    ]  # fmt: skip
    style: dict[str, Any] = {"color": GREY, "fontSize": 12}
    down = alt.Chart(values(ridges)).mark_rule(color=RULE, strokeDash=[2, 3])
    upright = alt.Chart(values(ridges)).mark_text(align="left", baseline="bottom", angle=270, dx=8, dy=-3, **style)
    along = alt.Chart(values(slope)).mark_text(align="left", baseline="bottom", angle=360 - angle, dy=-4, **style)
    above = alt.Chart(values(peaks)).mark_text(align="right", baseline="bottom", dy=-4, **style)
    return [
        down.encode(x=x, y=y, y2="foot:Q"),
        upright.encode(x=x, y=alt.Y("foot:Q", scale=log_scale(low, high)), text="text:N"),
        *(label.encode(x=x, y=y, text="text:N") for label in (along, above)),
    ]


def _points(answer: Roofline) -> list[Record]:
    shown = set(thinned([step.batch for step in answer.steps], 8))
    return [_point(one) for one in _placed(answer) if one.batch in shown]


def _path(answer: Roofline) -> list[Record]:
    return [{"operator": one.operator, "batch": one.batch, **_place(one)} for one in _placed(answer)]


def _place(one: OperatorTime) -> Record:
    return {"x": one.arithmetic_intensity, "y": (one.achieved_flop_per_s or 0.0) / 1e12}


_POINT = {
    "operator": "Operator", "batch": "Batch", "intensity": "FLOP/B", "achieved": "TFLOP/s", "of_roof": "Of the roof",
    "format": "Format", "work": "Work", "weights": "Weights read", "cache": "Cache read and written", "sent": "Sent",
    "launches": "Launches", "ideal": "Ideal", "expected": "Expected", "share": "Share of the step", "bound": "Bound by",
}  # fmt: skip


def _point(one: OperatorTime) -> Record:
    """An operator as a point with what its tooltip says."""
    achieved, roof = (one.achieved_flop_per_s or 0.0), one.roof_flop_per_s
    return {
        **_place(one),
        "operator": one.operator,
        "batch": one.batch,
        "intensity": f"{one.arithmetic_intensity:,.1f}" if one.arithmetic_intensity else "–",
        "achieved": f"{achieved / 1e12:,.4g}" if achieved else "–",
        "of_roof": f"{achieved / roof:.0%}" if roof else "–",
        "format": one.format or "–",
        "work": format_flop(one.flops),
        "weights": format_bytes(one.weight_bytes),
        "cache": format_bytes(one.cache_bytes),
        "sent": format_bytes(one.sent_bytes),
        "launches": f"{one.launches:,.0f}",
        "ideal": format_seconds(one.ideal_s),
        "expected": format_seconds(one.expected_s),
        "share": f"{one.share:.1%}",
        "bound": one.bound,
        "part": one.share,
    }


def _shares(answer: Roofline, colour: Any, chosen: Any) -> Any:
    """The expected step as a bar for each batch, whole steps written beside them."""
    import altair as alt

    shown = thinned([step.batch for step in answer.steps], 8)
    order = {name: i for i, name in enumerate(dict.fromkeys(one.operator for one in answer.operators))}
    rows = [{**_point(one), "order": order[one.operator]} for one in answer.operators if one.batch in shown]
    steps = [
        {
            "batch": step.batch, "part": 1.0, "text": _step_text(step), "expected": format_seconds(step.step_s),
            "ideal": format_seconds(step.ideal_step_s), "interval": words.interval(step.interval_s) or "unknown",
            "fits": "yes" if step.fits else "no",
        }
        for step in answer.steps if step.batch in shown
    ]  # fmt: skip
    x = alt.X("part:Q", title="Share of the expected time", scale=alt.Scale(domain=[0, 1]),
              axis=alt.Axis(format="%", tickCount=5, grid=False))  # fmt: skip
    axis = alt.Axis(format=",d", domain=False, ticks=False, labels=answer.phase == "decode")
    y = alt.Y("batch:O", title="Batch" if answer.phase == "decode" else None, axis=axis)
    seen = alt.when(chosen).then(alt.value(1.0)).otherwise(alt.value(0.15))
    bars = alt.Chart(values(rows)).mark_bar(stroke="white", strokeWidth=0.7)
    totals = alt.Chart(values(steps)).mark_text(align="left", dx=8, fontSize=12, color=INK)
    whole = {"batch": "Batch", "expected": "Expected", "interval": "Interval", "ideal": "Ideal", "fits": "Fits"}
    return alt.layer(
        bars.encode(x=x, y=y, color=colour, order="order:Q", opacity=seen, tooltip=tooltip(_POINT)),
        totals.encode(x=x, y=y, text="text:N", tooltip=tooltip(whole)),
    ).properties(width=_WIDTH, height=alt.Step(21))


def _step_text(step: RooflineStep) -> str:
    within = f" ({words.interval(step.interval_s)})" if step.interval_s else ""
    return format_seconds(step.step_s) + within + ("" if step.fits else "; does not fit")


# -- predictions against measurements -------------------------------------------------------------------------------

_SIDE = 380
_BAND = 0.25


def scatter_errors(
    records: Iterable[Record], *, title: str, subtitle: Sequence[str] = (), quantity: str = "time", unit: str = "ms",
    per_unit: float = 1e-3, by: str = "Group",
) -> alt.TopLevelMixin:  # fmt: skip
    """Predictions against measurements, the ideal and the expected side by side, on logarithmic axes.

    The diagonal is where a prediction is right, the band where it is at most 25 % off. Above each panel stand the median
    absolute error and the share of points within the band. Seven groups at most have a colour of their own, the largest.

    Parameters
    ----------
    records
        Mappings with ``group``, ``measured``, ``ideal`` and ``expected`` in base units, and ``label``, which the tooltip
        shows. ``ideal`` or ``expected`` may be ``None``: that panel leaves the record out, and an empty one is left out.
    quantity, unit, per_unit
        What is measured, the unit that the axes show it in, and how much of the base unit that is.
    by
        What groups are, as the legend's title.

    Raises
    ------
    InputError
        If there is nothing to draw.
    """
    import altair as alt

    rows = list(_predictions(records, per_unit))
    if not rows:
        raise InputError("there is no prediction with a measurement to draw")
    names = [name for name, _ in Counter(row["group"] for row in rows).most_common()]
    names.sort(key=lambda name: name == _OTHER)
    rows.sort(key=lambda row: row["group"] != _OTHER)  # what has no colour of its own lies beneath
    low = min(min(row["measured"], row["predicted"]) for row in rows) / 1.4
    high = max(max(row["measured"], row["predicted"]) for row in rows) * 1.4
    chosen = alt.selection_point(fields=["group"], bind="legend")
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("ideal", "expected")}
    panels = [
        _scatter(kind, found, (low, high), f"{quantity} [{unit}]", names, by, chosen)
        for kind, found in of_kind.items()
        if found
    ]
    panels[0] = panels[0].add_params(chosen)  # said once; both panels follow it
    made: alt.TopLevelMixin = configured(
        alt.hconcat(*panels, spacing=34).properties(title=alt.TitleParams(title, subtitle=list(subtitle)))
    )
    return made


_OTHER = "other"


def _predictions(records: Iterable[Record], per_unit: float) -> Iterable[dict[str, Any]]:
    """A row for each prediction of each record that has both it and a measurement; small groups under one name."""
    kept = [r for r in records if (r["measured"] or 0) > 0]
    sizes = Counter(str(r["group"]) for r in kept)
    own = {name for name, _ in sizes.most_common(len(PALETTE) - 1 if len(sizes) > len(PALETTE) else len(PALETTE))}
    for record in kept:
        for kind in ("ideal", "expected"):
            if (record[kind] or 0) > 0:
                group = str(record["group"])
                yield {
                    "kind": kind, "group": group if group in own else _OTHER, "of": group, "label": str(record["label"]),
                    "measured": record["measured"] / per_unit, "predicted": record[kind] / per_unit,
                    "error": f"{record[kind] / record['measured'] - 1:+.1%}",
                }  # fmt: skip


def _scatter(
    kind: str,
    rows: list[dict[str, Any]],
    ends: tuple[float, float],
    quantity: str,
    names: list[str],
    by: str,
    chosen: Any,
) -> Any:
    import altair as alt

    low, high = ends
    x = alt.X("measured:Q", title=f"Measured {quantity}", scale=log_scale(low, high), axis=decades(low, high))
    y = alt.Y("predicted:Q", title=f"Predicted {quantity}", scale=log_scale(low, high), axis=decades(low, high))
    line = [{"measured": end, "predicted": end, "top": end * (1 + _BAND), "bottom": end * (1 - _BAND)} for end in ends]
    band = alt.Chart(values(line)).mark_area(color="#9a9a9a", opacity=0.2, clip=True)
    diagonal = alt.Chart(values(line)).mark_line(color=INK, strokeWidth=1.2)
    colours = [GREYS[0] if name == _OTHER else PALETTE[i % len(PALETTE)] for i, name in enumerate(names)]
    points = alt.Chart(values(rows)).mark_point(filled=True, size=38, stroke="white", strokeWidth=0.4)
    shown = {"label": "Case", "of": by, "measured": f"Measured {quantity}", "predicted": f"Predicted {quantity}",
             "error": "Error"}  # fmt: skip
    return alt.layer(
        band.encode(x=x, y=alt.Y("bottom:Q", scale=log_scale(low, high)), y2="top:Q"),
        diagonal.encode(x=x, y=y),
        points.encode(
            x=x, y=y, color=alt.Color("group:N", title=by, scale=alt.Scale(domain=names, range=colours)),
            shape=alt.Shape("group:N", title=by, scale=alt.Scale(domain=names, range=shapes(len(names)))),
            opacity=alt.when(chosen).then(alt.value(0.75)).otherwise(alt.value(0.05)), tooltip=tooltip(shown),
        ),
    ).properties(
        width=_SIDE, height=_SIDE,
        title=alt.TitleParams(kind.capitalize(), subtitle=_how_far_off(rows), fontSize=14, subtitleFontSize=12, offset=8),
    )  # fmt: skip


def _how_far_off(rows: Sequence[Record]) -> str:
    """Median error and share within the band, in words."""
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in rows]
    within = sum(error <= _BAND for error in errors) / len(errors)
    return f"median error {median(errors):.0%}, {within:.0%} of {len(errors):,} within ±{_BAND:.0%}"
