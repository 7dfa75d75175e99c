"""Measures encoders on torch and on onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import Device, interleaved, rates, report
from zsvec.encoders import EncoderSet, load_encoders
from zsvec.encoders.base import batches
from zsvec.encoders.onnx.exported import ExportedFolder
from zsvec.encoders.torch.export import export_encoders
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.settings.settings import load_settings

_BATCH, _IMAGES = 8, 32


def runtimes(
    photos: Path,
    profile: Annotated[str, typer.Option(help="A profile on torch.")],
    rounds: int = 7,
    compiled: bool = False,
    device: Device = "cpu",
) -> None:
    """Measure images per second, from files, for each runtime and number format. `--compiled` takes minutes to load."""
    paths = find_images(photos)[:_IMAGES]
    specs = load_settings(profile=profile).encoder_specs()
    with tempfile.TemporaryDirectory() as scratch:
        exported, rounded = Path(scratch, "float32"), Path(scratch, "int8")
        export_encoders(specs, exported)
        export_encoders(specs, rounded, photographs=[load_image(path) for path in paths])
        on_torch: dict[str, Any] = {"device": device, "runtime": "torch"}
        loaded = {f"torch, {dtype}": load_encoders(specs, dtype=dtype, **on_torch) for dtype in ("float32", "bfloat16")}
        if compiled:
            loaded["torch compiled, float32"] = load_encoders(specs, dtype="float32", compiled=True, **on_torch)
        loaded["onnxruntime, float32"] = load_encoders(ExportedFolder(exported).specs())
        loaded["onnxruntime, int8"] = load_encoders(ExportedFolder(rounded).specs())
        times = interleaved({name: partial(_encode, one, paths) for name, one in loaded.items()}, rounds)
    report(
        f"{len(paths)} images from files, decoded one after the other, batches of {_BATCH}, profile {profile}",
        {"rates (medians)": rates(times, len(paths))},
    )


def _encode(encoders: EncoderSet, paths: Sequence[Path]) -> None:
    for batch in batches(paths, _BATCH):
        encoders.encode_images([encoders.preprocess(load_image(path, side=encoders.side)) for path in batch])
