#!/usr/bin/env python
"""Measures whole sets of images that are classified together, beside the same images classified one by one.

    python scripts/together.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category, and may have a folder `unknown` with
images of no category. Each draw pools the images of the first two folders and divides them again at random: all images
that are not references are photos. The sets of photos are:

- all photos; a geometric distribution, in which the most frequent category has all its photos and the rarest has one;
- the photos of three categories, or of one;
- all photos, or 100 of them, with all images of no category;
- 64, 10 or 2 random photos;
- at most 64 photos of three categories.

Images of no category count in no figure. The draws share images, so the standard errors are somewhat too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from standing.measure import Asked, scoring_of, show
from standing.sets import embed, progress
from standing.trials import Draw, Numbers, Trial

from zsvec.encoders import load_encoders
from zsvec.encoders.base import batches
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.method.calibrate.fit import calibration_floor, expected_calibration_error
from zsvec.method.predict.together import Batch, together
from zsvec.method.similarities import category_names
from zsvec.search.in_process import compare
from zsvec.settings.profiles import PROFILES
from zsvec.types import Prediction

app = typer.Typer(add_completion=False)


@app.command()
def whole_sets(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References a category.")] = [1, 3, 10],  # noqa: B006
    draws: int = 20,
) -> None:
    """Measure whole sets of images that are classified together."""
    for folder in folders:
        images = embed(folder, profile)
        unknown = _embed(folder / "unknown", profile)
        first = len(next(iter(images.vectors.values())))
        strangers = np.arange(first, first + len(next(iter(unknown.values()), ())))
        images = replace(
            images,
            vectors={
                e: np.concatenate([v, *([unknown[e]] if e in unknown else [])]) for e, v in images.vectors.items()
            },
        )
        measured: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
        for seed in track(range(draws), f"measuring {images.name}", console=progress, transient=True):
            draw = Draw(images, seed)
            for count in counts:
                asked = Asked.of(images, Trial(draw.equal(count), {}, draw.truth))
                for title, sets in _sets(draw, count, strangers):
                    answers = [_classified(asked, numbers) for numbers in sets]
                    for i, way in enumerate(("alone", "together")):
                        figures = _figures(draw, sets, [both[i] for both in answers])
                        measured[f"{count} reference{'s'[: count > 1]}, {title}"][way].append(figures)
        show(f"{images.name}, {draws} draws", measured)


def _embed(folder: Path, profile: str) -> dict[str, NDArray[np.float32]]:
    """Returns the vectors of the images in a folder, by encoder; empty without a folder."""
    if not folder.is_dir():
        return {}
    encoders = load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=64)
    found: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    for batch in batches(find_images(folder), 64):
        for name, vectors in encoders.encode_images([encoders.preprocess(load_image(path)) for path in batch]).items():
            found[name].append(vectors)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _sets(draw: Draw, count: int, strangers: Numbers) -> Iterator[tuple[str, Sequence[Numbers]]]:
    """Yields the sets of photos of each condition."""
    random = draw.random
    photos = {name: numbers[count:] for name, numbers in draw.order.items()}

    def of(names: Sequence[str]) -> Numbers:
        return random.permutation(np.concatenate([photos[name] for name in names]))

    everything = of(draw.names)
    yield "all photos", [everything]
    most = min(map(len, photos.values()))
    sizes = np.round(np.geomspace(most, 1, len(photos))).astype(int).tolist()
    geometric = [
        np.concatenate([photos[name][:size] for name, size in zip(random.permutation(draw.names), sizes, strict=True)])
        for _ in range(2)
    ]
    yield "geometric", geometric
    yield "3 categories", [of(random.choice(draw.names, 3, replace=False).tolist()) for _ in range(3)]
    yield "1 category", [of([str(random.choice(draw.names))]) for _ in range(3)]
    if len(strangers):
        yield f"all and {len(strangers)} unknown", [np.concatenate([everything, strangers])]
        yield f"100 and {len(strangers)} unknown", [np.concatenate([everything[:100], strangers])]
    for size, number in ((64, 4), (10, 10), (2, 10)):
        yield f"{size} photos", [random.permutation(everything)[:size] for _ in range(number)]
    random = random.spawn(1)[0]  # the other sets stay the same
    yield "64 photos of 3 categories", [of(random.choice(draw.names, 3, replace=False).tolist())[:64] for _ in range(4)]


def _classified(asked: Asked, numbers: Numbers) -> tuple[list[Prediction], list[Prediction]]:
    """Returns the predictions of the images alone, and together."""
    names = category_names(asked.references)
    queries = {encoder: vectors[numbers] for encoder, vectors in asked.images.vectors.items()}
    found = replace(compare(asked.references, names, queries, nearest=1), calibration=asked.calibration)
    parts = scoring_of(asked.references).predict_in_parts(found, [str(number) for number in numbers], top_k=1)
    alone = [prediction for _, predictions in parts for prediction in predictions]
    return alone, together(alone, [Batch.of(found, [scores for scores, _ in parts])], top_k=1)


def _figures(draw: Draw, sets: Sequence[Numbers], answers: Sequence[Sequence[Prediction]]) -> dict[str, float]:
    """Returns figures in percent, by name, of the images that have a category."""
    pairs = zip(np.concatenate(sets).tolist(), (one for some in answers for one in some), strict=True)
    known = [(draw.truth[number], prediction) for number, prediction in pairs if number in draw.truth]
    right = np.array([name == prediction.nearest for name, prediction in known])
    confidence = np.array([prediction.probability for _, prediction in known])
    return {
        "top1": 100 * float(right.mean()),
        "ece": 100 * expected_calibration_error(confidence, right),
        "floor": 100 * calibration_floor(confidence),
        "unknown": 100 * float(np.mean([prediction.unknown for _, prediction in known])),
    }


if __name__ == "__main__":
    app()
