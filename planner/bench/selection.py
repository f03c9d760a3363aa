"""Which operators a run measures: quick, default or full, at shapes of Llama 3 8B on a GPU and scaled down on a CPU.

Shapes of the fit and shapes that are held out differ in every dimension that matters: rows, columns, batch, context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.bench.attention_operators import HEADS, DecodeAttention, LatentDecode, PrefillAttention
from planner.bench.experts import AllReduce, Experts
from planner.bench.layers import DecodeLoop, LayerStep, Shape
from planner.bench.operator import Copy, Elementwise, Gemm, HostCopy, Launch, Operator, Read
from planner.errors import unknown_name

CLASSES = ("memory", "gemm", "attention", "mla", "prefill", "experts", "elementwise", "layer", "loop", "host", "link")
KV_HEADS = (HEADS, 8, 1)
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is.

    Attributes
    ----------
    seconds
        Time that timing may take, the checks of memory aside [s].
    arena_bytes
        Random data of one format [B].
    widths, other_widths
        Weights (n, k) that the fit sees, and that it does not.
    rows, other_rows
        Tokens of products; those of the prefill kind are long.
    decode, other_decode
        (batch, context) of decode attention.
    """

    seconds: float
    arena_bytes: int
    streams: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]
    other_widths: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    other_rows: tuple[int, ...]
    decode: tuple[tuple[int, int], ...]
    other_decode: tuple[tuple[int, int], ...]
    prompts: tuple[int, ...]
    other_prompts: tuple[int, ...]
    experts: tuple[int, int, int, int]
    """How many, top k, hidden, width."""
    model: Shape
    loops: tuple[tuple[int, int], ...]
    rounds: int = 1
    """Times that the whole list is gone through; times of one operator then lie apart."""


LLAMA = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""Llama 3 8B: queries, keys and values; output; gate and up; down."""
_HALF = ((3072, 2048), (4096, 1024), (14336, 2048), (2048, 7168))
"""About the same, scaled down."""

TINY = Sizes(
    1.5, 8 * MIB, (MIB,), ((256, 256), (512, 128)), ((384, 256),), (1, 4, 16, 64), (2, 32), ((1, 64), (2, 128)), ((2, 64),),
    (32, 64), (48,), (4, 2, 64, 64), Shape(128, 4, 2, 32, 256, 2, 512), ((1, 32), (2, 64)),
)  # fmt: skip
CPU_QUICK = Sizes(
    18, 160 * MIB, (64 * MIB,), ((3072, 2048), (2048, 4096), (8192, 1024), (1024, 1024)), ((1024, 4096), (2560, 2048)),
    (1, 2, 8, 64), (1, 4, 32), ((1, 1024), (1, 4096), (4, 512)), ((2, 1536),), (32, 64, 128, 256), (96,), (8, 2, 1024, 512),
    Shape(1024, 8, 2, 128, 2816, 4, 16384), ((1, 512), (4, 1024)),
)  # fmt: skip
CPU = Sizes(
    85, 1280 * MIB, (MIB, 8 * MIB, 64 * MIB, 128 * MIB), _HALF, ((8192, 1536), (1024, 4096)), (1, 2, 8, 32, 128),
    (1, 4, 16, 64),
    ((1, 512), (1, 2048), (1, 8192), (4, 1024), (8, 512), (16, 512)), ((2, 3072), (6, 1024), (1, 6144), (32, 2304)),
    (64, 128, 256, 512),
    (96, 384), (8, 2, 1024, 1024), Shape(1536, 12, 4, 128, 4096, 4, 16384),
    ((1, 128), (1, 2048), (2, 512), (4, 1024), (8, 512), (16, 1024)), 2,
)  # fmt: skip
GPU_QUICK = Sizes(
    15, 2048 * MIB, (512 * MIB,), LLAMA, ((8192, 4096), (4096, 8192)), (1, 8, 64, 512, 4096),
    (1, 4, 128, 2048), ((1, 8192), (16, 2048), (64, 1024)), ((8, 4096),), (1024, 4096), (2048,), (32, 4, 2048, 1024),
    Shape(4096, 32, 8, 128, 14336, 4, 32768), ((1, 2048), (16, 2048)),
)  # fmt: skip
GPU = Sizes(
    60, 6 * 2**30, (MIB, 16 * MIB, 256 * MIB, 2048 * MIB), LLAMA, ((8192, 4096), (5120, 5120), (4096, 11008)),
    (1, 4, 16, 64, 256, 1024, 4096), (1, 2, 32, 128, 2048), ((1, 1024), (1, 8192), (1, 32768), (8, 2048), (16, 4096),
    (64, 1024), (64, 4096), (256, 512)), ((4, 6144), (32, 3072), (128, 1024)), (512, 1024, 2048, 4096), (1536, 3072),
    (64, 6, 2048, 1408), Shape(4096, 32, 8, 128, 14336, 4, 32768),
    ((1, 1024), (1, 8192), (8, 2048), (32, 4096), (64, 1024), (128, 2048)),
)  # fmt: skip


def sizes_of(size: str, kind: str) -> Sizes:
    """Sizes of a run by its name and the kind of device.

    Raises
    ------
    UnknownNameError
        If there is no such size.
    """
    cpu = kind == "cpu"
    full = CPU if cpu else GPU
    found = {"tiny": TINY, "quick": CPU_QUICK if cpu else GPU_QUICK, "default": full, "full": _longer(full)}
    if size not in found:
        raise unknown_name("size of a run", size, found, "use quick, default or full")
    return found[size]


def _longer(s: Sizes) -> Sizes:
    from dataclasses import replace

    return replace(s, seconds=4 * s.seconds, rounds=4)


def chosen_classes(only: str | Sequence[str] | None) -> tuple[str, ...]:
    """Classes asked for, or all.

    >>> chosen_classes("gemm, attention")
    ('gemm', 'attention')

    Raises
    ------
    UnknownNameError
        If there is no such class.
    """
    if only is None:
        return CLASSES
    names = [n.strip().lower() for n in (only.split(",") if isinstance(only, str) else only)]
    for name in names:
        if name not in CLASSES:
            raise unknown_name("class of operators", name, CLASSES, f"use {', '.join(CLASSES)}")
    return tuple(c for c in CLASSES if c in names)


def operators(
    s: Sizes, main: str, forms: Sequence[str], kind: str, classes: Sequence[str], degree: int = 1
) -> list[Operator]:
    """Everything that a run measures.

    Parameters
    ----------
    main
        Format of activations and caches.
    forms
        Formats of products that the device has.
    degree
        Processes that torchrun started.
    """
    found: list[Operator] = []
    for name, make in _MAKERS.items():
        if name in classes:
            found += make(s, main, forms, kind)
    if degree > 1 and "link" in classes:
        sizes = (4**i * 4096 for i in range(1, 8))
        found += [AllReduce(form="fp32", nbytes=n, degree=degree) for n in sizes if n <= s.arena_bytes // 8]
    return found


def _memory(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    for size in s.streams:
        yield Read(form=main, nbytes=size)
        yield Copy(form=main, nbytes=size // 2)


def _gemm(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    for form in forms:
        # _int_mm of CUDA takes more than 16 rows
        least = 17 if form == "int8" else 1
        own = s if form == main or kind != "cpu" else _few(s)
        for n, k in own.widths:
            yield from (Gemm(form=form, m=m, n=n, k=k) for m in own.rows if m >= least)
        for n, k in own.other_widths:
            yield from (Gemm(form=form, m=m, n=n, k=k, held_out=True) for m in own.other_rows if m >= least)


def _few(s: Sizes) -> Sizes:
    from dataclasses import replace

    return replace(s, rows=s.rows[::2], other_widths=s.other_widths[:1])


def _attention(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    for held, shapes in ((False, s.decode), (True, s.other_decode)):
        for batch, context in shapes:
            for n in KV_HEADS:
                op = DecodeAttention(form=main, batch=batch, context=context, kv_heads=n, held_out=held)
                if op.cache_bytes <= s.arena_bytes:
                    yield op


def _mla(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    heads = 16 if kind == "cpu" else 128  # DeepSeek-V3 has 128
    for held, shapes in ((False, s.decode), (True, s.other_decode)):
        for batch, context in shapes:
            yield LatentDecode(form=main, batch=batch, context=context, heads=heads, held_out=held)


def _prefill(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    for held, lengths in ((False, s.prompts), (True, s.other_prompts)):
        yield from (PrefillAttention(form=main, batch=1, tokens=n, kv_heads=8, held_out=held) for n in lengths)


def _experts(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    experts, top_k, hidden, width = s.experts
    for held, rows in ((False, s.rows), (True, [m for m in s.other_rows if m not in s.rows])):
        for tokens in rows:
            yield Experts(
                form=main, tokens=tokens, experts=experts, top_k=top_k, hidden=hidden, width=width, held_out=held
            )


def _elementwise(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    yield Launch(form=main)
    width = s.model.hidden
    for held, rows in ((False, s.rows), (True, s.other_rows)):
        for m in rows:
            for what in ("rms-norm", "silu", "add"):
                yield Elementwise(form=main, what=what, rows=m, width=width * 3 // 2 if held else width, held_out=held)
            vocab = s.model.vocab
            yield Elementwise(form=main, what="argmax", rows=m, width=vocab * 3 // 4 if held else vocab, held_out=held)


def _layer(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    for batch, context in s.loops[:3]:
        yield LayerStep(form=main, model=s.model, batch=batch, context=context, held_out=True)


def _loop(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    for batch, context in s.loops:
        for captured in (False, True) if kind == "cuda" else (False,):
            yield DecodeLoop(form=main, model=s.model, batch=batch, context=context, captured=captured, held_out=True)


def _host(s: Sizes, main: str, forms: Sequence[str], kind: str) -> Iterator[Operator]:
    if kind != "cpu":
        for to_device in (True, False):
            yield HostCopy(form=main, nbytes=s.streams[-1] // 4, to_device=to_device)


_MAKERS = {
    "memory": _memory, "gemm": _gemm, "attention": _attention, "mla": _mla, "prefill": _prefill, "experts": _experts,
    "elementwise": _elementwise, "layer": _layer, "loop": _loop, "host": _host,
}  # fmt: skip
