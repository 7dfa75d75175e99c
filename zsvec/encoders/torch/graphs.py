"""Models on torch as ONNX graphs, from uint8 pixels or token ids to features."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from zsvec.encoders.preprocessing import Preprocessing, of_processor
from zsvec.encoders.quiet import quiet_loading
from zsvec.encoders.torch.clip import ClipBackbone
from zsvec.encoders.torch.sentence import SentenceModel
from zsvec.encoders.torch.vision import TimmBackbone
from zsvec.errors import InvalidInputError


class TimmImages(torch.nn.Module):
    """A timm model from uint8 pixels (n, height, width, channels) on."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: TimmBackbone) -> None:
        super().__init__()
        self.model = backbone.model
        self.register_buffer("mean", backbone.mean)
        self.register_buffer("std", backbone.std)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pooled features and, with a classifier, logits."""
        features = self.model.forward_features((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        pooled = self.model.forward_head(features, pre_logits=True)
        return (pooled, self.model.forward_head(features)) if self.model.num_classes else (pooled,)


class ClipImages(torch.nn.Module):
    """The image tower of a CLIP-like model from uint8 pixels on."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: ClipBackbone, processor: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = backbone.model
        self._rest = rest
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(processor[f"image_{name}"]).mul(255).view(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image features."""
        scaled = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        vectors: torch.Tensor = self.model({**self._rest, "pixel_values": scaled})["sentence_embedding"]
        return vectors


class Texts(torch.nn.Module):
    """A text model from tokens to vectors."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str], rest: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._names = names
        self._rest = rest

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:
        """Vectors of texts."""
        inputs = {**self._rest, **dict(zip(self._names, tokens, strict=True))}
        vectors: torch.Tensor = self.model(inputs)["sentence_embedding"]
        return vectors


def image_graph(name: str, backbone: Any) -> tuple[torch.nn.Module, Preprocessing]:
    """The image model of an encoder from uint8 pixels on, and how an image becomes these.

    Raises:
        InvalidInputError: Its preprocessing cannot be exported.
    """
    if isinstance(backbone, TimmBackbone) and backbone.declared is not None:
        return TimmImages(backbone), backbone.declared
    if isinstance(backbone, ClipBackbone):
        processor = backbone.model.processor.image_processor.to_dict()
        preprocessing = of_processor(processor)
        inputs = {k: v for k, v in backbone.preprocess(Image.new("RGB", (8, 8))).items() if not torch.is_tensor(v)}
        if preprocessing is not None:
            return ClipImages(backbone, processor, inputs), preprocessing
    raise InvalidInputError(
        f"encoder {name!r} cannot be exported: its preprocessing is not to scale the shorter side and crop a square "
        "out of the centre; use it with torch (runtime='torch')"
    )


def tokenizer_of(texts: SentenceModel) -> str:
    """A tokenizer with the truncation and padding that the model uses, in the format of the library `tokenizers`."""
    slow = texts.model.tokenizer
    fast = getattr(slow, "backend_tokenizer", None)
    if fast is None:
        raise InvalidInputError(f"{type(slow).__name__} cannot be exported: it is no fast tokenizer; use torch")
    tokenizer = type(fast).from_str(fast.to_str())
    tokenizer.enable_truncation(texts.model.max_seq_length)
    tokenizer.enable_padding(
        pad_id=slow.pad_token_id, pad_token=slow.pad_token, pad_type_id=getattr(slow, "pad_token_type_id", 0)
    )
    return cast("str", tokenizer.to_str())


def write_graph(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write a model, for any number of items, and of tokens.

    Args:
        model: `TimmImages`, `ClipImages` or `Texts`.
        inputs: Examples by name, two items each.
        file: Where to.
    """
    axes = {0: torch.export.Dim("items"), 1: torch.export.Dim("tokens")}
    dynamic = tuple({axis: axes[axis] for axis in range(1 if tensor.ndim > 2 else 2)} for tensor in inputs.values())
    variadic = isinstance(model, Texts)
    with silence():
        torch.onnx.export(
            model.eval(),
            tuple(inputs.values()),
            str(file),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=list(inputs),
            dynamic_shapes=(dynamic,) if variadic else dynamic,
        )


@contextmanager
def silence() -> Iterator[None]:
    """Keep exporters from speaking of their own inner life."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with quiet_loading(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
