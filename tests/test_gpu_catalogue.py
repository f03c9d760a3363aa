"""The GPU catalogue: every file loads and names its sources, no name means two devices, known facts are as known."""

from __future__ import annotations

import pytest

from planner import catalog
from planner.gpu import GpuSpec

ARCHITECTURES = {
    "Volta", "Turing", "Ampere", "Ada Lovelace", "Hopper", "Blackwell",
    "CDNA", "CDNA2", "CDNA3", "CDNA4", "RDNA3", "RDNA3.5", "RDNA4",
    "Xe-HPC", "Xe2", "Gaudi", "TPU", "NeuronCore", "Apple", "Cloud AI 100", "Da Vinci",
}  # fmt: skip

# id: nominal GB, usable GiB, GB/s, one dense tensor rate [TFLOP/s], link GB/s in one direction, linked devices
FACTS: dict[str, tuple[float, float | None, float, tuple[str, float], float | None, int]] = {
    "h100-sxm": (80, 79.11, 3350, ("bf16", 989.5), 450, 8),
    "h100-pcie": (80, 79.11, 2000, ("bf16", 756.5), 300, 2),
    "h100-nvl": (94, 93.09, 3900, ("fp8", 1670.5), 300, 2),
    "h200-sxm": (141, 139.8, 4800, ("fp8", 1979), 450, 8),
    "h20-96gb": (96, 95.0, 4000, ("bf16", 148), 450, 8),
    "a100-sxm-40gb": (40, 39.39, 1555, ("bf16", 312), 300, 8),
    "a100-sxm-80gb": (80, 79.25, 2039, ("int8", 624), 300, 8),
    "a10g": (24, 22.06, 600, ("bf16", 70), 32, 8),
    "b200": (180, 178.36, 7700, ("fp4", 9000), 900, 8),
    "gb200": (186, 184.31, 8000, ("fp8", 5000), 900, 72),
    "b300": (270, 267.69, 7700, ("fp4", 14000), 900, 8),
    "l4": (24, 22.03, 300, ("fp8", 242.5), 32, 8),
    "l40s": (48, 44.43, 864, ("fp8", 733), 32, 8),
    "t4": (16, 14.56, 320, ("fp16", 65), 16, 8),
    "v100-sxm2-32gb": (32, 31.73, 900, ("fp16", 125), 150, 8),
    "rtx-3090": (24, 23.57, 936, ("bf16", 71), 56.25, 2),
    "rtx-4090": (24, 23.52, 1008, ("bf16", 165.2), 32, 4),
    "rtx-5090": (32, 31.35, 1792, ("bf16", 209.5), 64, 4),
    "mi300x": (192, 191.98, 5300, ("bf16", 1307.4), 448, 8),
    "mi355x": (288, 287.98, 8000, ("fp8", 5033.2), 537.6, 8),
    "gaudi3": (128, None, 3700, ("bf16", 1678), 525, 8),
    "tpu-v5e": (16, 15.75, 819, ("bf16", 197), 200, 256),
    "tpu-v5p": (95, 95.74, 2765, ("bf16", 459), 600, 8960),
    "trainium2": (96, 96, 2900, ("bf16", 667), 512, 16),
    "apple-m2-ultra": (192, 144, 800, ("fp32", 27.2), None, 1),
}

SHORT_NAMES = {
    "h100": "h100-sxm",
    "H100 SXM": "h100-sxm",
    "h200": "h200-sxm",
    "h20": "h20-96gb",
    "h800": "h800-sxm",
    "gh200": "gh200-96gb",
    "a100": "a100-sxm-80gb",
    "a100-40gb": "a100-sxm-40gb",
    "A100 80GB": "a100-sxm-80gb",
    "v100": "v100-sxm2-32gb",
    "a6000": "rtx-a6000",
    "RTX4090": "rtx-4090",
    "4090": "rtx-4090",
    "rtx-pro-6000": "rtx-pro-6000-workstation",
    "gb10": "dgx-spark-gb10",
    "DGX Spark": "dgx-spark-gb10",
    "MI300X": "mi300x",
    "gaudi-3": "gaudi3",
    "tpu_v5e": "tpu-v5e",
    "trillium": "tpu-v6e",
    "trn2": "trainium2",
    "inf2": "inferentia2",
    "m2-ultra": "apple-m2-ultra",
}


@pytest.fixture(scope="module")
def gpus() -> dict[str, GpuSpec]:
    return {name: catalog.load_gpu(name) for name in catalog.gpu_ids()}


def test_there_are_enough_devices_of_every_kind(gpus: dict[str, GpuSpec]) -> None:
    assert len(gpus) >= 80
    assert {g.architecture for g in gpus.values()} == ARCHITECTURES
    assert {"NVIDIA", "AMD", "Intel", "Google", "AWS", "Apple"} <= {g.vendor for g in gpus.values()}


def test_every_device_names_its_sources(gpus: dict[str, GpuSpec]) -> None:
    for name, gpu in gpus.items():
        assert gpu.source, name
        # What the driver reports never stands in a datasheet: it needs a second source.
        assert gpu.memory.usable_gib is None or len(gpu.source) >= 2 or gpu.vendor == "AWS", name


def test_no_name_means_two_devices(gpus: dict[str, GpuSpec]) -> None:
    owner: dict[str, str] = {}
    for name, gpu in gpus.items():
        for spelling in (name, *gpu.aliases):
            key = catalog.normalise(spelling)
            assert key not in owner, f"{spelling} of {name} already means {owner[key]}"
            owner[key] = name


def test_every_alias_resolves_to_its_file(gpus: dict[str, GpuSpec]) -> None:
    for name, gpu in gpus.items():
        assert {catalog.load_gpu(alias).id for alias in (name, name.upper(), *gpu.aliases)} == {name}


@pytest.mark.parametrize(("short", "name"), SHORT_NAMES.items())
def test_short_names(short: str, name: str) -> None:
    assert catalog.load_gpu(short).id == name


def test_h100_is_the_sxm_board_with_80_gb() -> None:
    h100 = catalog.load_gpu("h100")
    assert "SXM" in h100.name
    assert (h100.memory.nominal_gb, h100.architecture, h100.tdp_w) == (80, "Hopper", 700)
    assert h100.peaks["bf16"] == 989.5e12
    assert h100.note.startswith("h100 means this")


@pytest.mark.parametrize("name", FACTS)
def test_known_facts(name: str, gpus: dict[str, GpuSpec]) -> None:
    gpu = gpus[name]
    nominal, usable, bandwidth, (kind, peak), link, devices = FACTS[name]
    assert gpu.memory.nominal_gb == nominal
    assert gpu.usable_known == (usable is not None)
    assert usable is None or gpu.usable_bytes / 2**30 == pytest.approx(usable, abs=0.006)
    assert gpu.memory.bandwidth_gb_per_s == bandwidth
    assert gpu.peak_tflops[kind] == peak  # type: ignore[index]
    assert gpu.link.gb_per_s == link
    assert gpu.link.devices == devices


def test_values_are_of_the_right_size(gpus: dict[str, GpuSpec]) -> None:
    for name, gpu in gpus.items():
        assert 8 <= gpu.memory.nominal_gb <= 512, name
        # What is reported lies below the marketed figure read as GiB, and rarely far below; macOS lends two thirds.
        if gpu.memory.usable_gib:
            assert 0.66 <= gpu.memory.usable_gib / gpu.memory.nominal_gb <= 1.01, name
        assert 50 <= gpu.memory.bandwidth_gb_per_s < 10_000, name
        assert gpu.peak_tflops.get("bf16", 0) < 10_000, name
        assert gpu.link.gb_per_s is None or gpu.link.gb_per_s <= 1300, name
        assert gpu.year >= 2017, name


def test_peaks_are_dense(gpus: dict[str, GpuSpec]) -> None:
    """Halving the width doubles the rate of a tensor core; a rate with sparsity among dense ones breaks that."""
    pairs = 0
    for name, gpu in gpus.items():
        peak = gpu.peak_tflops
        if gpu.vendor == "NVIDIA" and "fp8" in peak and "bf16" in peak:
            assert peak["fp8"] == pytest.approx(2 * peak["bf16"], rel=0.02), name
            pairs += 1
        if gpu.vendor == "NVIDIA" and gpu.architecture == "Ampere" and "int8" in peak:
            assert peak["int8"] <= 4.1 * peak["bf16"], name
        if "bf16" in peak and "fp16" in peak and gpu.id != "mi100":
            assert peak["bf16"] == peak["fp16"], name
    assert pairs >= 20


def test_peaks_grow_as_formats_narrow(gpus: dict[str, GpuSpec]) -> None:
    for name, gpu in gpus.items():
        ladder = [gpu.peak_tflops[kind] for kind in ("fp32", "bf16", "fp8", "fp4") if kind in gpu.peak_tflops]
        assert ladder == sorted(ladder), name


def test_notes_say_what_an_ambiguous_short_name_means(gpus: dict[str, GpuSpec]) -> None:
    for short in ("h100", "h200", "h20", "gh200", "a100", "v100", "rtx-pro-6000", "rtx-3060", "mi300", "trainium"):
        assert f"{short} means" in catalog.load_gpu(short).note, short
