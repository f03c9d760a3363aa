"""What if a layer had other attention: the same query heads and widths under MHA, GQA, MQA or MLA."""

from __future__ import annotations

from planner.attention import AttentionRow, HeadAttention, LatentAttention
from planner.errors import InputError

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
