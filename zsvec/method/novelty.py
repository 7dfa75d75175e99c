"""How far an image is from every category."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from zsvec.method.similarities import ExpertSimilarities, Found
from zsvec.types import encoder_and_modality

Doubles = NDArray[np.float64]


def novelty(evidence: Doubles, threshold: Doubles) -> Doubles:
    """From the evidence for the best category to novelty, 0 to 1; 0.5 at the threshold.

    Args:
        evidence: float64 ``(n_images,)``, nats: the largest of `fusion.log_linear`.
        threshold: float64 ``(n_images,)``, nats.
    """
    scaled: Doubles = expit(threshold - evidence)
    return scaled


def distances(found: Found) -> Doubles:
    """1 - the largest cosine of each image to a reference, float64 ``(n_images,)``, 0 to 2; 2 where none was found."""
    n_images = len(found.experts[0].similarities)
    out = [
        1 - max((expert.nearest[i][0].similarity for expert in found.experts if expert.nearest[i]), default=-1.0)
        for i in range(n_images)
    ]
    clipped: Doubles = np.clip(np.array(out), 0.0, 2.0)
    return clipped


def image_experts(found: Found) -> list[ExpertSimilarities]:
    """The experts that compare an image with images."""
    return [expert for expert in found.experts if encoder_and_modality(expert.name)[1] == "image"]
