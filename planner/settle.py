"""Settle a deployment: read what the caller chose, check it, and choose what was left open.

``N x GPU`` is one replica: tensor parallel within a node, up to the node's size and a divisor of the heads, and pipeline
stages for the rest, unless degrees are given or the engine has stages only. Without a number of GPUs the smallest power of
two is taken that has room.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.deployment import Deployment, situation
from planner.engine import Engine, load_engine
from planner.errors import InputError, UnknownNameError
from planner.gpu import GpuSpec
from planner.measured import find_gpu, is_file
from planner.model import ModelSpec
from planner.precision import KV_FORMATS, KvFormats, find_kv
from planner.setup import Setup
from planner.stage import Sharding
from planner.units import parse_bytes, parse_fraction, parse_tokens
from planner.work import Precision

MAX_GPUS = 2**16
MAX_BATCH = 2**20

_GPU = re.compile(r"(?:([0-9]{1,9})\s*[xX×]\s*)?(\S.*)")
_REVERSED = re.compile(r"(.+?)\s*[xX×]\s*([0-9]{1,9})")


def parse_gpu(text: str) -> tuple[int | None, str]:
    """Split ``4xh100`` into how many and which.

    >>> parse_gpu("4xh100"), parse_gpu("mi300x")
    ((4, 'h100'), (None, 'mi300x'))
    """
    match = _GPU.fullmatch(text.strip())
    if match is None:
        raise InputError(f"cannot read GPU {text[:40]!r}; write it like --gpu h100 or --gpu 4xh100")
    count = int(match[1]) if match[1] else None
    if count is not None and not 1 <= count <= MAX_GPUS:
        raise InputError(f"a replica has between 1 and {MAX_GPUS:,} GPUs, not {count:,}")
    return count, match[2]


def _device(name: str | Path | GpuSpec) -> GpuSpec:
    try:
        return find_gpu(name)
    except UnknownNameError:
        turned = _REVERSED.fullmatch(str(name))
        if turned is None:
            raise
        raise UnknownNameError(
            f"unknown GPU {str(name)[:60]!r}; the count comes first: {turned[2]}x{turned[1]}"
        ) from None


def deploy(
    model: ModelSpec, gpu: str | Path | GpuSpec, *, context: int, batch: int = 1,
    count: int | None = None, tp: int | None = None, pp: int | None = None, dp: int | None = None, ep: bool = False,
    weights: str | None = None, kv: str | None = None, engine: str = "vllm", memory_fraction: float | str | None = None,
    kv_memory: int | str | None = None, settings: Mapping[str, Any] | None = None, source: int | None = None,
    kv_shard: str = "heads", pad_heads: bool = False, fields: Mapping[str, Any] | None = None,
) -> Deployment:  # fmt: skip
    """Check every choice and settle those left open.

    Parameters
    ----------
    gpu
        A GPU, or ``"4xh100"`` for a replica of four. Without a count and without ``tp`` the smallest power of two of
        GPUs is taken that leaves room for one sequence of ``context`` tokens.
    batch
        Sequences that the engine must run at once; its own limit is raised where it is lower and was not chosen.
    count
        GPUs of the replica, where ``gpu`` does not say.
    tp, pp, dp
        Tensor and pipeline-parallel degree, and data-parallel degree of attention; their product is the number of GPUs.
    ep
        Deal routed experts out whole over all ``tp * dp`` ranks.
    weights, kv
        Formats; ``None`` is the checkpoint's own, and for the cache what the engine makes of "auto".
    engine
        Engine, or one of its versions: ``"vllm@0.20"``.
    memory_fraction
        Share of the GPU that the engine takes; ``None`` is the engine's default.
    kv_memory
        Cache memory of one GPU, given instead of derived [B].
    settings
        The engine's own settings by their own names: ``{"max_num_seqs": 64}``.
    source
        Source length of an encoder-decoder [tokens].
    kv_shard
        ``"heads"``, or ``"batch"`` to deal the cache out by sequence.
    pad_heads
        Allow a ``tp`` that does not divide the heads, the rest being padding.
    fields
        Fields of `engine.Setup`, where they are known rather than read from settings.

    Raises
    ------
    InputError, UnknownNameError
        If a choice is unknown, impossible, or contradicts another.
    """
    named, name = parse_gpu(gpu) if isinstance(gpu, str) else (None, gpu)
    spec = _device(name)
    if count is not None and named is not None and count != named:
        raise InputError(f"{gpu!r} names {named} GPUs, not {count}; give one of the two")
    count = named if count is None else parse_tokens(count, "number of GPUs", MAX_GPUS)
    if kv_shard not in ("heads", "batch"):
        raise InputError(f"kv_shard is 'heads' or 'batch', not {kv_shard!r}")
    profile = load_engine(engine)
    chosen: dict[str, Any] = {
        "tp": tp, "pp": pp, "dp": dp, "ep": ep or None, "weights": weights, "kv": None if kv == "auto" else kv,
        "memory_fraction": None if memory_fraction is None else parse_fraction(memory_fraction, "memory fraction"),
        "kv_memory": None if kv_memory is None else parse_bytes(kv_memory, "KV memory"),
    }  # fmt: skip
    _apply(chosen, profile, settings or {})
    tp, pp, dp, ep, weights, kv = (chosen.pop(k) for k in ("tp", "pp", "dp", "ep", "weights", "kv"))
    given = {**(fields or {}), **{k: v for k, v in chosen.items() if v is not None}}
    if chosen.get("draft_tokens") and model.drafter is None:
        raise InputError(
            f"{model.id} has no draft layers of its own, and other drafters are not planned; draft nothing"
        )
    if ep and not any(row.experts for row in model.ffn):
        raise InputError(f"{model.id} routes to no experts that could be dealt out; leave --ep out")
    if (given.get("max_tokens") or context) < context:
        raise InputError(
            f"a context of {context:,} is more than the {given['max_tokens']:,} tokens the engine is set to"
        )
    if source is not None and not model.source_tokens:
        raise InputError(f"{model.id} is a decoder only and has no source; leave --source out")
    tp, pp, dp = (None if n is None else _degree(n, f"--{what}") for n, what in ((tp, "tp"), (pp, "pp"), (dp, "dp")))
    dp = dp or 1
    _check_degrees(profile, tp, dp, bool(ep))
    if profile.splits_layers:
        tp = 1
    defaults = profile.setup(situation(spec, 1, model, given, context), given)
    most = given.get("sequences", MAX_BATCH) * (1 if defaults.sequences_are_all else dp)
    if batch > most:
        raise InputError(f"a batch of {batch:,} is more than the {most:,} sequences the engine is set to run at once")
    first = Deployment(
        model=model,
        gpu=spec,
        sharding=Sharding(1, kv_shard == "batch", dp, bool(ep), defaults.dense_over_all),
        pp=1,
        weights=weights,
        precision=Precision(model.weight_formats(weights), _cache_format(kv, model, defaults)),
        engine=profile,
        setup=defaults,
        context=context,
        batch=batch,
        source_tokens=model.source_tokens if source is None else parse_tokens(source, "source length"),
        pad_heads=pad_heads,
        gpu_name=str(name) if is_file(name) else spec.id,
        fixed_degrees=tp is not None or pp is not None or dp > 1,
        given=given,
    )
    if pp is not None and pp > model.layers:
        raise InputError(
            f"--pp {pp} is more than the {model.layers} layers of {model.id}; use --pp {model.layers} or less"
        )
    if count is None and (tp is None or (profile.splits_layers and pp is None)):
        return _smallest(first, context, pp or 1)
    if count is not None and count % dp:
        raise InputError(f"--dp {dp} does not divide the {count} GPUs; change one")
    tp, pp = _degrees(model, spec, None if count is None else count // dp, tp, pp)
    if not pad_heads:
        check_tp(model, tp)
    notes = _link_notes(spec, tp * dp, pp)
    if pp > 1 and not first.fixed_degrees and not profile.splits_layers and tp * pp <= spec.link.devices:
        heads = " and ".join(map(str, model.query_heads))
        notes += (f"{tp * pp} GPUs do not divide the {heads} query heads: TP {tp} and {pp} pipeline stages instead.",)
    return replace(_cut(first, tp, pp), notes=notes)


def told_tokens(engine: str = "vllm", settings: Mapping[str, Any] | None = None, **_: Any) -> int | None:
    """The longest sequence that an engine's own settings ask for [tokens]; ``None`` if they do not say.

    Other choices of `deploy` may be given, and do not matter.
    """
    profile = load_engine(engine)
    for name, value in (settings or {}).items():
        knob = profile.find_knob(str(name))
        if knob.sets == "max_tokens":
            return int(knob.read(value))
    return None


def _check_degrees(engine: Engine, tp: int | None, dp: int, ep: bool) -> None:
    """Refuse a degree that the engine has not."""
    if tp is not None and tp > 1 and engine.splits_layers:
        raise InputError(f"{engine.name} shares a model by its layers; use --pp {tp} instead of --tp {tp}")
    if dp > 1 and not engine.can_set("dp", "dp_attention"):
        raise InputError(f"{engine.name} has no data parallelism; plan one of {dp} servers without --dp")
    if ep and not engine.can_set("ep", "ep_ranks"):
        raise InputError(f"{engine.name} deals no experts out; leave --ep out")


def _apply(chosen: dict[str, Any], engine: Engine, settings: Mapping[str, Any]) -> None:
    """Put an engine's own settings where they belong: among kvplan's own choices, or the fields of `Setup`."""
    if not isinstance(settings, Mapping):
        raise InputError("settings are names with values, such as {'max_num_seqs': 64}")
    for name, value in settings.items():
        knob = engine.find_knob(str(name))
        read, target = knob.read(value), knob.sets.removeprefix("!")
        if not target or read == "auto":
            continue
        if knob.sets.startswith("!"):
            read = not read
        if knob.values:
            read = next((ours for ours, theirs in knob.values.items() if theirs == read), read)
        if chosen.get(target) not in (None, read):
            raise InputError(
                f"{knob.flag or name} {value} contradicts {target} = {chosen[target]}; give one of the two"
            )
        chosen[target] = read


def _cache_format(kv: str | None, model: ModelSpec, setup: Setup) -> KvFormats:
    """The format asked for, or what the engine makes of "auto": the checkpoint's, where it follows that, else 16 bit."""
    found = find_kv(kv or (setup.follow_checkpoint and model.kv) or "bf16")
    return replace(found, index=KV_FORMATS[setup.index_format]) if setup.index_format else found


def _cut(first: Deployment, tp: int, pp: int) -> Deployment:
    """The deployment over so many ranks and stages, with the engine's defaults for as many GPUs."""
    found = replace(first, sharding=replace(first.sharding, tp=tp), pp=pp)
    return replace(found, setup=found.defaults(found.given))


def _degree(value: int, what: str) -> int:
    if isinstance(value, str):
        raise InputError(f"{what} must be a whole number, not the text {value!r}")
    return parse_tokens(value, what, MAX_GPUS)


def check_tp(model: ModelSpec, tp: int) -> None:
    """Refuse a tensor-parallel degree that does not divide the query heads."""
    for heads in model.query_heads:
        if heads % tp:
            fine = [d for d in range(1, min(heads, 64) + 1) if all(h % d == 0 for h in model.query_heads)]
            raise InputError(
                f"--tp {tp} does not divide the {heads} query heads of {model.id}; use one of {', '.join(map(str, fine))}"
            )


def _degrees(model: ModelSpec, gpu: GpuSpec, count: int | None, tp: int | None, pp: int | None) -> tuple[int, int]:
    """Settle both degrees when at least one of count and ``tp`` is given."""
    if count is None:
        return tp or 1, pp or 1
    if tp is not None and pp is not None and tp * pp != count:
        raise InputError(
            f"--tp {tp} times --pp {pp} is {tp * pp}, not the {count} GPUs of --gpu {count}x...; change one"
        )
    if tp is None and pp is None:
        fits = [d for d in range(1, min(count, gpu.link.devices) + 1) if count % d == 0]
        tp = max(d for d in fits if all(h % d == 0 for h in model.query_heads))
    known = tp or pp or 1
    other, rest = divmod(count, known)
    if rest:
        raise InputError(f"--{'tp' if tp else 'pp'} {known} does not divide the {count} GPUs; change one")
    tp, pp = (tp, other) if tp else (other, known)
    if pp > model.layers:
        raise InputError(
            f"{count} GPUs as {tp} x {pp} need {pp} stages, more than the {model.layers} layers of {model.id}"
        )
    return tp, pp


def _smallest(first: Deployment, context: int, pp: int) -> Deployment:
    """The smallest power-of-two degree that leaves room for one sequence, or the largest of the node if none does.

    The degree is the tensor-parallel one, or that of stages where the engine has only these.
    """
    model, gpu, by_layer = first.model, first.gpu, first.engine.splits_layers
    most = min(model.layers, gpu.link.devices) if by_layer else max(1, gpu.link.devices // first.sharding.dp)
    heads = () if by_layer else model.query_heads
    degrees = [2**i for i in range(17) if 2**i <= most and all(h % 2**i == 0 for h in heads)]
    name, kind, option = ("PP", "pipeline", "--pp") if by_layer else ("TP", "tensor-parallel", "--tp")
    for n in degrees:
        found = _cut(first, 1, n) if by_layer else _cut(first, n, pp)
        if found.missing_bytes(1, context) == 0:
            why = f"{name} {n} is the smallest {kind} degree with room for one sequence of {context:,} tokens"
            return replace(found, notes=(f"{why}; --gpu N×{gpu.id} or {option} asks for another.",))
    why = f"no {kind} degree up to {degrees[-1]} (one node of {gpu.id}) leaves room for one sequence"
    return replace(found, notes=(f"{why} of {context:,} tokens.",))


def _link_notes(gpu: GpuSpec, tp: int, pp: int) -> tuple[str, ...]:
    linked = f"the {gpu.link.devices} devices that {gpu.link.kind} links"
    if tp > gpu.link.devices:
        return (f"TP {tp} spans more than {linked}; time assumes the same link throughout.",)
    if tp * pp > gpu.link.devices:
        return (f"{tp * pp} GPUs are more than {linked}; stages on other nodes are taken to be as near.",)
    return ()
