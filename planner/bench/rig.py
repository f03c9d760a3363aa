"""What operators run on: the device, random data that they take operands from, and the ways of attention it has.

The data is one arena of normal random numbers for each format. Copy ``i`` of an operand is a slice of it, and slices rotate,
so that a repeated call finds nothing of the last ones in the cache, and no operator allocates its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from planner.bench.device import Device
from planner.errors import InputError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8_e4m3fn", "int8": "int8"}
_ALIGN = 4096
_OTHER = 2**29
"""Most data of a format that only weights are in [B]."""
_SEED_ELEMENTS = 2**20 + 4096
"""Random numbers that an arena repeats: of a length that no operand's rows are a multiple of."""


@dataclass
class Rig:
    """A device with its data.

    Attributes
    ----------
    main
        Format of activations, and of whatever has no format of its own.
    arena_bytes
        Data of one format [B].
    ways
        Ways of attention by what it is for, the fastest that reads each key and value once; see `attend`.
    """

    device: Device
    main: str
    arena_bytes: int
    ways: dict[str, str] = field(default_factory=dict)
    _arenas: dict[str, Any] = field(default_factory=dict)

    def dtype(self, form: str) -> Any:
        """torch's type of a format."""
        found = getattr(self.device.torch, DTYPES.get(form, ""), None)
        if found is None:
            raise InputError(f"this torch has no type for {form}; leave the format out")
        return found

    def operands(self, form: str, shape: Sequence[int], most: int = 512) -> list[Any]:
        """Copies of an operand: as many as are needed to exceed the last-level cache three times, but no more than fit.

        Raises
        ------
        MemoryError
            If not even one fits into the arena.
        """
        arena = self._arena(form)
        element = arena.element_size()
        nbytes = prod(shape) * element
        stride = -(-nbytes // _ALIGN) * _ALIGN
        room = (arena.numel() * element - nbytes) // stride + 1
        if nbytes > arena.numel() * element:
            raise MemoryError(f"{nbytes:,} B are more than the {self.arena_bytes:,} B set aside for data")
        wanted = -(-3 * self.cache_bytes // stride)
        copies = max(1, min(room, max(2, wanted), most))
        starts = [i * stride // element for i in range(copies)]
        return [arena[s : s + prod(shape)].view(*shape) for s in starts]

    @property
    def cache_bytes(self) -> int:
        """Last-level cache, or a guess that is on the safe side [B]."""
        return self.device.facts.cache_bytes or 64 * 2**20

    def random(self, form: str, shape: Sequence[int], scale: float = 1.0) -> Any:
        """Random numbers of their own memory, such as a model's weights."""
        size = prod(shape)
        source = self._arena(form if form in ("fp8", "int8") else self.main)
        if scale != 1.0 and form not in ("fp8", "int8"):
            source = source[: min(source.numel(), _SEED_ELEMENTS)] * scale
        out = self.device.torch.empty(size, dtype=self.dtype(form), device=self.device.target)
        for start in range(0, size, source.numel()):
            stop = min(size, start + source.numel())
            out[start:stop] = source[: stop - start].to(out.dtype)
        return out.view(*shape)

    def empty(self, form: str, shape: Sequence[int]) -> Any:
        """Room for a result."""
        return self.device.torch.empty(tuple(shape), dtype=self.dtype(form), device=self.device.target)

    def _arena(self, form: str) -> Any:
        """Data of one format; 16 and 32 bit share theirs, as two random bf16 in a row are a random fp32."""
        torch = self.device.torch
        owner = "bf16" if form == "fp32" else form
        if owner not in self._arenas:
            dtype = self.dtype(owner)
            element = dtype.itemsize
            whole = owner in ("bf16", self.main)
            total = (self.arena_bytes if whole else min(self.arena_bytes, _OTHER)) // element
            made = torch.Generator(device="cpu").manual_seed(0)
            some = torch.randn(min(total, _SEED_ELEMENTS), generator=made)
            seed = (some * 40).round().clamp(-127, 127).to(dtype) if form == "int8" else some.to(dtype)
            seed = seed.to(self.device.target)
            arena = torch.empty(total, dtype=dtype, device=self.device.target)
            raw, bits = arena.view(torch.uint8), seed.view(torch.uint8)
            for start in range(0, raw.numel(), bits.numel()):
                stop = min(raw.numel(), start + bits.numel())
                raw[start:stop] = bits[: stop - start]
            self._arenas[owner] = arena
        return self._arenas[owner].view(self.dtype(form))

    def free(self) -> None:
        """Let go of all data."""
        self._arenas.clear()
        self.device.empty_cache()
