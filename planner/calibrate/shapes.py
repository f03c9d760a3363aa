"""The work of one kernel call from its shape, class by class.

Counts agree with `planner.work`: two FLOP a multiply-add; weights, and keys and values, are read once. Beside them stand
what a kernel alone knows: activations that it reads and writes, and tiles that it fills up. Shapes are scalars or arrays
that broadcast; ``tile`` is rows at most, columns, rows at least (`Kernel.tile`), ``(1, 1, 1)`` for useful work only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.calibrate.model import Work

if TYPE_CHECKING:
    from planner.arrays import Numbers

Tile = tuple[int, int, int]
PLAIN: Tile = (1, 1, 1)
HALF_BYTES = 2.0
"""Activations are 16 bit wherever they are not quantised."""


def fill(size: Numbers, tile: int) -> Numbers:
    """A size filled up to whole tiles.

    >>> float(fill(130, 64))
    192.0
    """
    filled: Numbers = np.ceil(np.asarray(size, dtype=float) / tile) * tile
    return filled


def tile_rows(rows: Numbers, most: int, least: int) -> Numbers:
    """Rows of the tile that suits so many: the next power of two, between the least and the most there is.

    >>> tile_rows(np.array([1.0, 16.0, 17.0, 999.0]), 128, 16).tolist()
    [16.0, 16.0, 32.0, 128.0]
    """
    if most == least:
        return float(most)
    mantissa, exponent = np.frexp(np.maximum(rows, 1.0))
    power = np.ldexp(1.0, exponent - (mantissa == 0.5))
    answer: Numbers = np.minimum(most, np.maximum(least, power))
    return answer


def gemm(
    m: Numbers, n: Numbers, k: Numbers, weight_bytes: float, input_bytes: float = HALF_BYTES, tile: Tile = PLAIN
) -> Work:
    """``m`` tokens times a weight of ``k`` by ``n``: ``2 m n k`` FLOP.

    Weights, inputs and outputs cross the memory once. Inputs narrower than 16 bit are quantised before: read in 16 bit and
    written.

    Parameters
    ----------
    weight_bytes, input_bytes
        Bytes of one weight, scales included, and of one input as multiplied [B].

    >>> gemm(2, 3, 4, 2.0).flops, gemm(2, 3, 4, 2.0).nbytes
    (48.0, 52.0)
    """
    most, columns, least = tile
    rows = tile_rows(m, most, least)
    blocks = np.ceil(m / rows) * np.ceil(np.asarray(n, dtype=float) / columns)
    traffic = weight_bytes * n * k + input_bytes * m * k + HALF_BYTES * m * n
    side = (HALF_BYTES + input_bytes) * m * k if input_bytes < HALF_BYTES else 0.0
    return Work(2.0 * m * n * k, traffic, 2.0 * k * rows * columns * blocks, blocks, k, 0.0, side)


def decode_attention(
    batch: Numbers, context: Numbers, heads: Numbers, kv_heads: Numbers, head_dim: Numbers, kv_bytes: Numbers,
    tile: Tile = PLAIN,
) -> Work:  # fmt: skip
    """One new token for each of ``batch`` sequences against ``context`` kept ones.

    ``4 * heads * head_dim`` FLOP and ``2 * kv_heads * head_dim * kv_bytes`` B a token of context. Query heads that share
    a key are rows of one tile, where the kernel packs them (``tile[0]`` above 1).
    """
    most, columns, least = tile
    group = heads / kv_heads
    sequences = batch * kv_heads * np.ceil(group / most)
    cache = 2.0 * batch * kv_heads * head_dim * context * kv_bytes
    ends = 2.0 * batch * heads * head_dim * HALF_BYTES
    issued = 4.0 * sequences * fill(np.minimum(group, most), least) * head_dim * fill(context, columns)
    flops = 4.0 * batch * heads * head_dim * context
    return Work(flops, cache + ends, issued, sequences, context, sequences)


def prefill_attention(
    batch: Numbers, tokens: Numbers, heads: Numbers, kv_heads: Numbers, head_dim: Numbers, kept: Numbers,
    kv_bytes: Numbers, before: Numbers = 0.0, tile: Tile = PLAIN,
) -> Work:  # fmt: skip
    """Causal attention of ``tokens`` new tokens a sequence, after ``before`` cached ones; each sees at most ``kept``.

    ``4 * heads * head_dim`` FLOP a query-key pair (`pairs`). Queries, keys, values and outputs cross the memory once.
    """
    return _prefill(batch, tokens, heads, kv_heads, head_dim, head_dim, kept, kv_bytes, before, tile)


def _prefill(
    batch: Numbers, tokens: Numbers, heads: Numbers, kv_heads: Numbers, key: Numbers, value: Numbers, kept: Numbers,
    kv_bytes: Numbers, before: Numbers, tile: Tile,
) -> Work:  # fmt: skip
    most, columns, _ = tile
    seen = pairs(tokens, kept, before)
    rows = tile_rows(tokens, most, 16 if most > 1 else 1)
    blocks = batch * heads * np.ceil(tokens / rows)
    flops = 2.0 * batch * heads * (key + value) * seen
    # A tile on the diagonal is computed whole: half a tile of columns, and half one of rows, more for each query.
    filled = fill(tokens, 1) if most == 1 else np.ceil(tokens / rows) * rows
    extra = filled * (np.minimum(rows, kept) + columns) / 2.0 if most > 1 else 0.0
    issued = 2.0 * batch * heads * (key + value) * (seen * filled / tokens + extra)
    entries = np.minimum(before, kept) + tokens
    cache = batch * kv_heads * (key + value) * entries
    traffic = batch * heads * (key + value) * HALF_BYTES * tokens + cache * kv_bytes
    side = cache * (HALF_BYTES + kv_bytes) * (np.asarray(kv_bytes) < HALF_BYTES)  # narrowed into the cache, or widened
    return Work(flops, traffic, issued, blocks, np.minimum(before + tokens, kept), blocks, side)


def pairs(tokens: Numbers, kept: Numbers, before: Numbers = 0.0) -> Numbers:
    """Query-key pairs of a causal chunk: ``sum over i = 1..tokens of min(before + i, kept)``.

    >>> float(pairs(4, 10)), float(pairs(4, 2)), float(pairs(2, 100, 3))
    (10.0, 7.0, 9.0)
    """
    growing = np.clip(np.asarray(kept, dtype=float) - before, 0.0, tokens)
    answer: Numbers = growing * before + growing * (growing + 1.0) / 2.0 + (tokens - growing) * kept
    return answer


def mla_decode(
    batch: Numbers, context: Numbers, heads: Numbers, latent: Numbers, rope: Numbers, kv_bytes: Numbers,
    tile: Tile = PLAIN,
) -> Work:  # fmt: skip
    """Absorbed latent attention: all heads read one vector of ``latent + rope`` a token (arXiv:2405.04434, section 2.1).

    ``heads * (4 * latent + 2 * rope)`` FLOP and ``(latent + rope) * kv_bytes`` B a token of context.
    """
    most, columns, least = tile
    width = latent + rope
    read = fill(context, columns)
    each = 4.0 * latent + 2.0 * rope
    cache = batch * context * width * kv_bytes
    ends = batch * heads * (width + latent) * HALF_BYTES
    issued = batch * fill(heads, least) * each * read
    blocks = batch * np.maximum(1.0, read / most)
    return Work(batch * heads * each * context, cache + ends, issued, blocks, context, batch)


def mla_prefill(
    batch: Numbers, tokens: Numbers, heads: Numbers, query_dim: Numbers, value_dim: Numbers, before: Numbers = 0.0,
    tile: Tile = PLAIN,
) -> Work:  # fmt: skip
    """Latent attention with keys and values expanded for each head: ``heads * 2 (query_dim + value_dim)`` FLOP a pair."""
    everything = np.maximum(before + tokens, 1.0)
    return _prefill(batch, tokens, heads, heads, query_dim, value_dim, everything, HALF_BYTES, before, tile)


@dataclass(frozen=True, slots=True)
class Routing:
    """Where tokens go on the fullest rank: token copies, distinct experts they reach."""

    copies: Numbers
    touched: Numbers


def routing(tokens: Numbers, experts: Numbers, top_k: Numbers, ranks: Numbers = 1.0, skew: Numbers = 0.0) -> Routing:
    """Token copies on the fullest of ``ranks`` that hold whole experts, and the distinct experts these reach.

    With ``skew`` 0 copies are dealt out evenly. With skew ``a``, loads of experts follow ``x^-a`` between 1 and 0.8 of
    the tokens, as kernel benchmarks draw them; the fullest rank is expected ``sqrt(2 ln ranks)`` deviations above the mean.
    """
    held = experts / ranks
    copies = tokens * top_k / ranks
    even = np.maximum(1.0, np.minimum(held, copies))
    if not np.any(skew):
        return Routing(np.maximum(copies, 1.0), even)
    mean, square, single = _loads(np.maximum(0.8 * tokens, 1.0), np.maximum(skew, 1.001))
    spread = np.sqrt(np.maximum(square / mean**2 - 1.0, 0.0) * 2.0 * np.log(np.maximum(ranks, 1.0)) / held)
    full = np.minimum(copies * (1.0 + spread), tokens * np.minimum(top_k, held))
    reached = np.minimum(held * (1.0 - single) + held * single * 0.5, full)
    skewed = np.asarray(skew) > 0
    return Routing(
        np.where(skewed, np.maximum(full, 1.0), np.maximum(copies, 1.0)),
        np.where(skewed, np.maximum(1.0, np.minimum(reached, even * (1.0 + spread))), even),
    )


def _loads(most: Numbers, a: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Mean and mean square of ``x^-a`` between 1 and ``most``, and the share of it below ``most^(1/8)``."""
    most = np.maximum(most, 1.5)
    norm = (1.0 - most ** (1.0 - a)) / (a - 1.0)
    mean = (most ** (2.0 - a) - 1.0) / (2.0 - a) / norm
    square = (most ** (3.0 - a) - 1.0) / (3.0 - a) / norm
    return mean, square, (1.0 - most ** ((1.0 - a) / 8.0)) / (a - 1.0) / norm


def moe(
    tokens: Numbers, experts: Numbers, top_k: Numbers, hidden: Numbers, width: Numbers, weight_bytes: float,
    input_bytes: float = HALF_BYTES, gated: Numbers = 1.0, ranks: Numbers = 1.0, skew: Numbers = 0.0,
    tile: Tile = PLAIN, whole: bool = False,
) -> Work:  # fmt: skip
    """Routed experts of one layer on the fullest rank: ``2 * (2 + gated) * hidden * width`` FLOP a copy of a token.

    Weights of the experts that are reached are read once. Each expert's tokens fill up tiles of their own.

    Parameters
    ----------
    width
        Columns of one expert on one rank.
    gated
        1 with a gate projection, 0 without.
    ranks
        Ranks that hold whole experts.
    whole
        Whether every rank gathers and sums the copies of all tokens, those of other ranks' experts too.
    """
    routed = routing(tokens, experts, top_k, ranks, skew)
    most, columns, least = tile
    matrices = (2.0 + gated) * hidden * width
    each = routed.copies / routed.touched
    rows = tile_rows(each, most, least)
    tiles = routed.touched * np.maximum(1.0, each / rows)
    blocks = tiles * np.ceil(np.asarray(width, dtype=float) * (1.0 + gated) / columns)
    traffic = routed.touched * matrices * weight_bytes + routed.copies * (
        hidden * (input_bytes + HALF_BYTES) + width * (1.0 + gated + 1.0) * HALF_BYTES
    )
    moved = tokens * top_k if whole else routed.copies
    side = moved * hidden * 3 * HALF_BYTES  # gathered by expert, and summed again
    flops = 2.0 * matrices * routed.copies
    return Work(flops, traffic, 2.0 * matrices * tiles * rows, blocks, hidden + width, routed.touched, side)


def state_decode(batch: Numbers, elements: Numbers, state_bytes: float, vectors: Numbers = 0.0) -> Work:
    """One token of a recurrent state: every sequence's state of ``elements`` is read, updated and written.

    Eight FLOP an element: decay, take off, add and read out (`planner.state`); ``vectors`` are a token's inputs and output
    [elements].
    """
    flops = 8.0 * batch * elements
    traffic = batch * (2.0 * elements * state_bytes + vectors * HALF_BYTES)
    return Work(flops, traffic, flops, batch, 0.0, batch)


def state_prefill(
    batch: Numbers, tokens: Numbers, elements: Numbers, state_bytes: float, vectors: Numbers = 0.0, tile: Tile = PLAIN
) -> Work:
    """A prompt through a recurrent state, in chunks of ``tile`` columns one after another; ``tokens`` a sequence."""
    filled = fill(tokens, tile[1])
    flops = 8.0 * batch * tokens * elements
    traffic = batch * (2.0 * elements * state_bytes + tokens * vectors * HALF_BYTES)
    return Work(flops, traffic, 8.0 * batch * filled * elements, batch, filled, batch)


def element_wise(nbytes: Numbers, items: Numbers = 0.0) -> Work:
    """A kernel that only moves bytes [B]: norms, activations, copies, the short convolutions before a state."""
    return Work(0.0, nbytes, 0.0, 1.0, 0.0, items)


INPUT_BYTES = {"fp8": 1.0, "int8": 1.0, "fp4": 0.5625}
"""Bytes of one input as products in a format take it, scales included; 16 bit in all others."""


def work(
    kind: str, row: Mapping[str, Numbers], form_bytes: float, runs_in: str, tile: Tile = PLAIN, whole: bool = False
) -> Work:
    """The work of calls whose shapes are columns of `table.COLUMNS`.

    Parameters
    ----------
    form_bytes
        Bytes of one weight, or of one element of the cache [B].
    runs_in
        Format of the products.
    whole
        `Kernel.whole`.
    """
    inputs = INPUT_BYTES.get(runs_in, HALF_BYTES)
    match kind:
        case "gemm":
            return gemm(row["m"], row["n"], row["k"], form_bytes, inputs, tile)
        case "moe":
            return moe(
                row["tokens"], row["experts"], row["top_k"], row["hidden"], row["width"], form_bytes, inputs,
                row["gated"], row["ranks"], row["skew"], tile, whole,
            )  # fmt: skip
        case "decode-attention":
            heads = row["heads"], row["kv_heads"], row["head_dim"]
            read = row["context"] if whole else np.minimum(row["context"], row["window"])
            return decode_attention(row["batch"], read, *heads, form_bytes, tile)
        case "prefill-attention":
            heads = row["heads"], row["kv_heads"], row["head_dim"]
            before, kept = row["context"], row["context"] + row["tokens"] if whole else row["window"]
            return prefill_attention(row["batch"], row["tokens"], *heads, kept, form_bytes, before, tile)
        case "mla-decode":
            shape = row["batch"], row["context"], row["heads"], row["latent"], row["rope"]
            return mla_decode(*shape, form_bytes, tile)
        case "mla-prefill":
            dims = row["heads"], row["head_dim"], row["value_dim"]
            return mla_prefill(row["batch"], row["tokens"], *dims, row["context"], tile)
        case "state-decode":
            return state_decode(row["batch"], row["elements"], form_bytes, row["vectors"])
        case "state-prefill":
            return state_prefill(row["batch"], row["tokens"], row["elements"], form_bytes, row["vectors"], tile)
        case "conv-decode" | "conv-prefill" | "element-wise":
            return element_wise(row["moved_bytes"], row["batch"])
    raise ValueError(f"{kind} is not a class of kernels")
