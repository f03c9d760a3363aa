"""The order of the rooms: each imports only from rooms above it, and importing kvplan loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "planner"

ORDER = [
    "arrays", "errors", "units", "axes", "columns", "files", "row", "startlog.log", "startlog.pairs",
    "startlog.stream", "startlog.lines", "startlog.reader", "precision", "cached", "tensors", "formats", "mixes",
    "attention", "variants", "state", "feedforward", "model", "usage", "gpu", "catalog", "measured",
    "calibrate.model", "calibrate.shapes", "calibrate.table", "calibrate.fit", "calibrate.build",
    "checkpoint.jsonfile", "checkpoint.safetensors", "checkpoint.hub", "checkpoint.expression",
    "checkpoint.architecture", "checkpoint.template", "checkpoint.modules", "checkpoint.quantization",
    "checkpoint.reconcile", "checkpoint.config", "checkpoint.ggufheader", "checkpoint.ggufparts",
    "checkpoint.ggufstate", "checkpoint.gguflayer", "checkpoint.gguf", "checkpoint.load", "stage", "memory", "work",
    "roofline", "setup", "efficiency", "engine", "activations", "copies", "budget", "packed", "pool", "deployment",
    "settle", "evaluate", "serving", "emit", "lognames", "readings", "result", "remedies", "substitutions",
    "derivations", "verbs.traffic", "verbs.plan", "verbs.sweep", "verbs.compare", "verbs.explain", "verbs.roofline",
    "verbs.checklog", "verbs.validate", "verbs.validate_times", "verbs.validate_serving", "verbs.calibrate",
    "bench.naming", "bench.device", "bench.part", "bench.timing", "bench.rig", "bench.attend", "bench.operator",
    "bench.experts", "bench.attention_operators", "bench.layers", "bench.selection", "bench.profile",
    "bench.predict", "bench.entry", "bench.shares", "bench.fit", "bench.memory_check", "bench.run", "bench.summary",
    "report.words", "report.tables", "report.data", "report.grid", "report.drawing", "report.charts",
    "bench.page", "bench.report",
    "report.terminal", "report.card", "cli.options", "cli.output", "cli.settings", "cli.commands", "cli.listings",
    "cli.checks", "cli.timings", "cli.bench", "cli.app",
]  # fmt: skip


def rooms() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            found[".".join(parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Rooms that a file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("planner."):
            module = node.module.removeprefix("planner.")
            names |= {f"{module}.{a.name}" if f"{module}.{a.name}" in ORDER else module for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("planner.") for a in node.names if a.name.startswith("planner.")}
    return names


def test_every_room_has_its_place() -> None:
    assert sorted(rooms()) == sorted(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    above = set(ORDER[: ORDER.index(room)])
    assert imported(rooms()[room]) <= above


def test_nothing_above_report_prints() -> None:
    for room in ORDER[: ORDER.index("report.tables")]:
        tree = ast.parse(rooms()[room].read_text(encoding="utf-8"))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], room


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import planner", ("torch", "pandas", "rich", "numpy", "pydantic", "altair")),
        ("from planner import plan; plan('llama3-70b', 'h100')", ("torch", "pandas", "rich", "typer")),
        ("from planner.cli import commands; from planner.report import charts", ("altair", "vl_convert", "pandas")),
    ],
)
def test_importing_loads_nothing_heavy(statement: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_one_card_reads_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner import catalog

    read: list[str] = []
    original = catalog._read

    def reading(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(catalog, "_read", reading)
    monkeypatch.setattr(catalog, "_loaded", {})
    catalog.load_card("llama3-70b")
    assert read == ["llama3-70b.toml"]
