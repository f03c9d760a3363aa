"""Charts: pages that open offline, pictures of a sensible size, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from planner import KvplanError, roofline_of
from planner.report import charts, drawing
from planner.verbs.roofline import Roofline
from tests.specs import build, device
from tests.test_cli import CARD, ROOT, run

WORDS = ("roofline", "llama3-70b", "--gpu", "4xh100", "--batch", "1:64:x4", "--context", "4k")


@pytest.fixture(scope="module")
def answer() -> Roofline:
    return roofline_of("deepseek-v3", "8xh200", batch="1:256:x2")


def layers(spec: Any) -> list[dict[str, Any]]:
    """Every layer of a chart, however deep."""
    inner = [view for key in ("layer", "hconcat", "vconcat") for view in spec.get(key, ())]
    return [spec, *(found for view in inner for found in layers(view))]


def rows(view: dict[str, Any], mark: str, spec: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Data of all layers of a view with a mark; ``spec`` is the whole chart, which keeps the data."""
    marked = [one for one in layers(view) if isinstance(one.get("mark"), dict) and one["mark"]["type"] == mark]
    return [row for one in marked for row in (spec or view)["datasets"][one["data"]["name"]]]


class _Tags(HTMLParser):
    """What a page fetches: attributes of its tags, not the text of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]


def offline(page: str) -> bool:
    """Whether no script, style or picture of a page is in another file."""
    tags = _Tags()
    tags.feed(page)
    return tags.fetched == [] and "@import" not in page.partition("<script>")[0]


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    wide, high = struct.unpack(">II", png[16:24])
    return wide, high


def test_a_roofline_has_every_operator_and_batch(answer: Roofline) -> None:
    spec = charts.roofline_chart(answer).to_dict()
    points = rows(spec, "point")
    assert len({point["batch"] for point in points}) == 8
    assert {point["operator"] for point in points} == {o.operator for o in answer.operators if o.achieved_flop_per_s}
    assert {bar["operator"] for bar in rows(spec, "bar")} == {o.operator for o in answer.operators}
    assert {line["format"] for line in rows(spec, "line") if "format" in line} == {"bf16", "fp8"}
    assert spec["title"]["text"] == "DeepSeek-V3 671B on 8 × NVIDIA H200 SXM 141GB"
    assert "8,192 tokens" in spec["title"]["subtitle"][0]
    assert "published" in spec["title"]["subtitle"][1]
    texts = [row["text"] for row in rows(spec, "text")]
    assert sum("does not fit" in text for text in texts) == 2
    assert any(text.startswith("fp8 1,979") for text in texts)


def test_what_is_drawn_lies_within_the_axes(answer: Roofline) -> None:
    spec = charts.roofline_chart(answer).to_dict()
    layer = next(one for one in layers(spec) if isinstance(one.get("mark"), dict) and one["mark"]["type"] == "point")
    ends = [layer["encoding"][axis]["scale"]["domain"] for axis in ("x", "y")]
    for point in (*rows(spec, "point"), *rows(spec, "line")):
        for (low, high), axis in zip(ends, ("x", "y"), strict=True):
            assert low * 0.999 <= point[axis] <= high * 1.001


@pytest.mark.parametrize(
    "drawn",
    [
        roofline_of("llama3-8b", "l4", batch=4),
        roofline_of("deepseek-v3", "8xh200", prefill=True),
        roofline_of(build(), device(peak_tflops={}), batch=[1, 64], tp=1),
        roofline_of("gpt2", "h100", batch="1:500"),
    ],
    ids=["one batch", "prefill", "no peaks", "many batches"],
)
def test_other_rooflines_are_charts_too(drawn: Roofline) -> None:
    charts.roofline_chart(drawn).to_dict()


def test_pictures(answer: Roofline) -> None:
    chart = charts.roofline_chart(answer)
    wide, high = size(drawing.picture(chart, "png", ""))
    assert 1600 <= wide <= 2600
    assert 1000 <= high <= 2000
    svg = drawing.picture(chart, "svg", "").decode()
    assert svg.startswith("<svg")
    assert "DeepSeek-V3 671B" in svg
    page = drawing.picture(chart, "html", "a < b").decode()
    assert offline(page)
    assert "<title>a &lt; b</title>" in page
    assert "vegaEmbed(" in page


def test_a_name_cannot_end_the_script_of_a_page() -> None:
    name = "</script><script>alert(1)</script>"
    answer = roofline_of(build(name=name), device(), batch=1, tp=1)
    page = drawing.picture(charts.roofline_chart(answer), "html", name).decode()
    plain = drawing.picture(charts.roofline_chart(roofline_of(build(), device(), batch=1, tp=1)), "html", "").decode()
    assert page.count("<script") == plain.count("<script")
    assert page.count("</script") == plain.count("</script")
    assert "alert(1)" in page


def some_records(groups: int) -> list[dict[str, Any]]:
    return [
        {"group": f"group {g}", "measured": 0.01 * (i + 1), "ideal": 0.005 * (i + 1),
         "expected": None if i == 9 else 0.011 * (i + 1), "label": f"case {g}-{i}"}
        for g in range(groups) for i in range(10 + groups - g)
    ]  # fmt: skip


def test_errors_side_by_side() -> None:
    chart = charts.scatter_errors(
        some_records(3), title="Decode steps", subtitle=["made up"], quantity="step", by="GPU"
    )
    spec = chart.to_dict()
    ideal, expected = spec["hconcat"]
    assert ideal["title"] == {**ideal["title"], "text": "Ideal", "subtitle": "median error 50%, 0% of 36 within ±25%"}
    assert expected["title"]["subtitle"] == "median error 10%, 100% of 33 within ±25%"
    (point, *_) = rows(ideal, "point", spec)
    assert (point["measured"], point["predicted"], point["error"]) == (10.0, 5.0, "-50.0%")
    wide, high = size(drawing.picture(chart, "png", ""))
    assert wide > high > 700


def test_small_groups_share_a_colour() -> None:
    spec = charts.scatter_errors(some_records(12), title="").to_dict()
    domain = spec["hconcat"][0]["layer"][-1]["encoding"]["color"]["scale"]["domain"]
    assert domain == [*(f"group {i}" for i in range(7)), "other"]
    assert {row["of"] for row in rows(spec["hconcat"][0], "point", spec) if row["group"] == "other"} == {
        f"group {i}" for i in range(7, 12)
    }


def test_thousands_of_records_are_drawn_and_none_is_refused() -> None:
    many = [{**record, "group": "all"} for record in some_records(1) * 1000]
    charts.scatter_errors(many, title="").to_dict()
    unmeasured = [{**record, "measured": None} for record in some_records(1)]
    with pytest.raises(KvplanError, match="no prediction"):
        charts.scatter_errors(unmeasured, title="")


def test_the_command_writes_every_kind(tmp_path: Path) -> None:
    names = {kind: f"a.{kind}" for kind in ("html", "png", "svg", "json", "csv", "md")}
    done = run(*WORDS, *(word for kind, name in names.items() for word in (f"--{kind}", name)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wrote") == len(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names.values())
    assert "Llama 3 70B on 4" in done.stdout
    assert offline((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert size((tmp_path / "a.png").read_bytes())[0] > 1600
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
    data = json.loads((tmp_path / "a.json").read_text())
    table = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert len(table) == len(data["operators"]) == 4 * 9
    assert float(table[0]["expected_s"]) == pytest.approx(data["operators"][0]["expected_s"])
    assert {row["phase"] for row in table} == {"decode"}
    page = (tmp_path / "a.md").read_text()
    assert page.startswith("# Llama 3 70B on 4 × NVIDIA H100 SXM5 80GB\n")
    assert "| Operator | FLOP/B |" in page


def test_a_picture_goes_to_standard_output() -> None:
    command = [sys.executable, "-m", "planner", *WORDS, "--png", "-"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60, check=True)
    assert size(done.stdout)[0] > 1600
    assert done.stderr == b""


@pytest.mark.parametrize("module", ["altair", "vl_convert"])
def test_without_the_extra_it_says_how_to_install_it(module: str, tmp_path: Path) -> None:
    words = ["kvplan", *WORDS, "--csv", "a.csv", "--html", "a.html"]
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv = {words!r}; from planner.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == ("kvplan: charts need Altair and vl-convert; pip install 'kvplan[charts]' brings them\n")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_tables_are_there() -> None:
    words = ["kvplan", *WORDS, "--csv", "-"]
    code = f"import sys; sys.modules['altair'] = None; sys.argv = {words!r}; from planner.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("model,gpu,tensor_parallel,phase,tokens,batch,operator,")


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize(
    "words",
    [
        ("llama3-70b", "--gpu", "4xh100"),
        ("deepseek-v3", "--gpu", "8xh200", "--ep", "--pp", "2", "--batch", "1:256:x2"),
        ("deepseek-v3", "--gpu", "8xh200", "--prefill", "--context", "32k"),
        ("flan-t5-xxl", "--gpu", "a100", "--batch", "3"),
    ],
)
def test_the_screen_is_as_wide_as_it_may_be(words: tuple[str, ...], width: int) -> None:
    done = run("roofline", *words, width=width)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in done.stdout
    assert any(line.startswith("projections ") for line in lines)
    assert "expected" in done.stdout
    assert "Expected times are" in done.stdout


BAD = [
    ("roofline llama3-70b", "--gpu"),
    ("roofline lama3-70b --gpu h100", "did you mean"),
    ("roofline llama3-70b --gpu h100 --batch 9:1", "ends before it starts"),
    ("roofline llama3-70b --gpu h100 --batch 1:100000", "larger step"),
    ("roofline llama3-70b --gpu h100 --prefill --batch 4", "leave out either"),
    ("roofline llama3-70b --gpu h100 --context 1M", "use --context 8k or less"),
    ("roofline llama3-70b --gpu h100 --png /nowhere/x.png", "cannot write"),
    ("roofline llama3-70b --gpu h100 --png x --html x", "two outputs"),
    ("roofline llama3-70b --gpu h100 --png - --csv -", "two outputs"),
]


@pytest.mark.parametrize(("words", "hint"), BAD)
def test_bad_input_is_one_line_and_exit_2(words: str, hint: str, tmp_path: Path) -> None:
    done = run(*words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert hint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")
    (tmp_path / "card.toml").write_text(CARD.replace("kv_heads = 8", "kv_heads = 7"), encoding="utf-8")
    assert run("roofline", "./card.toml", "--gpu", "h100", "--png", "a.png", cwd=tmp_path).returncode == 2
    assert (tmp_path / "a.png").read_text() == "old"


@pytest.mark.parametrize("what", ["capacity", "times", "serving"])
def test_validate_draws_what_it_holds(what: str, tmp_path: Path) -> None:
    done = run("validate", what, "--svg", str(tmp_path / "a.svg"), "--json", "-")
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ("Ideal" in picture) == (what != "capacity")
    assert "within ±25%" in picture
    assert json.loads(done.stdout)
