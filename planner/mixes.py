"""The usual mixtures of GGUF files: which tensor of which layer gets which type when a model is quantised to, say, Q4_K_M.

The name of a type that is a file type too, such as ``q4_0``, ``q6_k`` or ``iq4_xs``, means the file: embedding and head are
then quantised as well. Norms, biases and other vectors stay in fp32, and so does the router. ``iq`` mixtures are those made
with an importance matrix, as they are published; the others those made without.

Not followed: queries, keys and values in one tensor (GPT-2, Falcon, Phi-3), which llama.cpp gives the type of values, and
exceptions for Falcon.

References
----------
llama.cpp, ``src/llama-quant.cpp``: ``llama_tensor_get_type_impl``, ``tensor_type_fallback``, ``tensor_allows_quantization``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from planner.formats import Formats, blend, counted
from planner.precision import FORMATS, Format
from planner.tensors import Role, Tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """A type that some layers' tensors have.

    Attributes
    ----------
    where
        ``all`` layers; the first ``eighth`` or ``sixteenth``, the first ``two`` or ``four``; the ``middle``, between the
        first and the last eighth; or ``more``, those that more bits help most: the first and last eighth and every third
        between.
    when
        Of models that share each key among four queries or more (``gqa``), or have at least four experts besides (``gqa or
        experts``), or just eight of them (``eight``); empty for any.
    """

    type: str
    where: str = "all"
    when: str = ""


@dataclass(frozen=True, slots=True)
class Mix:
    """A file type: the type of most tensors, and rules for the others, by part; the first that holds counts."""

    base: str
    parts: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    head: str = "q6_k"
    embedding: str = ""
    low: bool = False
    """Of one or two bits, where keys and values get no more bits than the rules say."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rules ask of a model.

    Attributes
    ----------
    sharing
        Queries that share a key in the first layer; 0 if it has no attention.
    experts
        Routed experts; 0 if there are none.
    """

    layers: int
    hidden: int
    sharing: int
    experts: int = 0


def _two_bit(base: str, low: str, output: tuple[Rule, ...] = (), embedding: str = "q2_k") -> Mix:
    """The mixtures of one and two bits: ``low`` for values and the first down-projections."""
    parts = {
        "v": (Rule("q4_k", when="gqa or experts"), Rule(low)),
        "k": (Rule("q4_k", when="eight"),),
        "down": (Rule(low, "eighth"),),
        "o": (Rule("q5_k", when="eight"), *output),
    }
    return Mix(base, parts, head="q5_k", embedding=embedding, low=True)


_EIGHT = (Rule("q5_k", when="eight"),)
_MORE = (Rule("q6_k", "more"),)

MIXES: dict[str, Mix] = {
    "iq1_s": _two_bit("iq1_s", "q2_k", (Rule("iq2_xxs"),)),
    "iq1_m": _two_bit("iq1_m", "q2_k", (Rule("iq2_xxs"),)),
    "iq2_xxs": _two_bit("iq2_xxs", "q2_k"),
    "iq2_xs": _two_bit("iq2_xs", "q2_k"),
    "iq2_s": _two_bit("iq2_xs", "iq3_s", (Rule("iq3_s"),), "iq3_s"),
    "iq2_m": _two_bit("iq2_s", "iq3_s", (Rule("iq3_s"),), "iq3_s"),
    "iq3_xxs": Mix(
        "iq3_xxs",
        {"v": (Rule("q4_k", when="gqa"),), "k": (Rule("iq2_s"),), "q": (Rule("iq2_s"),), "o": (*_EIGHT, Rule("iq3_s"))},
        head="q5_k", embedding="iq3_s",
    ),
    "iq3_xs": Mix(
        "iq3_s",
        {
            "v": (Rule("q4_k", when="gqa"),), "k": (Rule("iq3_xxs"),), "q": (Rule("iq3_xxs"),), "o": _EIGHT,
            "gate": (Rule("iq3_xxs", "middle"),), "up": (Rule("iq3_xxs", "middle"),),
        },
    ),
    "iq3_s": Mix("iq3_s", {"v": (Rule("q4_k", when="gqa"),), "o": _EIGHT}),
    "iq3_m": Mix(
        "iq3_s",
        {
            "v": (Rule("q4_k"),), "o": (*_EIGHT, Rule("q4_k")),
            "down": (Rule("q4_k", "eighth"), Rule("q4_k", "more", "eight")),
        },
    ),
    "iq4_nl": Mix("iq4_nl", {"v": (Rule("q5_k", when="gqa"),), "o": _EIGHT}),
    "iq4_xs": Mix("iq4_xs", {"v": (Rule("q5_k", when="gqa"),), "o": _EIGHT}),
    "q2_k": Mix(
        "q2_k", {"v": (Rule("q4_k", when="gqa"), Rule("q3_k")), "o": (*_EIGHT, Rule("q3_k")), "down": (Rule("q3_k"),)}
    ),
    "q2_k_s": Mix("q2_k", {"v": (Rule("q4_k", when="gqa"),), "down": (Rule("q4_k", "eighth"),)}),
    "q3_k_s": Mix("q3_k", {"o": _EIGHT}),
    "q3_k_m": Mix(
        "q3_k",
        {
            "v": (Rule("q5_k", "two"), Rule("q4_k")), "o": (*_EIGHT, Rule("q4_k")),
            "down": (Rule("q5_k", "sixteenth"), Rule("q4_k")),
        },
    ),
    "q3_k_l": Mix("q3_k", {"v": (Rule("q5_k"),), "o": (Rule("q3_k", when="eight"), Rule("q5_k")), "down": (Rule("q5_k"),)}),
    "q4_0": Mix("q4_0"),
    "q4_1": Mix("q4_1"),
    "q4_k_s": Mix("q4_k", {"v": (Rule("q5_k", "four"),), "o": _EIGHT, "down": (Rule("q5_k", "eighth"),)}),
    "q4_k_m": Mix("q4_k", {"v": _MORE, "o": _EIGHT, "down": _MORE}),
    "q5_0": Mix("q5_0"),
    "q5_1": Mix("q5_1"),
    "q5_k_s": Mix("q5_k"),
    "q5_k_m": Mix("q5_k", {"v": _MORE, "down": _MORE}),
    "q6_k": Mix("q6_k"),
    "q8_0": Mix("q8_0", head="q8_0"),
}  # fmt: skip
"""Mixtures by file type, in small letters."""

_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""As ``llama-quantize`` reads them."""

_FALLBACKS = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
}  # fmt: skip
"""What tensors get whose rows are not whole blocks of 256."""

_PARTS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "embed_tokens": "embedding", "lm_head": "head"}
_LOOKED_UP = re.compile(r"per.layer.*embed", re.IGNORECASE)


def find_mix(name: str) -> str | None:
    """The mixture that a name means; ``None`` for a plain format.

    >>> find_mix("Q4_K_M"), find_mix("q4_k"), find_mix("fp8")
    ('q4_k_m', 'q4_k_m', None)
    """
    wanted = name.strip().lower().replace("-", "_") if isinstance(name, str) else ""
    wanted = _ALIASES.get(wanted, wanted)
    return wanted if wanted in MIXES else None


def mix_formats(name: str, tensors: Iterable[tuple[int, Tensor, int]], shape: Shape) -> Formats:
    """The format of each role in a mixture: its bits are the mean over the role's tensors.

    Parameters
    ----------
    name
        One of `MIXES`.
    tensors
        Layer (-1 outside the layers), tensor and how many of it, in the order of the layers.
    shape
        What the rules ask of the model.

    >>> from planner.tensors import Tensor
    >>> shape = Shape(layers=8, hidden=256, sharing=4)
    >>> down = [(layer, Tensor("down_proj", Role.FFN, 512, 256), 1) for layer in range(8)]
    >>> float(mix_formats("q4_k_m", down, shape)[Role.FFN].bits)
    5.53125
    """
    placed = tuple(tensors)
    mix, chooser = MIXES[name], _Chooser(MIXES[name], placed, shape)
    nbytes = blend(placed, chooser.format_of)
    parameters: dict[Role, int] = {}
    for _, tensor, count in placed:
        parameters[tensor.role] = parameters.get(tensor.role, 0) + count * tensor.parameters
    named = replace(FORMATS[mix.base], id=name)
    ends = {Role.EMBEDDING: chooser.embedding, Role.HEAD: chooser.embedding if chooser.tied else chooser.head}
    kept = {Role.ROUTER: FORMATS["fp32"], Role.VECTOR: FORMATS["fp32"], Role.OTHER: FORMATS["fp16"]}
    return counted(dict.fromkeys(Role, named) | ends | kept, nbytes, parameters)


class _Chooser:
    """The type of each tensor of one model in one mixture."""

    def __init__(self, mix: Mix, placed: tuple[tuple[int, Tensor, int], ...], shape: Shape) -> None:
        self._mix, self._shape = mix, shape
        self.tied = not any(t.name == "lm_head" for _, t, _ in placed)
        self.head = self._for_rows(mix.head if not shape.hidden % _block(mix.base) else "q8_0", shape.hidden)
        self.embedding = self.head if self.tied else self._for_rows(mix.embedding or mix.base, shape.hidden)
        self._order = {part: self._layers_with(part, placed) for part in ("v", "down")}

    @staticmethod
    def _layers_with(part: str, placed: tuple[tuple[int, Tensor, int], ...]) -> dict[int, int]:
        """Layers that have a part, each with its place among them."""
        layers = dict.fromkeys(layer for layer, tensor, _ in placed if layer >= 0 and _part(tensor) == part)
        return {layer: place for place, layer in enumerate(sorted(layers))}

    def format_of(self, layer: int, tensor: Tensor) -> Format:
        """The format of a tensor of a layer."""
        part = _part(tensor)
        if part == "head":
            return self.head
        if part == "embedding":
            return self.embedding
        if tensor.role in (Role.VECTOR, Role.ROUTER):
            return FORMATS["fp32"]
        if tensor.role is Role.OTHER:
            return FORMATS["fp32" if tensor.name == "embed_positions" else "fp16"]
        return self._for_rows(self._wanted(part, layer), _row_length(tensor, part, self._shape.hidden))

    def _wanted(self, part: str, layer: int) -> str:
        chosen = next((r.type for r in self._mix.parts.get(part, ()) if self._holds(r, part, layer)), self._mix.base)
        if self._mix.low or part not in ("k", "v"):
            return chosen
        if self._shape.experts == 8:
            return "q8_0"
        # The 70 B models of Llama and Qwen: values are an eighth of the queries, and more bits for them cost little.
        of_70b = part == "v" and self._shape.layers == 80 and self._shape.sharing > 1
        return "q5_k" if of_70b and chosen in ("q3_k", "q4_k") else chosen

    def _holds(self, rule: Rule, part: str, layer: int) -> bool:
        shape = self._shape
        shared = shape.sharing >= 4
        when = {"": True, "gqa": shared, "gqa or experts": shared or shape.experts >= 4, "eight": shape.experts == 8}
        if not when[rule.when]:
            return False
        if rule.where == "all":
            return True
        # Values are counted among themselves; down-projections too, unless experts have the layer in their name.
        ordered = part == "v" or (part == "down" and not shape.experts)
        place = self._order[part].get(layer, 0) if ordered else layer
        many = len(self._order["v"]) if part == "v" else shape.layers
        return _WHERE[rule.where](place, many)

    @staticmethod
    def _for_rows(wanted: str, length: int) -> Format:
        """The type itself, or what llama.cpp puts in its place where rows are not whole blocks."""
        if length % _block(wanted):
            wanted = _FALLBACKS.get(wanted, "fp16")
        return FORMATS["fp16" if length % _block(wanted) else wanted]


_WHERE: dict[str, Callable[[int, int], bool]] = {
    "eighth": lambda i, n: i < n // 8,
    "sixteenth": lambda i, n: i < n // 16,
    "two": lambda i, n: i < 2,
    "four": lambda i, n: i < 4,
    "middle": lambda i, n: n // 8 <= i < 7 * n // 8,
    "more": lambda i, n: i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2,
}


def _part(tensor: Tensor) -> str:
    """What the rules call a tensor; empty for any other."""
    if tensor.role in (Role.FFN, Role.EXPERT):
        word = tensor.name.removeprefix("expert_").removeprefix("shared_")
        return word.removesuffix("_proj") if word in ("gate_proj", "up_proj", "down_proj") else ""
    if tensor.role is Role.OTHER:
        return "embedding" if _LOOKED_UP.search(tensor.name) else ""
    return _PARTS.get(tensor.name, "") if tensor.role is not Role.VECTOR else ""


def _row_length(tensor: Tensor, part: str, hidden: int) -> int:
    """Inputs of a projection, whose weights for one output are quantised in a row."""
    if part == "down":
        return tensor.units
    return tensor.units * tensor.unit_size // hidden if part == "o" else hidden


def _block(name: str) -> int:
    """Elements of a block."""
    return 1 if name in ("fp16", "fp32") else 32 if name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl") else 256
