"""A call of an operator as data: its class, format and shape. Work and prediction follow from that alone.

What is measured and what is predicted are the same `Part`, so they cannot drift apart; a profile keeps parts, and predicts
again from them without torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from planner.calibrate.model import Machine, Work
from planner.calibrate.shapes import INPUT_BYTES, PLAIN, Tile, gemm, work
from planner.precision import find_format, find_kv
from planner.row import Flag, Row, Text

if TYPE_CHECKING:
    from planner.arrays import Numbers

Amount = Annotated[float, Field(ge=0, lt=1e18, allow_inf_nan=False)]

MOVES = ("memory-read", "memory-copy", "element-wise", "launch", "host-copy", "all-reduce")
"""Classes that only move bytes."""
WHOLE = ("layer-step", "decode-loop")
"""Classes that are made of others and are never fitted."""


class Part(Row):
    """One operator call, or ``times`` like ones.

    Attributes
    ----------
    kind
        A class of `calibrate.model`, or one of `MOVES`.
    form, runs_in
        Format of weights or cache, and of the products.
    shape
        Columns of the class: see `calibrate.shapes.work`; for those that only move bytes ``moved_bytes``.
    """

    kind: Text
    form: Text
    runs_in: Text
    shape: dict[str, Amount]
    kernel: str = ""
    """Which of several kernels of a class: ``add``, ``rms-norm``, ``silu``; they are fitted apart."""
    times: Annotated[int, Field(ge=1, le=10**9)] = 1

    def work(self, tile: Tile = PLAIN, whole: bool = False) -> Work:
        """Work of one call."""
        if self.kind in MOVES:
            moved = self.shape["moved_bytes"]
            return Work(0.0, moved, 0.0, 1.0, 0.0, self.shape.get("batch", 0.0))
        if self.kind == "gemm" and self.form == "fp32":  # activations are as wide as the weights
            m, n, k = (self.shape[name] for name in "mnk")
            half = gemm(m, n, k, 4.0, 4.0, tile)
            return replace(half, nbytes=half.nbytes + 2.0 * m * n)
        done = work(self.kind, self.shape, self.element_bytes, self.runs_in, tile, whole)
        return replace(done, side_bytes=0.0) if self.kind == "gemm" else done  # operands are there in the format

    @property
    def element_bytes(self) -> float:
        """Bytes of one weight, or of one cached element [B]."""
        cached = self.kind.endswith("attention") or self.kind.startswith("mla")
        return (find_kv(self.form).k if cached else find_format(self.form)).bytes_per_element

    @property
    def group(self) -> tuple[str, str, str]:
        """What is fitted together: class, format and kernel."""
        return self.kind, self.form, self.kernel


def inputs_of(runs_in: str) -> float:
    """Bytes of one input as multiplied [B]."""
    return 4.0 if runs_in == "fp32" else INPUT_BYTES.get(runs_in, 2.0)


class Peaks(Row):
    """What a device can do at most, and who says so.

    Attributes
    ----------
    bandwidth
        Memory bandwidth [B/s].
    flops
        Rate of products by format [FLOP/s].
    origin
        ``catalogue``, or ``measured`` where the device is not in it: the best that was seen.
    """

    bandwidth: Annotated[float, Field(gt=0, lt=1e16, allow_inf_nan=False)]
    flops: dict[str, Annotated[float, Field(gt=0, lt=1e19, allow_inf_nan=False)]]
    origin: Text
    units: Annotated[int, Field(ge=1)] = 1
    cache_bytes: Annotated[int, Field(ge=0)] = 0
    estimated: Flag = False

    def machine(self, runs_in: str) -> Machine:
        """The device as the law of `calibrate.model` takes it."""
        peak = self.flops.get(runs_in) or max(self.flops.values(), default=1e30)
        return Machine(self.bandwidth, peak, float(self.units), float(max(self.cache_bytes, 1)))

    def ideal_s(self, part: Part) -> Numbers:
        """The least time that one call can take: the slower of its bytes and its arithmetic at full peaks [s]."""
        done, machine = part.work(), self.machine(part.runs_in)
        return max(float(done.nbytes) / float(machine.bandwidth), float(done.flops) / float(machine.peak))
