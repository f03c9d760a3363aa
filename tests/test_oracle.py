"""An independent, slow, obvious count: loops over layers, tokens, heads and matrices, against the formulas."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.attention import HeadAttention, LatentAttention
from planner.cached import UNBOUNDED, Cached
from planner.memory import cache_curve, weight_bytes
from planner.model import ModelSpec
from planner.precision import find_kv
from planner.roofline import IDEAL, Shares, StepTime, add_stages, step_time
from planner.stage import Sharding, stages_of
from planner.tensors import Role
from planner.work import Operator, Precision, decode_work, expected_experts, prefill_work
from tests.specs import build, device, models


def layers_of(model: ModelSpec) -> list[HeadAttention | LatentAttention]:
    """The row of each layer, found by trying every layer against every row's ``at`` with plain list slicing."""
    found = []
    for layer in range(model.layers):
        claimed = [
            r for r in model.attention if r.at and any(layer in _listed(part, model.layers) for part in r.at.split())
        ]
        rest = [r for r in model.attention if not r.at]
        (row,) = claimed or rest
        assert isinstance(row, HeadAttention | LatentAttention)
        found.append(row)
    return found


def _listed(part: str, layers: int) -> list[int]:
    numbers = list(range(layers))
    if ":" not in part:
        return [numbers[int(part)]]
    start, stop, step = ([int(n) if n else None for n in part.split(":")] + [None, None])[:3]
    return numbers[start:stop:step]


def count_parameters(model: ModelSpec) -> int:
    """Every matrix as rows times columns, every vector by its length."""
    h = model.hidden
    norm = h * (1 + model.norm_bias)
    total = model.vocab * h + model.learned_positions * h + norm
    total += 0 if model.tied else model.vocab * h
    total += model.vocab if model.head_bias else 0
    for row in layers_of(model):
        if isinstance(row, LatentAttention):
            head = row.qk_nope_head_dim + row.qk_rope_head_dim
            total += h * row.kv_lora_rank + h * row.qk_rope_head_dim + row.kv_lora_rank
            total += row.kv_lora_rank * row.heads * row.qk_nope_head_dim + row.kv_lora_rank * row.heads * row.v_head_dim
            total += row.heads * row.v_head_dim * h
            total += (h * row.q_lora_rank + row.q_lora_rank + row.q_lora_rank * row.heads * head) if row.q_lora_rank else (
                h * row.heads * head
            )  # fmt: skip
        else:
            value = row.v_head_dim if row.v_head_dim is not None else row.head_dim
            q, k, v = row.heads * row.head_dim, row.kv_heads * row.head_dim, row.kv_heads * value
            total += h * q + h * k + h * v + row.heads * value * h
            total += (q + k + v if row.qkv_bias else 0) + (h if row.o_bias else 0) + (row.heads if row.sinks else 0)
            total += {"none": 0, "head": 2 * row.head_dim, "full": q + k}[row.qk_norm]
        ffn = model.ffn[0]
        branches = 3 if ffn.gated else 2

        def mlp(width: int, branches: int = branches, bias: bool = ffn.bias) -> int:
            return branches * h * width + ((branches - 1) * width + h if bias else 0)

        if ffn.experts:
            total += h * ffn.experts + sum(mlp(ffn.width) for _ in range(ffn.experts))
            total += mlp(ffn.shared_width) if ffn.shared_width else 0
            total += (ffn.experts if ffn.router_bias else 0) + (h if ffn.shared_gate else 0)
        else:
            total += mlp(ffn.width)
        total += model.norms_per_layer * norm
    return total


@given(models())
def test_parameters(model: ModelSpec) -> None:
    assert model.total_parameters == count_parameters(model)
    assert weight_bytes(model.all_tensors(), model.weight_formats("bf16")) == 2 * count_parameters(model)


@given(models(), st.integers(1, 150), st.sampled_from([1, 2, 4]), st.sampled_from(["bf16", "fp8", "fp32"]))
def test_cache_bytes(model: ModelSpec, context: int, tp: int, kv: str) -> None:
    """Push tokens one by one into a queue per layer, rank and head, and weigh what the fullest rank holds."""
    size = {"bf16": 2, "fp8": 1, "fp32": 4}[kv]
    held = [0] * tp
    for row in layers_of(model):
        for rank in range(tp):
            queue: deque[int] = deque(maxlen=row.window)
            if isinstance(row, LatentAttention):
                token = (row.kv_lora_rank + row.qk_rope_head_dim) * size
            else:
                value = row.v_head_dim if row.v_head_dim is not None else row.head_dim
                # Ranks beyond the heads hold a copy of one; otherwise the first ranks take what does not divide.
                heads = [h for h in range(row.kv_heads) if h % tp == rank % row.kv_heads % tp] if row.kv_heads < tp else [
                    h for h in range(row.kv_heads) if h % tp == rank
                ]  # fmt: skip
                token = len(heads) * (row.head_dim + value) * size
            for _ in range(context):
                queue.append(token)
            held[rank] += sum(queue)
    stage = stages_of(model, 1)[0]
    assert cache_curve(stage, find_kv(kv), tp).amount(context) == max(held)


@given(models(), st.integers(1, 40), st.integers(1, 100))
def test_decode_work(model: ModelSpec, batch: int, context: int) -> None:
    """Multiply-adds counted matrix by matrix and token by token, dense models on one device."""
    precision = Precision(model.weight_formats("bf16"), find_kv("bf16"))
    ops = decode_work(model, stages_of(model, 1)[0], precision, Sharding(1), float(batch), float(context))
    flops = 2 * batch * model.vocab * model.hidden
    read = batch * model.hidden * 2 + model.vocab * model.hidden * 2
    cache = 0
    roles = (Role.ATTENTION, Role.FFN, Role.ROUTER)
    for group in model.groups:
        for _ in group.indices:
            for t in group.tensors:
                if t.role in roles:
                    flops += 2 * batch * t.parameters
                    read += 2 * t.parameters
                elif t.role is Role.EXPERT:
                    flops += 2 * batch * t.parameters * t.used // t.copies
    for row in layers_of(model):
        kept = min(context, row.window or context)
        if isinstance(row, LatentAttention):
            width, value, stored = row.latent_dim, row.kv_lora_rank, row.latent_dim
        else:
            width, value = row.head_dim, row.value_dim
            stored = row.kv_heads * (width + value)
        for _ in range(kept):
            flops += batch * row.heads * (2 * width + 2 * value)
        cache += batch * (kept + 1) * stored * 2
    assert sum(float(op.flops) for op in ops) == pytest.approx(flops)
    assert sum(float(op.cache_bytes) for op in ops) == pytest.approx(cache)
    assert sum(float(op.weight_bytes) for op in ops if op.name != "experts") == pytest.approx(read)


@given(
    st.integers(0, 60),
    st.integers(1, 60),
    st.integers(1, 40),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([2, 5, UNBOUNDED]),
)
def test_pairs_and_reads_of_a_chunk(before: int, tokens: int, kept: int, every: int, read: int) -> None:
    """Each new token is compared with what the row keeps; what earlier tokens left is read if a new token reaches it."""
    new = range(before, before + tokens)
    window = Cached(1, 8, kept=kept)
    reached = {(q, k) for q in new for k in range(q + 1) if q - k < kept}
    assert window.pairs(tokens, before) == len(reached)
    assert window.earlier(tokens, before) == len({k for _, k in reached if k < before})

    chunk = Cached(1, 8, kept=kept, chunked=True)
    reached = {(q, k) for q in new for k in range(q + 1) if q // kept == k // kept}
    assert chunk.pairs(tokens, before) == len(reached)
    assert chunk.earlier(tokens, before) == len({k for _, k in reached if k < before})

    sparse = Cached(1, 8, every=every, read=read)
    assert sparse.pairs(tokens, before) == sum(min((q + 1) // every, read) for q in new)
    assert sparse.earlier(tokens, before) == min(before // every, read * tokens)


def test_expected_experts_is_the_mean_of_a_simulation() -> None:
    import random

    rng = random.Random(7)
    trials = [len({e for _ in range(16) for e in rng.sample(range(32), 4)}) for _ in range(4000)]
    assert float(expected_experts(32, 4, 16)) == pytest.approx(sum(trials) / len(trials), rel=0.005)


def test_encoder_decoder_counts_cross_attention_once_a_source_token() -> None:
    row = {"heads": 4, "kv_heads": 4, "head_dim": 8}
    ffn = ({"width": 32},)
    encoder = {"layers": 2, "attention": (row,), "ffn": ffn}
    model = build(attention=(row, {"kind": "cross", **row}), layers=3, encoder=encoder, source_tokens=20, ffn=ffn)
    curve = cache_curve(stages_of(model, 1)[0], find_kv("bf16"), 1, 20)
    each = 2 * 4 * 8 * 2
    assert curve.amount(7) == 3 * (7 * each + 20 * each)
    assert curve.growing == 3 * each


def test_encoder_decoder_work_is_counted_once_a_source_token() -> None:
    """Keys and values of the source are projected in prefill, never in decode; the encoder runs in prefill only."""
    h, heads, dim, width, source, layers = 64, 4, 8, 32, 20, 3
    row = {"heads": heads, "kv_heads": heads, "head_dim": dim}
    encoder = {"layers": 2, "attention": (row,), "ffn": ({"width": width},)}
    model = build(
        attention=(row, {"kind": "cross", **row}), layers=layers, encoder=encoder, source_tokens=source,
        ffn=({"width": width},),
    )  # fmt: skip
    precision = Precision(model.weight_formats("bf16"), find_kv("bf16"))
    square = h * heads * dim
    decode = decode_work(model, stages_of(model, 1)[0], precision, Sharding(1), 1.0, 7.0, source)
    decoder = layers * (6 * square + 3 * h * width)
    attended = layers * (7 + source) * heads * 4 * dim
    assert sum(float(op.flops) for op in decode) == pytest.approx(2 * (decoder + model.vocab * h) + attended)
    weights = 2 * (decoder + model.vocab * h + h)
    assert sum(float(op.weight_bytes) for op in decode) == pytest.approx(weights)

    prefill = prefill_work(model, stages_of(model, 1)[0], precision, Sharding(1), 1.0, source)
    keys = 2 * layers * 2 * square * source
    encoded = 2 * 2 * (4 * square + 3 * h * width) * source + 2 * source * source * heads * 4 * dim
    first = 2 * (decoder + model.vocab * h) + layers * (1 + source) * heads * 4 * dim
    assert sum(float(op.flops) for op in prefill) == pytest.approx(keys + encoded + first)
    written = layers * (1 + source) * 2 * heads * dim * 2
    assert sum(float(op.cache_bytes) for op in prefill) == pytest.approx(written)


def test_a_pipeline_waits_for_its_slowest_stage() -> None:
    """Simulate parts of a batch going round through stages; the steady period is what `add_stages` says."""
    for stages, parts in (([1.0, 1.0, 3.0], 3), ([2.0, 2.0], 2), ([1.0, 5.0], 1), ([4.0, 1.0, 1.0, 1.0], 4)):
        free, ready = [0.0] * len(stages), [0.0] * parts
        rounds = []
        for _ in range(50):
            for part in range(parts):
                for s, seconds in enumerate(stages):
                    ready[part] = free[s] = max(ready[part], free[s]) + seconds
            rounds.append(ready[0])
        times = [(StepTime(t, (t, 0.0, 0.0, 0.0, 0.0, 0.0), 1.0, 1.0), 1) for t in stages]
        assert float(add_stages(times, parts).step_s) == pytest.approx(rounds[-1] - rounds[-2])


def _operators(model: ModelSpec, weights: str = "bf16", tokens: float = 3.0) -> dict[str, list[Operator]]:
    precision = Precision(model.weight_formats(weights), find_kv("bf16"))
    found: dict[str, list[Operator]] = {}
    for op in decode_work(model, stages_of(model, 1)[0], precision, Sharding(), tokens, 9.0):
        found.setdefault(op.name, []).append(op)
    return found


def test_small_kernels_one_by_one() -> None:
    """Elements that each kernel of a dense layer reads and writes of one token; every one has 2 bytes."""
    h, heads, kv_heads, dim, width, layers, vocab, tokens = 64, 8, 2, 16, 128, 4, 100, 3
    kernels = {
        "residual sum and norm before attention": 4 * h,
        "rotary, queries": 2 * heads * dim,
        "rotary, keys": 2 * kv_heads * dim,
        "residual sum and norm before feed-forward": 4 * h,
        "activation function": 3 * width,
    }
    model = build(attention=({"heads": heads, "kv_heads": kv_heads, "head_dim": dim},), ffn=({"width": width},))
    found = _operators(model, tokens=tokens)
    layer, last = found["element-wise"]
    assert layer.activation_bytes == layers * sum(kernels.values()) * 2 * tokens
    assert last.activation_bytes == 4 * h * 2 * tokens
    assert found["sampling"][0].activation_bytes == (2 + 4 + 4) * vocab * tokens
    assert "quantise" not in found

    (quantised,) = _operators(model, "fp8", tokens)["quantise"]
    assert quantised.activation_bytes == layers * heads * dim * (2 + 1) * tokens
    assert quantised.only_in == "fp8"


def test_small_kernels_of_experts() -> None:
    """Of a routed expert gate, up and their product, and its output read to sum; shared experts are like a layer."""
    h, width, shared, layers, tokens, top_k = 64, 32, 48, 4, 3, 2
    ffn = {"width": width, "experts": 8, "top_k": top_k, "shared_width": shared}
    dense = _operators(build(ffn=({"width": shared},)))["element-wise"][0].activation_bytes
    experts = _operators(build(ffn=(ffn,)))["element-wise"][0].activation_bytes
    assert experts - dense == layers * 2 * tokens * (top_k * (3 * width + h) + h)
    quantised = _operators(build(ffn=(ffn,)), "fp8")["quantise"]
    assert [op.activation_bytes for op in quantised] == [layers * n * (2 + 1) * tokens for n in (8 * 8, h)]


def test_kernels_are_counted_as_before() -> None:
    """Fitted efficiencies rest on these: ends 3; attention 5, feed-forward 4, experts and router 7 a layer."""
    ffn = {"width": 32, "experts": 8, "top_k": 2}
    for model, layer in ((build(), 9), (build(ffn=(ffn,)), 12), (build(ffn=({**ffn, "shared_width": 8},)), 16)):
        launches = sum(op.launches for ops in _operators(model).values() for op in ops)
        assert launches == 4 * layer + 3


def test_activations_take_their_time_but_in_the_ideal() -> None:
    """At 100 GB/s, of which half is reached; quantising is for devices that compute in the format."""
    norms = Operator("element-wise", activation_bytes=1e9)
    operators = [norms, Operator("quantise", ("fp8", "bf16"), activation_bytes=1e9, only_in="fp8")]
    half = Shares(memory=0.5, activations=0.5)
    assert step_time(operators, device(), IDEAL).step_s == 0
    assert step_time(operators, device(), half).step_s == pytest.approx(0.02)
    assert step_time(operators, device(peak_tflops={"bf16": 10, "fp8": 20}), half).step_s == pytest.approx(0.04)


def test_groups_that_share_a_layer_send_each_other_its_tokens() -> None:
    """Four groups of two ranks, twelve tokens: whole experts get copies, slices and shared dense layers get every token."""
    h, layers, batch, ranks = 64, 4, 12.0, 8
    ffn = {"width": 32, "experts": 16, "top_k": 3}
    dense, experts = build(), build(ffn=(ffn,))

    def sent(model: ModelSpec, name: str, sharding: Sharding) -> float:
        precision = Precision(model.weight_formats("bf16"), find_kv("bf16"))
        ops = decode_work(model, stages_of(model, 1)[0], precision, sharding, batch, 9.0)
        return sum(float(op.sent_bytes) for op in ops if op.name == name)

    whole = Sharding(2, dp=4, whole_experts=True)
    others = (ranks - 1) / ranks
    assert sent(experts, "all-to-all", whole) == pytest.approx(2 * layers * (batch / ranks * 3 * others) * h * 2)
    for model, sharding in ((experts, Sharding(2, dp=4)), (dense, Sharding(2, dp=4, dense_over_all=True))):
        assert sent(model, "all-gather", sharding) == pytest.approx(2 * layers * batch * others * h * 2)
    assert sent(dense, "all-gather", Sharding(2, dp=4)) == sent(dense, "all-gather", Sharding(2)) == 0


def test_ranks_that_share_head_and_dense_layers_do_their_work_once() -> None:
    model = build(vocab=128)
    precision = Precision(model.weight_formats("bf16"), find_kv("bf16"))
    alone, shared = (
        {op.name: op for op in decode_work(model, stages_of(model, 1)[0], precision, s, 12.0, 9.0)}
        for s in (Sharding(), Sharding(2, dp=2, dense_over_all=True))
    )
    for name in ("ffn", "lm_head"):
        assert 4 * shared[name].flops == alone[name].flops
        assert 4 * shared[name].weight_bytes == alone[name].weight_bytes
