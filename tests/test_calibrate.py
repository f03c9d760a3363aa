"""Calibration: known parameters come back, shipped ones keep to physics, and bad tables are told in one line."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cached import Cached
from planner.calibrate import build, fit, model, shapes, table
from planner.calibrate.model import Kernel, KernelFile, KernelRow, Link, Machine, Work
from planner.catalog import load_gpu
from planner.errors import CardError, InputError, KvplanError, UnknownNameError
from planner.precision import find_format
from planner.row import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Vector = npt.NDArray[np.float64]

H100 = Machine(3.35e12, 989.5e12, 132, 50e6)
SOURCE = Source(title="made up", locator="here", date="2026-11-24")
FAMILIES = ("Hopper", "Ampere", "Ada Lovelace", "Blackwell", "default")


@lru_cache(maxsize=1)
def files() -> dict[str, KernelFile]:
    """Every file of kernels there is, by device or architecture."""
    own = {device: model.load_kernels(device) for device in model.shipped()}
    return own | {name: model.generic_kernels(name) for name in FAMILIES}


def machine(file: KernelFile, row: KernelRow) -> Machine:
    """The device of a file, or one of its architecture's."""
    gpu = load_gpu(file.device or "h100-sxm")
    return Machine(gpu.bandwidth_bytes_per_s, gpu.peaks.get(row.runs_in, 1e15), file.sms, file.cache_mb * 1e6)


@lru_cache(maxsize=1)
def rows() -> list[tuple[KernelRow, Machine]]:
    return [(row, machine(file, row)) for file in files().values() for row in file.kernel]


SHAPE = {
    "m": 64.0, "n": 4096.0, "k": 4096.0, "batch": 8.0, "tokens": 256.0, "context": 2048.0, "window": 2.0**50,
    "heads": 32.0, "kv_heads": 8.0, "head_dim": 128.0, "value_dim": 128.0, "latent": 512.0, "rope": 64.0,
    "experts": 128.0, "top_k": 8.0, "hidden": 4096.0, "width": 1536.0, "gated": 1.0, "ranks": 1.0, "skew": 0.0,
    "elements": 2.0**19, "vectors": 8192.0, "moved_bytes": 1e7,
}  # fmt: skip
GROWS = {
    "gemm": ("m",), "moe": ("tokens",), "decode-attention": ("batch", "context"), "mla-decode": ("batch", "context"),
    "prefill-attention": ("batch", "tokens"), "mla-prefill": ("batch", "tokens"), "state-decode": ("batch",),
    "state-prefill": ("batch", "tokens"), "conv-decode": ("moved_bytes",), "conv-prefill": ("moved_bytes",),
    "element-wise": ("moved_bytes",),
}  # fmt: skip


def work_of(row: KernelRow, **changed: Any) -> Work:
    form_bytes = find_format(row.format).bytes_per_element
    return shapes.work(row.kind, SHAPE | changed, form_bytes, row.runs_in, row.tile, row.whole)


def test_every_file_loads_with_its_source() -> None:
    assert set(model.shipped()) == {"h100-sxm", "h200-sxm", "a100-sxm-80gb", "l40s", "b200", "gb200"}
    for name, file in files().items():
        assert all((file.source, file.kernel, file.link)), name
        assert file.origin == ("published" if file.device else "generic")
        kinds = {k.kind for k in file.kernel}
        assert kinds >= {"gemm", "decode-attention", "prefill-attention", "mla-decode", "mla-prefill", "moe"}, name
        assert file.device or "element-wise" in kinds, name
        assert file.device == "" or load_gpu(file.device).architecture == file.architecture


def test_shipped_errors_are_within_their_bounds() -> None:
    """Held-out errors that may only go down: means over a device's fits of one engine; L40S is the worst."""
    most = {"gemm": 0.18, "decode-attention": 0.14, "prefill-attention": 0.24, "moe": 0.21}
    for device in model.shipped():
        for kind, bound in most.items():
            found = [k for k in files()[device].kernel if k.kind == kind and k.engine != "any"]
            error = [k.long_error if kind == "decode-attention" and k.long_error else k.mean_error for k in found]
            held = [k.held_out for k in found]
            assert np.average(error, weights=held) <= bound, (device, kind)


def test_an_unknown_device_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean h100-sxm"):
        model.load_kernels("h100-sx")
    bad = tmp_path / "x.toml"
    for text in ("device =", 'device = "a"\nspeed = 3', "device = 3"):
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(CardError) as raised:
            model.read_kernels(bad)
        assert "\n" not in str(raised.value)
    assert model.generic_kernels("an architecture of tomorrow").architecture == "default"


def test_find_prefers_the_engine_then_all_engines() -> None:
    file = files()["h100-sxm"]
    own = file.find("gemm", "bf16", engine="vllm")
    assert own is not None
    assert own.engine == "vllm"
    other = file.find("gemm", "bf16", engine="llama.cpp")
    assert other is not None
    assert other.engine == "any"
    block = file.find("gemm", "fp8-block128", engine="vllm")
    assert block is not None
    assert block.engine == "any"
    assert file.find("gemm", "q4_k") is None
    link = file.find_link("all-reduce", 6, engine="vllm")
    assert link is not None
    assert (link.degree, link.engine) == (8, "vllm")
    gather = file.find_link("all-gather", 8, engine="vllm")
    assert gather is not None
    assert gather.engine == "nccl"


@given(data=st.data())
def test_time_grows_with_size(data: st.DataObject) -> None:
    row, device = data.draw(st.sampled_from(rows()))
    column = data.draw(st.sampled_from(GROWS[row.kind]))
    low = data.draw(st.integers(1, 40_000))
    high = low + data.draw(st.integers(1, 40_000))
    sizes = np.array([float(low), float(low + 1), float(high)])
    times = np.asarray(row.time(work_of(row, **{column: sizes}), device))
    assert np.all(np.diff(times) >= -1e-12 * times[1:])


@given(data=st.data())
def test_every_size_grows_time_step_by_step(data: st.DataObject) -> None:
    row, device = data.draw(st.sampled_from(rows()))
    for column in GROWS[row.kind]:
        times = np.asarray(row.time(work_of(row, **{column: np.arange(1.0, 1500.0)}), device))
        assert np.all(np.diff(times) >= -1e-12 * times[1:]), (row.kind, column)


@given(data=st.data(), faster=st.floats(1.0, 8.0))
def test_more_bandwidth_or_compute_is_never_slower(data: st.DataObject, faster: float) -> None:
    row, device = data.draw(st.sampled_from(rows()))
    work = work_of(row, batch=data.draw(st.floats(1, 512)), m=data.draw(st.floats(1, 9999)))
    time = float(row.time(work, device))
    assert float(row.time(work, replace(device, bandwidth=device.bandwidth * faster))) <= time * (1 + 1e-12)
    assert float(row.time(work, replace(device, peak=device.peak * faster))) <= time * (1 + 1e-12)


@given(data=st.data())
def test_no_kernel_beats_the_peaks(data: st.DataObject) -> None:
    row, device = data.draw(st.sampled_from(rows()))
    size = float(data.draw(st.integers(1, 8192)))
    work = work_of(row, **dict.fromkeys(GROWS[row.kind], size))
    least = np.maximum(work.nbytes / device.bandwidth, work.flops / device.peak)
    assert float(row.time(work, device)) >= float(least) * (1 - 1e-9)
    # What repetition finds in the cache is the most that a timing may have been better by.
    assert float(row.time(work, device, warm=True)) >= float(least) * (1 - row.cached) * (1 - 1e-9)


@given(data=st.data(), low=st.integers(1, 2**30), more=st.integers(0, 2**30))
def test_collectives_grow_with_the_message_and_shrink_with_the_link(data: st.DataObject, low: int, more: int) -> None:
    link = data.draw(st.sampled_from([k for file in files().values() for k in file.link]))
    times = np.asarray(link.time(link.kind, np.array([low, low + more], dtype=float), link.degree, 450e9))
    assert times[0] <= times[1] * (1 + 1e-12)
    assert float(link.time(link.kind, float(low), link.degree, 900e9)) <= times[0] * (1 + 1e-12)
    moved = model.sent_bytes(link.kind, float(low), link.degree)
    assert times[0] >= min(float(moved), (link.degree - 1) * low) / 450e9 * (1 - 1e-9)


def test_scalars_and_arrays_agree() -> None:
    row = files()["h100-sxm"].find("gemm", "fp8", engine="vllm")
    assert row is not None
    sizes = np.array([1.0, 17.0, 300.0, 5000.0])
    together = np.asarray(row.time(work_of(row, m=sizes), H100))
    one_by_one = [float(row.time(work_of(row, m=float(m)), H100)) for m in sizes]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-12)


# --- the work of a call


@given(m=st.integers(1, 9000), n=st.integers(1, 9000), k=st.integers(1, 9000))
def test_tiles_only_add_work(m: int, n: int, k: int) -> None:
    plain, tiled = shapes.gemm(m, n, k, 2.0), shapes.gemm(m, n, k, 2.0, tile=(128, 128, 16))
    assert plain.flops == plain.issued == 2 * m * n * k
    assert tiled.flops == plain.flops
    assert tiled.issued >= plain.flops


@given(tokens=st.integers(1, 3000), kept=st.integers(1, 3000), before=st.integers(0, 3000))
def test_pairs_agree_with_the_work_of_a_step(tokens: int, kept: int, before: int) -> None:
    assert float(shapes.pairs(tokens, kept)) == Cached(1, 1, kept=kept).pairs(tokens)
    slow = sum(min(before + i, kept) for i in range(1, tokens + 1))
    assert float(shapes.pairs(tokens, kept, before)) == slow


@given(chunk=st.integers(1, 500), tokens=st.integers(2, 2000))
def test_chunks_do_the_work_of_the_whole(chunk: int, tokens: int) -> None:
    whole = shapes.prefill_attention(1, tokens, 32, 8, 128, 2.0**50, 2.0)
    starts = range(0, tokens, chunk)
    parts = [
        shapes.prefill_attention(1, min(chunk, tokens - start), 32, 8, 128, 2.0**50, 2.0, start) for start in starts
    ]
    assert sum(float(p.flops) for p in parts) == pytest.approx(float(whole.flops))


def test_decode_attention_is_the_last_token_of_prefill() -> None:
    decode = shapes.decode_attention(3, 1000, 32, 8, 128, 2.0)
    prefill = shapes.prefill_attention(3, 1, 32, 8, 128, 2.0**50, 2.0, 999)
    assert decode.flops == prefill.flops == 3 * 4 * 32 * 128 * 1000


def test_experts_are_a_product_for_each_copy() -> None:
    work = shapes.moe(64, 128, 8, 4096, 1536, 1.0)
    assert work.flops == 64 * 8 * 2 * 3 * 4096 * 1536
    assert float(shapes.routing(4, 128, 8).touched) == 32
    even, skewed = shapes.routing(4096, 128, 8, 8), shapes.routing(4096, 128, 8, 8, 1.2)
    assert float(skewed.copies) > float(even.copies) == 4096
    assert float(skewed.touched) <= 16


# --- the fit


def synthetic(kernel: Kernel, noise: float, count: int = 3000) -> tuple[Any, Vector]:
    """Shapes of products, and noisy times by a known kernel."""
    random = np.random.default_rng(1)
    m, n, k = (2.0 ** random.uniform(low, high, count) for low, high in ((0, 14), (7, 15), (7, 14)))
    m, n, k = np.ceil(m), np.ceil(n), np.ceil(k)

    def work(tile: shapes.Tile, whole: bool) -> Work:
        return shapes.gemm(m, n, k, 2.0, tile=tile)

    exact = np.asarray(kernel.time(work(kernel.tile, False), H100))
    return work, exact * np.exp(noise * random.standard_normal(count))


def test_known_parameters_come_back() -> None:
    known = Kernel(
        launch_s=3e-6, memory=0.85, compute=0.72, p=3.0, wave=0.5, serial_s=2e-10, tile_m=128, tile_n=128, tile_min=64
    )  # fmt: skip
    work, seconds = synthetic(known, 0.03)
    found = fit.fit_kernel(work, H100, seconds, "gemm")
    assert found.tile == known.tile
    assert found.launch_s == pytest.approx(known.launch_s, rel=0.1)
    assert found.memory == pytest.approx(known.memory, rel=0.05)
    assert found.compute == pytest.approx(known.compute, rel=0.03)
    assert found.wave == pytest.approx(known.wave, abs=0.1)
    off = fit.errors(np.asarray(found.time(work(found.tile, False), H100)), seconds)
    assert off.median < 0.03
    assert found == fit.fit_kernel(work, H100, seconds, "gemm")


def test_outliers_do_not_pull_the_fit() -> None:
    known = Kernel(launch_s=3e-6, memory=0.8, compute=0.7, p=3.0, tile_m=128, tile_n=128, tile_min=16)
    work, seconds = synthetic(known, 0.02, 1500)
    seconds[::20] *= 6.0
    found = fit.fit_kernel(work, H100, seconds, "gemm")
    assert found.memory == pytest.approx(0.8, rel=0.06)
    assert found.compute == pytest.approx(0.7, rel=0.05)


def test_a_known_link_comes_back() -> None:
    known = Link(latency_s=12e-6, share=0.75, first_s=4e-6, first=0.4)
    message = 2.0 ** np.arange(8, 30, 0.5)
    seconds = np.asarray(known.time("all-reduce", message, 8, 450e9))
    sent = np.asarray(model.sent_bytes("all-reduce", message, 8))
    found = fit.fit_link(sent, 7 * message, 450e9, seconds)
    predicted = np.asarray(found.time("all-reduce", message, 8, 450e9))
    assert fit.errors(predicted, seconds).mean < 0.02
    assert found.share == pytest.approx(0.75, rel=0.05)


def test_too_few_or_impossible_times_are_refused() -> None:
    with pytest.raises(InputError, match="too few"):
        fit.fit_kernel(lambda tile, whole: shapes.element_wise(1.0), H100, np.ones(3), "element-wise")
    with pytest.raises(InputError, match="not a number"):
        fit.fit_kernel(lambda tile, whole: shapes.element_wise(1.0), H100, np.full(20, np.nan), "element-wise")


# --- tables


def timings() -> pd.DataFrame:
    random = np.random.default_rng(2)
    m, n = 2.0 ** random.integers(0, 12, 400), 1024.0 * random.integers(1, 16, 400)
    kernel = Kernel(launch_s=3e-6, memory=0.8, compute=0.7, p=3.0, tile_m=128, tile_n=128, tile_min=64)
    seconds = kernel.time(shapes.gemm(m, n, 4096.0, 2.0, tile=kernel.tile), H100)
    fixed = {"device": "h100-sxm", "class": "gemm", "format": "bf16"}
    return pd.DataFrame({**fixed, "m": m, "n": n, "k": 4096, "time_s": seconds})


def calibrated(path: Path) -> KernelFile:
    """A file of kernels from a table of timings of one H100."""
    groups = table.groups(table.read_table(path), path.name)
    return build.calibrate(groups, load_gpu("h100"), 132, 50.0, date="2026-11-24", source=[SOURCE])


def test_a_table_becomes_a_file_of_kernels(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    timings().to_csv(path, index=False)
    made = calibrated(path)
    kernel = made.kernel[0]
    assert len(made.kernel) == 1
    assert (kernel.kind, kernel.runs_in, kernel.engine, kernel.points, kernel.held_out) == (
        "gemm", "bf16", "any", 200, 200,
    )  # fmt: skip
    assert kernel.mean_error < 0.02
    target = tmp_path / "mine.toml"
    target.write_text(build.toml(made), encoding="utf-8")
    again = model.read_kernels(target)
    assert again.kernel[0].memory == pytest.approx(kernel.memory, rel=1e-3)
    assert again.source == made.source


def test_windows_and_collectives_have_rows_of_their_own() -> None:
    message = 2.0 ** np.arange(10, 29, 0.25)
    seconds = 1e-5 + 1.75 * message / 300e9
    fixed = {"device": "h100-sxm", "class": "all-reduce", "format": "bf16", "degree": 8}
    frame = table.check(pd.DataFrame({**fixed, "message_bytes": message, "time_s": seconds}))
    made = build.calibrate(table.groups(frame), load_gpu("h100"), 132, 50.0, date="x", source=[SOURCE])
    assert (made.link[0].degree, made.link[0].kind) == (8, "all-reduce")
    assert made.link[0].mean_error < 0.05
    shape = {"batch": 1, "context": [100, 200], "heads": 32, "kv_heads": 8, "head_dim": 128, "window": [0, 128]}
    fixed = {"device": "h100-sxm", "class": "decode-attention", "format": "bf16"}
    found = table.groups(table.check(pd.DataFrame({**fixed, **shape, "time_s": 1e-5})))
    assert [(g.windowed, float(g.shapes["window"][0])) for g in found] == [(False, 2.0**50), (True, 128.0)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: f.drop(columns="k"), "lacks k, which class gemm needs"),
        (lambda f: f.drop(columns="time_s"), "lacks time_s"),
        (lambda f: f.rename(columns={"time_s": "times"}), "unknown column 'times'; did you mean time_s"),
        (lambda f: f.assign(latency=1), "unknown column 'latency'"),
        (lambda f: f.assign(**{"class": "gem"}), "did you mean gemm"),
        (lambda f: f.assign(time_s=-1.0), "400 times that are not positive"),
        (lambda f: f.assign(time_s="fast"), "not a number"),
        (lambda f: f.assign(time_s=f.time_s * 1e12), "give seconds"),
        (
            lambda f: f.assign(time_s=f.time_s / 1e3),
            "times faster than h100-sxm can multiply in bf16; give time_s in seconds",
        ),
        (lambda f: f.assign(m=1e308), "m of class gemm is 1e+308 in some row"),
        (lambda f: f.assign(**{"class": "xx"}), "use one of gemm"),
        (lambda f: f.assign(m=0), "m of class gemm is missing or not positive"),
        (lambda f: f.assign(format="bf17"), "unknown"),
        (lambda f: f.assign(format="nvfp4", runs_in="fp4"), "no known peak in fp4"),
        (lambda f: f.head(5), "no class and format has"),
        (lambda f: f.head(0), "no rows"),
    ],
)
def test_bad_tables_are_told_in_one_line(change: Any, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    change(timings()).to_csv(path, index=False)
    with pytest.raises(KvplanError) as raised:
        calibrated(path)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["absent.csv", "empty.csv", "text.parquet"])
def test_files_that_are_no_tables_are_told_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name != "absent.csv":
        path.write_text("", encoding="utf-8")
    with pytest.raises(InputError) as raised:
        table.read_table(path)
    assert "\n" not in str(raised.value)
