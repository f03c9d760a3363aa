"""Attention variants as rows of data: what a layer caches, reads and computes.

A row says how many query and key-value heads there are, how wide a cached key and value is, how many tokens are kept, and
how tensor parallelism splits it. Multi-head, grouped-query and multi-query attention are one row with different
``kv_heads``; a sliding window is the same row with ``window``; multi-head latent attention is one latent "head" that
every rank holds; cross-attention grows with the source instead of the target.

References
----------
MHA: Vaswani et al. 2017, arXiv:1706.03762. MQA: Shazeer 2019, arXiv:1911.02150. GQA: Ainslie et al. 2023,
arXiv:2305.13245. Sliding window: Beltagy et al. 2020, arXiv:2004.05150. MLA: DeepSeek-V2, arXiv:2405.04434.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from planner.errors import InputError
from planner.row import Count, Flag, Maybe, Row
from planner.tensors import Role, Tensor, ceil_div, vector

UNBOUNDED = 2**62
"""Kept tokens of a layer that keeps them all; larger than any context."""


def bounded(value: int) -> int | None:
    """``None`` for a limit that memory does not set."""
    return None if value >= UNBOUNDED else value


class AttentionRow(Row):
    """What every variant answers. ``tp`` is the tensor-parallel degree."""

    at: str = ""
    """Layers that have this row, as Python slices; empty for all that no other row of its kind claims."""
    heads: Count
    window: Count | None = None
    """Tokens kept: a sliding window, or the chunk of chunked attention, of which it is the most; none keeps all."""
    attends_source: bool = False
    """Whether the keys are the encoder's output (cross-attention) rather than the sequence itself."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """Short name, such as ``GQA-8``."""

    @abstractmethod
    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        """Weights of one such layer."""

    @abstractmethod
    def cache_elements(self, tp: int) -> int:
        """Numbers that one token adds to one layer's cache on one rank [elements]."""

    @property
    @abstractmethod
    def cache_elements_formula(self) -> str:
        """The same for one rank of one, in symbols and in numbers."""

    @abstractmethod
    def decode_flops(self, tp: int) -> int:
        """Work of one new token against one cached token in one layer on one rank [FLOP]."""

    @abstractmethod
    def prefill_flops(self, tp: int) -> int:
        """Work of one prompt token against one earlier token in one layer on one rank [FLOP]."""

    @property
    @abstractmethod
    def query_dim(self) -> int:
        """Width of one head's query."""

    @property
    def kept_tokens(self) -> int:
        """Most tokens that a layer keeps."""
        return self.window or UNBOUNDED

    def local_heads(self, tp: int) -> int:
        """Query heads on the fullest rank."""
        return ceil_div(self.heads, tp)


class HeadAttention(AttentionRow):
    """Keys and values cached per head: MHA, GQA and MQA, with or without a window."""

    kind: Literal["heads"] = "heads"
    kv_heads: Count
    head_dim: Count
    """Width of a query and of a cached key."""
    v_head_dim: Count | None = None
    """Width of a cached value, where it differs from the key's."""
    qkv_bias: Flag = False
    o_bias: Flag = False
    qk_norm: Literal["none", "head", "full"] = "none"
    """Norms on queries and keys: one gain a head position, shared by all heads, or one for each head."""
    sinks: Flag = False
    """A learned logit per head (gpt-oss)."""

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
    def query_dim(self) -> int:
        return self.head_dim

    @property
    def variant(self) -> str:
        if self.kv_heads == self.heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else f"GQA-{self.kv_heads}"

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        key, value = self.head_dim, self.value_dim
        source = Role.SOURCE if self.attends_source else Role.ATTENTION
        rows = [
            Tensor("q_proj", Role.ATTENTION, self.heads, hidden * key),
            Tensor("k_proj", source, self.kv_heads, hidden * key),
            Tensor("v_proj", source, self.kv_heads, hidden * value),
            Tensor("o_proj", Role.ATTENTION, self.heads, value * hidden),
        ]
        if self.qkv_bias:
            rows += [vector("q_bias", key, self.heads), vector("kv_bias", key + value, self.kv_heads)]
        if self.o_bias:
            rows.append(vector("o_bias", hidden))
        if self.qk_norm == "head":
            rows.append(vector("qk_norm", 2 * key))
        elif self.qk_norm == "full":
            rows += [vector("q_norm", key, self.heads), vector("k_norm", key, self.kv_heads)]
        if self.sinks:
            rows.append(vector("sinks", 1, self.heads))
        return tuple(rows)

    def cache_elements(self, tp: int) -> int:
        return ceil_div(self.kv_heads, tp) * (self.head_dim + self.value_dim)

    @property
    def cache_elements_formula(self) -> str:
        return f"{self.kv_heads} * ({self.head_dim} + {self.value_dim})"

    def decode_flops(self, tp: int) -> int:
        return self.local_heads(tp) * (2 * self.head_dim + 2 * self.value_dim)

    def prefill_flops(self, tp: int) -> int:
        return self.decode_flops(tp)


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
    (DeepSeek-V2, arXiv:2405.04434, section 2.1).
    """

    kind: Literal["latent"] = "latent"
    q_lora_rank: Maybe = 0
    """Rank of the compressed query; 0 where queries are projected directly."""
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count

    @property
    def variant(self) -> str:
        return "MLA"

    @property
    def query_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Width of what is cached for one token in one layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
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
        return tuple(rows)

    def cache_elements(self, tp: int) -> int:
        return self.latent_dim

    @property
    def cache_elements_formula(self) -> str:
        return f"({self.kv_lora_rank} + {self.qk_rope_head_dim})"

    def decode_flops(self, tp: int) -> int:
        return self.local_heads(tp) * (2 * self.latent_dim + 2 * self.kv_lora_rank)

    def prefill_flops(self, tp: int) -> int:
        return self.local_heads(tp) * (2 * self.query_dim + 2 * self.v_head_dim)


def _kind(row: Any) -> str:
    return str(row.get("kind", "heads")) if isinstance(row, dict) else str(row.kind)


Attention = Annotated[
    Annotated[HeadAttention, Tag("heads")]
    | Annotated[LatentAttention, Tag("latent")]
    | Annotated[CrossAttention, Tag("cross")],
    Discriminator(_kind),
]


MLA_RANK, MLA_ROPE = 512, 64
"""Latent width and rotary key width of a what-if MLA: those of DeepSeek-V2 and V3 (arXiv:2405.04434, section 3.1.2)."""


def with_variant(row: AttentionRow, variant: str, head_dim: int | None = None) -> AttentionRow:
    """The same layer with another attention variant: same query heads, widths and window, other keys and values.

    Parameters
    ----------
    variant
        ``mha``, ``mqa``, ``gqa`` (the row's own groups, or the most up to 8 that divide the heads), ``gqa:N`` or
        ``mla[:RANK]``.
    head_dim
        Other width of a head [elements]; Pope et al. 2022 (arXiv:2211.05102, table 1) halve it for their MHA variant.

    Raises
    ------
    InputError
        If the variant is unknown or its heads do not divide the query heads.

    >>> llama = HeadAttention(heads=64, kv_heads=8, head_dim=128)
    >>> with_variant(llama, "mqa").cache_elements(1) * 8 == llama.cache_elements(1)
    True
    """
    name, _, number = str(variant).strip().lower().partition(":")
    counted = name in ("gqa", "mla") and number.isascii() and number.isdecimal() and len(number) < 10
    if name not in ("mha", "gqa", "mqa", "mla") or (number and not counted):
        raise InputError(f"unknown attention {str(variant)[:40]!r}; use mha, gqa, gqa:N, mqa or mla")
    key, value, own = _widths(row, head_dim)
    if name == "mla":
        if row.attends_source:
            raise InputError("cross-attention layers have no MLA variant; use mha, gqa:N or mqa")
        if isinstance(row, LatentAttention):
            return row.model_copy(update={"kv_lora_rank": _checked(int(number), variant)}) if number else row
        rank = int(number or MLA_RANK)
        return LatentAttention(
            at=row.at, heads=row.heads, window=row.window, kv_lora_rank=_checked(rank, variant),
            qk_nope_head_dim=key, qk_rope_head_dim=MLA_ROPE, v_head_dim=value,
        )  # fmt: skip
    grouped = own if 1 < own < row.heads else max(n for n in range(1, 9) if row.heads % n == 0)
    kv_heads = {"mha": row.heads, "mqa": 1}.get(name) or int(number or grouped)
    if kv_heads < 1 or row.heads % kv_heads:
        raise InputError(f"{variant!r} needs a number of KV heads that divides the {row.heads} query heads")
    if isinstance(row, HeadAttention):
        return row.model_copy(update={"kv_heads": kv_heads, "head_dim": key, "v_head_dim": value})
    return HeadAttention(
        at=row.at, heads=row.heads, window=row.window, kv_heads=kv_heads, head_dim=key, v_head_dim=value
    )


def _checked(rank: int, variant: str) -> int:
    if not 1 <= rank <= 2**20:
        raise InputError(f"{variant!r} needs a latent width between 1 and 2**20")
    return rank


def _widths(row: AttentionRow, head_dim: int | None) -> tuple[int, int, int]:
    """Width of a key, width of a value and KV heads of a row as published; MLA counts as one KV head a query head."""
    if isinstance(row, LatentAttention):
        return head_dim or row.query_dim, head_dim or row.v_head_dim, row.heads
    if not isinstance(row, HeadAttention):
        raise InputError(f"{row.variant} layers cannot be given another attention")
    return head_dim or row.head_dim, head_dim or row.value_dim, row.kv_heads
