#!/usr/bin/env python
"""Measures stores with few references, where some images belong to no category.

    python scripts/small_stores.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category, and may have a folder `unknown` with
images of no category. Each draw takes some categories and some references of each; with 0 references, categories are
known by their names alone. Strangers are photos of the other categories, half of them images of `unknown` if there are
any; there are as many strangers as known photos. FPR 95 is the share of the strangers that pass if 95 % of the known
photos do. ± is a standard error over the draws. The last table has the constants of `zsvec.method.predict.novelty`,
fitted on all sets, and on all sets but one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from standing.measure import mean_and_error

import zsvec
from zsvec.encoders import load_encoders
from zsvec.encoders.base import batches
from zsvec.evaluation.metrics import auroc
from zsvec.inputs.folders import find_images
from zsvec.inputs.images import load_image
from zsvec.method.similarities import SearchResult
from zsvec.settings.profiles import PROFILES

app = typer.Typer(add_completion=False)
console = Console(width=120)  # so that no header is cut off
_PHOTOS = 30  # number of known photos in a draw
_NEAREST = 5  # references that `top_mean` averages
_ODDS = 3.0  # known images per stranger

Vectors = dict[str, NDArray[np.float32]]


@app.command()
def small_stores(
    folders: list[Path],
    categories: Annotated[list[int], typer.Option(help="Categories of a store.")] = [2, 3, 5, 10],  # noqa: B006
    references: Annotated[list[int], typer.Option(help="References of a category.")] = [0, 1, 2, 3, 5, 10],  # noqa: B006
    draws: int = 30,
) -> None:
    """Measure how many strangers are called unknown, and how often confident answers are right."""
    rows: list[dict[str, Any]] = []
    encoders = load_encoders(PROFILES["offline"].encoders, device="cpu", dtype="float32", batch_size=64)
    for folder in folders:
        parts = {part: _embed(folder / part, encoders) for part in ("references", "photos", "unknown")}
        sizes = [(count, n) for count in categories for n in references]
        with zsvec.open(":memory:", profile="offline", device="cpu", dtype="float32") as clf:
            for count, n in track(sizes, folder.name, console=Console(stderr=True), transient=True):
                for seed in range(draws):
                    rows += _draw(clf, parts, count, n, seed, folder.name)
    table = Table(
        *("set", "n", "unknown strangers", "unknown known", "AUROC", "FPR 95", "top-1", "NLL"),
        *("> 90 %", "right", "> 99 %", "right"),
    )
    for name in [folder.name for folder in folders]:
        for n in references:
            table.add_row(name, str(n), *_figures([row for row in rows if (row["set"], row["n"]) == (name, n)]))
        table.add_row(name, "all", *_figures([row for row in rows if row["set"] == name]))
    table.add_row("all", "all", *_figures(rows))
    console.print(table)
    fitted = Table("fitted on", "slope", "offset", "slope of words", "offset of words")
    for left_out in (None, *(folder.name for folder in folders)):
        some = [row for row in rows if row["set"] != left_out]
        if some:
            numbers = [*_prior(some, "above"), *_prior(some, "words")]
            fitted.add_row(f"all but {left_out}" if left_out else "all", *(f"{one:.2f}" for one in numbers))
    console.print(fitted)


def _embed(folder: Path, encoders: Any) -> tuple[Vectors, NDArray[np.str_]]:
    """Returns the vectors of all images below a folder by encoder, and the name of the folder that each image is in."""
    paths = find_images(folder) if folder.is_dir() else []
    found: dict[str, list[NDArray[np.float32]]] = {encoder.name: [] for encoder in encoders}
    for batch in batches(paths, 64):
        for name, vectors in encoders.encode_images([encoders.preprocess(load_image(path)) for path in batch]).items():
            found[name].append(vectors)
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}, np.array(
        [p.parent.name for p in paths]
    )


def _draw(clf: zsvec.Classifier, parts: Any, count: int, n: int, seed: int, name: str) -> list[dict[str, Any]]:
    """Returns a row of measurements for each image of a draw; none if the set has too few categories or references."""
    (stored, owners), (photos, truth), (strange, _) = parts["references"], parts["photos"], parts["unknown"]
    names, sizes = np.unique(owners, return_counts=True)
    if count > len(names) or n > sizes.min():
        return []
    random = np.random.default_rng([count, n, seed])
    chosen = sorted(random.choice(names, count, replace=False).tolist())
    own = {one: random.choice(np.flatnonzero(owners == one), n, replace=False) for one in chosen}
    clf.add_categories(
        zsvec.CategoryInput(name=one, vectors={f"{e}:image": vectors[rows] for e, vectors in stored.items() if n})
        for one, rows in own.items()
    )
    inside = np.isin(truth, chosen)
    known = random.permutation(np.flatnonzero(inside))[:_PHOTOS]
    far = random.permutation(len(next(iter(strange.values()), ())))[: len(known) // 2]
    other = random.permutation(np.flatnonzero(~inside))[: len(known) - len(far)]
    queries = {
        e: np.concatenate([v[known], v[other], *([strange[e][far]] if len(far) else [])]) for e, v in photos.items()
    }
    found = clf._predictor._searched(queries)
    found = replace(found, words=clf._predictor._everyday())
    scoring = clf._predictor._scoring
    answers = scoring.predict(found, [""] * len(next(iter(queries.values()))), count)
    deviations = _deviations(found, [str(answer.nearest) for answer in answers])
    right = [*truth[known].tolist(), *[None] * (len(answers) - len(known))]
    rows = []
    for image, (answer, category) in enumerate(zip(answers, right, strict=True)):
        above = []
        for e, vectors in stored.items() if n else ():
            mean = {one: _nearest(queries[e][image] @ vectors[some].T) for one, some in own.items()}
            between = [vectors[own[a]] @ vectors[own[b]].T for a in own for b in own if a != b]
            unit = PROFILES["offline"].encoders[e].temperature["image"]
            above.append((mean[str(answer.nearest)] - float(np.mean(between))) / unit)
        told = dict(answer.ranking)
        rows.append(
            {
                "set": name,
                "n": n,
                "draw": (count, seed),
                "known": category is not None,
                "right": answer.nearest == category,
                "p": answer.probability,
                "unknown": answer.unknown,
                "novelty": answer.novelty,
                "above": float(np.mean(above)) if 0 < n <= _NEAREST else None,
                "words": deviations[image] if n == 0 else None,
                "nll": -np.log(max(told.get(category, 0.0), 1e-12)) if category else None,
            }
        )
    for one in chosen:
        clf.remove_category(one)
    return rows


def _deviations(found: SearchResult, nearest: list[str]) -> list[float]:
    """Returns `zsvec.method.predict.novelty.word_deviations` of a profile with one encoder of texts."""
    (expert,) = (expert for expert in found.experts if expert.modality == "text")
    own = expert.similarities.aggregate("top_mean", _NEAREST)
    others = found.queries[expert.encoder] @ found.words[expert.encoder].T
    columns = [found.categories.index(name) for name in nearest]
    above = (own[np.arange(len(nearest)), columns] - others.mean(axis=1)) / others.std(axis=1)
    deviations: list[float] = (above - np.sqrt(2 * np.log(len(found.categories)))).tolist()
    return deviations


def _nearest(similarities: NDArray[np.float32]) -> float:
    return float(np.sort(similarities)[-_NEAREST:].mean())


def _figures(rows: list[dict[str, Any]]) -> list[str]:
    known, strangers = [row for row in rows if row["known"]], [row for row in rows if not row["known"]]
    shown = [
        *(_over_draws(some, lambda draw: np.mean([row["unknown"] for row in draw])) for some in (strangers, known)),
        _over_draws(rows, lambda draw: auroc(*_novelties(draw)), both=True),
        _over_draws(rows, lambda draw: _passing(*_novelties(draw)), both=True),
        _percent([row["right"] for row in known]),
        f"{np.mean([row['nll'] for row in known]):.3f}" if known else "",
    ]
    for limit in (0.9, 0.99):
        sure = [row["p"] > limit and not row["unknown"] for row in rows]
        shown += [_percent(sure), _percent([row["right"] for row, is_sure in zip(rows, sure, strict=True) if is_sure])]
    return shown


def _novelties(rows: list[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([row["novelty"] for row in rows]), np.array([not row["known"] for row in rows])


def _passing(novelty: NDArray[np.float64], strange: NDArray[np.bool_]) -> float:
    return float(np.mean(novelty[strange] <= np.quantile(novelty[~strange], 0.95)))


def _over_draws(
    rows: list[dict[str, Any]], figure: Callable[[list[dict[str, Any]]], Any], *, both: bool = False
) -> str:
    """Returns the mean of a figure over the draws in percent, with its standard error.

    With `both`, draws without strangers are left out: those with all categories of a set that has no other images.
    """
    draws: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        draws.setdefault((row["set"], row["n"], row["draw"]), []).append(row)
    used = [draw for draw in draws.values() if not both or {row["known"] for row in draw} == {True, False}]
    return mean_and_error([100 * float(figure(draw)) for draw in used], 1)


def _percent(flags: list[bool]) -> str:
    return f"{np.mean(flags):.1%}" if flags else ""


def _prior(rows: list[dict[str, Any]], feature: str) -> tuple[float, float]:
    """Returns the slope and the offset of the log odds that an image is known; NaN if no row has the feature."""
    some = [row for row in rows if row[feature] is not None]
    if not some:
        return np.nan, np.nan
    values = np.array([[row[feature]] for row in some])
    made = LogisticRegression(C=1e3, class_weight="balanced").fit(values, [row["known"] for row in some])
    return float(made.coef_[0, 0]), float(made.intercept_[0] + np.log(_ODDS))


if __name__ == "__main__":
    app()
