"""Usage: what a device was measured to reach of its peaks, in the few numbers that plans use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from planner.row import Maybe, Row

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]


class Usage(Row):
    """Achieved shares of a device's peaks, fitted on the machine itself by ``kvplan bench``.

    Attributes
    ----------
    memory, cache
        Shares of bandwidth at which weights, and keys and values, stream.
    compute, compute8, grouped
        Shares of the dense peak that 16-bit and 8-bit products reach, and share of these of products of routed experts.
    launch_s
        Time that every call costs at least [s].
    interval
        Factors on the expected time of a decode step between which, with 80 %, the next decode loop's time lies.
    points, held_out
        Timings fitted to, and decode loops that the interval is of.
    date, software, file
        When it was measured, with which versions, and the profile that it was read from; empty where that is not known.
    """

    memory: Share
    cache: Share
    compute: Share
    compute8: Share
    grouped: Share = 1.0
    launch_s: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    interval: tuple[Factor, Factor]
    points: Maybe
    held_out: Maybe
    basis: str
    date: str = ""
    software: str = ""
    file: str = ""

    @model_validator(mode="after")
    def _check(self) -> Usage:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval {self.interval[0]:g} to {self.interval[1]:g} ends before it starts")
        return self

    def against(self, bandwidth: float, compute: float) -> Usage:
        """The same rates as shares of other peaks, given as the peaks of before over those of now.

        >>> row = Usage(memory=0.8, cache=0.6, compute=0.5, compute8=0.5, launch_s=0.0, interval=(0.9, 1.1), points=9,
        ...             held_out=3, basis="measured")
        >>> row.against(0.5, 1.0).memory
        0.4
        """
        scales = {"memory": bandwidth, "cache": bandwidth, "compute": compute, "compute8": compute}
        return self.model_copy(update={name: min(1.0, getattr(self, name) * by) for name, by in scales.items()})
