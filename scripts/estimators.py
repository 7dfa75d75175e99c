#!/usr/bin/env python
"""Compares `ReferenceClassifier` with classifiers of scikit-learn on the vectors of images.

    python scripts/estimators.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. Each draw pools the images of both
folders and divides them again at random. All classifiers get the vectors of the image encoders, concatenated. The draws
share images, so the standard errors are somewhat too small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from standing.measure import mean_and_error
from standing.sets import Images, embed, progress
from standing.trials import Draw

from zsvec.integrations.estimators import ReferenceClassifier

app = typer.Typer(add_completion=False)

# Each takes the number of references of a class, and the dimension of each encoder.
_CLASSIFIERS: Mapping[str, Callable[[int, list[int]], Any]] = {
    "ReferenceClassifier": lambda _, dims: ReferenceClassifier(dims=dims),
    "ReferenceClassifier, without dims": lambda *_: ReferenceClassifier(),
    "LogisticRegression": lambda *_: LogisticRegression(max_iter=1000),
    "LogisticRegression, C=100": lambda *_: LogisticRegression(C=100, max_iter=1000),
    "KNeighborsClassifier": lambda count, _: KNeighborsClassifier(min(5, count)),
    "NearestCentroid": lambda *_: NearestCentroid(),
}


def measured(images: Images, count: int, classifier: str, seed: int) -> tuple[float, float]:
    """Returns accuracy in percent and log-loss in nats in one draw. The log-loss is NaN without probabilities."""
    draw = Draw(images, seed)
    vectors = np.concatenate([images.vectors[encoder] for encoder in sorted(images.vectors)], axis=1)
    numbers, names = zip(*draw.equal(count), strict=True)
    truth = [draw.truth[number] for number in draw.photos.tolist()]
    made = _CLASSIFIERS[classifier](count, [images.vectors[encoder].shape[1] for encoder in sorted(images.vectors)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about one reference a class
        made.fit(vectors[list(numbers)], names)
    right = 100 * float(np.mean(made.predict(vectors[draw.photos]) == truth))
    if count == 1 and isinstance(made, NearestCentroid):  # its probabilities need the variance within classes
        return right, np.nan
    return right, float(log_loss(truth, made.predict_proba(vectors[draw.photos]), labels=made.classes_))


@app.command()
def estimators(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References a class.")] = [1, 3, 10],  # noqa: B006
    draws: int = 10,
) -> None:
    """Measure accuracy and log-loss over random draws of references and photos."""
    for folder in folders:
        images = embed(folder, profile)
        caption = "accuracy in percent, log-loss in nats; ± is a standard error over the draws"
        headers = [f"{count}: {figure}" for count in counts for figure in ("accuracy", "log-loss")]
        table = Table(
            Column(no_wrap=True), *headers, box=SIMPLE_HEAD, title=f"{images.name}, {draws} draws", caption=caption
        )
        for classifier in track(_CLASSIFIERS, f"measuring {images.name}", console=progress, transient=True):
            cells = []
            for count in counts:
                found = np.array([measured(images, count, classifier, seed) for seed in range(draws)])
                cells += [mean_and_error(found[:, 0].tolist(), 1), mean_and_error(found[:, 1].tolist(), 3)]
            table.add_row(classifier, *cells)
        Console(highlight=False, width=200).print(table)


if __name__ == "__main__":
    app()
