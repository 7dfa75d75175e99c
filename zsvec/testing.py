"""Encoders for tests: deterministic, instant, and without any weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.encoders.base import BatchEncoder
from zsvec.types import Fingerprint, Modality

_SIDE = 8  # pixels of the thumbnail that an image's vector is made from


class HashEncoder(BatchEncoder):
    """An encoder whose vectors depend only on the content. Similar images are near, and so are texts that share words.

    Args:
        name: Name of the encoder in the profile.
        dim: Dimension of the vectors.
        modalities: Modalities of references to embed.

    Attributes:
        images_encoded: Number of images embedded so far.
        texts_encoded: Number of texts embedded so far.
    """

    def __init__(
        self, name: str = "hash", *, dim: int = 64, modalities: tuple[Modality, ...] = ("text", "image")
    ) -> None:
        fingerprint = Fingerprint(model="zsvec.testing.HashEncoder", revision="1", dim=dim, preprocessing=f"{_SIDE} px")
        super().__init__(name, fingerprint, modalities=modalities)
        self.images_encoded = 0
        self.texts_encoded = 0
        # Fixed directions. The vector of an image is the sum of all directions, weighted by pixels.
        self._directions = np.random.default_rng(0).standard_normal((_SIDE * _SIDE * 3 + 1, dim))

    def embed(self, batch: Sequence[Any], modality: Modality) -> NDArray[np.float64]:
        """Returns vectors of images or texts, float64 ``(n, dim)``, of any norm."""
        if modality == "text":
            self.texts_encoded += len(batch)
            return np.stack([self._text_vector(text) for text in batch])
        self.images_encoded += len(batch)
        return np.stack([self._image_vector(image) for image in batch])

    def _image_vector(self, image: Image.Image) -> NDArray[np.float64]:
        pixels = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
        # The constant keeps a grey image from being the zero vector.
        features = np.append(pixels.ravel() / 127.5 - 1, 0.1)
        vector: NDArray[np.float64] = features @ self._directions
        return vector

    def _text_vector(self, text: str) -> NDArray[np.float64]:
        vectors = []
        for word in text.lower().split() or [text]:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            vectors.append(np.random.default_rng(seed).standard_normal(self.fingerprint.dim))
        total: NDArray[np.float64] = np.sum(vectors, axis=0)
        return total
