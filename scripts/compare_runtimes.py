#!/usr/bin/env python
"""Whether the runtimes give the same vectors: cosines, and how many photographs have the same nearest reference.

    python scripts/compare_runtimes.py SET…

Each SET has `references/<category>/` and `photos/<category>/`. References are those of torch in float32 with its models
as they are; int8 has references of its own, as its fingerprint asks for, and its ranges from those of the first set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import typer
from numpy.typing import NDArray

from zsvec.encoders import EncoderSet, load_encoders
from zsvec.encoders.base import batches
from zsvec.encoders.onnx.exported import ExportedFolder
from zsvec.encoders.torch import image_model
from zsvec.encoders.torch.export import export_encoders
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.settings.profiles import PROFILES

_EAGER = "torch eager, float32"


def compare(sets: list[Path], profile: str = "offline") -> None:
    """Print a line for each set, encoder and runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        runtimes = _loaded(profile, find_images(sets[0] / "references")[:128], Path(scratch))
        for folder in sets:
            references, photos = (
                {name: _embedded(one, find_images(folder / part)) for name, one in runtimes.items()}
                for part in ("references", "photos")
            )
            for name in runtimes:
                compared = references if "int8" in name else {name: references[_EAGER]}
                for encoder, expected in photos[_EAGER].items():
                    right = (expected @ references[_EAGER][encoder].T).argmax(axis=1)
                    got = (photos[name][encoder] @ compared[name][encoder].T).argmax(axis=1)
                    cosines = (expected * photos[name][encoder]).sum(axis=1)
                    typer.echo(
                        f"{folder.name}, {encoder}, {name}: nearest reference the same for {(right == got).mean():.2%} "
                        f"of {len(right)} photos; cosine at least {cosines.min():.6f}, mean {cosines.mean():.6f}"
                    )


def _loaded(profile: str, photographs: Sequence[Path], scratch: Path) -> dict[str, EncoderSet]:
    specs = PROFILES[profile].encoders
    export_encoders(specs, scratch / "float32")
    export_encoders(specs, scratch / "int8", photographs=[load_image(path) for path in photographs])
    with patch.multiple(image_model, _fold=lambda *_: None, _layers=lambda *_: set()):
        eager = load_encoders(specs, device="cpu", dtype="float32", runtime="torch")
    return {
        _EAGER: eager,
        "torch, float32": load_encoders(specs, device="cpu", dtype="float32", runtime="torch"),
        "torch, bfloat16": load_encoders(specs, device="cpu", dtype="bfloat16", runtime="torch"),
        "onnxruntime, float32": load_encoders(ExportedFolder(scratch / "float32").specs(), device="cpu"),
        "onnxruntime, int8": load_encoders(ExportedFolder(scratch / "int8").specs(), device="cpu"),
    }


def _embedded(encoders: EncoderSet, paths: Sequence[Path]) -> Mapping[str, NDArray[np.float32]]:
    parts = [
        encoders.encode_images([encoders.preprocess(load_image(path)) for path in part]) for part in batches(paths, 32)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    typer.run(compare)
