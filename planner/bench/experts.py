"""Operators of several parts or several processes: a layer of routed experts, and an all-reduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planner.bench.operator import Operator, Prepared, amount, moves
from planner.bench.part import Part
from planner.bench.rig import Rig


@dataclass(frozen=True, kw_only=True)
class Experts(Operator):
    """A layer of routed experts: tokens are gathered by expert, each goes through gate, up and down, and are summed again.

    Tokens are dealt out evenly, as a trained router nearly does.
    """

    tokens: int
    experts: int
    top_k: int
    hidden: int
    width: int
    name: ClassVar[str] = "experts"

    @property
    def part(self) -> Part:
        shape = {"tokens": self.tokens, "experts": self.experts, "top_k": self.top_k, "hidden": self.hidden,
                 "width": self.width, "gated": 1, "ranks": 1, "skew": 0}  # fmt: skip
        return Part(
            kind="moe", form=self.form, runs_in=self.form, shape={name: float(size) for name, size in shape.items()}
        )

    @property
    def shape(self) -> str:
        return f"{self.tokens:,} tokens, {self.top_k} of {self.experts}, {self.hidden:,} x {self.width:,}"

    def prepare(self, rig: Rig) -> Prepared:
        torch = rig.device.torch
        functional = torch.nn.functional
        up = rig.operands(self.form, (self.experts, 2 * self.width, self.hidden))
        down = rig.operands(self.form, (self.experts, self.hidden, self.width))
        x = rig.random(self.form, (self.tokens, self.hidden))
        at, owners, sizes = self._routes()
        rows = torch.tensor(at, device=rig.device.target)
        ends = torch.tensor(sizes, device=rig.device.target, dtype=torch.int32).cumsum(0).to(torch.int32)
        copies = min(len(up), len(down))

        def loop(i: int) -> object:
            gathered, out = x[rows], torch.zeros_like(x)
            u, d = up[i % copies], down[i % copies]
            done = []
            for part, expert in zip(gathered.split([sizes[e] for e in owners]), owners, strict=True):
                gate, value = functional.linear(part, u[expert]).chunk(2, -1)
                done.append(functional.linear(functional.silu(gate) * value, d[expert]))
            return out.index_add_(0, rows, torch.cat(done))

        def grouped(i: int) -> object:
            gathered, out = x[rows], torch.zeros_like(x)
            both = torch._grouped_mm(gathered, up[i % copies].transpose(1, 2), offs=ends)
            gate, value = both.chunk(2, -1)
            ready = torch._grouped_mm(functional.silu(gate) * value, down[i % copies].transpose(1, 2), offs=ends)
            return out.index_add_(0, rows, ready)

        if rig.device.has_grouped_products and self.form == "bf16":
            try:
                grouped(0)
                rig.device.sync()
                return Prepared(grouped, copies, "grouped_mm")
            except (RuntimeError, AttributeError, NotImplementedError, TypeError, ValueError) as error:
                if rig.device.is_out_of_memory(error):
                    raise
        return Prepared(loop, copies, "one expert after another")

    def _routes(self) -> tuple[list[int], list[int], list[int]]:
        """Tokens in the order of their experts, the experts that have any, and how many each has."""
        by_expert: dict[int, list[int]] = {}
        for copy in range(self.tokens * self.top_k):
            by_expert.setdefault(copy % self.experts, []).append(copy // self.top_k)
        owners = sorted(by_expert)
        sizes = [len(by_expert.get(e, ())) for e in range(self.experts)]
        return [t for e in owners for t in by_expert[e]], owners, sizes


@dataclass(frozen=True, kw_only=True)
class AllReduce(Operator):
    """Sum so many bytes over the processes that torchrun started."""

    nbytes: int
    degree: int
    name: ClassVar[str] = "all-reduce"
    graph: ClassVar[bool] = False
    together: ClassVar[bool] = True

    @property
    def part(self) -> Part:
        return moves("all-reduce", self.form, 2 * (self.degree - 1) / self.degree * self.nbytes)

    @property
    def shape(self) -> str:
        return f"{amount(self.nbytes)} over {self.degree}"

    def prepare(self, rig: Rig) -> Prepared:
        import torch.distributed as distributed

        data = rig.random("fp32", (self.nbytes // 4,))
        return Prepared(lambda _: distributed.all_reduce(data), 1, str(distributed.get_backend()))
