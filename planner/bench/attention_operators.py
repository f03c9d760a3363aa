"""Attention over a real cache as operators: decode with any number of KV heads, latent decode, causal prefill."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from planner.bench.attend import ANY, NATIVE, WAYS, decoder, latent, prefiller
from planner.bench.operator import Operator, Prepared
from planner.bench.part import Part
from planner.bench.rig import Rig
from planner.bench.timing import measure

UNBOUNDED = 1e12
HEADS, HEAD_DIM = 32, 128
"""Query heads and their width: Llama 3 8B, meta-llama/Meta-Llama-3-8B config.json."""


def variant_of(heads: int, kv_heads: int) -> str:
    """MHA, GQA-8, MQA.

    >>> variant_of(32, 32), variant_of(32, 8), variant_of(32, 1)
    ('MHA', 'GQA-8', 'MQA')
    """
    return "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else f"GQA-{kv_heads}"


@dataclass(frozen=True, kw_only=True)
class DecodeAttention(Operator):
    """One new token of each sequence against a cache of ``context`` tokens."""

    batch: int
    context: int
    kv_heads: int
    heads: int = HEADS
    head_dim: int = HEAD_DIM

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"decode {variant_of(self.heads, self.kv_heads)}"

    @property
    def part(self) -> Part:
        shape = {"batch": self.batch, "context": self.context, "heads": self.heads, "kv_heads": self.kv_heads,
                 "head_dim": self.head_dim, "window": UNBOUNDED}  # fmt: skip
        return Part(
            kind="decode-attention", form=self.form, runs_in=self.form, shape={k: float(v) for k, v in shape.items()}
        )

    @property
    def shape(self) -> str:
        return f"{self.batch:,} x {self.context:,} tokens, {self.heads}:{self.kv_heads} heads of {self.head_dim}"

    @property
    def cache_bytes(self) -> int:
        """Keys and values that are read [B]."""
        return int(2 * self.batch * self.context * self.kv_heads * self.head_dim * self.part.element_bytes)

    def prepare(self, rig: Rig) -> Prepared:
        return self.prepared(rig, rig.ways["decode"])

    def prepared(self, rig: Rig, way: str) -> Prepared:
        """Ready to run in a given way."""
        cache = rig.operands(self.form, (2, self.batch, self.kv_heads, self.context, self.head_dim))
        queries = rig.random(self.form, (self.batch, self.heads, 1, self.head_dim))
        attend = decoder(way, rig.device)

        def run(i: int) -> object:
            k, v = cache[i % len(cache)]
            return attend(queries, k, v, self.context)

        return Prepared(run, len(cache), way)


@dataclass(frozen=True, kw_only=True)
class PrefillAttention(Operator):
    """Causal attention of a prompt of ``tokens``."""

    batch: int
    tokens: int
    kv_heads: int
    heads: int = HEADS
    head_dim: int = HEAD_DIM

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"prefill {variant_of(self.heads, self.kv_heads)}"

    @property
    def part(self) -> Part:
        shape = {"batch": self.batch, "tokens": self.tokens, "heads": self.heads, "kv_heads": self.kv_heads,
                 "head_dim": self.head_dim, "context": 0, "window": UNBOUNDED}  # fmt: skip
        return Part(
            kind="prefill-attention", form=self.form, runs_in=self.form, shape={k: float(v) for k, v in shape.items()}
        )

    @property
    def shape(self) -> str:
        return f"{self.batch:,} x {self.tokens:,} tokens, {self.heads}:{self.kv_heads} heads of {self.head_dim}"

    def prepare(self, rig: Rig) -> Prepared:
        return self.prepared(rig, rig.ways["prefill"])

    def prepared(self, rig: Rig, way: str) -> Prepared:
        """Ready to run in a given way."""
        cache = rig.operands(self.form, (2, self.batch, self.kv_heads, self.tokens, self.head_dim))
        queries = rig.random(self.form, (self.batch, self.heads, self.tokens, self.head_dim))
        attend = prefiller(way, rig.device)

        def run(i: int) -> object:
            k, v = cache[i % len(cache)]
            return attend(queries, k, v)

        return Prepared(run, len(cache), way)


@dataclass(frozen=True, kw_only=True)
class LatentDecode(Operator):
    """Absorbed latent attention: one vector a token for all heads (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

    batch: int
    context: int
    heads: int = 16
    rank: int = 512
    rope: int = 64
    name: ClassVar[str] = "decode MLA"

    @property
    def part(self) -> Part:
        shape = {"batch": self.batch, "context": self.context, "heads": self.heads, "latent": self.rank,
                 "rope": self.rope}  # fmt: skip
        return Part(kind="mla-decode", form=self.form, runs_in=self.form, shape={k: float(v) for k, v in shape.items()})

    @property
    def shape(self) -> str:
        return f"{self.batch:,} x {self.context:,} tokens, {self.heads} heads, {self.rank} + {self.rope}"

    def prepare(self, rig: Rig) -> Prepared:
        cache = rig.operands(self.form, (self.batch, self.context, self.rank + self.rope))
        queries = rig.random(self.form, (self.batch, self.heads, self.rank + self.rope))
        torch = rig.device.torch
        return Prepared(lambda i: latent(queries, cache[i % len(cache)], self.rank, torch), len(cache), "two products")


def choose_ways(rig: Rig, context: int, seconds: float = 0.05) -> None:
    """Settle how the device runs attention: the fastest of the ways that run, over MHA, GQA and MQA together.

    None of them expands keys and values in memory. Ways that this torch or device lacks raise and are left out. A cache that
    grows from call to call is read without cuDNN, which plans every new length anew (torch keeps its plans by exact shape).
    """
    shapes = [DecodeAttention(form=rig.main, batch=1, context=context, kv_heads=n) for n in (HEADS, 8, 1)]
    prompt = PrefillAttention(form=rig.main, batch=1, tokens=min(context, 512), kv_heads=8)
    prompts = [way for way in WAYS if WAYS[way][1] == NATIVE and WAYS[way][0]]
    ways = _ways_for(rig.device.kind)
    decode = _fastest(rig, ways, lambda way: [op.prepared(rig, way) for op in shapes], seconds)
    growing = decode
    if decode.startswith("cuDNN"):
        others = [way for way in ways if not way.startswith("cuDNN")]
        growing = _fastest(rig, others, lambda way: [op.prepared(rig, way) for op in shapes], seconds)
    prefill = _fastest(rig, prompts, lambda way: [prompt.prepared(rig, way)], seconds, ANY)
    rig.ways |= {"decode": decode, "growing": growing, "prefill": prefill}


def _fastest(
    rig: Rig, ways: Sequence[str], prepare: Callable[[str], list[Prepared]], seconds: float, other: str = "grouped products"
) -> str:  # fmt: skip
    """The way with the least product of times; another if none of them runs."""
    times: dict[str, float] = {}
    for way in ways:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says of each kernel that it passes over why
                times[way] = prod(_median_s(ready, rig, seconds) for ready in prepare(way))
        except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
            if rig.device.is_out_of_memory(error):
                raise
    return min(times, key=times.__getitem__, default=other)


def _median_s(ready: Prepared, rig: Rig, seconds: float) -> float:
    ready.call(0)
    rig.device.sync()
    return measure(ready.call, rig.device, seconds, copies=ready.copies).median_s


def _ways_for(kind: str) -> Sequence[str]:
    """Ways worth trying: natively grouped kernels on CPUs read a key once for each query head instead."""
    if kind == "cuda":
        return tuple(way for way in WAYS if way != ANY)
    return ("flash, groups as rows", "grouped products") if kind == "cpu" else ("grouped products",)
