"""Operators on the roofline: laws, and what the verb answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import KvplanError, plan, roofline_of
from planner.efficiency import efficiency_of
from planner.model import ModelSpec
from planner.roofline import BOUNDS, IDEAL
from planner.verbs.roofline import LADDER, OperatorTime, Roofline
from tests.specs import any_models, build, device

contexts = st.integers(1, 4096)
some_batches = st.lists(st.integers(1, 3000), min_size=1, max_size=4)
SLACK = 1 + 1e-9


def at(answer: Roofline, batch: int) -> list[OperatorTime]:
    return [one for one in answer.operators if one.batch == batch]


@given(any_models(), some_batches, contexts, st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_operators_and_their_step(model: ModelSpec, wanted: list[int], context: int, tp: int, pp: int) -> None:
    """Operators take no less than their ideal, and together no less than an ideal step of one part of the batch."""
    answer = roofline_of(model, device(), batch=wanted, context=context, tp=tp, pp=min(pp, model.layers))
    assert [step.batch for step in answer.steps] == sorted(set(wanted))
    for step in answer.steps:
        found = at(answer, step.batch)
        assert len({one.operator for one in found}) == len(found)
        assert sum(one.share for one in found) == pytest.approx(1)
        assert all(one.ideal_s <= one.expected_s * SLACK for one in found)
        if answer.deployment.pipeline_parallel == 1:
            assert sum(one.ideal_s for one in found) * SLACK >= step.ideal_step_s
            assert sum(one.expected_s for one in found) == pytest.approx(step.step_s)


@given(any_models(), some_batches, contexts, st.booleans())
def test_no_point_is_above_the_roof(model: ModelSpec, wanted: list[int], context: int, prefill: bool) -> None:
    answer = roofline_of(model, device(), batch=None if prefill else wanted, context=context, tp=2, prefill=prefill)
    for one in answer.operators:
        if one.achieved_flop_per_s is not None:
            assert one.roof_flop_per_s is not None
            assert one.achieved_flop_per_s <= one.roof_flop_per_s * SLACK
            assert one.bound in BOUNDS
        else:
            assert one.flops == 0


@given(any_models(), st.integers(1, 3000), contexts)
def test_what_memory_bounds_lies_on_the_slope(model: ModelSpec, batch: int, context: int) -> None:
    """With every share at one, achieved is bandwidth times intensity where memory is the bound, and the peak elsewhere.

    Attention may sum layers of which some are bound by memory and some are not.
    """
    found = efficiency_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.deployment.efficiency_of", lambda *given: replace(found(*given), shares=IDEAL))
        answer = roofline_of(model, device(), batch=batch, context=context, tp=1)
    (roof,) = answer.roofs
    for one in answer.operators:
        if one.arithmetic_intensity and one.bound in ("weights", "cache") and one.operator != "attention":
            slope = answer.bandwidth_bytes_per_s * one.arithmetic_intensity
            assert one.achieved_flop_per_s == pytest.approx(slope)
            assert one.arithmetic_intensity <= roof.ridge_flop_per_byte * SLACK
        elif one.bound == "compute" and one.operator != "attention":
            assert one.achieved_flop_per_s == pytest.approx(roof.peak_flop_per_s)


@given(any_models(), st.integers(1, 2000), contexts)
def test_a_larger_batch_is_never_faster(model: ModelSpec, batch: int, context: int) -> None:
    answer = roofline_of(model, device(), batch=[batch, batch + 1], context=context, tp=2)
    for small, large in zip(at(answer, batch), at(answer, batch + 1), strict=True):
        assert small.operator == large.operator
        assert large.expected_s * SLACK >= small.expected_s
        assert large.flops * SLACK >= small.flops
        if small.arithmetic_intensity and small.operator != "experts":  # more experts are read as more tokens come
            assert large.arithmetic_intensity is not None
            assert large.arithmetic_intensity * SLACK >= small.arithmetic_intensity


def test_the_steps_are_the_plans() -> None:
    answer = roofline_of("llama3-70b", "8xh100", batch=64, weights="fp8", context="4k", pp=2)
    p = plan("llama3-70b", "8xh100", batch=64, weights="fp8", context="4k", pp=2)
    (step,) = answer.steps
    assert (step.step_s, step.ideal_step_s) == (p.decode.step_s, p.decode.ideal_step_s)
    assert step.interval_s == p.decode.interval_s
    assert answer.deployment == p.deployment
    prompt = roofline_of("llama3-70b", "8xh100", weights="fp8", context="4k", pp=2, prefill=True)
    assert prompt.steps[0].step_s == p.prefill.prompt_s
    assert prompt.steps[0].interval_s is None


def test_stages_add_up_to_the_model() -> None:
    """One part of the batch does on all stages what it does on one, with a hand-over more."""
    one = {o.operator: o for o in roofline_of("llama3-70b", "4xh100", batch=16, tp=4).operators}
    two = {o.operator: o for o in roofline_of("llama3-70b", "8xh100", batch=32, tp=4, pp=2).operators}
    assert set(two) - set(one) == {"stage hand-over"}
    for name, alone in one.items():
        assert two[name].flops == pytest.approx(alone.flops)
        assert two[name].expected_s == pytest.approx(alone.expected_s)


def test_formats_in_use_are_the_roofs() -> None:
    answer = roofline_of("deepseek-v3", "8xh200", batch=1)
    assert [roof.format for roof in answer.roofs] == ["bf16", "fp8"]
    assert {one.format for one in answer.operators} == {"bf16", "fp8", None}
    assert all(r.ridge_flop_per_byte == r.peak_flop_per_s / answer.bandwidth_bytes_per_s for r in answer.roofs)


def test_a_device_without_peaks_has_only_a_slope() -> None:
    gpu = device(peak_tflops={})
    answer = roofline_of(build(), gpu, batch=[1, 8], tp=1)
    assert answer.roofs == ()
    assert all(one.bound != "compute" for one in answer.operators)
    with pytest.raises(KvplanError, match="leave out --prefill"):
        roofline_of(build(), gpu, prefill=True, tp=1)


def test_the_ladder_is_what_fits() -> None:
    answer = roofline_of("llama3-70b", "4xh100")
    most = plan("llama3-70b", "4xh100").memory.max_batch
    assert most is not None
    batches = [step.batch for step in answer.steps]
    assert batches == [1, 2, 4, 8, 16, 32]
    assert all(step.fits for step in answer.steps)
    assert batches[-1] <= most < 2 * batches[-1]
    assert len(roofline_of("gpt2", "h200").steps) == LADDER
    tight = roofline_of("llama3-70b", "1xh100")
    assert [(step.batch, step.fits) for step in tight.steps] == [(1, False)]
    assert "Not even one sequence fits" in tight.notes[0]


def test_it_serialises() -> None:
    data = json.loads(roofline_of("llama3-8b", "h100", batch="1,8").to_json(), parse_constant=pytest.fail)
    assert data["phase"] == "decode"
    assert {one["batch"] for one in data["operators"]} == {1, 8}


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"batch": 0}, "between 1 and"),
        ({"batch": "9:1"}, "ends before it starts"),
        ({"batch": []}, "no batch is given"),
        ({"batch": "1:5000"}, "give a larger step"),
        ({"batch": 2, "prefill": True}, "one prompt"),
        ({"context": "1M"}, "use --context"),
        ({"tp": 3}, "use one of"),
    ],
)
def test_bad_input_is_refused(options: dict[str, object], hint: str) -> None:
    with pytest.raises(KvplanError, match=hint):
        roofline_of("llama3-70b", "h100", **options)  # type: ignore[arg-type]


def test_the_engine_is_started_for_the_largest_batch() -> None:
    answer = roofline_of("llama3-8b", "h100", batch=[1, 2000], context=512)
    assert answer.deployment.sequences == 2000
