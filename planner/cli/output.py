"""Where answers go: files, pictures, standard output, the screen.

Data on standard output, notes and progress on standard error.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from planner.errors import InputError, OutputError
from planner.files import writing, writing_bytes

if TYPE_CHECKING:
    import altair as alt

    from planner.report.tables import Table

Writer = Callable[[IO[str]], object]
Outputs = Sequence[tuple[str | None, Writer]]
Pictures = Sequence[tuple[str | None, Callable[[], bytes]]]


def render(outputs: Outputs, show: Callable[[], object], pictures: Pictures = ()) -> None:
    """Write what was asked for, pictures too; the screen is shown unless standard output carries data."""
    wanted = [(path, write) for path, write in outputs if path is not None]
    drawn = [(path, draw) for path, draw in pictures if path is not None]
    paths = [path if path == "-" else os.path.realpath(path) for path, _ in (*wanted, *drawn)]
    if len(set(paths)) < len(paths):
        raise InputError(f"two outputs go to {max(paths, key=paths.count)!r}; give each its own file")
    for path, write in wanted:
        with writing(path) as stream:
            write(stream)
        _say(path)
    for path, draw in drawn:
        with writing_bytes(path) as raw:
            raw.write(draw())
        _say(path)
    if "-" not in paths:
        show()


def _say(path: str) -> None:
    if path != "-":
        print(f"kvplan: wrote {path}", file=sys.stderr)


def chart_outputs(
    draw: Callable[[], alt.TopLevelMixin], title: str, html: str | None, png: str | None = None, svg: str | None = None
) -> Pictures:
    """Pictures of one chart, which is drawn once, when the first is written.

    Raises
    ------
    InputError
        If one is asked for and what draws it is not installed; before anything is written.
    """
    if html is png is svg is None:
        return ()
    from planner.report.drawing import Kind, check_installed, picture

    check_installed()
    chart = functools.cache(draw)

    def drawer(kind: Kind) -> Callable[[], bytes]:
        return lambda: picture(chart(), kind, title)

    return [(html, drawer("html")), (png, drawer("png")), (svg, drawer("svg"))]


def table_outputs(table: Table, json: str | None, csv: str | None, md: str | None) -> Outputs:
    """Writers of a plain table."""
    from planner.report.data import write_csv, write_json, write_markdown

    return [
        (json, lambda stream: write_json(table, stream)),
        (csv, lambda stream: write_csv(table, stream)),
        (md, lambda stream: write_markdown([table], stream)),
    ]


def check_outputs(paths: Sequence[str | None]) -> None:
    """Refuse files that cannot be written or are named twice, before work that takes long.

    Raises
    ------
    InputError
        If two outputs go to one file.
    OutputError
        If one is a folder, or lies in one that is not there or cannot be written to.
    """
    named = [path if path == "-" else os.path.realpath(path) for path in paths if path is not None]
    if len(set(named)) < len(named):
        raise InputError(f"two outputs go to {max(named, key=named.count)!r}; give each its own file")
    for path in map(Path, named):
        if str(path) != "-" and path.is_dir():
            raise OutputError(f"cannot write {str(path)[:100]}: it is a folder; name a file")
        if str(path) != "-" and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise OutputError(f"cannot write {str(path)[:100]}: no folder that can be written to; choose another file")
