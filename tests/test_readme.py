"""The README's commands run, and its screens are what the command prints."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from planner import gpu_ids, model_ids

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
BLOCKS = [(m[1], m[2]) for m in FENCE.finditer(README)]
SCREENS = [body.removeprefix("$ kvplan ").split("\n", 1) for kind, body in BLOCKS if kind == "console"]
COMMANDS = [
    line.removeprefix("kvplan ")
    for kind, body in BLOCKS
    if not kind
    for line in body.splitlines()
    if line[:7] == "kvplan "
]


(LOG,) = (body for kind, body in BLOCKS if kind == "log")
"""The start-up log that the page says is in `vllm.log`."""
(MODEL,) = (body for kind, body in BLOCKS if kind == "json")
"""The configuration that the page says is in `my-model.json`."""


def run(words: str, cwd: Path) -> str:
    if "my-model.json" in words:
        (cwd / "my-model.json").write_text(MODEL, encoding="utf-8")
    if "vllm.log" in words:
        (cwd / "vllm.log").write_text(LOG, encoding="utf-8")
    env = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "planner", *shlex.split(words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd, env=env, timeout=120).stdout


@pytest.mark.parametrize(("words", "shown"), SCREENS, ids=[words for words, _ in SCREENS])
def test_screens_are_real(words: str, shown: str, tmp_path: Path) -> None:
    printed = [line.rstrip() for line in run(words, tmp_path).splitlines()]
    assert shown.splitlines() == printed, "run `python -m tests.test_readme` to renew the README's screens"


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_run(words: str, tmp_path: Path) -> None:
    run(words, tmp_path)


def test_the_page_shows_the_two_commands_and_counts_right() -> None:
    assert "make run" in README
    assert "make test" in README
    assert len(SCREENS) >= 4
    assert COMMANDS
    assert f"on {len(model_ids())} models and {len(gpu_ids())} accelerators" in README


def renew() -> None:
    """Write the screens into the README."""

    def screen(match: re.Match[str]) -> str:
        if match[1] != "console":
            return match[0]
        words = match[2].splitlines()[0].removeprefix("$ kvplan ")
        with tempfile.TemporaryDirectory() as folder:
            lines = [line.rstrip() for line in run(words, Path(folder)).splitlines()]
        return "```console\n$ kvplan " + words + "\n" + "\n".join(lines) + "\n```"

    page = FENCE.sub(screen, README)
    (ROOT / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    renew()
