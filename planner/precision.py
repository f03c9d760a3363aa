"""Number formats: bits per element with their block scales, and the rate at which a device computes with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    kv
        Whether the key-value cache can be kept in it.
    """

    id: str
    bits: Fraction
    compute: tuple[str, ...]
    kv: bool
    source: str
    aliases: tuple[str, ...] = ()

    def nbytes(self, elements: Int) -> Int:
        """Bytes [B] that hold this many elements, rounded up to whole bytes.

        >>> find_format("mxfp4").nbytes(32), find_format("bf16").nbytes(10)
        (17, 20)
        """
        numerator, denominator = self.bits.numerator, self.bits.denominator * 8
        if numerator % denominator == 0:
            return elements * (numerator // denominator)
        return -(-elements * numerator // denominator)

    @property
    def bytes_per_element(self) -> float:
        return float(self.bits / 8)


_HALF = ("bf16", "fp16", "fp32")
_IEEE = "IEEE 754-2019"
_OCP_MX = "OCP Microscaling Formats (MX) Specification v1.0, 2023, section 5"
_OCP_FP8 = "OCP 8-bit Floating Point Specification (OFP8) v1.0, 2023"

FORMATS: dict[str, Format] = {
    f.id: f
    for f in (
        Format("fp32", Fraction(32), ("fp32",), True, _IEEE, ("float32", "f32", "float")),
        Format("bf16", Fraction(16), _HALF, True, "Google bfloat16; Wang and Kanwar 2019", ("bfloat16",)),
        Format("fp16", Fraction(16), ("fp16", "bf16", "fp32"), True, _IEEE, ("float16", "f16", "half")),
        # One scale per tensor or channel: under 0.1 % of the bytes, and left out.
        Format("fp8", Fraction(8), ("fp8", *_HALF), True, _OCP_FP8, ("float8", "f8", "fp8_e4m3", "fp8_e5m2", "e4m3")),
        # One fp32 scale for each 128 x 128 block: DeepSeek-V3 Technical Report (arXiv:2412.19437), section 3.3.2.
        Format(
            "fp8-block128", Fraction(8) + Fraction(32, 128 * 128), ("fp8", *_HALF), False, "arXiv:2412.19437, section 3.3.2"
        ),
        Format("int8", Fraction(8), ("int8", *_HALF), False, "LLM.int8(), arXiv:2208.07339", ("i8", "w8a8")),
        # Weight-only: one fp16 scale and one 4-bit zero point for each group of 128; products run in 16 bit.
        Format(
            "int4", Fraction(4) + Fraction(16 + 4, 128), _HALF, False, "AWQ, arXiv:2306.00978; GPTQ, arXiv:2210.17323",
            ("awq", "gptq", "i4", "w4a16", "int4-g128"),
        ),
        # Weight-only, symmetric: one 16-bit scale for each group of 32 (compressed-tensors pack-quantized).
        Format("int4-g32", Fraction(4) + Fraction(16, 32), _HALF, False, "Kimi-K2.5 config.json, quantization_config"),
        # One 8-bit scale for 32 elements.
        Format("mxfp4", Fraction(4) + Fraction(8, 32), ("fp4", *_HALF), False, _OCP_MX, ()),
        # One fp8 scale for 16 elements.
        Format(
            "nvfp4", Fraction(4) + Fraction(8, 16), ("fp4", *_HALF), False, "NVIDIA, Introducing NVFP4, 2025-06-24", ("fp4",)
        ),
    )
}  # fmt: skip

_BY_NAME = {name: f for f in FORMATS.values() for name in (f.id, *f.aliases)}


def find_format(name: str, *, kv: bool = False) -> Format:
    """Look a format up by id or alias.

    Parameters
    ----------
    kv
        Ask for a format that the KV cache can be kept in.

    Raises
    ------
    UnknownNameError
        If there is no such format; the message names those there are.
    """
    found = _BY_NAME.get(name.lower()) if isinstance(name, str) else None
    known = kv_formats() if kv else tuple(FORMATS)
    if found is None or (kv and not found.kv):
        what = "KV-cache format" if kv else "weight format"
        raise unknown_name(what, str(name), known, f"use one of {', '.join(known)}")
    return found


def kv_formats() -> tuple[str, ...]:
    """Ids of the formats that a KV cache can be kept in."""
    return tuple(f.id for f in FORMATS.values() if f.kv)


def compute_rate(chain: Iterable[str], peaks: Mapping[str, float]) -> tuple[str, float] | None:
    """Fastest of the formats that a device has a peak for, with that peak [FLOP/s]; ``None`` if it has none.

    A device can always widen what is narrow, so a narrow format that it multiplies more slowly is no reason to use it.

    >>> compute_rate(("int8", "bf16"), {"bf16": 312e12, "int8": 100e12})
    ('bf16', 312000000000000.0)
    """
    return max(((name, peaks[name]) for name in chain if name in peaks), key=lambda pair: pair[1], default=None)
