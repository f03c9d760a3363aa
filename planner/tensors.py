"""Weight tensors as rows: how many parameters, what they are for, and how tensor parallelism deals them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.arrays import Int


class Role(StrEnum):
    """What a tensor is for; formats are chosen by role."""

    EMBEDDING = "embedding"  # looked up, one row a token
    HEAD = "lm_head"
    ATTENTION = "attention"  # projections of the attention block
    SOURCE = (
        "cross-attention"  # keys and values of the encoder's output: multiplied once a source token, not at each step
    )
    FFN = "ffn"  # dense feed-forward and shared experts
    EXPERT = "experts"  # routed experts
    ROUTER = "router"
    VECTOR = "vectors"  # norms, biases, sinks: never quantised
    OTHER = "other"  # vision towers, position tables: weights that a decode step does not stream

    @property
    def linear(self) -> bool:
        """Whether weight-quantisation schemes quantise it. They leave embeddings, head, router and vectors alone."""
        return self in (Role.ATTENTION, Role.SOURCE, Role.FFN, Role.EXPERT)


def ceil_div(numerator: Int, denominator: int) -> Int:
    """Integer division rounded up.

    >>> ceil_div(8, 3)
    3
    """
    return -(-numerator // denominator)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One weight tensor, or ``copies`` equal ones.

    Attributes
    ----------
    units
        Slices that tensor parallelism can deal out: heads, feed-forward columns, vocabulary rows. One that cannot be
        dealt out (a norm, a router, an MLA down-projection) is one unit and lives whole on every rank.
    unit_size
        Parameters in one slice.
    copies
        Equal tensors side by side, such as routed experts.
    used
        How many of the copies one token is multiplied by.
    distinct
        How many of it there are among like layers that share them; 0 if every layer has its own.
    """

    name: str
    role: Role
    units: int
    unit_size: int
    copies: int = 1
    used: int = 1
    distinct: int = 0

    def shared(self, distinct: int) -> Tensor:
        """The same tensor, of which like layers have so many between them."""
        return replace(self, distinct=distinct)

    @property
    def parameters(self) -> int:
        """Parameters in it."""
        return self.copies * self.units * self.unit_size

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses."""
        return self.used * self.units * self.unit_size

    def per_rank(self, tp: int) -> int:
        """Parameters on one of ``tp`` tensor-parallel ranks.

        Slices fewer than ranks are replicated, as Megatron-LM (arXiv:1909.08053, section 3) and the engines after it do
        with key-value heads; slices that do not divide evenly leave the fullest rank with the rounded-up share.

        >>> Tensor("k_proj", Role.ATTENTION, units=8, unit_size=128).per_rank(16)
        128
        """
        return self.copies * self.unit_size * ceil_div(self.units, tp)


def held(layers: Iterable[tuple[Iterable[Tensor], int]]) -> Iterator[tuple[Tensor, int]]:
    """Tensors of like layers, given with how many layers there are, with how many of each are held.

    What layers share is held once, or as often as it is ``distinct``, however the layers differ otherwise.

    >>> both = Tensor("q_proj", Role.ATTENTION, 8, 64).shared(2)
    >>> [n for _, n in held([((both,), 5), ((both,), 4)])]
    [2]
    """
    shared: dict[Tensor, int] = {}
    for tensors, count in layers:
        for t in tensors:
            if t.distinct:
                shared[t] = shared.get(t, 0) + count
            else:
                yield t, count
    yield from ((t, min(t.distinct, count)) for t, count in shared.items())


def vector(name: str, size: int, units: int = 1) -> Tensor:
    """A norm, bias or sink: ``units`` slices of ``size`` parameters; one slice is replicated."""
    return Tensor(name, Role.VECTOR, units, size)
