"""Specs of encoders, and the names of devices, number formats and runtimes.

This module does not import numpy, because the settings, which contain specs, must load fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator

from zsvec.types import Modality

LARGEST_BATCH = 4096  # images
Device = Literal["auto", "cpu", "cuda", "mps"]
NumberFormat = Literal["float32", "bfloat16"]
Dtype = Literal["auto", "float32", "bfloat16"]
RuntimeName = Literal["auto", "torch", "onnx"]
Temperature = Annotated[float, Field(ge=1e-4, le=1e4)]


def _check_prompt(prompt: str) -> str:
    if "{name}" not in prompt:
        raise ValueError("a prompt must contain {name}")
    return prompt


Prompt = Annotated[str, AfterValidator(_check_prompt)]

TEMPERATURES: Mapping[Modality, float] = {"text": 0.01, "image": 0.03}
"""Default temperature of an expert, by modality."""

Interpolation = Literal["bicubic", "bilinear", "lanczos", "box", "hamming"]
"""A filter of `PIL.Image.Resampling`."""

_Mean = Annotated[float, Field(ge=-1e4, le=1e4)]
_Deviation = Annotated[float, Field(ge=1e-4, le=1e4)]


class Preprocessing(BaseModel):
    """How `zsvec.encoders.preprocessing.preprocess` turns an image into uint8 pixels.

    Attributes:
        size: Side of the square input, in pixels.
        scaled: Length in pixels to which the shorter side is scaled before the square is cropped from the centre.
            ``None`` squashes the whole image into the square.
        interpolation: Resampling filter of Pillow.
        half: Rounding of a crop offset that ends in half a pixel: to the ``even`` neighbour, as in torchvision, or
            ``down``, as in transformers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=1, le=4096)
    scaled: int | None = Field(default=None, ge=1, le=8192)
    interpolation: Interpolation = "bicubic"
    half: Literal["even", "down"] = "even"

    @model_validator(mode="after")
    def _check_square(self) -> Self:
        if self.scaled is not None and self.size > self.scaled:
            raise ValueError(f"a square of {self.size} pixels cannot be cut out of {self.scaled}")
        return self


class GraphPreprocessing(Preprocessing):
    """Preprocessing for your own graph: `Preprocessing`, then normalisation by mean and standard deviation.

    Attributes:
        mean: Mean of each channel, for pixel values from 0 to 1.
        std: Standard deviation of each channel, for pixel values from 0 to 1.
    """

    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]

    def __str__(self) -> str:
        mean, std = (" ".join(f"{number:.4g}" for number in values) for values in (self.mean, self.std))
        scaled = f"of {self.scaled}" if self.scaled else "squashed"
        return f"{self.size}×{self.size} {scaled}, {self.interpolation} {self.half}, mean {mean}, std {std}"


class EncoderSpec(BaseModel):
    """One encoder of a profile, from a TOML file or `zsvec.settings.profiles.PROFILES`.

    A field that would have no effect in the encoder's family is rejected.

    Attributes:
        family: Loader: `clip` (sentence-transformers), `vision` (timm), `conse` (timm and a text model) or `onnx`
            (exported encoders, or your own graph).
        model: Hub id, timm name, path of a checkpoint (``./``, ``~`` or ``/`` first), folder of exported encoders, or
            graph (``*.onnx``).
        revision: Commit of the hub's repository. A pinned commit keeps vectors comparable.
        weights: Weight file for a timm architecture, or ``package:NAME``.
        text_model: Text model of `conse` (id, path or ``package:NAME``), or text graph of `onnx`.
        image_size: Side of the square input in pixels; by default from timm's configuration of the model.
        output: Name of the output of your graph that contains the image vectors.
        preprocessing: Preprocessing of your graph; by default from a configuration file in the graph's folder or its
            parent folder.
        modalities: Modalities of the references that the encoder embeds.
        prompt: Text of a category without definition texts; ``{name}`` stands for the name of the category.
        temperature: Divisor of similarities before the softmax, by modality.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["clip", "vision", "conse", "onnx"]
    model: str = Field(min_length=1)
    revision: str | None = None
    weights: str | None = None
    text_model: str | None = None
    image_size: PositiveInt | None = None
    output: str | None = None
    preprocessing: GraphPreprocessing | None = None
    modalities: tuple[Modality, ...] = ("text", "image")
    prompt: Prompt = "{name}"
    temperature: Mapping[Modality, Temperature] = TEMPERATURES

    @property
    def kind(self) -> str:
        """The family, or ``graph`` if `model` names your own graph rather than a folder that zsvec has exported."""
        return "graph" if self.family == "onnx" and self.model.endswith(".onnx") else self.family

    @property
    def image_model(self) -> tuple[object, ...]:
        """Model, weights and input size. Encoders of timm models with the same values share one image model."""
        return self.model, self.revision, self.weights, self.image_size

    @model_validator(mode="after")
    def _check_fields(self) -> EncoderSpec:
        every = dict.fromkeys(field for fields in _FIELDS.values() for field in fields)
        in_vain = [field for field in every if field not in _FIELDS[self.kind] and getattr(self, field) is not None]
        if in_vain:
            takes = ", ".join(_FIELDS[self.kind]) or "no more fields"
            subject = "a graph" if self.kind == "graph" else f"family {self.family!r}"
            raise ValueError(f"{', '.join(in_vain)} would have no effect: {subject} takes {takes}")
        return self


_FIELDS: Mapping[str, Sequence[str]] = {
    "clip": ("revision",),
    "vision": ("revision", "weights", "image_size"),
    "conse": ("revision", "weights", "image_size", "text_model"),
    "onnx": (),
    "graph": ("text_model", "output", "preprocessing"),
}
"""Optional fields that have an effect, by `EncoderSpec.kind`."""
