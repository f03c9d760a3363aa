"""Settle a deployment: read what the caller chose, check it, and choose what was left open.

``N x GPU`` is one replica: tensor parallel within a node, up to the node's size and a divisor of the heads, and pipeline
stages for the rest, unless degrees are given. Without a number of GPUs the smallest power of two is taken that has room.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from planner.catalog import load_gpu
from planner.deployment import Deployment
from planner.errors import InputError, UnknownNameError
from planner.gpu import GpuSpec
from planner.model import ModelSpec
from planner.precision import find_kv
from planner.serving import load_engine
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
        return load_gpu(name)
    except UnknownNameError:
        turned = _REVERSED.fullmatch(str(name))
        if turned is None:
            raise
        raise UnknownNameError(
            f"unknown GPU {str(name)[:60]!r}; the count comes first: {turned[2]}x{turned[1]}"
        ) from None


def deploy(
    model: ModelSpec, gpu: str | Path | GpuSpec, *, context: int,
    count: int | None = None, tp: int | None = None, pp: int | None = None,
    weights: str | None = None, kv: str | None = None, engine: str = "vllm", memory_fraction: float | str | None = None,
    kv_memory: int | str | None = None, source: int | None = None, kv_shard: str = "heads", pad_heads: bool = False,
) -> Deployment:  # fmt: skip
    """Check every choice and settle those left open.

    Parameters
    ----------
    gpu
        A GPU, or ``"4xh100"`` for a replica of four. Without a count and without ``tp`` the smallest power of two of
        GPUs is taken that leaves room for one sequence of ``context`` tokens.
    count
        GPUs of the replica, where ``gpu`` does not say.
    tp, pp
        Tensor and pipeline-parallel degree; their product is the number of GPUs.
    weights, kv
        Formats; ``None`` is the checkpoint's own and 16 bit.
    memory_fraction
        Share of the GPU that the engine takes; ``None`` is the engine's default.
    kv_memory
        Cache memory of one GPU, given instead of derived [B].
    source
        Source length of an encoder-decoder [tokens].
    kv_shard
        ``"heads"``, or ``"batch"`` to deal the cache out by sequence.
    pad_heads
        Allow a ``tp`` that does not divide the heads, the rest being padding.

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
    kv = "bf16" if kv is None or kv == "auto" else kv
    precision = Precision(model.weight_formats(weights), find_kv(kv))
    if source is not None and not model.source_tokens:
        raise InputError(f"{model.id} is a decoder only and has no source; leave --source out")
    fraction = (
        profile.memory_fraction if memory_fraction is None else parse_fraction(memory_fraction, "memory fraction")
    )
    first = Deployment(
        model=model,
        gpu=spec,
        sharding=Sharding(1, kv_shard == "batch"),
        pp=1,
        weights=weights,
        precision=precision,
        engine=profile,
        memory_fraction=fraction,
        kv_memory=None if kv_memory is None else parse_bytes(kv_memory, "KV memory"),
        source_tokens=model.source_tokens if source is None else parse_tokens(source, "source length"),
        pad_heads=pad_heads,
        gpu_name=str(name) if isinstance(name, (str, Path)) and str(name).lower().endswith(".toml") else spec.id,
        fixed_degrees=tp is not None or pp is not None,
    )
    tp = None if tp is None else _degree(tp, "--tp")
    pp = None if pp is None else _degree(pp, "--pp")
    if pp is not None and pp > model.layers:
        raise InputError(
            f"--pp {pp} is more than the {model.layers} layers of {model.id}; use --pp {model.layers} or less"
        )
    if count is None and tp is None:
        return _smallest(first, context, pp or 1)
    tp, pp = _degrees(model, spec, count, tp, pp)
    if not pad_heads:
        check_tp(model, tp)
    notes = _link_notes(spec, tp, pp)
    if pp > 1 and not first.fixed_degrees and tp * pp <= spec.link.devices:
        heads = " and ".join(map(str, model.query_heads))
        notes += (f"{tp * pp} GPUs do not divide the {heads} query heads: TP {tp} and {pp} pipeline stages instead.",)
    return replace(first, sharding=replace(first.sharding, tp=tp), pp=pp, notes=notes)


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
    """The smallest power-of-two degree that leaves room for one sequence, or the largest of the node if none does."""
    model, gpu = first.model, first.gpu
    degrees = [2**i for i in range(17) if 2**i <= gpu.link.devices and all(h % 2**i == 0 for h in model.query_heads)]
    for tp in degrees:
        found = replace(first, sharding=replace(first.sharding, tp=tp), pp=pp)
        if found.missing_bytes(1, context) == 0:
            why = f"TP {tp} is the smallest tensor-parallel degree with room for one sequence of {context:,} tokens"
            return replace(found, notes=(f"{why}; --gpu N×{gpu.id} or --tp asks for another.",))
    why = f"no tensor-parallel degree up to {degrees[-1]} (one node of {gpu.id}) leaves room for one sequence"
    return replace(found, notes=(f"{why} of {context:,} tokens.",))


def _link_notes(gpu: GpuSpec, tp: int, pp: int) -> tuple[str, ...]:
    linked = f"the {gpu.link.devices} devices that {gpu.link.kind} links"
    if tp > gpu.link.devices:
        return (f"TP {tp} spans more than {linked}; time assumes the same link throughout.",)
    if tp * pp > gpu.link.devices:
        return (f"{tp * pp} GPUs are more than {linked}; stages on other nodes are taken to be as near.",)
    return ()
