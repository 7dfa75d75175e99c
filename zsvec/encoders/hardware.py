"""Processor, threads and installed versions of this machine, and the measured rates of image models.

This module imports neither torch nor numpy. Rates and exports are stored in the user's cache folder. The name of each
entry is a digest of all values that the content depends on. If a file of rates is damaged, or other users may write to
the folder, the model is measured again. A wrong rate only selects the slower number format.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, get_args

import platformdirs
from pydantic import Field, TypeAdapter

from zsvec.encoders.spec import EncoderSpec, NumberFormat
from zsvec.encoders.weights import located
from zsvec.inputs.files import is_ours, read_regular, write_whole

Rates = Mapping[NumberFormat, float]
"""Images per second, by number format."""

_RATES: TypeAdapter[Rates] = TypeAdapter(
    Mapping[NumberFormat, Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]]
)
_PACKAGES = ("zsvec", "torch", "timm", "transformers", "sentence-transformers", "tokenizers", "onnxruntime", "pillow")
_MIN_SPEEDUP = 1.03  # minimum ratio of rates to choose bfloat16, which is less exact than float32


def cache_folder() -> Path:
    """Returns the folder of exports and measured rates."""
    return Path(platformdirs.user_cache_dir("zsvec")) / "encoders"


def cache_path(**depends: object) -> Path:
    """Returns the path in the cache for content that depends on the given values.

    The path also depends on the processor, the Python environment and the versions of the packages.
    """
    versions = {package: installed_version(package) for package in _PACKAGES}
    key = {**depends, "versions": versions, "python": sys.prefix, "processor": processor()}
    return cache_folder() / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def write_cached(file: Path, content: bytes) -> None:
    """Replaces a file of the cache atomically. A link at the path is replaced, not followed.

    Raises:
        OSError: The file cannot be written, or other users may write to the folder.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_ours(file.parent):
        raise PermissionError(f"others may write to {file.parent}")
    write_whole(file, content, mode=0o600)


def processor() -> str:
    """Returns the model name of the processor and the number of logical cores, separated by a space."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{name} {os.cpu_count()}"
    models = [line for line in lines if line.startswith("model name")]
    return f"{models[0] if models else name} {os.cpu_count()}"


def installed_version(package: str) -> str | None:
    """Returns the version of a package, or ``None`` if the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def thread_count() -> int:
    """Returns the number of threads that a model uses.

    This is torch's number if torch is loaded, else ``OMP_NUM_THREADS``, else the number of physical cores that this
    process may use.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given):
        return int(given)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    siblings = Path("/sys/devices/system/cpu/smt/active")
    doubled = siblings.exists() and siblings.read_text(encoding="ascii").strip() == "1"
    return max(1, usable // 2 if doubled else usable)


# ---- rates of image models


def faster(rates: Rates) -> NumberFormat:
    """Returns ``bfloat16`` if bfloat16 is more than 3 % faster than float32, else ``float32``."""
    return "bfloat16" if rates["bfloat16"] > _MIN_SPEEDUP * rates["float32"] else "float32"


def read_rates(spec: EncoderSpec) -> Rates | None:
    """Returns the remembered rates of an image model in all number formats.

    Returns ``None`` if the file of rates is missing, damaged or incomplete, or other users may write to the folder.
    """
    file = _rates_file(spec)
    if not is_ours(file.parent):
        return None
    try:
        rates = _RATES.validate_json(read_regular(file))
    except (OSError, ValueError):
        return None
    return rates if rates.keys() == set(get_args(NumberFormat)) else None


def keep_rates(spec: EncoderSpec, rates: Rates) -> None:
    """Remembers the rates of an image model, unless the cache is read-only or other users may write to the folder."""
    with suppress(OSError):
        write_cached(_rates_file(spec), _RATES.dump_json(rates))


def describe_rates(specs: Mapping[str, EncoderSpec]) -> dict[str, str]:
    """Returns the number format in which torch runs each image model on a CPU, and the reason, by encoder name.

    Encoders on onnxruntime are left out.
    """
    exact = [_image_model(spec) for spec in specs.values() if spec.family == "conse"]
    return {
        name: "float32, which ConSE needs of its image model" if _image_model(spec) in exact else _described(spec)
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


def _rates_file(spec: EncoderSpec) -> Path:
    model = spec.model_dump(mode="json", include={"family", "model", "revision", "weights", "image_size"})
    return cache_path(model=model | located(spec), threads=thread_count()).with_suffix(".rates")
