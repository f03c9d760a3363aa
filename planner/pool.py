"""How an engine lays out its cache: in bytes, in blocks of grouped layers, in pools for each kind of layer, or in cells.

A `Pool` is memory of one rank with a capacity in units and, for a sequence of any length, the units that it takes. Capacity,
blocks, tokens and concurrency all follow from it.

References
----------
Blocks: Kwon et al. 2023, arXiv:2309.06180, section 4. Groups of layers: vLLM, vllm/v1/core/kv_cache_utils.py
(get_kv_cache_groups) and docs/design/hybrid_kv_cache_manager.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from planner.attention import AttentionRow, CompressedAttention, LatentAttention
from planner.cached import UNBOUNDED, Cached
from planner.memory import CacheCurve, Term
from planner.model import ModelSpec
from planner.packed import Page, pack
from planner.precision import KV_FORMATS, KvFormats, find_format
from planner.setup import Setup
from planner.stage import Stage
from planner.state import StateRow
from planner.tensors import ceil_div

STATE_ALIGNMENT = 16
"""Tokens that a block is enlarged in, until it holds a state."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What like layers of a stage cache on one rank.

    Attributes
    ----------
    count
        How many layers.
    token_bytes, every
        Bytes of one entry in one layer, and the tokens that it stands for.
    kept
        Most tokens that a layer holds.
    chunked
        Whether these are a chunk, which starts anew, rather than a window, which slides.
    state_bytes
        What a sequence keeps in one layer whatever its length.
    source
        Tokens of the source, for cross-attention.
    apart
        How many times fewer tokens are in its blocks than a block has entries of the least compressed cache; 0 where its
        blocks are the engine's, as they are unless caches are packed.
    """

    count: int
    token_bytes: int = 0
    every: int = 1
    kept: int = UNBOUNDED
    chunked: bool = False
    state_bytes: int = 0
    source: int = 0
    apart: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """Memory of one rank that one kind of cache is taken from.

    Attributes
    ----------
    name, unit
        What it is for, and what it is dealt out in, in words.
    unit_bytes, units
        Size of a unit, and how many there are [B].
    curve
        Units of one sequence as a function of its length.
    share
        Share of the memory for the cache that it has.
    groups, block_tokens
        Groups of layers that a run of tokens takes a unit for each of, and tokens of such a run.
    padded_layers
        Layers that are reserved and hold nothing.
    counted
        Whether its tokens are those that the engine prints.
    """

    name: str
    unit: str
    unit_bytes: int
    units: int
    curve: CacheCurve
    share: Fraction = Fraction(1)
    groups: int = 1
    block_tokens: int = 1
    padded_layers: int = 0
    counted: bool = True

    def need(self, units: int) -> int:
        """Memory for the cache at which it has so many units [B]."""
        return -int(-units * self.unit_bytes / self.share // 1)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose blocks are handed out together.

    Attributes
    ----------
    layers, groups
        Layers of this kind, and the groups they are put into.
    block_tokens
        Tokens of a block.
    kept, extra
        Most tokens that a sequence holds blocks for, and blocks that it holds whatever its length.
    """

    layers: Layers
    groups: int
    block_tokens: int
    kept: int
    extra: int


@dataclass(frozen=True, slots=True)
class Grouping:
    """Layers in groups of one size, so that any block serves any group.

    Attributes
    ----------
    size
        Layers of a group; a group that has fewer is padded.
    page_bytes
        A block of one layer [B].
    """

    groups: tuple[Group, ...]
    size: int
    page_bytes: int

    @property
    def block_bytes(self) -> int:
        """A block of every layer of a group [B]."""
        return self.size * self.page_bytes

    @property
    def padded_layers(self) -> int:
        """Layers that are reserved and hold nothing."""
        return sum(g.groups * self.size - g.layers.count for g in self.groups)


def layers_of(stage: Stage, kv: KvFormats, ranks: int, setup: Setup, source_tokens: int = 0) -> list[Layers]:
    """What the layers of a stage cache on one of ``ranks`` ranks, like ones together."""
    found = []
    for group, count in stage.groups:
        if group.state:
            found.append(Layers(count, state_bytes=_state_bytes(group.state, ranks, setup)))
        for row in group.attention:
            found += _attention(row, count, kv, ranks, setup, source_tokens)
    return like(found)


def drafted(model: ModelSpec, kv: KvFormats, ranks: int, setup: Setup | None = None) -> list[Layers]:
    """What the draft layers of a model cache: each like the model's last layer that keeps every token.

    Where none does because caches are compressed, a draft layer holds its window only.
    """
    rows = [row for row in model.attention if row.owner and not row.attends_source]
    kept = [row for row in rows if row.window is None] or rows
    if not model.drafter or not kept:
        return []
    row = kept[-1].near if isinstance(kept[-1], CompressedAttention) else kept[-1]
    return _attention(row, model.drafter.layers, kv, ranks, setup or Setup(), 0)


def like(layers: Iterable[Layers]) -> list[Layers]:
    """Like layers together."""
    counts: dict[Layers, int] = {}
    for one in layers:
        alone = replace(one, count=1)
        counts[alone] = counts.get(alone, 0) + one.count
    return [replace(one, count=count) for one, count in counts.items()]


def _attention(
    row: AttentionRow, count: int, kv: KvFormats, ranks: int, setup: Setup, source_tokens: int
) -> list[Layers]:
    """What like attention layers cache: vectors that are kept alike are one entry, unless they are in pages of their own."""
    kv = _formats(row, kv, setup)
    if setup.packing and isinstance(row, CompressedAttention):
        return _compressed(row, count, kv, ranks)
    alike: dict[tuple[int, int], int] = {}
    for c in _aligned(row, ranks, setup):
        if c.owned:
            alike[c.kept, c.every] = alike.get((c.kept, c.every), 0) + c.entry_bytes(kv)
    source = source_tokens if row.attends_source else 0
    return [Layers(count, entry, every, kept, row.chunked, source=source) for (kept, every), entry in alike.items()]


def _formats(row: AttentionRow, kv: KvFormats, setup: Setup) -> KvFormats:
    """The formats of a row's cache: those chosen, or the engine's own for a latent of which only picked entries are read."""
    own = ""
    if isinstance(row, CompressedAttention) and kv.k.id in ("bf16", "fp16", "fp8"):
        own = setup.compressed_format
    elif isinstance(row, LatentAttention) and row.read_tokens < UNBOUNDED and kv.k.id == "fp8":
        own = setup.sparse_latent_format
    return replace(kv, k=KV_FORMATS[own], v=KV_FORMATS[own]) if own else kv


def _aligned(row: AttentionRow, ranks: int, setup: Setup) -> Iterable[Cached]:
    """What a row caches, a latent as wide as the engine allocates it."""
    for c in row.cached(ranks):
        step = setup.latent_step if isinstance(row, LatentAttention) and c.part == "k" else 1
        yield replace(c, width=ceil_div(c.width, step) * step)


def _compressed(row: CompressedAttention, count: int, kv: KvFormats, ranks: int) -> list[Layers]:
    """The caches of like layers of compressed attention, each in pages of its own, with what is not compressed yet.

    A page of uncompressed vectors, which are in fp32, has as many tokens as make it as large as one of entries in 8 bit.
    """
    held = [c for c in row.cached(ranks) if c.owned]
    found = [Layers(count, c.entry_bytes(kv), c.every, c.kept, apart=int(c.kept < UNBOUNDED)) for c in held]
    single = find_format("fp32")
    for c in row.pending():
        apart = c.vectors * single.cached(1, 1)
        found.append(Layers(count, single.cached(c.vectors, c.width), kept=c.kept, apart=apart))
    return found


def _state_bytes(row: StateRow, ranks: int, setup: Setup) -> int:
    """What an engine keeps of one sequence in one layer of state [B].

    The convolution's present input is not among those that are kept, but one for each drafted token is.
    """
    if not setup.past_inputs:
        return row.state_bytes(ranks)
    state, conv = setup.state_format or row.state_format, setup.conv_format or row.conv_format
    inputs = row.kernel - 1 + setup.draft_tokens if row.kernel else 0
    parts = ((state, row.state_elements), (conv, row.conv_channels * inputs))
    return sum(find_format(form).nbytes(row.local(elements, ranks)) for form, elements in parts)


def pools(layers: Iterable[Layers], setup: Setup, nbytes: int) -> tuple[Pool, ...]:
    """The pools of one rank that holds these layers, as an engine so set up lays out ``nbytes`` of memory."""
    held = [one for one in layers if one.token_bytes or one.state_bytes]
    held = [one if _bounded(one, setup) else replace(one, kept=UNBOUNDED) for one in held]
    return _LAYOUTS[setup.layout](held, setup, max(0, nbytes))


def _bounded(one: Layers, setup: Setup) -> bool:
    """Whether the engine holds a layer's window only, rather than every token."""
    return setup.group_windows and (setup.group_chunks or not one.chunked)


# -- one pool of bytes -------------------------------------------------------------------------------------------------


def _tokens(layers: list[Layers], setup: Setup, nbytes: int) -> tuple[Pool, ...]:
    """Every layer holds what it needs, in blocks of tokens that it has of its own."""
    return (Pool("cache", "byte", 1, nbytes, _curve(layers, setup.block_tokens)),)


def _cells(layers: list[Layers], setup: Setup, nbytes: int) -> tuple[Pool, ...]:
    """Cells for whole sequences, allocated at the start; a window has room for the tokens of one pass as well."""
    return (Pool("cache", "byte", 1, nbytes, _curve(layers, setup.block_tokens, setup.step_tokens)),)


def _curve(layers: Iterable[Layers], block: int = 1, beyond: int = 0) -> CacheCurve:
    """Bytes of a sequence in whole blocks, where windows have room for so many tokens ``beyond`` them."""
    fixed, rates = 0, dict[tuple[int, int], int]()
    for one in layers:
        fixed += one.count * (one.state_bytes + one.source * one.token_bytes)
        if one.token_bytes and not one.source:
            span = math.lcm(block, one.every)  # the shortest run of whole blocks and whole entries
            kept = one.kept if one.kept >= UNBOUNDED else one.kept + beyond
            key = (kept, one.every)
            rate = one.count * one.token_bytes
            if block > 1:
                key = (kept if kept >= UNBOUNDED else ceil_div(kept, span) * span, span)
                rate *= span // one.every
            rates[key] = rates.get(key, 0) + rate
    terms = tuple(Term(rate, kept, every, ahead=block > 1) for (kept, every), rate in sorted(rates.items()))
    return CacheCurve(terms, fixed)


# -- one pool of blocks, layers in groups ------------------------------------------------------------------------------


def _blocks(layers: list[Layers], setup: Setup, nbytes: int) -> tuple[Pool, ...]:
    """Blocks that serve any group of like layers; see `grouping`."""
    if not layers:
        return (Pool("cache", "block", 0, UNBOUNDED, CacheCurve(())),)
    if any(one.apart for one in layers):
        return (_packed(layers, setup, nbytes),)
    found = grouping(layers, setup)
    terms: dict[tuple[int, int], int] = {}
    fixed = 0
    for g in found.groups:
        fixed += g.groups * g.extra
        if g.kept:
            kept = g.kept if g.kept >= UNBOUNDED else ceil_div(g.kept, g.block_tokens) * g.block_tokens
            terms[kept, g.block_tokens] = terms.get((kept, g.block_tokens), 0) + g.groups
    curve = CacheCurve(tuple(Term(n, kept, every, ahead=True) for (kept, every), n in sorted(terms.items())), fixed)
    count = sum(g.groups for g in found.groups)
    tokens = min((g.block_tokens for g in found.groups if g.layers.token_bytes), default=1)
    units, idle = nbytes // found.block_bytes, found.padded_layers
    return (Pool("cache", "block", found.block_bytes, units, curve, Fraction(1), count, tokens, idle),)


def grouping(layers: list[Layers], setup: Setup) -> Grouping:
    """Put like layers into groups of one size, whose blocks are all equally large.

    Layers that all keep every token are one group, however wide. Otherwise a block of each kind is made as large as the
    largest: attention blocks grow until one holds a state, and narrower layers put more tokens into a block. Like layers
    then form groups as large as the fewest layers of a kind, or as the most where there are not many more of those.
    """
    block = setup.block_tokens
    attention = [one for one in layers if one.token_bytes]
    if len({(one.kept, one.every, one.source) for one in attention}) == 1 and len(attention) == len(layers):
        one, page = layers[0], sum(each.count * each.token_bytes for each in layers)
        whole = replace(one, count=1, token_bytes=page)
        return Grouping((_group(whole, 1, block, setup),), 1, page * ceil_div(block, one.every))
    state = max((one.state_bytes for one in layers), default=0)
    widest = max((one.token_bytes for one in attention), default=0)
    if state and widest:
        block = max(block, STATE_ALIGNMENT * ceil_div(state, STATE_ALIGNMENT * widest))
    page = max(state, widest * block)
    counts = [one.count for one in layers]
    size = max(counts) if max(counts) < setup.even_within * min(counts) else min(counts)
    groups = []
    for one in layers:
        tokens = block * (page // (one.token_bytes * block)) if one.token_bytes else 0
        groups.append(_group(one, ceil_div(one.count, size), tokens, setup))
    return Grouping(tuple(groups), size, page)


def _group(one: Layers, groups: int, block: int, setup: Setup) -> Group:
    if one.state_bytes:
        pages = (2 if setup.prefix_caching else 1) + setup.draft_tokens
        return Group(one, groups, 1, 0, pages)
    if one.source:
        return Group(one, groups, block, 0, ceil_div(one.source, block))
    if one.kept >= UNBOUNDED:
        return Group(one, groups, block, UNBOUNDED, 0)
    under_way = setup.passes * setup.step_tokens
    if one.chunked:
        return Group(one, groups, block, one.kept + under_way, 0)
    return Group(one, groups, block, one.kept - 1 + under_way, 1)


def _packed(layers: list[Layers], setup: Setup, nbytes: int) -> Pool:
    """Blocks in which pages of several sizes lie side by side; see `planner.packed`."""
    block, step = max(setup.block_tokens, setup.packed_tokens), setup.packed_step
    entries = setup.packed_tokens // min((one.every for one in layers if one.every > 1), default=1)
    pages = []
    for one in layers:
        tokens = max(1, entries // max(1, one.apart)) if one.kept < UNBOUNDED else block
        held = _group(one, 1, tokens, setup)
        page = one.state_bytes or ceil_div(tokens, one.every) * one.token_bytes
        pages.append(Page(one.count, ceil_div(page, step) * step, held.block_tokens, held.kept, held.extra))
    found = pack(pages, setup.packing or "widest")
    units, count = nbytes // found.block_bytes, len(found.groups)
    return Pool("cache", "block", found.block_bytes, units, found.printed, Fraction(1), count, found.block_tokens)


# -- a pool for each kind of layer -------------------------------------------------------------------------------------


def _pools(layers: list[Layers], setup: Setup, nbytes: int) -> tuple[Pool, ...]:
    """Pools of their own for states, for layers that keep all, and for windows, in fixed proportions."""
    found = []
    states = sum(one.count * one.state_bytes for one in layers)
    attention = [one for one in layers if one.token_bytes]
    if states:
        pool, slots = _slots(states, setup, nbytes, alone=not attention)
        found.append(pool)
        nbytes = max(0, nbytes - (slots + 1) * states)
    if attention:
        left = 1 - found[0].share if found else Fraction(1)
        found += [replace(pool, share=pool.share * left) for pool in _windows(attention, setup, nbytes)]
    return tuple(found) or _tokens(layers, setup, nbytes)


def _slots(state: int, setup: Setup, nbytes: int, alone: bool) -> tuple[Pool, int]:
    """Slots for states, of which a running sequence takes ``state_copies`` and one is never given away; and how many."""
    ratio = Fraction(setup.state_share).limit_denominator(10**6)
    share = Fraction(1) if alone else ratio / (1 + ratio)
    slots = setup.state_slots or max(0, int(nbytes * share) // state - 1)
    size = state * setup.state_copies
    return Pool("states", "slot", size, slots // setup.state_copies, CacheCurve((), 1), share, counted=False), slots


def _windows(layers: list[Layers], setup: Setup, nbytes: int) -> list[Pool]:
    """Tokens of layers that keep all, and ``window_share`` as many of those with a window."""
    whole = sum(one.count * one.token_bytes // one.every for one in layers if one.kept >= UNBOUNDED)
    window = sum(one.count * one.token_bytes // one.every for one in layers if one.kept < UNBOUNDED)
    block = setup.block_tokens
    if not window or not whole:
        kept = UNBOUNDED if whole else max(one.kept for one in layers)
        return [_token_pool("tokens", whole or window, kept, block, nbytes, Fraction(1))]
    ratio = Fraction(setup.window_share).limit_denominator(10**6)
    share = whole / (whole + ratio * window)
    kept = max(one.kept for one in layers if one.kept < UNBOUNDED)
    full = _token_pool("tokens of full attention", whole, UNBOUNDED, block, nbytes, share)
    near = _token_pool("tokens of windows", window, kept, block, nbytes, 1 - share)
    return [full, replace(near, counted=False)]


def _token_pool(name: str, token_bytes: int, kept: int, block: int, nbytes: int, share: Fraction) -> Pool:
    kept = kept if kept >= UNBOUNDED else ceil_div(kept, block) * block
    units = int(nbytes * share) // token_bytes // block * block
    return Pool(name, "token", token_bytes, units, CacheCurve((Term(block, kept, block, ahead=block > 1),)), share)


_LAYOUTS: dict[str, Callable[[list[Layers], Setup, int], tuple[Pool, ...]]] = {
    "tokens": _tokens,
    "blocks": _blocks,
    "pools": _pools,
    "cells": _cells,
}
