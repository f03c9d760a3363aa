"""The built wheel, not the checkout: installed into an environment of its own and run from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from planner import gpu_ids, model_ids
from planner.checkpoint.architecture import architecture_names

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"planner"}
    assert sum(n.startswith("planner/model_cards/") for n in names) == len(model_ids()) + 1  # and the unpublished ones
    assert sum(n.startswith("planner/gpus/") for n in names) == len(gpu_ids())
    assert sum(n.startswith("planner/checkpoint/architectures/") for n in names) == len(architecture_names()) + 1
    assert "planner/py.typed" in names


def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True, env=env, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str) -> str:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=elsewhere)
        return done.stdout

    kvplan = str(python.parent / "kvplan")
    answer = json.loads(run(kvplan, "llama3-70b", "--gpu", "h100", "--json", "-"))
    assert answer["memory"]["kv_bytes_per_token"] == 327_680
    assert "FITS" in run(kvplan, "llama3-70b", "--gpu", "8xh100")
    assert len(run(kvplan, "models", "--csv", "-").splitlines()) == len(model_ids()) + 1
    assert run(kvplan, "validate", "capacity", "--csv", "-").count("log-") >= 200
    (elsewhere / "start.log").write_text("INFO GPU KV cache size: 33,504 tokens\n", encoding="utf-8")
    bench = subprocess.run([kvplan, "bench"], capture_output=True, text=True, env=env, cwd=elsewhere, check=False)
    assert (bench.returncode, bench.stderr.count("\n")) == (2, 1)
    assert "pip install 'kvplan[bench]'" in bench.stderr
    assert "vllm" in run(kvplan, "check-log", "start.log", "--model", "llama3-8b")
    drawn = [kvplan, "roofline", "llama3-8b", "--gpu", "h100", "--html", "a.html"]  # without the extra
    refused = subprocess.run(drawn, check=False, capture_output=True, text=True, env=env, cwd=elsewhere)
    assert (refused.returncode, "pip install 'kvplan[charts]'" in refused.stderr) == (2, True)
    where = run(str(python), "-c", "import planner; print(planner.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "env")
