"""Drift: how far the images of a stream have moved away from the references of the calibration.

Calibration computes the largest evidence of each left-out image, the basis of novelty. The evidence of a new image has
a rank among these values. Ranks of images like the references are uniform; blurred, dark or foreign images have low
ranks. So drift is the largest excess of low ranks: of the last images, the fraction with less evidence than k of 20
parts of the left-out images, minus k / 20 (the one-sided Kolmogorov-Smirnov distance).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

PARTS = 20
"""Equal parts of the left-out images, by evidence."""
WINDOW = 256
"""Last images that count."""
FEWEST = 64
"""Fewest images for a value of drift."""
FAR = 0.3
"""Drift of a whole window that triggers a warning."""


class Drift:
    """The drift of one stream."""

    def __init__(self) -> None:
        self._last: deque[int] = deque()
        self._counts = [0] * PARTS
        self._warned = False

    def add(self, ranks: Iterable[float]) -> float | None:
        """Adds images.

        Args:
            ranks: Fraction of the left-out images with less evidence, 0 to 1; NaN if unknown.

        Returns:
            The drift, when first above `FAR` for a whole window; else ``None``.
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
        """Drift of the last `WINDOW` images with a known rank, 0 to 1; ``None`` for fewer than `FEWEST`."""
        n = len(self._last)
        if n < FEWEST:
            return None
        below, most = 0, 0.0
        for k, count in enumerate(self._counts, start=1):
            below += count
            most = max(most, below / n - k / PARTS)
        return most
