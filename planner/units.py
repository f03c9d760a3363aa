"""Units with prefixes, at the edges only: what people type and what they read.

Inside kvplan everything is bytes, seconds, FLOP and tokens. GB is 10**9 bytes and GiB is 2**30 bytes, everywhere.
In token counts ``k`` and ``M`` are 2**10 and 2**20, because an "8k" context is 8,192 tokens.
"""

from __future__ import annotations

import operator
import re

from planner.errors import InputError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": KIB, "mi": MIB, "gi": GIB, "ti": TIB}
_TOKEN_SUFFIX = {"": 1, "k": KIB, "m": MIB, "ki": KIB, "mi": MIB}
_QUANTITY = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")

MAX_TOKENS = 2**40
MAX_BYTES = 2**60


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text) if len(text) <= 40 else None
    if match is None:
        raise InputError(f"cannot read {what} {text[:40]!r}; write it like {example}")
    digits = match[1].replace("_", "").replace(",", "")
    return (float(digits) if "." in digits else int(digits)), match[2].lower()


def parse_tokens(text: str | int, what: str = "token count", most: int = MAX_TOKENS) -> int:
    """Read a count of tokens or sequences.

    >>> parse_tokens("8k"), parse_tokens("131072"), parse_tokens("1M")
    (8192, 131072, 1048576)

    Raises
    ------
    InputError
        If the text is not a positive whole number, or beyond ``most``.
    """
    if isinstance(text, str):
        number, suffix = _split(text, what, "8192, 8k or 1M")
        if suffix not in _TOKEN_SUFFIX:
            raise InputError(f"unknown suffix {suffix!r} in {what} {text!r}; use k or M (2**10, 2**20)")
        number *= _TOKEN_SUFFIX[suffix]
        if number != int(number):
            raise InputError(f"{what} must be a whole number, not {text}")
    else:
        try:
            number = operator.index(text)
        except TypeError:
            number = None
        if number is None or isinstance(text, bool):
            raise InputError(f"{what} must be a whole number, not {text!r}")
    if not 1 <= number <= most:
        raise InputError(f"{what} must lie between 1 and {most:,}, not {str(text)[:40]}")
    return int(number)


def parse_bytes(text: str | int | float, what: str = "size") -> int:
    """Read a number of bytes.

    >>> parse_bytes("80GiB"), parse_bytes("80 GB"), parse_bytes("1.5MiB")
    (85899345920, 80000000000, 1572864)

    Raises
    ------
    InputError
        If the text is not a non-negative size in bytes, or beyond 2**60.
    """
    if isinstance(text, str):
        number, suffix = _split(text, what, "80GiB or 80GB")
        factor = {**_DECIMAL, **_BINARY}.get(suffix.removesuffix("b")) if suffix else None
        if factor is None:
            raise InputError(f"{what} {text!r} needs a unit: B, KB, MB, GB, TB or KiB, MiB, GiB, TiB")
        number *= factor
    else:
        number = text
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= MAX_BYTES:
        raise InputError(f"{what} must lie between 0 and 2**60 bytes, not {str(text)[:40]!r}")
    return int(number)


def parse_fraction(text: str | float, what: str = "fraction", zero: bool = False) -> float:
    """Read a share of the whole, ``0.9`` or ``90%``; more than 0, or with ``zero`` that too, and at most 1.

    >>> parse_fraction("92%"), parse_fraction(0.9)
    (0.92, 0.9)
    """
    try:
        if isinstance(text, (bool, bytes)):
            raise TypeError
        value = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"cannot read {what} {str(text)[:40]!r}; write it like 0.9 or 90%") from None
    if not 0 <= value <= 1 or (value == 0 and not zero):
        raise InputError(f"{what} must be {'from 0 to' if zero else 'more than 0 and at most'} 1, not {str(text)[:40]}")
    return value


def format_bytes(count: float) -> str:
    """Show bytes in binary prefixes, three significant digits or more.

    >>> format_bytes(327680), format_bytes(141107412992), format_bytes(512), format_bytes(-2**30)
    ('320 KiB', '131.4 GiB', '512 B', '-1.00 GiB')
    """
    size = abs(count)
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        # A value that would round up to 1024 of a unit is shown as 1 of the next.
        if size >= unit * (1 - 1 / 2048):
            value = count / unit
            if value == int(value) and abs(value) >= 10:
                return f"{int(value):,} {name}"
            return f"{value:,.{_decimals(value)}f} {name}"
    return f"{count:,.0f} B"


def format_gib(count: float) -> str:
    """Show bytes in GiB whatever their size, for columns that must compare.

    >>> format_gib(2**29)
    '0.50 GiB'
    """
    return f"{count / GIB:,.{max(1, _decimals(count / GIB))}f} GiB"


def format_seconds(seconds: float) -> str:
    """Show a duration with three significant digits.

    >>> format_seconds(0.010574), format_seconds(2.5), format_seconds(1.2e-5), format_seconds(0.0234)
    ('10.6 ms', '2.50 s', '12.0 µs', '23.4 ms')
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= unit * 0.9995:
            value = seconds / unit
            return f"{value:,.{_decimals(value)}f} {name}"
    return f"{seconds / 1e-9:.3g} ns"


def format_tokens(count: int) -> str:
    """Show a context length as people write it: whole multiples of 1,024 from 1k on get ``k`` or ``M``.

    >>> format_tokens(8192), format_tokens(1048576), format_tokens(1000), format_tokens(25390)
    ('8k', '1M', '1,000', '25,390')
    """
    for unit, name in ((MIB, "M"), (KIB, "k")):
        if count >= unit and count % unit == 0:
            return f"{count // unit:,}{name}"
    return f"{count:,}"


def format_count(count: float) -> str:
    """Show a large count with a decimal prefix (parameters, FLOP).

    >>> format_count(70553706496), format_count(1557611200), format_count(42)
    ('70.6 B', '1.56 B', '42')
    """
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if abs(count) >= unit:
            value = count / unit
            return f"{value:.{_decimals(value)}f} {name}"
    return f"{count:,.0f}"


def format_flop(count: float) -> str:
    """Show an amount of arithmetic with a decimal prefix.

    >>> format_flop(1.72e11), format_flop(6.54e12), format_flop(9.99e5), format_flop(12)
    ('172.0 GFLOP', '6.54 TFLOP', '999.0 kFLOP', '12 FLOP')
    """
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:,.{_decimals(count / unit)}f} {name}FLOP"
    return f"{count:,.0f} FLOP"


def _decimals(value: float) -> int:
    """Digits after the point for three significant ones, and one for hundreds."""
    size = abs(value)
    return 2 if size < 9.995 else 1
