"""The bench, for real on the CPU at small sizes: every class is timed, fitted and predicted; work agrees with plans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from planner.bench import (  # noqa: E402
    attention_operators,
    entry,
    fit,
    memory_check,
    predict,
    report,
    run,
    selection,
    summary,
)
from planner.bench import device as devices  # noqa: E402
from planner.bench import profile as profiles  # noqa: E402
from planner.bench.attend import FUSED, decoder, latent, prefiller  # noqa: E402
from planner.bench.attention_operators import DecodeAttention, LatentDecode, PrefillAttention  # noqa: E402
from planner.bench.device import Device, find_device  # noqa: E402
from planner.bench.experts import Experts  # noqa: E402
from planner.bench.layers import BLOCK, Cache, Model, Shape  # noqa: E402
from planner.bench.naming import spec_of  # noqa: E402
from planner.bench.operator import Gemm, HostCopy, Operator  # noqa: E402
from planner.bench.profile import Measured, Profile  # noqa: E402
from planner.bench.rig import Rig  # noqa: E402
from planner.errors import InputError, KvplanError  # noqa: E402
from planner.precision import find_kv  # noqa: E402
from planner.stage import Sharding, stages_of  # noqa: E402
from planner.work import Precision, decode_work  # noqa: E402

MIB = 2**20


@pytest.fixture(scope="module")
def cpu() -> Device:
    return find_device("cpu", threads=1)


@pytest.fixture(scope="module")
def rig(cpu: Device) -> Rig:
    return Rig(cpu, "fp32", 4 * MIB, {"decode": "grouped products", "prefill": "flash, native GQA"})


@pytest.fixture(scope="module")
def profile() -> Profile:
    """A whole run at the smallest sizes."""
    told: list[tuple[int, int, str]] = []
    found = run.run(run.plan("cpu", "tiny", threads=1), lambda *args: told.append(args))
    assert told[-1][0] == told[-1][1]
    return found


# -- the run -----------------------------------------------------------------------------------------------------------


def test_a_run_measures_every_class(profile: Profile) -> None:
    kinds = {m.kind for m in profile.measured}
    assert kinds >= {"memory-read", "memory-copy", "gemm", "decode-attention", "mla-decode", "prefill-attention", "moe",
                     "element-wise", "launch", "whole"}  # fmt: skip
    assert {"decoder layer", "decode loop", "decode MHA", "decode GQA-8", "decode MQA"} <= {
        m.operator for m in profile.measured
    }
    assert not profile.skipped
    assert all(len(m.samples_s) >= 5 and m.interval_s[0] <= m.median_s <= m.interval_s[1] for m in profile.measured)


def test_a_run_fits_what_it_measured(profile: Profile) -> None:
    fitted = {(k.kind, k.kernel) for k in profile.kernels}
    assert fitted >= {("gemm", ""), ("decode-attention", ""), ("moe", ""), ("element-wise", "rms-norm")}
    assert profile.usage
    assert profile.usage.held_out == 2
    ours = fit.predictor(profile)
    for m in profile.measured:
        expected = predict.total_s(m.parts, ours)
        if expected is not None:
            assert 0.05 * m.median_s < expected < 20 * m.median_s, m.operator


def test_peaks_bound_what_was_measured(profile: Profile) -> None:
    for m in profile.measured:
        if m.kind == "gemm":
            assert predict.ideal_s(m.parts, profile.peaks) <= 1.001 * m.median_s


def test_fitting_again_changes_nothing(profile: Profile) -> None:
    assert fit.refit(profile) == profile


def test_caches_take_the_predicted_bytes(profile: Profile) -> None:
    assert len(profile.memory) == len(memory_check.VARIANTS) * len(memory_check.FORMATS) * 2
    for check in profile.memory:
        assert check.predicted_bytes == check.tensor_bytes == check.allocator_bytes, check


def test_the_largest_batch_is_the_predicted_one(profile: Profile) -> None:
    assert [b.variant for b in profile.batches] == ["MHA", "GQA-8", "MQA"]
    for b in profile.batches:
        assert abs(b.predicted - b.measured) <= 1
        assert b.weight_bytes == b.predicted_weight_bytes
    assert profile.batches[0].measured < profile.batches[1].measured < profile.batches[2].measured


def test_a_budget_below_the_weights_holds_nothing(cpu: Device) -> None:
    check = memory_check.check_batch(cpu, "MQA", 64 * MIB, 512)
    assert check.predicted == check.measured == 0


def test_reports_hold_every_operator(profile: Profile, tmp_path: Path) -> None:
    for ending in ("html", "md", "csv", "json"):
        path = tmp_path / f"report.{ending}"
        report.write_report(profile, str(path))
        text = path.read_text(encoding="utf-8")
        assert all(m.operator in text for m in profile.measured)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "vegaEmbed(" in page
    assert "<script src" not in page
    assert "<link" not in page
    with pytest.raises(InputError, match="end it in"):
        report.write_report(profile, "report.pdf")


def test_words_say_what_was_found(profile: Profile) -> None:
    words = " ".join(summary.sentences(profile))
    assert "Weights stream at" in words
    assert "30 of 30 caches take exactly the bytes predicted" in words
    assert "decode loop: median error" in words
    assert {(r.more, r.fewer) for r in summary.ratios(profile)} == {("MHA", "GQA-8"), ("GQA-8", "MQA")}
    assert summary.error_rows(profile)[0].what == "all operators"


def test_repeated_runs_say_how_far_apart_they_are() -> None:
    twice = run.repeated(run.plan("cpu", "tiny", "gemm", threads=1, seconds=0.3), 2, memory=False)
    assert twice.repeat_difference is not None
    assert "runs are within" in twice.remarks[-1]


def test_validation_predicts_from_the_profile_alone(profile: Profile) -> None:
    checked = run.validate(profile, seconds=0.5)
    assert checked.kernels == profile.kernels
    assert all(m.held_out for m in checked.measured)
    assert "decode loop" in {m.operator for m in checked.measured}
    other = profile.model_copy(update={"facts": profile.facts.model_copy(update={"name": "another CPU"})})
    with pytest.raises(InputError, match="another CPU"):
        run.validate(other)


def test_out_of_memory_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Gemm.prepare

    def failing(self: Gemm, rig: Rig) -> Any:
        if self.m == 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        if self.m == 4:
            raise MemoryError("too large for the data")
        return original(self, rig)

    plan = run.plan("cpu", "tiny", "gemm", threads=1, seconds=0.2)
    monkeypatch.setattr(Gemm, "prepare", failing)
    found = run.run(plan, memory=False)
    assert found.skipped
    assert all("out of memory" in words for words in found.skipped)
    assert {p.shape["m"] for m in found.measured for p in m.parts} == {1.0, 2.0, 32.0, 64.0}


def test_only_some_classes() -> None:
    todo = run.plan("cpu", "quick", "memory,attention", threads=1).todo
    assert {type(op).__name__ for op in todo} == {"Read", "Copy", "DecodeAttention"}
    with pytest.raises(KvplanError, match="did you mean gemm"):
        run.plan("cpu", "tiny", "gem")
    with pytest.raises(InputError, match="'link' several processes under torchrun"):
        run.plan("cpu", "tiny", "host,link")


def test_when_nothing_runs_the_first_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Gemm, rig: Rig) -> Any:
        raise RuntimeError("no such\nkernel")

    plan = run.plan("cpu", "tiny", "gemm", threads=1, seconds=0.2)
    monkeypatch.setattr(Gemm, "prepare", broken)
    with pytest.raises(InputError, match=r"nothing could be measured, beginning with GEMV .*: no such kernel"):
        run.run(plan, memory=False)


def test_a_budget_beyond_what_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = run.plan("cpu", "tiny", "gemm", threads=1, seconds=0.2)
    with pytest.raises(InputError, match="that are free; give less"):
        run.run(plan, budget=2**60)


def test_memory_that_cannot_be_checked_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(memory_check, "check_caches", full)
    found = run.run(run.plan("cpu", "tiny", "memory", threads=1, seconds=0.2))
    assert found.skipped == ("checks of memory: out of memory",)
    assert found.device is None


@pytest.mark.parametrize("name", ["quick", "default", "full"])
@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_held_out_shapes_are_not_in_the_fit(name: str, kind: str) -> None:
    sizes = selection.sizes_of(name, kind)
    ops = selection.operators(sizes, "bf16", ("bf16", "fp8", "int8"), kind, selection.CLASSES, degree=2)
    assert len(set(ops)) == len(ops)
    plain = [op for op in ops if len(op.parts) == 1]
    fitted, held = ({op.part.model_dump_json() for op in plain if op.held_out is which} for which in (False, True))
    assert not fitted & held
    assert any(op.held_out for op in ops if isinstance(op, DecodeAttention))


# -- operators ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_attention_work_is_the_plans(kv_heads: int) -> None:
    shape = Shape(64, 8, kv_heads, 16, 128, 1, 100)
    spec = shape.spec()
    precision = Precision(spec.weight_formats("bf16"), find_kv("bf16"))
    plan = {op.name: op for op in decode_work(spec, stages_of(spec, 1)[0], precision, Sharding(), 3, 50)}
    part = DecodeAttention(form="bf16", batch=3, context=50, kv_heads=kv_heads, heads=8, head_dim=16).part
    done = part.work()
    ends = 2 * 3 * 8 * 16 * 2.0  # queries and outputs, which the plan takes to stay on chip
    new = 3 * 2 * kv_heads * 16 * 2.0  # the new token's key and value, which a plan's step writes
    assert float(done.flops) == float(plan["attention"].flops)
    assert float(done.nbytes) - ends == float(plan["attention"].cache_bytes) - new


def test_products_of_a_step_are_the_plans() -> None:
    shape = Shape(64, 8, 2, 16, 128, 3, 100)
    spec = shape.spec()
    precision = Precision(spec.weight_formats("bf16"), find_kv("bf16"))
    ops = decode_work(spec, stages_of(spec, 1)[0], precision, Sharding(), 5, 50)
    planned = sum(float(op.flops) for op in ops if op.name != "attention")
    products = [p for p in shape.parts("bf16", 5, 50) if p.kind == "gemm"]
    assert sum(p.times * float(p.work().flops) for p in products) == planned


def test_the_model_has_the_planned_weights(rig: Rig) -> None:
    shape = Shape(64, 8, 2, 16, 128, 3, 100)
    assert Model(shape, rig, "fp32").nbytes == 4 * shape.spec().total_parameters


def expanded(q: Any, k: Any, v: Any) -> Any:
    """Attention as the textbook has it, with keys and values repeated."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v


@pytest.mark.parametrize("way", ["grouped products", "flash, groups as rows", "flash, native GQA"])
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_every_way_of_attention_is_attention(way: str, kv_heads: int, cpu: Device) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 8, 1, 16), torch.randn(3, kv_heads, 20, 16), torch.randn(3, kv_heads, 20, 16)
    answer = decoder(way, cpu)(q, k, v, 17)
    torch.testing.assert_close(answer, expanded(q, k[:, :, :17], v[:, :, :17]), rtol=1e-4, atol=1e-5)


def test_prefill_is_causal(cpu: Device) -> None:
    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    answer = prefiller(FUSED[1], cpu)(q, k, v)
    torch.testing.assert_close(
        answer[:, :, 3:4], expanded(q[:, :, 3:4], k[:, :, :4], v[:, :, :4]), rtol=1e-4, atol=1e-5
    )


def test_latent_attention_reads_values_from_the_cache() -> None:
    q, cache = torch.randn(2, 4, 12), torch.randn(2, 9, 12)
    want = torch.softmax(q @ cache.transpose(1, 2) * 12**-0.5, -1) @ cache[..., :8]
    torch.testing.assert_close(latent(q, cache, 8, torch), want)


def test_experts_route_every_token_evenly(rig: Rig) -> None:
    op = Experts(form="fp32", tokens=6, experts=4, top_k=2, hidden=8, width=16)
    at, owners, sizes = op._routes()
    assert sorted(at) == sorted(list(range(6)) * 2)
    assert owners == [0, 1, 2, 3]
    assert sizes == [3, 3, 3, 3]
    assert op.prepare(rig).call(0).shape == (6, 8)  # type: ignore[attr-defined]


def test_decoding_with_a_growing_cache_is_decoding_all_at_once(rig: Rig) -> None:
    """Steps across the edge of a block give what attention over the whole sequence gives."""
    shape = Shape(32, 4, 2, 8, 48, 2, 50)
    model = Model(shape, rig, "fp32")
    attend = decoder("grouped products", rig.device)
    cache = Cache(shape, rig, 2, "fp32", BLOCK - 2)
    before = [[t.clone() for t in layer] for layer in cache.layers]
    tokens = torch.tensor([3, 4])
    with torch.inference_mode():
        for _ in range(4):
            cache.grow()
            tokens = model.step(tokens, cache, attend)
    assert cache.length == BLOCK + 2
    assert cache.nbytes == 2 * 2 * 2 * 2 * 2 * BLOCK * 8 * 4
    for old, new in zip(before, cache.layers, strict=True):
        assert torch.equal(old[0][:, :, : BLOCK - 2], new[0][:, :, : BLOCK - 2])
        assert bool(new[0][:, :, BLOCK + 1].abs().sum() > 0)
    first = Cache(shape, rig, 2, "fp32", BLOCK - 2)
    first.grow()
    again = model.step(torch.tensor([3, 4]), first, attend)
    assert again.shape == (2,)


def test_operands_exceed_the_cache_and_are_random(rig: Rig) -> None:
    data = rig.operands("fp32", (64, 1024))
    assert sum(t.nbytes for t in data) <= rig.arena_bytes
    assert not torch.equal(data[0], data[1])
    assert float(data[0].std()) == pytest.approx(1.0, rel=0.1)
    assert bool(torch.isfinite(data[0]).all())
    assert {t.data_ptr() % 64 for t in data} == {data[0].data_ptr() % 64}
    with pytest.raises(MemoryError):
        rig.operands("fp32", (4 * MIB,))


OTHERS = (
    LatentDecode(form="fp32", batch=2, context=16, heads=4, rank=16, rope=4),
    PrefillAttention(form="fp32", batch=1, tokens=16, kv_heads=2, heads=4, head_dim=8),
)


@pytest.mark.parametrize("op", OTHERS)
def test_other_attention_runs(op: Operator, rig: Rig) -> None:
    ready = op.prepare(rig)
    assert bool(torch.isfinite(ready.call(0)).all())


# -- devices -----------------------------------------------------------------------------------------------------------


def test_the_cpu_is_described(cpu: Device) -> None:
    facts = cpu.facts
    assert facts.kind == "cpu"
    assert facts.units == 1
    assert facts.torch == torch.__version__
    assert facts.total_bytes > 2**28
    assert cpu.free_bytes() > 0
    assert cpu.allocated() is None


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps:1"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown device"):
        find_device(name)


def test_some_device_is_found() -> None:
    assert find_device().kind in ("cpu", "cuda", "mps")


def test_processes_take_the_gpus_that_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (devices._index("", 8), devices._index("3", 8)) == (0, 3)
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (devices._index("", 8), devices._index("", 1)) == (5, 0)
    with pytest.raises(InputError, match="leave the number out"):
        devices._index("1", 8)


@pytest.mark.parametrize(
    ("fastest", "growing"), [("cuDNN, native GQA", "flash, native GQA"), ("flash, native GQA",) * 2]
)
def test_growing_caches_are_not_read_by_a_kernel_that_is_planned_by_length(
    fastest: str, growing: str, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [fastest, "flash, native GQA", "as torch chooses"]
    monkeypatch.setattr(attention_operators, "_ways_for", lambda _: order)
    monkeypatch.setattr(attention_operators, "_fastest", lambda _, ways, *others: ways[0])
    monkeypatch.setattr(rig, "ways", {})
    attention_operators.choose_ways(rig, 64)
    assert (rig.ways["decode"], rig.ways["growing"]) == (fastest, growing)


def test_what_no_graph_could_hold_is_said() -> None:
    ops = [Gemm(form="bf16", m=1, n=2, k=3), HostCopy(form="bf16", nbytes=4, to_device=True)]
    found = [
        Measured(operator=op.name, shape=op.shape, parts=op.parts, samples_s=(1.0,) * 5, mode="eager", backend="")
        for op in ops
    ]
    assert run.uncaptured(ops, found, "cuda") == ["GEMV bf16"]
    assert run.uncaptured(ops, found, "cpu") == []
    assert run.uncaptured(ops, [m.model_copy(update={"mode": "graph"}) for m in found], "cuda") == []


def test_eight_bit_products_are_of_operands_that_have_them() -> None:
    assert Gemm(form="fp8", m=64, n=256, k=256).part.work().side_bytes == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(InputError, match="finds no cuda device here; it has cpu"):
        find_device("cuda")
    with pytest.raises(InputError, match="finds no rocm device here; it has cpu"):
        find_device("rocm")
    with pytest.raises(InputError, match="between 1 and 4096"):
        find_device("cpu", threads=0)


@pytest.mark.parametrize(
    ("name", "gigabytes", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", 85.0, "h100-sxm"), ("NVIDIA H100 PCIe", 85.0, "h100-pcie"),
        ("NVIDIA H100 NVL", 100.0, "h100-nvl"), ("NVIDIA A100-SXM4-80GB", 85.0, "a100-sxm-80gb"),
        ("NVIDIA A100-PCIE-40GB", 42.3, "a100-pcie-40gb"), ("NVIDIA H200", 150.0, "h200-sxm"), ("NVIDIA L4", 23.6, "l4"),
        ("NVIDIA L40S", 47.6, "l40s"), ("NVIDIA GeForce RTX 4090", 25.3, "rtx-4090"), ("Tesla T4", 15.8, "t4"),
        ("NVIDIA GeForce RTX 4080 SUPER", 17.0, "rtx-4080-super"), ("AMD Instinct MI300X", 206.0, "mi300x"),
        ("Apple M2 Max", 34.0, "apple-m2-max"), ("AMD EPYC", 24.0, None), ("NVIDIA GeForce RTX 4090 Laptop GPU", 17.0, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10.0, None),
    ],
)  # fmt: skip
def test_drivers_names_are_found_in_the_catalogue(name: str, gigabytes: float, wanted: str | None) -> None:
    found = spec_of(name, int(gigabytes * 1e9))
    assert (found.id if found else None) == wanted


def test_a_busy_machine_leaves_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (5.0, 5.0, 5.0))
    assert devices.unclaimed(2) == 1
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.0, 0.0))
    assert devices.unclaimed(2) == 2


def test_without_torch_one_line_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from planner.bench import run, report, summary, fit, profile\n"
        "from planner.errors import InputError\n"
        "try:\n    run.plan()\nexcept InputError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "measuring needs torch; install kvplan[bench]: pip install 'kvplan[bench]'"


def test_the_rooms_import_no_torch() -> None:
    code = "import sys; from planner.bench import run, report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- a device that nobody listed ---------------------------------------------------------------------------------------


def test_a_measured_device_becomes_a_catalogue_entry(profile: Profile, tmp_path: Path) -> None:
    from planner import load_gpu, plan

    path = tmp_path / "my-cpu.toml"
    path.write_text(entry.toml(entry.gpu_of(profile, "my-cpu")), encoding="utf-8")
    spec = load_gpu(path)
    assert spec.bandwidth_bytes_per_s == pytest.approx(profile.peaks.bandwidth, rel=1e-4)
    assert spec.peaks["bf16"] == pytest.approx(profile.peaks.flops["bf16"], rel=1e-4)
    assert spec.usable_bytes == profile.facts.total_bytes
    assert plan("gpt2-xl", path, context=512, engine="none").memory.fits
    with pytest.raises(InputError, match="cannot be a GPU's id"):
        entry.gpu_of(profile, "my cpu/")


def test_what_was_measured_is_found_again(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVPLAN_DATA", str(tmp_path))
    with pytest.raises(InputError, match="run 'kvplan bench' first"):
        profiles.latest()
    assert profiles.measured_for("h100-sxm") is None
    listed = profile.model_copy(update={"facts": profile.facts.model_copy(update={"catalogue": "h100-sxm"})})
    profiles.save(listed, profiles.default_path(listed.facts))
    assert profiles.measured_for("h100-sxm") == profiles.latest() == listed
    assert run.known_kernels(listed.facts) == listed.kernels
    assert run.known_kernels(listed.facts.model_copy(update={"units": 2})) == ()
    profiles.default_path(listed.facts).write_text("{", encoding="utf-8")
    assert run.known_kernels(listed.facts) == ()


def test_measured_kernels_serve_in_place_of_shipped_ones(profile: Profile) -> None:
    file = entry.kernel_file(profile)
    row = file.find("gemm", "bf16", engine="vllm")
    assert row is not None
    assert row in profile.kernels
    assert file.origin == "measured"
