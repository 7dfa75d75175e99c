"""The encoder protocols that the classifier uses, and the base classes of encoders.

A subclass of `BatchEncoder` implements `embed`. The base class splits the input into batches, checks the vectors and
scales each row to unit length. `FeatureEncoder` and `ConseEncoder` (the heads) combine image models and text models
that run on torch or onnxruntime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from zsvec.errors import EncoderError, InvalidInputError, ZSVecError, shown
from zsvec.inputs.categories import as_numbers
from zsvec.types import Fingerprint, Modality

Vectors: TypeAlias = NDArray[np.float32]

TOP_LABELS = 10
"""Number of labels whose vectors ConSE averages for an image."""

_MAX_ASPECT_RATIO = 16


class Backbone(Protocol):
    """The image model of an encoder. Encoders that share a backbone object also share the forward passes.

    Attributes:
        side: Length in pixels to which `preprocess` scales the shorter side of an image; ``None`` if the model needs
            the full resolution. A large JPEG file may be decoded at a reduced size above this length.
    """

    @property
    def side(self) -> int | None: ...  # noqa: D102

    def preprocess(self, image: Image.Image) -> Any:
        """Returns the input of `forward` for one image. Must be thread-safe, because decoding threads call this."""
        ...

    def forward(self, inputs: Sequence[Any]) -> Sized:
        """Returns the features of preprocessed images, in the order of the images."""
        ...


class Encoder(Protocol):
    """Turns images, and with some models also texts, into vectors that are compared by cosine similarity.

    Attributes:
        name: Name in the profile.
        modalities: Modalities of the references that the encoder embeds. Queries are images, so every encoder embeds
            images, even if ``image`` is not listed.
        fingerprint: Identity of the vectors. Vectors of encoders with equal fingerprints are comparable.
        backbone: The image model, which other encoders may share.
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
        """Returns the vectors of one output of `Backbone.forward`, as float32 (n, dim) with rows of unit L2 norm."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Returns the vectors of images in order, as float32 (n, dim) with rows of unit L2 norm."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Returns the vectors of texts in order, as float32 (n, dim) with rows of unit L2 norm."""
        ...


class ImageBackbone:
    """The default backbone, which passes images unchanged to `BatchEncoder.embed`."""

    side = None

    def preprocess(self, image: Image.Image) -> Image.Image:
        """Returns the image unchanged."""
        return image

    def forward(self, inputs: Sequence[Image.Image]) -> Sequence[Image.Image]:
        """Returns the images unchanged."""
        return inputs


@contextmanager
def named_failures(names: Iterable[str], method: str) -> Iterator[None]:
    """Turns any error of a method of encoders, which can be classes of a user, into an EncoderError with their names.

    Errors of zsvec stay as they are.
    """
    try:
        yield
    except ZSVecError:
        raise
    except Exception as exc:
        raise EncoderError(
            f"encoder {' and '.join(map(repr, names))} must embed the input, but {method}() raised "
            f"{type(exc).__name__} ({exc}): correct it, or give inputs that it takes"
        ) from exc


class BatchEncoder(ABC):
    """Base class of encoders. A subclass implements `embed`.

    Args:
        name: Name in the profile.
        fingerprint: Identity of the vectors. The output of `embed` must have ``fingerprint.dim`` columns.
        modalities: Modalities of the references that the encoder embeds.
        backbone: Image model whose output is the input of `embed`. Without a backbone, `embed` gets the images.
        batch_size: Maximum number of images or texts that `encode_images` and `encode_texts` pass to `embed` at once.
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
        """Returns the vectors of one batch in order, as an array (n, dim) of any float type.

        The rows may have any norm but zero. `embed` must be thread-safe.

        Args:
            batch: An output of `Backbone.forward` for images, a list of `str` for texts. Never empty.
            modality: ``image`` or ``text``.
        """

    def encode_features(self, features: Sized) -> Vectors:
        """Returns the vectors of one output of `Backbone.forward`, as float32 (n, dim) with rows of unit L2 norm.

        Raises:
            EncoderError: The model failed, or did not return one finite, nonzero vector for each image.
        """
        return self._normalised([self._embed(features, "image")])

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Returns the vectors of images in order, as float32 (n, dim) with rows of unit L2 norm.

        Raises:
            EncoderError: The model failed, or did not return one finite, nonzero vector for each image.
        """
        return self._normalised(
            self._embed(self._features(batch), "image") for batch in batches(images, self.batch_size)
        )

    def _features(self, images: Sequence[Image.Image]) -> Sized:
        with named_failures([self.name], "backbone.preprocess"):
            inputs = [self.backbone.preprocess(image) for image in images]
        with named_failures([self.name], "backbone.forward"):
            return self.backbone.forward(inputs)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Returns the vectors of texts in order, as float32 (n, dim) with rows of unit L2 norm.

        Raises:
            InvalidInputError: The encoder does not embed texts, or `texts` is not a sequence of `str`.
            EncoderError: The model failed, or did not return one finite, nonzero vector for each text.
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
        with named_failures([self.name], "embed"):
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
    """Embeds texts. Thread-safe."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Returns the vectors of texts in order, as float32 (n, dim) of any norm. Long texts are truncated."""
        ...


class FeatureEncoder(BatchEncoder):
    """Uses the pooled features of an image model as the vectors of images.

    A text model with the same vector space makes this a CLIP-like encoder (Radford et al., arXiv:2103.00020).

    Args:
        name: Name in the profile.
        texts: The text model; ``None`` if the encoder embeds only images.
        **base: Other arguments of `BatchEncoder`.
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
    """Embeds texts with a text model, and an image as the weighted mean of the vectors of its most probable labels.

    Norouzi et al., 2014, arXiv:1312.5650, equation 4.

    Args:
        name: Name in the profile.
        texts: The text model.
        labels: Vectors of the class descriptions in the order of the logits: float32 (classes, dim) with rows of unit
            L2 norm.
        **base: Other arguments of `BatchEncoder`.
    """

    def __init__(self, name: str, texts: TextModel, labels: Vectors, **base: Any) -> None:
        super().__init__(name, texts, **base)
        self.labels = labels

    def vectors_of(self, features: ImageFeatures) -> Vectors:
        """Returns for each image the sum of the vectors of the top labels, weighted in proportion to probability."""
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

    Preprocessing scales the shorter side to the input size before it crops the centre. Without the limit, a strip of
    1 × 100,000 pixels would become an image of gigabytes, of which all but the centre is discarded.
    """
    width, height = image.size
    limit = _MAX_ASPECT_RATIO * min(width, height)
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    if left or top:
        image = image.crop((left, top, width - left, height - top))
    return image if image.mode == "RGB" else image.convert("RGB")
