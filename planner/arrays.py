"""Types of numbers that formulas take, for annotations only: nothing here exists at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, TypeVar

    import numpy as np
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]
    Int = TypeVar("Int", int, IntArray)
    """A whole number or an array of them; a formula answers in kind."""
    Numbers = float | npt.NDArray[Any]
    """A number or an array of them."""
