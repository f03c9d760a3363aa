"""Model cards against measurements that were made outside of this package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from planner.catalog import load_card as load_model
from planner.catalog import model_ids, normalise
from planner.errors import UnknownNameError
from planner.model import ModelSpec
from planner.precision import find_format
from planner.tensors import Role

CARDS = model_ids()

# Measured with transformers 5.23: each architecture was instantiated on meta tensors and its unique parameters counted;
# a shrunken copy was run for real and the bytes that its cache grew by a token were scaled to bf16 and to all layers.
# (id, parameters, cache bytes a token while every window still fills, and after all windows are full). Differences:
# transformers copies the 8 KV heads of Falcon 40B and 180B to every query head before caching; engines keep the 8, and
# those bytes are given here.
MEASURED = [
    ("gpt2-xl", 1_557_611_200, 307_200, 307_200),
    ("opt-13b", 12_853_473_280, 819_200, 819_200),
    ("opt-175b", 174_604_468_224, 4_718_592, 4_718_592),
    ("llama1-7b", 6_738_415_616, 524_288, 524_288),
    ("llama1-30b", 32_528_943_616, 1_597_440, 1_597_440),
    ("llama1-65b", 65_285_660_672, 2_621_440, 2_621_440),
    ("llama2-7b", 6_738_415_616, 524_288, 524_288),
    ("llama2-13b", 13_015_864_320, 819_200, 819_200),
    ("llama2-70b", 68_976_648_192, 327_680, 327_680),
    ("llama3-8b", 8_030_261_248, 131_072, 131_072),
    ("llama3-70b", 70_553_706_496, 327_680, 327_680),
    ("llama3.1-8b", 8_030_261_248, 131_072, 131_072),
    ("llama3.1-405b", 405_853_388_800, 516_096, 516_096),
    ("llama3.2-1b", 1_235_814_400, 32_768, 32_768),
    ("llama3.3-70b", 70_553_706_496, 327_680, 327_680),
    ("llama4-scout", 108_641_793_536, 196_608, 49_152),
    ("llama4-maverick", 401_583_781_376, 196_608, 49_152),
    ("codellama-34b", 33_743_970_304, 196_608, 196_608),
    ("falcon-7b", 6_921_720_704, 8_192, 8_192),
    ("falcon-40b", 41_303_293_952, 122_880, 122_880),
    ("falcon-180b", 178_557_088_768, 163_840, 163_840),
    ("starcoder", 15_517_456_384, 20_480, 20_480),
    ("starcoder2-15b", 15_957_889_024, 81_920, 0),
    ("santacoder", 1_124_886_528, 12_288, 12_288),
    ("gemma-2b", 2_506_172_416, 18_432, 18_432),
    ("gemma-7b", 8_537_680_896, 458_752, 458_752),
    ("gemma2-9b", 9_241_705_984, 344_064, 172_032),
    ("gemma2-27b", 27_227_128_320, 376_832, 188_416),
    ("gemma3-27b", 27_432_406_640, 507_904, 81_920),
    ("mistral-7b-v0.1", 7_241_732_096, 131_072, 0),
    ("mistral-7b-v0.3", 7_248_023_552, 131_072, 131_072),
    ("mistral-nemo-12b", 12_247_782_400, 163_840, 163_840),
    ("mistral-small-3.1-24b", 24_011_361_280, 163_840, 163_840),
    ("mistral-large-2407", 122_610_069_504, 360_448, 360_448),
    ("mixtral-8x7b", 46_702_792_704, 131_072, 131_072),
    ("mixtral-8x22b", 140_620_634_112, 229_376, 229_376),
    ("qwen2.5-0.5b", 494_032_768, 12_288, 12_288),
    ("qwen2.5-7b", 7_615_616_512, 57_344, 57_344),
    ("qwen2.5-72b", 72_706_203_648, 327_680, 327_680),
    ("qwen2.5-vl-72b", 73_410_777_344, 327_680, 327_680),
    ("qwen1.5-moe-a2.7b", 14_315_784_192, 196_608, 196_608),
    ("qwen3-0.6b", 596_049_920, 114_688, 114_688),
    ("qwen3-32b", 32_762_123_264, 262_144, 262_144),
    ("qwen3-30b-a3b", 30_532_122_624, 98_304, 98_304),
    ("qwen3-235b-a22b", 235_093_634_560, 192_512, 192_512),
    ("phi-3-mini-4k", 3_821_079_552, 393_216, 0),
    ("phi-3.5-moe", 41_873_153_344, 131_072, 0),
    ("phi-4", 14_659_507_200, 204_800, 204_800),
    ("phi-4-mini", 3_836_021_760, 131_072, 0),
    ("deepseek-llm-67b", 67_425_001_472, 389_120, 389_120),
    ("deepseek-v2", 235_741_434_880, 69_120, 69_120),
    ("deepseek-v2-lite", 15_706_484_224, 31_104, 31_104),
    ("deepseek-v3", 671_026_404_352, 70_272, 70_272),
    ("deepseek-r1", 671_026_404_352, 70_272, 70_272),
    ("gpt-oss-20b", 20_914_757_184, 49_152, 24_576),
    ("gpt-oss-120b", 116_829_156_672, 73_728, 36_864),
    ("yi-6b", 6_061_035_520, 65_536, 65_536),
    ("yi-34b", 34_388_917_248, 245_760, 245_760),
    ("command-r", 34_980_831_232, 1_310_720, 1_310_720),
    ("command-r-plus", 103_810_674_688, 262_144, 262_144),
    ("command-a", 111_057_580_032, 262_144, 65_536),
    ("t5-11b", 11_307_321_344, 1_572_864, 1_572_864),
    ("bloom-176b", 176_247_271_424, 4_014_080, 4_014_080),
    ("mpt-30b", 29_957_200_896, 1_376_256, 1_376_256),
    ("gpt-j-6b", 6_050_882_784, 458_752, 458_752),
    ("gpt-neox-20b", 20_554_567_680, 1_081_344, 1_081_344),
    ("pythia-12b", 11_846_072_320, 737_280, 737_280),
    ("olmo2-32b", 32_234_279_936, 262_144, 262_144),
    ("olmo3-32b", 32_233_522_176, 262_144, 65_536),
    ("smollm2-135m", 134_515_008, 23_040, 23_040),
    ("granite-3.0-8b", 8_170_835_968, 163_840, 163_840),
    ("granite-3.0-3b-a800m", 3_298_788_864, 65_536, 65_536),
    ("glm-4.5-air", 106_852_245_504, 188_416, 188_416),
    ("glm-4.5", 352_797_814_784, 376_832, 376_832),
    ("glm-4-9b", 9_399_951_360, 40_960, 40_960),
    ("kimi-k2.5", 1_026_879_353_328, 70_272, 70_272),
    ("dbrx", 131_596_523_520, 163_840, 163_840),
    ("ernie-4.5-21b-a3b", 21_825_437_888, 57_344, 57_344),
    ("ernie-4.5-300b-a47b", 299_484_163_264, 221_184, 221_184),
    ("apertus-70b", 70_599_864_480, 327_680, 327_680),
    ("minimax-m2", 228_689_748_992, 253_952, 253_952),
    ("mimo-v2-flash", 308_778_768_832, 222_720, 23_040),
    ("exaone-4.5-33b", 33_813_987_328, 262_144, 65_536),
]

# Counted by arithmetic from the tables of the papers, or from safetensors headers, because the class differs from the
# checkpoint: transformers 5 ties the head of T5.1.1, which has one of its own; Gemma 3 pads its vocabulary to 262208.
COUNTED = [
    ("palm-8b", 8_632_012_800, 32_768),
    ("palm-62b", 62_495_662_080, 65_536),
    ("palm-540b", 540_356_474_880, 120_832),
    ("flan-t5-xl", 2_849_757_184, 196_608),
    ("flan-t5-xxl", 11_135_332_352, 393_216),
    ("t5-xxl", 11_135_332_352, 393_216),
    ("gemma3-4b", 4_300_079_472, 139_264),
    ("gemma3-12b", 12_187_325_040, 393_216),
    ("grok-1", 315_684_820_992, 262_144),
    ("deepseek-moe-16b", 16_375_728_128, 229_376),
]

# Cards whose source prints a rounded count, with half a unit of its last digit.
ROUNDED = {"gpt3-175b", "mt-nlg-530b", "opt-66b", "palm-8b", "palm-62b", "palm-540b"}

SPELLINGS = [
    ("palm", "palm-540b"),
    ("mistral-7b", "mistral-7b-v0.3"),
    ("Mixtral 8x7B", "mixtral-8x7b"),
    ("Llama 3.1:8B", "llama3.1-8b"),
    ("llama-3-70b-instruct", "llama3-70b"),
    ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3-70b"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama3.3-70b"),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "qwen2.5-32b"),
    ("gpt-2-xl", "gpt2-xl"),
    ("GPT-3", "gpt3-175b"),
    ("google/t5-v1_1-xxl", "t5-xxl"),
]


def growth(model: ModelSpec, *, windows: bool) -> int:
    """Cache bytes that one more token adds in bf16 over all decoder self-attention layers."""
    return sum(
        2 * row.cache_elements(1) * group.count
        for group in model.groups
        for row in group.attention
        if not row.attends_source and (windows or row.window is None)
    )


def released_bytes(model: ModelSpec) -> int:
    """Bytes of the checkpoint in the formats that it was released in."""
    formats = model.weight_formats()
    return sum(formats[tensor.role].nbytes(tensor.parameters) * times for tensor, times in model.all_tensors())


def test_there_are_many() -> None:
    assert len(CARDS) >= 90


@pytest.mark.parametrize("card", CARDS)
def test_card_loads_and_derives_what_it_publishes(card: str) -> None:
    model = load_model(card)
    assert model.id == card
    assert abs(model.total_parameters - model.parameters) <= model.parameters_within
    assert bool(model.parameters_within) == (card in ROUNDED)
    assert model.active_parameters <= model.total_parameters
    assert all(source.title and source.locator and source.date for source in model.source)


@pytest.mark.parametrize("card", CARDS)
def test_aliases_lead_to_their_card(card: str) -> None:
    for alias in load_model(card).aliases:
        assert load_model(alias).id == card


def test_no_two_names_are_spelled_alike() -> None:
    owners: dict[str, str] = {}
    for card in CARDS:
        for name in (card, *load_model(card).aliases):
            assert owners.setdefault(normalise(name), name) is name, f"{name} ({card}) and {owners[normalise(name)]}"


@pytest.mark.parametrize(("spelling", "card"), SPELLINGS)
def test_spellings(spelling: str, card: str) -> None:
    assert load_model(spelling).id == card


@pytest.mark.parametrize(("card", "parameters", "growing", "saturated"), MEASURED)
def test_measured(card: str, parameters: int, growing: int, saturated: int) -> None:
    model = load_model(card)
    assert model.total_parameters == parameters
    assert growth(model, windows=True) == growing
    assert growth(model, windows=False) == saturated


@pytest.mark.parametrize(("card", "parameters", "growing"), COUNTED)
def test_counted(card: str, parameters: int, growing: int) -> None:
    model = load_model(card)
    assert model.total_parameters == parameters
    assert growth(model, windows=True) == growing


# Measured as above, with the keys and values of 512 source tokens.
@pytest.mark.parametrize(("card", "expected"), [("t5-11b", 805_306_368), ("flan-t5-xxl", 201_326_592)])
def test_cross_attention_cache(card: str, expected: int) -> None:
    model = load_model(card)
    rows = [(row, group.count) for group in model.groups for row in group.attention if row.attends_source]
    per_token = sum(2 * row.cache_elements(1) * layers for row, layers in rows)
    assert per_token * model.source_tokens == expected


# Only the experts' matrices are MXFP4: 4.25 bits a weight, block scales included. The rest is bf16.
@pytest.mark.parametrize(("card", "expected"), [("gpt-oss-20b", 13_761_264_768), ("gpt-oss-120b", 65_248_815_744)])
def test_gpt_oss_released_bytes(card: str, expected: int) -> None:
    assert released_bytes(load_model(card)) == expected


def test_released_formats_are_as_released() -> None:
    for card in ("deepseek-v3", "deepseek-r1", "kimi-k2"):
        formats = load_model(card).weight_formats()
        assert formats[Role.EXPERT] is formats[Role.ATTENTION] is find_format("fp8-block128")
        assert formats[Role.EMBEDDING] is formats[Role.HEAD] is formats[Role.ROUTER] is find_format("bf16")
    assert released_bytes(load_model("llama2-7b")) == 2 * 6_738_415_616


def test_unpublished_models_are_refused_with_the_nearest_cards() -> None:
    for name in ("gemini-1.5-pro", "GPT-4o", "claude-3-opus", "grok-4", "gpt-3.5-turbo"):
        with pytest.raises(UnknownNameError, match=r"unpublished.*Nearest: ") as refusal:
            load_model(name)
        for nearest in str(refusal.value).partition("Nearest: ")[2].split(", "):
            assert nearest in CARDS


def test_unpublished_rows_are_whole() -> None:
    folder = Path(__file__).parent.parent / "model_cards"
    rows = tomllib.loads((folder / "_unpublished.toml").read_text(encoding="utf-8"))["model"]
    for row in rows:
        assert set(row) == {"prefixes", "message", "nearest", "source"}
        assert set(row["nearest"]) <= set(CARDS)
        assert "Nearest" not in row["message"]
        assert row["message"].endswith(".")
