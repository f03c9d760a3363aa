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
from planner.precision import KvFormats
from planner.stage import Sharding, Stage
from planner.tensors import Role, Tensor, ceil_div

if TYPE_CHECKING:
    from planner.arrays import Int, IntArray

WHOLE = Sharding()
"""One rank that holds everything."""


def weight_bytes(tensors: Iterable[tuple[Tensor, int]], formats: Formats, sharding: Sharding = WHOLE) -> int:
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
        elements[t.role] = elements.get(t.role, 0) + count * sharding.held(t)
    return sum(formats[role].nbytes(held) for role, held in elements.items())


@dataclass(frozen=True, slots=True)
class Term:
    """What a sequence's cache gains: ``rate`` units for each of its entries.

    An entry stands for ``every`` of the ``min(L, kept)`` tokens that are held. It is there once its last token is, or, with
    ``ahead``, as soon as its first one comes, as a block is.
    """

    rate: int
    kept: int = UNBOUNDED
    every: int = 1
    ahead: bool = False

    @property
    def slope(self) -> Fraction:
        """What one token adds while it still does, on average over an entry."""
        return Fraction(self.rate, self.every)

    def amount(self, context: Int) -> Int:
        """Units after ``context`` tokens."""
        held = min(context, self.kept) if isinstance(context, int) else np.minimum(context, self.kept)
        return self.rate * (ceil_div(held, self.every) if self.ahead else held // self.every)


@dataclass(frozen=True, slots=True)
class CacheCurve:
    """Cache of one sequence on one rank as a function of its length, in bytes, or in the units of an engine's pool.

    Each kind of cached vector adds ``rate`` for each entry until ``kept`` tokens are held, so the curve is

        amount(L) = fixed + sum_r rate_r * (min(L, kept_r) / every_r, whole entries)

    which, where every entry is one token, is concave and piecewise linear: the lower envelope of straight lines.

    Attributes
    ----------
    terms
        Rates, with the tokens kept and the tokens an entry stands for.
    fixed
        What does not depend on the length: recurrent state, and cross-attention over the source.
    """

    terms: tuple[Term, ...]
    fixed: int = 0

    def amount(self, context: Int) -> Int:
        """Cache of one sequence of ``context`` tokens.

        >>> CacheCurve((Term(100, 10), Term(1), Term(8, every=4))).amount(50)
        1146
        """
        if isinstance(context, int):
            return self.fixed + sum(term.amount(context) for term in self.terms)
        return sum((term.amount(context) for term in self.terms), np.zeros_like(context)) + self.fixed

    @property
    def growing(self) -> int | float:
        """What one more token adds while every window still fills, on average over the tokens of an entry."""
        return _whole(sum((term.slope for term in self.terms), Fraction(0)))

    @property
    def saturated(self) -> int | float:
        """What one more token adds once every window is full."""
        return _whole(sum((term.slope for term in self.terms if term.kept >= UNBOUNDED), Fraction(0)))

    def longest(self, budget: Int) -> Int:
        """Longest sequence that fits into ``budget`` [tokens]; 0 if none, `UNBOUNDED` if any does.

        With one token an entry the curve is the minimum of the lines through its pieces, so ``amount(L) <= budget`` as soon
        as one of the lines is, and the answer is the largest of the lines' own answers. Where an entry stands for several
        tokens the lines are off by up to one entry, and the last tokens are found by bisection.

        >>> CacheCurve((Term(100, 10), Term(1))).longest(1050), CacheCurve((Term(3, every=16, ahead=True),)).longest(7)
        (50, 32)
        """
        best = np.zeros_like(budget)
        for limit in (0, *sorted({term.kept for term in self.terms if term.kept < UNBOUNDED})):
            slope = sum((term.slope for term in self.terms if term.kept > limit), Fraction(0))
            full = sum((term.slope * term.kept for term in self.terms if term.kept <= limit), Fraction(self.fixed))
            room = np.asarray(budget) * full.denominator - full.numerator
            cost = slope * full.denominator
            reach = room * cost.denominator // cost.numerator if cost else UNBOUNDED
            best = np.maximum(best, np.where(room < 0, 0, reach))
        early = max((term.every for term in self.terms if term.ahead), default=1) - 1
        late = 2 * (max((term.every for term in self.terms if not term.ahead), default=1) - 1)
        if early or late:
            best = self._refined(
                np.asarray(budget), np.maximum(best - early, 0), np.minimum(best + late + 1, UNBOUNDED)
            )
        return int(best) if isinstance(budget, int) else best

    def _refined(self, budget: IntArray, low: IntArray, high: IntArray) -> IntArray:
        """The longest sequence that fits, known to be at least ``low`` and less than ``high`` tokens, or `UNBOUNDED`."""
        low = np.where(high >= UNBOUNDED, UNBOUNDED - 1, low)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            fits = self.amount(middle) <= budget
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return np.where(high >= UNBOUNDED, UNBOUNDED, low)


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
