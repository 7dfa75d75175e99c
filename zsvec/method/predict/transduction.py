"""Transductive inference: similar images of a batch add to each other's evidence.

The inference of LaplacianShot (Ziko et al., "Laplacian regularized few-shot learning", ICML 2020): F is the evidence of
each image alone, and W a graph of the nearest neighbours within the batch. Starting from z = softmax(F), the update
z = softmax(F + λ W z) is repeated. Differences from LaplacianShot:

- A neighbour is weighted by its cosine after the mean of the batch is subtracted, because in a small batch even the
  nearest image may be unrelated.
- Copies of one picture do not support each other, and together support another image only once.
- The evidence is finally divided by one temperature for the batch (Guo et al., 2017), so that the mean confidence stays
  unchanged. Otherwise agreement of neighbours would count as certainty.

Unlike OTFusion (arXiv 2506.13723), the inference does not balance the categories: in a stream, frequencies differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, Floats, largest
from zsvec.method.predict.logits import softmax
from zsvec.method.quality.scenes import TWIN

NEIGHBORS = 5
WORTH = 1.5
"""λ: nats of evidence that `NEIGHBORS` neighbours add if all are certain of a category and have a cosine of 1."""
_ROUNDS = 10
_HALVINGS = 40  # bisection steps in the search for the temperature
_WIDEST = 7.0  # largest absolute value of the log temperature


def transduce(evidence: Doubles, vectors: Sequence[Floats], shares: Doubles) -> Doubles:
    """Returns the evidence of each image combined with the evidence of its neighbours in the batch.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats, from `opinion_pool.log_linear`.
        vectors: Vectors of the images from each encoder, float32 ``(n_images, dim)``, unit rows.
        shares: float64 ``(n_encoders,)``, `LogLinear.shares` of each image expert, nats, not negative. Each encoder's
            neighbours are weighted by the square of its share (a variance), so an encoder that tells categories apart
            badly counts little.

    Returns:
        float64 ``(n_images, n_categories)``, nats. If all images show one picture, the evidence is returned unchanged.
    """
    pictures = _pictures(vectors)
    n_pictures = int(pictures.max(initial=0)) + 1
    if n_pictures < 2:
        return evidence
    mean = np.equal.outer(np.arange(n_pictures), pictures).astype(np.float64)
    mean /= mean.sum(axis=1, keepdims=True)
    alone = softmax(evidence)
    seen = mean @ alone
    # The images of a frequent category together count as one image. Otherwise they would determine the centre.
    importance = (seen / np.maximum(seen.sum(axis=0), 1.0)).sum(axis=1)
    importance /= importance.sum()
    weights = np.square(shares) / max(float(np.square(shares).sum()), np.finfo(np.float64).tiny)
    graph = sum(w * _graph(mean @ view, importance) for w, view in zip(weights, vectors, strict=True))
    moved = evidence
    for _ in range(_ROUNDS):
        moved = evidence + WORTH * (graph @ (mean @ softmax(moved)))[pictures]
    return moved * _factor(moved, float(alone.max(axis=1).mean()))


def _pictures(vectors: Sequence[Floats]) -> NDArray[np.intp]:
    """Numbers the pictures, int ``(n_images,)``. Copies, and copies of copies, have the same number."""
    from scipy.sparse.csgraph import connected_components  # slow to import, and unused by other strategies

    same = np.logical_and.reduce([view @ view.T >= TWIN for view in vectors])
    _, pictures = connected_components(same, directed=False)
    numbers: NDArray[np.intp] = pictures.astype(np.intp)
    return numbers


def _graph(vectors: Doubles, importance: Doubles) -> Doubles:
    """Returns the weights of each picture's nearest neighbours: cosines of offsets from the weighted mean vector.

    Args:
        vectors: float64 ``(n_pictures, dim)``.
        importance: float64 ``(n_pictures,)``, weight of each picture in that mean; sums to 1.

    Returns:
        float64 ``(n_pictures, n_pictures)``; rows sum to at most 1.
    """
    offsets = vectors - importance @ vectors
    offsets /= np.maximum(np.linalg.norm(offsets, axis=1, keepdims=True), 1e-12)
    cosines = offsets @ offsets.T
    np.fill_diagonal(cosines, -1.0)
    nearest = largest(cosines, min(NEIGHBORS, len(vectors) - 1))
    graph = np.zeros_like(cosines)
    near = np.take_along_axis(cosines, nearest, axis=1)
    np.put_along_axis(graph, nearest, np.maximum(near, 0.0) / NEIGHBORS, axis=1)
    return graph


def _factor(evidence: Doubles, confidence: float) -> float:
    """Finds, by bisection, the factor of the evidence at which the mean confidence equals ``confidence``."""
    below = evidence - evidence.max(axis=1, keepdims=True)
    low, high = -_WIDEST, _WIDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (1 / np.exp(np.exp(middle) * below).sum(axis=1)).mean()
        low, high = (middle, high) if reached < confidence else (low, middle)
    return float(np.exp((low + high) / 2))
