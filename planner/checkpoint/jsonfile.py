"""JSON files of strangers: read whole, within limits, and refused in one line where they are not what they should be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from planner.errors import CardError

MAX_BYTES = 2**23
MAX_DEPTH = 32
MAX_PARTS = 4_000_000


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """All bytes of a regular file no larger than ``limit``.

    Raises
    ------
    CardError
        If it is no file, cannot be read, or is larger.
    """
    shown = str(path)[:200]
    try:
        if not path.is_file():
            raise CardError(f"{shown}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        raise CardError(f"{shown[:60]}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > limit:
        raise CardError(f"{shown}: more than {limit:,} bytes; a configuration is a page of JSON")
    return data


def parse_object(data: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object, without duplicate keys, too many parts or deep nesting.

    ``NaN`` and ``Infinity`` are read: configurations hold them where they are harmless, such as time steps of Mamba-2.

    Raises
    ------
    CardError
        If the text is anything else.

    >>> parse_object('{"a": 1, "a": 2}', "config.json")
    Traceback (most recent call last):
    planner.errors.CardError: config.json: the key 'a' stands twice; remove one
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise CardError(f"{where}: the key {twice[:60]!r} stands twice; remove one")
        return found

    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        if sum(map(text.count, ",[{")) > MAX_PARTS:
            raise CardError(f"{where}: more than {MAX_PARTS:,} parts; a file of a model has fewer")
        found = json.loads(text, object_pairs_hook=once)
    except UnicodeDecodeError:
        raise CardError(f"{where}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise CardError(f"{where}: not valid JSON: {str(error).splitlines()[0][:120]}") from None
    if not isinstance(found, dict):
        raise CardError(f"{where}: holds a {type(found).__name__}, not an object with keys")
    if _depth(found) > MAX_DEPTH:
        raise CardError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    return found


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        if deepest > MAX_DEPTH:
            break
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [item for several in inner for item in several]
    return deepest
