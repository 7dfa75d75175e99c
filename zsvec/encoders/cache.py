"""Encoders that were exported for this user and this machine, so that the next start needs no torch.

They lie in the user's cache folder, by what they depend on: the specs, the installed versions, the processor. Beside
each folder a record says which weight files it was made of, by size and times, and how fast torch and onnxruntime were.
An export that differs from its record, or may be written by others than the user, is not used: torch computes, as
without an export. An export that nobody has used for 30 days is deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from zsvec.encoders import host
from zsvec.encoders.rates import describe_rates
from zsvec.encoders.spec import Device, Dtype, EncoderSpec, RuntimeName
from zsvec.encoders.weights import located
from zsvec.errors import InvalidInputError, WeightsUnavailableError
from zsvec.inputs.files import is_ours, read_regular

FAST_ENOUGH = 0.95
"""Of torch's images a second, what onnxruntime must reach to be chosen: it starts sooner."""

_AT_WORK = 3600  # seconds after which an unfinished export counts as killed
_UNUSED = 30 * 86_400  # seconds from which on what nobody has used is deleted
# Exports, records, rates, and unfinished ones of each.
_NAME = re.compile(r"[0-9a-f]{32}(\.json|\.rates)?|\.[0-9a-f]{32}-.*|\.zsvec-[0-9a-f]{32}\.new")
_PACKAGES = ("zsvec", "torch", "timm", "transformers", "sentence-transformers", "tokenizers", "onnxruntime", "pillow")
_GPUS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_logger = logging.getLogger(__name__)


class WeightFile(BaseModel):
    """A file that was exported, as it was then.

    Attributes:
        path: Absolute.
        size: Bytes.
        modified: Nanoseconds.
        changed: Nanoseconds; no program can set it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    modified: int
    changed: int

    @classmethod
    def now(cls, path: str) -> WeightFile:
        """A file as it is.

        Raises:
            OSError: It is not there.
        """
        found = os.stat(path)  # noqa: PTH116 - a record's text
        return cls(path=path, size=found.st_size, modified=found.st_mtime_ns, changed=found.st_ctime_ns)


class Record(BaseModel):
    """What an export in the cache was made of.

    Attributes:
        weights: The weight files.
        rates: Images a second, by runtime and number format, of all encoders together; ``onnx`` is the export's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[WeightFile, ...]
    rates: Mapping[str, float]

    @property
    def is_fast(self) -> bool:
        """Whether onnxruntime is fast enough to be chosen."""
        return self.rates.get("onnx", 0.0) >= FAST_ENOUGH * max(self.rates.values(), default=0.0)

    def allowing(self, dtype: Dtype) -> Record:
        """Only the rates that this number format allows."""
        allowed = self.rates.keys() if dtype == "auto" else {"onnx", f"torch {dtype}"}
        return self.model_copy(update={"rates": {name: r for name, r in self.rates.items() if name in allowed}})

    def __str__(self) -> str:
        return ", ".join(f"{name} {rate:.1f}" for name, rate in self.rates.items()) + " images/s"


def place(specs: Mapping[str, EncoderSpec]) -> Path:
    """The folder that an export of these encoders has in the cache; its record has the same name and ``.json``."""
    depends = {
        "encoders": {name: spec.model_dump(mode="json") | located(spec) for name, spec in specs.items()},
        "versions": {package: host.installed_version(package) for package in _PACKAGES},
        "python": sys.prefix,
        "processor": host.processor(),
    }
    return host.cache_folder() / hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]


def record_of(folder: Path) -> Path:
    """The file of an export's record."""
    return folder.with_suffix(".json")


def read_record(specs: Mapping[str, EncoderSpec]) -> Record | None:
    """The record of an export that is whole, of the weights as they are; else ``None``."""
    folder = place(specs)
    if not (is_ours(folder.parent) and is_ours(folder)):
        return None
    try:
        record = Record.model_validate_json(read_regular(record_of(folder)))
        current = all(WeightFile.now(file.path) == file for file in record.weights)
    except (OSError, ValueError, ValidationError):
        return None
    if not current:
        return None
    with suppress(OSError):  # the cache may be read-only
        os.utime(record_of(folder))  # it is in use
    return record


def measured(specs: Mapping[str, EncoderSpec]) -> dict[str, str]:
    """What was measured of encoders on this host, in words: of all of them with an export, and of each on torch."""
    if all(spec.family == "onnx" for spec in specs.values()):
        return {}
    record = read_record(specs)
    chosen = f"{record} → auto is {'onnx' if record.is_fast else 'torch'}" if record else "not exported here"
    return {"all together": chosen} | {f"{name} by torch": words for name, words in describe_rates(specs).items()}


def chosen_specs(
    specs: Mapping[str, EncoderSpec], *, device: Device, dtype: Dtype, runtime: RuntimeName, compiled: bool = False
) -> Mapping[str, EncoderSpec]:
    """The encoders to load: those of an export in the cache where these settings choose it, else those given.

    Args:
        specs: The encoders, by name.
        device: As the setting.
        dtype: As the setting.
        runtime: As the setting.
        compiled: As the setting `compile`.

    Raises:
        InvalidInputError: `runtime` is ``onnx``, and they were not exported, or the other settings exclude it.
    """
    if all(spec.family == "onnx" for spec in specs.values()):
        on_cuda = device == "cuda" and dtype != "bfloat16" and host.installed_version("onnxruntime-gpu") is not None
        if runtime == "torch" or compiled or (_excluded(device, dtype) and not on_cuda):
            raise InvalidInputError(
                "exported encoders run on onnxruntime, on the CPU (or CUDA, with onnxruntime-gpu), in float32: "
                f"runtime={runtime!r}, device={device!r}, dtype={dtype!r} and compile={compiled} cannot be had of them;"
                " choose 'auto', or the profile that they were exported from"
            )
        return specs
    if runtime == "torch" or (runtime == "auto" and (compiled or _left_to_torch(device, dtype))):
        return specs
    if compiled or _excluded(device, dtype):
        raise InvalidInputError(
            f"runtime='onnx' is on the CPU and in float32: it does not go with device={device!r}, dtype={dtype!r} and "
            f"compile={compiled}"
        )
    from zsvec.encoders.onnx.exported import ExportedFolder  # with numpy, which `zsvec info` needs not

    record = read_record(specs) if find_spec("onnxruntime") and find_spec("tokenizers") else None
    if record is not None and (runtime == "onnx" or record.allowing(dtype).is_fast):
        try:
            return ExportedFolder(place(specs)).specs()
        except WeightsUnavailableError as exc:
            _logger.warning("%s; torch computes until then", exc)
    if runtime == "onnx":
        raise InvalidInputError("runtime='onnx', but these encoders are not exported here: run `zsvec encoders export`")
    return specs


def tidy() -> None:
    """Delete exports that nobody has used for 30 days, rates as old as that, and what killed exports have left."""
    folder, now = host.cache_folder(), time.time()
    if not is_ours(folder):
        return
    used: dict[str, float] = defaultdict(float)
    with suppress(OSError):  # another process may tidy too
        exports = {entry: entry.stem for entry in folder.iterdir() if _NAME.fullmatch(entry.name)}
        for entry, export in exports.items():
            used[export] = max(used[export], entry.lstat().st_mtime)
        for entry, export in exports.items():
            if now - used[export] > (_AT_WORK if export.startswith(".") else _UNUSED):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()


def _excluded(device: Device, dtype: Dtype) -> bool:
    """Whether exports cannot do this: they run on the CPU, in float32."""
    return device in {"cuda", "mps"} or dtype == "bfloat16"


def _left_to_torch(device: Device, dtype: Dtype) -> bool:
    """Whether ``auto`` is torch, whatever was exported."""
    return _excluded(device, dtype) or (device == "auto" and _may_have_gpu())


def _may_have_gpu() -> bool:
    """Whether torch may find a device that it prefers to the CPU; only torch itself knows."""
    if sys.platform == "linux":
        return any(os.path.exists(path) for path in _GPUS)  # noqa: PTH110 - no errors
    return True
