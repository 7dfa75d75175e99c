"""What an encoder is: the protocols that the classifier sees, and the base of every implementation.

An implementer writes one method, `BatchEncoder.embed`. Batches, checks and the normalisation of the
rows are the base's, so that they are the same for all encoders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from zsvec.encoders.spec import Device
from zsvec.errors import EncoderError, InvalidInputError
from zsvec.types import Fingerprint, Modality

Vectors: TypeAlias = NDArray[np.float32]

_LONGEST_TO_SHORTEST = 16


class Backbone(Protocol):
    """What one pass over the pixels computes. Encoders that share the object share the pass.

    Attributes:
        side: To how many pixels `preprocess` scales the shorter side; ``None``: it wants them all.
    """

    @property
    def side(self) -> int | None: ...  # noqa: D102

    def preprocess(self, image: Image.Image) -> Any:
        """One image as `forward` takes it. Called in the threads that decode images, several at once."""
        ...

    def forward(self, inputs: Sequence[Any]) -> Sized:
        """The features of preprocessed images, in their order."""
        ...


class Encoder(Protocol):
    """Images, and for some encoders texts, to vectors that can be compared by their cosine.

    Attributes:
        name: What the profile calls it.
        modalities: Which references it embeds. Images can always be embedded: the query is one.
        fingerprint: What its vectors can be compared with.
        backbone: What it computes from pixels and may share with other encoders.
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
    """The backbone that computes nothing: its encoder gets the images themselves."""

    side = None

    def preprocess(self, image: Image.Image) -> Image.Image:
        """The image itself."""
        return image

    def forward(self, inputs: Sequence[Image.Image]) -> Sequence[Image.Image]:
        """The images themselves."""
        return inputs


class BatchEncoder(ABC):
    """Base of encoders: subclasses write `embed`, everything else is done here once.

    Args:
        name: What the profile calls it.
        fingerprint: What its vectors can be compared with; ``fingerprint.dim`` is checked.
        modalities: Which references it embeds.
        backbone: What turns pixels into the features that `embed` gets; without one, `embed` gets images.
        batch_size: How many images or texts `embed` gets at most, when `encode_images` or
            `encode_texts` are called with more.
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
        """Vectors of one batch, any float type, (n, dim), of any norm but zero, in the batch's order.

        Must be safe to call from several threads at once.

        Args:
            batch: For images an output of `Backbone.forward`, for texts a list of `str`; never empty.
            modality: Which of the two.
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
            raise InvalidInputError(f"texts must be a sequence of str. Got {texts!r} instead")
        return self._normalised(self._embed(list(batch), "text") for batch in batches(texts, self.batch_size))

    def _embed(self, batch: Sized, modality: Modality) -> NDArray[np.float64]:
        if not len(batch):
            return np.empty((0, self.fingerprint.dim))
        # float64, so that no finite float32 row has a norm that overflows or underflows
        vectors = np.asarray(self.embed(batch, modality), dtype=np.float64)
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


class EncoderSet:
    """The encoders of a profile. Each distinct backbone runs once for all encoders that share it.

    ```python
    prepared = [encoders.preprocess(image) for image in images]  # may run in several threads
    vectors = encoders.encode_images(prepared)                   # {"clip": (n, 512), "dino": (n, 768)}
    ```

    Args:
        encoders: The encoders; their names must differ.
        batch_size: How many images a backbone gets at most in one pass.
        device: Where they run.

    Raises:
        InvalidInputError: Two encoders have the same name.
    """

    def __init__(self, encoders: Iterable[Encoder], *, batch_size: int = 32, device: Device = "cpu") -> None:
        if not isinstance(encoders, Iterable):
            raise InvalidInputError(f"encoders must be a list of encoders. Got {encoders!r} instead")
        self._encoders: dict[str, Encoder] = {}
        for encoder in encoders:
            if encoder.name in self._encoders:
                raise InvalidInputError(f"two encoders are named {encoder.name!r}; give each its own name")
            self._encoders[encoder.name] = encoder
        self._backbones = list({id(encoder.backbone): encoder.backbone for encoder in self}.values())
        self._batch_size = batch_size
        self.device = device

    def __iter__(self) -> Iterator[Encoder]:
        return iter(self._encoders.values())

    def __len__(self) -> int:
        return len(self._encoders)

    def __getitem__(self, name: str) -> Encoder:
        if name not in self._encoders:
            raise InvalidInputError(f"no encoder is named {name!r}; there are {', '.join(self._encoders)}")
        return self._encoders[name]

    @property
    def fingerprints(self) -> dict[str, Fingerprint]:
        """Fingerprint of each encoder, by name."""
        return {encoder.name: encoder.fingerprint for encoder in self}

    @property
    def side(self) -> int | None:
        """To how many pixels the shorter side of an image is scaled at most; ``None``: some backbone wants them all."""
        sides = [backbone.side for backbone in self._backbones]
        known = [side for side in sides if side is not None]
        return max(known) if known and len(known) == len(sides) else None

    def preprocess(self, image: Image.Image) -> tuple[Any, ...]:
        """What the backbones need of one image, once for each distinct backbone. Safe in several threads."""
        return tuple(backbone.preprocess(image) for backbone in self._backbones)

    def encode_images(self, prepared: Sequence[tuple[Any, ...]]) -> dict[str, Vectors]:
        """Vectors of preprocessed images under every encoder.

        Args:
            prepared: Outputs of `preprocess`.

        Returns:
            By name of the encoder: float32 (n, dim), rows of unit L2 norm, in the order of `prepared`.

        Raises:
            EncoderError: An encoder broke its contract.
        """
        parts = [self._encode_batch(batch) for batch in batches(prepared, self._batch_size)]
        return {
            name: np.concatenate([np.empty((0, encoder.fingerprint.dim), np.float32), *(part[name] for part in parts)])
            for name, encoder in self._encoders.items()
        }

    def _encode_batch(self, batch: Sequence[tuple[Any, ...]]) -> Mapping[str, Vectors]:
        columns = zip(*batch, strict=True)
        features = {
            id(backbone): backbone.forward(inputs) for backbone, inputs in zip(self._backbones, columns, strict=True)
        }
        return {encoder.name: encoder.encode_features(features[id(encoder.backbone)]) for encoder in self}


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in order, `size` at a time; the last batch may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def rgb_of_bearable_shape(image: Image.Image) -> Image.Image:
    """The image in RGB, and its centre only where it is a strip of more than 16:1.

    Preprocessing scales the shorter side to the input size before it crops the centre. Of a strip of
    1 × 100,000 pixels that would make an image of gigabytes, of which all but the centre is thrown away.
    """
    width, height = image.size
    limit = _LONGEST_TO_SHORTEST * min(width, height)
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    if left or top:
        image = image.crop((left, top, width - left, height - top))
    return image if image.mode == "RGB" else image.convert("RGB")
