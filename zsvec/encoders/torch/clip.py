"""CLIP-like models of sentence-transformers: images and texts in one space (Radford et al., arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zsvec.encoders.base import rgb_of_bounded_aspect
from zsvec.encoders.heads import ClipEncoder, ImageFeatures
from zsvec.encoders.hub import checkpoint_source
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.device import Runtime
from zsvec.encoders.torch.image_model import fast_model
from zsvec.encoders.torch.sentence import SentenceModel
from zsvec.encoders.weights import Source
from zsvec.errors import InvalidInputError
from zsvec.types import Fingerprint, Modality

_PREPROCESSING_KEYS = ("size", "resample", "crop_size", "image_mean", "image_std")


class ClipBackbone:
    """The image tower. The model's own processor runs in `preprocess`, and `forward` only computes.

    Args:
        sentences: The whole model.
        spec: Of the encoder.
        runtime: Where it runs.
        compiled: Whether torch.compile compiles it.

    Attributes:
        model: The whole model, as sentence-transformers has it.
        side: Pixels to which the shorter side of an image is scaled, if the processor says so.
    """

    def __init__(self, sentences: SentenceModel, spec: EncoderSpec, runtime: Runtime, *, compiled: bool) -> None:
        self.model = sentences.model
        self._runtime = runtime
        size = sentences.model.processor.image_processor.to_dict().get("size") or {}
        self.side = max((side for side in size.values() if isinstance(side, int)), default=None)
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        self._features = fast_model(
            self.model,
            lambda model, batch: model(dict(batch))["sentence_embedding"],
            self._batch([self.preprocess(Image.fromarray(noise))] * 2),
            spec=spec,
            runtime=runtime,
            compiled=compiled,
            others=lambda: sentences.embed_texts(["a cat"]),
        )

    def preprocess(self, image: Image.Image) -> Mapping[str, Any]:
        """The output of the model's processor for one image: tensors (1, …), such as ``pixel_values``."""
        inputs: Mapping[str, Any] = self.model.preprocess([rgb_of_bounded_aspect(image)])
        return {k: self._runtime.upload(v) if torch.is_tensor(v) else v for k, v in inputs.items()}

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> ImageFeatures:
        """Image features, of any norm."""
        features: NDArray[np.float32] = self._features(self._batch(inputs)).float().cpu().numpy()
        return ImageFeatures(features, features)

    def _batch(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self._runtime.wait_for_uploads()
        return {
            key: torch.cat([one[key] for one in inputs]).to(self._runtime.device) if torch.is_tensor(value) else value
            for key, value in inputs[0].items()
        }


def sources(spec: EncoderSpec) -> list[Source]:
    """Where the weights come from."""
    return [checkpoint_source(spec.model, spec.revision)]


def load(
    name: str,
    spec: EncoderSpec,
    *,
    modalities: tuple[Modality, ...],
    runtime: Runtime,
    batch_size: int,
    compiled: bool,
    **_: Any,
) -> ClipEncoder:
    """Load a checkpoint in the format of sentence-transformers or transformers.

    Raises:
        WeightsUnavailableError: The weights cannot be loaded here.
        InvalidInputError: The model does not embed both images and texts.
    """
    weights = sources(spec)[0].load()
    sentences = SentenceModel(weights, runtime)
    if not {"image", "text"} <= set(sentences.modalities):
        raise InvalidInputError(
            f"encoder {name!r}: {spec.model} embeds {', '.join(map(str, sentences.modalities))}, "
            "where family 'clip' needs image and text; choose a CLIP-like model"
        )
    return ClipEncoder(
        name,
        sentences,
        fingerprint=Fingerprint(
            model=weights.model,
            revision=weights.revision,
            dim=sentences.dim,
            preprocessing=f"images: {_described_processor(sentences)}; texts: {sentences.description}",
        ),
        modalities=modalities,
        backbone=ClipBackbone(sentences, spec, runtime, compiled=compiled),
        batch_size=batch_size,
    )


def _described_processor(sentences: SentenceModel) -> str:
    processor = sentences.model.processor.image_processor.to_dict()
    return ", ".join(f"{key} {_plain(processor[key])}" for key in _PREPROCESSING_KEYS if processor.get(key) is not None)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "×".join(str(side) for side in value.values() if side is not None)
    if isinstance(value, Sequence):
        return " ".join(f"{number:.4g}" for number in value)
    return Image.Resampling(value).name.lower()
