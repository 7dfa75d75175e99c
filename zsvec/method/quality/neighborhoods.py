"""Near-duplicates and outliers among reference images, by comparing each image with all others.

Images are compared by the encoder that tells categories apart best; other encoders confuse different pictures. The
distance (1 - cosine) of two images of one picture depends on the encoder, but is at most a quarter (`SAME`) of the
median distance of two images of one category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from zsvec.method.arrays import Floats, Key, largest, slices
from zsvec.method.quality.scenes import median_cosine
from zsvec.method.similarities import References

Positions = NDArray[np.intp]

SAME = 0.25
"""Share of the median distance of two images of a category below which two images show the same picture."""
_NEAREST = 3  # other images; their mean cosine is the nearness of an image
_NONE = np.float32(-2)  # replaces a cosine that does not count
_BLOCK = 2**24  # cosines in memory at once


@dataclass(frozen=True, slots=True)
class Neighborhoods:
    """Result of comparing reference images with each other.

    Attributes:
        keys: The images, in the order of the references.
        nearest: float32 ``(n_images,)``, mean cosine to the three nearest images of other pictures; NaN without any.
        pictures: int ``(n_images,)``, the first image of the same picture, transitively.
        likeness: float32 ``(n_images,)``, the least cosine to a directly matched image of the same picture; NaN
            without any.
    """

    keys: Sequence[Key]
    nearest: Floats
    pictures: Positions
    likeness: Floats


def spreads(references: References) -> dict[str, float]:
    """Median distance (1 - cosine) of two images, 0 to 2, by category with at least two images.

    Args:
        references: References of an image expert.
    """
    return {
        name: 1 - median_cosine(references.vectors[start:end])
        for name, start, end in zip(references.names, references.starts, references.starts[1:], strict=False)
        if end - start > 1
    }


def neighborhoods(references: References, spread: Mapping[str, float]) -> Neighborhoods:
    """Compares all images with each other; memory is linear in their number.

    Images with equal hashes always show the same picture. If no category has two images, no others do.

    Args:
        references: References of the image expert that tells categories apart best.
        spread: `spreads` of the references.
    """
    vectors, n = references.vectors, len(references.hashes)
    same = 1 - SAME * float(np.median(list(spread.values()))) if spread else np.inf
    nearest = np.full(n, np.nan, dtype=np.float32)
    likeness = np.full(n, np.nan, dtype=np.float32)
    _, content = np.unique(references.hashes, return_inverse=True)
    pictures = np.arange(n)
    for rows in slices(n, max(1, _BLOCK // max(1, n))):
        block = np.arange(n)[rows]
        cosines = vectors[block] @ vectors.T
        alike = (cosines >= same) | (content[block, None] == content)
        alike[np.arange(len(block)), block] = False
        one, other = np.nonzero(alike)
        pictures = _joined(pictures, block[one], other)
        likeness[block] = np.fmin.reduce(np.where(alike, cosines, np.float32(np.nan)), axis=1)
        cosines[one, other] = cosines[np.arange(len(block)), block] = _NONE
        nearest[block] = _mean_of_nearest(cosines)
    return Neighborhoods(references.keys, nearest, pictures, likeness)


def _mean_of_nearest(cosines: Floats) -> Floats:
    """Mean of the largest values of each row that are not `_NONE`, float32 ``(n_rows,)``; NaN without any."""
    found = np.take_along_axis(cosines, largest(cosines, _NEAREST), axis=1)
    there = found > _NONE
    total = np.where(there, found, 0).sum(axis=1)
    mean: Floats = np.divide(total, there.sum(axis=1), out=np.full_like(total, np.nan), where=there.any(axis=1))
    return mean


def _joined(pictures: Positions, one: Positions, other: Positions) -> Positions:
    """`Neighborhoods.pictures` after adding pairs of images of the same picture."""
    every = np.arange(len(pictures))
    ends = np.concatenate([every, one]), np.concatenate([pictures, other])
    links = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(len(every), len(every)))
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    joined: Positions = first[component]
    return joined


def closeness(nearest: Floats, starts: Positions) -> Floats:
    """Nearness of images relative to the usual nearness, float32 ``(n_images,)``.

    The usual nearness is the median of the category, or of all images if that is smaller: in a category of diverse
    images, not every image is an outlier.

    Args:
        nearest: float32 ``(n_images,)``, nearness to other images; NaN if unknown.
        starts: int ``(n_categories + 1,)``; category ``c`` has the images ``starts[c]:starts[c + 1]``.
    """
    beyond = nearest - _median(nearest)
    for start, end in pairwise(starts.tolist()):
        beyond[start:end] = np.fmax(beyond[start:end], nearest[start:end] - _median(nearest[start:end]))
    return beyond


def _median(values: Floats) -> np.float32:
    known = values[~np.isnan(values)]
    return np.float32(np.median(known) if known.size else np.nan)


def far_below(values: NDArray[np.floating], fence: float) -> list[int]:
    """Positions of the values below a fence (Tukey, "Exploratory data analysis", 1977), lowest first.

    Args:
        values: float ``(n,)``; NaN is ignored. Of fewer than four values, none is below a fence.
        fence: Distance of the fence below the lower quartile, in interquartile ranges. Tukey calls values beyond 1.5
            outside, and beyond 3 far out.
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return []
    lower, upper = np.quantile(known, (0.25, 0.75))
    found = np.flatnonzero(values < lower - fence * (upper - lower))
    return [int(position) for position in found[np.argsort(values[found], kind="stable")]]
