"""CLIP-like models of sentence-transformers, with one vector space for images and texts (arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from zsvec.encoders.base import FeatureEncoder, ImageFeatures, Vectors, rgb_of_bounded_aspect
from zsvec.encoders.hub import Source, checkpoint_source
from zsvec.encoders.loading import LoadContext
from zsvec.encoders.preprocessing import cropping, of_transformers
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.device import TorchDevice
from zsvec.encoders.torch.image_model import fast_model
from zsvec.encoders.torch.sentence import SentenceModel
from zsvec.errors import InvalidInputError
from zsvec.types import Modality

_PREPROCESSING_KEYS = ("size", "resample", "crop_size", "image_mean", "image_std")


class ClipBackbone:
    """The image tower of a CLIP-like model. `preprocess` runs the model's processor, and `forward` runs the tower.

    Attributes:
        model: The whole sentence-transformers model, including the text tower.
        processor: Configuration of the image processor.
        side: Length in pixels to which the processor scales an image; ``None`` if the configuration has no length.
        declared: The preprocessing, if it scales the shorter side and crops the centre; ``None`` for other processors.
    """

    def __init__(
        self, sentences: SentenceModel, spec: EncoderSpec, torch_device: TorchDevice, *, compiled: bool
    ) -> None:
        self.model = sentences.model
        self._torch_device = torch_device
        self.processor: Mapping[str, Any] = self.model.processor.image_processor.to_dict()
        size = self.processor.get("size") or {}
        self.side = max((side for side in size.values() if isinstance(side, int)), default=None)
        self.declared = cropping(of_transformers, self.processor)
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        self._features = fast_model(
            self.model,
            lambda model, batch: model(dict(batch))["sentence_embedding"],
            self._batch([self.preprocess(Image.fromarray(noise))] * 2),
            spec=spec,
            torch_device=torch_device,
            compiled=compiled,
            others=lambda: sentences.embed_texts(["a cat"]),
        )

    def preprocess(self, image: Image.Image) -> Mapping[str, Any]:
        """Returns the output of the model's processor for one image: tensors (1, …), such as ``pixel_values``."""
        inputs: Mapping[str, Any] = self.model.preprocess([rgb_of_bounded_aspect(image)])
        return {k: self._torch_device.upload(v) if torch.is_tensor(v) else v for k, v in inputs.items()}

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> ImageFeatures:
        """Returns image features, of any norm."""
        features: Vectors = self._features(self._batch(inputs)).float().cpu().numpy()
        return ImageFeatures(features, features)

    def _batch(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self._torch_device.wait_for_uploads()
        return {
            key: torch.cat([one[key] for one in inputs]).to(self._torch_device.device)
            if torch.is_tensor(value)
            else value
            for key, value in inputs[0].items()
        }


def sources(spec: EncoderSpec) -> list[Source]:
    """Returns the source of the weights."""
    return [checkpoint_source(spec.model, spec.revision)]


def load(name: str, spec: EncoderSpec, modalities: tuple[Modality, ...], context: LoadContext) -> FeatureEncoder:
    """Loads a checkpoint of sentence-transformers or transformers. Raises as `load_encoders` does."""
    weights = sources(spec)[0].load()
    sentences = SentenceModel(weights, context.torch_device)
    if not {"image", "text"} <= set(sentences.modalities):
        raise InvalidInputError(
            f"encoder {name!r}: {spec.model} embeds {', '.join(map(str, sentences.modalities))}, "
            "where family 'clip' needs image and text; choose a CLIP-like model"
        )
    backbone = ClipBackbone(sentences, spec, context.torch_device, compiled=context.compiled)
    return FeatureEncoder(
        name,
        sentences,
        fingerprint=weights.fingerprint(
            sentences.dim, f"images: {_described(backbone.processor)}; texts: {sentences.description}"
        ),
        modalities=modalities,
        backbone=backbone,
        batch_size=context.batch_size,
    )


def _described(processor: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(processor[key])}" for key in _PREPROCESSING_KEYS if processor.get(key) is not None)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "×".join(str(side) for side in value.values() if side is not None)
    if isinstance(value, Sequence):
        return " ".join(f"{number:.4g}" for number in value)
    return Image.Resampling(value).name.lower()
