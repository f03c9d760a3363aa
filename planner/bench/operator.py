"""Operators that know their work and how to run: movements of memory, products, experts, collectives.

`part` is the work, as data; `prepare` gives the call that is timed. See `attention_operators` and `layers` for the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from planner.bench.part import Part, inputs_of
from planner.bench.rig import Rig
from planner.bench.timing import Call


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operator that is ready to run.

    Attributes
    ----------
    call
        Runs it once.
    copies
        Copies of its operands.
    backend
        Which kernel runs, where there are several.
    """

    call: Call
    copies: int = 1
    backend: str = ""


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """One operator of one shape.

    Attributes
    ----------
    form
        Format of its weights or cache.
    held_out
        Whether its timing judges the fit instead of entering it.
    """

    form: str
    held_out: bool = False
    name: ClassVar[str] = ""
    graph: ClassVar[bool] = True
    together: ClassVar[bool] = False
    """Whether other processes take part in it."""

    @property
    @abstractmethod
    def part(self) -> Part:
        """Its work."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of."""
        return (self.part,)

    @property
    @abstractmethod
    def shape(self) -> str:
        """Its shape in words."""

    @abstractmethod
    def prepare(self, rig: Rig) -> Prepared:
        """Take operands and give the call."""


def moves(kind: str, form: str, nbytes: float, kernel: str = "", times: int = 1) -> Part:
    """The part of ``times`` calls that only move bytes."""
    return Part(kind=kind, form=form, runs_in=form, shape={"moved_bytes": float(nbytes)}, kernel=kernel, times=times)


def product(form: str, m: int, n: int, k: int) -> Part:
    """The part of ``m`` tokens times a weight of ``k`` by ``n``; one token is another kernel than several."""
    shape = {"m": float(m), "n": float(n), "k": float(k)}
    return Part(kind="gemm", form=form, runs_in=form, shape=shape, kernel="gemv" if m == 1 else "")


def amount(nbytes: float) -> str:
    """A size in words, for shapes."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:,.4g} {name}"
    return f"{nbytes:,.0f} B"


def width_of(form: str) -> int:
    """Bytes of one element of a format that torch has [B]."""
    return {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}[form]


@dataclass(frozen=True, kw_only=True)
class Read(Operator):
    """Sum up so many bytes: a stream of reads."""

    nbytes: int
    name: ClassVar[str] = "memory read"

    @property
    def part(self) -> Part:
        return moves("memory-read", self.form, self.nbytes)

    @property
    def shape(self) -> str:
        return amount(self.nbytes)

    def prepare(self, rig: Rig) -> Prepared:
        # fp32, because sums of narrower numbers convert, which CPUs are slow at
        data = rig.operands("fp32", (self.nbytes // 4,))
        return Prepared(lambda i: data[i % len(data)].sum(), len(data))


@dataclass(frozen=True, kw_only=True)
class Copy(Operator):
    """Copy so many bytes: each is read and written."""

    nbytes: int
    name: ClassVar[str] = "memory copy"

    @property
    def part(self) -> Part:
        return moves("memory-copy", self.form, 2 * self.nbytes)

    @property
    def shape(self) -> str:
        return amount(self.nbytes)

    def prepare(self, rig: Rig) -> Prepared:
        data = rig.operands("fp32", (self.nbytes // 4,))
        outs = [rig.empty("fp32", data[0].shape) for _ in range(2)]
        return Prepared(lambda i: outs[i % 2].copy_(data[i % len(data)]), len(data))


@dataclass(frozen=True, kw_only=True)
class Elementwise(Operator):
    """Add, norm, gate or pick the largest of rows of activations: ``add``, ``rms-norm``, ``silu`` or ``argmax``."""

    what: str
    rows: int
    width: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.what

    @property
    def part(self) -> Part:
        streams = {"add": 3, "argmax": 1}.get(self.what, 2)
        nbytes = streams * self.rows * self.width * width_of(self.form)
        return moves("element-wise", self.form, nbytes, self.what)

    @property
    def shape(self) -> str:
        return f"{self.rows:,} x {self.width:,}"

    def prepare(self, rig: Rig) -> Prepared:
        functional: Any = rig.device.torch.nn.functional
        data = rig.operands(self.form, (self.rows, self.width), 64)
        gain = rig.operands(self.form, (self.width,), 1)[0]

        def run(i: int) -> object:
            x = data[i % len(data)]
            if self.what == "add":
                return x + data[(i + 1) % len(data)]
            if self.what == "argmax":
                return x.float().argmax(-1)
            return functional.silu(x) if self.what == "silu" else functional.rms_norm(x, (self.width,), gain)

        return Prepared(run, len(data))


@dataclass(frozen=True, kw_only=True)
class Launch(Operator):
    """The emptiest call there is: one number added to another."""

    name: ClassVar[str] = "launch"

    @property
    def part(self) -> Part:
        return moves("launch", self.form, 3 * width_of(self.form))

    @property
    def shape(self) -> str:
        return "1 element"

    def prepare(self, rig: Rig) -> Prepared:
        one = rig.random(self.form, (1,))
        return Prepared(lambda _: one.add_(one))


@dataclass(frozen=True, kw_only=True)
class HostCopy(Operator):
    """Copy so many bytes from pinned host memory to the device, or back."""

    nbytes: int
    to_device: bool
    name: ClassVar[str] = "host copy"
    graph: ClassVar[bool] = False

    @property
    def part(self) -> Part:
        return moves("host-copy", self.form, self.nbytes)

    @property
    def shape(self) -> str:
        return f"{amount(self.nbytes)} {'to' if self.to_device else 'from'} the device"

    def prepare(self, rig: Rig) -> Prepared:
        torch = rig.device.torch
        host = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=rig.device.kind == "cuda")
        there = torch.empty(self.nbytes, dtype=torch.uint8, device=rig.device.target)
        target, source = (there, host) if self.to_device else (host, there)
        return Prepared(lambda _: target.copy_(source, non_blocking=True))


@dataclass(frozen=True, kw_only=True)
class Gemm(Operator):
    """``m`` tokens times a weight of ``k`` by ``n``; GEMV with one token."""

    m: int
    n: int
    k: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"GEMV {self.form}" if self.m == 1 else f"GEMM {self.form}"

    @property
    def part(self) -> Part:
        return product(self.form, self.m, self.n, self.k)

    @property
    def shape(self) -> str:
        return f"{self.m:,} x {self.k:,} x {self.n:,}"

    def prepare(self, rig: Rig) -> Prepared:
        torch = rig.device.torch
        weights = rig.operands(self.form, (self.n, self.k))
        inputs = rig.random(self.form, (self.m, self.k))
        copies = len(weights)
        if self.form == "int8":
            return Prepared(lambda i: torch._int_mm(inputs, weights[i % copies].t()), copies)
        if self.form == "fp8":
            one = torch.ones((), dtype=torch.float32, device=rig.device.target)
            out = torch.bfloat16

            def scaled(i: int) -> object:
                right = weights[i % copies].t()
                return torch._scaled_mm(
                    inputs, right, scale_a=one, scale_b=one, out_dtype=out, use_fast_accum=True
                )  # as serving engines do

            return Prepared(scaled, copies)
        linear = torch.nn.functional.linear
        return Prepared(lambda i: linear(inputs, weights[i % copies]), copies)


def is_supported(form: str, rig: Rig) -> bool:
    """Whether the device multiplies in a format, tried on a small product."""
    if form != "int8" and inputs_of(form) < 2 and rig.device.kind != "cuda":
        return False  # emulated on CPUs
    try:
        Gemm(form=form, m=32, n=256, k=256).prepare(rig).call(0)
        rig.device.sync()
    except Exception as error:
        if rig.device.is_out_of_memory(error):
            raise
        return False
    return True
