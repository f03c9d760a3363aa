"""Which weights a quantisation scheme means: module names and patterns of other people's files against our tensors.

Schemes name modules in full (``model.layers.3.self_attn.q_proj``), by prefix, by glob, by regular expression (``re:``) or
by a single part (``lm_head``). A tensor answers to the names that its like has in usual checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

_LAYER = re.compile(r"(?:^|.*?\.)(?:layers|blocks|h|block)\.([0-9]{1,5}|\*)(\*?)(?:\.(.*))?$", re.DOTALL)
_OUTER = re.compile(r"^(?:\*\.|\*(?=[a-z])|model\.|language_model\.|transformer\.|backbone\.)+")
_ELSEWHERE = re.compile(r"(?:^|\.)(?:mtp|vision|visual|audio|image|multi_modal|mm_)")
"""Draft layers and towers, whose layers are not the decoder's."""
_QUANTIFIER = re.compile(r"[*+{]")
_NESTED = re.compile(r"\)\s*[*+{]|\\[1-9]|\(\?(?!:)")

_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "mixer", "linear_attn", "mamba")
_FFN = ("mlp", "feed_forward", "ffn", "mixer", "block_sparse_moe")
_LEAVES = {
    "q_proj": ("q_proj", "qkv_proj"), "k_proj": ("k_proj", "qkv_proj"), "v_proj": ("v_proj", "qkv_proj"),
    "output_gate": ("q_proj", "gate_proj", "g_proj"),
    "o_proj": ("o_proj", "out_proj", "dense"), "gate_proj": ("gate_proj", "gate_up_proj", "w1"),
    "up_proj": ("up_proj", "gate_up_proj", "w3"), "down_proj": ("down_proj", "w2"),
    "q_a_proj": ("q_a_proj", "fused_qkv_a_proj"), "kv_a_proj": ("kv_a_proj_with_mqa", "fused_qkv_a_proj"),
    "state_proj": ("in_proj", "in_proj_qkv", "in_proj_qkvz", "out_proj"),
    "index_q_proj": ("indexer.wq_b",), "index_k_proj": ("indexer.wk",),
}  # fmt: skip
_PLACES = (
    ("expert_", tuple(f"{block}.experts" for block in _FFN)),
    ("shared_", tuple(f"{block}.{name}" for block in _FFN for name in ("shared_experts", "shared_expert"))),
    ("latent_", tuple(_FFN)),
)


@lru_cache(maxsize=512)
def names_of(tensor: str, in_ffn: bool) -> tuple[str, ...]:
    """Names that a tensor's like has within a layer of usual checkpoints.

    >>> names_of("expert_gate_proj", True)[0], names_of("lm_head", False)
    ('mlp.experts.0.gate_proj', ('lm_head', 'head', 'output'))
    """
    if tensor == "lm_head":
        return ("lm_head", "head", "output")
    for prefix, places in _PLACES:
        if tensor.startswith(prefix):
            leaf, number = tensor.removeprefix(prefix), ".0" if prefix == "expert_" else ""
            return tuple(f"{place}{number}.{name}" for place in places for name in _LEAVES.get(leaf, (leaf,)))
    places = _FFN if in_ffn else _ATTENTION
    return tuple(f"{place}.{name}" for place in places for name in _LEAVES.get(tensor, (tensor,)))


class Patterns:
    """Names and patterns of modules, ready to be asked about a tensor of a layer.

    Regular expressions of strangers are used only where they cannot take long: few quantifiers, none around a group.

    >>> left_out = Patterns(["lm_head", "model.layers.0*", "re:.*self_attn.*"])
    >>> left_out.match(0, ("mlp.up_proj",)), left_out.match(1, ("mlp.up_proj",)), left_out.match(1, ("self_attn.q_proj",))
    (True, False, True)
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._everywhere: list[str] = []
        self._of_layer: dict[str, list[str]] = {}
        self._started: dict[str, list[str]] = {}
        self._regexes: list[re.Pattern[str]] = []
        self._known: dict[tuple[object, ...], bool] = {}
        self.refused: list[str] = []
        for pattern in dict.fromkeys(p for p in patterns if isinstance(p, str)):
            self._add(pattern)

    def _add(self, pattern: str) -> None:
        if pattern.startswith("re:"):
            text = pattern[3:]
            if len(_QUANTIFIER.findall(text)) > 4 or _NESTED.search(text) or len(text) > 400:
                self.refused.append(pattern)
                return
            try:
                self._regexes.append(re.compile(text))
            except re.error:
                self.refused.append(pattern)
        elif _ELSEWHERE.search(pattern):
            return
        elif found := _LAYER.match(pattern):
            layer, starred, rest = found[1], found[2], found[3] or "*"
            if layer == "*":
                self._everywhere.append(rest)
            elif starred:
                self._started.setdefault(layer, []).append(rest)
            else:
                self._of_layer.setdefault(layer, []).append(rest)
        else:
            self._everywhere.append(_OUTER.sub("", pattern) or "*")

    @property
    def routers(self) -> bool:
        """Whether routers are named as modules of a layer, rather than as parts of its feed-forward module."""
        return any(p.startswith("router") for several in self._of_layer.values() for p in several)

    def match(self, layer: int, names: tuple[str, ...]) -> bool:
        """Whether one of the names, in this layer (-1 for outside the layers), is meant."""
        number = str(layer)
        within = list(self._of_layer.get(number, ())) if layer >= 0 else []
        if layer >= 0:
            within += [p for start, rest in self._started.items() if number.startswith(start) for p in rest]
        key = (tuple(within), names, layer if self._regexes else 0)
        if key not in self._known:
            self._known[key] = any(_meant(p, n) for p in (*within, *self._everywhere) for n in names) or any(
                r.match(full) for r in self._regexes for n in names for full in _in_full(layer, n)
            )
        return self._known[key]


def _in_full(layer: int, name: str) -> tuple[str, ...]:
    inside = f"layers.{layer}.{name}" if layer >= 0 else name
    return (f"model.{inside}", f"model.language_model.{inside}", inside)


def _meant(pattern: str, name: str) -> bool:
    if pattern == "*":
        return True
    if any(sign in pattern for sign in "*?["):
        return any(fnmatchcase(tail, pattern) or fnmatchcase(tail, pattern + ".*") for tail in _tails(name))
    return name == pattern or name.startswith(pattern + ".") or pattern in name.split(".")


@lru_cache(maxsize=1024)
def _tails(name: str) -> tuple[str, ...]:
    """A name, and what is left of it without its first parts."""
    parts = name.split(".")
    return tuple(".".join(parts[k:]) for k in range(len(parts)))
