"""Encoders by their family: from what an image model and a text model compute to vectors. numpy only.

Whichever runtime computes the models, torch or onnxruntime, these encoders stand over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zsvec.encoders.base import BatchEncoder, Vectors
from zsvec.types import Modality

TOP_LABELS = 10
"""Labels that ConSE averages."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What an image model computes from a batch.

    Attributes:
        pooled: The features before the classifier, float32 (n, width).
        logits: The classifier's logits, float32 (n, classes); without a classifier, the pooled features.
    """

    pooled: Vectors
    logits: Vectors

    def __len__(self) -> int:
        return len(self.pooled)


class TextModel(Protocol):
    """Embeds texts. Safe to use from any thread."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts in their order, float32 (n, dim), of any norm. Long texts are truncated."""
        ...


class VisionEncoder(BatchEncoder):
    """The pooled features of an image model."""

    def embed(self, batch: Any, modality: Modality) -> Vectors:
        """The pooled features, which the backbone has computed."""
        features: ImageFeatures = batch
        return features.pooled


class ClipEncoder(BatchEncoder):
    """Image and text features of a CLIP-like model (Radford et al., arXiv:2103.00020).

    Args:
        name: Its name in the profile.
        texts: The text tower.
        **base: Further arguments of `BatchEncoder`.
    """

    def __init__(self, name: str, texts: TextModel, **base: Any) -> None:
        super().__init__(name, **base)
        self.texts = texts

    def embed(self, batch: Any, modality: Modality) -> Vectors:
        """Features of the image tower, which the backbone has computed, or of the text tower."""
        return batch.pooled if modality == "image" else self.texts.embed_texts(batch)


class ConseEncoder(BatchEncoder):
    """Embeds images by the labels that a classifier finds likely, and texts by a text model.

    Norouzi et al., 2014, arXiv:1312.5650, equation 4.

    Args:
        name: Its name in the profile.
        texts: The text model.
        labels: Vectors of the descriptions of the classifier's classes in the order of its logits, float32
            (classes, dim), unit rows.
        **base: Further arguments of `BatchEncoder`.
    """

    def __init__(self, name: str, texts: TextModel, labels: Vectors, **base: Any) -> None:
        super().__init__(name, **base)
        self.texts = texts
        self.labels = labels

    def embed(self, batch: Any, modality: Modality) -> NDArray[np.float32]:
        """Sentence embeddings of texts; for images, weighted means of the labels' sentence embeddings."""
        return self.texts.embed_texts(batch) if modality == "text" else self._weighted_labels(batch)

    def _weighted_labels(self, features: ImageFeatures) -> NDArray[np.float32]:
        top = np.argpartition(features.logits, -TOP_LABELS, axis=1)[:, -TOP_LABELS:]
        logits = np.take_along_axis(features.logits, top, axis=1)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        vectors: NDArray[np.float32] = np.einsum("nk,nkd->nd", weights, self.labels[top])
        return vectors
