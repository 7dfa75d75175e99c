"""From the specs of a profile to encoders, through the loader of each one's family."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from zsvec.encoders.base import Encoder
from zsvec.encoders.encoder_set import EncoderSet
from zsvec.encoders.spec import Device, Dtype, EncoderSpec, RuntimeName
from zsvec.errors import InvalidInputError, MissingExtraError, WeightsUnavailableError
from zsvec.types import Modality

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Family:
    """A kind of encoder.

    Attributes:
        module: Module with the functions ``sources(spec)`` and ``load(name, spec, …)``.
        modalities: What its encoders can embed.
        needs_float32: Whether its image model always runs in float32.
    """

    module: str
    modalities: tuple[Modality, ...]
    needs_float32: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "clip": _Family("zsvec.encoders.torch.clip", ("text", "image")),
    "vision": _Family("zsvec.encoders.torch.vision", ("image",)),
    "conse": _Family("zsvec.encoders.torch.conse", ("text", "image"), needs_float32=True),
    "onnx": _Family("zsvec.encoders.onnx.backbones", ("text", "image")),
}


def load_encoders(
    specs: Mapping[str, EncoderSpec],
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runtime: RuntimeName = "auto",
    compiled: bool = False,
    batch_size: int = 32,
) -> EncoderSet:
    """Load the encoders of a profile. Encoders with the same image model share its backbone.

    Args:
        specs: The encoders, by name.
        device: Where they run; ``auto`` is the first of CUDA, MPS and the CPU that is available. Exported encoders run
            on the CPU.
        dtype: Their number format; ``auto`` is bfloat16 where the hardware is faster in it, else float32: on a CPU each
            model is timed in both, once. Exported encoders are in float32.
        runtime: What computes them; ``auto`` is onnxruntime where they were exported for this machine and that is fast,
            ``onnx`` insists on it.
        compiled: Whether torch.compile compiles the image models, which takes a minute once; ``auto`` is torch then.
        batch_size: Images that a backbone gets at most in one pass.

    Raises:
        InvalidInputError: The device or the runtime is not available, or a spec does not fit its family or model.
        EncoderError: torch.compile cannot compile a model.
        MissingExtraError: Weights come in a package that is not installed, or what runs exported encoders is not.
        WeightsUnavailableError: Weights are neither on disk nor available from the hub.
    """
    from zsvec.encoders.cache import chosen_specs

    chosen = chosen_specs(specs, device=device, dtype=dtype, runtime=runtime, compiled=compiled)
    try:
        return _load_all(chosen, device, dtype, batch_size, compiled)
    except (MissingExtraError, WeightsUnavailableError) as exc:
        if chosen is specs or runtime == "onnx":
            raise
        _logger.warning("%s; torch computes until then", exc)
        return _load_all(specs, device, dtype, batch_size, compiled)


def load_encoder(
    name: str,
    spec: EncoderSpec,
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    runtime: RuntimeName = "auto",
    compiled: bool = False,
    batch_size: int = 32,
) -> Encoder:
    """Load one encoder; see `load_encoders`."""
    options: Any = {"device": device, "dtype": dtype, "runtime": runtime, "compiled": compiled}
    return load_encoders({name: spec}, batch_size=batch_size, **options)[name]


def describe_device(
    device: Device = "auto",
    dtype: Dtype = "auto",
    *,
    runtime: RuntimeName = "auto",
    compiled: bool = False,
    specs: Mapping[str, EncoderSpec] | None = None,
) -> str:
    """Device, number format and version of what `load_encoders` would compute with, in words.

    Args:
        device: As `load_encoders`.
        dtype: As `load_encoders`.
        runtime: As `load_encoders`.
        compiled: As `load_encoders`.
        specs: The encoders, by name; without any, those that torch computes.

    Raises:
        InvalidInputError: The device or the runtime is not available.
        MissingExtraError: What runs exported encoders is not installed.
    """
    from zsvec.encoders.cache import chosen_specs, measured

    chosen = chosen_specs(specs, device=device, dtype=dtype, runtime=runtime, compiled=compiled) if specs else {}
    rates = "".join(f"; {what}: {words}" for what, words in measured(specs).items()) if specs else ""
    if chosen and all(spec.family == "onnx" for spec in chosen.values()):
        from zsvec.encoders.onnx.session import describe

        try:
            return describe(device if chosen is specs else "cpu") + rates
        except MissingExtraError:
            if chosen is specs or runtime == "onnx":
                raise
    choose_runtime = _imported("zsvec.encoders.torch.device").choose_runtime
    return f"{choose_runtime(device, dtype)}{', compiled' if compiled else ''}{rates}"


def missing_weights(specs: Mapping[str, EncoderSpec]) -> dict[str, str]:
    """The weights that are not on disk, in words, by name of the encoder. Makes no request.

    Raises:
        InvalidInputError: A spec does not fit its family.
        MissingExtraError: What loads it is not installed.
    """
    found = {name: [source.missing() for source in weight_sources(spec)] for name, spec in specs.items()}
    return {name: ", ".join(filter(None, missing)) for name, missing in found.items() if any(missing)}


def weight_sources(spec: EncoderSpec) -> list[Any]:
    """Where the weights of an encoder come from: a `zsvec.encoders.weights.Source` each.

    Raises:
        InvalidInputError: The spec does not fit its family.
        MissingExtraError: What loads it is not installed.
    """
    return list(_module(spec.family).sources(spec))


def _load_all(
    specs: Mapping[str, EncoderSpec], device: Device, dtype: Dtype, batch_size: int, compiled: bool
) -> EncoderSet:
    for_torch = [name for name, spec in specs.items() if spec.family != "onnx"]
    loaded: dict[str, Encoder] = {}
    where: Device = "cpu"
    if for_torch:
        choose_runtime = _imported("zsvec.encoders.torch.device").choose_runtime
        runtime = choose_runtime(device, dtype).with_uploads()
        where = cast("Device", runtime.device.type)
        shared: dict[str, Any] = {"runtime": runtime, "batch_size": batch_size, "backbones": {}, "compiled": compiled}
        # Encoders that need float32 come first, so that those which share their image model get it in float32.
        for name in sorted(for_torch, key=lambda name: not _FAMILIES[specs[name].family].needs_float32):
            loaded[name] = _load(name, specs[name], shared)
    folders: dict[str, Any] = {"batch_size": batch_size, "shared": {}, "device": "cpu" if for_torch else device}
    for name in specs.keys() - loaded.keys():
        loaded[name] = _load(name, specs[name], folders)
    return EncoderSet((loaded[name] for name in specs), batch_size=batch_size, device=where, on_torch=bool(for_torch))


def _load(name: str, spec: EncoderSpec, shared: Mapping[str, Any]) -> Encoder:
    family = _FAMILIES[spec.family]
    modalities = tuple(modality for modality in spec.modalities if modality in family.modalities)
    if not modalities:
        raise InvalidInputError(
            f"encoder {name!r}: family {spec.family!r} embeds {', '.join(family.modalities)}; "
            f"its modalities cannot be {', '.join(spec.modalities) or 'none'}"
        )
    encoder: Encoder = _module(spec.family).load(name, spec, modalities=modalities, **shared)
    return encoder


def _module(family: str) -> Any:
    return _imported(_FAMILIES[family].module)


def _imported(module: str) -> Any:
    """A module that needs torch.

    Raises:
        MissingExtraError: torch, or what comes with it, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"{exc.name} is not installed, and these encoders need it: pip install zsvec (without --no-deps), or take "
            "a folder that `zsvec encoders export` has written, by --profile FOLDER"
        ) from exc
