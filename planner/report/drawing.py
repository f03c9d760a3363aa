"""What every chart is made with: Altair and vl-convert, one look, files of each kind, scales and palettes.

Both are the extra ``charts`` and load when a chart is drawn. An HTML page holds all of its scripts, so that it opens without
a network.
"""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from planner.errors import InputError

if TYPE_CHECKING:
    import altair as alt

Kind = Literal["html", "png", "svg"]
Record = Mapping[str, Any]

_PIXELS = 2
"""Pixels of a PNG for each of the chart's."""
INK, GREY, RULE, _FAINT = "#222222", "#6b6b6b", "#999999", "#e6e6e6"
_FONT = "Inter, Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"

# Okabe and Ito 2008, "Color Universal Design": eight colours that people with any colour vision tell apart.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, BLACK, YELLOW = "#56B4E9", "#CC79A7", "#000000", "#F0E442"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK, YELLOW)
GREYS = ("#8c8c8c", "#b3b3b3", "#d0d0d0", "#707070")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")


def check_installed() -> None:
    """Refuse in one line if the extra is missing.

    Raises
    ------
    InputError
        If Altair or vl-convert is not installed.
    """
    if find_spec("altair") is None or find_spec("vl_convert") is None:
        raise InputError("charts need Altair and vl-convert; pip install 'kvplan[charts]' brings them")


def picture(chart: alt.TopLevelMixin, kind: Kind, title: str) -> bytes:
    """A chart as the bytes of a file; an HTML page with ``title``."""
    if kind == "html":
        return page(title, embedded(chart)).encode()
    if kind == "png":
        pixels = io.BytesIO()
        chart.save(pixels, format="png", scale_factor=_PIXELS)
        return pixels.getvalue()
    text = io.StringIO()
    chart.save(text, format="svg")
    return text.getvalue().encode()


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_STYLE = (
    f"body {{ margin: 2rem; background: white; font-family: {_FONT}; }} .chart {{ max-width: 60rem; margin: auto; }}"
)


def page(title: str, *body: str, style: str = "") -> str:
    """A page of HTML with these pieces; ``style`` is added to the one look."""
    return _PAGE.format(title=html.escape(title), style=_STYLE + style, body="\n".join(body))


def embedded(chart: alt.TopLevelMixin) -> str:
    """A chart as a piece of a page that needs nothing but itself.

    Names come from files that anyone may write, so none can end its script.
    """
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    actions = {"export": True, "source": False, "compiled": False, "editor": False}
    options = {"mode": "vega-lite", "renderer": "svg", "actions": actions}
    scripts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    spec = json.dumps(chart.to_dict()).replace("<", "\\u003c")
    draw = f'vegaEmbed("#chart", {spec}, {json.dumps(options)});'
    return f'<div id="chart" class="chart"></div>\n<script>{scripts}</script>\n<script>{draw}</script>'


def configured(chart: Any) -> Any:
    """One look for all charts."""
    return (
        chart.configure(font=_FONT, background="white", padding=18)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=GREY,
            titleColor=INK,
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            gridColor=_FAINT,
            domainColor=RULE,
            tickColor=RULE,
            titlePadding=10,
        )
        .configure_legend(
            labelColor=INK,
            titleColor=GREY,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            symbolSize=90,
            symbolOpacity=1,
            rowPadding=4,
        )
        .configure_title(
            anchor="start",
            frame="group",
            fontSize=19,
            color=INK,
            subtitleFontSize=13,
            subtitleColor=GREY,
            subtitlePadding=6,
            offset=18,
        )
    )


def values(rows: Sequence[Record]) -> Any:
    """Rows as the data of a layer."""
    import altair as alt

    return alt.InlineData(values=[dict(row) for row in rows])


def log_scale(low: float, high: float) -> Any:
    """A logarithmic scale with exactly these ends."""
    import altair as alt

    return alt.Scale(type="log", domain=[low, high], nice=False)


def decades(low: float, high: float) -> Any:
    """Ticks at powers of ten, with 2 and 5 between them where there are few."""
    import altair as alt

    few = math.log10(high / low) < 2.5
    steps = (1, 2, 5) if few else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps if low <= float(f"{step}e{power}") <= high]
    return alt.Axis(values=ticks, format=",~g")


def tooltip(fields: Mapping[str, str]) -> list[Any]:
    """Fields under the names that people read; numbers shortened."""
    import altair as alt

    numbers = {"measured", "predicted"}
    return [
        alt.Tooltip(f"{name}:Q", title=title, format=",.4~g")
        if name in numbers
        else alt.Tooltip(f"{name}:N", title=title)
        for name, title in fields.items()
    ]


def shapes(count: int) -> list[str]:
    """So many shapes, the first again after the last."""
    return [_SHAPES[i % len(_SHAPES)] for i in range(count)]
