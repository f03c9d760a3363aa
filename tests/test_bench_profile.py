"""Profiles: they survive the disk, and whatever is wrong with one is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.bench import fit, predict
from planner.bench.part import Part
from planner.bench.profile import Measured, Profile, default_path, load, merge, save
from planner.calibrate.model import Kernel
from planner.errors import CardError, InputError, OutputError
from planner.measured import checksum, user_folder
from tests.profiles import FACTS, PEAKS, gemm, made, measured, seconds, true_kernel

PROFILE = made()


def test_the_law_is_found_again() -> None:
    (row,) = PROFILE.kernels
    assert (row.points, row.held_out) == (15, 3)
    assert row.mean_error < 0.03
    assert row.memory == pytest.approx(0.86, abs=0.06)
    assert row.compute == pytest.approx(0.71, abs=0.06)


def test_shares_of_plans_follow() -> None:
    found = PROFILE.usage
    assert found is not None
    assert found.memory == pytest.approx(0.76, abs=0.12)
    assert PROFILE.device is not None
    assert PROFILE.device.measured == found
    assert found.date == "2026-11-24"
    assert found.compute == pytest.approx(0.70, abs=0.05)


def test_a_profile_survives_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "some" / "folder" / "profile.json"
    save(PROFILE, path)
    assert load(path) == PROFILE
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


def test_nothing_is_left_of_a_failed_save(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="choose another file"):
        save(PROFILE, blocked / "profile.json")


def _changed(change: Callable[[dict[str, Any]], object], sealed: bool) -> str:
    contents = PROFILE.model_dump(mode="json")
    change(contents)
    told = checksum(contents if sealed else PROFILE.model_dump(mode="json"))
    return json.dumps({"checksum": told, **contents})


def _whole() -> str:
    return _changed(lambda c: None, True)


HOSTILE: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: "", "cut short"),
    "cut short": (lambda: _whole()[: len(_whole()) // 2], "cut short"),
    "no profile": (lambda: '{"some": "thing"}', "is not a profile"),
    "a list": (lambda: "[]", "is not a profile"),
    "deep": (lambda: "[" * 100_000, "is not a profile|cut short"),
    "newer": (lambda: _changed(lambda c: c.update(version=2), True), "is of version 2.*install a newer kvplan"),
    "edited": (lambda: _changed(lambda c: c["peaks"].update(bandwidth=9e12), False), "was edited or damaged"),
    "no checksum": (lambda: json.dumps(PROFILE.model_dump(mode="json")), "was edited or damaged"),
    "NaN": (lambda: _whole().replace('"bandwidth": 3350000000000.0', '"bandwidth": NaN'), "holds NaN"),
    "infinite": (lambda: _whole().replace('"bandwidth": 3350000000000.0', '"bandwidth": Infinity'), "holds Infinity"),
    "large number": (
        lambda: _whole().replace('"bandwidth": 3350000000000.0', '"bandwidth": 1e999'), "edited|no number|contradicts"
    ),
    "negative": (lambda: _changed(lambda c: c["measured"][0].update(samples_s=[-1.0]), True), "contradicts itself"),
    "no samples": (lambda: _changed(lambda c: c["measured"][0].update(samples_s=[]), True), "contradicts itself"),
    "unknown key": (lambda: _changed(lambda c: c.update(extra=1), True), "contradicts itself.*unknown key"),
    "text for version": (lambda: _changed(lambda c: c.update(version="1"), True), "contradicts itself"),
    "missing": (lambda: _changed(lambda c: c.pop("facts"), True), "contradicts itself"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_profile_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, words = HOSTILE[case]
    path = tmp_path / "profile.json"
    path.write_text(make(), encoding="utf-8")
    with pytest.raises(CardError, match=words) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_what_is_no_text_and_no_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "profile.json"
    binary.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(CardError, match="is not a profile"):
        load(binary)
    with pytest.raises(CardError, match="cannot read"):
        load(tmp_path / "none.json")
    with pytest.raises(CardError, match="cannot read"):
        load(tmp_path)


@given(st.integers(0, 3000), st.integers(0, 255))
def test_any_changed_byte_is_noticed(at: int, byte: int) -> None:
    import tempfile

    raw = bytearray(_whole().encode())
    if raw[at % len(raw)] == byte:
        return
    raw[at % len(raw)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        path.write_bytes(bytes(raw))
        assert _one_line_or(path, PROFILE)


def _one_line_or(path: Path, wanted: Profile) -> bool:
    """Whether a file is refused in one line, or is still the profile: a space may stand for another space."""
    try:
        return load(path) == wanted
    except CardError as error:
        return "\n" not in str(error)


def test_profiles_of_one_machine_merge() -> None:
    both = merge([PROFILE, PROFILE])
    assert len(both.measured) == len(PROFILE.measured)
    assert len(both.measured[0].samples_s) == 2 * len(PROFILE.measured[0].samples_s)
    assert fit.refit(both).kernels == PROFILE.kernels


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "NVIDIA H200"}, "different machines"), ({"units": 114}, "different machines"),
        ({"total_bytes": 150 * 10**9}, "different machines"), ({"torch": "2.9.0"}, "torch 2.13.0 and 2.9.0"),
    ],
)  # fmt: skip
def test_profiles_of_different_machines_do_not(change: dict[str, Any], words: str) -> None:
    other = PROFILE.model_copy(update={"facts": FACTS.model_copy(update=change)})
    with pytest.raises(InputError, match=words):
        merge([PROFILE, other])
    with pytest.raises(InputError, match="no profile"):
        merge([])


def test_where_profiles_lie() -> None:
    assert user_folder({"KVPLAN_DATA": "here", "XDG_DATA_HOME": "/data"}, "linux") == Path("here")
    assert user_folder({"XDG_DATA_HOME": "relative"}, "linux") == Path.home() / ".local" / "share" / "kvplan"
    assert user_folder({"LOCALAPPDATA": "/app"}, "win32") == Path("/app/kvplan")
    assert user_folder({}, "darwin") == Path.home() / "Library" / "Application Support" / "kvplan"
    assert default_path(FACTS).name == "h100-sxm.json"
    other = FACTS.model_copy(update={"catalogue": "", "name": "AMD EPYC 9/?"})
    assert default_path(other).name == "amd-epyc-9.json"
    assert default_path(other.model_copy(update={"kind": "cpu"})).name == "amd-epyc-9-cpu.json"


def test_what_was_known_before() -> None:
    before = predict.earlier(FACTS, PEAKS)
    assert before.origin.startswith(("generic", "published"))
    again = predict.earlier(FACTS, PEAKS, PROFILE.kernels)
    assert again.origin == "measured earlier"
    part = gemm(16, 8192)
    assert again.call_s(part) == pytest.approx(seconds(part, true_kernel()), rel=0.05)
    names = ("tokens", "experts", "top_k", "hidden", "width", "gated", "ranks")
    experts = Part(kind="moe", form="bf16", runs_in="bf16", shape={**dict.fromkeys(names, 8.0), "skew": 0.0})
    assert again.call_s(experts)  # by shares, as no experts were measured


@given(st.integers(1, 4096), st.integers(64, 8192), st.integers(64, 8192))
def test_nothing_is_faster_than_ideal(m: int, n: int, k: int) -> None:
    part = gemm(m, n, k)
    ideal = predict.ideal_s([part], PEAKS)
    assert ideal > 0
    expected = predict.total_s([part], fit.predictor(PROFILE))
    assert expected is not None
    assert expected >= ideal * (1 - 1e-9)


def test_few_timings_make_few_parameters() -> None:
    some = [measured(gemm(m)) for m in (2, 64, 512, 4096)]
    (row,) = fit.fit_kernels(some, PEAKS, cpu=False)
    assert row.held_out == 0
    assert len({name for name in ("p", "ramp", "wave", "item_s") if getattr(row, name) != getattr(Kernel(), name)}) == 0
    assert fit.fit_kernels(some[:3], PEAKS, cpu=False) == ()


def test_a_unlisted_device_has_the_peaks_that_were_seen() -> None:
    stream = Part(kind="memory-read", form="bf16", runs_in="bf16", shape={"moved_bytes": 1e9})
    small = stream.model_copy(update={"shape": {"moved_bytes": 1e6}})
    rows = [
        Measured(operator="memory read", shape="x", parts=(stream,), samples_s=(0.1,)),
        Measured(operator="memory read", shape="y", parts=(small,), samples_s=(1e-6,)),  # from the cache
        measured(gemm(4096)),
    ]
    peaks = fit.best_peaks(rows, FACTS)
    assert peaks.bandwidth == pytest.approx(1e10)
    assert peaks.flops["bf16"] == pytest.approx(2 * 4096**3 / rows[2].median_s)
    assert np.isfinite(peaks.bandwidth)
