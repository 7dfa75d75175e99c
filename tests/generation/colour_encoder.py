"""An encoder that is easily foreseen; for processes too, which import nothing here that takes long."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.testing import HashEncoder

COLOURS = ("red", "green", "blue")


class ColourEncoder(HashEncoder):
    """Sees of an image its strongest colour, which is near to texts that name it and far from those that name another.

    To a text that names none, all images are near a little.
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
    """``clip`` knows colours, ``dino`` tells one picture from another."""
    return ColourEncoder(), HashEncoder("dino", dim=64, modalities=("image",))
