#!/usr/bin/env python
"""Measures the answers of a tree: how many are right, and how much they tell.

    python scripts/tree.py SET…

SET is a folder named `caltech24` or `cifar10`, whose categories have the parents in `PARENTS`. Each draw divides the
images of the folders `references` and `photos` anew. An answer is right if the category of the photo is below it. It
tells ``log2(categories / categories below it)`` bits, or 0 if it is wrong or missing (Deng et al. 2012).

- `top-1`: always the most probable category;
- `category at P`: the most probable category if its probability is at least P;
- `node at P`: `Prediction.at(min_accuracy=P)`;
- `rule of SpeciesNet`: the first node above the most probable category whose sum exceeds 0.65.

With `--left-out`, a random share of the categories has no references; with `--without`, nor has any category below a
node. Then only photos that are called unknown count: of categories with references ("known"), of others in a group
that the store has ("near"), and of further ones ("far").

The draws share images, so the standard errors are somewhat too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from standing.measure import Asked, mean_and_error, scoring_of
from standing.sets import Images, embed, progress
from standing.trials import Draw, Trial

from zsvec.method.predict.tree import Tree, ancestors
from zsvec.method.similarities import category_names
from zsvec.search.in_process import compare
from zsvec.types import Prediction

PARENTS: Mapping[str, Mapping[str, str]] = {
    "caltech24": {
        **dict.fromkeys(("flamingo_head", "ibis", "pigeon"), "animal > bird"),
        **dict.fromkeys(("beaver", "dalmatian", "kangaroo", "platypus"), "animal > mammal"),
        **dict.fromkeys(("crocodile", "hawksbill"), "animal > reptile"),
        **dict.fromkeys(("ant", "starfish"), "animal > invertebrate"),
        "bass": "animal",
        **dict.fromkeys(("airplanes", "ketch"), "artefact > vehicle"),
        **dict.fromkeys(("minaret", "pagoda"), "artefact > building"),
        **dict.fromkeys(("barrel", "ceiling_fan", "lamp"), "artefact > household"),
        **dict.fromkeys(("revolver", "soccer_ball"), "artefact"),
        **dict.fromkeys(("bonsai", "sunflower"), "plant"),
    },
    "cifar10": {
        **dict.fromkeys(("automobile", "truck"), "vehicle > road"),
        **dict.fromkeys(("airplane", "ship"), "vehicle"),
        **dict.fromkeys(("cat", "dog"), "animal > mammal > pet"),
        **dict.fromkeys(("deer", "horse"), "animal > mammal > hoofed"),
        **dict.fromkeys(("bird", "frog"), "animal"),
    },
}
ACCURACIES = (0.8, 0.9, 0.95)
_SPECIESNET = 0.65
app = typer.Typer(add_completion=False)
_Node = tuple[str, ...]


def predictions(images: Images, trial: Trial, photos: NDArray[np.intp]) -> list[Prediction]:
    """Returns the predictions for photos, with complete rankings."""
    asked = Asked.of(images, trial)
    names = category_names(asked.references)
    queries = {encoder: vectors[photos] for encoder, vectors in images.vectors.items()}
    found = replace(
        compare(asked.references, names, queries, nearest=1),
        calibration=asked.calibration,
        tree=Tree.of(names, PARENTS[images.name]),
    )
    return scoring_of(asked.references).predict(found, [""] * len(photos), top_k=len(names))


def answers(prediction: Prediction, whole: Mapping[str, _Node]) -> dict[str, _Node | None]:
    """Returns the answer of each way: a node as the names on the path, or ``None``.

    Args:
        prediction: A prediction with a complete ranking.
        whole: The path of each category.
    """
    best, probability = prediction.ranking[0]
    found: dict[str, _Node | None] = {"top-1": whole[best], "rule of SpeciesNet": None}
    for length in range(len(whole[best]), 0, -1):
        node = whole[best][:length]
        if sum(p for name, p in prediction.ranking if whole[name][:length] == node) > _SPECIESNET:
            found["rule of SpeciesNet"] = node
            break
    for accuracy in ACCURACIES:
        found[f"category at {accuracy}"] = whole[best] if probability >= accuracy else None
    for accuracy in (_SPECIESNET, *ACCURACIES):
        found[f"node at {accuracy}"] = at(prediction, accuracy)
    return found


def at(prediction: Prediction, accuracy: float) -> _Node | None:
    """Returns the answer of `Prediction.at` as the names on the path; ``None`` without an answer."""
    answer = prediction.at(accuracy)
    return None if answer is None else tuple(name for name, p in prediction.path if p >= accuracy)


@app.command()
def tree(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References a category.")] = [3, 10, 40],  # noqa: B006
    left_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the categories without references.")] = 0.0,
    without: Annotated[str | None, typer.Option(help="Node below which no category has references.")] = None,
    draws: int = 10,
) -> None:
    """Measure the answers of a tree over random draws of references and photos."""
    if wrong := [folder.name for folder in folders if folder.name not in PARENTS]:
        raise typer.BadParameter(f"SET must be named {' or '.join(PARENTS)}, got {wrong[0]!r}")
    for folder in folders:
        images = embed(folder, profile)
        table = Table("", *_COLUMNS, box=SIMPLE_HEAD, title=f"{images.name}, {draws} draws", title_justify="left")
        for count in (count for count in counts if count <= images.most):
            measured: dict[str, list[list[float]]] = defaultdict(list)
            for seed in track(range(draws), f"measuring {images.name}", console=progress, transient=True):
                draw = Draw(images, seed)
                gone = {name for name, path in _paths(draw).items() if without in path}
                gone |= set(draw.random.choice(draw.names, round(left_out * len(draw.names)), replace=False).tolist())
                for way, figures in (_strangers(draw, count, gone) if gone else _known(draw, count)).items():
                    measured[way].append(figures)
            table.add_row(f"{count} references")
            for way, rows in measured.items():
                cells = [
                    mean_and_error(column, digits)
                    for column, digits in zip(zip(*rows, strict=True), (1, 1, 2), strict=True)
                ]
                table.add_row(f"  {way}", *cells)
        Console(highlight=False, width=120).print(table)


_COLUMNS = ("answered %", "of these right %", "bits")


def _known(draw: Draw, count: int) -> dict[str, list[float]]:
    """Returns, by way, the answered share, the share of right answers, and the mean information of all photos."""
    whole = _paths(draw)
    found: dict[str, list[tuple[bool, bool, float]]] = defaultdict(list)
    predicted = predictions(draw.images, _trial(draw, count, set()), draw.photos)
    for number, one in zip(draw.photos.tolist(), predicted, strict=True):
        truth = whole[draw.truth[number]]
        for way, node in answers(one, whole).items():
            right = node is not None and truth[: len(node)] == node
            below = sum(path[: len(node)] == node for path in whole.values()) if node else 1
            found[way].append((node is not None, right, np.log2(len(whole) / below) if right else 0.0))
    return {way: _figures(rows) for way, rows in found.items()}


def _strangers(draw: Draw, count: int, gone: set[str]) -> dict[str, list[float]]:
    """As `_known`, for photos that are called unknown, by their kind. Their information is not counted.

    Args:
        draw: The draw.
        count: Number of references of each category.
        gone: Categories without references.
    """
    whole = _paths(draw)
    groups = {path[:length] for name, path in whole.items() if name not in gone for length in range(1, len(path))}
    found: dict[str, list[tuple[bool, bool, float]]] = defaultdict(list)
    predicted = predictions(draw.images, _trial(draw, count, gone), draw.photos)
    for number, one in zip(draw.photos.tolist(), predicted, strict=True):
        if not one.unknown:
            continue
        name, truth = draw.truth[number], whole[draw.truth[number]]
        kind = "known" if name not in gone else "near" if truth[:1] in groups else "far"
        for accuracy in ACCURACIES:
            node = at(one, accuracy)
            # Of an unknown image, the path may begin below a node that is above all categories.
            right = node is not None and any(truth[i : i + len(node)] == node for i in range(len(truth)))
            for rows in (found[f"{kind}, at {accuracy}"], found[f"all, at {accuracy}"]):
                rows.append((node is not None, right, np.nan))
    return {way: _figures(found[way]) for way in sorted(found)}


def _figures(rows: list[tuple[bool, bool, float]]) -> list[float]:
    answered, right, bits = np.array(rows, dtype=float).T
    return [100 * answered.mean(), 100 * right.sum() / answered.sum() if answered.any() else np.nan, bits.mean()]


def _paths(draw: Draw) -> dict[str, _Node]:
    return {name: (*ancestors(name, PARENTS[draw.images.name]), name) for name in draw.names}


def _trial(draw: Draw, count: int, gone: set[str]) -> Trial:
    return Trial([row for row in draw.equal(count) if row[1] not in gone], {}, draw.truth)


if __name__ == "__main__":
    app()
