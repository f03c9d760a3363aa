"""GpuSpec: capacity, bandwidth, dense peaks by format and links of one device, every fact with its source.

Files hold datasheet units (GB, TFLOP/s); properties give bytes, bytes per second and FLOP per second. Peaks are dense:
NVIDIA's datasheets since Ampere headline the rate with 2:4 sparsity, twice the dense one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, Field, model_validator

from planner.precision import compute_rate
from planner.row import Count, Positive, Row, Source, Text
from planner.units import GIB
from planner.usage import Usage

PeakFormat = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]


class Rates(dict[Any, float]):
    """A mapping that cannot be changed: what one plan loads is what the next one finds."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("the rates of a device cannot be changed; give a GPU file of your own")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type[Rates], tuple[dict[Any, float]]]:
        return Rates, (dict(self),)


class Memory(Row):
    """Device memory. What is sold and what the driver reports are two facts."""

    nominal_gb: Positive
    """Capacity as marketed [GB]."""
    usable_gib: Positive | None = None
    """Total that the driver or framework reports, as it rounds it [GiB]; absent where nobody's report was found."""
    usable_bytes: Count | None = None
    """The same where it was reported to the byte [B]."""
    type: Text
    bandwidth_gb_per_s: Positive
    """Peak read bandwidth [GB/s], GB = 10**9."""
    cache_mb: Positive | None = None
    """Last-level cache [MB]."""


class Link(Row):
    """How devices of one node reach each other."""

    kind: Text
    gb_per_s: Positive | None = None
    """Bandwidth out of one device, one direction [GB/s]; absent where unknown."""
    devices: Count
    """Devices that are linked this way: the most that tensor parallelism spans by default."""


class Rival(Row):
    """A value that another source gives for a fact; the file keeps the vendor's."""

    fact: Text
    value: Positive
    source: Text


class GpuSpec(Row):
    """One accelerator of the catalogue."""

    id: Text
    name: Text
    vendor: Text
    architecture: Text
    year: int = Field(ge=2000, le=2100)
    aliases: tuple[Text, ...] = ()
    memory: Memory
    peak_tflops: Annotated[dict[PeakFormat, Positive], AfterValidator(Rates)] = Field(default_factory=Rates)
    """Dense peak by format [TFLOP/s, TOP/s for integers]; a format that is not here is unknown or unsupported."""
    link: Link
    tdp_w: Positive | None = None
    compute_capability: str = ""
    source: tuple[Source, ...] = Field(min_length=1)
    rival: tuple[Rival, ...] = ()
    note: str = ""
    measured: Usage | None = None
    """What ``kvplan bench`` found that it reaches; the catalogue's own files have none."""

    @model_validator(mode="after")
    def _check(self) -> GpuSpec:
        # Driver reports exceed the marketed figure where GB stands for GiB, by at most the ratio of the two.
        if self.memory.usable_gib is not None and self.memory.usable_bytes is not None:
            raise ValueError("memory has usable_gib and usable_bytes; keep one")
        if self.usable_known and self.usable_bytes > self.memory.nominal_gb * 1.02 * GIB:
            raise ValueError(f"memory.usable is {self.usable_bytes / GIB:.2f} GiB, more than the device has")
        return self

    @property
    def usable_known(self) -> bool:
        """Whether somebody's driver report of the memory is known."""
        return self.memory.usable_gib is not None or self.memory.usable_bytes is not None

    @property
    def usable_bytes(self) -> int:
        """What a framework can address [B]: as reported, or the marketed capacity in decimal GB."""
        if self.memory.usable_bytes is not None:
            return self.memory.usable_bytes
        if self.memory.usable_gib is not None:
            return int(self.memory.usable_gib * GIB)
        return int(self.memory.nominal_gb * 10**9)

    def with_memory(self, nbytes: int) -> GpuSpec:
        """The same device with another total of memory, as some driver reports it [B]."""
        memory = self.memory.model_copy(update={"usable_gib": None, "usable_bytes": nbytes})
        return self.model_copy(update={"memory": memory})

    @property
    def bandwidth_bytes_per_s(self) -> float:
        return self.memory.bandwidth_gb_per_s * 1e9

    @cached_property
    def peaks(self) -> Mapping[str, float]:
        """Dense peak by format [FLOP/s]."""
        return Rates({name: tflops * 1e12 for name, tflops in self.peak_tflops.items()})

    @property
    def link_bytes_per_s(self) -> float | None:
        """Bandwidth out of one device, one direction [B/s]."""
        return self.link.gb_per_s * 1e9 if self.link.gb_per_s is not None else None

    def compute_rate(self, compute: tuple[str, ...]) -> tuple[str, float] | None:
        """Format of a chain (`Format.compute`) that products are fastest in, with its peak [FLOP/s]; ``None`` if unknown."""
        if compute not in self._fastest:
            self._fastest[compute] = compute_rate(compute, self.peaks)
        return self._fastest[compute]

    @cached_property
    def _fastest(self) -> dict[tuple[str, ...], tuple[str, float] | None]:
        return {}
