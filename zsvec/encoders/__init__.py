"""Encoders: images and texts to vectors. torch and the models' libraries are imported when one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from zsvec.encoders.base import Backbone, BatchEncoder, Encoder, EncoderSet, Vectors
from zsvec.encoders.spec import Device, Dtype, EncoderSpec
from zsvec.errors import InvalidInputError
from zsvec.method.similarities import References
from zsvec.types import Modality

if TYPE_CHECKING:
    from zsvec.search.torch_index import DeviceReferences

__all__ = [
    "Backbone",
    "BatchEncoder",
    "Encoder",
    "EncoderSet",
    "Vectors",
    "describe_device",
    "load_encoder",
    "load_encoders",
    "missing_weights",
]


@dataclass(frozen=True, slots=True)
class _Family:
    """A kind of encoder.

    Attributes:
        module: Has ``sources(spec)`` and ``load(name, spec, …)``.
        modalities: What its encoders can embed.
        needs_float32: Whether its image model runs in float32 whatever the settings say.
    """

    module: str
    modalities: tuple[Modality, ...]
    needs_float32: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "clip": _Family("zsvec.encoders.clip", ("text", "image")),
    "vision": _Family("zsvec.encoders.vision", ("image",)),
    "conse": _Family("zsvec.encoders.conse", ("text", "image"), needs_float32=True),
}


def load_encoders(
    specs: Mapping[str, EncoderSpec], *, device: Device = "auto", dtype: Dtype = "auto", batch_size: int = 32
) -> EncoderSet:
    """Load the encoders of a profile. Those with the same image model share it.

    Args:
        specs: The encoders, by name.
        device: Where they run.
        dtype: Their number format.
        batch_size: Images that an encoder takes at once.

    Raises:
        InvalidInputError: The device is not there, or a spec does not fit its family or model.
        MissingExtraError: Weights come in a package that is not installed.
        WeightsUnavailableError: Weights are neither on disk nor to be had from the hub.
    """
    from zsvec.encoders.device import choose_runtime
    from zsvec.encoders.memory import keep_freed_memory

    runtime = choose_runtime(device, dtype).with_uploads()
    if runtime.device.type == "cpu":
        keep_freed_memory()
    shared: dict[str, Any] = {"runtime": runtime, "batch_size": batch_size, "backbones": {}}
    # Who shares an image model with an encoder that needs float32 gets it from that one, in float32.
    order = sorted(specs, key=lambda name: not _FAMILIES[specs[name].family].needs_float32)
    loaded = {name: _load(name, specs[name], shared) for name in order}
    return EncoderSet(
        (loaded[name] for name in specs), batch_size=batch_size, device=cast("Device", runtime.device.type)
    )


def load_encoder(
    name: str, spec: EncoderSpec, *, device: Device = "auto", dtype: Dtype = "auto", batch_size: int = 32
) -> Encoder:
    """Load one encoder; see `load_encoders`."""
    return load_encoders({name: spec}, device=device, dtype=dtype, batch_size=batch_size)[name]


def describe_device(device: Device = "auto", dtype: Dtype = "auto") -> str:
    """Device, number format and version of torch that `load_encoders` would use, in words.

    Raises:
        InvalidInputError: The device is not there.
    """
    from zsvec.encoders.device import choose_runtime

    return str(choose_runtime(device, dtype))


def missing_weights(specs: Mapping[str, EncoderSpec]) -> dict[str, str]:
    """What encoders need and the disk does not hold, by name of the encoder. Asks no network.

    Raises:
        InvalidInputError: A spec does not fit its family.
    """
    found = {
        name: [source.missing() for source in import_module(_FAMILIES[spec.family].module).sources(spec)]
        for name, spec in specs.items()
    }
    return {name: ", ".join(filter(None, missing)) for name, missing in found.items() if any(missing)}


def _load(name: str, spec: EncoderSpec, shared: Mapping[str, Any]) -> Encoder:
    family = _FAMILIES[spec.family]
    modalities = tuple(modality for modality in spec.modalities if modality in family.modalities)
    if not modalities:
        raise InvalidInputError(
            f"encoder {name!r}: family {spec.family!r} embeds {', '.join(family.modalities)}; "
            f"its modalities cannot be {', '.join(spec.modalities) or 'none'}"
        )
    encoder: Encoder = import_module(family.module).load(name, spec, modalities=modalities, **shared)
    return encoder
