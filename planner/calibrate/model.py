"""The law that gives the time of one kernel call, and the parameters of it that the package ships.

    t = launch + serial * depth + item * items + side bytes / (side * BW)
        + (memory^p + compute^p)^(1/p),                                    and no less than the host's launch time
    memory  = bytes * (1 - hit) / (e_mem * BW) * (1 + ramp_bytes / bytes)^ramp
    compute = issued FLOP * (waves * SMs / blocks)^wave / (e_comp * peak)

A soft roofline (Williams, Waterman and Patterson 2009, CACM 52(4)): p = 1 adds memory and compute time, a large p takes the
larger. What is added to it are costs that timings show and hardware explains; a kernel that has no use for one leaves it
at 0.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from planner.errors import CardError, unknown_name
from planner.row import Count, Flag, Maybe, Row, Source, Text, one_line

if TYPE_CHECKING:
    from planner.arrays import Numbers

Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
Class = Literal[
    "gemm", "decode-attention", "prefill-attention", "mla-decode", "mla-prefill", "moe", "state-decode", "state-prefill",
    "conv-decode", "conv-prefill", "element-wise",
]  # fmt: skip
Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]


@dataclass(frozen=True, slots=True)
class Work:
    """What one kernel call does, as scalars or arrays that broadcast.

    Attributes
    ----------
    flops, nbytes
        Useful arithmetic [FLOP] and traffic with memory [B].
    issued
        Arithmetic with tiles filled up [FLOP].
    blocks
        Tiles or other pieces that processors work on side by side.
    depth
        Steps that one piece takes one after another: the inner dimension of a product, tokens of a context.
    items
        Small pieces with a cost of their own: heads of sequences, experts.
    side_bytes
        Traffic of what comes before or after, such as quantising the input [B].
    """

    flops: Numbers
    nbytes: Numbers
    issued: Numbers
    blocks: Numbers = 1.0
    depth: Numbers = 0.0
    items: Numbers = 0.0
    side_bytes: Numbers = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the law needs of a device: bandwidth [B/s], dense peak of the format [FLOP/s], SMs, last-level cache [B]."""

    bandwidth: Numbers
    peak: Numbers
    sms: Numbers
    cache_bytes: Numbers = 0.0


class Kernel(Row):
    """Parameters of the law for one kernel.

    Attributes
    ----------
    launch_s
        Time of the emptiest call [s].
    memory, compute
        Share of memory bandwidth and of the dense peak that large calls reach.
    p
        How hard the bend of the roofline is.
    ramp_bytes, ramp
        Below so many bytes memory is used less well: a transfer must fill bandwidth times latency [B, exponent].
    wave
        How far the last, partly filled wave of blocks costs a whole one: 0 not at all (split or streamed), 1 fully.
    serial_s
        Time of one step of depth, which no other processor can shorten [s].
    item_s
        Time of one item, the device's parallelism included [s].
    side
        Share of bandwidth that the side traffic runs at; above 1 where a cache serves it.
    cached, cache_reach
        Share of the traffic that repeated timing finds in the last-level cache, for calls much smaller than
        ``cache_reach`` times that cache. A model's weights and caches do not stay there between layers: `time` leaves it
        out unless told otherwise.
    host_s
        Time the host takes to launch eagerly, behind which shorter kernels hide [s]; left out in the same way.
    tile_m, tile_n, tile_min
        Tiles: rows at most and at least, and columns.
    whole
        Whether the kernel goes through what it could skip: tokens beyond the window, or copies for other ranks' experts.
    """

    launch_s: Seconds = 0.0
    memory: Share = 1.0
    compute: Share = 1.0
    p: Annotated[float, Field(ge=1, le=64)] = 8.0
    ramp_bytes: NonNegative = 0.0
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.0
    wave: Annotated[float, Field(ge=0, le=1)] = 0.0
    serial_s: Seconds = 0.0
    item_s: Seconds = 0.0
    side: Annotated[float, Field(gt=0, le=16)] = 1.0
    cached: Annotated[float, Field(ge=0, le=1)] = 0.0
    cache_reach: Annotated[float, Field(gt=0, le=4)] = 1.0
    host_s: Seconds = 0.0
    tile_m: Count = 1
    tile_n: Count = 1
    tile_min: Count = 1
    whole: Flag = False

    @property
    def tile(self) -> tuple[int, int, int]:
        """Rows at most, columns, rows at least."""
        return self.tile_m, self.tile_n, self.tile_min

    def time(self, work: Work, machine: Machine, *, warm: bool = False, eager: bool = False) -> Numbers:
        """Time of one call [s].

        Parameters
        ----------
        warm
            Whether operands may lie in the cache, as in a benchmark that repeats one call.
        eager
            Whether the host launches each kernel, rather than a captured graph.

        >>> ideal = Kernel(p=64)
        >>> round(float(ideal.time(Work(1e12, 1e9, 1e12), Machine(1e12, 1e15, 100))) * 1e3, 2)
        1.01
        """
        return law(self, work, machine, warm, eager)


def law(k: Kernel, work: Work, machine: Machine, warm: bool, eager: bool) -> Numbers:
    """The law itself; ``k`` is anything with a kernel's attributes, so that a fit need not build checked rows."""
    memory = work.nbytes / (k.memory * machine.bandwidth)
    if k.ramp:
        memory = memory * (1.0 + k.ramp_bytes / np.maximum(work.nbytes, 1.0)) ** k.ramp
    if warm and k.cached:
        memory = memory * (
            1.0 - k.cached * np.maximum(0.0, 1.0 - (work.nbytes / (k.cache_reach * machine.cache_bytes)) ** 6)
        )
    compute = work.issued / (k.compute * machine.peak)
    if k.wave:
        compute = compute * (np.ceil(work.blocks / machine.sms) * machine.sms / np.maximum(work.blocks, 1.0)) ** k.wave
    seconds = k.launch_s + soft_max(memory, compute, k.p)
    if k.serial_s:
        seconds = seconds + k.serial_s * work.depth
    if k.item_s:
        seconds = seconds + k.item_s * work.items
    if not isinstance(work.side_bytes, float) or work.side_bytes:
        seconds = seconds + work.side_bytes / (k.side * machine.bandwidth)
    return np.maximum(seconds, k.host_s) if eager and k.host_s else seconds


def soft_max(a: Numbers, b: Numbers, p: float) -> Numbers:
    """``(a^p + b^p)^(1/p)``, in a form that neither overflows nor loses what is small.

    >>> float(soft_max(3.0, 4.0, 2.0)), float(soft_max(0.0, 0.0, 2.0))
    (5.0, 0.0)
    """
    large = np.maximum(a, b)
    ratio = np.minimum(a, b) / np.maximum(large, 1e-300)
    answer: Numbers = large * (1.0 + ratio**p) ** (1.0 / p)
    return answer


class Link(Row):
    """Parameters of one collective among ``degree`` devices: the faster of two ways.

        one step  = first_s + (n - 1) * message / (first * link)        every device sends all it has to every other
        ring      = latency_s + sent / (share * link) * (1 + ramp_bytes / sent)^ramp

    A ring sends ``2 (n - 1) / n`` of an all-reduce's message from each device and ``(n - 1) / n`` of the others' (Patarasuk
    and Yuan 2009, JPDC 69(2), section 3).

    Attributes
    ----------
    latency_s, first_s
        Time of the smallest message, by the ring and in one step [s].
    share, first
        Share of one device's bandwidth out that each way reaches.
    ramp_bytes, ramp
        As for a kernel's memory.
    """

    latency_s: Seconds = 0.0
    share: Share = 1.0
    ramp_bytes: NonNegative = 0.0
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.0
    first_s: Seconds = 0.0
    first: Share = 1.0

    def time(self, kind: str, message: Numbers, degree: Numbers, link_bandwidth: Numbers) -> Numbers:
        """Time of one call [s]: message whole, that is before it is scattered or after it is gathered [B]."""
        return link_law(self, sent_bytes(kind, message, degree), (degree - 1) * message, link_bandwidth)


def link_law(k: Link, sent: Numbers, broadcast: Numbers, bandwidth: Numbers) -> Numbers:
    """The faster of the two ways [s]; ``k`` is anything with a link's attributes."""
    ring = k.latency_s + sent / (k.share * bandwidth) * (1.0 + k.ramp_bytes / np.maximum(sent, 1.0)) ** k.ramp
    if not k.first_s:
        return ring
    return np.minimum(ring, k.first_s + broadcast / (k.first * bandwidth))


def sent_bytes(kind: str, message: Numbers, degree: Numbers) -> Numbers:
    """What each device sends for a message by a ring [B].

    >>> sent_bytes("all-reduce", 8.0, 4), sent_bytes("all-gather", 8.0, 4)
    (12.0, 6.0)
    """
    rounds = 2 if kind == "all-reduce" else 1
    return rounds * message * (degree - 1) / degree


class Fitted(Row):
    """How well parameters did on timings that they were not fitted to.

    Attributes
    ----------
    points, held_out
        Timings fitted to, and not.
    mean_error, median_error
        Of ``|predicted / measured - 1|`` over those held out.
    interval
        Factors on the prediction between which 80 % of the measured ones lay.
    """

    engine: Text = "any"
    """Whose kernels: vllm, sglang, trtllm, nccl; ``any`` for all of them together."""
    kernel: str = ""
    """Which of the engine's kernels, by the engine's name for it; empty for all that it has."""
    points: Maybe
    held_out: Maybe
    mean_error: NonNegative
    median_error: NonNegative
    interval: tuple[NonNegative, NonNegative]
    note: str = ""


class KernelRow(Kernel, Fitted):
    """A kernel that was fitted: of this class, with weights or cache in this format and products in that one."""

    kind: Class
    format: Text
    runs_in: Text
    windowed: Flag = False
    """Whether the attention has a sliding window; engines often have other kernels for it."""
    long_error: NonNegative | None = None
    """Mean error over calls of more than 50 us."""


class LinkRow(Link, Fitted):
    """A collective that was fitted."""

    kind: Collective
    degree: Count


class KernelFile(Row):
    """Kernels of one device, or of an architecture."""

    device: str = ""
    architecture: Text
    origin: Literal["measured", "published", "generic"]
    sms: Count
    """Streaming multiprocessors, or what else works on one block."""
    cache_mb: NonNegative = 0.0
    """Last-level cache [MB]."""
    date: Text
    source: tuple[Source, ...] = Field(min_length=1)
    kernel: tuple[KernelRow, ...] = ()
    link: tuple[LinkRow, ...] = ()

    def find(
        self, kind: str, form: str, runs_in: str = "", engine: str = "any", *, windowed: bool = False, kernel: str = ""
    ) -> KernelRow | None:
        """The best row for a kernel: the engine's own, else all engines', else any one's; the kernel with most timings.

        ``None`` if the format has none. A windowed row is preferred for a window, and another serves where there is none.
        """
        rows = [k for k in self.kernel if k.kind == kind and k.format == form and runs_in in ("", k.runs_in)]
        rows = [k for k in rows if kernel in ("", k.kernel)]

        def rank(k: KernelRow) -> tuple[int, bool, int]:
            whose = 2 if k.engine == engine else k.engine == "any"
            return whose, k.windowed == windowed, k.points

        return max(rows, key=rank, default=None)

    def find_link(self, kind: str, degree: int, engine: str = "any") -> LinkRow | None:
        """The row of a collective whose degree is nearest, the larger of two; the engine's, all engines', or NCCL's."""
        rows = [k for k in self.link if k.kind == kind]
        for name in (engine, "any", "nccl"):
            if found := [k for k in rows if k.engine == name]:
                return min(found, key=lambda k: (abs(np.log(k.degree / degree)), -k.degree))
        return None


_FOLDER = Path(__file__).parent.parent / "efficiencies"
_OTHERS = ("generic", "generic-kernels", "serving")
"""Files of that folder that are not of one device."""


class GenericFile(Row):
    """Kernels of architectures, for devices that nobody timed."""

    family: tuple[KernelFile, ...]


@lru_cache(maxsize=64)
def load_kernels(device: str) -> KernelFile:
    """Published kernels of one device of the catalogue, by its id.

    Raises
    ------
    UnknownNameError
        If none are shipped; `generic_kernels` has typical ones.
    CardError
        If the file contradicts itself.
    """
    path = _FOLDER / f"{device}.toml"
    if device not in shipped():
        raise unknown_name("device with kernel timings", device, shipped(), "generic kernels serve the others")
    return read_kernels(path)


def shipped() -> list[str]:
    """Ids of devices with published kernels."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml") if p.stem not in _OTHERS)


@lru_cache(maxsize=1)
def _generic() -> dict[str, KernelFile]:
    text = (_FOLDER / "generic-kernels.toml").read_text(encoding="utf-8")
    return {f.architecture: f for f in GenericFile(**tomllib.loads(text)).family}


def generic_kernels(architecture: str) -> KernelFile:
    """Typical kernels of an architecture, or of all of them for one that nobody timed."""
    files = _generic()
    return files.get(architecture, files["default"])


def read_kernels(path: Path) -> KernelFile:
    """Kernels of a file.

    Raises
    ------
    CardError
        If it cannot be read or contradicts itself.
    """
    try:
        return KernelFile(**tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CardError(f"cannot read {path}: {error.strerror}; name a file of kernel parameters") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise CardError(f"{path} is not a file of kernel parameters: {error}; 'kvplan calibrate' writes one") from None
    except ValidationError as error:
        raise CardError(f"{path}: {one_line(error)}; put it right or calibrate again") from None
