"""Decoding and preprocessing, beside what Pillow alone takes for the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageOps

from benchmarks.measure import Device, Out, Row, Spent, interleaved, medians, ratio, report
from zsvec.encoders.preprocessing import Preprocessing
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image

_KINDS = {"300×200": "jpg", "500×375": "jpg", "840×560": "jpg", "4000×3000": "jpg", "500×375 PNG": "png"}
_PREPROCESSING = Preprocessing(size=224, scaled=256, interpolation="bicubic")  # of EfficientNet-Lite0
_FILTER = Image.Resampling.BICUBIC


def decoding(
    folder: Path,
    images: Annotated[int, typer.Option(help="Of each kind; a sixteenth of the largest.")] = 128,
    rounds: int = 9,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Milliseconds an image, in one thread, for files of several sizes that are made from those of FOLDER."""
    rows: list[Row] = []
    raw: dict[str, dict[str, list[Spent]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, suffix in _KINDS.items():
            size = _size(kind)
            count = max(1, images // 16) if size[0] > 1000 else images
            paths = _write(find_images(folder)[:count], size, suffix, Path(scratch))
            raw[kind] = times = interleaved(_ways(paths), rounds)
            milliseconds = {way: 1000 * taken / len(paths) for way, taken in medians(times).items()}
            rows.append(
                {
                    "files": kind,
                    **milliseconds,
                    "decode: Pillow's share": ratio(times, "decode", "Pillow decodes"),
                    "preprocess: Pillow's share": ratio(times, "preprocess", "Pillow resizes"),
                }
            )
    report(
        "decoding",
        f"{images} images of each kind (the largest: {max(1, images // 16)}), {rounds} rounds",
        {"ms an image": rows},
        out=out,
        draw=lambda axes: axes.bar([str(row["files"]) for row in rows], [float(row["decode"]) for row in rows]),
        device=device,
        raw={"seconds": raw},
        notes=[
            "Shares of medians, with their 95 % intervals over the rounds.",
            "Pillow opens the file, decodes at the same size and resizes twice, to the same pixels.",
        ],
    )


def _size(kind: str) -> tuple[int, int]:
    width, height = kind.split()[0].split("×")
    return int(width), int(height)


def _write(sources: Sequence[Path], size: tuple[int, int], suffix: str, into: Path) -> list[Path]:
    paths = []
    for number, source in enumerate(sources):
        paths.append(into / f"{number}-{size[0]}.{suffix}")
        ImageOps.fit(load_image(source), size, _FILTER).save(paths[-1], quality=90)
    return paths


def _ways(paths: Sequence[Path]) -> dict[str, Callable[[], object]]:
    decoded = [load_image(path, side=_PREPROCESSING.scaled) for path in paths]

    def each(step: Callable[..., object], items: Sequence[object]) -> Callable[[], None]:
        def take() -> None:
            for one in items:
                step(one)

        return take

    return {
        "decode": each(partial(load_image, side=_PREPROCESSING.scaled), paths),
        "Pillow decodes": each(partial(_decode, size=decoded[0].size), paths),
        "preprocess": each(_PREPROCESSING, decoded),
        "Pillow resizes": each(_resize, decoded),
    }


def _decode(path: Path, size: tuple[int, int]) -> None:
    with Image.open(path) as image:
        image.draft(None, size)
        image.load()


def _resize(image: Image.Image) -> Image.Image:
    kept = _PREPROCESSING._kept
    (left, right), (top, bottom) = map(kept, image.size, image.size[::-1])
    side = _PREPROCESSING.size
    wide = image.resize((side, image.height), _FILTER, box=(left, 0, right, image.height))
    return wide.resize((side, side), _FILTER, box=(0, top, side, bottom))
