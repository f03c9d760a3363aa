"""A table on a screen: no number is ever cut, and a screen that is too narrow has fewer columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from planner.columns import Column
from planner.report.tables import Table

INTERVALS = {"interval", "ttft", "tpot"}
_WHOLE = {
    "option", "engine_option", "flag", "default", "id", "tensor_parallel", "fits", "phase", "group", "kind", "format",
    "operator",
}  # fmt: skip
"""Columns of text that are never broken, so that they can be read at a glance and copied."""


@dataclass(frozen=True)
class Grid:
    """A table, no number of which is ever cut; ``tight`` breaks headings so that many columns fit.

    Where the screen is narrower than words and numbers need, the last columns are left out; CSV and JSON have them.
    """

    table: Table
    highlight: str = ""
    tight: bool = False
    top: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = self.table.shown()
        columns = self.table.columns[: self._fitting(cells, options.max_width)]
        grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, header_style="", show_edge=False, collapse_padding=self.tight)
        for column in columns:
            grid.add_column(
                self._label(column),
                justify="right" if _is_number(column) else "left",
                overflow="fold",
                no_wrap=_is_whole(column),
                vertical="top" if self.top else "bottom",
            )
        for row in cells:
            style = "bold" if self.highlight and row[0] == self.highlight else None
            grid.add_row(*row[: len(columns)], style=style)
        yield Text(self.table.title, style="bold")
        yield grid
        yield Text("")

    def _label(self, column: Column) -> str:
        return column.label.replace(" ", "\n", 1) if self.tight else column.label

    def _fitting(self, cells: Sequence[Sequence[str]], width: int) -> int:
        """How many columns fit: whole cells of those that are never broken, words of the others; two at least."""
        gap, used = 2 if self.tight else 3, 0
        for at, column in enumerate(self.table.columns):
            parts = [part for row in cells for part in (row[at].split("\n") if _is_whole(column) else row[at].split())]
            heading = self._label(column).split() if self.tight else [column.label]
            used += max(map(cell_len, (*parts, *heading)), default=0) + gap * (at > 0)
            if used > width and at >= 2:
                return at
        return len(self.table.columns)


def _is_number(column: Column) -> bool:
    return bool(column.unit) or column.name in INTERVALS


def _is_whole(column: Column) -> bool:
    """Whether cells of a column are never broken."""
    return _is_number(column) or column.name in _WHOLE


def notes(lines: Iterable[str]) -> RenderableType:
    """Notes as a list whose wrapped lines are indented."""
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column()
    for line in lines:
        grid.add_row("·", Text(line))
    return grid
