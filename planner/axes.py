"""Axes of a sweep as people type them: lists and ranges."""

from __future__ import annotations

import math
import re

from planner.errors import InputError
from planner.units import KIB, MIB, parse_tokens

MAX_POINTS = 2**20
_SUFFIX = re.compile(r"[0-9][0-9_,.]*\s*([kKmM]?)[iI]?")


def parse_names(text: str) -> list[str]:
    """A comma-separated list of names.

    >>> parse_names("llama3-70b, qwen3-32b")
    ['llama3-70b', 'qwen3-32b']
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise InputError(f"{text!r} names nothing; give a comma-separated list")
    return names


def parse_axis(text: str, what: str) -> list[int]:
    """Numbers as a list (``1,8,64``), a range (``1:512``), a range with a step (``1k:128k:4k``) or doublings (``1:512:x2``).

    Both ends belong to a range. Without a step it counts in the unit that its start is written in: ``1:512`` is every whole
    number, ``1k:128k`` every 1,024.

    >>> parse_axis("1:4,16", "batch"), parse_axis("1k:4k", "context"), parse_axis("1:64:x4", "batch")
    ([1, 2, 3, 4, 16], [1024, 2048, 3072, 4096], [1, 4, 16, 64])

    Raises
    ------
    InputError
        If the text is no such list, or names more than 2**20 numbers.
    """
    found: set[int] = set()
    for part in parse_names(text):
        found.update(_range(part, what))
        if len(found) > MAX_POINTS:
            raise InputError(f"{what} {text!r} names more than {MAX_POINTS:,} values; give a larger step")
    return sorted(found)


def _range(part: str, what: str) -> range | list[int]:
    ends = part.split(":")
    if len(ends) == 1:
        return [parse_tokens(part, what)]
    if len(ends) > 3:
        raise InputError(
            f"cannot read {what} {part!r}; a range is START:STOP or START:STOP:STEP, such as 1:512 or 1k:128k:4k"
        )
    start, stop = parse_tokens(ends[0], what), parse_tokens(ends[1], what)
    if stop < start:
        raise InputError(f"{what} {part!r} ends before it starts; write {ends[1]}:{ends[0]}")
    if len(ends) == 3 and ends[2][:1] in ("x", "×"):
        return _multiples(start, stop, parse_tokens(ends[2][1:], f"factor of {what}"), part)
    step = parse_tokens(ends[2], f"step of {what}") if len(ends) == 3 else _unit(ends[0])
    if (stop - start) // step >= MAX_POINTS:
        raise InputError(f"{what} {part!r} names more than {MAX_POINTS:,} values; give a larger step")
    return range(start, stop + 1, step)


def _multiples(start: int, stop: int, factor: int, part: str) -> list[int]:
    if factor < 2:
        raise InputError(f"{part!r} never ends; multiply by 2 or more, such as x2")
    found = [start]
    while found[-1] * factor <= stop:
        found.append(found[-1] * factor)
    return found


def _unit(start: str) -> int:
    match = _SUFFIX.fullmatch(start.strip())
    return {"k": KIB, "m": MIB}.get(match[1].lower(), 1) if match else 1


def thinned(values: list[int], most: int) -> list[int]:
    """At most so many of rising positive values, spread evenly by ratio, the ends among them.

    >>> thinned([1, 2, 4, 8, 16, 32], 3), thinned([1, 2], 8), thinned(list(range(1, 513)), 4)
    ([1, 8, 32], [1, 2], [1, 8, 64, 512])
    """
    if len(values) <= most:
        return values
    first, ratio = values[0], values[-1] / values[0]

    def nearest(wanted: float) -> int:
        return min(values, key=lambda value: abs(math.log(value / wanted)))

    return sorted({nearest(first * ratio ** (i / (most - 1))) for i in range(most)})
