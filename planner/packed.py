"""Blocks that hold pages of several sizes side by side: how vLLM lays out caches of which some are compressed.

Beside keys and values, such a layer holds fewer of them for the tokens before its window, an indexer's keys, and vectors
that are not compressed yet. A page is what one cache of one layer holds of a block; pages differ in size, and caches in how
many tokens make a block. Caches that keep every token are one group. Those that keep a window are divided into groups of
about as many layers. A block serves any one group, and is as large as the rule of the version makes it:

``tuples``
    as many times a page of each size of the first group as any group has layers (0.20 to 0.22);
``slots``
    the most pages of each size that any group has (0.23 to 0.26);
``widest``
    the pages of the largest group (0.27 and later).

References
----------
vLLM v0.20.0, v0.23.0, v0.27.0 and v0.31.0, vllm/v1/core/kv_cache_utils.py: _get_kv_cache_groups_uniform_groups,
_approximate_gcd, _get_kv_cache_config_deepseek_v4, _get_packed_kv_cache_groups, get_max_concurrency_for_kv_cache_config.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from planner.cached import UNBOUNDED
from planner.memory import CacheCurve, Term
from planner.tensors import ceil_div

if TYPE_CHECKING:
    from planner.arrays import Int

Rule = Literal["tuples", "slots", "widest"]
"""How large a block is."""


@dataclass(frozen=True, slots=True)
class Page:
    """Like caches, one in each of ``count`` layers.

    Attributes
    ----------
    nbytes
        What one of them holds of a block, as allocated [B].
    block_tokens
        Tokens of a block.
    kept, extra
        Most tokens that a sequence holds blocks for, and blocks that it holds whatever its length.
    """

    count: int
    nbytes: int
    block_tokens: int
    kept: int = UNBOUNDED
    extra: int = 0

    @property
    def alike(self) -> tuple[int, int, int]:
        """What caches have in common whose blocks are handed out together."""
        return self.block_tokens, self.kept, self.extra


@dataclass(frozen=True, slots=True)
class Bundle:
    """Caches whose blocks are handed out together: a group of layers.

    Attributes
    ----------
    pages
        How many there are of each size [B].
    """

    pages: tuple[tuple[int, int], ...]
    block_tokens: int
    kept: int
    extra: int

    @property
    def nbytes(self) -> int:
        """What the group holds of a block [B]."""
        return sum(size * count for size, count in self.pages)

    @property
    def layers(self) -> int:
        """Most pages of one size."""
        return max(count for _, count in self.pages)


@dataclass(frozen=True, slots=True)
class WeightedCurve(CacheCurve):
    """Blocks of a sequence where those of each group count by their bytes: ``per`` bytes are a block.

    It rounds up once, so that ``amount(L) <= n`` where the bytes are at most ``n * per``.
    """

    per: int = 1

    def amount(self, context: Int) -> Int:
        """Blocks of one sequence of ``context`` tokens.

        >>> WeightedCurve((Term(30, every=16, ahead=True),), per=100).amount(64)
        2
        """
        return ceil_div(CacheCurve.amount(self, context), self.per)

    def longest(self, budget: Int) -> Int:
        """Longest sequence that fits into ``budget`` blocks [tokens].

        >>> WeightedCurve((Term(30, every=16, ahead=True),), per=100).longest(2)
        96
        """
        return CacheCurve(self.terms, self.fixed).longest(budget * self.per)


@dataclass(frozen=True, slots=True)
class Packing:
    """Groups that share blocks of one size, the group that keeps every token first."""

    groups: tuple[Bundle, ...]
    block_bytes: int
    rule: Rule

    @property
    def block_tokens(self) -> int:
        """Tokens of the shortest block."""
        return min(group.block_tokens for group in self.groups)

    @property
    def blocks(self) -> CacheCurve:
        """Blocks of a sequence, which are what its start is checked against."""
        return CacheCurve(*_terms(self.groups, [1] * len(self.groups)))

    @property
    def printed(self) -> CacheCurve:
        """Blocks of a sequence as the engine counts requests: by bytes, in blocks of the first group, before 0.27."""
        if self.rule == "widest":
            return self.blocks
        return WeightedCurve(*_terms(self.groups, [g.nbytes for g in self.groups]), per=self.groups[0].nbytes)


def _terms(groups: Iterable[Bundle], weights: Iterable[int]) -> tuple[tuple[Term, ...], int]:
    """Terms and constant of a curve to which a block of each group adds its weight."""
    rates: Counter[tuple[int, int]] = Counter()
    fixed = 0
    for group, weight in zip(groups, weights, strict=True):
        every, kept = group.block_tokens, group.kept
        rates[kept if kept >= UNBOUNDED else ceil_div(kept, every) * every, every] += weight
        fixed += group.extra * weight
    return tuple(Term(rate, kept, every, ahead=True) for (kept, every), rate in sorted(rates.items())), fixed


def pack(pages: Iterable[Page], rule: Rule) -> Packing:
    """Put caches into groups and find the size of their blocks.

    Raises
    ------
    ValueError
        If there are none.
    """
    found = sorted(pages, key=lambda page: (-page.kept, page.block_tokens))
    if not found:
        raise ValueError("no caches to lay out")
    whole = {page.nbytes for page in found if page.kept >= UNBOUNDED}
    if rule != "widest":
        found = [replace(page, nbytes=_padded(page.nbytes, whole)) for page in found]
    buckets: dict[tuple[int, int, int], Counter[int]] = {}
    for page in found:
        buckets.setdefault(page.alike, Counter())[page.nbytes] += page.count
    layers = [max(sizes.values()) for sizes in buckets.values()]
    each = approximate_gcd(layers, at_least=layers[0] if whole else 1)
    groups: list[Bundle] = []
    for (block_tokens, kept, extra), sizes in buckets.items():
        parts = 1 if kept >= UNBOUNDED else ceil_div(max(sizes.values()), each)
        for part in range(parts):
            held = tuple((size, len(range(part, count, parts))) for size, count in sizes.items())
            groups.append(Bundle(tuple((size, n) for size, n in held if n), block_tokens, kept, extra))
    return Packing(tuple(groups), _block_bytes(groups, rule), rule)


def _padded(nbytes: int, sizes: Iterable[int]) -> int:
    """The smallest of these sizes that a page fits into; its own where none is large enough."""
    return min((size for size in sizes if size >= nbytes), default=nbytes)


def _block_bytes(groups: list[Bundle], rule: Rule) -> int:
    if rule == "widest":
        return max(group.nbytes for group in groups)
    if rule == "tuples":
        return max(group.layers for group in groups) * sum(size for size, _ in groups[0].pages)
    most: Counter[int] = Counter()
    for group in groups:
        most |= Counter(dict(group.pages))
    return sum(size * count for size, count in most.items())


def approximate_gcd(counts: Iterable[int], at_least: int = 1) -> int:
    """The size of groups with which rounding all counts up to multiples of it adds least; the largest of such.

    >>> approximate_gcd([21, 43, 21, 20], at_least=21)
    22
    """
    found = list(counts)
    sizes = range(at_least, max(at_least, *found) + 1)
    return min(sizes, key=lambda size: (sum(-count % size for count in found), -size))
