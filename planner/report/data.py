"""Tables as CSV, JSON and Markdown. CSV and JSON hold base units; Markdown humanises."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import IO, Any

from planner.report.tables import Table


def write_csv(table: Table, stream: IO[str]) -> None:
    """The table with a header of column names; what is unknown or unlimited is empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([c.name for c in table.columns])
    for row in table.rows:
        writer.writerow([_cell(row[c.name]) for c in table.columns])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def write_json(table: Table, stream: IO[str]) -> None:
    """The table as an array of objects."""
    rows = [{c.name: row[c.name] for c in table.columns} for row in table.rows]
    json.dump(rows, stream, indent=2, allow_nan=False)
    stream.write("\n")


def write_markdown(
    tables: Iterable[Table], stream: IO[str], head: Iterable[str] = (), notes: Iterable[str] = ()
) -> None:
    """Tables one after another, with paragraphs before them, the first being the heading, and notes after."""
    for index, paragraph in enumerate(head):
        stream.write(("" if index else "# ") + _escape(paragraph) + "\n\n")
    for table in tables:
        stream.write(f"## {table.title}\n\n")
        stream.write("| " + " | ".join(c.label for c in table.columns) + " |\n")
        stream.write("|" + "|".join(" ---: " if c.unit else " --- " for c in table.columns) + "|\n")
        for cells in table.shown():
            stream.write("| " + " | ".join(_escape(cell) for cell in cells) + " |\n")
        stream.write("\n")
    for note in notes:
        stream.write(f"- {note}\n")


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
