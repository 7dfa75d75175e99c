"""The images of a batch help each other: each counts as a soft reference of the categories it seems to be of.

After the transductive fusions of Zanella & Ben Ayed (TransCLIP, 2024) and OTFusion (arXiv 2506.13723), which
alternate the assignment of a batch and the prototypes that follow from it. Unlike OTFusion's, the assignment
has no balanced plan, for the categories of a stream are not balanced; no image vouches for itself or a copy; and the
images of a batch weigh at most `ANCHOR` times the references of a category, so that it cannot drift away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from zsvec.method.fusion import softmax
from zsvec.method.leave_one_out import TWIN

Doubles = NDArray[np.float64]

ANCHOR = 2.0
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Prototypes:
    """What one expert knows of a batch and of the mean references of its categories.

    Attributes:
        coefficient: Nats of evidence per unit of cosine to a prototype.
        categories: int ``(n_known,)``, as columns of the evidence.
        counts: int ``(n_known,)``, references of each.
        means: float32 ``(n_images, n_known)``, mean cosine to the references of each category.
        norms: float32 ``(n_known,)``, length of the mean reference.
        gram: float32 ``(n_images, n_images)``, cosines within the batch.
    """

    coefficient: float
    categories: NDArray[np.intp]
    counts: NDArray[np.intp]
    means: NDArray[np.float32]
    norms: NDArray[np.float32]
    gram: NDArray[np.float32]


def transduce(evidence: Doubles, experts: Sequence[Prototypes]) -> Doubles:
    """Evidence with the prototypes moved towards the images of the batch.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats, of `fusion.log_linear`.
        experts: Those that compare images with images.

    Returns:
        float64 ``(n_images, n_categories)``, nats. A batch of one image is left as it is.
    """
    copies = [_copies(expert.gram) for expert in experts]
    moved = evidence
    for _ in range(_ROUNDS):
        assigned = softmax(moved)
        moved = evidence.copy()
        for expert, same in zip(experts, copies, strict=True):
            moved[:, expert.categories] += expert.coefficient * _gain(expert, same, assigned[:, expert.categories])
    return moved


def _copies(gram: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which images are copies of each other, or of copies, themselves included, bool ``(n_images, n_images)``."""
    _, picture = connected_components(gram >= TWIN, directed=False)
    same: NDArray[np.bool_] = picture[:, None] == picture
    return same


def _gain(expert: Prototypes, copies: NDArray[np.bool_], assigned: Doubles) -> Doubles:
    """By how much the cosine to each prototype changes, float64 ``(n_images, n_known)``."""
    weight = assigned * np.minimum(1.0, ANCHOR * expert.counts / np.maximum(assigned.sum(axis=0), 1e-12))
    length = expert.counts * expert.norms.astype(np.float64)
    dots = expert.counts * expert.means.astype(np.float64)  # of each image and the sum of the references
    gram = expert.gram.astype(np.float64)
    all_dots = dots + gram @ weight
    square = length**2 + 2 * (weight * dots).sum(axis=0) + (weight * (gram @ weight)).sum(axis=0)
    # Without the image itself and its copies.
    of_copies = np.where(copies, gram, 0.0) @ weight
    others = all_dots - of_copies
    square_of_others = square - copies @ (weight * (2 * all_dots - of_copies))
    # References that cancel out have no direction, and rounding must not become one.
    moved = np.clip(others / np.sqrt(np.maximum(square_of_others, 1e-12)), -1, 1)
    gain: Doubles = moved - np.clip(dots / np.maximum(length, 1e-12), -1, 1)
    return gain
