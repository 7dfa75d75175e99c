"""`EncoderSet`, the encoders of a profile as one object."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from zsvec.encoders.base import Backbone, Encoder, Vectors, batches, named_failures
from zsvec.encoders.dynamic_batching import DynamicBatcher
from zsvec.encoders.spec import Device
from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.categories import is_several
from zsvec.types import Fingerprint, Modality

_MEASURED = 2  # batches before times are compared; a model may be slow when it first runs
_WORTH = 0.9  # largest share of the time that a cascade may take; its second search takes time too


class EncoderSet:
    """The encoders of a profile. Encoders with the same backbone share one forward pass for each batch.

    ```python
    prepared = [encoders.preprocess(image) for image in images]  # may run in several threads
    vectors = encoders.encode_images(prepared)                   # {"clip": (n, 512), "dino": (n, 768)}
    ```

    Args:
        encoders: Encoders with distinct names.
        batch_size: Maximum number of images that a backbone gets at once.
        device: Device on which torch or onnxruntime runs image models.
        on_torch: Whether torch runs at least one of the encoders.

    Attributes:
        shared: Forms batches from the images of threads that have one image each.
        device: Device on which torch or onnxruntime runs image models.
        on_torch: Whether torch runs at least one of the encoders.

    Raises:
        InvalidInputError: `encoders` is not a list of encoders, or two encoders have the same name.
    """

    def __init__(
        self,
        encoders: Iterable[Encoder],
        *,
        batch_size: int = 32,
        device: Device = "cpu",
        on_torch: bool = False,
    ) -> None:
        if not is_several(encoders):
            raise InvalidInputError(f"encoders must be a list of encoders. Got {shown(encoders)} instead")
        self._encoders: dict[str, Encoder] = {}
        for encoder in encoders:
            if not hasattr(encoder, "fingerprint"):
                raise InvalidInputError(f"encoders must be a list of encoders. Got {shown(encoder)} in it")
            if encoder.name in self._encoders:
                raise InvalidInputError(f"two encoders are named {encoder.name!r}; give each its own name")
            self._encoders[encoder.name] = encoder
        self._backbones = list({id(encoder.backbone): encoder.backbone for encoder in self}.values())
        # Seconds per image, in the fastest batch: of the image models by id, and of `encode_features` by name.
        self._seconds: dict[int | str, float] = dict.fromkeys([*map(id, self._backbones), *self._encoders], math.inf)
        self._batches = dict.fromkeys(self._seconds, 0)  # timed so far
        self._batch_size = batch_size
        self.shared: DynamicBatcher[Any, Any] = DynamicBatcher(batch_size)
        self.device = device
        self.on_torch = on_torch

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
    def modalities(self) -> dict[str, tuple[Modality, ...]]:
        """Modalities of the references that each encoder embeds, by name."""
        return {encoder.name: encoder.modalities for encoder in self}

    @property
    def side(self) -> int | None:
        """The largest `Backbone.side` in pixels; ``None`` if a backbone needs the full resolution of an image."""
        sides = [backbone.side for backbone in self._backbones]
        scaled = [side for side in sides if side is not None]
        return max(scaled) if scaled and len(scaled) == len(sides) else None

    @property
    def one_model(self) -> bool:
        """Whether all encoders share one image model."""
        return len(self._backbones) == 1

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per image of each encoder, in the fastest batch so far; infinite before.

        Encoders that share an image model each count the time of this model.
        """
        return {encoder.name: self._seconds[id(encoder.backbone)] + self._seconds[encoder.name] for encoder in self}

    def preprocess(self, image: Image.Image) -> tuple[Any, ...]:
        """Returns the input of each distinct backbone for one image. Thread-safe.

        Raises:
            EncoderError: A backbone failed.
        """
        inputs = []
        for backbone in self._backbones:
            with named_failures(self._users(backbone), "backbone.preprocess"):
                inputs.append(backbone.preprocess(image))
        return tuple(inputs)

    def first(self, settled: Mapping[str, float]) -> str | None:
        """Returns the encoder that embeds images first in a cascade, by the measured times.

        Args:
            settled: By encoder, the fraction of images for which no other encoder is needed, 0 to 1.

        Returns:
            The encoder with the shortest expected time. ``None`` if no encoder saves a tenth of the time of all
            encoders, or before every encoder has run twice.
        """
        if not self._measured:
            return None
        total = sum(self._seconds.values())
        expected = {
            name: own + (1 - settled[name]) * self._rest(name) for name, own in self.seconds.items() if name in settled
        }
        best = min(expected, key=lambda name: expected[name], default=None)
        return best if best is not None and expected[best] <= _WORTH * total else None

    def _rest(self, name: str) -> float:
        """Returns the seconds per image of the other encoders. A shared image model counts, since it runs again."""
        others = [encoder for encoder in self if encoder.name != name]
        models = {id(encoder.backbone) for encoder in others}
        return sum(self._seconds[model] for model in models) + sum(self._seconds[one.name] for one in others)

    def no_first(self, settled: Mapping[str, float]) -> str:
        """Returns why `first` returns no encoder; empty if it returns one. The argument is as in `first`."""
        if not self._measured:
            return "the first two batches measure the encoders"
        return "" if self.first(settled) else "no encoder saves a tenth of the time"

    def encode_images(
        self, prepared: Sequence[tuple[Any, ...]], names: Collection[str] | None = None
    ) -> dict[str, Vectors]:
        """Embeds preprocessed images with every encoder, or with some.

        Args:
            prepared: Outputs of `preprocess`.
            names: Names of the encoders; by default all.

        Returns:
            Vectors by name of the encoder: float32 (n, dim) with rows of unit L2 norm, in the order of `prepared`.

        Raises:
            EncoderError: An encoder failed, or did not return one finite, nonzero vector for each image.
        """
        chosen = [encoder for encoder in self if names is None or encoder.name in names]
        parts = [self._encode_batch(batch, chosen) for batch in batches(prepared, self._batch_size)]
        return {
            encoder.name: np.concatenate(
                [np.empty((0, encoder.fingerprint.dim), np.float32), *(part[encoder.name] for part in parts)]
            )
            for encoder in chosen
        }

    def _encode_batch(self, batch: Sequence[tuple[Any, ...]], chosen: Sequence[Encoder]) -> Mapping[str, Vectors]:
        features, vectors = {}, {}
        used = {id(encoder.backbone) for encoder in chosen}
        for backbone, inputs in zip(self._backbones, zip(*batch, strict=True), strict=True):
            if id(backbone) not in used:
                continue
            with self._timed(id(backbone), len(batch)), named_failures(self._users(backbone), "backbone.forward"):
                features[id(backbone)] = backbone.forward(inputs)
        for encoder in chosen:
            with self._timed(encoder.name, len(batch)), named_failures([encoder.name], "encode_features"):
                vectors[encoder.name] = encoder.encode_features(features[id(encoder.backbone)])
        return vectors

    @contextmanager
    def _timed(self, part: int | str, images: int) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._seconds[part] = min(self._seconds[part], (time.perf_counter() - begun) / images)
        self._batches[part] += 1

    @property
    def _measured(self) -> bool:
        return min(self._batches.values(), default=0) >= _MEASURED

    def _users(self, backbone: Backbone) -> Iterator[str]:
        return (encoder.name for encoder in self if encoder.backbone is backbone)
