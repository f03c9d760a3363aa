"""Laws that hold for every model: hypothesis looks for one that breaks them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.attention import HeadAttention, LatentAttention
from planner.cached import UNBOUNDED
from planner.evaluate import OCTAVES, crossover, decode_times, evaluate, interval_s
from planner.memory import CacheCurve, Term, cache_curve
from planner.model import ModelSpec
from planner.precision import find_kv
from planner.roofline import BOUNDS
from planner.row import Row
from planner.settle import deploy
from planner.stage import Sharding, split_layers, stages_of
from planner.variants import with_variant
from planner.verbs.plan import plan
from planner.verbs.sweep import sweep
from planner.work import Operator, Precision, decode_work, prefill_work
from tests.specs import any_models, build, device, hybrids, models

BF16 = find_kv("bf16")
contexts = st.integers(1, 4096)
batches = st.integers(1, 3000)


def curve_of(model: ModelSpec, tp: int = 1) -> CacheCurve:
    return cache_curve(stages_of(model, 1)[0], BF16, tp)


@given(contexts)
def test_mqa_is_gqa_of_one(context: int) -> None:
    row = HeadAttention(heads=32, kv_heads=8, head_dim=128)
    assert with_variant(row, "mqa") == with_variant(row, "gqa:1")
    assert with_variant(row, "mha") == with_variant(row, "gqa:32")


@given(models(), contexts)
def test_window_longer_than_the_context_is_full_attention(model: ModelSpec, context: int) -> None:
    full = build(**{**_fields(model), "attention": tuple({**_row(r), "window": None} for r in model.attention)})
    wide = build(**{**_fields(model), "attention": tuple({**_row(r), "window": context + 1} for r in model.attention)})
    assert curve_of(full).amount(context) == curve_of(wide).amount(context)


@given(models(), contexts)
def test_cache_grows_with_context_and_not_faster_than_at_first(model: ModelSpec, context: int) -> None:
    curve = curve_of(model)
    step = curve.amount(context + 1) - curve.amount(context)
    assert curve.saturated <= step <= curve.growing
    assert curve.amount(context) <= context * curve.growing


@given(models(), st.sampled_from([1, 2, 4]), contexts)
def test_shards_never_sum_to_less_than_the_whole(model: ModelSpec, tp: int, context: int) -> None:
    assert tp * curve_of(model, tp).amount(context) >= curve_of(model).amount(context)
    for t, _ in model.all_tensors():
        assert tp * t.per_rank(tp) >= t.parameters
        assert t.per_rank(tp) <= t.parameters


@given(any_models(), st.integers(1, 6))
def test_stages_hold_every_layer_once(model: ModelSpec, pp: int) -> None:
    pp = min(pp, model.layers)
    stages = stages_of(model, pp)
    assert [s.layers for s in stages] == split_layers(model.layers, pp)
    assert sum(s.layers for s in stages) == model.layers
    copied = model.vocab * model.hidden if model.tied and pp > 1 else 0
    whole = sum(t.parameters * n for s in stages for t, n in s.all_tensors())
    shared = any(t.distinct for g in model.groups for t in g.tensors)  # each stage has its own copy of those
    assert whole >= model.total_parameters + copied if shared else whole == model.total_parameters + copied


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 500)), max_size=3),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from([1, 4, 128]),
)
def test_longest_is_the_inverse_of_the_curve(windows: list[tuple[int, int]], rate: int, fixed: int, every: int) -> None:
    full = (Term(rate, UNBOUNDED, every),) if rate else ()
    curve = CacheCurve((*(Term(r, k) for r, k in windows), *full), fixed)
    for budget in (0, fixed, fixed + 1, curve.amount(77), curve.amount(77) + 1, 10**9):
        longest = curve.longest(budget)
        if longest >= UNBOUNDED:
            assert curve.amount(10**12) <= budget
        else:
            assert longest == 0 or curve.amount(longest) <= budget
            assert curve.amount(longest + 1) > budget


@given(
    any_models(), batches, contexts, st.sampled_from(["none", "vllm"]), st.sampled_from([1, 2, 4]), st.integers(1, 3)
)
def test_max_batch_fits_and_one_more_does_not(
    model: ModelSpec, batch: int, context: int, engine: str, tp: int, pp: int
) -> None:
    gpu = device(memory={"nominal_gb": 4, "type": "HBM", "bandwidth_gb_per_s": 100})
    found = deploy(model, gpu, context=context, tp=tp, pp=min(pp, model.layers), engine=engine)
    most = found.max_batch(context)
    if 0 < most < UNBOUNDED:
        assert found.missing_bytes(most, context) == 0
    if most < UNBOUNDED:
        assert found.missing_bytes(most + 1, context) > 0
    longest = found.max_context(batch)
    if 0 < longest < UNBOUNDED:
        assert found.max_batch(longest) >= batch
        assert found.max_batch(longest + found.setup.block_tokens) < batch


@given(any_models(), batches, contexts)
def test_memory_is_linear_in_batch(model: ModelSpec, batch: int, context: int) -> None:
    one, many = (plan(model, device(), batch=b, context=context, tp=1, engine="none").memory for b in (1, batch))
    assert many.kv_bytes_per_gpu == batch * one.kv_bytes_per_gpu


@given(any_models(), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 512), contexts)
def test_time_laws(model: ModelSpec, tp: int, pp: int, batch: int, context: int) -> None:
    """Expected is never under ideal, more work never faster, more bandwidth never slower."""
    slow, fast = device(), device(memory={"nominal_gb": 1, "type": "HBM", "bandwidth_gb_per_s": 150})
    pp = min(pp, model.layers)
    d = deploy(model, slow, context=context, tp=tp, pp=pp)
    ideal, expected = decode_times(d, np.array([batch, batch + 1]), np.array([context]))
    floor, step = np.asarray(ideal.step_s), np.asarray(expected.step_s)
    slack = 1 - 1e-12
    assert np.all(step >= floor * slack)
    assert step[1] >= step[0] * slack
    assert decode_times(d, batch, context + 1)[1].step_s >= step[0] * slack
    quick_floor, quick_step = decode_times(deploy(model, fast, context=context, tp=tp, pp=pp), batch, context)
    assert quick_floor.step_s * slack <= floor[0]
    assert quick_step.step_s * slack <= step[0]
    low, high = interval_s(d, expected.step_s, ideal.step_s)
    assert np.all(ideal.step_s <= np.asarray(low) * (1 + 1e-12))
    assert np.all(low <= np.asarray(high))
    parts = sum(np.asarray(p) for p in expected.parts)
    assert np.allclose(parts, expected.step_s)


few = st.lists(st.integers(1, 256), min_size=1, max_size=4)


@given(any_models(), few, st.lists(contexts, min_size=1, max_size=4), st.integers(1, 4))
def test_a_sweep_row_is_its_plan(model: ModelSpec, some_batches: list[int], some_contexts: list[int], pp: int) -> None:
    from planner.report.tables import plan_row

    gpu = device(memory={"nominal_gb": 2, "type": "HBM", "bandwidth_gb_per_s": 100})
    pp = min(pp, model.layers)
    table = sweep([model], [gpu], tp=[2], pp=[pp], batch=some_batches, context=some_contexts)
    for row in table.head(20):
        p = plan(model, gpu, tp=2, pp=pp, batch=row["batch"], context=row["context_tokens"])
        (expected,) = plan_row(p).rows
        for name, value in row.items():
            assert value == (pytest.approx(expected[name]) if isinstance(value, float) else expected[name]), name


@given(any_models(), batches, contexts)
def test_arrays_answer_like_scalars(model: ModelSpec, batch: int, context: int) -> None:
    d = deploy(model, device(), context=context, tp=1)
    grid = evaluate(d, np.array([[batch], [batch + 7]]), np.array([[context, context + 5]]))
    assert d.max_batch(context) == grid.max_batch[0, 0]
    assert d.max_context(batch) == grid.max_context[0, 0]
    assert d.curve.amount(context + 5) == grid.kv_bytes_per_sequence[0, 1]


def _fields(model: ModelSpec) -> dict[str, object]:
    return {"layers": model.layers, "hidden": model.hidden, "vocab": model.vocab, "ffn": model.ffn}


def _row(row: Row) -> dict[str, object]:
    return row.model_dump()


@given(any_models(), st.sampled_from([1, 2]), contexts)
def test_crossover_is_where_weights_stop_being_the_bound(model: ModelSpec, tp: int, context: int) -> None:
    d = deploy(model, device(), context=context, tp=tp)
    bounds = [BOUNDS[i] for i in decode_times(d, np.arange(1, 600), context)[1].bound.tolist()]
    octaves = np.array(OCTAVES)
    found = crossover(d, context, octaves, decode_times(d, octaves, context)[1])
    if "weights" in bounds:
        after = [i for i in range(bounds.index("weights"), len(bounds)) if bounds[i] != "weights"]
        if after:
            assert found == (after[0] + 1, bounds[after[0]])
        else:
            assert found is None or found[0] >= 600


@given(hybrids(), st.sampled_from([1, 2, 4, 8]), contexts)
def test_shards_of_a_hybrid_never_sum_to_less_than_the_whole(model: ModelSpec, tp: int, context: int) -> None:
    whole, shard = curve_of(model).amount(context), curve_of(model, tp).amount(context)
    assert tp * shard >= whole >= shard


@given(hybrids(), contexts)
def test_state_does_not_grow_and_readers_hold_nothing(model: ModelSpec, context: int) -> None:
    curve = curve_of(model)
    without = build(**{**_fields(model), "attention": tuple(_row(r) for r in model.attention if r.owner)})
    assert curve.amount(context) - curve.fixed == curve_of(without).amount(context)
    assert curve.fixed == sum(g.count * g.state.state_bytes(1) for g in model.groups if g.state)


@given(st.integers(1, 10**5), st.integers(1, 4096))
def test_an_indexer_bounds_what_is_read_not_what_is_kept(context: int, top_k: int) -> None:
    row = {"heads": 8, "kv_heads": 2, "head_dim": 16}
    full = HeadAttention.model_validate(row)
    sparse = HeadAttention.model_validate({**row, "indexer": {"heads": 2, "head_dim": 4, "top_k": top_k}})
    *kept, index = sparse.cached(1)
    assert [c.entries(context) for c in kept] == [c.entries(context) for c in full.cached(1)]
    assert all(c.entries_read(float(context)) == min(context, top_k) for c in kept)
    assert index.entries_read(float(context)) == context


def _flops(operators: list[Operator]) -> dict[str, float]:
    found: dict[str, float] = {}
    for op in operators:
        found[op.name] = found.get(op.name, 0.0) + float(op.flops)
    return found


@given(any_models(), st.lists(st.integers(1, 300), min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_chunks_do_the_work_of_the_prompt(model: ModelSpec, chunks: list[int], tp: int) -> None:
    """All but the logits, which each chunk has, and latents of earlier chunks, which each chunk expands."""
    precision, stage = Precision(model.weight_formats("bf16"), BF16), stages_of(model, 1)[0]
    whole = _flops(prefill_work(model, stage, precision, Sharding(tp), float(sum(chunks))))
    summed: dict[str, float] = {}
    for i, tokens in enumerate(chunks):
        operators = prefill_work(model, stage, precision, Sharding(tp), float(tokens), before=float(sum(chunks[:i])))
        for name, flops in _flops(operators).items():
            summed[name] = summed.get(name, 0.0) + flops
    for name in whole.keys() - {"lm_head"}:
        assert summed[name] == pytest.approx(whole[name]), name


@given(any_models(), contexts)
def test_one_token_after_a_prompt_is_a_decode_step(model: ModelSpec, before: int) -> None:
    """Where nothing is expanded: prefill of one token has the FLOPs of a decode step, and moves the same states."""
    assume(not any(isinstance(row, LatentAttention) for row in model.attention))
    precision, stage = Precision(model.weight_formats("bf16"), BF16), stages_of(model, 1)[0]
    decode = decode_work(model, stage, precision, Sharding(), 1.0, before + 1.0)
    prefill = prefill_work(model, stage, precision, Sharding(), 1.0, before=float(before))
    assert _flops(prefill) == pytest.approx(_flops(decode))
    states = [sum(float(op.cache_bytes) for op in ops if op.name == "state") for ops in (decode, prefill)]
    assert states[0] == states[1]


def test_chunks_answer_for_arrays_like_for_scalars() -> None:
    model = build(attention=({"heads": 8, "kv_heads": 2, "head_dim": 8, "window": 50, "at": "::2"},
                             {"kind": "latent", "heads": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
                              "qk_rope_head_dim": 4, "v_head_dim": 8}))  # fmt: skip
    precision, stage = Precision(model.weight_formats("bf16"), BF16), stages_of(model, 1)[0]
    tokens, before = np.array([1.0, 30.0, 500.0]), np.array([10.0, 20.0, 999.0])
    grid = prefill_work(model, stage, precision, Sharding(), tokens, before=before)
    for i in range(3):
        one = prefill_work(model, stage, precision, Sharding(), float(tokens[i]), before=float(before[i]))
        for many, alone in zip(grid, one, strict=True):
            for kind in ("flops", "cache_bytes", "weight_bytes"):
                amount = np.broadcast_to(getattr(many, kind), tokens.shape)[i]
                assert amount == pytest.approx(getattr(alone, kind)), (many.name, kind)
