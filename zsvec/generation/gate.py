"""Which generated images are better left out of a store: blank ones, copies, and those of something else.

Bad references cost accuracy (paper, section 4.3.3). What is found here is flagged; whoever runs it decides.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.method.leave_one_out import TWIN

Floats = NDArray[np.float32]

# What an image is compared with to tell whether it is near to its category: what photographs show otherwise.
EVERYDAY = (
    *("person", "dog", "cat", "bird", "fish", "insect", "reptile", "horse", "tree", "flower"),
    *("fruit", "vegetable", "meal", "bottle", "chair", "bed", "lamp", "book", "computer", "camera"),
    *("car", "bicycle", "train", "boat", "aeroplane", "building", "bridge", "road", "mountain", "beach"),
    *("sky", "forest", "shirt", "shoe", "hat", "bag", "tool", "ball", "musical instrument", "machine"),
)

_BLOCK = 2**24  # similarities that are held at once
_SIDE = 64
_CONTRAST = 4.0  # of 255: standard deviation of the pixels, below which there is nothing to see


def blank(image: Image.Image) -> bool:
    """Whether there is nothing to see in an RGB image: it is of one colour, but for noise."""
    small = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    return bool(small.std(axis=(0, 1)).max() < _CONTRAST)


def far(images: Floats, texts: Floats, everyday: Floats) -> NDArray[np.bool_]:
    """Whether images are no nearer to the texts of their category than to everyday words, on average.

    Args:
        images: float32 ``(n, dim)``, unit rows, all of one category.
        texts: float32 ``(n_texts, dim)``, unit rows, those of the category.
        everyday: float32 ``(n_words, dim)``, unit rows, of `EVERYDAY`.

    Returns:
        bool ``(n,)``.
    """
    own = (images @ texts.T).mean(axis=1)
    return np.asarray(own <= (images @ everyday.T).mean(axis=1))


def copies(images: Mapping[str, Floats], references: Mapping[str, Floats]) -> NDArray[np.intp]:
    """Which images show the same picture as another, in the eyes of all encoders.

    Args:
        images: By encoder, float32 ``(n, dim)``, unit rows; the same images in each.
        references: By encoder, float32 ``(n_references, dim)``, unit rows, of pictures that are there already;
            the same in each.

    Returns:
        int ``(n,)``: the position of the first of them, counting the references and then the images before it;
        -1 if there is none.
    """
    every = {encoder: np.concatenate([references[encoder], vectors]) for encoder, vectors in images.items()}
    n = max(map(len, images.values()), default=0)
    there = max(map(len, every.values()), default=0) - n
    found = np.full(n, -1, dtype=np.intp)
    size = max(1, _BLOCK // max(1, there + n))
    for first in range(0, n, size):
        rows = np.arange(first, min(first + size, n))
        alike = np.arange(there + n)[None] < (there + rows)[:, None]
        for encoder, vectors in images.items():
            alike &= vectors[rows] @ every[encoder].T >= TWIN
        found[rows] = np.where(alike.any(axis=1), alike.argmax(axis=1), -1)
    return found
