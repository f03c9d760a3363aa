"""ModelSpec: a stack of layers as rows, and everything that follows from them.

A card gives attention rows, state rows and feed-forward rows, each with the layers it applies to. Parameter counts, weight
bytes and floating-point work are all sums over the same list of tensors, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from planner.attention import Attention, AttentionRow, HeadAttention
from planner.errors import InputError, KvplanError
from planner.feedforward import FeedForward
from planner.formats import Formats, WeightFormats, counted
from planner.precision import find_format, find_kv
from planner.row import Count, Flag, Layers, Maybe, Row, Source, Text, select_layers
from planner.state import State, StateRow
from planner.tensors import Role, Tensor, held, vector
from planner.variants import with_variant

if TYPE_CHECKING:
    from planner.mixes import Shape


class Other(Row):
    """Weights that are loaded and that a decode step does not stream: vision towers, position tables."""

    name: Text
    parameters: Count

    @property
    def is_tower(self) -> bool:
        """Whether it turns images into tokens."""
        return "vision tower" in self.name


class Drafter(Row):
    """Layers that only speculative decoding loads (multi-token prediction); counted apart from the model."""

    name: Text = "multi-token prediction"
    layers: Count = 1
    parameters: Count


class LayerWeights(Row):
    """Weights of layers beside attention, state and feed-forward: further norms, adapters, gates, per-layer inputs."""

    at: str = ""
    """Layers that have them, as Python slices; empty for all."""
    name: Text
    parameters: Count
    role: Literal["vectors", "attention", "ffn", "other"] = "vectors"
    """``attention`` and ``ffn`` are projections that every token is multiplied by; ``other`` is looked up."""
    distinct: Maybe = 0
    """How many sets the layers have between them, where they share; 0 if each has its own."""
    units: Count = 1
    """Slices that tensor parallelism can deal out; with one, every rank holds the whole."""

    @model_validator(mode="after")
    def _check(self) -> LayerWeights:
        if self.parameters % self.units:
            raise ValueError(f"units = {self.units} must divide parameters = {self.parameters}")
        return self

    @property
    def tensor(self) -> Tensor:
        """The weights as one tensor."""
        size = self.parameters // self.units
        return Tensor(self.name, Role(self.role), self.units, size, distinct=self.distinct)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that are alike: the same attention rows, state row and feed-forward row."""

    indices: tuple[int, ...]
    attention: tuple[AttentionRow, ...]
    state: StateRow | None
    ffn: FeedForward | None
    tensors: tuple[Tensor, ...]
    """Weights of one of these layers."""

    @property
    def count(self) -> int:
        return len(self.indices)

    def within(self, start: int, stop: int) -> int:
        """How many of the layers lie in a pipeline stage that holds layers ``start`` up to ``stop``."""
        return sum(start <= i < stop for i in self.indices)


class Stack(Row):
    """Layers one after another. ``at`` of a row says which; a row without it takes the layers no other row claims."""

    layers: Layers
    attention: tuple[Attention, ...] = ()
    state: tuple[State, ...] = ()
    ffn: tuple[FeedForward, ...] = ()
    extra: tuple[LayerWeights, ...] = ()
    parallel: Flag = False
    """Attention and feed-forward read the same input and are added together (GPT-J, PaLM), rather than one after another."""
    norms_per_layer: Maybe = 2
    norm_weight: Flag = True
    norm_bias: Flag = False
    final_norm: Flag = True

    @property
    def _norm_vectors(self) -> int:
        return self.norm_weight + self.norm_bias

    def groups_of(self, hidden: int) -> tuple[LayerGroup, ...]:
        """The stack as groups of like layers, in order of first appearance."""
        every = self.layers
        own = [r for r in self.attention if not r.attends_source]
        source = [r for r in self.attention if r.attends_source]
        chosen = [
            _assign([r.at for r in rows], every, what)
            for rows, what in (
                (own, "attention"),
                (source, "cross-attention"),
                (self.state, "state"),
                (self.ffn, "ffn"),
            )
        ]
        beside = [select_layers(r.at, every) if r.at.strip() else range(every) for r in self.extra]
        alike: dict[tuple[int, ...], list[int]] = {}
        for i in range(every):
            alike.setdefault((*(c[i] for c in chosen), *(i in layers for layers in beside)), []).append(i)
        norms = self.norms_per_layer * self._norm_vectors * hidden
        groups = []
        for (s, c, m, f, *has), indices in alike.items():
            rows = tuple(r for r in (own[s] if s >= 0 else None, source[c] if c >= 0 else None) if r)
            state, ffn = self.state[m] if m >= 0 else None, self.ffn[f] if f >= 0 else None
            tensors = [t for row in (*rows, state, ffn) if row for t in row.tensors(hidden)]
            tensors += [vector("layer_norms", norms)] if norms else []
            tensors += [r.tensor for r, there in zip(self.extra, has, strict=True) if there]
            groups.append(LayerGroup(tuple(indices), rows, state, ffn, tuple(tensors)))
        return tuple(groups)

    def parameters_of(self, hidden: int) -> int:
        """All parameters of the layers and the final norm."""
        total = sum(t.parameters * n for t, n in held((g.tensors, g.count) for g in self.groups_of(hidden)))
        return total + (self._norm_vectors * hidden if self.final_norm else 0)


def _assign(ats: list[str], layers: int, what: str) -> list[int]:
    """For each layer the row that applies to it, -1 for none."""
    chosen = [-1] * layers
    rest = [i for i, at in enumerate(ats) if not at.strip()]
    if len(rest) > 1:
        raise ValueError(f"{len(rest)} {what} rows have no 'at'; only one can take the layers that are left")
    for index, at in enumerate(ats):
        for layer in select_layers(at, layers) if at.strip() else ():
            if chosen[layer] >= 0:
                raise ValueError(f"layer {layer} is claimed by two {what} rows")
            chosen[layer] = index
    return [rest[0] if rest and c < 0 else c for c in chosen]


class ModelSpec(Stack):
    """A model: names, shape and source.

    Every row is checked on construction, and the parameter count that a card publishes must equal the one its rows derive.
    """

    id: Text
    name: Text
    aliases: tuple[Text, ...] = ()
    family: Text
    hidden: Count
    vocab: Count
    tied: Flag = False
    head_bias: Flag = False
    learned_positions: Maybe = 0
    context_limit: Count
    source_tokens: Maybe = 0
    """Source length that an encoder-decoder is planned for unless told otherwise [tokens]."""
    encoder: Stack | None = None
    other: tuple[Other, ...] = ()
    drafter: Drafter | None = None
    embedding_width: Count | None = None
    """Width of the embedding and of a head of its own, where it is not the hidden width (OPT-350M)."""
    weights: WeightFormats = Field(default_factory=WeightFormats)
    kv: str = ""
    """Format of the cache that the checkpoint declares, with scales for it; empty if it declares none."""
    parameters: Count
    parameters_within: Maybe = 0
    """Half a unit of the last published digit, where only a rounded count was published."""
    source: tuple[Source, ...] = Field(min_length=1)
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        try:
            find_kv(self.kv or "bf16")
        except KvplanError as error:
            raise ValueError(f"kv: {error}") from None
        if not any(g.attention or g.state for g in self.groups):
            raise ValueError("no layer has attention or state")
        derived = self.total_parameters
        if abs(derived - self.parameters) > self.parameters_within:
            gap = derived - self.parameters
            raise ValueError(f"parameters = {self.parameters:,} but the rows derive {derived:,} ({gap:+,})")
        crossed = any(row.attends_source for row in self.attention)
        if not bool(self.encoder) == crossed == bool(self.source_tokens):
            raise ValueError("an encoder, source_tokens and rows of kind 'cross' go together")
        return self

    @classmethod
    def derived(cls, **fields: Any) -> ModelSpec:
        """A model whose parameter count is the one that its rows derive."""
        spec = cls(**{**fields, "parameters": 1, "parameters_within": 10**15})
        return spec.model_copy(update={"parameters": spec.total_parameters, "parameters_within": 0})

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        """Decoder layers, grouped."""
        return self.groups_of(self.hidden)

    @cached_property
    def encoder_groups(self) -> tuple[LayerGroup, ...]:
        return self.encoder.groups_of(self.hidden) if self.encoder else ()

    @cached_property
    def input_tensors(self) -> tuple[Tensor, ...]:
        """What the first pipeline stage holds beside its layers."""
        rows = [Tensor("embed_tokens", Role.EMBEDDING, self.vocab, self.embedding_width or self.hidden)]
        if self.learned_positions:
            rows.append(Tensor("embed_positions", Role.OTHER, 1, self.learned_positions * self.hidden))
        rows += [Tensor(o.name, Role.OTHER, 1, o.parameters) for o in self.other]
        return tuple(rows)

    @property
    def head(self) -> Tensor:
        """The matrix that gives the logits, whether it is the embedding or one of its own."""
        return Tensor("lm_head", Role.HEAD, self.vocab, self.embedding_width or self.hidden)

    @cached_property
    def output_tensors(self) -> tuple[Tensor, ...]:
        """What the last pipeline stage holds beside its layers: final norm and, unless tied, the head."""
        rows = []
        if self.final_norm and self._norm_vectors:
            rows.append(vector("final_norm", self._norm_vectors * self.hidden))
        if not self.tied:
            rows.append(self.head)
        if self.head_bias:
            rows.append(vector("lm_head_bias", 1, self.vocab))
        return tuple(rows)

    @cached_property
    def encoder_tensors(self) -> tuple[tuple[Tensor, int], ...]:
        """Weights of the encoder with how many layers hold each; they live on the first pipeline stage."""
        rows = list(held((g.tensors, g.count) for g in self.encoder_groups))
        if self.encoder and self.encoder.final_norm:
            rows.append((vector("encoder_norm", self.encoder._norm_vectors * self.hidden), 1))
        return tuple(rows)

    def all_tensors(self) -> Iterator[tuple[Tensor, int]]:
        """Every tensor with the number of times it occurs."""
        yield from ((t, 1) for t in (*self.input_tensors, *self.output_tensors))
        yield from self.encoder_tensors
        yield from held((g.tensors, g.count) for g in self.groups)

    def placed_tensors(self) -> Iterator[tuple[int, Tensor, int]]:
        """Every tensor with its layer, -1 outside the decoder's layers, and how many of it are there."""
        yield from ((-1, t, 1) for t in (*self.input_tensors, *self.output_tensors))
        yield from ((-1, t, n) for t, n in self.encoder_tensors)
        for group in self.groups:
            yield from ((layer, t, 1) for layer in group.indices for t in group.tensors if not t.distinct)
        shared = held(([t for t in g.tensors if t.distinct], g.count) for g in self.groups)
        yield from ((0, t, n) for t, n in shared)

    @cached_property
    def total_parameters(self) -> int:
        """All parameters."""
        return sum(t.parameters * n for t, n in self.all_tensors())

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that one token uses: all but the experts that it is not routed to."""
        return sum(t.active_parameters * n for t, n in self.all_tensors())

    @property
    def variants(self) -> tuple[str, ...]:
        """Attention and state variants of the decoder, each once, such as ``GQA-8, window 1,024``."""
        rows = dict.fromkeys(row for g in self.groups for row in g.attention)
        named = [r.variant + (f", window {r.window:,}" if r.window else "") for r in rows]
        return tuple(dict.fromkeys([*named, *(g.state.name for g in self.groups if g.state)]))

    @property
    def query_heads(self) -> tuple[int, ...]:
        """Distinct numbers of query heads; a tensor-parallel degree must divide each."""
        return tuple(sorted({row.heads for g in (*self.groups, *self.encoder_groups) for row in g.attention}))

    def weight_formats(self, weights: str | None = None) -> Formats:
        """Format of each role of tensor.

        Parameters
        ----------
        weights
            A format for all linear layers; ``None`` is the checkpoint as released. A 16 or 32-bit format applies to every
            tensor; a quantised one leaves embeddings, head, router and vectors in bf16, as quantisation schemes do; one of
            `planner.mixes.MIXES` is the mixture of GGUF files, tensor by tensor.
        """
        if weights is not None:
            from planner.mixes import find_mix, mix_formats  # large, and only needed here

            if mix := find_mix(weights):
                return mix_formats(mix, self.placed_tensors(), self._shape)
            return WeightFormats(default=find_format(weights).id).by_role()
        formats = self.weights.by_role()
        return counted(formats, self.weights.nbytes, self.parameters_by_role) if self.weights.nbytes else formats

    @property
    def _shape(self) -> Shape:
        """What the mixtures of GGUF files ask of a model."""
        from planner.mixes import Shape

        first = next(iter(self.groups[0].attention), None)
        kv_heads = first.kv_heads if isinstance(first, HeadAttention) else 1
        experts = max((row.experts for row in self.ffn), default=0)
        return Shape(self.layers, self.hidden, first.heads // kv_heads if first else 0, experts)

    @cached_property
    def parameters_by_role(self) -> dict[Role, int]:
        """Parameters of all tensors of each role."""
        found: dict[Role, int] = {}
        for t, n in self.all_tensors():
            found[t.role] = found.get(t.role, 0) + t.parameters * n
        return found

    def with_attention(self, variant: str, head_dim: int | None = None) -> ModelSpec:
        """The same model with every decoder layer given another attention variant; see `attention.with_variant`.

        The parameter count follows the new rows. Cross-attention changes with self-attention, as in Ainslie et al. 2023.
        """
        if not self.attention:
            raise InputError(f"{self.id} has no attention that could be changed; name a model that has")
        rows = tuple(with_variant(row, variant, head_dim) for row in self.attention)
        changed = self.model_copy(update={"attention": rows, "id": f"{self.id}+{variant.strip().lower()}"})
        for name in ("groups", "total_parameters", "active_parameters", "parameters_by_role"):
            changed.__dict__.pop(name, None)
        return changed.model_copy(update={"parameters": changed.total_parameters, "parameters_within": 0})
