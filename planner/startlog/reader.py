"""Read the start-up log of an inference engine, whatever stands around its lines.

Nothing here knows a line: ``patterns/*.toml`` does. A log is not trusted either: lines come cut, interleaved and wrapped,
and values that cannot be are dropped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import IO, Any

from planner.errors import InputError
from planner.startlog.lines import Engine, Line, engines
from planner.startlog.log import MAX_VALUES, StartLog, kinds, plausible
from planner.startlog.pairs import pairs
from planner.startlog.stream import candidates

_MAX_MATCHES = 64
_MAX_TEXT = 400
_LEVELS = 5
_UNSAID = {"none", "null", ""}
_TRUE, _FALSE = {"true", "yes"}, {"false", "no"}
_NUMERAL = re.compile(r"[+]?[0-9]{1,20}(?:,[0-9]{3}){0,6}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,3})?")

Value = str | int | float | bool


def read_start_log(source: str | Path | IO[bytes]) -> StartLog:
    """Read what an engine printed at its start; of several starts in one log, the last.

    Parameters
    ----------
    source
        A path, ``-`` for standard input, or a stream of bytes.

    Raises
    ------
    InputError
        If the source cannot be opened or read. No content raises.

    >>> import io
    >>> log = read_start_log(io.BytesIO(b"INFO 01-02 [kv_cache_utils.py:9] GPU KV cache size: 33,504 tokens"))
    >>> log.engine, log.kv_tokens
    ('vllm', (33504,))
    """
    if not isinstance(source, (str, Path)):
        return _read(_Source(source, "the stream"))
    if str(source) == "-":
        return _read(_Source(sys.stdin.buffer if sys.stdin is not None else None, "standard input"))
    shown = str(source) if len(str(source)) <= 100 else str(source)[:97] + "..."
    try:
        stream = Path(source).open("rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise _unreadable(shown, error) from None
    with stream:
        return _read(_Source(stream, shown))


def _unreadable(shown: str, error: Exception) -> InputError:
    why = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0][:100]
    return InputError(
        f"cannot read {shown!r}: {why}; give the start-up log of an engine as a file, or - for standard input"
    )


class _Source:
    """A stream whose failures are refusals."""

    def __init__(self, stream: IO[bytes] | None, shown: str) -> None:
        self.stream, self.shown = stream, shown

    def read(self, size: int) -> bytes:
        if self.stream is None:
            raise _unreadable(self.shown, ValueError("it is closed"))
        try:
            block = self.stream.read(size)
        except (OSError, ValueError, AttributeError) as error:
            raise _unreadable(self.shown, error) from None
        if not isinstance(block or b"", bytes):
            raise _unreadable(self.shown, TypeError("it yields text, not bytes"))
        return block or b""


def _read(source: _Source) -> StartLog:
    known = engines()
    literals = list(dict.fromkeys(line.literal for engine in known for line in engine.line))
    number = {literal: at for at, literal in enumerate(literals)}
    by_literal: list[list[tuple[int, int, Line]]] = [[] for _ in literals]
    for at, engine in enumerate(known):
        for row, line in enumerate(engine.line):
            by_literal[number[line.literal]].append((at, row, line))
    heard = [_Heard(engine) for engine in known]
    for text, held in candidates(source, literals):
        rows = [entry for literal in held for entry in by_literal[literal]]
        for at, row, line in sorted(rows, key=lambda entry: entry[:2]):
            heard[at].hear(text, row, line)
    best = max(heard, key=lambda one: len(one.rows))
    return StartLog(engine=best.engine.engine, **best.result()) if best.rows else StartLog()


class _Field:
    """Values of one field at one level of trust."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.of_rank: dict[str, int] = {}

    def add(self, field: str, value: Value, rank: str, keep: str) -> None:
        at = self.of_rank.get(rank) if keep != "all" else None
        if at is None:
            if len(self.values) < MAX_VALUES:
                self.of_rank.setdefault(rank, len(self.values))
                self.values.append(value)
        elif keep == "last":
            self.values[at] = value
        elif keep != "first" and not isinstance(value, str):
            both = self.values[at] + value if keep == "sum" else max(self.values[at], value)
            if plausible(field, both):
                self.values[at] = both


class _Heard:
    """What the lines of one engine have said so far."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: set[int] = set()
        self.levels: list[dict[str, _Field]] = [{} for _ in range(_LEVELS + 1)]
        """By trust; the last is of lines around the log, which no new start takes back."""

    def hear(self, text: str, row: int, line: Line) -> None:
        """Take in every match of a line's pattern in a text."""
        matches = list(islice(line.regex.finditer(text), _MAX_MATCHES))
        for at, match in enumerate(matches):
            self._clear(line.clears)
            if not line.around:
                self.rows.add(row)
            rank = self._rank(text, match)
            self._take_groups(match, line, rank)
            for field, flag in line.sets.items():
                self._add(field, flag, rank, line)
            if line.keys:
                end = matches[at + 1].start() if at + 1 < len(matches) else len(text)
                self._take_pairs(text[match.end() : end], line, rank)

    def result(self) -> dict[str, Any]:
        """Fields that were said, each from the most trusted line that said it."""
        found: dict[str, Any] = {}
        for level in reversed(self.levels):
            for field, said in level.items():
                found[field] = tuple(said.values) if kinds()[field][1] else said.values[0]
        return found

    def _clear(self, names: Iterable[str]) -> None:
        for name in names:
            if name == "*":
                self.rows.clear()
            for level in self.levels[:_LEVELS]:
                level.clear() if name == "*" else level.pop(name, None)

    def _rank(self, text: str, match: re.Match[str]) -> str:
        if "rank" in match.re.groupindex:
            return match["rank"] or ""
        rank = ""
        if self.engine.rank_regex is not None:
            for found in islice(self.engine.rank_regex.finditer(text, 0, match.start()), _MAX_MATCHES):
                rank = found["rank"]
        return rank

    def _take_groups(self, match: re.Match[str], line: Line, rank: str) -> None:
        groups = {name: text for name, text in match.groupdict().items() if text is not None}
        factor = self.engine.factor(groups.get("unit", line.unit))
        if factor is None:
            return
        for field in groups.keys() & kinds().keys():
            self._say(field, groups[field], rank, line, factor if field.endswith("_bytes") else 1)
        for field, parts in line.sums.items():
            numbers = [_number(groups[part]) for part in parts if part in groups]
            if numbers:
                total = sum(number for number in numbers if number is not None)
                self._add(field, total * (factor if field.endswith("_bytes") else 1), rank, line)

    def _take_pairs(self, text: str, line: Line, rank: str) -> None:
        said: set[str] = set()
        for key, value in pairs(text):
            field = line.keys.get(key)
            if field is None or key in said:
                continue
            said.add(key)
            name = field.removeprefix("!")
            self._say(name, value, rank, line, 1, opposite=name != field)

    def _say(self, field: str, text: str, rank: str, line: Line, factor: int, *, opposite: bool = False) -> None:
        """Read a value as its field's kind, and keep it if it can be."""
        kind, _ = kinds()[field]
        for old, new in line.replace.items():
            text = text.replace(old, new)
        text = text.strip()
        if text.lower() in _UNSAID:
            return
        if kind is str:
            if text.isprintable() and len(text) <= _MAX_TEXT:
                self._add(field, text, rank, line)
        elif kind is bool:
            if (flag := _flag(text)) is not None:
                self._add(field, flag is not opposite, rank, line)
        elif (number := _number(text)) is not None:
            self._add(field, number * factor, rank, line)

    def _add(self, field: str, value: Value, rank: str, line: Line) -> None:
        kind, many = kinds()[field]
        if kind in (int, float):
            if isinstance(value, str) or not plausible(field, value):
                return
            if kind is int:
                if not field.endswith("_bytes") and value != int(value):
                    return
                value = round(value)
            else:
                value = float(value)
        level = _LEVELS if line.around else line.fallback
        if isinstance(value, str) and value.lower() == "auto":
            level = _LEVELS - 1
        keep: str = line.keep
        if not many:
            rank, keep = "", "first" if keep == "first" or level else "last"
        self.levels[level].setdefault(field, _Field()).add(field, value, rank, keep)


def _number(text: str) -> int | float | None:
    if not _NUMERAL.fullmatch(text):
        return None
    digits = text.replace(",", "")
    return int(digits) if digits.lstrip("+").isdecimal() else float(digits)


def _flag(text: str) -> bool | None:
    """A flag; of a degree of parallelism, whether it is more than one."""
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    number = _number(text)
    return None if number is None else number > 1
