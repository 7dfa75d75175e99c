"""Near-duplicates and outliers among reference images. Each image is compared with all others.

Images are compared under the encoder that tells categories apart best, because other encoders find different pictures
alike. The distance (1 - cosine) of two images of one picture depends on the encoder. But it is at most a quarter
(`SAME`) of the median distance of two images of one category.
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
from zsvec.method.similarities import References

Positions = NDArray[np.intp]

SAME = 0.25
"""Two images show the same picture if their distance is at most this share of the median distance within a category."""
_NEAREST = 3  # number of other images whose mean cosine is the nearness of an image
_NONE = np.float32(-2)  # replaces a cosine that does not count
_BLOCK = 2**24  # cosines in memory at once


@dataclass(frozen=True, slots=True)
class Neighborhoods:
    """Result of comparing reference images with each other.

    Attributes:
        keys: Category and hash of each image, in the order of the references.
        nearest: float32 ``(n_images,)``, mean cosine to the three nearest images. Images that match directly as the
            same picture are excluded. NaN if no image remains.
        pictures: int ``(n_images,)``, position of the first image of the same picture. Two images show the same picture
            if a chain of direct matches connects them.
        likeness: float32 ``(n_images,)``, smallest cosine to a direct match; NaN without a match.
    """

    keys: Sequence[Key]
    nearest: Floats
    pictures: Positions
    likeness: Floats


def neighborhoods(references: References, spread: Mapping[str, float]) -> Neighborhoods:
    """Compares all images with each other; memory is linear in the number of images.

    Images with equal hashes always show the same picture. If no category has two images, no other images match.

    Args:
        references: References of the image expert that tells categories apart best.
        spread: Result of `spreads` for these references.
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
    """Returns the mean of each row's largest values except `_NONE`, float32 ``(n_rows,)``; NaN if no value is left."""
    found = np.take_along_axis(cosines, largest(cosines, _NEAREST), axis=1)
    there = found > _NONE
    total = np.where(there, found, 0).sum(axis=1)
    mean: Floats = np.divide(total, there.sum(axis=1), out=np.full_like(total, np.nan), where=there.any(axis=1))
    return mean


def _joined(pictures: Positions, one: Positions, other: Positions) -> Positions:
    """Returns `Neighborhoods.pictures` after adding pairs of images that show the same picture."""
    every = np.arange(len(pictures))
    ends = np.concatenate([every, one]), np.concatenate([pictures, other])
    links = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(len(every), len(every)))
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    joined: Positions = first[component]
    return joined


def closeness(nearest: Floats, starts: Positions) -> Floats:
    """Returns the nearness of each image minus the usual nearness, float32 ``(n_images,)``.

    The usual nearness is the median over the category or over all images, whichever is smaller. With the median over
    all images alone, every image of a diverse category would be an outlier.

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
    """Returns the positions of the values below a fence (Tukey, "Exploratory data analysis", 1977), lowest value first.

    Args:
        values: float ``(n,)``; NaN is ignored. If there are fewer than four values and ``fence`` is at least 1, no
            value is below the fence.
        fence: Distance of the fence below the lower quartile, in interquartile ranges. Tukey calls values beyond 1.5
            "outside" and values beyond 3 "far out".
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return []
    lower, upper = np.quantile(known, (0.25, 0.75))
    found = np.flatnonzero(values < lower - fence * (upper - lower))
    return [int(position) for position in found[np.argsort(values[found], kind="stable")]]
