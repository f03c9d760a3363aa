"""A whole decoder layer, and a whole small model that decodes with a real growing cache.

Both are the operators of the plan one after another; what they should take is the sum of their parts. The cache grows by
blocks, as engines' caches do: a block is allocated when the first token of it comes, and the rest of it is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from planner.bench.attend import Attend, decoder
from planner.bench.attention_operators import UNBOUNDED
from planner.bench.operator import Operator, Prepared, moves, product, width_of
from planner.bench.part import Part
from planner.bench.rig import Rig
from planner.model import ModelSpec
from planner.row import Source

BLOCK = 64
"""Tokens of a block of the cache."""
_ROPE_CALLS, _WRITE_CALLS = 6, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """A small Llama-like decoder."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    layers: int
    vocab: int

    def spec(self) -> ModelSpec:
        """The same as kvplan plans it."""
        row = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        source = Source(title="a model of the bench", locator="planner/bench/layers.py", date="2026-11-24")
        return ModelSpec.derived(
            id="bench-model", name="Bench model", family="bench", hidden=self.hidden, vocab=self.vocab, layers=self.layers,
            context_limit=2**20, attention=(row,), ffn=({"width": self.width},), source=(source,),
        )  # fmt: skip

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Shape:
        """The decoder that a step, or one layer of a step, is made of; without a vocabulary if it is one layer."""
        attention = next(p for p in parts if p.kind == "decode-attention")
        products = [p.shape for p in parts if p.kind == "gemm"]
        a = {name: int(attention.shape[name]) for name in ("heads", "kv_heads", "head_dim")}
        return cls(
            hidden=int(products[0]["k"]), width=int(products[3]["k"]), layers=attention.times,
            vocab=int(products[4]["n"]) if len(products) > 4 else 0, **a,
        )  # fmt: skip

    def layer_parts(self, form: str, batch: int, context: int) -> tuple[Part, ...]:
        """Work of one layer in one decode step, call by call."""
        one = batch * width_of(form)
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim

        def gemm(n: int, k: int) -> Part:
            return product(form, batch, n, k)

        def small(what: str, nbytes: float, times: int = 1) -> Part:
            return moves("element-wise", form, nbytes, what, times)

        held = -(-context // BLOCK) * BLOCK
        attention = {"batch": batch, "context": held, "heads": self.heads, "kv_heads": self.kv_heads,
                     "head_dim": self.head_dim, "window": UNBOUNDED}  # fmt: skip
        return (
            small("rms-norm", 2.0 * one * self.hidden, 2),
            small("add", 3.0 * one * self.hidden, 2),
            gemm(query + 2 * kv, self.hidden),
            small("add", 2.0 * one * (query + kv), _ROPE_CALLS),
            small("add", 2.0 * one * kv, _WRITE_CALLS),
            Part(kind="decode-attention", form=form, runs_in=form, shape={k: float(v) for k, v in attention.items()}),
            gemm(self.hidden, query),
            gemm(2 * self.width, self.hidden),
            small("silu", 2.0 * one * self.width),
            small("add", 3.0 * one * self.width),  # the product with the gate
            gemm(self.hidden, self.width),
        )

    def parts(self, form: str, batch: int, context: int) -> tuple[Part, ...]:
        """Work of one decode step."""
        layer = [p.model_copy(update={"times": p.times * self.layers}) for p in self.layer_parts(form, batch, context)]
        one = batch * width_of(form)
        head = product(form, batch, self.vocab, self.hidden)
        ends = (
            moves("element-wise", form, 2.0 * one * self.hidden, "rms-norm"),
            moves("element-wise", form, 2.0 * one * self.hidden, "add"),
            moves("element-wise", form, one * self.vocab, "argmax"),
        )
        return (*layer, head, *ends)


class Cache:
    """Keys and values of every layer, that grow by blocks."""

    def __init__(self, shape: Shape, rig: Rig, batch: int, form: str, context: int) -> None:
        self.rig, self.form, self.length = rig, form, context
        self.size = (batch, shape.kv_heads, -(-context // BLOCK) * BLOCK, shape.head_dim)
        self.layers = [
            [rig.random(form, self.size) if context else rig.empty(form, self.size) for _ in range(2)]
            for _ in range(shape.layers)
        ]

    def grow(self) -> None:
        """Make room for one more token."""
        self.length += 1
        if self.length > self.size[2]:
            self.size = (*self.size[:2], self.size[2] + BLOCK, self.size[3])
            for layer in self.layers:
                for i, old in enumerate(layer):
                    layer[i] = self.rig.empty(self.form, self.size)
                    layer[i][:, :, : old.shape[2]] = old
                    layer[i][:, :, old.shape[2] :] = 0

    @property
    def nbytes(self) -> int:
        """What the tensors take [B]."""
        return sum(int(t.nbytes) for layer in self.layers for t in layer)


class Model:
    """The small model with random weights."""

    def __init__(self, shape: Shape, rig: Rig, form: str) -> None:
        self.shape, self.rig, self.form = shape, rig, form
        s, random = shape, rig.random
        query, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        sizes = [(query + 2 * kv, s.hidden), (s.hidden, query), (2 * s.width, s.hidden), (s.hidden, s.width)]
        self.layers = [
            [*(random(form, size, size[1] ** -0.5) for size in sizes), rig.empty(form, (s.hidden,)).fill_(1.0),
             rig.empty(form, (s.hidden,)).fill_(1.0)] for _ in range(s.layers)
        ]  # fmt: skip
        self.embedding = random(form, (s.vocab, s.hidden))
        self.head = random(form, (s.vocab, s.hidden), s.hidden**-0.5)
        self.norm = rig.empty(form, (s.hidden,)).fill_(1.0)
        angles = rig.device.torch.arange(s.head_dim, device=rig.device.target) * 0.01
        self.cos, self.sin = angles.cos().to(rig.dtype(form)), angles.sin().to(rig.dtype(form))

    @property
    def nbytes(self) -> int:
        """Weights [B]."""
        tensors = [*(t for layer in self.layers for t in layer), self.embedding, self.head, self.norm]
        return sum(int(t.nbytes) for t in tensors)

    def layer(self, x: Any, index: int, keys: Any, values: Any, length: int, attend: Attend) -> Any:
        """One layer: its new key and value go to place ``length - 1`` of the cache."""
        torch, s = self.rig.device.torch, self.shape
        functional = torch.nn.functional
        qkv, out, up, down, norm, norm2 = self.layers[index]
        batch = x.shape[0]
        both = functional.linear(functional.rms_norm(x, (s.hidden,), norm), qkv)
        both = both.view(batch, s.heads + 2 * s.kv_heads, 1, s.head_dim)
        turned = both[:, : s.heads + s.kv_heads]
        half = s.head_dim // 2
        turned = turned * self.cos + torch.cat((-turned[..., half:], turned[..., :half]), -1) * self.sin
        keys[:, :, length - 1 : length] = turned[:, s.heads :]
        values[:, :, length - 1 : length] = both[:, s.heads + s.kv_heads :]
        read = attend(turned[:, : s.heads].contiguous(), keys, values, length)
        x = x + functional.linear(read.reshape(batch, s.heads * s.head_dim), out)
        gate, value = functional.linear(functional.rms_norm(x, (s.hidden,), norm2), up).chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * value, down)

    def step(self, tokens: Any, cache: Cache, attend: Attend) -> Any:
        """The next token of each sequence, by the most likely; the cache already has room for it."""
        functional = self.rig.device.torch.nn.functional
        x = functional.embedding(tokens, self.embedding)
        for index, (keys, values) in enumerate(cache.layers):
            x = self.layer(x, index, keys, values, cache.length, attend)
        x = functional.rms_norm(x, (self.shape.hidden,), self.norm)
        return functional.linear(x, self.head).float().argmax(-1)


@dataclass(frozen=True, kw_only=True)
class LayerStep(Operator):
    """One decoder layer in one decode step; layers rotate, so that each finds its weights in memory."""

    model: Shape
    batch: int
    context: int
    name: ClassVar[str] = "decoder layer"

    @property
    def part(self) -> Part:
        return moves("layer-step", self.form, 0.0)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.model.layer_parts(self.form, self.batch, self.context)

    @property
    def shape(self) -> str:
        return f"{self.batch:,} x {self.context:,} tokens, hidden {self.model.hidden:,}"

    def prepare(self, rig: Rig) -> Prepared:
        model = _kept_model(rig, self.model, self.form)
        cache = Cache(self.model, rig, self.batch, self.form, self.context)
        x = rig.random(self.form, (self.batch, self.model.hidden))
        count, way = self.model.layers, rig.ways["decode"]
        attend = decoder(way, rig.device)

        def run(i: int) -> object:
            keys, values = cache.layers[i % count]
            return model.layer(x, i % count, keys, values, self.context, attend)

        return Prepared(run, count, way)


@dataclass(frozen=True, kw_only=True)
class DecodeLoop(Operator):
    """The small model decodes: every call is one step, and the cache grows by a token; it starts anew after ``steps``."""

    model: Shape
    batch: int
    context: int
    steps: int = 32
    captured: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return "decode loop, graph" if self.captured else "decode loop"

    @property
    def graph(self) -> bool:  # type: ignore[override]
        return self.captured

    @property
    def part(self) -> Part:
        return moves("decode-loop", self.form, 0.0)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.model.parts(self.form, self.batch, self.context + (0 if self.captured else self.steps // 2))

    @property
    def shape(self) -> str:
        size = f"hidden {self.model.hidden:,}, {self.model.layers} layers"
        return f"{self.batch:,} x {self.context:,} tokens, {size}"

    def prepare(self, rig: Rig) -> Prepared:
        model = _kept_model(rig, self.model, self.form)
        torch = rig.device.torch
        tokens = torch.zeros(self.batch, dtype=torch.long, device=rig.device.target)
        fresh: Callable[[], Cache] = lambda: Cache(self.model, rig, self.batch, self.form, self.context)  # noqa: E731
        state = {"cache": fresh()}
        way = rig.ways["decode" if self.captured else "growing"]
        attend = decoder(way, rig.device)

        def run(i: int) -> object:
            cache = state["cache"]
            if not self.captured:
                if cache.length - self.context >= self.steps:
                    cache.length = self.context  # what was written is overwritten
                cache.grow()
            tokens.copy_(model.step(tokens, cache, attend))
            return tokens

        return Prepared(run, 1, way)


_kept: list[tuple[int, Shape, str, Model]] = []


def _kept_model(rig: Rig, shape: Shape, form: str) -> Model:
    """The model of the last call, if it is the same on the same rig; making one takes longer than timing it."""
    for owner, had, of, model in _kept:
        if (owner, had, of) == (id(rig), shape, form):
            return model
    _kept.clear()
    _kept.append((id(rig), shape, form, Model(shape, rig, form)))
    return _kept[0][3]


def forget_models() -> None:
    """Let go of the kept model."""
    _kept.clear()
