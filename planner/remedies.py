"""What would make a workload fit: other formats, other settings of the engine, more GPUs, a larger GPU, less work.

Every remedy is planned by the same code before it is named, and named in kvplan's words and in the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.cached import bounded
from planner.catalog import gpu_ids, load_gpu
from planner.deployment import Deployment
from planner.emit import flags
from planner.errors import InputError
from planner.evaluate import expected_step_s
from planner.precision import FORMATS
from planner.result import Remedy
from planner.settle import deploy
from planner.tensors import Role

MOST_FRACTION = 0.95
"""Share of memory that engines are commonly driven to."""


def remedies(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """Changes that make ``batch`` sequences of ``context`` tokens fit, each with the batch that then would."""
    yield from _formats(d, batch, context)
    if d.setup.kv_memory is not None:
        yield from _attempt(d, batch, context, "all memory that is there", "(no --kv-memory)", without="kv_memory")
    yield from _settings(d, batch, context)
    yield from _more_gpus(d, batch, context)
    yield from _larger_gpu(d, batch, context)
    yield from _less_work(d, batch, context)


def _attempt(
    d: Deployment, batch: int, context: int, change: str, option: str, fields: dict[str, Any] | None = None,
    without: str = "", engine_fields: dict[str, Any] | None = None, **changed: Any,
) -> Iterator[Remedy]:  # fmt: skip
    """Plan a change and name it if it fits; a change that cannot be (a degree, a format) is no remedy.

    The option is complete: added to the command as it was, it gives the plan that was made here. So the number of GPUs is
    named even where it stays the same, and degrees are where the caller had fixed them.

    Parameters
    ----------
    fields, without
        Fields of the engine's setup that are changed, and one that is no longer given.
    engine_fields
        Fields that the engine is told and the plan is not.
    **changed
        Choices of `settle.deploy` that are changed.
    """
    same = {
        "batch": batch,
        "gpu": d.gpu,
        "count": d.count,
        "tp": d.tp if d.fixed_degrees else None,
        "pp": d.pp if d.fixed_degrees else None,
        "dp": d.sharding.dp,
        "ep": d.sharding.whole_experts,
        "weights": d.weights,
        "kv": d.precision.kv.id,
        "engine": d.engine.label,
        "fields": {k: v for k, v in {**d.given, **(fields or {})}.items() if k != without},
        "source": d.source_tokens or None,
        "kv_shard": "batch" if d.sharding.over_batch else "heads",
        "pad_heads": d.pad_heads,
    }
    try:
        found = deploy(d.model, context=context, **{**same, **changed})
    except InputError:
        return
    if found.missing_bytes(batch, context):
        return
    name = found.gpu.id if found.gpu is not d.gpu else d.gpu_name
    words = [option, f"--gpu {found.count}x{name}"] if found.count > 1 or "gpu" in changed else [option]
    theirs: dict[str, Any] = {
        **(fields or {}),
        **(engine_fields or {}),
        **{k: v for k, v in changed.items() if k in ("weights", "kv")},
    }
    if found.count != d.count:
        theirs |= {"tp": found.tp} if found.tp != d.tp else {}
        theirs |= {"pp": found.pp} if found.pp != d.pp else {}
        if d.fixed_degrees:
            words.append(f"--tp {found.tp} --pp {found.pp}")
    yield Remedy(
        change=change,
        option=" ".join(filter(None, words)),
        engine_option=flags(d.engine, theirs),
        max_batch=bounded(found.max_batch(context)),
        step_s=expected_step_s(found, batch, context),
    )


def _formats(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """Narrower cache, narrower weights, and both where weights alone do not do."""
    narrow: dict[str, Any] = {"kv": "fp8"} if d.precision.kv.bits > 8 else {}
    if narrow:
        yield from _attempt(d, batch, context, "KV cache in fp8", "--kv fp8", **narrow)
    for name in ("fp8", "int4"):
        if FORMATS[name].bits < min(d.precision.weights[role].bits for role in Role if role.linear):
            alone = list(_attempt(d, batch, context, f"weights in {name}", f"--weights {name}", weights=name))
            yield from alone
            if not alone and narrow:
                both = f"weights in {name}, KV cache in fp8"
                yield from _attempt(d, batch, context, both, f"--weights {name} --kv fp8", weights=name, **narrow)


def _settings(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """Other settings of the same engine: more of the memory, fewer sequences or tokens in a pass, no graphs."""
    run = d.setup
    fewer = max(batch, 16)
    tried: list[tuple[str, dict[str, Any]]] = []
    if run.memory_fraction < MOST_FRACTION and run.kv_memory is None:
        tried.append((f"{MOST_FRACTION:.0%} of the memory", {"memory_fraction": MOST_FRACTION}))
    if run.sequences > fewer:
        tried.append((f"at most {fewer:,} sequences at once", {"sequences": fewer}))
    if run.step_tokens > 2048:
        tried.append(("2,048 tokens in a pass", {"step_tokens": 2048}))
    if run.graphs and "graphs" in run.inside + run.before:
        tried.append(("no CUDA graphs", {"graphs": False}))
    for change, fields in tried:
        if option := flags(d.engine, fields):
            yield from _attempt(d, batch, context, change, option, fields=fields)


def _more_gpus(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """The first doubling of the replica that fits."""
    for count in (d.count * 2**i for i in range(1, 5)):
        found = list(_attempt(d, batch, context, f"{count} GPUs", "", count=count, tp=None, pp=None))
        if found:
            yield from found
            return


def _larger_gpu(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """The smallest device of the same vendor with more memory that fits, as many as before."""
    for gpu in sorted((load_gpu(i) for i in gpu_ids()), key=lambda g: (g.usable_bytes, g.id)):
        if gpu.vendor == d.gpu.vendor and gpu.usable_bytes > d.gpu.usable_bytes and gpu.link.devices >= d.tp:
            change = f"{d.count} × {gpu.name}" if d.count > 1 else gpu.name
            found = list(_attempt(d, batch, context, change, "", gpu=gpu))
            if found:
                yield from found
                return


def _less_work(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """The longest context at this batch, and the largest batch at this context."""
    gpus = f" --gpu {d.count}x{d.gpu_name}" if d.count > 1 else ""
    longest = bounded(d.max_context(batch))
    if longest and d.missing_bytes(batch, longest) == 0:
        yield Remedy(
            change=f"a context of {longest:,}",
            option=f"--context {longest}{gpus}",
            engine_option=flags(d.engine, {"max_tokens": longest}),
            max_batch=bounded(d.max_batch(longest)),
            step_s=expected_step_s(d, batch, longest),
        )
    most = d.max_batch(context)
    if most and d.missing_bytes(most, context) == 0:
        fewer = {"sequences": most}
        yield from _attempt(d, most, context, f"a batch of {most:,}", f"--batch {most}", engine_fields=fewer)
