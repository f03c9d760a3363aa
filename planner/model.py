"""ModelSpec: a stack of layers as rows, and everything that follows from them.

A card gives attention rows and feed-forward rows, each with the layers it applies to. Parameter counts, weight bytes and
floating-point work are all sums over the same list of tensors, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field, model_validator

from planner.attention import Attention, AttentionRow, with_variant
from planner.precision import FORMATS, Format, find_format
from planner.row import Count, Flag, Layers, Maybe, Row, Source, Text, select_layers
from planner.tensors import Role, Tensor, vector

HIGH_PRECISION = ("fp32", "bf16", "fp16")


class FeedForward(Row):
    """A feed-forward layer: dense, or a mixture of experts."""

    at: str = ""
    width: Count
    """Columns of one expert, or of the dense layer."""
    gated: Flag = True
    """Gate, up and down projections (SwiGLU, GeGLU: Shazeer 2020, arXiv:2002.05202) rather than up and down."""
    bias: Flag = False
    experts: Maybe = 0
    top_k: Maybe = 0
    """Routed experts that one token is sent to."""
    shared_width: Maybe = 0
    """Columns of the shared experts together: those every token passes through."""
    shared_gate: Flag = False
    router_bias: Flag = False

    @model_validator(mode="after")
    def _check(self) -> FeedForward:
        if bool(self.experts) != bool(self.top_k) or self.top_k > self.experts:
            raise ValueError(f"experts = {self.experts} and top_k = {self.top_k} do not go together")
        if self.shared_width and not self.experts:
            raise ValueError("shared_width needs experts; a dense layer has only a width")
        return self

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        """Weights of one such layer."""
        if not self.experts:
            return _mlp("", Role.FFN, self.width, hidden, self.gated, self.bias)
        rows = [Tensor("router", Role.ROUTER, 1, self.experts * hidden)]
        rows += _mlp("expert_", Role.EXPERT, self.width, hidden, self.gated, self.bias, self.experts, self.top_k)
        if self.router_bias:
            rows.append(vector("router_bias", self.experts))
        if self.shared_width:
            rows += _mlp("shared_", Role.FFN, self.shared_width, hidden, self.gated, self.bias)
        if self.shared_gate:
            rows.append(Tensor("shared_gate", Role.ROUTER, 1, hidden))
        return tuple(rows)


def _mlp(
    prefix: str, role: Role, width: int, hidden: int, gated: bool, bias: bool, copies: int = 1, used: int = 1
) -> tuple[Tensor, ...]:
    wide = ("gate_proj", "up_proj") if gated else ("up_proj",)
    rows = [Tensor(prefix + name, role, width, hidden, copies, used) for name in (*wide, "down_proj")]
    if bias:
        rows += [Tensor(f"{prefix}{name}_bias", Role.VECTOR, width, 1, copies, used) for name in wide]
        rows.append(Tensor(prefix + "down_bias", Role.VECTOR, 1, hidden, copies, used))
    return tuple(rows)


class Other(Row):
    """Weights that are loaded and that a decode step does not stream: vision towers, position tables."""

    name: Text
    parameters: Count


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that are alike: the same attention rows and the same feed-forward row."""

    indices: tuple[int, ...]
    attention: tuple[AttentionRow, ...]
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
    attention: tuple[Attention, ...]
    ffn: tuple[FeedForward, ...]
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
        selves = _assign([r.at for r in own], every, "attention")
        crosses = _assign([r.at for r in source], every, "cross-attention")
        ffns = _assign([r.at for r in self.ffn], every, "ffn")
        alike: dict[tuple[int, int, int], list[int]] = {}
        for i in range(every):
            alike.setdefault((selves[i], crosses[i], ffns[i]), []).append(i)
        groups = []
        for (s, c, f), indices in alike.items():
            rows = tuple(r for r in (own[s] if s >= 0 else None, source[c] if c >= 0 else None) if r)
            ffn = self.ffn[f] if f >= 0 else None
            tensors = [t for row in rows for t in row.tensors(hidden)]
            tensors += ffn.tensors(hidden) if ffn else ()
            if self.norms_per_layer and self._norm_vectors:
                tensors.append(vector("layer_norms", self.norms_per_layer * self._norm_vectors * hidden))
            groups.append(LayerGroup(tuple(indices), rows, ffn, tuple(tensors)))
        return tuple(groups)


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


class WeightFormats(Row):
    """Formats of a checkpoint as it is released: one for the linear layers, and exceptions by role."""

    default: Text = "bf16"
    attention: Text | None = None
    ffn: Text | None = None
    experts: Text | None = None


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
    weights: WeightFormats = Field(default_factory=WeightFormats)
    parameters: Count
    parameters_within: Maybe = 0
    """Half a unit of the last published digit, where only a rounded count was published."""
    source: tuple[Source, ...] = Field(min_length=1)
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if not any(g.attention for g in self.groups):
            raise ValueError("no layer has attention")
        derived = sum(t.parameters * n for t, n in self.all_tensors())
        if abs(derived - self.parameters) > self.parameters_within:
            gap = derived - self.parameters
            raise ValueError(f"parameters = {self.parameters:,} but the rows derive {derived:,} ({gap:+,})")
        crossed = any(row.attends_source for row in self.attention)
        if not bool(self.encoder) == crossed == bool(self.source_tokens):
            raise ValueError("an encoder, source_tokens and rows of kind 'cross' go together")
        for name in filter(
            None, (self.weights.default, self.weights.attention, self.weights.ffn, self.weights.experts)
        ):
            if name not in FORMATS:
                raise ValueError(f"weights: unknown format {name!r}; use one of {', '.join(FORMATS)}")
        return self

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
        rows = [Tensor("embed_tokens", Role.EMBEDDING, self.vocab, self.hidden)]
        if self.learned_positions:
            rows.append(Tensor("embed_positions", Role.OTHER, 1, self.learned_positions * self.hidden))
        rows += [Tensor(o.name, Role.OTHER, 1, o.parameters) for o in self.other]
        return tuple(rows)

    @cached_property
    def output_tensors(self) -> tuple[Tensor, ...]:
        """What the last pipeline stage holds beside its layers: final norm and, unless tied, the head."""
        rows = []
        if self.final_norm and self._norm_vectors:
            rows.append(vector("final_norm", self._norm_vectors * self.hidden))
        if not self.tied:
            rows.append(Tensor("lm_head", Role.HEAD, self.vocab, self.hidden))
        if self.head_bias:
            rows.append(vector("lm_head_bias", 1, self.vocab))
        return tuple(rows)

    @cached_property
    def encoder_tensors(self) -> tuple[tuple[Tensor, int], ...]:
        """Weights of the encoder with how many layers hold each; they live on the first pipeline stage."""
        rows = [(t, g.count) for g in self.encoder_groups for t in g.tensors]
        if self.encoder and self.encoder.final_norm:
            rows.append((vector("encoder_norm", self.encoder._norm_vectors * self.hidden), 1))
        return tuple(rows)

    def all_tensors(self) -> Iterator[tuple[Tensor, int]]:
        """Every tensor with the number of times it occurs."""
        yield from ((t, 1) for t in (*self.input_tensors, *self.output_tensors))
        yield from self.encoder_tensors
        yield from ((t, g.count) for g in self.groups for t in g.tensors)

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
        """Attention variants of the decoder, each once, such as ``GQA-8, window 1,024``."""
        rows = dict.fromkeys(row for g in self.groups for row in g.attention)
        return tuple(dict.fromkeys(r.variant + (f", window {r.window:,}" if r.window else "") for r in rows))

    @property
    def query_heads(self) -> tuple[int, ...]:
        """Distinct numbers of query heads; a tensor-parallel degree must divide each."""
        return tuple(sorted({row.heads for g in (*self.groups, *self.encoder_groups) for row in g.attention}))

    def weight_formats(self, weights: str | None = None) -> Mapping[Role, Format]:
        """Format of each role of tensor.

        Parameters
        ----------
        weights
            A format for all linear layers; ``None`` is the checkpoint as released. A 16 or 32-bit format applies to every
            tensor; a quantised one leaves embeddings, head, router and vectors in bf16, as quantisation schemes do.
        """
        named = self.weights if weights is None else WeightFormats(default=find_format(weights).id)
        default = find_format(named.default)
        rest = default if default.id in HIGH_PRECISION else FORMATS["bf16"]
        formats = {role: default if role.linear else rest for role in Role}
        exceptions = {Role.ATTENTION: named.attention, Role.SOURCE: named.attention, Role.FFN: named.ffn}
        for role, name in {**exceptions, Role.EXPERT: named.experts}.items():
            if name:
                formats[role] = find_format(name)
        return formats

    def with_attention(self, variant: str, head_dim: int | None = None) -> ModelSpec:
        """The same model with every decoder layer given another attention variant; see `attention.with_variant`.

        The parameter count follows the new rows. Cross-attention changes with self-attention, as in Ainslie et al. 2023.
        """
        rows = tuple(with_variant(row, variant, head_dim) for row in self.attention)
        changed = self.model_copy(update={"attention": rows, "id": f"{self.id}+{variant.strip().lower()}"})
        for name in ("groups", "total_parameters", "active_parameters"):
            changed.__dict__.pop(name, None)
        return changed.model_copy(update={"parameters": changed.total_parameters, "parameters_within": 0})


def formats_label(formats: Mapping[Role, Format]) -> str:
    """Short name of a choice of weight formats: ``bf16``, or ``mxfp4+bf16`` where linear layers differ."""
    return "+".join(dict.fromkeys(formats[r].id for r in (Role.EXPERT, Role.FFN, Role.ATTENTION)))
