"""Attention variants as rows of data: what a layer caches, reads and computes.

A row says how many query and key-value heads there are, how wide a cached key and value is, how many tokens are kept, and
how tensor parallelism splits it. Multi-head, grouped-query and multi-query attention are one row with different
``kv_heads``; a sliding window is the same row with ``window``; multi-head latent attention is one latent "head" that
every rank holds; cross-attention grows with the source instead of the target; a layer that reads another's cache has the
same row with ``owner`` false; an indexer adds a small key a token and bounds what is read.

References
----------
MHA: Vaswani et al. 2017, arXiv:1706.03762. MQA: Shazeer 2019, arXiv:1911.02150. GQA: Ainslie et al. 2023,
arXiv:2305.13245. Sliding window: Beltagy et al. 2020, arXiv:2004.05150. MLA: DeepSeek-V2, arXiv:2405.04434. Cross-layer
sharing: Brandon et al. 2024, arXiv:2405.12981. Indexer: DeepSeek-V3.2, arXiv:2512.02556.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag, model_validator

from planner.cached import UNBOUNDED, Cached
from planner.row import Count, Flag, Maybe, Row
from planner.tensors import Role, Tensor, ceil_div, vector


class Indexer(Row):
    """A small attention that picks the tokens which the large one reads (DeepSeek-V3.2, arXiv:2512.02556, section 2.1).

    It caches one key a token, which every rank holds.
    """

    heads: Count
    head_dim: Count
    top_k: Count
    """Most tokens that attention then reads."""
    q_rank: Maybe = 0
    """Width of the compressed query that its queries are projected from; 0 for the hidden state."""
    norm_vectors: Maybe = 2
    """Vectors of ``head_dim`` in the norm of its keys (and queries)."""
    weights: Flag = True
    """Whether heads are weighted by a projection of the hidden state."""

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        """Weights of one indexer."""
        rows = [
            Tensor("index_q_proj", Role.ATTENTION, self.heads, self.head_dim * (self.q_rank or hidden)),
            Tensor("index_k_proj", Role.ATTENTION, 1, hidden * self.head_dim),
        ]
        if self.norm_vectors:
            rows.append(vector("index_norm", self.norm_vectors * self.head_dim))
        if self.weights:
            rows.append(Tensor("index_weights_proj", Role.ROUTER, self.heads, hidden))
        return tuple(rows)

    def cached(self, tp: int, every: int = 1) -> Cached:
        """The keys that the indexer compares with."""
        work = 2 * ceil_div(self.heads, tp) * self.head_dim
        return Cached(1, self.head_dim, "index", every=every, flops=work, prefill_flops=work)


class AttentionRow(Row):
    """What every variant answers. ``tp`` is the tensor-parallel degree."""

    reference: ClassVar[str] = ""
    """What is cached, and who says so."""

    at: str = ""
    """Layers that have this row, as Python slices; empty for all that no other row of its kind claims."""
    heads: Count
    window: Count | None = None
    """Tokens kept: a sliding window, or the chunk of chunked attention, of which it is the most; none keeps all."""
    chunked: Flag = False
    """Whether the window is a chunk: it starts anew at every multiple instead of sliding."""
    owner: Flag = True
    """Whether the layer holds its keys and values, rather than reading those of an earlier layer."""
    indexer: Indexer | None = None
    read: Count | None = None
    """Most tokens that a decode step reads, where the indexer of an earlier layer picks them."""
    attends_source: bool = False
    """Whether the keys are the encoder's output (cross-attention) rather than the sequence itself."""
    distinct: Maybe = 0
    """How many sets of weights the row's layers have between them, where they share; 0 if each has its own."""
    extra: Maybe = 0
    """Small weights beyond those that the row derives: further norms, gates, adapters; every rank holds them."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """Short name, such as ``GQA-8``."""

    @abstractmethod
    def _tensors(self, hidden: int) -> list[Tensor]:
        """Weights of the variant itself."""

    @abstractmethod
    def _cached(self, tp: int) -> tuple[Cached, ...]:
        """Vectors that one token adds to one layer's cache on one rank, the indexer's left out."""

    @property
    @abstractmethod
    def query_dim(self) -> int:
        """Width of one head's query."""

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        """Weights of one such layer."""
        rows = self._tensors(hidden)
        if self.extra:
            rows.append(vector("attention_extra", self.extra))
        if self.indexer:
            rows += self.indexer.tensors(hidden)
        return tuple(t.shared(self.distinct) for t in rows) if self.distinct else tuple(rows)

    def cached(self, tp: int) -> tuple[Cached, ...]:
        """All vectors that one token adds to one layer's cache on one rank."""
        own = self._cached(tp)
        return (*own, self.indexer.cached(tp)) if self.indexer else own

    def cache_elements(self, tp: int) -> int:
        """Numbers that one token adds to one layer's cache on one rank, or would if the layer held it [elements]."""
        return sum(c.vectors * c.width for c in self.cached(tp))

    @property
    def kept_tokens(self) -> int:
        """Most tokens that a layer keeps."""
        return self.window or UNBOUNDED

    @property
    def read_tokens(self) -> int:
        """Most tokens that a decode step reads."""
        return self.indexer.top_k if self.indexer else self.read or UNBOUNDED

    def local_heads(self, tp: int) -> int:
        """Query heads on the fullest rank."""
        return ceil_div(self.heads, tp)

    @property
    @abstractmethod
    def output_dim(self) -> int:
        """Width of one head's output."""

    def small_elements(self, tp: int) -> int:
        """What the small kernels between projections and attention read and write of one token on one rank [elements].

        Rotary embedding, done in one pass with norms of the same vectors, reads and writes queries and keys.
        """
        own = self._small_elements(tp)
        return own + 2 * (ceil_div(self.indexer.heads, tp) + 1) * self.indexer.head_dim if self.indexer else own

    @abstractmethod
    def _small_elements(self, tp: int) -> int:
        """The same of the variant itself."""

    def entry(
        self, vectors: int, width: int, part: Literal["k", "v"], flops: int, prefill: int | None = None,
        expanded: int = 0,
    ) -> Cached:  # fmt: skip
        """Cached vectors that share what the row says of keeping, reading and owning."""
        return Cached(
            vectors, width, part, kept=self.kept_tokens, read=self.read_tokens, flops=flops,
            prefill_flops=flops if prefill is None else prefill, owned=self.owner,
            chunked=self.chunked and self.window is not None, expanded=expanded,
        )  # fmt: skip


class HeadAttention(AttentionRow):
    """Keys and values cached per head: MHA, GQA and MQA, with or without a window."""

    reference = "Keys and values of each KV head: Shazeer 2019, arXiv:1911.02150; Ainslie et al. 2023, arXiv:2305.13245"
    kind: Literal["heads"] = "heads"
    kv_heads: Count
    head_dim: Count
    """Width of a query and of a cached key."""
    v_head_dim: Count | None = None
    """Width of a cached value, where it differs from the key's."""
    qkv_bias: Flag = False
    k_bias: Flag = True
    """Whether a row with ``qkv_bias`` has one on keys too (Whisper does not)."""
    o_bias: Flag = False
    qk_norm: Literal["none", "head", "full"] = "none"
    """Norms on queries and keys: one gain a head position, shared by all heads, or one for each head."""
    sinks: Flag = False
    """A learned logit per head (gpt-oss)."""
    gate: Literal["none", "head", "element"] = "none"
    """A gate on the output, projected from the hidden state: one number a head, or one an element (Qwen3-Next)."""
    k_proj: Flag = True
    v_proj: Flag = True
    """Whether keys and values are projected here; a layer may read another's, or use its keys as values."""
    input_width: Count | None = None
    """Width of what queries, keys and values are projected from, where it is not the hidden state (Zamba)."""

    @model_validator(mode="after")
    def _check(self) -> HeadAttention:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads} must divide heads = {self.heads}")
        return self

    @property
    def value_dim(self) -> int:
        """Width of a cached value."""
        return self.v_head_dim or self.head_dim

    @property
    def output_dim(self) -> int:
        return self.value_dim

    def _small_elements(self, tp: int) -> int:
        # A gate reads the output and itself, and writes the product.
        gate = {"none": 0, "head": 2 * self.value_dim + 1, "element": 3 * self.value_dim}[self.gate]
        turned = 0 if self.attends_source else self.head_dim  # the source's positions are in it already
        keys = ceil_div(self.kv_heads, tp) * self.k_proj
        return 2 * (self.local_heads(tp) + keys) * turned + self.local_heads(tp) * gate

    @property
    def query_dim(self) -> int:
        return self.head_dim

    @property
    def variant(self) -> str:
        if self.kv_heads == self.heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else f"GQA-{self.kv_heads}"

    def _tensors(self, hidden: int) -> list[Tensor]:
        key, value, read = self.head_dim, self.value_dim, self.input_width or hidden
        source = Role.SOURCE if self.attends_source else Role.ATTENTION
        rows = [Tensor("q_proj", Role.ATTENTION, self.heads, read * key)]
        if self.k_proj:
            rows.append(Tensor("k_proj", source, self.kv_heads, read * key))
        if self.v_proj:
            rows.append(Tensor("v_proj", source, self.kv_heads, read * value))
        rows.append(Tensor("o_proj", Role.ATTENTION, self.heads, value * hidden))
        if self.gate != "none":
            rows.append(
                Tensor("output_gate", Role.ATTENTION, self.heads, hidden * (value if self.gate == "element" else 1))
            )
        if self.qkv_bias:
            width = key * (self.k_proj and self.k_bias) + value * self.v_proj
            rows.append(vector("q_bias", key, self.heads))
            if width:
                rows.append(vector("kv_bias", width, self.kv_heads))
        if self.o_bias:
            rows.append(vector("o_bias", hidden))
        if self.qk_norm == "head":
            rows.append(vector("qk_norm", key + key * self.k_proj))
        elif self.qk_norm == "full":
            rows.append(vector("q_norm", key, self.heads))
            if self.k_proj:
                rows.append(vector("k_norm", key, self.kv_heads))
        if self.sinks:
            rows.append(vector("sinks", 1, self.heads))
        return rows

    def _cached(self, tp: int) -> tuple[Cached, ...]:
        local, heads = ceil_div(self.kv_heads, tp), self.local_heads(tp)
        return (
            self.entry(local, self.head_dim, "k", 2 * heads * self.head_dim),
            self.entry(local, self.value_dim, "v", 2 * heads * self.value_dim),
        )


class CrossAttention(HeadAttention):
    """Keys and values of the encoder's output, computed once and read at every step (T5, Whisper)."""

    kind: Literal["cross"] = "cross"  # type: ignore[assignment]
    attends_source: bool = True

    @property
    def variant(self) -> str:
        return f"cross {super().variant}"


class LatentAttention(AttentionRow):
    """Multi-head latent attention: one compressed key-value vector and one rotary key a token, shared by all heads.

    The latent cannot be split by heads, so every tensor-parallel rank keeps all of it. Decoding multiplies queries with
    the latent itself (the up-projections absorbed into query and output); prefill expands keys and values per head
    (DeepSeek-V2, arXiv:2405.04434, section 2.1). Where each token picks the latents that it reads, there is no block of
    them worth expanding, and prefill multiplies with the latent too (vLLM, v1/attention/backends/mla/flashmla_sparse.py).
    """

    reference = "MLA caches the latent and the rotary key: DeepSeek-V2, arXiv:2405.04434, section 2.1"
    kind: Literal["latent"] = "latent"
    q_lora_rank: Maybe = 0
    """Rank of the compressed query; 0 where queries are projected directly."""
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Maybe
    v_head_dim: Count

    @property
    def variant(self) -> str:
        return "MLA"

    @property
    def query_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def output_dim(self) -> int:
        return self.v_head_dim

    @property
    def latent_dim(self) -> int:
        """Width of what is cached for one token in one layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def _small_elements(self, tp: int) -> int:
        # Compressed query and latent are normed; of queries and keys a part is turned.
        return 2 * (self.q_lora_rank + self.kv_lora_rank + (self.local_heads(tp) + 1) * self.qk_rope_head_dim)

    def _tensors(self, hidden: int) -> list[Tensor]:
        rows = [
            Tensor("kv_a_proj", Role.ATTENTION, 1, hidden * self.latent_dim),
            vector("kv_a_norm", self.kv_lora_rank),
            Tensor(
                "kv_b_proj", Role.ATTENTION, self.heads, self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
            ),
            Tensor("o_proj", Role.ATTENTION, self.heads, self.v_head_dim * hidden),
        ]
        if self.q_lora_rank:
            rows += [
                Tensor("q_a_proj", Role.ATTENTION, 1, hidden * self.q_lora_rank),
                vector("q_a_norm", self.q_lora_rank),
                Tensor("q_b_proj", Role.ATTENTION, self.heads, self.q_lora_rank * self.query_dim),
            ]
        else:
            rows.append(Tensor("q_proj", Role.ATTENTION, self.heads, hidden * self.query_dim))
        return rows

    def _cached(self, tp: int) -> tuple[Cached, ...]:
        heads = self.local_heads(tp)
        expanded = heads * (2 * self.query_dim + 2 * self.v_head_dim)
        absorbed = heads * (2 * self.latent_dim + 2 * self.kv_lora_rank)
        if self.read_tokens < UNBOUNDED:
            return (self.entry(1, self.latent_dim, "k", absorbed),)
        weights = heads * self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        return (self.entry(1, self.latent_dim, "k", absorbed, expanded, weights),)


class CompressedAttention(AttentionRow):
    """One shared key-value vector a token in a window, and beyond it one for ``every`` tokens (DeepSeek-V4).

    The vector is key and value at once. Compressed entries are kept for the whole context and read by all heads, or those
    that an indexer over compressed keys picks. Queries and outputs are low-rank; outputs are projected in groups.
    """

    reference = (
        "One shared vector a token in a window and one for several beyond it: transformers 5.23, models/deepseek_v4"
    )
    kind: Literal["compressed"] = "compressed"
    head_dim: Count
    every: Maybe = 0
    """Tokens that one compressed entry stands for; 0 for a layer with its window only."""
    overlap: Flag = False
    """Whether an entry also draws on the tokens of the one before: its projections are then twice as wide."""
    q_lora_rank: Count
    o_groups: Count
    o_lora_rank: Count
    sinks: Flag = True

    @property
    def variant(self) -> str:
        return f"MQA, 1 of {self.every} beyond" if self.every else "MQA"

    @property
    def query_dim(self) -> int:
        return self.head_dim

    @property
    def output_dim(self) -> int:
        return self.head_dim

    def _small_elements(self, tp: int) -> int:
        return 2 * (self.q_lora_rank + (self.local_heads(tp) + 1) * self.head_dim)

    def _tensors(self, hidden: int) -> list[Tensor]:
        dim = self.head_dim
        rows = [
            Tensor("q_a_proj", Role.ATTENTION, 1, hidden * self.q_lora_rank),
            vector("q_a_norm", self.q_lora_rank),
            Tensor("q_b_proj", Role.ATTENTION, self.heads, self.q_lora_rank * dim),
            Tensor("kv_proj", Role.ATTENTION, 1, hidden * dim),
            vector("kv_norm", dim),
            Tensor("o_a_proj", Role.ATTENTION, self.heads, dim * self.o_lora_rank),
            Tensor("o_b_proj", Role.ATTENTION, self.o_groups, self.o_lora_rank * hidden),
        ]
        if self.sinks:
            rows.append(vector("sinks", 1, self.heads))
        if self.every:
            rows += self._compressor("compressor", hidden, dim)
            if self.indexer:
                rows += self._compressor("index_compressor", hidden, self.indexer.head_dim)
        return rows

    def _compressor(self, name: str, hidden: int, dim: int) -> list[Tensor]:
        """Two projections, a bias for each position within an entry, and a norm."""
        wide = dim * (1 + self.overlap)
        return [
            Tensor(f"{name}_proj", Role.ATTENTION, 1, 2 * hidden * wide),
            vector(f"{name}_position", self.every * wide),
            vector(f"{name}_norm", dim),
        ]

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        # The indexer's keys come from its compressor rather than from a projection of its own.
        return tuple(t for t in super().tensors(hidden) if t.name not in ("index_k_proj", "index_norm"))

    def cached(self, tp: int) -> tuple[Cached, ...]:
        work = 4 * self.local_heads(tp) * self.head_dim
        near = Cached(1, self.head_dim, kept=self.kept_tokens, flops=work, prefill_flops=work, owned=self.owner)
        if not self.every:
            return (near,)
        far = Cached(1, self.head_dim, every=self.every, read=self.read_tokens, flops=work, prefill_flops=work)
        return (near, far, self.indexer.cached(tp, self.every)) if self.indexer else (near, far)

    def _cached(self, tp: int) -> tuple[Cached, ...]:
        return self.cached(tp)

    def pending(self) -> tuple[Cached, ...]:
        """What an engine keeps besides, in fp32, of tokens that are not compressed yet: the compressor's projections.

        Those are a vector and its scores, twice as wide where entries overlap, of the tokens that the next entry draws on:
        vLLM v0.31.0, vllm/models/deepseek_v4/compressor.py. An indexer's compressor has its own. They are no part of what
        the model needs, as an engine could keep less.
        """
        if not self.every or not self.owner:
            return ()
        vectors, kept = 2 * (1 + self.overlap), self.every * (1 + self.overlap)
        widths = [self.head_dim, self.indexer.head_dim] if self.indexer else [self.head_dim]
        return tuple(Cached(vectors, width, kept=kept) for width in widths)

    @property
    def near(self) -> CompressedAttention:
        """The same layer with its window only."""
        return self.model_copy(update={"every": 0, "overlap": False, "indexer": None})


def _kind(row: Any) -> str:
    return str(row.get("kind", "heads")) if isinstance(row, dict) else str(row.kind)


Attention = Annotated[
    Annotated[HeadAttention, Tag("heads")]
    | Annotated[LatentAttention, Tag("latent")]
    | Annotated[CompressedAttention, Tag("compressed")]
    | Annotated[CrossAttention, Tag("cross")],
    Discriminator(_kind),
]
