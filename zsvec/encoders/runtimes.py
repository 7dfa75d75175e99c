"""Chooses torch or onnxruntime, depending on the encoders that this user has exported on this machine.

An export is a folder in the user's cache, named by a digest of specs, installed versions and processor. A record file
next to the folder stores the state of the weight files and the rates of torch and onnxruntime. torch is used if no
export exists, if the weight files have changed since the export, or if other users may write to the folder. A new
export deletes exports that were not used for 30 days. If an export has failed, a file in its place contains the reason.
"""

from __future__ import annotations

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

from pydantic import BaseModel, ConfigDict

from zsvec.encoders import hardware
from zsvec.encoders.spec import Device, Dtype, EncoderSpec, RuntimeName
from zsvec.encoders.weights import located
from zsvec.errors import InvalidInputError, WeightsUnavailableError
from zsvec.inputs.files import is_ours, read_regular

EXPORT_PACKAGES = ("onnxscript", "onnx")
"""Packages that an export needs in addition to torch."""

_MIN_RELATIVE_RATE = 0.95  # minimum ratio of rates to choose onnxruntime, which starts sooner than torch
_MAX_EXPORT_S = 3600  # an unfinished export that is older was killed
_MAX_UNUSED_S = 30 * 86_400
# Names of exports, records, failures and rates, finished and unfinished.
_NAME = re.compile(r"[0-9a-f]{32}(\.json|\.failed|\.rates)?|\.[0-9a-f]{32}-.*|\.zsvec-[0-9a-f]{32}\.new")
_GPUS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_logger = logging.getLogger(__name__)

FileState = tuple[int, int, int]
"""Size in bytes, modification time (mtime), and change time (ctime, which programs cannot set), both in nanoseconds."""


class Record(BaseModel):
    """The record of an export in the cache.

    Attributes:
        weights: State of the weight files when they were exported, by absolute path.
        rates: Images per second of all encoders together, by runtime: ``onnx`` for the export, ``torch float32`` and
            ``torch bfloat16``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Mapping[str, FileState]
    rates: Mapping[str, float]

    @property
    def is_fast(self) -> bool:
        """Whether onnxruntime is fast enough to be chosen."""
        return self.rates.get("onnx", 0.0) >= _MIN_RELATIVE_RATE * max(self.rates.values(), default=0.0)

    def allowing(self, dtype: Dtype) -> Record:
        """Returns a copy with torch's rate in `dtype` only. ``auto`` keeps the rates in all number formats."""
        allowed = self.rates.keys() if dtype == "auto" else {"onnx", f"torch {dtype}"}
        return self.model_copy(update={"rates": {name: r for name, r in self.rates.items() if name in allowed}})

    def __str__(self) -> str:
        return ", ".join(f"{name} {rate:.1f}" for name, rate in self.rates.items()) + " images/s"


def file_state(path: str) -> FileState:
    """Returns the state of a file.

    Raises:
        OSError: The file does not exist or cannot be accessed.
    """
    found = os.stat(path)  # noqa: PTH116 - a record contains paths as text
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def place(specs: Mapping[str, EncoderSpec]) -> Path:
    """Returns the path in the cache for an export of these encoders."""
    encoders = {name: spec.model_dump(mode="json") | located(spec) for name, spec in specs.items()}
    return hardware.cache_path(encoders=encoders)


def record_of(folder: Path) -> Path:
    """Returns the path of an export's record."""
    return folder.with_suffix(".json")


def failure_of(folder: Path) -> Path:
    """Returns the path of the file with the reason why an export is impossible."""
    return folder.with_suffix(".failed")


def read_record(folder: Path) -> Record | None:
    """Returns the record of an export in the cache and marks the export as used.

    Returns ``None`` if the export is missing or incomplete, the weight files have changed since the export, or other
    users may write to the folder.
    """
    if not (is_ours(folder.parent) and is_ours(folder)):
        return None
    try:
        record = Record.model_validate_json(read_regular(record_of(folder)))
        if any(file_state(path) != state for path, state in record.weights.items()):
            return None
    except (OSError, ValueError):
        return None
    with suppress(OSError):  # the cache may be read-only
        os.utime(record_of(folder))  # for `tidy`
    return record


def measured(specs: Mapping[str, EncoderSpec]) -> dict[str, str]:
    """Returns descriptions of the measured rates, by subject: all encoders together, and each encoder on torch.

    Empty if all specs are of the family ``onnx``.
    """
    if all(spec.family == "onnx" for spec in specs.values()):
        return {}
    record = read_record(place(specs))
    chosen = (
        f"{record} → auto is {'onnx' if record.is_fast else 'torch'}"
        if record
        else "no export yet (`zsvec encoders export`)"
    )
    by_torch = {f"{name} by torch": words for name, words in hardware.describe_rates(specs).items()}
    return {"all together": chosen, **by_torch}


def chosen_specs(
    specs: Mapping[str, EncoderSpec], *, device: Device, dtype: Dtype, runtime: RuntimeName, compiled: bool = False
) -> Mapping[str, EncoderSpec]:
    """Returns the specs of an export in the cache if the settings select onnxruntime, else `specs`.

    The arguments are those of `zsvec.encoders.load_encoders`.

    Raises:
        InvalidInputError: `runtime` or the encoders require onnxruntime, but another setting excludes onnxruntime or
            no export exists.
    """
    excluded = _excludes_exports(device, dtype)
    if all(spec.family == "onnx" for spec in specs.values()):
        on_cuda = device == "cuda" and dtype != "bfloat16" and hardware.installed_version("onnxruntime-gpu") is not None
        if runtime == "torch" or compiled or (excluded and not on_cuda):
            raise InvalidInputError(
                "exported encoders run on onnxruntime, on the CPU (or CUDA, with onnxruntime-gpu), in float32: "
                f"runtime={runtime!r}, device={device!r}, dtype={dtype!r} and compile={compiled} are impossible; "
                "choose 'auto', or the profile from which the encoders were exported"
            )
        return specs
    if _is_torch(device, dtype, runtime, compiled):
        return specs
    if compiled or excluded:
        raise InvalidInputError(
            f"runtime='onnx' is on the CPU and in float32, and does not go with device={device!r}, dtype={dtype!r} and "
            f"compile={compiled}"
        )
    from zsvec.encoders.onnx.exported import ExportedFolder  # imports numpy, which `zsvec info` does without

    folder = place(specs)
    record = read_record(folder)
    if record is not None and (runtime == "onnx" or record.allowing(dtype).is_fast):
        try:
            return ExportedFolder(folder).specs()
        except WeightsUnavailableError as exc:
            _logger.warning("%s; torch computes until then", exc)
    if runtime == "onnx":
        raise InvalidInputError("runtime='onnx', but these encoders are not exported here: run `zsvec encoders export`")
    return specs


def lacks_export(
    specs: Mapping[str, EncoderSpec], *, device: Device, dtype: Dtype, runtime: RuntimeName, compiled: bool = False
) -> bool:
    """Returns whether an export to the cache is missing, and would be compared with torch under these settings.

    Returns ``False`` if a package is not installed, an export has failed before with the installed versions, or other
    users may write to the cache. Takes the arguments of `zsvec.encoders.load_encoders`.

    Raises:
        InvalidInputError: A path in a spec begins with ``~USER`` and no such user exists.
    """
    if compiled or _excludes_exports(device, dtype) or _is_torch(device, dtype, runtime, compiled):
        return False
    if any(spec.family == "onnx" for spec in specs.values()) or not all(map(find_spec, ("torch", *EXPORT_PACKAGES))):
        return False
    folder = place(specs)
    if folder.parent.exists() and not is_ours(folder.parent):
        return False
    return read_record(folder) is None and not failure_of(folder).exists()


def tidy() -> None:
    """Deletes exports not used for 30 days, rates measured more than 30 days ago, and remains of killed exports."""
    folder, now = hardware.cache_folder(), time.time()
    if not is_ours(folder):
        return
    used: dict[str, float] = defaultdict(float)
    with suppress(OSError):  # another process may tidy too
        exports = {entry: entry.stem for entry in folder.iterdir() if _NAME.fullmatch(entry.name)}
        for entry, export in exports.items():
            used[export] = max(used[export], entry.lstat().st_mtime)
        for entry, export in exports.items():
            if now - used[export] > (_MAX_EXPORT_S if export.startswith(".") else _MAX_UNUSED_S):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()


def _excludes_exports(device: Device, dtype: Dtype) -> bool:
    return device in {"cuda", "mps"} or dtype == "bfloat16"  # exports run on the CPU, in float32


def _is_torch(device: Device, dtype: Dtype, runtime: RuntimeName, compiled: bool) -> bool:
    """Returns whether torch computes, even if an export exists."""
    left_to_torch = compiled or _excludes_exports(device, dtype) or (device == "auto" and _may_have_gpu())
    return runtime == "torch" or (runtime == "auto" and left_to_torch)


def _may_have_gpu() -> bool:
    """Whether torch might find a GPU. Checks device files on Linux, without importing torch; true on other systems."""
    if sys.platform == "linux":
        return any(os.path.exists(path) for path in _GPUS)  # noqa: PTH110 - no errors
    return True
