"""Transductive inference: similar images of a batch or set add to each other's evidence.

The inference of LaplacianShot (Ziko et al., "Laplacian regularized few-shot learning", ICML 2020): F is the evidence of
each image alone, and W a graph of the nearest neighbours within the set. Starting from z = softmax(F), the update
z = softmax(F + λ W z) is repeated. Differences from LaplacianShot:

- A neighbour is weighted by its cosine after the mean of the set is subtracted, because in a small set even the nearest
  image may be unrelated.
- Copies of one picture do not support each other, and together support another image only once.
- The evidence is finally divided by one temperature for the set (Guo et al., 2017), so that the mean confidence stays
  unchanged. Otherwise agreement of neighbours would count as certainty.

Unlike OTFusion (arXiv 2506.13723), the inference does not balance the categories: in a stream, frequencies differ.

Cosines are computed in blocks of images, so the memory grows with the number of images, and the time with its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, Floats, largest, product, slices
from zsvec.method.predict.logits import softmax
from zsvec.method.quality.scenes import TWIN

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NEIGHBORS = 5
WORTH = 1.5
"""λ in a batch: nats that `NEIGHBORS` neighbours add if all are certain of a category and have a cosine of 1."""
_ROUNDS = 10
_HALVINGS = 40  # bisection steps in the search for the temperature
_WIDEST = 7.0  # largest absolute value of the log temperature
_BLOCK = 256  # images that are compared with all images at once


def transduce(evidence: Doubles, vectors: Sequence[Floats], shares: Doubles, worth: float = WORTH) -> Doubles:
    """Returns the evidence of each image combined with the evidence of its neighbours in the set.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats, from `opinion_pool.log_linear`.
        vectors: Vectors of the images from each encoder, float32 ``(n_images, dim)``, unit rows.
        shares: float64 ``(n_encoders,)``, `LogLinear.shares` of each image expert, nats, not negative. Each encoder's
            neighbours are weighted by the square of its share (a variance), so an encoder that tells categories apart
            badly counts little.
        worth: λ, nats.

    Returns:
        float64 ``(n_images, n_categories)``, nats. If all images show one picture, the evidence is returned unchanged.
    """
    from scipy.sparse import csr_array  # slow to import, and unused by other strategies

    pictures = _pictures(vectors)
    n_pictures = int(pictures.max(initial=0)) + 1
    if n_pictures < 2:
        return evidence
    copies = 1 / np.bincount(pictures)[pictures]
    mean = csr_array((copies, (pictures, np.arange(len(pictures)))), shape=(n_pictures, len(pictures)))
    alone = softmax(evidence)
    seen = mean @ alone
    # The images of a frequent category together count as one image. Otherwise they would determine the centre.
    importance = (seen / np.maximum(seen.sum(axis=0), 1.0)).sum(axis=1)
    importance /= importance.sum()
    weights = np.square(shares) / max(float(np.square(shares).sum()), np.finfo(np.float64).tiny)
    graph = sum(w * _graph(_means(mean, view), importance) for w, view in zip(weights, vectors, strict=True))
    moved = evidence
    for _ in range(_ROUNDS):
        moved = evidence + worth * (graph @ (mean @ softmax(moved)))[pictures]
    return moved * _factor(moved, float(alone.max(axis=1).mean()))


def _pictures(vectors: Sequence[Floats]) -> NDArray[np.intp]:
    """Numbers the pictures, int ``(n_images,)``. Copies, and copies of copies, have the same number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_images = len(vectors[0])
    pictures = np.arange(n_images)
    for rows in slices(n_images, _BLOCK):
        same = np.logical_and.reduce([product(view[rows], view[: rows.stop]) >= TWIN for view in vectors])
        image, copy = same.nonzero()
        links = (pictures[rows][image], pictures[copy])
        joined = coo_array((np.ones(len(image), dtype=np.bool_), links), shape=(n_images, n_images))
        _, numbers = connected_components(joined, directed=False)
        pictures = numbers[pictures].astype(np.intp)
    _, pictures = np.unique(pictures, return_inverse=True)
    return pictures


def _means(mean: csr_array, vectors: Floats) -> Doubles:
    """Returns the mean vector of each picture's images, float64 ``(n_pictures, dim)``."""
    out = np.empty((mean.shape[0], vectors.shape[1]))
    for columns in slices(vectors.shape[1], _BLOCK):  # each product converts its columns to float64
        out[:, columns] = mean @ vectors[:, columns]
    return out


def _graph(vectors: Doubles, importance: Doubles) -> csr_array:
    """Returns the weights of each picture's nearest neighbours: cosines of offsets from the weighted mean vector.

    Args:
        vectors: float64 ``(n_pictures, dim)``; overwritten.
        importance: float64 ``(n_pictures,)``, weight of each picture in that mean; sums to 1.

    Returns:
        float64 ``(n_pictures, n_pictures)``, with at most `NEIGHBORS` numbers in a row; rows sum to at most 1.
    """
    from scipy.sparse import csr_array

    offsets = vectors
    offsets -= importance @ vectors
    offsets /= np.maximum(np.sqrt(np.einsum("nd,nd->n", offsets, offsets)), 1e-12)[:, None]
    n_pictures, k = len(offsets), min(NEIGHBORS, len(offsets) - 1)
    nearest, near = np.empty((n_pictures, k), dtype=np.intp), np.empty((n_pictures, k))
    for rows in slices(n_pictures, _BLOCK):
        cosines = offsets[rows] @ offsets.T
        cosines[np.arange(len(cosines)), np.arange(n_pictures)[rows]] = -1.0
        nearest[rows] = largest(cosines, k)
        near[rows] = np.take_along_axis(cosines, nearest[rows], axis=1)
    starts = np.arange(0, n_pictures * k + 1, k)
    return csr_array((np.maximum(near, 0.0).ravel() / NEIGHBORS, nearest.ravel(), starts), shape=(n_pictures,) * 2)


def _factor(evidence: Doubles, confidence: float) -> float:
    """Finds, by bisection, the factor of the evidence at which the mean confidence equals ``confidence``."""
    below = evidence - evidence.max(axis=1, keepdims=True)
    low, high = -_WIDEST, _WIDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (1 / np.exp(np.exp(middle) * below).sum(axis=1)).mean()
        low, high = (middle, high) if reached < confidence else (low, middle)
    return float(np.exp((low + high) / 2))
