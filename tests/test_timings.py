"""Timings of one's own as a command: known shares come back, and bad tables are one line and exit code 2."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from planner.calibrate.model import load_kernels, read_kernels
from planner.calibrate.model import shipped as shipped_kernels
from planner.calibrate.table import COLUMNS, SHAPES
from planner.catalog import load_gpu
from planner.errors import InputError
from planner.report.tables import kernel_table
from planner.verbs.calibrate import calibrate, fits, kernels_of
from tests.test_calibrate import timings
from tests.test_cli import ROOT, run


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Products of bf16 by a known law: 80 % of bandwidth, 70 % of peak, 3 us for the smallest."""
    path = tmp_path / "mine.csv"
    timings().to_csv(path, index=False)
    return path


def test_the_command_finds_the_law_that_made_the_timings(mine: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    done = run("calibrate", str(mine), "--gpu", "h100", "--out", str(target))
    assert done.returncode == 0, done.stderr
    (kernel,) = read_kernels(target).kernel
    assert "Kernels of h100-sxm, measured" in run("gpus", str(target), "--kernels").stdout
    assert kernel.memory == pytest.approx(0.8, rel=0.02)
    assert kernel.compute == pytest.approx(0.7, rel=0.02)
    assert kernel.launch_s == pytest.approx(3e-6, rel=0.02)
    assert "gemm   bf16" in done.stdout
    assert str(tmp_path) not in target.read_text(encoding="utf-8")


def test_standard_output_carries_the_file_alone(mine: Path) -> None:
    done = run("calibrate", str(mine), "--gpu", "h100", "--out", "-")
    assert tomllib.loads(done.stdout)["device"] == "h100-sxm"


def test_other_devices_and_engines_are_left_out_and_said(mine: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.csv"
    frame = timings()
    half = frame.assign(engine="vllm"), frame.assign(device="b200"), frame.assign(engine="sglang").head(40)
    pd.concat(half).to_csv(both, index=False)
    answer = calibrate([both, mine], "h100", engine="vllm")
    assert [(fit.engine, fit.points + fit.held_out, fit.origin) for fit in answer.fits] == [("vllm", 800, "measured")]
    assert "400 timings of b200 were left out." in answer.notes
    assert "Timings of sglang were left out." in answer.notes
    with pytest.raises(InputError, match="but of sglang, vllm"):
        calibrate([both], "h100", engine="trtllm")
    with pytest.raises(InputError, match=r"no timing is of l4, but of h100-sxm"):
        calibrate([mine], "l4")


def test_what_is_too_little_to_fit_is_said(mine: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    timings().head(7).assign(format="fp8").to_csv(few, index=False)
    answer = calibrate([mine, few], "h100")
    assert "gemm in fp8 (any) has 7 timings, fewer than 24: left out." in answer.notes
    assert len(answer.fits) == 1


def test_multiprocessors_that_are_not_known_are_said(tmp_path: Path) -> None:
    path = tmp_path / "l4.csv"
    timings().assign(device="l4").to_csv(path, index=False)
    assert any("--sms" in note for note in calibrate([path], "l4").notes)
    answer = calibrate([path], "l4", sms=58, cache_mb=48)
    assert (answer.sms, answer.cache_mb, answer.notes) == (58, 48, ())


def cut(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex(",")], encoding="utf-8")


def changed(**columns: Any) -> Callable[[Path], None]:
    return lambda path: timings().assign(**columns).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("spoil", "gpu", "complaint"),
    [
        (Path.unlink, "h100", "No such file"),
        (cut, "h100", "1 times that are not positive"),
        (lambda path: path.write_bytes(b"PAR1\x00\xff\xfe"), "h100", "not a table"),
        (changed(time_s=float("nan")), "h100", "400 times that are not positive"),
        (changed(m=float("nan")), "h100", "m of class gemm is missing"),
        (changed(m=float("inf")), "h100", "m of class gemm is missing"),
        (changed(k=-4096), "h100", "k of class gemm is missing or not positive"),
        (changed(format=None), "h100", "400 rows without a format"),
        (changed(device=None), "h100", "400 rows without a device"),
        (changed(speed=3), "h100", "unknown column 'speed'"),
        (lambda path: None, "h1000", "unknown GPU 'h1000'"),
    ],
)
def test_bad_input_is_one_line(
    spoil: Callable[[Path], object], gpu: str, complaint: str, mine: Path, tmp_path: Path
) -> None:
    target = tmp_path / "kept.toml"
    target.write_text("what was there", encoding="utf-8")
    spoil(mine)
    done = run("calibrate", str(mine), "--gpu", gpu, "--out", str(target))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert target.read_text(encoding="utf-8") == "what was there"


def test_the_readme_names_every_class_with_its_columns() -> None:
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for kind, columns in SHAPES.items():
        (row,) = [row for row in rows if f"`{kind}`" in row.split("|")[1]]
        assert re.findall("`([a-z_]+)`", row.split("|")[2]) == list(columns)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{column}`" in text for column in COLUMNS)


# --- what is shipped


@pytest.mark.parametrize("device", [*shipped_kernels(), "rtx-4090", "mi300x"])
def test_shipped_fits_can_be_looked_at(device: str) -> None:
    gpu = load_gpu(device)
    file = kernels_of(gpu)
    table = kernel_table(fits(file), gpu.name)
    assert len(table.shown()) == len(file.kernel) + len(file.link)
    assert {row["origin"] for row in table.rows} == {"published" if device in shipped_kernels() else "generic"}
    assert all(row["low"] <= row["high"] and row["points"] > 0 for row in table.rows)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_kernels_on_a_screen(width: int) -> None:
    done = run("gpus", "h100", "--kernels", width=width)
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "Kernels of NVIDIA H100 SXM5 80GB, published" in done.stdout
    assert "Collectives" in done.stdout
    kinds = {kernel.kind for kernel in load_kernels("h100-sxm").kernel}
    assert all(f"\n{kind} " in done.stdout for kind in kinds)


def test_kernels_of_one_gpu_only() -> None:
    done = run("gpus", "rtx", "--kernels")
    assert done.returncode == 2
    assert "--kernels shows those of one" in done.stderr
    assert "--kernels' shows" in run("gpus", "h100").stdout
