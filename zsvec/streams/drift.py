"""Drift: how far the images of a stream have moved away from the references of the calibration.

Calibration computes the largest evidence of each reference image that it leaves out. Novelty uses the same evidence.
The rank of a new image is the fraction of left-out images that have less evidence. If new images resemble the
references, their ranks are distributed uniformly from 0 to 1. Blurred, dark or foreign images have low ranks. Drift
measures the excess of low ranks by the one-sided Kolmogorov-Smirnov distance. For each k from 1 to 20, k / 20 is
subtracted from the fraction of the last `WINDOW` images with a rank below k / 20. Drift is the largest difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

PARTS = 20
"""Number of equal intervals into which ranks are divided."""
WINDOW = 256
"""Number of last images from which drift is computed."""
FEWEST = 64
"""Minimum number of images for a value of drift."""
FAR = 0.3
"""A warning is logged when the drift of the last `WINDOW` images exceeds this value."""


class Drift:
    """The drift of one stream."""

    def __init__(self) -> None:
        self._last: deque[int] = deque()
        self._counts = [0] * PARTS
        self._warned = False

    def add(self, ranks: Iterable[float]) -> float | None:
        """Adds images by their ranks.

        Args:
            ranks: For each image, the fraction of left-out images with less evidence, 0 to 1; NaN if unknown.

        Returns:
            The drift, when the drift of `WINDOW` images exceeds `FAR` for the first time; otherwise ``None``.
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
        """Drift of the last `WINDOW` images with a known rank, 0 to 1; ``None`` for fewer than `FEWEST` images."""
        n = len(self._last)
        if n < FEWEST:
            return None
        below, most = 0, 0.0
        for k, count in enumerate(self._counts, start=1):
            below += count
            most = max(most, below / n - k / PARTS)
        return most
