"""The most that a run may buy and cost, and how it is kept to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zsvec.errors import InvalidInputError

ROUNDING = 1e-9
"""Dollars by which a sum of costs may exceed a budget."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a folder may contain of the categories of a run, and have cost for them, earlier runs included.

    Attributes:
        images: At most so many images; ``None``: as many as are planned.
        dollars: For answers and images, at most; ``None``: without a limit.
    """

    images: int | None = None
    dollars: float | None = None

    def __post_init__(self) -> None:
        for name, kind, wanted in (("images", int, "a whole number"), ("dollars", int | float, "a number")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, kind) and 0 <= value < math.inf):
                raise InvalidInputError(f"a budget of {name} must be {wanted} from 0 up. Got {value!r} instead")


class Purse:
    """Keeps a run to its budget in dollars. A request that has begun counts by its estimate until its cost is known.

    Args:
        limit: Dollars; ``None``: without a limit.
        spent: Dollars that earlier runs have cost.
    """

    def __init__(self, limit: float | None, spent: float) -> None:
        self._limit = limit
        self._left = math.inf if limit is None else limit - spent

    def reserve(self, estimate: float | None) -> bool:
        """Set money aside for a request, if there is enough."""
        if self._limit is None:
            return True
        if estimate is None or estimate > self._left + ROUNDING:
            return False
        self._left -= estimate
        return True

    def pay(self, estimate: float | None, cost: float | None) -> None:
        """Replace what was set aside by the cost."""
        self._left += (estimate or 0.0) - (cost or 0.0)
