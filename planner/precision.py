"""Number formats: bits per element with their scales, and the rate at which a device computes with them.

Two tables: formats of weights and formats of the key-value cache. A cache format says besides what each cached vector (one
head's key or value of one token) carries in scales of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from planner.errors import unknown_name

if TYPE_CHECKING:
    from planner.arrays import Int


@dataclass(frozen=True, slots=True)
class Format:
    """How one number is stored.

    Attributes
    ----------
    bits
        Bits of storage per element, block scales included [bit].
    compute
        Formats that matrix products with it can run in: its own, and wider ones that it is widened to on the way in. A
        device uses the one it is fastest in.
    vector_bytes
        Scales that each cached vector carries beside its elements [B].
    """

    id: str
    bits: Fraction
    compute: tuple[str, ...]
    source: str
    aliases: tuple[str, ...] = ()
    vector_bytes: int = 0

    def nbytes(self, elements: Int) -> Int:
        """Bytes [B] that hold this many elements, rounded up to whole bytes.

        >>> find_format("mxfp4").nbytes(32), find_format("bf16").nbytes(10)
        (17, 20)
        """
        numerator, denominator = self.bits.numerator, self.bits.denominator * 8
        if numerator % denominator == 0:
            return elements * (numerator // denominator)
        return -(-elements * numerator // denominator)

    def cached(self, vectors: int, width: int) -> int:
        """Bytes [B] of so many cached vectors of this width, each with its own scales.

        >>> find_kv("int8").k.cached(8, 128)
        1056
        """
        return vectors * (self.nbytes(width) + self.vector_bytes)

    @property
    def bytes_per_element(self) -> float:
        return float(self.bits / 8)


_HALF = ("bf16", "fp16", "fp32")
_IEEE = "IEEE 754-2019"
_OCP_MX = "OCP Microscaling Formats (MX) Specification v1.0, 2023, section 5"
_OCP_FP8 = "OCP 8-bit Floating Point Specification (OFP8) v1.0, 2023"
_NVFP4 = "NVIDIA, Introducing NVFP4, 2025-06-24"
_GROUPED = "GPTQ, arXiv:2210.17323, section 4; AWQ, arXiv:2306.00978, section 5"

_PLAIN = (
    Format("fp32", Fraction(32), ("fp32",), _IEEE, ("float32", "f32", "float")),
    Format("bf16", Fraction(16), _HALF, "Google bfloat16; Wang and Kanwar 2019", ("bfloat16",)),
    Format("fp16", Fraction(16), ("fp16", "bf16", "fp32"), _IEEE, ("float16", "f16", "half")),
    # One scale per tensor or channel: under 0.1 % of the bytes, and left out.
    Format("fp8", Fraction(8), ("fp8", *_HALF), _OCP_FP8, ("float8", "f8", "fp8_e4m3", "fp8_e5m2", "e4m3")),
)


def _ggml(name: str, block: int, block_bytes: int, *aliases: str, compute: tuple[str, ...] = _HALF) -> Format:
    """A type of GGUF files: ``block`` elements in ``block_bytes`` bytes."""
    source = f"ggml-common.h, struct block_{name}; gguf 0.19 (PyPI), GGML_QUANT_SIZES"
    return Format(name, Fraction(8 * block_bytes, block), compute, source, aliases)


GGML_TYPES: dict[str, Format] = {
    f.id: f
    for f in (
        _ggml("q4_0", 32, 18), _ggml("q4_1", 32, 20), _ggml("q5_0", 32, 22), _ggml("q5_1", 32, 24),
        _ggml("q8_0", 32, 34), _ggml("q8_1", 32, 40), _ggml("q2_k", 256, 84), _ggml("q3_k", 256, 110),
        _ggml("q4_k", 256, 144), _ggml("q5_k", 256, 176), _ggml("q6_k", 256, 210), _ggml("q8_k", 256, 292),
        _ggml("iq1_s", 256, 50), _ggml("iq1_m", 256, 56), _ggml("iq2_xxs", 256, 66), _ggml("iq2_xs", 256, 74),
        _ggml("iq2_s", 256, 82), _ggml("iq3_xxs", 256, 98), _ggml("iq3_s", 256, 110), _ggml("iq4_nl", 32, 18),
        _ggml("iq4_xs", 256, 136), _ggml("tq1_0", 256, 54), _ggml("tq2_0", 256, 66), _ggml("q1_0", 128, 18),
    )
}  # fmt: skip
"""Quantised types of GGUF files, by block size and bytes a block."""


def grouped_int(bits: int, group: int, zero_point: bool) -> Format:
    """Weight-only integers: a 16-bit scale for each group of weights, and a zero point as wide as a weight if there is one.

    A group of 0 is a whole channel, whose scale is under 0.1 % of the bytes and left out.

    >>> grouped_int(4, 128, True).bits, grouped_int(4, 32, False).id
    (Fraction(133, 32), 'int4-g32')
    """
    scales = Fraction(16 + bits * zero_point, group) if group else Fraction(0)
    return Format(f"int{bits}-g{group}{'-zp' * zero_point}", bits + scales, _HALF, _GROUPED)


FORMATS: dict[str, Format] = {
    f.id: f
    for f in (
        *_PLAIN,
        # One fp32 scale for each 128 x 128 block: DeepSeek-V3 Technical Report (arXiv:2412.19437), section 3.3.2.
        Format("fp8-block128", Fraction(8) + Fraction(32, 128 * 128), ("fp8", *_HALF), "arXiv:2412.19437, section 3.3.2"),
        # One 8-bit scale for 32 elements.
        Format("mxfp8", Fraction(8) + Fraction(8, 32), ("fp8", *_HALF), _OCP_MX),
        Format("int8", Fraction(8), ("int8", *_HALF), "LLM.int8(), arXiv:2208.07339", ("i8", "w8a8")),
        replace(grouped_int(4, 128, True), id="int4", aliases=("awq", "gptq", "i4", "w4a16", "int4-g128-zp")),
        grouped_int(4, 128, False),
        grouped_int(4, 64, False),
        grouped_int(4, 32, False),
        # bitsandbytes: a scale for each 64 weights, in fp32, or in 8 bit with an fp32 scale for each 256 of those.
        Format(
            "nf4", Fraction(4) + Fraction(32, 64), _HALF, "QLoRA, arXiv:2305.14314, section 3", ("bnb", "bnb-4bit")
        ),
        Format(
            "nf4-dq", Fraction(4) + Fraction(8, 64) + Fraction(32, 64 * 256), _HALF,
            "QLoRA, arXiv:2305.14314, section 3, double quantisation",
        ),
        # One 8-bit scale for 32 elements.
        Format("mxfp4", Fraction(4) + Fraction(8, 32), ("fp4", *_HALF), _OCP_MX, ()),
        # One fp8 scale for 16 elements.
        Format("nvfp4", Fraction(4) + Fraction(8, 16), ("fp4", *_HALF), _NVFP4, ("fp4",)),
        *GGML_TYPES.values(),
    )
}  # fmt: skip
"""Formats of weights."""

_SCALED = "vLLM's per-token-head cache: one fp32 scale for each head's key or value of a token"

_DS_MLA = "vLLM v0.31.0, vllm/v1/attention/backends/mla/flashmla_sparse.py and vllm/models/deepseek_v4/attention.py"

KV_FORMATS: dict[str, Format] = {
    f.id: f
    for f in (
        *_PLAIN,
        Format("int8", Fraction(8), ("int8", *_HALF), _SCALED, ("i8",), vector_bytes=4),
        Format("int4", Fraction(4), _HALF, _SCALED, ("i4",), vector_bytes=4),
        # An indexer's key of 128: 128 B and one fp32 scale.
        Format(
            "fp8-scaled", Fraction(8), ("fp8", *_HALF), "DeepSeek-V3.2, arXiv:2512.02556, section 2.1", vector_bytes=4
        ),
        # A latent of 576, of which 64 rotary elements stay in 16 bit: 512 B, 128 B and an fp32 scale for each 128.
        Format("fp8-latent", Fraction(8), ("fp8", *_HALF), _DS_MLA, ("fp8_ds_mla",), vector_bytes=80),
        # The same of 512: 448 B, 128 B and a scale of one byte for each 64, padded to 8.
        Format("fp8-latent-512", Fraction(8), ("fp8", *_HALF), _DS_MLA, vector_bytes=72),
        FORMATS["nvfp4"],
        *(GGML_TYPES[name] for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")),
    )
}
"""Formats that a key-value cache can be kept in."""


@dataclass(frozen=True, slots=True)
class KvFormats:
    """What keys are cached in, and what values are."""

    k: Format
    v: Format
    index: Format | None = None
    """What an indexer's keys are cached in, where it is not the format of keys."""

    @property
    def id(self) -> str:
        """``bf16``, or ``q8_0:q4_0`` where keys and values differ; `find_kv` reads it."""
        return self.k.id if self.k == self.v else f"{self.k.id}:{self.v.id}"

    @property
    def bits(self) -> Fraction:
        """Mean of the two [bit]."""
        return (self.k.bits + self.v.bits) / 2


def _by_name(table: dict[str, Format]) -> dict[str, Format]:
    return {name: f for f in table.values() for name in (f.id, *f.aliases)}


_WEIGHTS_BY_NAME, _KV_BY_NAME = _by_name(FORMATS), _by_name(KV_FORMATS)
_GROUPED_NAME = re.compile(r"int([2-8])-g([0-9]{1,6})(-zp)?")


def find_format(name: str) -> Format:
    """Look a weight format up by id or alias, such as ``bf16``, ``fp8``, ``int4-g64-zp`` or ``q6_k``.

    Raises
    ------
    UnknownNameError
        If there is no such format; the message names those there are.
    """
    wanted = name.strip().lower() if isinstance(name, str) else ""
    if grouped := _GROUPED_NAME.fullmatch(wanted):
        found = grouped_int(int(grouped[1]), int(grouped[2]), bool(grouped[3]))
        return _WEIGHTS_BY_NAME.get(wanted, found)
    return _found(name, wanted, _WEIGHTS_BY_NAME, "weight format", FORMATS)


def find_kv(name: str) -> KvFormats:
    """Look cache formats up: one for keys and values, or two with a colon between.

    Raises
    ------
    UnknownNameError
        If there is no such format; the message names those there are.

    >>> find_kv("q8_0:q4_0").id, find_kv("fp8").id
    ('q8_0:q4_0', 'fp8')
    """
    k, _, v = str(name).strip().lower().partition(":")
    both = [_found(name, part, _KV_BY_NAME, "KV-cache format", KV_FORMATS) for part in (k, v or k)]
    return KvFormats(*both)


def _found(name: str, wanted: str, table: Mapping[str, Format], what: str, known: Iterable[str]) -> Format:
    if wanted not in table:
        raise unknown_name(what, str(name), known, f"use one of {', '.join(known)}")
    return table[wanted]


def compute_rate(chain: Iterable[str], peaks: Mapping[str, float]) -> tuple[str, float] | None:
    """Fastest of the formats that a device has a peak for, with that peak [FLOP/s]; ``None`` if it has none.

    A device can always widen what is narrow, so a narrow format that it multiplies more slowly is no reason to use it.

    >>> compute_rate(("int8", "bf16"), {"bf16": 312e12, "int8": 100e12})
    ('bf16', 312000000000000.0)
    """
    return max(((name, peaks[name]) for name in chain if name in peaks), key=lambda pair: pair[1], default=None)
