"""The work of one step, operator by operator: FLOPs, bytes read, bytes sent, launches.

An operator is a row; its numbers are scalars or arrays broadcast over batch and context, for the fullest rank of one
pipeline stage. Layers that are alike are summed into one row, which is exact because time is homogeneous in work.
Activations that matrix products read and write are taken to stay on chip; what small kernels move is counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.attention import AttentionRow
from planner.cached import Cached
from planner.formats import HIGH_PRECISION, Formats
from planner.model import LayerGroup, ModelSpec, Stack
from planner.precision import KvFormats
from planner.stage import Sharding, Stage
from planner.state import StateRow
from planner.tensors import Role, Tensor

if TYPE_CHECKING:
    from planner.arrays import Numbers


ACTIVATION_BYTES = 2
"""Activations, and what is sent between devices, are 16 bit."""


_SAMPLED_BYTES = ACTIVATION_BYTES + 4 + 4
"""Bytes moved of one logit: read in 16 bit, written in fp32, and read once more (vLLM, v1/sample/sampler.py)."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Work of one kind of operator in one step on one rank.

    Attributes
    ----------
    flops
        Floating-point operations, two for a multiply-add [FLOP].
    weight_bytes, cache_bytes
        Bytes read from memory: weights, and keys and values (read and written) [B].
    activation_bytes
        Activations that small kernels read and write [B].
    sent_bytes
        Bytes sent out of the device [B].
    launches
        Kernels started.
    compute
        Formats that the products can run in; see `precision.Format.compute`.
    weight_bits
        Bits of a weight with its scales.
    grouped
        Whether it is many small products at once, one for each expert that some token is sent to.
    only_in
        Format that a device must compute in for the operator to be there at all; empty for any.
    """

    name: str
    compute: tuple[str, ...] = ("bf16", "fp16", "fp32")
    flops: Numbers = 0.0
    weight_bytes: Numbers = 0.0
    cache_bytes: Numbers = 0.0
    sent_bytes: Numbers = 0.0
    launches: float = 0.0
    weight_bits: float = 16.0
    grouped: bool = False
    activation_bytes: Numbers = 0.0
    only_in: str = ""


@dataclass(frozen=True, slots=True)
class Precision:
    """Formats that a model runs in."""

    weights: Formats
    kv: KvFormats


# Kernels of one layer when a step is captured in a graph and fused as engines do. Projections: QKV, output; attention:
# rotary with the cache write, attention; feed-forward: gate-up, down. Experts add sorting tokens by expert and gathering
# them again; the router is one more. Element-wise: a norm before projections, a norm and an activation function about each
# feed-forward. Counted, not measured; the memory shares of efficiencies/generic.toml were fitted with these counts.
# Quantising and sampling came later and start none: their kernels are in what the fit makes of the others.
_ATTENTION_LAUNCHES, _PROJECTION_LAUNCHES, _FFN_LAUNCHES, _EXPERT_LAUNCHES = 2, 2, 2, 4


def decode_work(
    model: ModelSpec, stage: Stage, precision: Precision, sharding: Sharding, batch: Numbers, context: Numbers,
    source: int = 0,
) -> list[Operator]:  # fmt: skip
    """Work of one decode step: one new token for each of ``batch`` sequences that hold ``context`` tokens with it.

    Projections read their weights once and multiply each token with them, ``2 * parameters`` FLOP a token; attention reads
    every kept key and value once, whatever the number of query heads that share it (Shazeer 2019, arXiv:1911.02150,
    section 3); of the routed experts those are read that some token of the batch is sent to.
    """
    found = []
    local = batch / sharding.dp
    for group, count in stage.groups:
        found += [_attention(row, count, precision.kv, sharding, batch, context, source) for row in group.attention]
        if group.state:
            found.append(_state(group.state, count, sharding, batch))
        found += _layer(model, group, count, precision, sharding, local, batch, model)
    return found + _ends(model, stage, precision, sharding, local, local, batch)


def prefill_work(
    model: ModelSpec, stage: Stage, precision: Precision, sharding: Sharding, tokens: Numbers, source: int = 0,
    sequences: Numbers = 1.0, before: Numbers = 0.0,
) -> list[Operator]:  # fmt: skip
    """Work of prefilling ``tokens`` tokens of each of some prompts, of which ``before`` are in the cache already.

    Causal attention compares each token with itself and those before it that the row keeps and reads; what is cached of
    earlier tokens is read once, and where it is compressed, expanded anew for each chunk (vLLM,
    v1/attention/backends/mla/common.py). A layer of fixed state updates it with every token on chip, reads it if there were
    tokens before, and writes it once. Only the last token's logits are computed.

    Parameters
    ----------
    tokens, before
        Tokens of a chunk, and tokens before it: of earlier chunks, or of a prefix that is still cached.
    sequences
        Prompts that are prefilled at once: they read the weights once between them, and each attends to its own tokens.
    source
        Tokens of an encoder-decoder's source. The first chunk has the encoder read them all, with every token seeing every
        other, and each decoder layer turn the result into keys and values; later chunks find those in the cache.
    """
    found, tp = [], sharding.tp
    later = np.asarray(before) > 0
    first = not np.any(later)
    local = -(-sequences // sharding.dp)  # prompts of one data-parallel group
    for group, count in stage.groups:
        for row in group.attention:
            flops: Numbers = 0.0
            moved: Numbers = 0.0
            for c in row.cached(tp):
                flops = flops + c.prefill_flops * (tokens * source if row.attends_source else c.pairs(tokens, before))
                read = source * later if row.attends_source else c.earlier(tokens, before)
                written = c.owned * (source * ~later if row.attends_source else tokens / c.every)
                moved = moved + float(c.entry_bytes(precision.kv)) * (read + written)
                if c.expanded and not first:
                    found.append(_expansion(c, count, precision, local * c.earlier(tokens, before)))
            found.append(_attention_of(count, local * flops, local * moved))
        if group.state:
            moved = float(group.state.state_bytes(tp)) * (1.0 + later)
            flops = local * tokens * group.state.update_flops(tp)
            found.append(_attention_of(count, flops, local * moved, name="state"))
        if first and any(t.role is Role.SOURCE for t in group.tensors):
            found.append(
                _linear("cross-attention", group.tensors, count, Role.SOURCE, precision, sharding, local * source, 1)
            )
        found += _layer(model, group, count, precision, sharding, local * tokens, sequences * tokens, model)
    if stage.first and model.encoder and first:
        for group in model.encoder_groups:
            pairs = float(source) * source
            work = sum(pairs * c.prefill_flops for row in group.attention for c in row.cached(tp))
            found.append(_attention_of(group.count, local * work, 0.0))
            seen, everywhere = local * source, sequences * source
            found += _layer(model, group, group.count, precision, sharding, seen, everywhere, model.encoder)
    return found + _ends(model, stage, precision, sharding, local * tokens, local, sequences)


def _expansion(c: Cached, count: int, precision: Precision, entries: Numbers) -> Operator:
    """Keys and values made of cached entries: the weights are read once more, and what they make is written and read."""
    form = precision.weights[Role.ATTENTION]
    return Operator(
        "expansion",
        form.compute,
        flops=2.0 * count * c.expanded * entries,
        weight_bytes=float(count * form.nbytes(c.expanded)),
        launches=count,
        activation_bytes=count * c.prefill_flops * ACTIVATION_BYTES * entries,  # a multiply-add an element, moved twice
    )


def _layer(
    model: ModelSpec, group: LayerGroup, count: int, precision: Precision, sharding: Sharding, tokens: Numbers,
    everywhere: Numbers, stack: Stack,
) -> list[Operator]:  # fmt: skip
    """What every token of a layer passes through beside attention and state, and the sums over ranks that follow.

    Parameters
    ----------
    tokens, everywhere
        Tokens of one data-parallel group, and of all of them: experts see these.
    stack
        What the layer belongs to: the decoder, or the encoder.
    """
    found = []
    if group.attention or group.state:
        projections = (group.tensors, count, Role.ATTENTION, precision, sharding, tokens, _PROJECTION_LAUNCHES)
        found.append(_linear("projections", *projections))
    found += _feed_forward(group.tensors, count, precision, sharding, tokens, everywhere)
    found += _exchange(model.hidden, group.tensors, count, sharding, tokens, everywhere)
    mixers = len(group.attention) or bool(group.state)  # attention and state side by side are summed once
    blocks = 1 if stack.parallel else mixers + bool(group.ffn)
    found.append(
        _small_kernels(group, count, sharding, tokens, everywhere, model.hidden, stack.norms_per_layer + blocks)
    )
    found += _quantising(group, count, precision, sharding, tokens, model.hidden)
    return found + _all_reduces(model, count * blocks, sharding.tp, tokens)


def _small_kernels(
    group: LayerGroup, count: int, sharding: Sharding, tokens: Numbers, everywhere: Numbers, hidden: int, passes: int
) -> Operator:
    """Norms, residual sums, rotary embedding, convolutions, gates and activation functions.

    Each reads its input and writes its output. A norm is one of ``passes`` over the hidden state and a residual sum another:
    it is done in the kernel of the norm that follows, and reads the other operand and writes the sum besides.
    """
    elements = 2.0 * hidden * passes * tokens
    elements = elements + sum(row.small_elements(sharding.tp) for row in group.attention) * tokens
    if group.state:
        elements = elements + group.state.small_elements(sharding.tp) * tokens
    if (ffn := group.ffn) and ffn.experts:
        elements = elements + ffn.expert_elements(hidden, sharding.ranks, sharding.whole_experts) * everywhere
    if ffn and (ffn.shared_width or not ffn.experts):
        over_all = sharding.dense_over_all
        columns = ffn.small_elements(sharding.ranks if over_all else sharding.tp)
        elements = elements + columns * (everywhere if over_all else tokens)
    roles = {t.role for t in group.tensors}
    launches = bool(group.attention or group.state) + 2 * (Role.FFN in roles) + 2 * (Role.EXPERT in roles)
    return Operator("element-wise", launches=count * launches, activation_bytes=count * ACTIVATION_BYTES * elements)


def _quantising(
    group: LayerGroup, count: int, precision: Precision, sharding: Sharding, tokens: Numbers, hidden: int
) -> list[Operator]:
    """Activations read in 16 bit and written in the format that products run in, where a kernel of its own does so.

    What follows a norm or an activation function is quantised in that kernel (vLLM, compilation/passes/fusion,
    rms_quant_fusion.py and act_quant_fusion.py), keys and values in the one that writes them to the cache, and weights and
    caches are widened inside the products. That leaves the output of attention, whose scales are not known before it is
    done, and the input of routed experts, which the router needs in 16 bit.
    """
    widths = {
        Role.ATTENTION: sum(row.local_heads(sharding.tp) * row.output_dim for row in group.attention)
        + (group.state.local(group.state.output_width, sharding.tp) if group.state else 0),
        Role.EXPERT: hidden if group.ffn and group.ffn.experts else 0,
    }
    found = []
    for role, width in widths.items():
        form = precision.weights[role]
        if width and (narrow := form.compute[0]) not in HIGH_PRECISION:
            moved = count * width * (ACTIVATION_BYTES + form.bytes_per_element) * tokens
            found.append(Operator("quantise", form.compute, activation_bytes=moved, only_in=narrow))
    return found


def _attention_of(count: int, flops: Numbers, cache_bytes: Numbers, name: str = "attention") -> Operator:
    """Attention, or a state's update, of ``count`` like layers, each with so much work."""
    launches = count * _ATTENTION_LAUNCHES
    return Operator(name, flops=count * flops, cache_bytes=count * cache_bytes, launches=launches)


ROUTING_SKEW = 0.78
"""Tokens routed at random that a further token of a batch is worth, for reaching experts not yet reached: real routing has
favourites. Fitted to serving measurements of five models with experts, 0.72 to 0.83 in resampling; see
``efficiencies/serving.toml``.
"""


def expected_experts(experts: int, top_k: int, tokens: Numbers, skew: float = 1.0) -> Numbers:
    """Distinct experts that ``tokens`` tokens reach when each picks ``top_k`` at random; less so with ``skew`` < 1.

    An expert is missed by one token with probability ``1 - top_k / experts`` and by all with that to the power ``tokens``;
    a token after the first counts as ``skew`` of one.

    >>> float(expected_experts(8, 2, 1)), round(float(expected_experts(8, 2, 8)), 2)
    (2.0, 7.2)
    """
    reached: Numbers = np.asarray(tokens, dtype=float)
    if skew != 1.0:
        reached = np.where(reached > 1.0, 1.0 + skew * (reached - 1.0), reached)
    found: Numbers = experts * (1.0 - (1.0 - top_k / experts) ** reached)
    return found


def _linear(
    name: str, tensors: Iterable[Tensor], count: int, role: Role, precision: Precision, sharding: Sharding,
    tokens: Numbers, launches: int,
) -> Operator:  # fmt: skip
    """Weights of one role, that every token is multiplied by."""
    form = precision.weights[role]
    sizes = [sharding.held(t) for t in tensors if t.role is role]
    nbytes = count * sum(form.nbytes(size) for size in sizes)
    return Operator(
        name, form.compute, 2.0 * count * sum(sizes) * tokens, float(nbytes), launches=count * launches,
        weight_bits=float(form.bits),
    )  # fmt: skip


def _attention(
    row: AttentionRow, count: int, kv: KvFormats, sharding: Sharding, batch: Numbers, context: Numbers, source: int
) -> Operator:
    local_batch = np.ceil(np.asarray(batch) / sharding.batch_ranks)
    flops: Numbers = 0.0
    moved: Numbers = 0.0
    for c in row.cached(sharding.head_ranks):
        read = float(source) if row.attends_source else c.entries_read(context)
        written = 0.0 if row.attends_source or not c.owned else 1.0 / c.every
        flops = flops + float(c.flops) * read
        moved = moved + float(c.entry_bytes(kv)) * (read + written)
    return _attention_of(count, flops * local_batch, moved * local_batch)


def _state(row: StateRow, count: int, sharding: Sharding, batch: Numbers) -> Operator:
    """A layer of fixed state: the state of every sequence is read, updated and written back."""
    local_batch = np.ceil(np.asarray(batch, dtype=float) / sharding.batch_ranks)
    ranks = sharding.head_ranks
    return _attention_of(
        count, row.update_flops(ranks) * local_batch, 2.0 * row.state_bytes(ranks) * local_batch, name="state"
    )


def _feed_forward(
    tensors: tuple[Tensor, ...], count: int, precision: Precision, sharding: Sharding, tokens: Numbers,
    everywhere: Numbers,
) -> list[Operator]:  # fmt: skip
    found = []
    if any(t.role is Role.FFN for t in tensors):
        seen = everywhere if sharding.dense_over_all else tokens
        found.append(_linear("ffn", tensors, count, Role.FFN, precision, sharding, seen, _FFN_LAUNCHES))
    experts = [t for t in tensors if t.role is Role.EXPERT]
    if experts or any(t.role is Role.ROUTER for t in tensors):
        name = "router" if experts else "indexer"
        found.append(_linear(name, tensors, count, Role.ROUTER, precision, sharding, tokens, bool(experts)))
    if experts:
        form = precision.weights[Role.EXPERT]
        total, used = experts[0].copies, experts[0].used
        touched = expected_experts(total, used, everywhere, ROUTING_SKEW)
        # A rank's share of one expert: a slice of each, or one in so many whole.
        slices = [t.units * t.unit_size / sharding.ranks if sharding.whole_experts else t.per_rank(sharding.ranks) / total
                  for t in experts]  # fmt: skip
        found.append(
            Operator(
                "experts",
                form.compute,
                flops=2.0 * count * sum(slices) * used * everywhere,
                weight_bytes=count * sum(slices) * form.bytes_per_element * touched,
                launches=count * _EXPERT_LAUNCHES,
                weight_bits=float(form.bits),
                grouped=True,
            )
        )
    return found


def _exchange(
    hidden: int, tensors: tuple[Tensor, ...], count: int, sharding: Sharding, tokens: Numbers, everywhere: Numbers
) -> list[Operator]:
    """What one rank sends so that data-parallel groups share a feed-forward layer: tokens to the others, results back.

    Where experts are whole, a token goes once to each rank that has one of its own: at most ``ranks`` copies, of which the
    share that stays is not sent (DeepSeek-V3, arXiv:2412.19437, section 3.2.2). Where each rank has a slice of every expert,
    or of a dense layer, all tokens are gathered on all ranks and the sums scattered: a ring passes on all but one of
    ``ranks`` shares each way (Patarasuk and Yuan 2009, JPDC 69(2), section 3).
    """
    if sharding.dp == 1:
        return []
    used = max((t.used for t in tensors if t.role is Role.EXPERT), default=0)
    both_ways = 2 * count * hidden * ACTIVATION_BYTES * (sharding.ranks - 1) / sharding.ranks
    if used and sharding.whole_experts:
        copies = min(used, sharding.ranks) * tokens / sharding.tp
        return [Operator("all-to-all", sent_bytes=both_ways * copies, launches=count * 2)]
    if used or (sharding.dense_over_all and any(t.role is Role.FFN for t in tensors)):
        launches = count * 2 if used else 0  # a dense layer's are those of the sum over ranks that follows
        return [Operator("all-gather", sent_bytes=both_ways * everywhere, launches=launches)]
    return []


def _all_reduces(model: ModelSpec, times: int, tp: int, tokens: Numbers) -> list[Operator]:
    """Sums over tensor-parallel ranks: one after each block, or one for both blocks of a parallel layer.

    A ring sends ``2 (tp - 1) / tp`` of the message from each rank: Patarasuk and Yuan 2009, JPDC 69(2), section 3.
    """
    if tp == 1:
        return []
    message = model.hidden * ACTIVATION_BYTES * tokens
    return [Operator("all-reduce", sent_bytes=times * 2 * (tp - 1) / tp * message, launches=times)]


def _ends(
    model: ModelSpec, stage: Stage, precision: Precision, sharding: Sharding, tokens: Numbers, sampled: Numbers,
    sampled_everywhere: Numbers,
) -> list[Operator]:  # fmt: skip
    """Embedding look-up, the hand-over between stages, and the head with its logits."""
    found = []
    row_bytes = precision.weights[Role.EMBEDDING].bytes_per_element * (model.embedding_width or model.hidden)
    if stage.first:
        found.append(Operator("embedding", weight_bytes=row_bytes * tokens, launches=1))
    if not stage.last:
        found.append(Operator("stage hand-over", sent_bytes=model.hidden * ACTIVATION_BYTES * tokens, launches=1))
    else:
        norm = 2.0 * 2.0 * model.hidden * ACTIVATION_BYTES * tokens  # with the last residual sum
        found.append(Operator("element-wise", launches=1, activation_bytes=norm))
        over_all = sharding.dense_over_all
        seen, ranks = (sampled_everywhere, sharding.ranks) if over_all else (sampled, sharding.tp)
        found.append(_linear("lm_head", (model.head,), 1, Role.HEAD, precision, sharding, seen, 1))
        if ranks > 1:
            logits = (
                (ranks - 1) / ranks * model.vocab * ACTIVATION_BYTES * seen
            )  # a ring passes on what the others hold
            found.append(Operator("logits gather", sent_bytes=logits, launches=float(sharding.tp > 1)))
        found.append(Operator("sampling", activation_bytes=_SAMPLED_BYTES * model.vocab * sampled))
    return found
