"""How a model is spread over devices: pipeline stages, and tensor-parallel ranks within each."""

from __future__ import annotations

from dataclasses import dataclass

from planner.model import LayerGroup, ModelSpec
from planner.tensors import Role, Tensor, ceil_div, held


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the ranks of one stage share weights, experts, sequences and caches.

    Attributes
    ----------
    tp
        Tensor-parallel degree: ranks that share every layer's weights.
    over_batch
        Whether the cache is shared by sequence, each rank keeping all heads of its share of the batch, instead of by head.
        Pope et al. 2022 (arXiv:2211.05102, section 3.3) do so for multi-query attention, whose one head cannot be split.
    dp
        Data-parallel degree of attention: groups of ``tp`` ranks that each decode sequences of their own and share the
        experts between them all (DeepSeek-V3, arXiv:2412.19437, section 3.4).
    whole_experts
        Whether routed experts are dealt out whole (expert parallelism) rather than each cut into slices.
    dense_over_all
        Whether dense feed-forward layers, embedding and head are shared by all groups too, rather than held by each.
    """

    tp: int = 1
    over_batch: bool = False
    dp: int = 1
    whole_experts: bool = False
    dense_over_all: bool = False

    @property
    def ranks(self) -> int:
        """Devices of a stage."""
        return self.tp * self.dp

    @property
    def head_ranks(self) -> int:
        """Ranks that the heads of one sequence's cache are dealt to."""
        return 1 if self.over_batch else self.tp

    @property
    def batch_ranks(self) -> int:
        """Ranks that the sequences of a batch are dealt to."""
        return self.dp * (self.tp if self.over_batch else 1)

    def held(self, t: Tensor) -> int:
        """Parameters of a tensor on the fullest rank.

        >>> Sharding(8, whole_experts=True).held(Tensor("up", Role.EXPERT, 128, 64, copies=60))
        65536
        """
        if t.copies > 1:
            whole = ceil_div(t.copies, self.ranks) * t.units * t.unit_size
            return whole if self.whole_experts else t.per_rank(self.ranks)
        return t.per_rank(self.ranks if self.dense_over_all and t.role in _DENSE else self.tp)


_DENSE = (Role.FFN, Role.EMBEDDING, Role.HEAD)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one pipeline stage holds; ``tp`` ranks share it.

    Attributes
    ----------
    groups
        Groups of like layers, each with how many of them are here.
    tensors
        Weights outside the decoder layers (embedding, head, encoder), each with its number of copies here.
    first, last
        Whether tokens enter and leave here.
    """

    groups: tuple[tuple[LayerGroup, int], ...]
    tensors: tuple[tuple[Tensor, int], ...]
    first: bool
    last: bool

    def all_tensors(self) -> list[tuple[Tensor, int]]:
        """Every tensor of the stage with its number of copies."""
        return [*self.tensors, *held((group.tensors, count) for group, count in self.groups)]

    @property
    def layers(self) -> int:
        return sum(count for _, count in self.groups)


def split_layers(layers: int, pp: int) -> list[int]:
    """Layers of each pipeline stage: equal shares, the remainder to the stages before the last.

    The last stage also holds the head, so it gets no extra layer. This is vLLM's rule (``get_pp_indices`` in
    ``vllm/distributed/utils.py``).

    >>> split_layers(61, 4)
    [15, 15, 16, 15]
    """
    share, rest = divmod(layers, pp)
    return [share + (1 if pp - 1 - rest <= s < pp - 1 else 0) for s in range(pp)]


def stages_of(model: ModelSpec, pp: int) -> tuple[Stage, ...]:
    """The model cut into ``pp`` pipeline stages.

    A tied head is the embedding itself on one device, and a copy of it on the last stage of several.
    """
    found = []
    start = 0
    for index, layers in enumerate(split_layers(model.layers, pp)):
        first, last = index == 0, index == pp - 1
        groups = tuple((g, n) for g in model.groups if (n := g.within(start, start + layers)))
        tensors: list[tuple[Tensor, int]] = []
        if first:
            tensors += [*((t, 1) for t in model.input_tensors), *model.encoder_tensors]
        if last:
            tensors += [(t, 1) for t in model.output_tensors]
            if model.tied and not first:
                tensors.append((model.head, 1))
        found.append(Stage(groups, tuple(tensors), first, last))
        start += layers
    return tuple(found)
