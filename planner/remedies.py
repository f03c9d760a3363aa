"""What would make a workload fit: other formats, more GPUs, a larger GPU, a shorter context, a smaller batch.

Every remedy is planned by the same engine before it is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.cached import bounded
from planner.catalog import gpu_ids, load_gpu
from planner.deployment import Deployment
from planner.errors import InputError
from planner.evaluate import expected_step_s
from planner.precision import FORMATS
from planner.result import Remedy
from planner.settle import deploy
from planner.tensors import Role


def remedies(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """Changes that make ``batch`` sequences of ``context`` tokens fit, each with the batch that then would."""
    yield from _formats(d, batch, context)
    if d.kv_memory is not None:
        yield from _attempt(d, batch, context, "all memory that is there", "(no --kv-memory)", kv_memory=None)
    yield from _more_gpus(d, batch, context)
    yield from _larger_gpu(d, batch, context)
    yield from _less_work(d, batch, context)


def _attempt(d: Deployment, batch: int, context: int, change: str, option: str, **changed: Any) -> Iterator[Remedy]:
    """Plan a change and name it if it fits; a change that cannot be (a degree, a format) is no remedy.

    The option is complete: added to the command as it was, it gives the plan that was made here. So the number of GPUs is
    named even where it stays the same, and degrees are where the caller had fixed them.
    """
    same = {
        "gpu": d.gpu,
        "count": d.count,
        "tp": d.tp if d.fixed_degrees else None,
        "pp": d.pp if d.fixed_degrees else None,
        "weights": d.weights,
        "kv": d.precision.kv.id,
        "engine": d.engine.id,
        "memory_fraction": d.memory_fraction,
        "kv_memory": d.kv_memory,
        "source": d.source_tokens or None,
        "kv_shard": "batch" if d.sharding.over_batch else "heads",
        "pad_heads": d.pad_heads,
    }
    try:
        found = deploy(d.model, context=context, **{**same, **changed})
    except InputError:
        return
    most = found.max_batch(context)
    if found.missing_bytes(batch, context) == 0:
        name = found.gpu.id if found.gpu is not d.gpu else d.gpu_name
        words = [option, f"--gpu {found.count}x{name}"] if found.count > 1 or "gpu" in changed else [option]
        if d.fixed_degrees and found.count != d.count:
            words.append(f"--tp {found.tp} --pp {found.pp}")
        step_s = expected_step_s(found, batch, context)
        yield Remedy(change=change, option=" ".join(filter(None, words)), max_batch=bounded(most), step_s=step_s)


def _formats(d: Deployment, batch: int, context: int) -> Iterator[Remedy]:
    """Narrower cache, narrower weights, and both where weights alone do not do."""
    narrow = {"kv": "fp8"} if d.precision.kv.bits > 8 else {}
    if narrow:
        yield from _attempt(d, batch, context, "KV cache in fp8", "--kv fp8", **narrow)
    for name in ("fp8", "int4"):
        if FORMATS[name].bits < min(d.precision.weights[role].bits for role in Role if role.linear):
            alone = list(_attempt(d, batch, context, f"weights in {name}", f"--weights {name}", weights=name))
            yield from alone
            if not alone and narrow:
                both = f"weights in {name}, KV cache in fp8"
                yield from _attempt(d, batch, context, both, f"--weights {name} --kv fp8", weights=name, **narrow)


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
            max_batch=bounded(d.max_batch(longest)),
            step_s=expected_step_s(d, batch, longest),
        )
    most = d.max_batch(context)
    if most and d.missing_bytes(most, context) == 0:
        yield Remedy(
            change=f"a batch of {most:,}",
            option=f"--batch {most}{gpus}",
            max_batch=most,
            step_s=expected_step_s(d, most, context),
        )
