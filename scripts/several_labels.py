#!/usr/bin/env python
"""Measures labels where an image may belong to several categories.

    python scripts/several_labels.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. Images with one to three categories
are made of them: crops of other photos are pasted into the corners of a photo. Each draw takes reference images at
random until every category has the requested number. The photos to label are the same in all draws, so the standard
errors are somewhat too small.

The baseline is a logistic regression for each category on the same vectors, with scikit-learn's defaults but C=10, and
a threshold of 0.5; also with balanced class weights. (C=1 is worse.)
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from standing.measure import calibration_of, mean_and_error, scoring_of
from standing.sets import progress

from zsvec.encoders import EncoderSet, load_encoders
from zsvec.encoders.base import batches
from zsvec.evaluation import LabelEvaluation, labelled_images
from zsvec.inputs.images import load_image
from zsvec.method.calibrate.fit import LabelSettings
from zsvec.method.similarities import laid_out
from zsvec.search.in_process import compare
from zsvec.settings.profiles import PROFILES
from zsvec.types import expert_name

app = typer.Typer(add_completion=False)
_SIDE = 400  # pixels of the longer side of a composite
_LABELS = {1: 0.35, 2: 0.45, 3: 0.2}  # frequency of each number of categories
_BATCH = 16  # images embedded at once
_RATE = 0.05  # requested false-positive rate
_PARTS = ("references", "photos")


@dataclass(frozen=True)
class Composites:
    """Embedded images of several categories.

    Attributes:
        names: Names of the categories.
        vectors: By encoder, float32 ``(n_images, dim)``.
        belongs: bool ``(n_images, n_categories)``.
    """

    names: Sequence[str]
    vectors: Mapping[str, NDArray[np.float32]]
    belongs: NDArray[np.bool_]

    def of(self, rows: NDArray[np.intp]) -> Composites:
        """Returns some of the images."""
        return Composites(self.names, {name: v[rows] for name, v in self.vectors.items()}, self.belongs[rows])


def composed(folder: Path, encoders: EncoderSet, number: int, seed: int) -> Composites:
    """Makes and embeds composites of the photos in a folder with a sub-folder per category."""
    rng = np.random.default_rng(seed)
    pool: dict[str, list[Path]] = defaultdict(list)
    for path, name in labelled_images(folder):
        pool[name].append(path)
    names = sorted(pool)
    belongs = np.zeros((number, len(names)), dtype=bool)
    found: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    numbered = track(list(batches(range(number), _BATCH)), f"embedding {folder}", console=progress, transient=True)
    for batch in numbered:
        images = []
        for i in batch:
            count = rng.choice(list(_LABELS), p=list(_LABELS.values()))
            others = rng.permutation([name for name in names if name != names[i % len(names)]])[: count - 1]
            own = [names[i % len(names)], *others.tolist()]
            belongs[i, [names.index(name) for name in own]] = True
            images.append(_composite([load_image(pool[name][rng.integers(len(pool[name]))]) for name in own], rng))
        for encoder, vectors in encoders.encode_images([encoders.preprocess(one) for one in images]).items():
            found[encoder].append(vectors)
    return Composites(names, {encoder: np.concatenate(parts) for encoder, parts in found.items()}, belongs)


def _composite(images: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Pastes the other images into random corners of the first, at half to seven tenths of its shorter side."""
    base = _scaled(images[0], _SIDE)
    for corner, image in zip(rng.permutation(4).tolist(), images[1:], strict=False):
        pasted = _scaled(image, round(rng.uniform(0.5, 0.7) * min(base.size)))
        base.paste(pasted, ((corner % 2) * (base.width - pasted.width), (corner // 2) * (base.height - pasted.height)))
    return base


def _scaled(image: Image.Image, side: int) -> Image.Image:
    factor = side / max(image.size)
    return image.convert("RGB").resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))


def drawn(pool: Composites, count: int, seed: int) -> Composites:
    """Returns random images, until every category has `count`; an image without a wanted category is skipped."""
    rows, counts = [], np.zeros(len(pool.names), dtype=int)
    for row in np.random.default_rng(seed).permutation(len(pool.belongs)):
        if (counts[pool.belongs[row]] < count).any():
            rows.append(row)
            counts += pool.belongs[row]
    return pool.of(np.array(rows))


def by_zsvec(references: Composites, photos: Composites, rate: float | None) -> LabelEvaluation:
    """Evaluates the labels that a store of the references gives."""
    images, owners = np.nonzero(references.belongs)
    labels, hashes = [references.names[owner] for owner in owners.tolist()], [f"{image:08d}" for image in images]
    stored = {
        expert_name(encoder, "image"): laid_out(vectors[images], labels, hashes, [""] * len(labels))
        for encoder, vectors in references.vectors.items()
    }
    calibration = calibration_of(stored, labels=LabelSettings(rate))
    if calibration is None:
        raise typer.BadParameter("no calibration: give more references")
    found = compare(stored, list(references.names), photos.vectors, nearest=1)
    scores = scoring_of(stored).scores(replace(found, calibration=calibration))
    if scores.label_probabilities is None or scores.label_thresholds is None:
        raise typer.BadParameter("no labels are learned: give more references")
    given = scores.label_probabilities >= scores.label_thresholds
    return LabelEvaluation.of(photos.names, scores.label_probabilities, given, photos.belongs)


def by_regression(references: Composites, photos: Composites, weights: str | None) -> LabelEvaluation:
    """Evaluates a logistic regression for each category."""
    known, new = (np.concatenate(list(one.vectors.values()), axis=1) for one in (references, photos))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        said = [
            LogisticRegression(C=10, class_weight=weights, max_iter=300).fit(known, yes).predict_proba(new)[:, 1]
            for yes in references.belongs.T
        ]
    probabilities = np.stack(said, axis=1)
    return LabelEvaluation.of(photos.names, probabilities, probabilities >= 0.5, photos.belongs)


_METHODS: Mapping[str, Callable[[Composites, Composites], LabelEvaluation]] = {
    "logistic regression": partial(by_regression, weights=None),
    "logistic regression, balanced": partial(by_regression, weights="balanced"),
    "zsvec, largest F1": partial(by_zsvec, rate=None),
    f"zsvec, {_RATE:.0%} false positives": partial(by_zsvec, rate=_RATE),
}
_COLUMNS: Mapping[str, Callable[[LabelEvaluation], float]] = {
    "mAP %": lambda found: found.mean_average_precision,
    "macro F1 %": lambda found: found.macro.f1,
    "micro F1 %": lambda found: found.micro_f1,
    "ECE %": lambda found: found.macro.ece,
    "false positives %": lambda found: found.macro.false_positives or 0.0,
}


@app.command()
def several_labels(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References a category.")] = [3, 10, 20],  # noqa: B006
    images: Annotated[int, typer.Option(help="Composites of references, and of photos.")] = 480,
    draws: int = 10,
) -> None:
    """Measure labels over random draws of references."""
    encoders = load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=64)
    for folder in folders:
        pool, photos = (composed(folder / part, encoders, images, seed) for seed, part in enumerate(_PARTS))
        title, caption = f"{folder.name}, {draws} draws", "± is a standard error over the draws"
        table = Table(Column(no_wrap=True), *_COLUMNS, box=SIMPLE_HEAD, title=title, caption=caption)
        for count in counts:
            stored = [drawn(pool, count, seed) for seed in range(draws)]
            table.add_row(f"{count} references, {np.mean([len(one.belongs) for one in stored]):.0f} images")
            for method, evaluated in _METHODS.items():
                measuring = track(stored, f"{count} references, {method}", console=progress, transient=True)
                found = [evaluated(one, photos) for one in measuring]
                cells = [mean_and_error([100 * value(one) for one in found], 1) for value in _COLUMNS.values()]
                table.add_row(f"  {method}", *cells)
        Console(highlight=False, width=200).print(table)


if __name__ == "__main__":
    app()
