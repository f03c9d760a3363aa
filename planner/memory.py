"""Byte formulas: weights, caches, activations, and what a budget then holds.

All byte counts are exact integers. ``tp`` is the tensor-parallel degree; every function answers for the fullest rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.attention import UNBOUNDED
from planner.model import ModelSpec
from planner.precision import Format
from planner.stage import Stage
from planner.tensors import Role, Tensor, ceil_div

if TYPE_CHECKING:
    from planner.arrays import Int


def weight_bytes(tensors: Iterable[tuple[Tensor, int]], formats: Mapping[Role, Format], tp: int = 1) -> int:
    """Bytes of weights on one rank [B]: the sum over tensors of parameters times bytes per parameter.

    Parameters
    ----------
    tensors
        Tensors with the number of times each occurs.
    formats
        Format of each role.
    """
    return sum(count * formats[t.role].nbytes(t.per_rank(tp)) for t, count in tensors)


@dataclass(frozen=True, slots=True)
class CacheCurve:
    """Cache bytes of one sequence on one rank, as a function of its length.

    Each attention row adds ``rate`` bytes a token until ``kept`` tokens are held, so the curve is

        bytes(L) = fixed + sum_r rate_r * min(L, kept_r)

    which is concave and piecewise linear: the lower envelope of straight lines.

    Attributes
    ----------
    terms
        Pairs of rate [B/token] and kept tokens.
    fixed
        Bytes that do not depend on the length: cross-attention over the source [B].
    """

    terms: tuple[tuple[int, int], ...]
    fixed: int = 0

    def nbytes(self, context: Int) -> Int:
        """Cache of one sequence of ``context`` tokens [B].

        >>> CacheCurve(((100, 10), (1, UNBOUNDED))).nbytes(50)
        1050
        """
        if isinstance(context, int):
            return self.fixed + sum(rate * min(context, kept) for rate, kept in self.terms)
        return sum((rate * np.minimum(context, kept) for rate, kept in self.terms), np.zeros_like(context)) + self.fixed

    @property
    def growing(self) -> int:
        """What one more token adds while every window still fills [B/token]."""
        return sum(rate for rate, _ in self.terms)

    @property
    def saturated(self) -> int:
        """What one more token adds once every window is full [B/token]."""
        return sum(rate for rate, kept in self.terms if kept >= UNBOUNDED)

    def longest(self, budget: Int) -> Int:
        """Longest sequence whose cache fits into ``budget`` bytes [tokens]; 0 if none, `UNBOUNDED` if any does.

        The curve is the minimum of the lines through its pieces, so ``bytes(L) <= budget`` as soon as one of the lines
        is, and the answer is the largest of the lines' own answers.

        >>> CacheCurve(((100, 10), (1, UNBOUNDED))).longest(1050)
        50
        """
        best = np.zeros_like(budget)
        for limit in (0, *sorted({kept for _, kept in self.terms if kept < UNBOUNDED})):
            slope = sum(rate for rate, kept in self.terms if kept > limit)
            room = np.asarray(budget) - self.fixed - sum(rate * kept for rate, kept in self.terms if kept <= limit)
            best = np.maximum(best, np.where(room < 0, 0, room // slope if slope else UNBOUNDED))
        return int(best) if isinstance(budget, int) else best


def cache_curve(stage: Stage, kv: Format, tp: int, source_tokens: int = 0) -> CacheCurve:
    """Cache of one sequence in one stage, on one of ``tp`` ranks.

    For each attention row, rate = layers * bytes(heads on the rank * (width of a key + width of a value)); for MHA, GQA and
    MQA this is ``2 * layers * kv_heads / tp * head_dim * bytes`` (Pope et al. 2022, arXiv:2211.05102, section 3.3),
    for MLA ``layers * (kv_lora_rank + qk_rope_head_dim) * bytes`` on every rank (arXiv:2405.04434, section 2.1).

    Parameters
    ----------
    source_tokens
        Length of the encoder's input, which cross-attention caches [tokens].
    """
    rates: dict[int, int] = {}
    fixed = 0
    for group, count in stage.groups:
        for row in group.attention:
            rate = count * kv.nbytes(row.cache_elements(tp))
            if row.attends_source:
                fixed += rate * source_tokens
            else:
                rates[row.kept_tokens] = rates.get(row.kept_tokens, 0) + rate
    return CacheCurve(tuple((rate, kept) for kept, rate in sorted(rates.items())), fixed)


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

    Attention: queries and their output, keys and values. Feed-forward: gate, up and their product, for each expert that the
    token is sent to.
    """
    widest = 0
    for group in model.groups:
        for row in group.attention:
            widest = max(widest, 2 * row.local_heads(tp) * row.query_dim + row.cache_elements(tp))
        if group.ffn:
            branches = 3 if group.ffn.gated else 2
            routed = max(group.ffn.top_k, 1) * group.ffn.width
            widest = max(widest, *(branches * ceil_div(width, tp) for width in (routed, group.ffn.shared_width)))
    return widest
