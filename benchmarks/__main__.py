"""Import, cold command, one plan in process, importing configurations, a sweep of a million rows."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

PYTHON = sys.executable
YARDSTICK = [PYTHON, "-c", "import typer, rich"]
ROWS = 1_000_000


def main() -> None:
    """Print one line a figure: median, yardstick, ratio, aim."""
    print(f"{'figure':42} {'median':>10} {'yardstick':>10} {'ratio':>6}   aim")
    pair("import planner", [PYTHON, "-c", "import planner"], "150 ms")
    pair("from planner import plan", [PYTHON, "-c", "from planner import plan"], "-")
    pair("kvplan llama3-70b --gpu h100, cold", [PYTHON, "-m", "planner", "llama3-70b", "--gpu", "h100"], "400 ms")
    one_plan()
    one_estimate()
    imports()
    print(f"  (yardstick above: {' '.join(YARDSTICK[1:])}; below: as named)")
    for line in subprocess.run(
        [PYTHON, "-m", "benchmarks", "sweep"], check=True, capture_output=True, text=True
    ).stdout.split("\n"):
        print(line, end="\n" if line else "")


def pair(name: str, command: list[str], aim: str, runs: int = 15) -> None:
    """Time a whole process and the yardstick in turn."""
    ours, theirs = [], []
    for _ in range(runs):
        ours.append(process_s(command))
        theirs.append(process_s(YARDSTICK))
    report(name, statistics.median(ours), statistics.median(theirs), aim)


def process_s(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def report(name: str, seconds: float, yardstick: float, aim: str) -> None:
    print(f"{name:42} {seconds * 1e3:7.2f} ms {yardstick * 1e3:7.2f} ms {seconds / yardstick:6.2f}   {aim}")


def median_s(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def one_plan() -> None:
    """A plan with everything on its screen, against serialising it."""
    from planner import plan

    for model, gpu in (("llama3-70b", "4xh100"), ("gemma3-27b", "h100"), ("deepseek-v3", "8xh200")):
        answer = plan(model, gpu)
        seconds = median_s(lambda model=model, gpu=gpu: plan(model, gpu), 200)  # type: ignore[misc]
        report(f"plan({model!r}, {gpu!r}); to_json()", seconds, median_s(answer.to_json, 200), "1 ms")


def one_estimate() -> None:
    """What requests see of a deployment, computed for one load and for a thousand at once, against a plan's JSON."""
    import numpy as np

    from planner import load_model, plan
    from planner.serving import Load, serve
    from planner.settle import deploy

    answer = plan("llama3-70b", "4xh100")
    yardstick = median_s(answer.to_json, 200)
    for model, gpu in (("llama3-70b", "4xh100"), ("gpt-oss-120b", "h100"), ("deepseek-v3", "8xh200")):
        d = deploy(load_model(model), gpu, context=2048)
        one, many = Load(1024, 1024, 64.0), Load(1024, 1024, np.arange(1.0, 1001.0))
        report(f"one serving estimate, {model}", median_s(lambda d=d, load=one: serve(d, load), 200), yardstick, "1 ms")  # type: ignore[misc]
        report("  and a thousand", median_s(lambda d=d, load=many: serve(d, load), 50), yardstick, "-")  # type: ignore[misc]


def imports() -> None:
    """Models from configurations, the first time in a process and again, against parsing a card's TOML."""
    from planner.checkpoint.config import model_of
    from planner.row import Source

    truths = Path(__file__).parent.parent / "validation" / "model_truths.jsonl"
    configs = {t["model"]: t["config"] for t in map(json.loads, truths.read_text(encoding="utf-8").splitlines())}
    source = Source(title="config.json", locator="benchmarks", date="2026-11")
    card = (Path(__file__).parent.parent / "model_cards" / "deepseek-v3.toml").read_text(encoding="utf-8")
    yardstick = median_s(lambda: tomllib.loads(card), 200)
    for name in ("01-ai/Yi-34B", "deepseek-ai/DeepSeek-V3", "google/gemma-3-27b-it", "nvidia/Nemotron-H-56B-Base-8K"):
        first = median_s(lambda name=name: model_of(configs[name], name, source), 1)  # type: ignore[misc]
        again = median_s(lambda name=name: model_of(configs[name], name, source), 100)  # type: ignore[misc]
        report(f"import {name}, first", first, yardstick, "-")
        report(f"import {name}", again, yardstick, "5 ms")


def sweep_rows() -> None:
    """A million rows of memory, fit and decode time, against ten passes of numpy's exp over as many numbers."""
    import numpy as np

    from planner import sweep

    def run() -> None:
        table = sweep(["llama3-70b"], ["h100", "h200"], tp=[4, 8], batch=range(1, 513), context=range(16, 8193, 16))
        rows = sum(len(chunk["batch"]) for chunk in table.chunks())
        assert rows >= ROWS, rows

    values = np.linspace(0, 1, ROWS)
    yardstick = median_s(lambda: [np.exp(values) for _ in range(10)], 3)
    report(f"sweep of {4 * 512 * 512:,} rows; 10 x np.exp", median_s(run, 3), yardstick, "2 s")

    def requests() -> None:
        table = sweep(["llama3-70b"], ["h100"], tp=[8], batch=range(1, ROWS + 1), input=1024, output=256)
        assert sum(len(chunk["batch"]) for chunk in table.chunks()) == ROWS

    report(f"sweep of {ROWS:,} rows with TTFT, TPOT", median_s(requests, 3), yardstick, "3 s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{'  its peak memory':42} {peak:7.0f} MiB {'':21} 1,024 MiB")
    csv = median_s(lambda: sweep(["llama3-70b"], ["h100"], tp=[4], batch=range(1, 513), context=range(16, 8193, 16)).to_csv(
        os.devnull), 1)  # fmt: skip
    report(f"  and {512 * 512:,} rows written as CSV", csv, yardstick, "-")


if __name__ == "__main__":
    if sys.argv[1:] == ["sweep"]:
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[variable] = "1"
        sweep_rows()
    else:
        main()
