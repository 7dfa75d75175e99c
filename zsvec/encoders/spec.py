"""What to load: the spec of an encoder, the device it runs on and its number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from zsvec.types import Modality

Device = Literal["auto", "cpu", "cuda", "mps"]
NumberFormat = Literal["float32", "bfloat16"]
Dtype = Literal["auto", "float32", "bfloat16"]
RuntimeName = Literal["auto", "torch", "onnx"]
Temperature = Annotated[float, Field(ge=1e-4, le=1e4)]


def _names_the_category(prompt: str) -> str:
    if "{name}" not in prompt:
        raise ValueError("a prompt must contain {name}")
    return prompt


Prompt = Annotated[str, AfterValidator(_names_the_category)]

TEMPERATURES: Mapping[Modality, float] = {"text": 0.01, "image": 0.03}
"""Default temperature of an expert, by its modality."""


class EncoderSpec(BaseModel):
    """One encoder of a profile, as a table of a TOML file or of `zsvec.profiles.PROFILES` gives it.

    Attributes:
        family: Which loader: `clip` (sentence-transformers), `vision` (timm), `conse` (timm + text model), `onnx`
            (exported by ``zsvec encoders export``).
        model: Hub id, timm model name, path of a local checkpoint, or folder of exported encoders.
        revision: Commit of the hub's repository; pinned, so that vectors stay comparable.
        weights: Local weight file for a timm architecture, or ``package:NAME`` for those of an installed package.
        text_model: The sentence-transformers text model of `conse`: id, path or ``package:NAME``.
        image_size: Side of the square input in pixels; by default the model's own.
        modalities: Which references the encoder embeds.
        prompt: Text for a category without definition texts; ``{name}`` stands for its name.
        temperature: Divides the similarities of an expert before the softmax, by modality.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["clip", "vision", "conse", "onnx"]
    model: str = Field(min_length=1)
    revision: str | None = None
    weights: str | None = None
    text_model: str | None = None
    image_size: PositiveInt | None = None
    modalities: tuple[Modality, ...] = ("text", "image")
    prompt: Prompt = "{name}"
    temperature: Mapping[Modality, Temperature] = TEMPERATURES
