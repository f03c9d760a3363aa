"""How a model is spread over devices: pipeline stages, and tensor-parallel ranks within each."""

from __future__ import annotations

from dataclasses import dataclass

from planner.model import LayerGroup, ModelSpec
from planner.tensors import Tensor, held


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the ranks of one stage share weights and cache.

    Attributes
    ----------
    tp
        Tensor-parallel degree: ranks that share every layer's weights.
    over_batch
        Whether the cache is shared by sequence, each rank keeping all heads of its share of the batch, instead of by head.
        Pope et al. 2022 (arXiv:2211.05102, section 3.3) do so for multi-query attention, whose one head cannot be split.
    """

    tp: int = 1
    over_batch: bool = False

    @property
    def head_ranks(self) -> int:
        """Ranks that the heads of one sequence's cache are dealt to."""
        return 1 if self.over_batch else self.tp

    @property
    def batch_ranks(self) -> int:
        """Ranks that the sequences of a batch are dealt to."""
        return self.tp if self.over_batch else 1


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
