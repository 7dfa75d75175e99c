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
    """How far images are from every category, without calibration; float64 ``(n_images,)``, 0 to 2.

    The distance (1 - cosine) to the nearest reference image, under the encoder that sees it farthest;
    to the nearest text where there are no images. Similarities, as a softmax forgets distance.
    """
    compared = image_experts(found) or found.experts
    out = [
        max((1 - expert.nearest[i][0].similarity for expert in compared if expert.nearest[i]), default=2.0)
        for i in range(len(found.experts[0].similarities))
    ]
    clipped: Doubles = np.clip(np.array(out), 0.0, 2.0)
    return clipped


def image_experts(found: Found) -> list[ExpertSimilarities]:
    """The experts that compare an image with images."""
    return [expert for expert in found.experts if encoder_and_modality(expert.name)[1] == "image"]
