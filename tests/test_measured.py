"""What the user measured serves every verb: found by name, by file or by the device's id; refused in one line if damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner import compare, explain, load_gpu, plan, sweep
from planner.bench import entry
from planner.bench import profile as profiles
from planner.efficiency import load_architectures, load_law
from planner.errors import CardError, InputError, KvplanError
from planner.measured import checksum, find_gpu, profile_path
from tests.profiles import FACTS, made

PROFILE = made()
UNLISTED = made(FACTS.model_copy(update={"catalogue": "", "name": "Some (R) Accelerator"}))
OPTIONS: dict[str, Any] = {"context": 4096, "batch": 8}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVPLAN_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def kept() -> Path:
    """The profile where kvplan bench puts it."""
    path = profiles.default_path(PROFILE.facts)
    profiles.save(PROFILE, path)
    return path


def test_the_id_of_a_measured_device_uses_its_profile(kept: Path) -> None:
    for name in ("h100", "h100-sxm", "2xh100", "measured", str(kept), f"2x{kept}"):
        p = plan("llama2-7b", name, **OPTIONS)
        assert (p.decode.origin, p.prefill.origin, p.gpu.id) == ("measured", "measured", "h100-sxm")
        assert any(f"measured, by kvplan bench on 2026-11-24 ({kept})" in note for note in p.notes)
    assert plan("llama2-7b", "h200", **OPTIONS).decode.origin != "measured"


def test_without_a_profile_nothing_changes() -> None:
    assert plan("llama2-7b", "h100", **OPTIONS).decode.origin == "published"
    assert load_gpu("h100").measured is None


def test_a_file_serves_wherever_it_lies(folder: Path) -> None:
    path = folder / "mine.json"
    profiles.save(UNLISTED, path)
    p = plan("llama2-7b", path, **OPTIONS)
    assert (p.decode.origin, p.gpu.id, p.gpu.name) == ("measured", "some-r-accelerator", "Some (R) Accelerator")
    assert find_gpu(path).vendor == "Some"
    assert p.gpu.usable_bytes == FACTS.total_bytes


def test_every_verb_uses_it(kept: Path) -> None:
    assert {v.decode_origin for v in compare("llama2-7b", "measured", "mha,mqa").variants} == {"measured"}
    table = sweep(["llama2-7b"], gpus=["measured", "h200"], batch=[1], context=[1024]).to_pandas()
    assert list(table["decode_origin"]) == ["measured", "published"]
    told = explain("llama2-7b", "measured", "step_s")
    assert any("Efficiency (measured" in s for s in told.sources)
    assert any(str(kept) in s for s in told.sources)
    served = plan("llama2-7b", "measured", input=512, output=128, concurrency=4)
    assert served.serving is not None
    assert served.serving.origin == "measured"


def test_shares_and_interval_are_the_profiles(kept: Path) -> None:
    usage, law = PROFILE.usage, load_law()
    assert usage is not None
    from planner import load_model
    from planner.settle import deploy

    found = {e: deploy(load_model("llama2-7b"), "h100", context=512, engine=e).efficiency for e in ("none", "vllm")}
    alone, served = found["none"], found["vllm"]
    assert alone.interval == usage.interval
    assert alone.shares.memory == served.shares.memory == usage.memory
    assert alone.prompt.compute == alone.shares.compute == usage.compute
    assert alone.shares.launch_s == usage.launch_s
    assert served.shares.launch_s > usage.launch_s  # the engine's host, which no kernel shows
    assert alone.shares.link < alone.prompt.link == load_architectures()["Hopper"].link
    assert (served.shares.link, served.prompt.link) == (law.link, law.prompt_link)
    assert served.interval[0] <= usage.interval[0] <= usage.interval[1] <= served.interval[1]


def test_rates_stay_when_the_catalogue_changes(folder: Path) -> None:
    path = folder / "old.json"
    device = PROFILE.device
    assert device is not None
    assert device.measured is not None
    memory = device.memory.model_copy(update={"bandwidth_gb_per_s": device.memory.bandwidth_gb_per_s / 2})
    profiles.save(PROFILE.model_copy(update={"device": device.model_copy(update={"memory": memory})}), path)
    found = find_gpu(path)
    assert found.memory == load_gpu("h100").memory
    assert found.measured is not None
    assert found.measured.memory == pytest.approx(device.measured.memory / 2)
    assert found.measured.compute == device.measured.compute


def test_an_entry_of_ones_own_plans_the_same(folder: Path) -> None:
    for profile, name in ((UNLISTED, "mine"), (PROFILE, "my-h100")):
        path = folder / f"{name}.toml"
        path.write_text(entry.toml(entry.gpu_of(profile, name)), encoding="utf-8")
        profiles.save(profile, folder / "mine.json")
        ours, theirs = (plan("llama2-7b", where, engine="none", **OPTIONS) for where in (path, folder / "mine.json"))
        assert ours.gpu.id == name
        assert ours.decode.origin == "measured"
        assert ours.decode.step_s == pytest.approx(theirs.decode.step_s, rel=1e-4)


def test_nothing_measured_is_said() -> None:
    with pytest.raises(InputError, match="run 'kvplan bench' first"):
        plan("llama2-7b", "measured")


def _sealed(**changes: Any) -> str:
    contents = {**PROFILE.model_dump(mode="json"), **changes}
    return json.dumps({"checksum": checksum(contents), **contents})


def _device(**changes: Any) -> str:
    device = PROFILE.model_dump(mode="json")["device"]
    return _sealed(device={**device, "measured": {**device["measured"], **changes}})


DAMAGED: dict[str, tuple[Callable[[], str], str]] = {
    "cut short": (lambda: _sealed()[:1000], "cut short"),
    "edited": (lambda: _sealed().replace('"memory": 0.', '"memory": 0.1', 1), "edited or damaged"),
    "newer": (lambda: _sealed(version=2), "install a newer kvplan"),
    "NaN": (lambda: _sealed().replace("3350.0", "NaN", 1), "holds NaN, which is no number"),
    "no products": (lambda: _sealed(device=None), "has no products"),
    "device is text": (lambda: _sealed(device="h100"), "contradicts itself"),
    "share above one": (lambda: _device(memory=1.5), "contradicts itself: measured.memory"),
    "interval turned": (lambda: _device(interval=[2.0, 1.0]), "ends before it starts"),
    "unknown key": (lambda: _device(speed=1.0), "unknown key"),
    "empty": (lambda: "", "cut short"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_profile_is_refused_in_one_line(case: str, folder: Path) -> None:
    make, words = DAMAGED[case]
    path = profile_path("h100-sxm")
    path.parent.mkdir(parents=True)
    path.write_text(make(), encoding="utf-8")
    for name in ("h100", "measured", path):
        with pytest.raises(CardError, match=words) as refused:
            plan("llama2-7b", name)
        assert "\n" not in str(refused.value)
        assert "profiles/h100-sxm.json" in str(refused.value)


def test_a_hand_written_entry_is_checked(folder: Path) -> None:
    path = folder / "mine.toml"
    text = entry.toml(entry.gpu_of(UNLISTED, "mine"))
    for old, new in (("[measured]\nmemory = 0", "[measured]\nmemory = nan#"), ("[measured]", "[measured]\nfast = 1")):
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(KvplanError, match=r"mine\.toml: measured"):
            plan("llama2-7b", path)


def test_a_changed_profile_is_read_again(kept: Path) -> None:
    import os

    first = find_gpu("h100").measured
    other = PROFILE.model_copy(
        update={"device": PROFILE.device and PROFILE.device.model_copy(update={"measured": None})}
    )
    profiles.save(other, kept)
    os.utime(kept, ns=(1, 1))
    assert first is not None
    with pytest.raises(CardError, match="has no products"):
        find_gpu("h100")


def test_plans_load_nothing_of_the_bench(kept: Path) -> None:
    code = (
        "import sys; from planner import plan; assert plan('llama2-7b', 'h100').decode.origin == 'measured'; "
        "print([m for m in sys.modules if m.startswith(('planner.bench', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
