"""What a layer caches, as rows: the vectors that a token leaves behind, how long they are kept, how many are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from planner.precision import Format, KvFormats

if TYPE_CHECKING:
    from planner.arrays import Int, Numbers

UNBOUNDED = 2**62
"""Kept tokens of a layer that keeps them all; larger than any context."""


def bounded(value: int) -> int | None:
    """``None`` for a limit that memory does not set."""
    return None if value >= UNBOUNDED else value


@dataclass(frozen=True, slots=True)
class Cached:
    """Like vectors that one layer caches on one rank.

    After ``L`` tokens there are ``min(L, kept) // every`` entries of ``vectors`` vectors, of which a decode step reads at
    most ``read`` entries.

    Attributes
    ----------
    vectors, width
        Vectors of one entry, and elements of each.
    part
        Whether they are kept in the format of keys, of values or of an indexer's keys.
    kept
        Most tokens that are held: a window, or `UNBOUNDED`.
    every
        Tokens that one entry stands for, where several are compressed into one.
    read
        Most entries that one decode step reads (sparse attention), or `UNBOUNDED`.
    flops, prefill_flops
        Work of one new token against one entry, in decoding and in prefill [FLOP].
    owned
        Whether the layer holds them, or reads what another layer holds.
    chunked
        Whether ``kept`` is a chunk, which starts anew at every multiple, rather than a window that slides.
    expanded
        Weights that one entry is multiplied by before prefill can read it, where it is cached compressed.
    """

    vectors: int
    width: int
    part: Literal["k", "v", "index"] = "k"
    kept: int = UNBOUNDED
    every: int = 1
    read: int = UNBOUNDED
    flops: int = 0
    prefill_flops: int = 0
    owned: bool = True
    chunked: bool = False
    expanded: int = 0

    def form(self, kv: KvFormats) -> Format:
        """The format they are kept in."""
        if self.part == "index" and kv.index:
            return kv.index
        return kv.v if self.part == "v" else kv.k

    def entry_bytes(self, kv: KvFormats) -> int:
        """Bytes of one entry [B]."""
        return self.form(kv).cached(self.vectors, self.width)

    def entries(self, context: Int) -> Int:
        """Entries held after ``context`` tokens.

        >>> Cached(1, 8, kept=10).entries(50), Cached(1, 8, every=4).entries(50)
        (10, 12)
        """
        held = min(context, self.kept) if isinstance(context, int) else np.minimum(context, self.kept)
        return held // self.every

    def entries_read(self, context: Numbers) -> Numbers:
        """Entries that a decode step reads after ``context`` tokens."""
        entries: Numbers = np.minimum(np.minimum(context, float(self.kept)) // self.every, float(self.read))
        return entries

    def pairs(self, tokens: Numbers, before: Numbers = 0.0) -> Numbers:
        """Query-key pairs of a causal prefill of ``tokens`` tokens after ``before``: entries that each is compared with.

        >>> float(Cached(1, 8).pairs(4.0)), float(Cached(1, 8, kept=2).pairs(4.0)), float(Cached(1, 8).pairs(1.0, 3.0))
        (10.0, 7.0, 4.0)
        """
        return self._pairs_up_to(before + tokens) - self._pairs_up_to(before)

    def _pairs_up_to(self, tokens: Numbers) -> Numbers:
        """``sum over i = 1..tokens of min(min(i, kept) // every, read)``, or in chunks ``of (i - 1) % kept + 1``."""
        if self.chunked:
            whole, rest = tokens // self.kept, tokens % self.kept
            return whole * (self.kept * (self.kept + 1) / 2) + rest * (rest + 1) / 2
        entries = np.minimum(tokens // self.every, float(min(self.kept // self.every, self.read)))
        pairs: Numbers = self.every * entries * (entries - 1) / 2 + entries * (tokens - self.every * entries + 1)
        return pairs

    def earlier(self, tokens: Numbers, before: Numbers) -> Numbers:
        """Entries held ``before`` that a prefill of ``tokens`` more reads: those in reach of the first of them.

        Where each token picks its entries, no two are taken to pick the same.
        """
        reach = before % self.kept if self.chunked else np.minimum(before, float(self.kept - 1))
        entries: Numbers = np.minimum(reach // self.every, float(self.read) * tokens)
        return entries
