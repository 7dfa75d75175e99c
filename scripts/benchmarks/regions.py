"""Measures the classification of boxes in large photographs, beside crops that are in memory already."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer
from PIL import Image

import zsvec
from benchmarks.measure import Cell, Device, interleaved, rates, ratio, report
from zsvec.inputs.folders import find_images, read_categories
from zsvec.inputs.images import load_image

_SIDE, _TILE = 8, (500, 375)  # tiles across and down, of which each scene of 12 megapixels is made
_QUALITY = 90


def regions(
    references: Path,
    photos: Path,
    profile: str = "offline",
    scenes: Annotated[int, typer.Option(help="Photographs of 12 megapixels.")] = 100,
    boxes: Annotated[int, typer.Option(help="Boxes in each.")] = 10,
    batch_size: int = 32,
    rounds: int = 5,
    device: Device = "cpu",
) -> None:
    """Measure boxes a second: one decoded image for all boxes, one for each box, and crops that are in memory."""
    with tempfile.TemporaryDirectory() as scratch:
        found = list(_scenes(find_images(photos), Path(scratch), scenes, boxes))
        in_order = [region for inside in found for region in inside]
        apart = [inside[number] for number in range(boxes) for inside in found]  # no two of an image in a row
        crops = [crop for inside in found for crop in _crops(inside)]
        with zsvec.open(
            f"{scratch}/store", profile=profile, batch_size=batch_size, device=cast("zsvec.Device", device)
        ) as classifier:
            classifier.add_categories(read_categories(references))

            def classify(images: Iterable[zsvec.ImageInput]) -> list[tuple[str | None, bool]]:
                with classifier.classify_stream(images) as stream:
                    return [(prediction.nearest, prediction.unknown) for prediction in stream]

            answers = [classify(crops), classify(in_order), classify(apart)]
            ways: dict[str, Callable[[], object]] = {
                "crops in memory": lambda: classify(crops),
                "regions, an image decoded once": lambda: classify(in_order),
                "regions, an image decoded for each": lambda: classify(apart),
                "decoding each image, in one thread": lambda: [load_image(inside[0].image) for inside in found],
            }
            times = interleaved(ways, rounds)
    in_memory, once, each, decoding = times.values()
    apart_again = [answers[2][number * scenes + scene] for scene in range(scenes) for number in range(boxes)]
    same = sum(one == two == three for one, two, three in zip(answers[0], answers[1], apart_again, strict=True))
    compared: list[dict[str, Cell]] = [
        {"figure": "same answers", "value": f"{same} of {len(crops)}"},
        {"figure": "decoded once ÷ decoded for each", "value": ratio(each, once)},
        {"figure": "decoded once ÷ in memory", "value": ratio(in_memory, once)},
        {"figure": "decoded once ÷ in memory and decoding", "value": ratio(np.add(in_memory, decoding).tolist(), once)},
    ]
    report(
        f"{scenes} photographs of 12 megapixels, {boxes} boxes in each, profile {profile}, {rounds} rounds",
        {"rates (medians)": rates(times, len(crops)), "ratios of rates": compared},
    )


def _scenes(photos: Sequence[Path], folder: Path, scenes: int, boxes: int) -> Iterator[list[zsvec.Region]]:
    """Writes JPEG files that are made of photographs. Yields regions that each have one of these."""
    random = np.random.default_rng(0)
    tiles = [Image.open(path).convert("RGB").resize(_TILE) for path in photos]
    for scene in range(scenes):
        whole = Image.new("RGB", (_SIDE * _TILE[0], _SIDE * _TILE[1]))
        places = [(_TILE[0] * (place % _SIDE), _TILE[1] * (place // _SIDE)) for place in range(_SIDE**2)]
        for place in places:
            whole.paste(tiles[random.integers(len(tiles))], place)
        path = folder / f"{scene:04}.jpg"
        whole.save(path, quality=_QUALITY)
        chosen = [places[place] for place in random.choice(len(places), boxes, replace=False)]
        yield [zsvec.Region(path, (left, top, left + _TILE[0], top + _TILE[1])) for left, top in chosen]


def _crops(inside: Sequence[zsvec.Region]) -> Iterator[Image.Image]:
    whole = load_image(inside[0].image)
    return (region.cut_from(whole) for region in inside)
