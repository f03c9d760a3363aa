"""What the verbs answer with: frozen, typed, serialisable to JSON, base units in the names."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


class Result:
    """Base of every result; each is a frozen dataclass."""

    def to_dict(self) -> dict[str, Any]:
        """The result as nested plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def to_json(self) -> str:
        """The result as indented JSON, base units in the names."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Result):
    """The model that was planned. ``variants`` names its attention; ``context_limit`` is in tokens.

    ``draft_parameters`` are those of layers that only speculative decoding loads; they are in no other figure.
    """

    id: str
    name: str
    parameters: int
    active_parameters: int
    draft_parameters: int
    layers: int
    context_limit: int
    variants: tuple[str, ...]
    source: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GpuFacts(Result):
    """The device that was planned for, with the datasheet's facts."""

    id: str
    name: str
    count: int
    usable_bytes: int
    bandwidth_bytes_per_s: float
    peak_flop_per_s: float | None
    peak_format: str | None
    link_bytes_per_s: float | None
    source: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DeploymentFacts(Result):
    """How the model is cut, in which formats, under which engine.

    ``max_tokens`` is the longest sequence that the engine is started for, ``step_tokens`` and ``sequences`` are the most
    that one forward pass takes; 0 where the engine sets no bound.
    """

    tensor_parallel: int
    pipeline_parallel: int
    weights: str
    kv: str
    engine: str
    engine_version: str
    engine_label: str
    data_parallel: int
    expert_parallel: bool
    memory_fraction: float
    kv_memory: int | None
    kv_shard: str
    max_tokens: int
    step_tokens: int
    sequences: int
    block_tokens: int
    graphs: bool


@dataclass(frozen=True, kw_only=True)
class Workload(Result):
    """Sequences decoded together, tokens each holds, and tokens of the source for encoder-decoders."""

    batch: int
    context: int
    source: int


@dataclass(frozen=True, kw_only=True)
class PoolFacts(Result):
    """One pool of the cache on one GPU: ``units`` of ``unit_bytes`` each.

    A run of ``block_tokens`` tokens takes a unit in each of ``groups`` groups of layers; ``padded_layers`` are reserved and
    hold nothing.
    """

    name: str
    unit: str
    unit_bytes: int
    units: int | None
    block_tokens: int
    groups: int
    padded_layers: int


@dataclass(frozen=True, kw_only=True)
class GpuMemory(Result):
    """Memory of one GPU of the fullest pipeline stage: the one with least to spare for the planned workload [B].

    Attributes
    ----------
    held_back_bytes
        What the engine leaves of the usable memory; lines that are held there (``outside``) are among the others.
    added_bytes
        Copies and padding that the engine makes, among ``weight_bytes``.
    outside
        Lines that lie in what the engine leaves, rather than in its share.
    pools
        What the memory for the cache is dealt out in.
    """

    stage: int
    usable_bytes: int
    held_back_bytes: int
    weight_bytes: int
    added_bytes: int
    drafter_bytes: int
    other_bytes: int
    activation_bytes: int
    graph_bytes: int
    kv_bytes: int
    kv_pool_bytes: int
    outside: tuple[str, ...]
    pools: tuple[PoolFacts, ...]


@dataclass(frozen=True, kw_only=True)
class MemoryPlan(Result):
    """Bytes. ``kv_bytes_per_token`` and ``_per_sequence`` are of the whole model, unsharded.

    With several pipeline stages ``*_per_gpu`` is the most over stages, of the pool the least; ``fullest_gpu`` is one GPU.

    Attributes
    ----------
    kv_bytes_per_token
        What one more token adds while every window still grows.
    kv_bytes_per_token_saturated
        What one more token adds once every window is full.
    kv_bytes_per_sequence
        Cache of one sequence of the planned context, exactly; ``state_bytes_per_sequence`` included.
    state_bytes_per_sequence
        What a sequence holds whatever its length (cross-attention over the source).
    kv_reserved_bytes_per_sequence
        What the engine sets aside for such a sequence over all GPUs: in its blocks, windows as it holds them, replicas.
    kv_bytes_per_gpu
        Cache of the planned batch on one GPU, as the engine deals it out.
    kv_pool_bytes_per_gpu
        What is left for the cache; 0 if the rest does not fit.
    kv_pool_tokens
        Tokens that the pools hold, as the engine counts and prints them.
    max_concurrency
        Sequences of the longest length that the engine is started for that the pools hold, in fractions of one.
    state_slots
        Sequences that the pools hold the states of; ``None`` for a model without states.
    missing_bytes_per_gpu
        What one GPU lacks for the planned workload; 0 if it fits.
    max_context
        Longest context at the planned batch that memory allows; ``None`` if it sets no limit. The model's own limit is
        ``model.context_limit``.
    """

    weight_bytes: int
    weight_bytes_per_gpu: int
    kv_bytes_per_token: int | float
    kv_bytes_per_token_saturated: int | float
    kv_bytes_per_sequence: int
    kv_reserved_bytes_per_sequence: int
    state_bytes_per_sequence: int
    kv_bytes_per_gpu: int
    kv_pool_bytes_per_gpu: int
    kv_pool_tokens: int | None
    max_concurrency: float | None
    state_slots: int | None
    budget_bytes_per_gpu: int
    activation_bytes_per_gpu: int
    other_bytes_per_gpu: int
    graph_bytes_per_gpu: int
    missing_bytes_per_gpu: int
    fullest_gpu: GpuMemory
    fits: bool
    max_batch: int | None
    max_context: int | None


@dataclass(frozen=True, kw_only=True)
class StepParts(Result):
    """What the expected step goes to [s]."""

    weights: float
    cache: float
    compute: float
    link: float
    launch: float
    activations: float


@dataclass(frozen=True, kw_only=True)
class DecodePlan(Result):
    """One decode step: every sequence of the batch gets one more token.

    Attributes
    ----------
    step_s, ideal_step_s
        Expected time, and the limit at full peaks [s].
    interval_s
        Where 80 % of measurements would lie [s].
    origin
        What the expected time rests on: generic, published or measured.
    bound
        What takes the largest part of the expected step: weights, cache, compute, link or launch.
    parts_s
        Seconds of the expected step by bound.
    tokens_per_s, tokens_per_s_per_sequence
        Tokens of the whole batch, and of each sequence, a second.
    arithmetic_intensity
        FLOP for each byte read from memory [FLOP/B].
    """

    batch: int
    context: int
    fits: bool
    step_s: float
    ideal_step_s: float
    interval_s: tuple[float, float]
    origin: str
    bound: str
    parts_s: StepParts
    tokens_per_s: float
    tokens_per_s_per_sequence: float
    arithmetic_intensity: float


@dataclass(frozen=True, kw_only=True)
class Crossover(Result):
    """The batch at which weights stop being the bound of a step, and what is the bound there."""

    batch: int
    bound: str


@dataclass(frozen=True, kw_only=True)
class PrefillPlan(Result):
    """One prompt on idle devices; ``None`` where no peak is known [s].

    Attributes
    ----------
    tokens
        Length of the prompt: the planned context, or the source of an encoder-decoder.
    prompt_s, ideal_s
        Expected time of the prompt itself, and its limit at full peaks [s].
    ttft_s, interval_s
        Expected time to the first token, with the engine's part and the step that makes it, and where 80 % of measurements
        would lie [s].
    origin
        What the expected time rests on.
    """

    tokens: int
    prompt_s: float | None
    ttft_s: float | None
    interval_s: tuple[float, float] | None
    ideal_s: float | None
    origin: str


@dataclass(frozen=True, kw_only=True)
class ServingPoint(Result):
    """Latency and throughput with so many requests in the system.

    Attributes
    ----------
    concurrency, running
        Requests in the system, and those whose caches fit at once; the others wait.
    ttft_s, tpot_s, ideal_ttft_s, ideal_tpot_s
        Time to the first token and per further token, expected, and the limit at full peaks [s].
    ttft_interval_s, tpot_interval_s
        Where 80 % of measurements would lie [s].
    latency_s
        From request to last token: ``ttft_s + (output_tokens - 1) * tpot_s`` [s].
    requests_per_s, tokens_per_s
        Requests answered, and output tokens of all of them, a second.
    tokens_per_s_per_gpu, tokens_per_s_per_user
        Output tokens a second for each GPU and for each request.
    """

    concurrency: int | float
    running: int
    ttft_s: float
    ideal_ttft_s: float
    ttft_interval_s: tuple[float, float]
    tpot_s: float
    ideal_tpot_s: float
    tpot_interval_s: tuple[float, float]
    latency_s: float
    requests_per_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    tokens_per_s_per_user: float


@dataclass(frozen=True, kw_only=True)
class ServingPlan(ServingPoint):
    """What requests would see of the deployment.

    Attributes
    ----------
    input_tokens, output_tokens
        Tokens of a prompt and of an answer.
    prefix_hits
        Share of a prompt that the prefix cache has.
    drafted, tokens_per_step
        Tokens that a drafter proposes at each step, and those that a step makes for each request.
    rounds
        Requests of the run for each that is in the system at once; ``None`` in the steady state.
    asked_requests_per_s, highest_requests_per_s, sustained
        The rate asked for, the highest there is, and whether the one is below the other; the latency of a rate that is not
        sustained is that of the highest.
    room, limited_by
        Requests that run at once, and whether the ``cache`` or the ``engine`` as it is set lets in no more; ``None`` where
        nothing sets a limit, or where not even one fits.
    workers
        Workers of prefill and of decode, where they are apart.
    gpus
        GPUs of all of them.
    step_s, prompt_s, added_s, first_s
        The decode step in ``tpot_s``, a prompt on its own, what one adds to the steps that carry it, and what else passes
        until a first token is out [s].
    others, ahead, waits, queue_s
        Other requests that run on a data-parallel group; prompts that are prefilled before one's own; answers that a request
        waits for before its own begins; and what it waits besides [s].
    origin
        What the expected times rest on.
    by_concurrency
        The same at other numbers of requests in the system.
    """

    input_tokens: int
    output_tokens: int
    prefix_hits: float
    drafted: int
    tokens_per_step: float
    rounds: float | None
    asked_requests_per_s: float | None
    highest_requests_per_s: float | None
    sustained: bool
    room: int | None
    limited_by: str | None
    workers: tuple[int, int] | None
    gpus: int
    step_s: float
    prompt_s: float
    added_s: float
    first_s: float
    others: float
    ahead: float
    waits: float
    queue_s: float
    origin: str
    by_concurrency: tuple[ServingPoint, ...]


@dataclass(frozen=True, kw_only=True)
class FrontierPoint(Result):
    """Largest batch that fits at a context; ``None`` where memory sets no limit."""

    context: int
    max_batch: int | None


@dataclass(frozen=True, kw_only=True)
class Remedy(Result):
    """A change that makes the workload fit, found by planning it.

    ``option`` is kvplan's, complete; ``engine_option`` the same in the engine's own flags, where it has one.
    """

    change: str
    option: str
    engine_option: str
    max_batch: int | None
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Plan(Result):
    """Everything `plan` answers.

    ``serving`` is there where requests were described; ``launch`` is the engine's command that realises the plan, ``None``
    without one.
    """

    model: ModelFacts
    gpu: GpuFacts
    deployment: DeploymentFacts
    workload: Workload
    memory: MemoryPlan
    decode: DecodePlan
    decode_by_batch: tuple[DecodePlan, ...]
    crossover: Crossover | None
    prefill: PrefillPlan
    serving: ServingPlan | None
    frontier: tuple[FrontierPoint, ...]
    launch: str | None
    launch_caveats: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...]
