"""Encoders: the protocols that the classifier sees, the base class, and the heads of image and text models.

A subclass of `BatchEncoder` implements `embed`. The base class makes batches, checks the vectors and normalises their
rows. The heads turn the features of an image model and a text model into vectors, whichever runtime computes these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from zsvec.errors import EncoderError, InvalidInputError, shown
from zsvec.inputs.categories import as_numbers
from zsvec.types import Fingerprint, Modality

Vectors: TypeAlias = NDArray[np.float32]

TOP_LABELS = 10
"""Labels that ConSE averages."""

_MAX_ASPECT_RATIO = 16


class Backbone(Protocol):
    """The image model of an encoder. Encoders that share one backbone object share its passes.

    Attributes:
        side: Pixels to which `preprocess` scales the shorter side; ``None`` if the model needs the whole image.
    """

    @property
    def side(self) -> int | None: ...  # noqa: D102

    def preprocess(self, image: Image.Image) -> Any:
        """Returns one image in the form that `forward` takes. Several decoding threads call this at once."""
        ...

    def forward(self, inputs: Sequence[Any]) -> Sized:
        """Returns the features of preprocessed images, in the order of the images."""
        ...


class Encoder(Protocol):
    """Turns images, and with some models texts, into vectors that are compared by cosine.

    Attributes:
        name: Name in the profile.
        modalities: References that the encoder embeds. Queries are images, so images are always possible.
        fingerprint: Vectors with equal fingerprints are comparable.
        backbone: The image model; may be shared with other encoders.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def modalities(self) -> tuple[Modality, ...]: ...  # noqa: D102
    @property
    def fingerprint(self) -> Fingerprint: ...  # noqa: D102
    @property
    def backbone(self) -> Backbone: ...  # noqa: D102

    def encode_features(self, features: Sized) -> Vectors:
        """Returns vectors of one output of `Backbone.forward`, float32 (n, dim), rows of unit L2 norm."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Returns vectors of images, float32 (n, dim), rows of unit L2 norm, in the order of the images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Returns vectors of texts, float32 (n, dim), rows of unit L2 norm, in the order of the texts."""
        ...


class ImageBackbone:
    """The backbone of encoders that take the images themselves."""

    side = None

    def preprocess(self, image: Image.Image) -> Image.Image:
        """Returns the image itself."""
        return image

    def forward(self, inputs: Sequence[Image.Image]) -> Sequence[Image.Image]:
        """Returns the images themselves."""
        return inputs


class BatchEncoder(ABC):
    """Base class of encoders. A subclass implements `embed`.

    Args:
        name: Name in the profile.
        fingerprint: Vectors with equal fingerprints are comparable; ``fingerprint.dim`` is checked.
        modalities: References that the encoder embeds.
        backbone: Turns pixels into the features that `embed` gets; without a backbone, `embed` gets the images.
        batch_size: Images or texts that `embed` gets at most in one call of `encode_images` or `encode_texts`.
    """

    def __init__(
        self,
        name: str,
        fingerprint: Fingerprint,
        *,
        modalities: tuple[Modality, ...] = ("text", "image"),
        backbone: Backbone | None = None,
        batch_size: int = 32,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.modalities = modalities
        self.backbone: Backbone = backbone or ImageBackbone()
        self.batch_size = batch_size

    @abstractmethod
    def embed(self, batch: Any, modality: Modality) -> ArrayLike:
        """Returns vectors of one batch, any float type, (n, dim), of any norm but zero, in the order of the batch.

        Must be safe to call from several threads at once.

        Args:
            batch: For images an output of `Backbone.forward`, for texts a list of `str`; never empty.
            modality: ``image`` or ``text``.
        """

    def encode_features(self, features: Sized) -> Vectors:
        """Returns vectors of one output of `Backbone.forward`, float32 (n, dim), rows of unit L2 norm.

        Raises:
            EncoderError: `embed` broke its contract.
        """
        return self._normalised([self._embed(features, "image")])

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Returns vectors of images, float32 (n, dim), rows of unit L2 norm, in the order of the images.

        Raises:
            EncoderError: `embed` broke its contract.
        """
        return self._normalised(
            self._embed(self.backbone.forward([self.backbone.preprocess(image) for image in batch]), "image")
            for batch in batches(images, self.batch_size)
        )

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Returns vectors of texts, float32 (n, dim), rows of unit L2 norm, in the order of the texts.

        Raises:
            InvalidInputError: The encoder embeds no texts, or `texts` is not a sequence of `str`.
            EncoderError: `embed` broke its contract.
        """
        if "text" not in self.modalities:
            raise InvalidInputError(
                f"encoder {self.name!r} embeds no texts (its modalities: {', '.join(self.modalities)}); "
                "give it images, or use a profile with a text encoder"
            )
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidInputError(f"texts must be a sequence of str. Got {shown(texts)} instead")
        return self._normalised(self._embed(list(batch), "text") for batch in batches(texts, self.batch_size))

    def _embed(self, batch: Sized, modality: Modality) -> NDArray[np.float64]:
        if not len(batch):
            return np.empty((0, self.fingerprint.dim))
        found = self.embed(batch, modality)
        try:
            vectors = as_numbers(found)
        except Exception as exc:  # conversions of other libraries raise errors of any type
            raise EncoderError(
                f"encoder {self.name!r} returned {type(found).__name__}, which is no array of numbers ({exc}); its "
                "embed() must be corrected, and a tensor be detached and float32"
            ) from exc
        expected = (len(batch), self.fingerprint.dim)
        if vectors.shape != expected:
            raise EncoderError(
                f"encoder {self.name!r} returned an array of shape {vectors.shape} for {len(batch)} {modality}(s) "
                f"where {expected} was expected; its embed() or the dim of its fingerprint must be corrected"
            )
        return vectors

    def _normalised(self, parts: Iterable[NDArray[np.float64]]) -> Vectors:
        vectors = np.concatenate([np.empty((0, self.fingerprint.dim)), *parts])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unusable = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if unusable.size:
            row = int(unusable[0])
            problem = "zero" if norms[row, 0] == 0 else "not finite"
            raise EncoderError(
                f"encoder {self.name!r} returned a vector that is {problem} (row {row}, {unusable.size} of "
                f"{len(norms)} rows); remove that input, or try dtype='float32' if the number format overflows"
            )
        unit: Vectors = (vectors / norms).astype(np.float32)
        return unit


# ---- heads


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """Features that an image model computes from a batch.

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
        """Returns vectors of texts in order, float32 (n, dim), of any norm. Long texts are truncated."""
        ...


class FeatureEncoder(BatchEncoder):
    """The features of an image model and of a text model in the same space, as of CLIP (arXiv:2103.00020).

    Args:
        name: Name in the profile.
        texts: The text model; ``None`` for an encoder of images alone.
        **base: Further arguments of `BatchEncoder`.
    """

    def __init__(self, name: str, texts: TextModel | None = None, **base: Any) -> None:
        super().__init__(name, **base)
        self.texts = texts

    def embed(self, batch: Any, modality: Modality) -> Vectors:
        """Returns the vectors of texts, or of image features."""
        if modality == "text" and self.texts is not None:
            return self.texts.embed_texts(batch)
        return self.vectors_of(batch)

    def vectors_of(self, features: ImageFeatures) -> Vectors:
        """Returns the vectors of image features, float32 (n, dim), of any norm."""
        return features.pooled


class ConseEncoder(FeatureEncoder):
    """Embeds images by the most likely labels of a classifier, and texts by a text model.

    Norouzi et al., 2014, arXiv:1312.5650, equation 4.

    Args:
        name: Name in the profile.
        texts: The text model.
        labels: Vectors of the descriptions of the classes in the order of the logits, float32 (classes, dim), unit
            rows.
        **base: Further arguments of `BatchEncoder`.
    """

    def __init__(self, name: str, texts: TextModel, labels: Vectors, **base: Any) -> None:
        super().__init__(name, texts, **base)
        self.labels = labels

    def vectors_of(self, features: ImageFeatures) -> Vectors:
        """Returns means of the sentence embeddings of labels, weighted by the labels' probabilities."""
        top = np.argpartition(features.logits, -TOP_LABELS, axis=1)[:, -TOP_LABELS:]
        logits = np.take_along_axis(features.logits, top, axis=1)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        vectors: Vectors = np.einsum("nk,nkd->nd", weights, self.labels[top])
        return vectors


# ---- batches and images


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yields the items in order, `size` at a time; the last batch may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def rgb_of_bounded_aspect(image: Image.Image) -> Image.Image:
    """Returns the image in RGB, cropped around its centre to an aspect ratio of at most 16:1.

    Preprocessing scales the shorter side to the input size before it crops the centre. A strip of 1 × 100,000 pixels
    would become an image of gigabytes, of which all but the centre is discarded.
    """
    width, height = image.size
    limit = _MAX_ASPECT_RATIO * min(width, height)
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    if left or top:
        image = image.crop((left, top, width - left, height - top))
    return image if image.mode == "RGB" else image.convert("RGB")
