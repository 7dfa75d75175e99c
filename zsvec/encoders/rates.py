"""How fast each image model was on this host in each number format, remembered for the next process. No torch.

A file a model lies in the user's cache folder, by what the rates depend on: the model's name, the processor, the
threads, the installed versions. A file that cannot be read, or lies where others may write, counts as none: the model
is measured again. At worst, a wrong one makes the slower format run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from zsvec.encoders import host
from zsvec.encoders.spec import EncoderSpec, NumberFormat
from zsvec.encoders.weights import located
from zsvec.inputs.files import is_ours, read_regular

Rates = Mapping[NumberFormat, float]
"""Images a second, in each number format."""

_RATES: TypeAdapter[Rates] = TypeAdapter(
    Mapping[NumberFormat, Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]]
)
_PACKAGES = ("zsvec", "torch", "timm", "transformers", "sentence-transformers")
# bfloat16 rounds, so it has to gain something.
_WORTH_ROUNDING = 1.03


def faster(rates: Rates) -> NumberFormat:
    """The number format to run in."""
    return "bfloat16" if rates["bfloat16"] > _WORTH_ROUNDING * rates["float32"] else "float32"


def read_rates(spec: EncoderSpec) -> Rates | None:
    """What was measured of an image model, or ``None``."""
    file = _file(spec)
    if not is_ours(file.parent):
        return None
    try:
        rates = _RATES.validate_json(read_regular(file))
    except (OSError, ValueError, ValidationError):
        return None
    return rates if rates.keys() == set(get_args(NumberFormat)) else None


def keep_rates(spec: EncoderSpec, rates: Rates) -> None:
    """Remember what was measured, where the cache can be written and is for this user alone."""
    with suppress(OSError):
        host.keep(_file(spec), _RATES.dump_json(rates))


def describe_rates(specs: Mapping[str, EncoderSpec]) -> dict[str, str]:
    """By name of the encoder: the number format in which torch runs its image model on the CPU, and why, in words."""
    exact = [_image_model(spec) for spec in specs.values() if spec.family == "conse"]
    return {
        name: "float32, as ConSE needs it" if _image_model(spec) in exact else _described(spec)
        for name, spec in specs.items()
        if spec.family != "onnx"
    }


def _image_model(spec: EncoderSpec) -> tuple[object, ...]:
    return spec.model, spec.revision, spec.weights, spec.image_size


def _described(spec: EncoderSpec) -> str:
    rates = read_rates(spec)
    if rates is None:
        return "not measured yet"
    listed = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    return f"{faster(rates)} ({listed} images/s)"


def _file(spec: EncoderSpec) -> Path:
    depends = {
        "model": spec.model_dump(mode="json", include={"family", "model", "revision", "weights", "image_size"})
        | located(spec),
        "versions": {package: host.installed_version(package) for package in _PACKAGES},
        "processor": host.processor(),
        "threads": host.thread_count(),
    }
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]
    return host.cache_folder() / f"{digest}.rates"
