"""What requests would see of a deployment: latency and throughput at a concurrency or a request rate, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from planner.deployment import Deployment
from planner.errors import InputError
from planner.result import ServingPlan, ServingPoint
from planner.serving import Load, Serving, fits, room, serve, serve_apart, serve_at_rate, tokens_per_step
from planner.settle import MAX_BATCH, MAX_GPUS
from planner.tensors import Role
from planner.units import MAX_TOKENS, parse_fraction, parse_tokens

INPUT_TOKENS, OUTPUT_TOKENS = 1024, 1024
ROUNDS = 10.0
"""Requests of a benchmark run for each that is in the system at once, as InferenceMAX has them."""
MAX_RATE = 1e9
RUNGS = 8


class Requests(TypedDict, total=False):
    """Options of `plan` that say what is asked of a deployment; see `read_ask`."""

    input: int | str | None
    output: int | str | None
    concurrency: int | str | None
    rate: float | str | None
    prefix_hits: float | str | None
    acceptance: float | str | None
    rounds: float | str | None
    apart: str | None


@dataclass(frozen=True, slots=True)
class Ask:
    """What requests ask for, read and checked: a load, at a number of them at once or at so many a second.

    ``workers`` are those of prefill and of decode where they are apart.
    """

    load: Load
    concurrency: int | None
    requests_per_s: float | None
    workers: tuple[int, int] | None

    @property
    def tokens(self) -> int:
        """What a sequence holds in the end."""
        return self.load.input_tokens + self.load.output_tokens


def read_ask(
    context: int | None, *, input: int | str | None = None, output: int | str | None = None,
    concurrency: int | str | None = None, rate: float | str | None = None, prefix_hits: float | str | None = None,
    acceptance: float | str | None = None, rounds: float | str | None = None, apart: str | None = None,
    encoder: bool = False, limit: int | None = None,
) -> Ask | None:  # fmt: skip
    """Read what is asked of a deployment; ``None`` if nothing is.

    Parameters
    ----------
    context
        Tokens that a sequence holds in the end, where they were given: the prompt is what the answer leaves of them.
    input, output
        Tokens of a prompt and of an answer; 1,024 by default, the answer at most half of the context.
    concurrency, rate
        Requests in the system at once, or a second; one request at once by default.
    prefix_hits
        Share of a prompt that the prefix cache has already.
    acceptance
        Probability that a drafted token is accepted, where the engine is set to draft.
    rounds
        Requests of a run for each that is in the system at once, all of which come together at first: 10 by default, as in
        benchmarks; ``"inf"`` for the steady state.
    apart
        Workers of prefill and of decode, ``"2:1"``, each a replica of the deployment.
    limit
        The longest sequence that there may be, where it is known.
    encoder
        Whether an encoder reads the prompts, as long as the deployment's source; a decoder then starts from one token.

    Raises
    ------
    InputError
        If a number is impossible or two of them contradict each other.
    """
    if all(value is None for value in (input, output, concurrency, rate, prefix_hits, acceptance, rounds, apart)):
        return None
    if concurrency is not None and rate is not None:
        raise InputError("--concurrency and --rate both say how much is asked; give one of the two")
    if apart is not None and rate is not None:
        raise InputError("workers apart are planned at a --concurrency; leave --rate out")
    if rounds is not None and rate is not None:
        raise InputError("at a --rate requests come at random for ever; leave --rounds out")
    prompt, answer = _lengths(context or limit, context is not None, input, output, encoder)
    if context is not None and prompt + answer > context:
        raise InputError(
            f"{prompt:,} tokens in and {answer:,} out are {prompt + answer:,}, more than the context of {context:,}; leave "
            "--context out, or give less"
        )
    return Ask(
        Load(
            prompt, answer,
            cached_share=0.0 if prefix_hits is None else parse_fraction(prefix_hits, "prefix hits", zero=True),
            acceptance=0.0 if acceptance is None else parse_fraction(acceptance, "acceptance", zero=True),
            rounds=ROUNDS if rounds is None else _number(rounds, "rounds", math.inf, least=1.0),
        ),
        None if concurrency is None else parse_tokens(concurrency, "concurrency", MAX_BATCH),
        None if rate is None else _number(str(rate).removesuffix("/s"), "rate", MAX_RATE),
        None if apart is None else _workers(apart),
    )  # fmt: skip


def _lengths(
    longest: int | None, filled: bool, input: int | str | None, output: int | str | None, encoder: bool
) -> tuple[int, int]:
    """Tokens of a prompt and of an answer: those given, and otherwise usual ones as far as the longest sequence has room.

    ``filled``: the prompt is what the answer leaves of it.
    """
    most = MAX_TOKENS if longest is None else longest
    given = None if input is None else parse_tokens(input, "input length")
    if encoder and given is not None:
        raise InputError("an encoder reads the prompt of this model; give its length with --source, not --input")
    answer = (
        min(OUTPUT_TOKENS, most // 2, most - (given or 0)) if output is None else parse_tokens(output, "output length")
    )
    answer = max(1, answer)
    if filled and given is None and not encoder and most <= answer:
        raise InputError(f"an answer of {answer:,} tokens leaves none of the context of {most:,}; give --input")
    usual = most - answer if filled else min(INPUT_TOKENS, most - answer)
    return given or (1 if encoder else max(1, usual)), answer


def _number(value: float | str, what: str, most: float, least: float = 0.0) -> float:
    """A number above 0, or from ``least`` on where that is more, up to ``most``."""
    wanted = f"from {least:g} on" if least else "above 0"
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"cannot read {what} {str(value)[:40]!r}; give a number {wanted}, such as 2.5") from None
    if not least <= found <= most or found == 0.0:
        end = "" if most == math.inf else f" and at most {most:g}"
        raise InputError(f"{what} must be {wanted}{end}, not {str(value)[:40]}")
    return found


def _workers(text: str) -> tuple[int, int]:
    prefill, colon, decode = str(text).partition(":")
    if not colon:
        raise InputError(f"cannot read {str(text)[:40]!r}; give workers of prefill and of decode, such as 2:1")
    return parse_tokens(prefill, "prefill workers", MAX_GPUS), parse_tokens(decode, "decode workers", MAX_GPUS)


def set_up_for(d: Deployment, ask: Ask) -> Deployment:
    """The deployment, set up for as many of the requests at once as fit, after what is asked was held against it.

    Raises
    ------
    InputError
        If it cannot do what is asked: draft, keep prefixes, or be timed at all.
    """
    load, option = ask.load, {k.sets.removeprefix("!"): k for k in d.engine.knobs}
    if load.acceptance and not d.setup.draft_tokens:
        knob = option.get("draft_tokens")
        add = f"add --{knob.name.replace('_', '-')} N, or " if knob and d.model.drafter else ""
        raise InputError(f"--acceptance is of drafted tokens, and {d.model.id} is to draft none; {add}leave it out")
    if load.cached_share and "prefix_caching" in option and not d.setup.prefix_caching:
        knob = option["prefix_caching"]
        how = f"leave {knob.flag} out" if knob.sets.startswith("!") else f"add {knob.flag}"
        raise InputError(f"--prefix-hits is of a prefix cache, and {d.engine.label} has it off; {how}")
    if d.gpu.compute_rate(d.precision.weights[Role.FFN].compute) is None:
        raise InputError(
            f"no compute rate of {d.gpu.id} is known, so prompts cannot be timed; leave --input, --output and the like out"
        )
    if ask.concurrency is None or not fits(d, load):
        return d
    workers = ask.workers[1] if ask.workers else 1
    return d.for_sequences(int(min(-(-ask.concurrency // workers), room(d, load))))


def plan_requests(d: Deployment, ask: Ask) -> ServingPlan:
    """Latency and throughput of what is asked, and of other numbers of requests at once beside it."""
    if ask.workers is not None:
        found = serve_apart(d, d, replace(ask.load, concurrency=float(ask.concurrency or 1)), *ask.workers)
        return _answer(d, ask, ask.concurrency or 1, found, None, d.count * sum(ask.workers))
    if ask.requests_per_s is None:
        found = serve(d, replace(ask.load, concurrency=float(ask.concurrency or 1)))
        return _answer(d, ask, ask.concurrency or 1, found, None, d.count)
    at, found, highest = serve_at_rate(d, ask.load, ask.requests_per_s)
    return _answer(d, ask, at, found, highest, d.count)


def _answer(d: Deployment, ask: Ask, at: float, found: Serving, highest: float | None, gpus: int) -> ServingPlan:
    load, held = ask.load, room(d, ask.load)
    steady = ask.requests_per_s is not None
    point = _points(d, load, np.asarray([at]), found, gpus, ask.workers is not None)[0]
    return ServingPlan(
        **{name: getattr(point, name) for name in point.__dataclass_fields__},
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        prefix_hits=load.cached_share,
        drafted=d.setup.draft_tokens,
        tokens_per_step=tokens_per_step(d.setup.draft_tokens, load.acceptance),
        rounds=None if steady or load.rounds == math.inf else load.rounds,
        asked_requests_per_s=ask.requests_per_s,
        highest_requests_per_s=highest,
        sustained=fits(d, load) and (highest is None or (ask.requests_per_s or 0.0) < highest),
        room=None if held == math.inf else int(held),
        limited_by=None
        if held == math.inf
        else "engine"
        if "sequences" in d.given and held >= d.most_sequences
        else "cache",
        workers=ask.workers,
        gpus=gpus,
        origin=d.efficiency.origin,
        step_s=float(np.max(found.step.step_s)),
        first_s=found.first_s,
        prompt_s=float(np.max(found.prompt_s)),
        added_s=float(np.max(found.added_s)),
        others=float(np.max(found.others)),
        ahead=float(np.max(found.ahead)),
        waits=float(np.max(found.waits)),
        queue_s=float(np.max(found.queue_s)),
        by_concurrency=() if ask.workers else _ladder(d, ask, at),
    )


def _ladder(d: Deployment, ask: Ask, at: float) -> tuple[ServingPoint, ...]:
    """Powers of two up to what fits and is asked for, and these two."""
    most = min(max(room(d, ask.load), at), MAX_BATCH)
    if most == math.inf or most == MAX_BATCH:
        most = max(at, 256.0)
    rungs = [2.0**i for i in range(21) if 2.0**i < most]
    if len(rungs) > RUNGS:
        rungs = [rungs[round(i * (len(rungs) - 1) / (RUNGS - 1))] for i in range(RUNGS)]
    shown = np.array(sorted({*rungs, math.floor(most), *([at] if ask.concurrency else [])} - {0}), dtype=float)
    return _points(d, ask.load, shown, serve(d, replace(ask.load, concurrency=shown)), d.count)


def _points(
    d: Deployment, load: Load, at: Any, found: Serving, gpus: int, apart: bool = False
) -> tuple[ServingPoint, ...]:
    def each(values: Any) -> list[float]:
        return [float(v) for v in np.broadcast_to(values, at.shape)]

    low, high = d.efficiency.apart_interval if apart else d.efficiency.interval
    first_low, first_high = d.efficiency.apart_first_interval if apart else d.efficiency.first_interval
    columns = (
        at,
        found.running,
        found.ttft_s,
        found.ideal_ttft_s,
        found.tpot_s,
        found.ideal_tpot_s,
        found.requests_per_s,
    )
    return tuple(
        ServingPoint(
            concurrency=int(n) if n == int(n) else n,
            running=int(running),
            ttft_s=ttft,
            ideal_ttft_s=ideal_ttft,
            ttft_interval_s=(max(ttft * first_low, ideal_ttft), ttft * first_high),
            tpot_s=tpot,
            ideal_tpot_s=ideal_tpot,
            tpot_interval_s=(max(tpot * low, ideal_tpot), tpot * high),
            latency_s=ttft + (load.output_tokens - 1) * tpot,
            requests_per_s=rate,
            tokens_per_s=rate * load.output_tokens,
            tokens_per_s_per_gpu=rate * load.output_tokens / gpus,
            tokens_per_s_per_user=1.0 / tpot,
        )
        for n, running, ttft, ideal_ttft, tpot, ideal_tpot, rate in zip(*map(each, columns), strict=True)
    )
