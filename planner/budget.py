"""The memory of one GPU, line by line: what is usable, what an engine takes of it, what else it holds, what the cache gets.

    pool = fraction * (usable - lines before) - lines inside

Lines that are in neither are held in what the fraction leaves. All byte counts are exact integers of what the lines say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from planner.setup import Line

LINES: tuple[Line, ...] = get_args(Line)


@dataclass(frozen=True, slots=True)
class Budget:
    """One GPU's memory [B].

    Attributes
    ----------
    usable
        What a framework can address.
    fraction
        Share that the engine takes.
    weights, drafter, other, activations, graphs
        What is held beside the cache: weights of this rank, those of a drafter, driver context and communication, the peak
        of a forward pass, captured graphs.
    before, inside
        Which of these are taken off before the share is taken, and which must fit within it.
    asked
        Memory for the cache, where it was given instead of derived.
    """

    usable: int
    fraction: float
    weights: int
    drafter: int
    other: int
    activations: int
    graphs: int
    before: tuple[Line, ...]
    inside: tuple[Line, ...]
    asked: int | None = None

    def line(self, name: Line) -> int:
        """One line [B]."""
        return int(getattr(self, name))

    @property
    def limit(self) -> int:
        """What the engine may use, lines before it aside [B]."""
        return int((self.usable - sum(map(self.line, self.before))) * self.fraction)

    @property
    def room(self) -> int:
        """What is there for the cache [B]; negative if the rest does not fit. Asked for, it may fill the whole GPU."""
        if self.asked is not None:
            return self.usable - sum(map(self.line, LINES))
        return self.limit - sum(map(self.line, self.inside))

    @property
    def pool(self) -> int:
        """Memory for the cache [B]: as asked, but no more than there is."""
        return self.room if self.asked is None else min(self.asked, self.room)

    @property
    def left(self) -> int:
        """What the engine leaves, lines before its share aside [B]."""
        return self.usable - sum(map(self.line, self.before)) - self.limit

    @property
    def outside(self) -> int:
        """What is held in the share that the engine leaves [B]."""
        return sum(self.line(name) for name in LINES if name not in self.before + self.inside)
