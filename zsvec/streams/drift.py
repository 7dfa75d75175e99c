"""Whether the images of a stream have moved away from the references that a store was calibrated on.

The largest evidence of an image, which novelty is made of, has a rank among that of the images that calibration left
out. As long as images are like the references, all ranks are as frequent. Blurred, dark or foreign images have the low
ones. So drift is the largest excess of low ranks: of the last images, the fraction with less evidence than k of 20
parts of the left-out ones, minus k / 20 (the one-sided distance of Kolmogorov and Smirnov).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

PARTS = 20
"""Equal parts of the left-out images, by their evidence."""
WINDOW = 256
"""Images that are looked back on."""
FEWEST = 64
"""Images from which on drift is told."""
FAR = 0.3
"""Drift of a whole window that is warned of."""


class Drift:
    """The drift of one stream."""

    def __init__(self) -> None:
        self._last: deque[int] = deque()
        self._counts = [0] * PARTS
        self._warned = False

    def add(self, ranks: Iterable[float]) -> float | None:
        """Add images.

        Args:
            ranks: Fraction of the left-out images that have less evidence, 0 to 1; NaN where it is not known.

        Returns:
            The drift, where it is above `FAR` for a whole window, and was not before.
        """
        for rank in ranks:
            if 0 <= rank <= 1:
                self._last.append(min(int(rank * PARTS + 1e-6), PARTS - 1))
                self._counts[self._last[-1]] += 1
            if len(self._last) > WINDOW:
                self._counts[self._last.popleft()] -= 1
        drift = self.value
        if drift is None or drift <= FAR or self._warned or len(self._last) < WINDOW:
            return None
        self._warned = True
        return drift

    @property
    def value(self) -> float | None:
        """0 to 1 over the last `WINDOW` images whose rank is known; ``None`` for fewer than `FEWEST`."""
        n = len(self._last)
        if n < FEWEST:
            return None
        below, most = 0, 0.0
        for k, count in enumerate(self._counts, start=1):
            below += count
            most = max(most, below / n - k / PARTS)
        return most
