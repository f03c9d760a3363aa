"""The lines of a stream that hold one of many texts, found a block at a time: any bytes, any size, bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

BLOCK = 2**20
MAX_LINE = 2**16
_MAX_STRINGS = 64
_COLOUR = re.compile(rb"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]")
_ESCAPE = re.compile(r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]")


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


def candidates(stream: Readable, literals: Sequence[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Lines with at least one literal, and the numbers of those they hold, in order.

    A carriage return ends a line too; colour codes and NULs are dropped, so ASCII in UTF-16 is read as well. Of a line
    longer than ``MAX_LINE`` bytes only the start is read. A line that is a JSON object stands for the texts in it.
    """
    wanted = [literal.encode() for literal in literals]
    for block in _blocks(stream):
        yield from _found(block, wanted, literals)


def _blocks(stream: Readable) -> Iterator[bytes]:
    """Whole lines, many at a time, cleaned."""
    rest, skipping = b"", False
    while block := stream.read(BLOCK):
        if skipping:
            end = _line_end(block)
            if end < 0:
                continue
            block, skipping = block[end:], False
        block = _clean(rest + block)
        cut = block.rfind(b"\n") + 1
        whole, rest = block[:cut], block[cut:]
        if len(rest) > MAX_LINE:
            whole, rest, skipping = whole + rest[:MAX_LINE], b"", True
        if whole:
            yield whole
    if rest:
        yield rest


def _line_end(block: bytes) -> int:
    ends = [end for end in (block.find(b"\n"), block.find(b"\r")) if end >= 0]
    return min(ends, default=-1)


def _clean(block: bytes) -> bytes:
    if b"\0" in block:
        block = block.replace(b"\0", b"")
    if b"\x1b" in block:
        block = _COLOUR.sub(b"", block)
    return block.replace(b"\r", b"\n") if b"\r" in block else block


def _found(block: bytes, wanted: Sequence[bytes], literals: Sequence[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    held: dict[int, list[int]] = {}
    ends: dict[int, int] = {}
    for number, literal in enumerate(wanted):
        at = block.find(literal)
        while at >= 0:
            start = block.rfind(b"\n", 0, at) + 1
            end = block.find(b"\n", at)
            end = len(block) if end < 0 else end
            held.setdefault(start, []).append(number)
            ends[start] = end
            at = block.find(literal, end)
    for start in sorted(held):
        line = block[start : min(ends[start], start + MAX_LINE)].decode("utf-8", "replace")
        texts = _texts(line)
        if texts is None:
            yield line, tuple(held[start])
            continue
        for text in texts:
            if numbers := tuple(number for number, literal in enumerate(literals) if literal in text):
                yield text, numbers


def _texts(line: str) -> list[str] | None:
    """Lines of the texts in a JSON object; ``None`` if the line is not one."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    texts: list[str] = []
    level: list[Any] = [record]
    while level and len(texts) < _MAX_STRINGS:
        item = level.pop()
        if isinstance(item, dict):
            level.extend(reversed(item.values()))
        elif isinstance(item, list):
            level.extend(reversed(item))
        elif isinstance(item, str):
            texts += _ESCAPE.sub("", item).replace("\0", "").splitlines()
    return texts
