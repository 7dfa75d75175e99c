"""Loads the encoders of a profile. Each family of encoders has a loader module."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

from zsvec.encoders.base import Encoder
from zsvec.encoders.encoder_set import EncoderSet
from zsvec.encoders.spec import Device, Dtype, EncoderSpec, RuntimeName
from zsvec.encoders.weights import files_at
from zsvec.errors import InvalidInputError, WeightsUnavailableError, needs_extra
from zsvec.types import Modality

_logger = logging.getLogger(__name__)

_BOTH: tuple[Modality, ...] = ("text", "image")
_FAMILIES: Mapping[str, tuple[str, tuple[Modality, ...]]] = {
    "clip": ("zsvec.encoders.torch.clip", _BOTH),
    "vision": ("zsvec.encoders.torch.vision", ("image",)),
    "conse": ("zsvec.encoders.torch.conse", _BOTH),
    "onnx": ("zsvec.encoders.onnx.exported", _BOTH),
    "graph": ("zsvec.encoders.onnx.custom_graphs", _BOTH),
}
"""Loader module and possible modalities of each `EncoderSpec.kind`. A loader defines `sources` and `load`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadContext:
    """Settings and models that the encoders of a profile share.

    Attributes:
        device: Device on which onnxruntime runs image models and your own graphs.
        torch_device: The `zsvec.encoders.torch.device.TorchDevice` of models on torch; ``None`` without such models.
        batch_size: Maximum number of images or texts in one batch.
        compiled: Whether torch.compile compiles the image models.
        shared: Cache of loaded backbones and folders. The loaders read and fill this cache.
    """

    device: Device
    torch_device: Any
    batch_size: int
    compiled: bool
    shared: dict[Any, Any] = field(default_factory=dict)


def load_encoders(
    specs: Mapping[str, EncoderSpec],
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runtime: RuntimeName = "auto",
    compiled: bool = False,
    batch_size: int = 32,
) -> EncoderSet:
    """Loads the encoders of a profile. Encoders with the same image model share one backbone.

    Args:
        specs: The encoders, by name.
        device: ``auto`` selects the first available device of CUDA, MPS and CPU. Exported encoders run on the CPU, or
            with onnxruntime-gpu on CUDA.
        dtype: Number format. ``auto`` selects bfloat16 where it is faster, else float32. On a CPU, each model is timed
            in both formats when it is first loaded. Exported encoders cannot run in bfloat16.
        runtime: ``auto`` selects onnxruntime if the encoders were exported on this machine, unless torch may use a GPU
            or is clearly faster. ``onnx`` requires an export.
        compiled: Whether torch.compile compiles the image models, which takes about a minute the first time. For
            compiled models, the runtime ``auto`` selects torch.
        batch_size: Maximum number of images that a backbone gets at once.

    Raises:
        InvalidInputError: The device or the runtime is not available, or a spec does not fit the family or model.
        EncoderError: torch.compile cannot compile a model, or other users may write to the compiler's cache.
        MissingExtraError: A package with weights, or torch and the model libraries, are not installed.
        WeightsUnavailableError: Weights are neither on disk nor available from the hub.
    """
    from zsvec.encoders.runtimes import chosen_specs

    chosen = chosen_specs(specs, device=device, dtype=dtype, runtime=runtime, compiled=compiled)
    try:
        return _load_all(chosen, device, dtype, batch_size, compiled)
    except WeightsUnavailableError as exc:
        if chosen is specs or runtime == "onnx":
            raise
        _logger.warning("%s; torch computes until then", exc)
        return _load_all(specs, device, dtype, batch_size, compiled)


def describe_device(
    device: Device = "auto",
    dtype: Dtype = "auto",
    *,
    runtime: RuntimeName = "auto",
    compiled: bool = False,
    specs: Mapping[str, EncoderSpec] | None = None,
) -> str:
    """Returns a description of the runtime that `load_encoders` would use: device, number format, version and rates.

    Args:
        device: As for `load_encoders`.
        dtype: As for `load_encoders`.
        runtime: As for `load_encoders`.
        compiled: As for `load_encoders`.
        specs: The encoders, by name. Without specs, the runtime is torch and no rates are described.

    Raises:
        InvalidInputError: The device or the runtime is not available.
        MissingExtraError: The encoders need torch, which is not installed.
        WeightsUnavailableError: onnxruntime, which exported encoders need, cannot be imported here.
    """
    from zsvec.encoders.runtimes import chosen_specs, measured

    chosen = chosen_specs(specs, device=device, dtype=dtype, runtime=runtime, compiled=compiled) if specs else {}
    rates = "".join(f"; {subject}: {words}" for subject, words in measured(specs).items()) if specs else ""
    if chosen and all(spec.family == "onnx" for spec in chosen.values()):
        from zsvec.encoders.onnx.session import describe

        try:
            return describe(device if chosen is specs else "cpu") + rates
        except WeightsUnavailableError:
            if chosen is specs or runtime == "onnx":
                raise
    choose_device = _imported("zsvec.encoders.torch.device").choose_device
    return f"{choose_device(device, dtype)}{', compiled' if compiled else ''}{rates}"


def missing_weights(specs: Mapping[str, EncoderSpec]) -> dict[str, str]:
    """Returns descriptions of the weights that are not on disk, by encoder name. Sends no request.

    Raises:
        InvalidInputError: A spec does not fit the family or model, or a path begins with ``~USER`` and no such user
            exists.
        MissingExtraError: A package that the loader of a family imports, such as torch or timm, is not installed.
        WeightsUnavailableError: ``HF_ENDPOINT`` is not a valid URL.
    """
    found = {name: [source.missing() for source in weight_sources(spec)] for name, spec in specs.items()}
    return {name: ", ".join(filter(None, missing)) for name, missing in found.items() if any(missing)}


def weights_size(specs: Mapping[str, EncoderSpec]) -> int | None:
    """Returns the size of all weights in bytes, or ``None`` if some are not on disk. Sends no request.

    Raises as `missing_weights` does, and WeightsUnavailableError if a local path has no weights.
    """
    paths = [source.path() for spec in specs.values() for source in weight_sources(spec)]
    if None in paths:
        return None
    return sum(file.stat().st_size for file in {file for path in paths for file in files_at(path)})


def weight_sources(spec: EncoderSpec) -> list[Any]:
    """Returns the sources of an encoder's weights. Each has a method `missing`. Raises as `missing_weights` does.

    Sources of models on torch also have the methods `load` and `path`.
    """
    return list(_module(spec).sources(spec))


def _load_all(
    specs: Mapping[str, EncoderSpec], device: Device, dtype: Dtype, batch_size: int, compiled: bool
) -> EncoderSet:
    on_torch = any(spec.family != "onnx" for spec in specs.values())
    torch_device = None
    if on_torch:
        choose_device = _imported("zsvec.encoders.torch.device").choose_device
        torch_device = choose_device(device, dtype).with_uploads()
    context = LoadContext(
        device="cpu" if on_torch else device, torch_device=torch_device, batch_size=batch_size, compiled=compiled
    )
    # ConSE is loaded first: its image model must be in float32, and other encoders share that model.
    order = sorted(specs, key=lambda name: specs[name].family != "conse")
    loaded = {name: _load(name, specs[name], context) for name in order}
    if torch_device is None:
        on_cuda = any(getattr(encoder.backbone, "device", "cpu") == "cuda" for encoder in loaded.values())
        where: Device = "cuda" if on_cuda else "cpu"
    else:
        where = cast("Device", torch_device.device.type)
    return EncoderSet([loaded[name] for name in specs], batch_size=batch_size, device=where, on_torch=on_torch)


def _load(name: str, spec: EncoderSpec, context: LoadContext) -> Encoder:
    _, possible = _FAMILIES[spec.kind]
    modalities = tuple(modality for modality in spec.modalities if modality in possible)
    if not modalities:
        raise InvalidInputError(
            f"encoder {name!r}: family {spec.family!r} embeds {', '.join(possible)}; "
            f"its modalities cannot be {', '.join(spec.modalities) or 'none'}"
        )
    encoder: Encoder = _module(spec).load(name, spec, modalities, context)
    return encoder


def _module(spec: EncoderSpec) -> Any:
    module, _ = _FAMILIES[spec.kind]
    return _imported(module)


def _imported(module: str) -> Any:
    with needs_extra("torch", "this model, though not for the profile offline"):
        return import_module(module)
