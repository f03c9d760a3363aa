"""Where answers go: files, standard output, the screen. Data on standard output, notes and progress on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from planner.errors import InputError, OutputError
from planner.files import writing

if TYPE_CHECKING:
    from planner.report.tables import Table

Writer = Callable[[IO[str]], object]
Outputs = Sequence[tuple[str | None, Writer]]


def render(outputs: Outputs, show: Callable[[], object]) -> None:
    """Write what was asked for; the screen is shown unless standard output carries data."""
    wanted = [(path, write) for path, write in outputs if path is not None]
    paths = [path if path == "-" else os.path.realpath(path) for path, _ in wanted]
    if len(set(paths)) < len(paths):
        raise InputError(f"two outputs go to {max(paths, key=paths.count)!r}; give each its own file")
    for path, write in wanted:
        with writing(path) as stream:
            write(stream)
        if path != "-":
            print(f"kvplan: wrote {path}", file=sys.stderr)
    if "-" not in paths:
        show()


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
