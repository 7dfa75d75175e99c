#!/usr/bin/env python
"""Measures whether sets of candidates have the right category as often as promised, and how large the sets are.

    python scripts/candidate_sets.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. Each draw pools the images of both
folders and divides them again at random. Within a draw, no photo is also a reference.

Sets by leaving out are compared with split conformal prediction with the same log odds: half of the references
classify, and the other half give the quantiles. The draws share images, so the standard errors are somewhat too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from standing.measure import Asked, Draws, mean_and_error
from standing.sets import embed, progress
from standing.trials import Draw, Rows, Trial

from zsvec.method.calibrate.thresholds import odds_quantiles, right_labels
from zsvec.method.predict.candidates import log_odds
from zsvec.method.predict.opinion_pool import pattern, pooled_evidence

app = typer.Typer(add_completion=False)
_WANTED = (0.8, 0.9, 0.95)
Scenes = Sequence[tuple[Sequence[int], str]]
"""Image numbers of each scene among the references, and the category."""


@app.command()
def candidate_sets(folders: list[Path], profile: str = "offline", draws: int = 30) -> None:
    """Measure the coverage and the size of sets of candidates over random draws."""
    for folder in folders:
        images = embed(folder, profile)
        measured: dict[str, list[dict[str, float]]] = defaultdict(list)
        for seed in track(range(draws), f"measuring {images.name}", console=progress, transient=True):
            draw = Draw(images, seed)
            for title, scenes in _conditions(draw):
                measured[title].append(_figures(draw, _asked(draw, scenes)))
                measured[f"{title}, split"].append(_figures(draw, _split(draw, scenes)))
        _show(f"{images.name}, {draws} draws", measured, draw.names)


def _conditions(draw: Draw) -> Iterator[tuple[str, Scenes]]:
    """Yields the references of each condition."""

    def alone(rows: Rows) -> Scenes:
        return [((number,), name) for number, name in rows]

    most = draw.images.most
    for count in (count for count in (3, 10, 40) if count <= most):
        yield f"{count} references", alone(draw.equal(count))
    yield f"{most}, 20% wrong labels", alone(draw.mislabelled(draw.equal(most), 0.2))
    yield "10 bursts of 5", [((number, *draw.images.bursts[number]), name) for number, name in draw.equal(10)]


def _asked(draw: Draw, scenes: Scenes) -> Asked:
    rows = [(number, name) for numbers, name in scenes for number in numbers]
    return Asked.of(draw.images, Trial(rows, {}, draw.truth))


def _split(draw: Draw, scenes: Scenes) -> Asked:
    """Returns half of the references, with quantiles from the first image of each other scene."""
    by_category: dict[str, list[Sequence[int]]] = defaultdict(list)
    for numbers, name in scenes:
        by_category[name].append(numbers)
    kept, others = [], []
    for name, found in by_category.items():
        half = (len(found) + 1) // 2
        kept += [(numbers, name) for numbers in found[:half]]
        others += [(numbers[0], name) for numbers in found[half:]]
    asked = _asked(draw, kept)
    if asked.calibration is None:
        return asked
    used = "classwise" if asked.calibration.classwise else "aggregations"
    pool = getattr(asked.calibration, used)
    queries = {encoder: vectors[[number for number, _ in others]] for encoder, vectors in draw.images.vectors.items()}
    names, evidence = pooled_evidence(asked.references, queries, pool, asked.calibration)
    odds = log_odds(evidence, np.arange(len(others)), np.searchsorted(names, [name for _, name in others]))
    quantiles = odds_quantiles(odds, right_labels(odds, pool.noise, len(names)))
    covering = pattern(list(asked.references), np.ones(len(asked.references), dtype=bool))
    learned = replace(pool, odds={covering: quantiles}, category_odds={})
    return replace(asked, calibration=replace(asked.calibration, **{used: learned}))


def _figures(draw: Draw, asked: Asked) -> dict[str, float]:
    """Returns the figures of a draw, in percent except sizes. Coverages that are not promised are left out."""
    predictions = asked.predictions(draw.photos)
    truth = np.array([draw.truth[number] for number in draw.photos.tolist()])
    figures = {"top1": 100 * float(np.mean([one.nearest for one in predictions] == truth))}
    for wanted in _WANTED:
        sets = [found for one in predictions if (found := one.candidates(wanted))]
        if len(sets) < len(truth):
            continue
        strict = [
            [name for name, least in p.candidate_sets.entries if least <= wanted]
            for p in predictions
            if p.candidate_sets
        ]
        covered = np.array([name in found for name, found in zip(truth, sets, strict=True)])
        figures[f"coverage {wanted}"] = 100 * float(covered.mean())
        figures[f"strict {wanted}"] = 100 * float(
            np.mean([name in found for name, found in zip(truth, strict, strict=True)])
        )
        figures[f"size {wanted}"] = float(np.mean([len(found) for found in sets]))
        figures |= {f"{name} {wanted}": 100 * float(covered[truth == name].mean()) for name in draw.names}
    return figures


def _show(title: str, measured: Mapping[str, Draws], names: Sequence[str]) -> None:
    columns = [f"{header} {wanted:.0%}" for wanted in _WANTED for header in ("coverage", "strict", "lowest", "size")]
    caption = (
        "± is a standard error over the draws; strict: without the rule that every set has the most probable category; "
        "lowest: coverage of the category with the lowest"
    )
    table = Table(Column(no_wrap=True), "top-1", *columns, box=SIMPLE_HEAD, title=title, title_justify="left")
    table.caption = caption
    for condition, draws in measured.items():
        cells = [_cell(draws, "top1", 1)]
        for wanted in _WANTED:
            told = [draw for draw in draws if f"size {wanted}" in draw]
            lowest = min(np.mean([draw[f"{name} {wanted}"] for draw in told]) for name in names) if told else np.nan
            cells += [_cell(told, f"coverage {wanted}", 1), _cell(told, f"strict {wanted}", 1)]
            cells += [f"{lowest:.1f}" if told else "", _cell(told, f"size {wanted}", 2)]
        table.add_row(condition, *cells)
    Console(highlight=False, width=240).print(table)


def _cell(draws: Draws, name: str, digits: int) -> str:
    return mean_and_error([draw[name] for draw in draws], digits)


if __name__ == "__main__":
    app()
