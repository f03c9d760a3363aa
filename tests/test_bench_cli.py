"""`kvplan bench` as a person types it, for real on the CPU at the smallest sizes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from planner.bench.profile import Profile, load
from planner.bench.run import known_kernels
from planner.cli.app import app
from planner.errors import KvplanError

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "planner"]
FILES = ("--out", "p.json", "--report", "r.html", "--json", "a.json", "--csv", "a.csv", "--md", "a.md")


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    """One run with every output."""
    found = run("bench", "--tiny", "--threads", "1", "--device", "cpu", *FILES, cwd=folder)
    assert found.returncode == 0, found.stderr
    return found


@pytest.fixture(scope="module")
def profile(done: object, folder: Path) -> Profile:
    return load(folder / "p.json")


def test_it_says_what_it_does_and_what_became_of_it(done: subprocess.CompletedProcess[str]) -> None:
    first, *wrote, last = done.stderr.splitlines()
    assert "on 1 thread" in first
    assert "operators (memory, gemm, attention" in first
    assert "about 2 s" in first
    assert [line.rpartition(" ")[2] for line in wrote] == ["p.json", "a.json", "a.csv", "a.md", "r.html"]
    assert last == "kvplan: --gpu p.json plans with it"
    assert "\x1b" not in done.stdout + done.stderr


def test_the_screen_has_the_tables_and_what_they_mean(done: subprocess.CompletedProcess[str]) -> None:
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in done.stdout
    titles = ("Operators", "Errors at shapes that were not fitted", "Attention variants", "Fitted efficiencies",
              "Largest batch beside the weights")  # fmt: skip
    assert [line for line in lines if line in titles] == list(titles)
    for words in ("decode MHA", "decode MQA", "decoder layer", "decode loop", "Weights stream at", "Attention ran as:",
                  "30 of 30 caches take exactly the bytes predicted", "all operators: median error"):  # fmt: skip
        assert words in done.stdout, words


def test_files_hold_the_same(profile: Profile, folder: Path) -> None:
    answer = json.loads((folder / "a.json").read_text(), parse_constant=pytest.fail)
    rows = list(csv.DictReader(io.StringIO((folder / "a.csv").read_text())))
    assert len(answer["operators"]) == len(rows) == len(profile.measured)
    assert float(rows[0]["measured_s"]) == pytest.approx(profile.measured[0].median_s)
    assert answer["usage"]["memory"] == pytest.approx(profile.usage.memory if profile.usage else 0)
    assert {"errors", "variants", "efficiencies", "caches", "batches", "notes"} <= answer.keys()
    assert "## Attention variants" in (folder / "a.md").read_text()


def test_the_page_needs_nothing_else(done: object, folder: Path) -> None:
    page = (folder / "r.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "vegaEmbed(" in page
    assert not [word for word in ("<script src", "<link") if word in page]


def test_other_verbs_plan_with_it(profile: Profile, folder: Path) -> None:
    assert profile.usage is not None
    found = run("gpt2", "--gpu", "p.json", "--engine", "none", "--json", "-", cwd=folder)
    decode = json.loads(found.stdout)["decode"]
    assert decode["origin"] == "measured"
    assert decode["interval_s"][1] == pytest.approx(decode["step_s"] * profile.usage.interval[1])
    swept = run("sweep", "gpt2", "--gpu", "p.json", "--engine", "none", "--context", "1k", "--csv", "-", cwd=folder)
    (row,) = csv.DictReader(io.StringIO(swept.stdout))
    assert row["decode_origin"] == "measured"
    assert float(row["decode_step_s"]) == pytest.approx(decode["step_s"])


def test_a_device_becomes_an_entry_of_ones_own(profile: Profile, folder: Path) -> None:
    made = run("gpus", "new", "my-cpu", "--from", "p.json", cwd=folder)
    assert (made.returncode, made.stderr) == (0, "kvplan: wrote my-cpu.toml\n")
    shown = run("gpus", "my-cpu.toml", cwd=folder)
    assert profile.facts.name.split()[0] in shown.stdout
    assert "Measured by kvplan bench on" in shown.stdout
    found = run("gpt2", "--gpu", "my-cpu.toml", "--engine", "none", cwd=folder)
    assert "Expected times are measured" in found.stdout
    assert run("gpus", "new", "my cpu", "--from", "p.json", cwd=folder).returncode == 2
    assert "cannot be a GPU's id" in run("gpus", "new", "", "--from", "p.json", cwd=folder).stderr
    assert "is there already" in run("gpus", "new", "my-cpu", "--from", "p.json", cwd=folder).stderr
    (folder / "data" / "profiles").mkdir(parents=True)
    (folder / "data" / "profiles" / "lab-cpu.json").write_bytes((folder / "p.json").read_bytes())
    listed = run("gpus", "lab-cpu", cwd=folder, KVPLAN_DATA=str(folder / "data"))
    assert profile.facts.name.split()[0] in listed.stdout
    assert "unknown GPU" in run("gpus", "lab-gpu", cwd=folder, KVPLAN_DATA=str(folder / "data")).stderr


def test_two_runs_say_how_far_they_are_apart_and_the_profile_is_kept(tmp_path: Path) -> None:
    first = run(
        "bench",
        "--tiny",
        "--only",
        "gemm",
        "--threads",
        "1",
        "--repeat",
        "2",
        cwd=tmp_path,
        KVPLAN_DATA=str(tmp_path / "d"),
    )
    assert first.returncode == 0, first.stderr
    assert "2 runs of about" in first.stderr
    assert "no profile was kept, as not everything was measured" in first.stderr
    assert "Rates of 2 runs are within" in " ".join(first.stdout.split())
    assert "caches take" not in first.stdout
    assert not (tmp_path / "d").exists()


def test_under_torchrun_the_first_process_speaks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "planner"]
    words = [
        "bench",
        "--tiny",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--only",
        "link",
        "--out",
        "link.json",
        "--json",
        "-",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["operators"]
    assert [row["operator"] for row in rows] == 4 * ["all-reduce"]
    assert {row["backend"] for row in rows} == {"gloo"}
    assert done.stderr.count("kvplan: wrote link.json") == 1
    assert load(tmp_path / "link.json").device is None


BAD = [
    ("bench --device tpu", "use one of cuda"),
    ("bench --quick --full", "exclude each other"),
    ("bench --only gem", "did you mean gemm"),
    ("bench --tiny --device cpu --only link", "several processes under torchrun"),
    ("bench --report page.pdf", "end it in .html"),
    ("bench --out /nowhere/p.json", "cannot write"),
    ("bench --out /", "is a folder"),
    ("bench --json - --csv -", "two outputs"),
    ("bench --budget much", "cannot read"),
    ("bench --tiny --device cpu --only memory --budget 900TiB", "that are free"),
    ("gpus new mine --from missing.json", "cannot read"),
    ("gpt2 --gpu missing.json", "cannot read"),
]


@pytest.mark.parametrize(("words", "hint"), BAD)
def test_bad_input_is_one_line(words: str, hint: str) -> None:
    with pytest.raises(KvplanError, match=hint) as refused:
        app(words.split(), prog_name="kvplan", standalone_mode=False)
    assert "\n" not in str(refused.value)


def test_exit_codes_of_bad_input(tmp_path: Path) -> None:
    for words in (("bench", "--threads", "0"), ("bench", "--repeat", "x"), ("bench", "--only", "gem"), ("gpus", "new")):
        found = run(*words, cwd=tmp_path)
        assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1), found.stderr


def test_without_torch_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    found = run("bench", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert found.returncode == 2
    assert found.stderr == "kvplan: measuring needs torch; install kvplan[bench]: pip install 'kvplan[bench]'\n"


def test_what_was_known_of_another_machine_is_not_known(profile: Profile) -> None:
    assert known_kernels(profile.facts.model_copy(update={"units": 64})) == ()
