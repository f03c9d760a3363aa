"""Byte formulas: weights, caches, activations, and what a budget then holds.

All byte counts are exact integers. ``tp`` is the tensor-parallel degree; every function answers for the fullest rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from planner.cached import UNBOUNDED
from planner.formats import Formats
from planner.model import ModelSpec
from planner.precision import KvFormats
from planner.stage import Stage
from planner.tensors import Role, Tensor, ceil_div

if TYPE_CHECKING:
    from planner.arrays import Int, IntArray


def weight_bytes(tensors: Iterable[tuple[Tensor, int]], formats: Formats, tp: int = 1) -> int:
    """Bytes of weights on one rank [B]: the sum over roles of parameters times bytes per parameter.

    Parameters
    ----------
    tensors
        Tensors with the number of times each occurs.
    formats
        Format of each role.
    """
    elements: dict[Role, int] = {}
    for t, count in tensors:
        elements[t.role] = elements.get(t.role, 0) + count * t.per_rank(tp)
    return sum(formats[role].nbytes(held) for role, held in elements.items())


@dataclass(frozen=True, slots=True)
class Term:
    """What a sequence's cache gains: ``rate`` bytes for each of its ``min(L, kept) // every`` entries."""

    rate: int
    kept: int = UNBOUNDED
    every: int = 1

    @property
    def slope(self) -> Fraction:
        """Bytes that one token adds while it still does [B/token]."""
        return Fraction(self.rate, self.every)

    def nbytes(self, context: Int) -> Int:
        """Bytes after ``context`` tokens [B]."""
        held = min(context, self.kept) if isinstance(context, int) else np.minimum(context, self.kept)
        return self.rate * (held // self.every)


@dataclass(frozen=True, slots=True)
class CacheCurve:
    """Cache bytes of one sequence on one rank, as a function of its length.

    Each kind of cached vector adds ``rate`` bytes for each entry until ``kept`` tokens are held, so the curve is

        bytes(L) = fixed + sum_r rate_r * (min(L, kept_r) // every_r)

    which, where every entry is one token, is concave and piecewise linear: the lower envelope of straight lines.

    Attributes
    ----------
    terms
        Rates [B/entry], with the tokens kept and the tokens an entry stands for.
    fixed
        Bytes that do not depend on the length: recurrent state, and cross-attention over the source [B].
    """

    terms: tuple[Term, ...]
    fixed: int = 0

    def nbytes(self, context: Int) -> Int:
        """Cache of one sequence of ``context`` tokens [B].

        >>> CacheCurve((Term(100, 10), Term(1), Term(8, every=4))).nbytes(50)
        1146
        """
        if isinstance(context, int):
            return self.fixed + sum(term.nbytes(context) for term in self.terms)
        return sum((term.nbytes(context) for term in self.terms), np.zeros_like(context)) + self.fixed

    @property
    def growing(self) -> int | float:
        """What one more token adds while every window still fills, on average over the tokens of an entry [B/token]."""
        return _whole(sum((term.slope for term in self.terms), Fraction(0)))

    @property
    def saturated(self) -> int | float:
        """What one more token adds once every window is full [B/token]."""
        return _whole(sum((term.slope for term in self.terms if term.kept >= UNBOUNDED), Fraction(0)))

    def longest(self, budget: Int) -> Int:
        """Longest sequence whose cache fits into ``budget`` bytes [tokens]; 0 if none, `UNBOUNDED` if any does.

        With one token an entry the curve is the minimum of the lines through its pieces, so ``bytes(L) <= budget`` as soon
        as one of the lines is, and the answer is the largest of the lines' own answers. Where an entry stands for several
        tokens the lines answer up to one entry too early, and the last tokens are found by bisection.

        >>> CacheCurve((Term(100, 10), Term(1))).longest(1050)
        50
        """
        best = np.zeros_like(budget)
        for limit in (0, *sorted({term.kept for term in self.terms if term.kept < UNBOUNDED})):
            slope = sum((term.slope for term in self.terms if term.kept > limit), Fraction(0))
            full = sum((term.slope * term.kept for term in self.terms if term.kept <= limit), Fraction(self.fixed))
            room = np.asarray(budget) * full.denominator - full.numerator
            cost = slope * full.denominator
            reach = room * cost.denominator // cost.numerator if cost else UNBOUNDED
            best = np.maximum(best, np.where(room < 0, 0, reach))
        stride = max((term.every for term in self.terms), default=1)
        if stride > 1:
            best = self._refined(np.asarray(budget), best, 2 * stride)
        return int(best) if isinstance(budget, int) else best

    def _refined(self, budget: IntArray, low: IntArray, within: int) -> IntArray:
        """The longest sequence that fits, known to lie less than ``within`` tokens above ``low``."""
        high = np.minimum(low + within, UNBOUNDED)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            fits = self.nbytes(middle) <= budget
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return low


def _whole(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def cache_curve(stage: Stage, kv: KvFormats, tp: int, source_tokens: int = 0) -> CacheCurve:
    """Cache of one sequence in one stage, on one of ``tp`` ranks.

    For each kind of cached vector, rate = layers * vectors on the rank * bytes of one; for MHA, GQA and MQA the two kinds
    together are ``2 * layers * kv_heads / tp * head_dim * bytes`` (Pope et al. 2022, arXiv:2211.05102, section 3.3), for
    MLA the one is ``layers * (kv_lora_rank + qk_rope_head_dim) * bytes`` on every rank (arXiv:2405.04434, section 2.1).
    Layers of fixed state add what they keep.

    Parameters
    ----------
    source_tokens
        Length of the encoder's input, which cross-attention caches [tokens].
    """
    rates: dict[tuple[int, int], int] = {}
    fixed = 0
    for group, count in stage.groups:
        if group.state:
            fixed += count * group.state.state_bytes(tp)
        for row in group.attention:
            for c in row.cached(tp):
                rate = count * c.entry_bytes(kv) if c.owned else 0
                if row.attends_source:
                    fixed += rate * source_tokens
                elif rate:
                    rates[c.kept, c.every] = rates.get((c.kept, c.every), 0) + rate
    return CacheCurve(tuple(Term(rate, kept, every) for (kept, every), rate in sorted(rates.items())), fixed)


def activation_bytes(model: ModelSpec, tp: int, tokens: int, sequences: int, sampler_bytes: int) -> int:
    """Peak of activations of one forward pass and of sampling after it [B].

    At the peak of a layer the residual and its normalised copy are alive beside the widest intermediate of one sub-block
    (`widest_intermediate`), in 16 bit. After the last layer the sampler holds ``sampler_bytes`` for each sampled sequence
    and vocabulary entry, on every rank. The two do not overlap:

        max(tokens * (2 * hidden + widest) * 2, sampler_bytes * sequences * vocabulary)

    Parameters
    ----------
    tokens, sequences
        Tokens in the pass, and how many of them are sampled; both 0 for no reserve.
    """
    layers = tokens * (2 * model.hidden + widest_intermediate(model, tp)) * 2
    return max(layers, sampler_bytes * sequences * model.vocab)


def widest_intermediate(model: ModelSpec, tp: int) -> int:
    """Elements that one token's widest sub-block holds at once on one rank.

    Attention: queries and their output, keys and values. State layers: what enters the convolution, leaves it, and gates
    it. Feed-forward: gate, up and their product, for each expert that the
    token is sent to.
    """
    widest = 0
    for group in model.groups:
        if group.state:
            widest = max(widest, 3 * group.state.local(group.state.conv_channels or group.state.heads, tp))
        for row in group.attention:
            widest = max(widest, 2 * row.local_heads(tp) * row.query_dim + row.cache_elements(tp))
        if group.ffn:
            branches = 3 if group.ffn.gated else 2
            routed = max(group.ffn.top_k, 1) * group.ffn.width
            widest = max(widest, *(branches * ceil_div(width, tp) for width in (routed, group.ffn.shared_width)))
    return widest
