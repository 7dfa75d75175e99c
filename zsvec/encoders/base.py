"""What an encoder is: the protocols that the classifier sees, and the base of every implementation.

An implementer writes one method, `BatchEncoder.embed`. The base class makes batches, checks the vectors and
normalises their rows, alike for all encoders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from zsvec.errors import EncoderError, InvalidInputError, shown
from zsvec.types import Fingerprint, Modality

Vectors: TypeAlias = NDArray[np.float32]

_MAX_ASPECT_RATIO = 16


class Backbone(Protocol):
    """The part of an encoder that sees the pixels. Encoders that share one object share its passes.

    Attributes:
        side: Pixels to which `preprocess` scales the shorter side; ``None``: it needs all of them.
    """

    @property
    def side(self) -> int | None: ...  # noqa: D102

    def preprocess(self, image: Image.Image) -> Any:
        """One image in the form that `forward` takes. Called from the threads that decode images, several at once."""
        ...

    def forward(self, inputs: Sequence[Any]) -> Sized:
        """The features of preprocessed images, in the order of the images."""
        ...


class Encoder(Protocol):
    """Turns images, and with some models texts, into vectors that are compared by their cosine.

    Attributes:
        name: Its name in the profile.
        modalities: Which references it embeds. It always embeds images, because queries are images.
        fingerprint: Identifies the vectors that its own are comparable with.
        backbone: The part that sees the pixels; may be shared with other encoders.
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
        """Vectors of one output of `Backbone.forward`, float32 (n, dim), rows of unit L2 norm."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Vectors of images, float32 (n, dim), rows of unit L2 norm, in the order of the images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, float32 (n, dim), rows of unit L2 norm, in the order of the texts."""
        ...


class ImageBackbone:
    """The backbone of encoders that take the images themselves: it computes nothing."""

    side = None

    def preprocess(self, image: Image.Image) -> Image.Image:
        """The image itself."""
        return image

    def forward(self, inputs: Sequence[Image.Image]) -> Sequence[Image.Image]:
        """The images themselves."""
        return inputs


class BatchEncoder(ABC):
    """Base class of encoders. A subclass implements `embed`.

    Args:
        name: Its name in the profile.
        fingerprint: Identifies the vectors that its own are comparable with; ``fingerprint.dim`` is checked.
        modalities: Which references it embeds.
        backbone: Turns pixels into the features that `embed` gets; without one, `embed` gets the images.
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
        """Vectors of one batch, any float type, (n, dim), of any norm but zero, in the order of the batch.

        Must be safe to call from several threads at once.

        Args:
            batch: For images an output of `Backbone.forward`, for texts a list of `str`; never empty.
            modality: ``image`` or ``text``.
        """

    def encode_features(self, features: Sized) -> Vectors:
        """Vectors of one output of `Backbone.forward`, float32 (n, dim), rows of unit L2 norm.

        Raises:
            EncoderError: `embed` broke its contract.
        """
        return self._normalised([self._embed(features, "image")])

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Vectors of images, float32 (n, dim), rows of unit L2 norm, in the order of the images.

        Raises:
            EncoderError: `embed` broke its contract.
        """
        return self._normalised(
            self._embed(self.backbone.forward([self.backbone.preprocess(image) for image in batch]), "image")
            for batch in batches(images, self.batch_size)
        )

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, float32 (n, dim), rows of unit L2 norm, in the order of the texts.

        Raises:
            InvalidInputError: The encoder embeds no texts, or these are not a sequence of `str`.
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
        # float64, so that no finite float32 row has a norm that overflows or underflows
        found = self.embed(batch, modality)
        try:
            vectors = _as_numbers(found)
        except Exception as exc:  # an array of another library converts itself, and raises what it likes
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
            what = "zero" if norms[row, 0] == 0 else "not finite"
            raise EncoderError(
                f"encoder {self.name!r} returned a vector that is {what} (row {row}, {unusable.size} of {len(norms)} "
                "rows); remove that input, or try dtype='float32' if the number format overflows"
            )
        unit: Vectors = (vectors / norms).astype(np.float32)
        return unit


def _as_numbers(values: object) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "biufO":
        raise TypeError(f"{array.dtype} are no real numbers")
    return np.asarray(array, dtype=np.float64)


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in order, `size` at a time; the last batch may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def rgb_of_bounded_aspect(image: Image.Image) -> Image.Image:
    """The image in RGB, cropped around its centre to an aspect ratio of at most 16:1.

    Preprocessing scales the shorter side to the input size before it crops the centre. A strip of
    1 × 100,000 pixels would become an image of gigabytes, of which all but the centre is discarded.
    """
    width, height = image.size
    limit = _MAX_ASPECT_RATIO * min(width, height)
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    if left or top:
        image = image.crop((left, top, width - left, height - top))
    return image if image.mode == "RGB" else image.convert("RGB")
