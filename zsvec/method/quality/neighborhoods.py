"""Each reference image beside all others: which show the same picture, and how near the nearest other ones are.

Images are compared by the encoder that tells categories apart best: another one takes different pictures for the same.
How alike two images of one picture are depends on the encoder. But their distance (1 - cosine) is small beside that of
two images of one category, whatever the encoder: a quarter of it, at most, is what `SAME` allows for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from zsvec.method.arrays import Floats, Key
from zsvec.method.linalg import largest
from zsvec.method.quality.scenes import median_cosine
from zsvec.method.similarities import References

Positions = NDArray[np.intp]

SAME = 0.25
"""Share of the median distance of two images of a category, below which two images show the same picture."""
_NEAREST = 3  # other images that an image is near to or far from
_NONE = np.float32(-2)  # in the place of a cosine that does not count
_BLOCK = 2**24  # cosines in memory at once


@dataclass(frozen=True, slots=True)
class Neighborhoods:
    """Reference images beside each other.

    Attributes:
        keys: The images, in the order of the references.
        nearest: float32 ``(n_images,)``, mean cosine of each to the three nearest that do not show the same picture;
            NaN where there is none.
        pictures: int ``(n_images,)``, the first image that shows the same picture as each, or one that does, and so on.
        likeness: float32 ``(n_images,)``, the least cosine by which an image was taken for the same picture as another
            one; NaN where it was not.
    """

    keys: Sequence[Key]
    nearest: Floats
    pictures: Positions
    likeness: Floats


def spreads(references: References) -> dict[str, float]:
    """By category that has two images or more, the median distance (1 - cosine) of two of them, 0 to 2.

    Args:
        references: Of an image expert.
    """
    return {
        name: 1 - median_cosine(references.vectors[start:end])
        for name, start, end in zip(references.names, references.starts, references.starts[1:], strict=False)
        if end - start > 1
    }


def neighborhoods(references: References, spread: Mapping[str, float]) -> Neighborhoods:
    """Compare all images with each other. Beyond their vectors, memory is linear in their number.

    Those of the same content show the same picture in any case; where no category has two images, no others do.

    Args:
        references: Of the image expert that tells categories apart best.
        spread: Their `spreads`.
    """
    vectors, n = references.vectors, len(references.hashes)
    same = 1 - SAME * float(np.median(list(spread.values()))) if spread else np.inf
    nearest = np.full(n, np.nan, dtype=np.float32)
    likeness = np.full(n, np.nan, dtype=np.float32)
    _, content = np.unique(references.hashes, return_inverse=True)
    pictures = np.arange(n)
    size = max(1, _BLOCK // max(1, n))
    for first in range(0, n, size):
        block = np.arange(first, min(first + size, n))
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
    """Of each row but what is `_NONE`, float32 ``(n_rows,)``; NaN where a row has nothing else."""
    found = np.take_along_axis(cosines, largest(cosines, _NEAREST), axis=1)
    there = found > _NONE
    total = np.where(there, found, 0).sum(axis=1)
    mean: Floats = np.divide(total, there.sum(axis=1), out=np.full_like(total, np.nan), where=there.any(axis=1))
    return mean


def _joined(pictures: Positions, one: Positions, other: Positions) -> Positions:
    """`Neighborhoods.pictures`, when further images show the same as others."""
    every = np.arange(len(pictures))
    ends = np.concatenate([every, one]), np.concatenate([pictures, other])
    links = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(len(every), len(every)))
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    joined: Positions = first[component]
    return joined
