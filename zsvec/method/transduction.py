"""The images of a batch help each other: each is a soft reference of the categories that it seems to belong to.

After the transductive fusions of Zanella & Ben Ayed (TransCLIP, 2024) and OTFusion (arXiv 2506.13723), which
alternate the assignment of a batch and the prototypes that follow from it. Unlike OTFusion's, the assignment
has no balanced plan, for the categories of a stream are not balanced. No image counts as a reference for itself or
for a copy of itself. The images of a batch weigh at most `ANCHOR` times the references of a category, so that a
prototype cannot drift away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.logits import softmax
from zsvec.method.scenes import TWIN
from zsvec.method.similarities import SearchResult

Doubles = NDArray[np.float64]

ANCHOR = 2.0
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Prototypes:
    """A batch of images and the mean references of the categories, as one expert sees them.

    Attributes:
        coefficient: Nats of evidence per unit of cosine to a prototype.
        categories: int ``(n_covered,)``, as columns of the evidence.
        counts: int ``(n_covered,)``, number of references of each.
        means: float32 ``(n_images, n_covered)``, mean cosine to the references of each category, -1 to 1.
        norms: float32 ``(n_covered,)``, length of the mean reference, 0 to 1.
        gram: float32 ``(n_images, n_images)``, cosines within the batch.
    """

    coefficient: float
    categories: NDArray[np.intp]
    counts: NDArray[np.intp]
    means: NDArray[np.float32]
    norms: NDArray[np.float32]
    gram: NDArray[np.float32]


def prototypes(found: SearchResult, coefficients: Mapping[str, Mapping[str, float]]) -> list[Prototypes]:
    """The prototypes of the experts that compare images with images.

    Args:
        found: The answer of the search; every image was compared with every reference.
        coefficients: By expert and aggregation, nats of evidence per unit of similarity.
    """
    out = []
    for expert in found.experts:
        if expert.modality == "image":
            of_aggregations, query = coefficients[expert.name], found.queries[expert.encoder]
            out.append(
                Prototypes(
                    # Where all aggregations are the same, half of the weight is the prototype's.
                    coefficient=of_aggregations.get("prototype", sum(of_aggregations.values()) / 2),
                    categories=expert.coverage,
                    counts=expert.similarities.counts,
                    means=expert.similarities.aggregate("mean", 1),
                    norms=expert.similarities.norms,
                    gram=query @ query.T,
                )
            )
    return out


def transduce(evidence: Doubles, experts: Sequence[Prototypes]) -> Doubles:
    """Evidence with the prototypes moved towards the images of the batch.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats, from `opinion_pool.log_linear`.
        experts: Of the experts that compare images with images.

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
    from scipy.sparse.csgraph import connected_components  # slow to import, and no other strategy needs it

    _, picture = connected_components(gram >= TWIN, directed=False)
    same: NDArray[np.bool_] = picture[:, None] == picture
    return same


def _gain(expert: Prototypes, copies: NDArray[np.bool_], assigned: Doubles) -> Doubles:
    """By how much the cosine to each prototype changes, float64 ``(n_images, n_covered)``."""
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
