"""Achieved fractions of peak, with where they come from and how far off they have been.

Three origins, best first: *measured* on the user's machine, *published* (fitted to kernel timings others measured) and
*generic* (typical of the architecture). This version ships the generic ones, in ``efficiencies/generic.toml``.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from planner.gpu import GpuSpec
from planner.roofline import Shares
from planner.row import Maybe, Positive, Row, Source, Text

Share = Annotated[float, Field(gt=0, le=1)]


class Efficiency(Row):
    """Achieved shares of peak for one architecture.

    Attributes
    ----------
    interval
        Factors on the expected time of a decode step between which 80 % of measurements are meant to lie.
    points
        Measurements behind the row; 0 for the default, which is a spread over architectures.
    held_out, coverage
        Decode measurements that the fit did not use, and the share of them that the interval held; 0 where nobody measured.
    caveat
        Kinds of them that it held fewer of.
    basis
        What was measured and how the row was fitted and checked.
    """

    name: Text
    memory: Share
    compute: Share
    link: Share
    launch_s: Annotated[float, Field(ge=0, lt=1)]
    interval: tuple[Positive, Positive]
    points: Maybe
    held_out: Maybe = 0
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.0
    caveat: str = ""
    basis: Text
    origin: Text = "generic"
    source: tuple[Source, ...] = Field(min_length=1)

    @property
    def shares(self) -> Shares:
        return Shares(self.memory, self.compute, self.link, self.launch_s)


def efficiency_of(gpu: GpuSpec) -> Efficiency:
    """The best efficiency known for a device: its architecture's generic row, or the default one."""
    rows = _generic()
    return rows.get(gpu.architecture, rows["default"])


@lru_cache(maxsize=1)
def _generic() -> dict[str, Efficiency]:
    text = (Path(__file__).parent / "efficiencies" / "generic.toml").read_text(encoding="utf-8")
    return {row["name"]: Efficiency(**row) for row in tomllib.loads(text)["architecture"]}
