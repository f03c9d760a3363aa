"""The command as a person types it: a real process, its screen, its files and its exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "planner"]


def run(*words: str, width: int = 100, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": str(width), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=60, check=False)


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize(
    "words",
    [
        ("llama3-70b", "--gpu", "h100"),
        ("llama3-70b", "--gpu", "1xh100", "--batch", "8"),
        ("deepseek-v3", "--gpu", "8xh200"),
        ("gemma3-27b", "--gpu", "rtx-4090", "--weights", "int4"),
        ("flan-t5-xxl", "--gpu", "a100"),
        ("llama4-maverick", "--gpu", "8xh200"),
        ("mistral-7b-v0.1", "--gpu", "apple-m2-ultra"),
    ],
)
def test_the_plan_is_one_screen(words: tuple[str, ...], width: int) -> None:
    done = run(*words, width=width)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= (50 if width >= 100 else 60)
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout
    fits = "DOES NOT FIT" not in done.stdout
    for part in ("Memory of one GPU", "Decode step", "weights", "Ideal", "Expected"):
        assert part in done.stdout, part
    assert ("Largest batch by context" if fits else "What would make it fit") in done.stdout


def test_plan_is_the_default_verb() -> None:
    plain = run("llama3-70b", "--gpu", "h100").stdout
    assert plain == run("plan", "llama3-70b", "--gpu", "h100").stdout == run("--gpu", "h100", "llama3-70b").stdout


def test_does_not_fit_is_an_answer() -> None:
    done = run("llama3-70b", "--gpu", "1xh100", "--json", "-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["memory"]["fits"] is False
    assert run("llama3-70b", "--gpu", "1xh100", "--check").returncode == 1
    assert run("llama3-70b", "--gpu", "8xh100", "--check").returncode == 0


def test_files_and_screen(tmp_path: Path) -> None:
    done = run("llama3-70b", "--gpu", "4xh100", "--json", "a.json", "--csv", "a.csv", "--md", "a.md", cwd=tmp_path)
    assert "FITS" in done.stdout
    assert done.stderr.count("wrote") == 3
    (row,) = csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text()))
    data = json.loads((tmp_path / "a.json").read_text())
    assert int(row["kv_bytes_per_token"]) == data["memory"]["kv_bytes_per_token"] == 327_680
    assert float(row["decode_step_s"]) == pytest.approx(data["decode"]["step_s"])
    assert "| Batch | Ideal |" in (tmp_path / "a.md").read_text()


def test_a_plans_csv_is_a_row_of_its_sweep() -> None:
    one = run("qwen3-32b", "--gpu", "2xh200", "--batch", "8", "--context", "4k", "--csv", "-").stdout
    many = run("sweep", "qwen3-32b", "--gpu", "2xh200", "--batch", "8", "--context", "4k", "--csv", "-").stdout
    assert one == many


@pytest.mark.parametrize("verb", ["compare", "explain", "models", "gpus", "sweep"])
@pytest.mark.parametrize("output", ["--json", "--csv", "--md"])
def test_every_verb_has_every_renderer(verb: str, output: str) -> None:
    words = {
        "compare": ["llama2-7b", "--gpu", "h100"],
        "explain": ["llama2-7b", "--gpu", "h100", "max_batch"],
        "sweep": ["llama2-7b,gemma2-9b", "--gpu", "h100,l4", "--batch", "1:4", "--context", "1k:4k"],
    }.get(verb, [])
    done = run(verb, *words, output, "-")
    assert done.returncode == 0, done.stderr
    if output == "--json":
        assert json.loads(done.stdout, parse_constant=pytest.fail)
    elif output == "--csv":
        rows = list(csv.reader(io.StringIO(done.stdout)))
        assert len(rows) > 1
        assert len({len(r) for r in rows}) == 1
    else:
        assert "| ---" in done.stdout


BAD = [
    ("lama3-70b --gpu h100", "did you mean"),
    ("gemini-1.5-pro --gpu h100", "unpublished"),
    ("llama3-70b --gpu h10", "did you mean"),
    ("llama3-70b --gpu 0xh100", "between 1 and"),
    ("llama3-70b --gpu h100 --tp 3", "use one of 1, 2, 4"),
    ("llama3-70b --gpu 4xh100 --tp 2 --pp 4", "not the 4 GPUs"),
    ("llama3-70b --gpu h100 --context 1M", "use --context 8k or less"),
    ("llama3-70b --gpu h100 --context 0", "between 1 and"),
    ("llama3-70b --gpu h100 --batch -5", "cannot read batch"),
    ("llama3-70b --gpu h100 --batch nan", "cannot read batch"),
    ("llama3-70b --gpu h100 --batch 1e400", "write it like"),
    ("llama3-70b --gpu h100 --memory-fraction inf", "at most 1"),
    ("llama3-70b --gpu h100 --weights fp3", "use one of"),
    ("llama3-70b --gpu h100 --nonsense", "no such option"),
    ("llama3-70b", "--gpu"),
    ("llama3-70b --gpu h100 --json /nowhere/x.json", "cannot write"),
    ("llama3-70b --gpu h100 --json - --csv -", "two outputs"),
    ("sweep llama3-70b --gpu h100 --batch 9:1", "ends before it starts"),
    ("sweep llama3-70b --gpu h100 --batch 1:9:x1", "never ends"),
    ("sweep llama3-70b --gpu h100 --batch 1:1000000000", "larger step"),
    ("explain llama3-70b --gpu h100 nonsense", "lists them all"),
    ("models nonsense", "unknown model"),
    ("gpus nonsense", "unknown GPU"),
    ("./missing.toml --gpu h100", "no such file"),
]


@pytest.mark.parametrize(("words", "hint"), BAD)
def test_bad_input_is_one_line_and_exit_2(words: str, hint: str, tmp_path: Path) -> None:
    done = run(*words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kvplan: ")
    assert hint in done.stderr
    assert list(tmp_path.iterdir()) == []


CARD = (ROOT / "model_cards" / "llama3-70b.toml").read_text(encoding="utf-8")
HOSTILE = {
    "typo": CARD.replace("kv_heads", "kv_haeds"),
    "layers": CARD.replace("layers = 80", f"layers = {10**18}"),
    "negative": CARD.replace("layers = 80", "layers = -80"),
    "nan": CARD.replace("layers = 80", "layers = nan"),
    "text": CARD.replace("layers = 80", 'layers = "80"'),
    "float": CARD.replace("layers = 80", "layers = 80.5"),
    "count": CARD.replace("70_553_706_496", "70_553_706_495"),
    "heads": CARD.replace("kv_heads = 8", "kv_heads = 7"),
    "id": 'id = "other"\n' + CARD,
    "source": CARD.partition("[[source]]")[0],
    "toml": "this is not TOML",
    "duplicate": "layers = 80\n" + CARD,
    "nested": "x = " + "[" * 5000 + "]" * 5000,
    "huge": "#" * (2**20 + 1),
    "binary": "\x00\x01\x02",
    "empty": "",
    "at": CARD.replace("[[attention]]", '[[attention]]\nat = "__import__(0)"'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_cards_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(HOSTILE[name], encoding="utf-8")
    done = run("./card.toml", "--gpu", "h100", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "card.toml" in done.stderr
    assert len(done.stderr) < 400


def test_a_card_of_ones_own_is_planned(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CARD, encoding="utf-8")
    done = run("./mine.toml", "--gpu", "4xh100", "--json", "-", cwd=tmp_path)
    assert json.loads(done.stdout)["model"]["id"] == "mine"


def test_an_interrupted_sweep_leaves_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    words = ["sweep", "llama3-70b", "--gpu", "h100", "--tp", "1,2,4,8", "--batch", "1:4096", "--context", "1:8192"]
    process = subprocess.Popen(
        [*COMMAND, *words, "--csv", str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "kvplan: stopped"
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = " ".join([*COMMAND, "sweep llama3-70b --gpu h100 --batch 1:2048 --context 1:1024 --csv - | head -1"])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.stdout.startswith("model,gpu,")
    assert done.stderr == ""


@pytest.mark.parametrize("words", [(), ("plan",), ("compare",), ("sweep",), ("explain",), ("models",), ("gpus",)])
def test_help_answers(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("kvplan llama3-7", "llama3-70b"),
        ("kvplan comp", "compare"),
        ("kvplan llama3-70b --gpu mi30", "mi300x"),
        ("kvplan llama3-70b --gpu h100 --wei", "--weights"),
        ("kvplan sweep llama3-70b,qwen3-3", "llama3-70b,qwen3-32b"),
        ("kvplan explain llama3-70b --gpu h100 max_", "max_batch"),
    ],
)
def test_completion(typed: str, expected: str) -> None:
    words = typed.split(" ")
    done = run(_KVPLAN_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    assert expected in done.stdout.split()


def shell(script: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "K": " ".join(COMMAND), **environment}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=cwd, env=env, timeout=60, check=False
    )


@pytest.mark.parametrize("words", ["llama3-8b --gpu h100", "llama3-8b --gpu h100 --json -", "models", "--help"])
def test_a_full_standard_output_is_one_line(words: str) -> None:
    done = shell(f"$K {words} > /dev/full")
    assert done.returncode == 2
    assert done.stderr == "kvplan: cannot write standard output: No space left on device; send it elsewhere\n"


@pytest.mark.parametrize("words", ["llama3-8b --gpu h100", "sweep llama3-8b --gpu h100 --batch 1:4000 --csv -"])
def test_a_closed_pipe_is_no_failure(words: str) -> None:
    assert shell(f"$K {words} | true; echo ${{PIPESTATUS[0]}}").stdout == "0\n"


def test_a_terminal_that_cannot_show_a_sign(tmp_path: Path) -> None:
    done = shell("$K llama3-8b --gpu h100", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "FITS" in done.stdout


def test_special_files_are_not_read_as_cards(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    for name in ("fifo", "zero", "folder"):
        done = run(f"./{name}.toml", "--gpu", "h100", cwd=tmp_path)
        assert done.returncode == 2
        assert "not a file" in done.stderr


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "real.json").chmod(0o600)
    (tmp_path / "link.json").symlink_to("real.json")
    run("llama3-8b", "--gpu", "h100", "--json", "link.json", cwd=tmp_path)
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["model"]["id"] == "llama3-8b"
    assert (tmp_path / "real.json").stat().st_mode & 0o777 == 0o600


def test_termination_cleans_up(tmp_path: Path) -> None:
    words = "sweep llama3-70b --gpu h100 --tp 1,2,4,8 --batch 1:4096 --context 1:8192 --csv out.csv"
    script = f"timeout -s TERM 2 $K {words}; ls -A"
    assert shell(script, cwd=tmp_path).stdout == ""


def test_ones_own_files_are_listed_and_named_in_remedies(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(CARD, encoding="utf-8")
    gpu = (ROOT / "planner" / "gpus" / "h100-sxm.toml").read_text(encoding="utf-8")
    (tmp_path / "board.toml").write_text(gpu, encoding="utf-8")
    assert "mine" in run("models", "./mine.toml", cwd=tmp_path).stdout
    done = run("./mine.toml", "--gpu", "1x./board.toml", cwd=tmp_path)
    assert "--gpu 2x./board.toml" in done.stdout


def test_an_unknown_key_is_named_before_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(CARD.replace("kv_heads", "kv_head"), encoding="utf-8")
    done = run("./card.toml", "-g", "h100", cwd=tmp_path)
    assert "attention.0.kv_head: unknown key; did you mean kv_heads?" in done.stderr


@pytest.mark.parametrize("width", [60, 72, 80, 100, 140])
@pytest.mark.parametrize(
    "words",
    [
        ("llama3-70b", "--gpu", "8xh100", "--input", "2k", "--output", "500", "--concurrency", "100000"),
        ("llama3-70b", "--gpu", "1xh100"),
        ("compare", "t5-xxl", "--gpu", "a100"),
        ("compare", "gemma3-27b", "--gpu", "h100", "-a", "mha,gqa:2,mqa,mla"),
        ("sweep", "llama4-maverick,llama3-8b", "--gpu", "8xrtx-pro-6000-server", "--batch", "1:3"),
        ("models",),
        ("gpus",),
        ("explain", "deepseek-v3", "--gpu", "8xh200", "step_s"),
    ],
)
def test_nothing_is_cut_at_any_width(words: tuple[str, ...], width: int) -> None:
    done = run(*words, width=width)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "…" not in done.stdout


@pytest.mark.parametrize("width", [60, 72, 80])
def test_numbers_are_whole_on_narrow_screens(width: int) -> None:
    words = ("llama3-70b", "--gpu", "8xh100", "--input", "2k", "--output", "500", "--concurrency", "100000")

    def cells(text: str) -> set[str]:
        rows = text[text.index("\n────") :].splitlines()[2:]
        return {cell.strip() for row in rows[: rows.index("")] for cell in row.split("  ") if cell.strip()}

    narrow, wide = (cells(run(*words, width=n).stdout) for n in (width, 120))
    assert len(narrow) > 15
    assert narrow <= wide


def test_a_closed_standard_output_is_said() -> None:
    done = subprocess.run(
        f"exec {sys.executable} -m planner llama3-8b --gpu h100 >&-",
        shell=True, cwd=ROOT, text=True, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2, "kvplan: cannot write standard output: not writable; send it elsewhere\n",
    )  # fmt: skip


def test_validate_prints_all_or_one() -> None:
    everything = run("validate")
    assert "Error of bytes a token" in everything.stdout
    assert "Error of times, by source" in everything.stdout
    assert run("validate", "times", "--csv", "-").stdout.count("\n") == 850
    assert "| source | gpt-fast |" in run("validate", "times", "--md", "-").stdout


@pytest.mark.parametrize(("words", "said"), [(["weather"], "capacity or times"), (["--csv", "-"], "say which")])
def test_validate_refuses(words: list[str], said: str) -> None:
    done = run("validate", *words)
    assert done.returncode == 2
    assert said in done.stderr
