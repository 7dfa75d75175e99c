"""A predictable encoder, with quick imports for processes of tests."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.testing import HashEncoder

COLOURS = ("red", "green", "blue")


class ColourEncoder(HashEncoder):
    """Embeds the strongest colour of an image near texts with its name, and far from texts with another colour.

    All images are a little near to texts without a colour.
    """

    def __init__(self, name: str = "clip", **options: Any) -> None:
        super().__init__(name, dim=4, **options)

    def _text_vector(self, text: str) -> NDArray[np.float64]:
        words = re.findall(r"\w+", text.lower())
        named = [float(colour in words) for colour in COLOURS]
        return np.array([*named, float(not any(named))])

    def _image_vector(self, image: Image.Image) -> NDArray[np.float64]:
        mean = np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1))
        strongest = np.equal(mean, mean.max())
        return np.array([*(strongest - strongest.mean()), 0.1])


def coloured_encoders() -> tuple[HashEncoder, HashEncoder]:
    """``clip`` embeds colours, ``dino`` pictures."""
    return ColourEncoder(), HashEncoder("dino", dim=64, modalities=("image",))
