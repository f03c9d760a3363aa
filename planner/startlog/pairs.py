"""Settings that engines print as Python: ``key=value`` lists, ``repr`` of dataclasses and dictionaries, in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""(?P<text>'(?P<single>(?>[^'\\]|\\.)*+)(?P<end1>'?)|"(?P<double>(?>[^"\\]|\\.)*+)(?P<end2>"?))"""
    r"""|(?P<open>[\[({])|(?P<close>[\])}])|(?P<comma>,)|(?P<is>[=:])|(?P<word>[^\s'"\[\](){},=:]++)"""
)


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """Keys and scalar values in the order printed, up to the bracket that closes what was open; nested keys are dotted.

    A value that the end of the text cuts inside its quotes is left out.

    >>> list(pairs("model='a/b', spec=Spec(n=3, model='d'), tp_size=8) and tp_size=9"))
    [('model', 'a/b'), ('spec.n', '3'), ('spec.model', 'd'), ('tp_size', '8')]
    >>> list(pairs("'tp_size': 2, 'extra': {'tp_size': 99}, 'kv': None}"))
    [('tp_size', '2'), ('extra.tp_size', '99'), ('kv', 'None')]
    """
    path: list[str] = []
    last = key = value = None
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup if token["text"] is None else "text"
        if value is not None and kind != "open":
            yield _dotted(path, key), value
            value = key = None
        if kind in ("text", "word"):
            if kind == "text" and not (token["end1"] or token["end2"]):
                return
            word = _unquoted(token)
            if key is not None and value is None:
                value, last = word, None
            else:
                last = word
        elif kind == "is":
            key, last = last, None
        elif kind == "open":
            if len(path) == MAX_DEPTH:
                return
            path.append(key or "")
            last = key = value = None
        elif kind == "close":
            if not path:
                return
            path.pop()
            last = key = None
        else:
            last = key = None
    if value is not None:
        yield _dotted(path, key), value


def _unquoted(token: re.Match[str]) -> str:
    if token["text"] is None:
        return token["word"]
    inner: str = token["single"] if token["single"] is not None else token["double"]
    return inner.replace("\\'", "'").replace("\\\\", "\\") if "\\" in inner else inner


def _dotted(path: list[str], key: str | None) -> str:
    return ".".join([*path, key or ""])
