"""What a run may cost: its limits in images and dollars, and how the limit in dollars is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zsvec.errors import InvalidInputError, shown

ROUNDING = 1e-9
"""Dollars by which a sum of costs may exceed a budget."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for the categories of a run in one folder, earlier runs included.

    Attributes:
        images: Largest number of images in the folder; ``None``: as many as are planned.
        dollars: Most dollars spent on answers and images; ``None``: no limit.
    """

    images: int | None = None
    dollars: float | None = None

    def __post_init__(self) -> None:
        for name, kind, wanted in (("images", int, "a whole number"), ("dollars", int | float, "a number")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, kind) and 0 <= value < math.inf):
                raise InvalidInputError(f"a budget of {name} must be {wanted} from 0 up. Got {shown(value)} instead")


class Purse:
    """Keeps a run within its budget in dollars. A request counts by its estimate until its cost is known.

    Args:
        limit: Dollars; ``None``: no limit.
        spent: Dollars that earlier runs have cost.
    """

    def __init__(self, limit: float | None, spent: float) -> None:
        self._limit = limit
        self._left = math.inf if limit is None else limit - spent

    def reserve(self, estimate: float | None) -> bool:
        """Set the estimated cost of a request aside. Returns False if too little is left."""
        if self._limit is None:
            return True
        if estimate is None or estimate > self._left + ROUNDING:
            return False
        self._left -= estimate
        return True

    def pay(self, estimate: float | None, cost: float | None) -> None:
        """Replace the reserved estimate by the cost."""
        self._left += (estimate or 0.0) - (cost or 0.0)
