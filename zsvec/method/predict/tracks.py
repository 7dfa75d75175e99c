"""The distribution of a track over the categories, from the evidence of its frames.

The frames of a track all show the same object, so they are not independent: if one frame misleads, the others mislead
too. The evidence is therefore averaged, not summed. More frames help, because clear ones are among them.

- A blurred frame looks new, and says little about the category. A frame counts by the probability that it is not new.
- The track belongs to no category with the geometric mean of the novelty of its frames: one clear frame that is not new
  counts more than many blurred ones.

`python scripts/tracks.py` measures the errors of the answers.
"""

from __future__ import annotations

import numpy as np

from zsvec.method.arrays import Doubles
from zsvec.method.predict.logits import softmax

_SMALLEST = 1e-6  # probability and novelty of a frame that seems to exclude something


def combined(probabilities: Doubles, novelty: Doubles) -> tuple[Doubles, float]:
    """Combines the frames of a track.

    Args:
        probabilities: float64 ``(n_frames, n_categories)``, 0 to 1: the distribution of each frame.
        novelty: float64 ``(n_frames,)``, 0 to 1; 0 without a calibration.

    Returns:
        The probability of each category, float64 ``(n_categories,)``, and the novelty of the track, 0 to 1. Together
        they sum to 1.
    """
    weights = 1 - novelty
    evidence = weights @ np.log(np.maximum(probabilities, _SMALLEST)) / max(1.0, weights.sum())
    together = float(np.exp(np.log(np.maximum(novelty, _SMALLEST)).mean())) if novelty.any() else 0.0
    return (1 - together) * softmax(evidence), together
