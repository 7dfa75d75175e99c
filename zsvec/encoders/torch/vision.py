"""Image models of timm: DINOv2 (Oquab et al., arXiv:2304.07193) and any other ViT or convolutional network."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from zsvec.encoders.base import FeatureEncoder, ImageFeatures, Vectors, batches, rgb_of_bounded_aspect
from zsvec.encoders.hub import HubSource, Source, quiet_loading
from zsvec.encoders.loading import LoadContext
from zsvec.encoders.preprocessing import Pixels, cropping, of_timm, preprocess
from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.torch.device import TorchDevice
from zsvec.encoders.torch.image_model import fast_model
from zsvec.encoders.weights import LocalSource, Weights, relative_files, weight_files
from zsvec.errors import InvalidInputError, WeightsUnavailableError, shown
from zsvec.types import Modality

# Images in one pass on a CPU, so few that activations stay in the cache. Activations in bfloat16 take half the memory.
# Compared with passes of 32 images, EfficientNet-Lite0 is 1.4 times as fast in float32, and DINOv2 ViT-B/14 is 1.2
# times as fast in bfloat16.
_IMAGES_A_PASS: Mapping[torch.dtype | None, int] = {torch.float32: 4, torch.bfloat16: 8}
_WHOLE_BATCH = sys.maxsize

_MISFITS = (RuntimeError, LookupError, ValueError, AttributeError, TypeError)  # of timm, for weights of another model


class TimmBackbone:
    """A timm model with its configured preprocessing.

    Attributes:
        model: The model, in evaluation mode.
        weights: The weights of the model.
        side: Length in pixels to which the shorter side of an image is scaled.
        width: Number of pooled features.
        preprocessing: Description of the preprocessing for a fingerprint.
        mean: Mean of the pixels, 0 to 255, float32 (1, channels, 1, 1).
        std: Standard deviation of the pixels, 0 to 255, float32 (1, channels, 1, 1).
        declared: The preprocessing, if it scales the shorter side and crops the centre; ``None`` if timm's transform is
            used instead.
    """

    def __init__(
        self, model: Any, weights: Weights, spec: EncoderSpec, torch_device: TorchDevice, *, compiled: bool
    ) -> None:
        self.model = model.eval().to(torch_device.device, memory_format=torch.channels_last)
        self.weights = weights
        image_size = spec.image_size
        channels = model.pretrained_cfg.get("input_size", (3,))[0]
        input_size = {"input_size": (channels, image_size, image_size)} if image_size else None
        config = resolve_model_data_config(model, args=input_size)
        # Only resizes and crops: arithmetic in each decoding thread would start further threads, which would compete
        # with the model for the cores.
        self.declared = cropping(of_timm, config)
        self._transform: Callable[[Image.Image], Pixels] = (
            partial(preprocess, how=self.declared) if self.declared else _transform_of_timm(config)
        )
        self.mean, self.std = (
            torch.tensor(config[name], device=torch_device.device).mul(255).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        _, height, width = config["input_size"]
        whole = math.ceil(max(height, width) / config["crop_pct"])
        self.side = self.declared.scaled if self.declared else whole
        self.preprocessing = _described(config)
        example = torch.randn((2, channels, height, width), generator=torch.Generator().manual_seed(0))
        self._features = fast_model(
            self.model,
            lambda network, pixels: network.forward_features(pixels),
            example.to(torch_device.device, memory_format=torch.channels_last),
            spec=spec,
            torch_device=torch_device,
            compiled=compiled,
        )
        self._torch_device = self._features.torch_device
        on_cpu = torch_device.device.type == "cpu"
        self._images_a_pass = _IMAGES_A_PASS[self._torch_device.dtype] if on_cpu else _WHOLE_BATCH
        self.width = self.forward([torch.zeros((height, width, channels), dtype=torch.uint8)]).pooled.shape[1]

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Returns one image, scaled and cropped as the model's configuration says, uint8 (height, width, channels)."""
        return self._torch_device.upload(torch.from_numpy(self._transform(image)))

    def forward(self, inputs: Sequence[torch.Tensor]) -> ImageFeatures:
        """Returns the features of a batch. On a CPU, each forward pass takes as many images as fit the cache."""
        passes = [self._pass(part) for part in batches(inputs, self._images_a_pass)]
        pooled, logits = (np.concatenate(parts) for parts in zip(*passes, strict=True))
        return ImageFeatures(pooled, logits)

    def _pass(self, inputs: Sequence[torch.Tensor]) -> tuple[Vectors, Vectors]:
        self._torch_device.wait_for_uploads()
        # Channels stay last in memory.
        pixels = torch.stack(list(inputs)).to(self._torch_device.device).permute(0, 3, 1, 2).float()
        pixels = pixels.sub_(self.mean).div_(self.std)
        features = self._features(pixels)
        with torch.inference_mode():
            # The head runs in float32, which is cheap: a softmax over 1,000 logits is sensitive to rounding.
            features = features.float()
            pooled = self.model.forward_head(features, pre_logits=True)
            logits = self.model.forward_head(features)
            return pooled.cpu().numpy(), logits.cpu().numpy()


def sources(spec: EncoderSpec) -> list[Source]:
    """Returns the source of the weights.

    Raises:
        InvalidInputError: timm does not have the model, or does not know a repository with its weights.
    """
    config = _registered(spec.model)
    if spec.weights:
        return [LocalSource(spec.weights)]
    if not config.hf_hub_id:
        raise InvalidInputError(f"timm knows no repository with weights of {spec.model}; give a local file as weights")
    return [HubSource(config.hf_hub_id, spec.revision, weight_files)]


def load(name: str, spec: EncoderSpec, modalities: tuple[Modality, ...], context: LoadContext) -> FeatureEncoder:
    """Loads a timm model with weights from the hub or from a local file. Raises as `load_encoders` does."""
    backbone = load_backbone(spec, context)
    return FeatureEncoder(
        name,
        fingerprint=backbone.weights.fingerprint(backbone.width, backbone.preprocessing),
        modalities=modalities,
        backbone=backbone,
        batch_size=context.batch_size,
    )


def load_backbone(spec: EncoderSpec, context: LoadContext) -> TimmBackbone:
    """Returns the backbone of an encoder. Encoders with the same model, weights and input size share one object."""
    key = spec.image_model
    if key not in context.shared:
        config = _registered(spec.model)
        weights = sources(spec)[0].load()
        # Vision transformers are built for one input size. Convolutional networks take images of any size.
        options = {"img_size": spec.image_size} if spec.image_size and config.fixed_input_size else {}
        model = _build(spec.model, weights, options)
        context.shared[key] = TimmBackbone(model, weights, spec, context.torch_device, compiled=context.compiled)
    backbone: TimmBackbone = context.shared[key]
    return backbone


def _registered(model: str) -> Any:
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if config is None:
        similar = get_close_matches(model, [*timm.list_pretrained(), *timm.list_models()], n=3)
        hint = f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists them"
        raise InvalidInputError(f"timm {timm.__version__} has no model {model!r}; {hint}")
    return config


def _build(model: str, weights: Weights, options: Mapping[str, Any]) -> Any:
    folder = weights.path
    path = folder / weight_files(relative_files(folder))[0] if folder.is_dir() else folder
    with quiet_loading():
        try:
            state = timm.models.load_state_dict(str(path), weights_only=True)
        # Readers of damaged files (zip, pickle, safetensors) raise errors of many types.
        except Exception as exc:
            raise WeightsUnavailableError(f"the weight file {path} cannot be read: {exc}; download it again") from exc
        if others := [name for name, tensor in state.items() if not torch.is_tensor(tensor)]:
            raise WeightsUnavailableError(
                f"the weight file {path} must hold tensors by name, got {type(state[others[0]]).__name__} under "
                f"{shown(others[0])}; save model.state_dict()"
            )
        with suppress(*_MISFITS):
            return _converted(model, state, options)
        built = timm.create_model(model, **options)
        if _load_in_order(built, state):
            return built
        heads = tuple(f"{name}." for name in _heads(built))
        backbone = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
        try:
            return _converted(model, backbone, options, num_classes=0, label_offset=0)
        except _MISFITS as exc:
            raise WeightsUnavailableError(
                f"the weight file {path} does not fit the model {model}: {exc}; give a file with all weights of the "
                "backbone of this very model"
            ) from exc


def _heads(model: Any) -> list[str]:
    """Returns the names of the classifiers of a timm model, which replaces them for other classes."""
    found = model.get_classifier()
    heads = list(found) if isinstance(found, tuple | list) else [found]
    return [name for name, module in model.named_modules() if any(module is head for head in heads)]


def _converted(model: str, state: Mapping[str, Any], options: Mapping[str, Any], **config: Any) -> Any:
    """Returns the model with weights that timm converts, including position embeddings. All weights must fit."""
    if not state:  # without weights, timm would ask the hub
        raise ValueError("the file holds no weights")
    source = {"state_dict": dict(state), "custom_load": False, "source": None, **config}
    built = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=source, **options)
    del built.pretrained_cfg["state_dict"]
    return built


def _load_in_order(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    """Loads weights that have other names than in the model. The weights are matched by order.

    Returns false and loads nothing if the kinds or shapes of the weights differ.
    """
    sources, targets = _relevant(state), _relevant(model.state_dict())
    if list(sources.values()) != list(targets.values()):
        return False
    pairs = zip(targets, sources, strict=True)
    model.load_state_dict({target: state[source] for target, source in pairs}, strict=False)
    return True


def _relevant(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, torch.Size]]:
    """Returns kind and shape of each weight by name. Leaves out batch normalisation's counters, which are not used."""
    kinds = {name: (name.rpartition(".")[2], tensor.shape) for name, tensor in state.items()}
    return {name: kind for name, kind in kinds.items() if kind[0] != "num_batches_tracked"}


def _transform_of_timm(config: Mapping[str, Any]) -> Callable[[Image.Image], Pixels]:
    transform = create_transform(**config, is_training=False, use_prefetcher=True)
    return lambda image: transform(rgb_of_bounded_aspect(image)).permute(1, 2, 0).numpy()


def _described(config: Mapping[str, Any]) -> str:
    _, height, width = config["input_size"]
    mean, std = (" ".join(f"{number:.4g}" for number in config[key]) for key in ("mean", "std"))
    return (
        f"{height}×{width} {config['interpolation']}, {config['crop_mode']} crop {config['crop_pct']:.4g}, "
        f"mean {mean}, std {std}"
    )
