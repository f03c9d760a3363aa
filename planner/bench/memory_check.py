"""Allocate what kvplan predicts, and compare: caches of every variant and format, and the largest batch in a budget.

Tensors are made from the shape of the attention (heads, widths, kept tokens), not from kvplan's byte counts, so that the two
are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from planner.attention import AttentionRow, HeadAttention, LatentAttention
from planner.bench.device import Device
from planner.bench.predict import spec_from
from planner.bench.profile import BatchCheck, MemoryCheck
from planner.bench.rig import DTYPES
from planner.memory import cache_curve, weight_bytes
from planner.model import ModelSpec
from planner.precision import find_kv
from planner.row import Source
from planner.settle import deploy
from planner.stage import stages_of

LAYERS = 2
VARIANTS: dict[str, dict[str, Any]] = {
    "MHA": {"heads": 32, "kv_heads": 32, "head_dim": 128},
    "GQA-8": {"heads": 32, "kv_heads": 8, "head_dim": 128},
    "MQA": {"heads": 32, "kv_heads": 1, "head_dim": 128},
    "GQA-8, window 1,024": {"heads": 32, "kv_heads": 8, "head_dim": 128, "window": 1024},
    "MLA": {"kind": "latent", "heads": 16, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128},
}  # fmt: skip
FORMATS = ("bf16", "fp8", "int8")
POINTS = ((1, 4096), (8, 512), (3, 777))
_SOURCE = Source(title="a model of the bench", locator="planner/bench/memory_check.py", date="2026-11-24")


def model(row: dict[str, Any], *, hidden: int = 512, layers: int = LAYERS, vocab: int = 1024) -> ModelSpec:
    """A small model with this attention."""
    return ModelSpec.derived(
        id="bench-model", name="Bench model", family="bench", hidden=hidden, vocab=vocab, layers=layers,
        context_limit=2**20, attention=(row,), ffn=({"width": 2 * hidden},), source=(_SOURCE,),
    )  # fmt: skip


def cache_shapes(row: AttentionRow, batch: int, context: int) -> list[tuple[int, ...]]:
    """Tensors that one layer's cache is made of: keys and values, or latents."""
    kept = min(context, row.window or context)
    if isinstance(row, LatentAttention):
        return [(batch, kept, row.kv_lora_rank + row.qk_rope_head_dim)]
    if not isinstance(row, HeadAttention):
        raise TypeError(f"no cache is known for {row.variant}")
    return [(batch, row.kv_heads, kept, row.head_dim), (batch, row.kv_heads, kept, row.value_dim)]


def allocate(row: AttentionRow, form: str, batch: int, context: int, device: Device) -> list[Any]:
    """One layer's cache, and the scales of integers: one in fp32 for each head's vector of a token."""
    torch, found = device.torch, []
    for shape in cache_shapes(row, batch, context):
        found.append(torch.empty(shape, dtype=getattr(torch, DTYPES[form]), device=device.target))
        if form == "int8":
            found.append(torch.empty(shape[:-1], dtype=torch.float32, device=device.target))
    return found


def storage(tensors: Sequence[Any]) -> int:
    """Bytes that tensors' storages were allocated with [B]."""
    return sum(int(t.untyped_storage().nbytes()) for t in tensors)


def check_caches(
    device: Device, points: Sequence[tuple[int, int]] = POINTS, formats: Sequence[str] = FORMATS, most: int = 2**30
) -> tuple[list[MemoryCheck], list[str]]:
    """Allocate every variant in every format at every point of batch × context, and compare; and what was skipped.

    Parameters
    ----------
    most
        Largest cache that is allocated [B].
    """
    found, skipped = [], []
    for name, row in VARIANTS.items():
        spec = model(row)
        for form in formats:
            if not hasattr(device.torch, DTYPES[form]):
                skipped.append(f"cache in {form}: this torch has no such type")
                continue
            for batch, context in points:
                predicted = batch * int(cache_curve(stages_of(spec, 1)[0], find_kv(form), 1).amount(context))
                if predicted > most:
                    skipped.append(f"cache of {name}, {form}, {batch} x {context}: larger than is allowed")
                    continue
                before = device.allocated() or 0
                try:
                    tensors = [
                        t for _ in range(LAYERS) for t in allocate(spec.attention[0], form, batch, context, device)
                    ]
                except Exception as error:
                    full = device.is_out_of_memory(error)
                    if not full and not isinstance(error, (RuntimeError, TypeError, NotImplementedError)):
                        raise
                    device.empty_cache()
                    why = "out of memory" if full else "the device has no such type"
                    skipped.append(f"cache of {name}, {form}, {batch} x {context}: {why}")
                    continue
                exact = sum(prod(t.shape) * int(t.element_size()) for t in tensors)
                handed = device.allocated()
                found.append(
                    MemoryCheck(
                        variant=name, form=form, batch=batch, context=context, predicted_bytes=predicted, tensor_bytes=exact,
                        allocator_bytes=storage(tensors) if handed is None else handed - before,
                    )
                )  # fmt: skip
                del tensors
    device.empty_cache()
    return found, skipped


def check_batch(device: Device, variant: str, budget: int, context: int, most: int = 4096) -> BatchCheck:
    """Grow a batch beside weights until the budget refuses, and compare with kvplan's largest batch.

    Weights are one tensor, and so is the cache of one sequence over all layers, as engines allocate pools.

    On CUDA the allocator itself refuses (``set_per_process_memory_fraction``); elsewhere storage is counted and what would
    exceed the budget is not allocated.
    """
    spec = model(VARIANTS[variant], hidden=1024, layers=4, vocab=16384)
    gpu = spec_from("bench", "bench", budget, 1e11, {"bf16": 1e13}, 0)
    planned = deploy(spec, gpu, context=context, tp=1, weights="bf16", kv="bf16", engine="none")
    predicted = int(planned.max_batch(context))
    torch = device.torch
    device.empty_cache()
    before = device.reserved()
    elements = sum(t.parameters * n for t, n in spec.all_tensors())
    weights = torch.empty(elements, dtype=torch.bfloat16, device=device.target)
    held, kept = storage([weights]), list[Any]()
    entry = spec.layers * sum(prod(s) for s in cache_shapes(spec.attention[0], 1, context))

    def grow() -> None:
        kept.append(torch.empty(entry, dtype=torch.bfloat16, device=device.target))

    if device.kind == "cuda":
        measured, refused = _until_refused(device, grow, budget + before, most), "the allocator"
    else:
        while storage([weights, *kept]) + 2 * entry <= budget and len(kept) < most:
            grow()
        measured, refused = len(kept), "a count of storage"
    if measured == most:
        refused = "the cap of the check"
    return BatchCheck(
        variant=variant, budget_bytes=budget, weight_bytes=held, context=context, predicted=predicted, measured=measured,
        predicted_weight_bytes=weight_bytes(spec.all_tensors(), spec.weight_formats("bf16")), refused_by=refused,
    )  # fmt: skip


def _until_refused(device: Device, grow: Callable[[], None], budget: int, most: int) -> int:
    """Sequences that fit until CUDA's allocator, limited to the budget and what the process held before, raises."""
    torch, done = device.torch, 0
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device.target).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), device.target)
    try:
        while done < most:
            grow()
            done += 1
    except torch.OutOfMemoryError:
        pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.target)
        torch.cuda.empty_cache()
    return done


def check_batches(device: Device, budget: int, context: int) -> tuple[list[BatchCheck], list[str]]:
    """The largest batch of MHA, GQA and MQA in a budget, and what was skipped."""
    found, skipped = [], []
    for variant in ("MHA", "GQA-8", "MQA"):
        try:
            found.append(check_batch(device, variant, budget, context))
        except Exception as error:
            if not device.is_out_of_memory(error):
                raise
            skipped.append(f"largest batch of {variant}: out of memory before the budget was reached")
        device.empty_cache()
    return found, skipped
