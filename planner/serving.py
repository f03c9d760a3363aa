"""Serving latency: time to the first token and per output token when many requests share a deployment.

Under continuous batching with chunked prefill, a request's decode steps carry the prompts of the others. While it makes its
``O`` tokens, each of the other ``n - 1`` requests of its data-parallel group is prefilled once:

    TPOT = D + (n - 1) / O * P+
    TTFT = D + first + P1

In a run of ``R`` rounds that starts all at once, ``(n - 1) / (2 R) * P1`` comes on top. ``D`` is a decode step of all
requests at their mean length, ``P1`` a prompt on its own and ``P+`` what it adds to steps that read the weights anyway.
Requests beyond what the cache holds wait until others are done, and no more are answered than could be prefilled. At a
request rate, the number in the system follows from Little's law (Little 1961, Operations Research 9(3)), and a request waits
for a prefill and for room in the cache as in queues of random arrivals with equal service; see `queue_wait`.

`planner/efficiencies/serving.toml` holds the fitted shares, `planner/engines` what depends on the engine, and
validation/README.md the errors on measurements not fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.cached import UNBOUNDED
from planner.deployment import Deployment
from planner.evaluate import Stages, decode_operators, decode_times, prefill_operators, stage_times
from planner.roofline import IDEAL, Shares, StepTime
from planner.work import Operator

if TYPE_CHECKING:
    from planner.arrays import Numbers

MOST_BUSY = 0.999
"""Utilisation at which queues are said to be as long as they become."""
GRID = 2.0 ** np.arange(0.0, 16.01, 0.125)
"""Requests at once at which a search for a rate looks."""


@dataclass(frozen=True, slots=True)
class Load:
    """What requests ask for.

    Attributes
    ----------
    input_tokens, output_tokens
        Tokens of a prompt and of an answer.
    concurrency
        Requests in the system at once; a number, or an array over which everything is computed at once.
    cached_share
        Share of a prompt that the prefix cache has already.
    acceptance
        Probability that a drafted token is accepted, where the engine is set to draft.
    rounds
        Requests of a run for each that is in the system at once, all of which come together at first; infinite in the steady
        state.
    one_length
        Whether all requests have the same lengths, so that they stay in step.
    """

    input_tokens: int
    output_tokens: int
    concurrency: Numbers = 1.0
    cached_share: float = 0.0
    acceptance: float = 0.0
    rounds: float = float("inf")
    one_length: bool = False

    @property
    def new_tokens(self) -> int:
        """Tokens of a prompt that are computed; the last one always is."""
        return max(1, round(self.input_tokens * (1.0 - self.cached_share)))


@dataclass(frozen=True, slots=True)
class Serving:
    """Latency under a load; scalars or arrays over its concurrency.

    Attributes
    ----------
    ttft_s, tpot_s, ideal_ttft_s, ideal_tpot_s
        Time to the first token and per further token, expected, and at full peaks [s].
    step
        The decode step in them.
    prompt_s, added_s
        A prompt on its own, and what it adds to the steps that carry it [s].
    first_s
        What else passes until a first token is out [s].
    others
        Other requests that run on a data-parallel group.
    ahead
        Prompts that are prefilled before one's own, on average.
    waits
        How many answers a request waits for before its own begins.
    queue_s
        What a request waits besides: for a prefill that is the bound, or at a rate in queues of random arrivals [s].
    running
        Requests whose cache fits at once.
    requests_per_s
        Requests that are answered a second.
    """

    ttft_s: Numbers
    tpot_s: Numbers
    ideal_ttft_s: Numbers
    ideal_tpot_s: Numbers
    step: StepTime
    prompt_s: Numbers
    added_s: Numbers
    first_s: float
    others: Numbers
    ahead: Numbers
    waits: Numbers
    queue_s: Numbers
    running: Numbers
    requests_per_s: Numbers


def fits(d: Deployment, load: Load) -> bool:
    """Whether a request fits with its whole answer, one on each data-parallel group."""
    return d.max_batch(load.input_tokens + load.output_tokens) >= d.sharding.dp


def room(d: Deployment, load: Load) -> float:
    """Requests that run at once: those whose caches fit, and no more than the engine was told to run.

    They are held with their whole answers, or half of them where caches grow as answers do. An engine's default of sequences
    at once is no limit, as it is raised where it is too small. Infinite where nothing sets a limit, and where nothing fits:
    what is asked for is then taken to run.
    """
    whole = load.input_tokens + load.output_tokens
    held = whole if d.setup.whole_answers else whole - load.output_tokens // 2
    told = d.most_sequences if "sequences" in d.given else UNBOUNDED
    most = min(d.max_batch(held), told)
    return float(most) if fits(d, load) and most < UNBOUNDED else float("inf")


def serve(d: Deployment, load: Load) -> Serving:
    """Requests that come as others finish, ``concurrency`` of them at a time.

    What the cache does not hold waits; a load of which nothing fits is timed as if it did.
    """
    asked = np.asarray(load.concurrency, dtype=float)
    running = np.minimum(asked, room(d, load))
    others = np.maximum(running / d.sharding.dp - 1.0, 0.0)
    # Where prompts go first and all have one length, all are prefilled, then all decoded: half the others before oneself.
    in_step = load.one_length and d.setup.prompts_first
    together = d.efficiency.in_step if load.one_length and not in_step else 1.0
    carried = (0.5 if in_step else 1.0) * others / load.output_tokens
    ahead = together - 1.0 + (0.5 if in_step else 0.5 / load.rounds) * others
    waits = np.maximum(asked / running - 1.0, 0.0)
    made = tokens_per_step(d.setup.draft_tokens, load.acceptance)
    work = _work(d, load, running)
    time, ideal = _expected(d, work, running), _timed(d, work, running, IDEAL, IDEAL)
    tpot = (time.step.step_s + carried * time.added_s) / made
    first_s = _first_s(d, kernels_of(work.prompt))
    first = time.step.step_s + first_s + time.prompt_s + ahead * time.prompt_s / d.pp
    ttft = first + waits * (load.output_tokens * tpot + first)
    further = (load.output_tokens - 1) * tpot
    # Short answers leave others' prompts no steps to be carried by: the prefill is then the bound, and they wait for it.
    queue_s = np.maximum(asked / prefills_per_s(d, time.prompt_s, running) - further - ttft, 0.0)
    ttft = ttft + queue_s
    return Serving(
        ttft_s=ttft, tpot_s=tpot, ideal_ttft_s=ideal.step.step_s + ideal.prompt_s,
        ideal_tpot_s=(ideal.step.step_s + carried * ideal.added_s) / made, step=time.step, prompt_s=time.prompt_s,
        added_s=time.added_s, first_s=first_s, others=others, ahead=ahead, waits=waits, queue_s=queue_s, running=running,
        requests_per_s=asked / (ttft + further),
    )  # fmt: skip


def prefills_per_s(d: Deployment, prompt_s: Numbers, running: Numbers) -> Numbers:
    """Prompts that can be prefilled a second: one at a time on each data-parallel group that has any, in each stage."""
    at_once: Numbers = np.clip(running, 1.0, d.sharding.dp) * np.clip(running, 1.0, d.pp)
    return at_once / prompt_s


def queue_wait(servers: float, busy: float, service_s: float) -> float:
    """Mean wait in a queue of random arrivals with equal service [s].

    ``u^(sqrt(2 (c + 1)) - 1) / (2 c (1 - u)) * S`` at ``c`` servers of utilisation ``u`` (Sakasegawa 1977, Annals of the
    Institute of Statistical Mathematics 29, halved as service does not vary: Allen 1978); exact for one server (Pollaczek
    1930, Khinchine 1932).

    >>> queue_wait(1.0, 0.5, 2.0)
    1.0
    """
    return float(busy ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0) / (2.0 * servers * (1.0 - busy)) * service_s)


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One request on idle devices [s]: its prompt, expected and ideal, and the time to its first token."""

    prompt_s: float
    ideal_s: float
    ttft_s: float


def first_token(d: Deployment, tokens: int) -> FirstToken:
    """Time to the first token of one prompt on idle devices: the prompt, what the engine needs besides, and a step."""
    prompt = prefill_operators(d, tokens)
    own, ideal = (float(stage_times(d, prompt, shares).step_s) for shares in (d.efficiency.prompt, IDEAL))
    step = float(decode_times(d, 1, tokens)[1].step_s)
    return FirstToken(own, ideal, own + _first_s(d, kernels_of(prompt)) + step)


def kernels_of(stages: Stages) -> float:
    """Kernels that work starts."""
    return sum(n * op.launches for ops, n in stages for op in ops)


def tokens_per_step(drafted: int, acceptance: float) -> float:
    """Tokens that a step makes for each sequence: one, and the drafted ones up to the first that is not accepted.

    ``(1 - a^(k + 1)) / (1 - a)`` for ``k`` drafted tokens (Leviathan et al. 2023, arXiv:2211.17192, equation 1).

    >>> tokens_per_step(0, 0.9), tokens_per_step(3, 0.5)
    (1.0, 1.875)
    """
    return float(sum(acceptance**i for i in range(drafted + 1)))


def _first_s(d: Deployment, kernels: float) -> float:
    """What passes until a first token is out, beside the prompt and a step [s]."""
    return d.setup.first_s + d.efficiency.first_kernel_s * kernels


@dataclass(frozen=True, slots=True)
class _Work:
    """Operators of a decode step, of a prompt, and of what a prompt adds to such steps."""

    step: Stages
    prompt: Stages
    added: Stages


@dataclass(frozen=True, slots=True)
class _Times:
    """A decode step, a prompt alone and what it adds to steps [s]."""

    step: StepTime
    prompt_s: Numbers
    added_s: Numbers


def _work(d: Deployment, load: Load, running: Numbers) -> _Work:
    step = decoding_operators(d, running, load.input_tokens + load.output_tokens / 2)
    before = load.input_tokens - load.new_tokens
    groups = np.clip(running, 1.0, d.sharding.dp)  # all that have requests at once: they share the experts
    prompt = prefill_operators(d, load.new_tokens, groups if d.sharding.dp > 1 else 1, before)
    if d.model.encoder:  # no step reads its weights
        return _Work(step, prompt, prompt)
    added = [(_beside(ops, steps), n) for (ops, n), (steps, _) in zip(prompt, step, strict=True)]
    return _Work(step, prompt, added)


def _timed(d: Deployment, work: _Work, running: Numbers, shares: Shares, of_prompt: Shares) -> _Times:
    return _Times(
        step=stage_times(d, work.step, shares, np.minimum(running, d.pp)),
        prompt_s=stage_times(d, work.prompt, of_prompt).step_s,
        added_s=stage_times(d, work.added, of_prompt).step_s / d.pp,
    )


def _expected(d: Deployment, work: _Work, running: Numbers) -> _Times:
    return _timed(d, work, running, d.efficiency.shares, d.efficiency.prompt)


def decoding_operators(d: Deployment, running: Numbers, context: float) -> Stages:
    """Work of a decode step of ``running`` sequences, with drafting where the engine is set to.

    Drafted tokens are multiplied with all weights like further sequences, but share their sequence's cache. A draft layer is
    taken to cost what a layer of the model does.
    """
    drafts = d.setup.draft_tokens
    stages = decode_operators(d, running * (1 + drafts), context)
    if not drafts:
        return stages
    layers = d.model.drafter.layers / d.model.layers if d.model.drafter else 0.0
    once = decode_operators(d, running, context)
    return [
        (
            [replace(op, cache_bytes=op.cache_bytes / (1 + drafts)) for op in operators]
            + [_scaled(op, drafts * layers) for op in own],
            n,
        )
        for (operators, n), (own, _) in zip(stages, once, strict=True)
    ]


def _scaled(op: Operator, by: float) -> Operator:
    return replace(
        op, flops=by * op.flops, weight_bytes=by * op.weight_bytes, cache_bytes=by * op.cache_bytes,
        sent_bytes=by * op.sent_bytes, launches=by * op.launches,
    )  # fmt: skip


def _beside(prompt: list[Operator], step: list[Operator]) -> list[Operator]:
    """What a prompt adds to a step that reads the weights anyway: of experts, those that the step does not touch."""
    read = iter(op.weight_bytes for op in step if op.grouped)
    return [
        replace(op, weight_bytes=np.maximum(op.weight_bytes - next(read), 0.0) if op.grouped else 0.0) for op in prompt
    ]


def serve_at_rate(d: Deployment, load: Load, requests_per_s: float) -> tuple[float, Serving, float]:
    """The number of requests in the system at a rate of random arrivals, their latency, and the highest rate.

    A rate is sustained if it is below what the deployment serves with its cache full, or with as many requests as the engine
    runs at once. The answer to a higher one is of that highest rate. What waits for room waits as long as requests last
    that run at once.
    """
    most = max(1.0, min(room(d, load), float(d.most_sequences), GRID[-1]))
    grid = np.append(GRID[most > GRID], most)
    steady = serve(d, replace(load, concurrency=grid, rounds=float("inf")))
    rates = np.maximum.accumulate(np.broadcast_to(steady.requests_per_s, grid.shape))
    highest = float(rates[-1])
    served = min(requests_per_s, highest)
    at = float(np.interp(served, rates, grid))
    found = serve(d, replace(load, concurrency=at, rounds=float("inf")))
    lasts = float(found.ttft_s + (load.output_tokens - 1) * found.tpot_s)
    prefill = float(np.max(prefills_per_s(d, steady.prompt_s, grid)))
    queue_s = queue_wait(1.0, min(served / prefill, MOST_BUSY), 1.0 / prefill)
    queue_s += queue_wait(most, min(served / highest, MOST_BUSY), lasts)
    late = replace(found, ttft_s=found.ttft_s + queue_s, queue_s=found.queue_s + queue_s, requests_per_s=served)
    return served * (lasts + queue_s), late, highest


def serve_apart(
    prefill: Deployment, decode: Deployment, load: Load, prefill_workers: int = 1, decode_workers: int = 1
) -> Serving:
    """Prefill and decode on workers apart; the concurrency is a scalar.

    A decode worker holds ``n`` sequences and makes ``n / (O D(n))`` requests a second. What the prefill workers can do
    bounds the sum over workers, and those that decode and those that are being prefilled are all there are. Moving the
    cache from one to the other is taken to be hidden.
    """
    asked, output = float(np.max(load.concurrency)), load.output_tokens
    most = min(asked / decode_workers, room(decode, load))
    grid = np.append(GRID[most > GRID], most)
    groups = np.clip(asked / prefill_workers, 1.0, prefill.sharding.dp)  # of a prefill worker, those that have a prompt
    alone = _work(prefill, load, groups)
    prompt = _expected(prefill, alone, groups)
    found = serve(decode, replace(load, concurrency=np.maximum(grid, 1.0)))
    made = tokens_per_step(decode.setup.draft_tokens, load.acceptance)
    step = np.broadcast_to(found.step.step_s, grid.shape) / made
    most_rate = prefill_workers * prefills_per_s(prefill, prompt.prompt_s, asked / prefill_workers)
    ahead = max(asked / (prefill_workers * groups) - 1.0, 0.0) * 0.5 / load.rounds
    prompts_s = prompt.prompt_s + ahead * prompt.prompt_s / prefill.pp
    own = float(_first_s(prefill, kernels_of(alone.prompt)) + step[-1] * made + prompts_s)
    rates = grid * decode_workers / (output * step)
    possible = (rates <= most_rate) & (grid * decode_workers + rates * own <= asked)
    # The first point of the grid beyond what is possible, and the one before it, between which the answer lies.
    last = int(np.argmin(possible)) if not possible.all() else len(grid) - 1
    low, high = grid[max(last - 1, 0)], grid[last]
    fine = np.linspace(low, high, 65)
    steps = np.interp(fine, grid, step)
    rates = fine * decode_workers / (output * steps)
    possible = (rates <= most_rate) & (fine * decode_workers + rates * own <= asked)
    at = int(np.max(np.flatnonzero(possible), initial=0))
    tpot, rate = float(steps[at]), min(float(rates[at]), float(most_rate))  # decode workers may have less than one each
    ttft = max(own, asked / rate - output * tpot)
    answered = asked / (ttft + (output - 1) * tpot)
    there = serve(decode, replace(load, concurrency=max(fine[at], 1.0)))
    step_there = decoding_operators(decode, max(fine[at], 1.0), load.input_tokens + output / 2)
    ideal = _timed(prefill, alone, groups, IDEAL, IDEAL)
    return replace(
        there, ttft_s=ttft, tpot_s=tpot, ideal_ttft_s=ideal.step.step_s + ideal.prompt_s,
        ideal_tpot_s=stage_times(decode, step_there, IDEAL, np.minimum(fine[at], decode.pp)).step_s / made,
        prompt_s=prompt.prompt_s, added_s=0.0, others=0.0, queue_s=0.0, requests_per_s=answered,
        running=np.minimum(fine[at] * decode_workers, answered * output * tpot),
    )  # fmt: skip
