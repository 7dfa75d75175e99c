#!/usr/bin/env python
"""Measures how well audits find wrong labels and copies, and what deleting the label errors gains.

    python scripts/audits.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. Each draw pools the images of both
folders and divides them again at random. Then a share of the references gets a wrong category, and copies of a share
are saved at a smaller size. Every second copy gets another category. The script reports:

- precision and recall of the reported label errors, the share of right labels that are reported, and the recall of
  copies;
- the quality of the default fusion on the photos with all references, without the reported label errors, and without
  the true label errors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from standing.measure import Asked, mean_and_error, show
from standing.sets import Images, embed, progress
from standing.trials import Rows, Trial, doubtful

from zsvec.curation.audit import Audit, audited
from zsvec.method.quality.label_errors import judge

app = typer.Typer(add_completion=False)
_STRATEGY = "log_linear_gda"


@app.command()
def audits(
    folders: list[Path],
    profile: str = "offline",
    references: Annotated[int | None, typer.Option(help="References a category; by default all.")] = None,
    wrong: Annotated[float, typer.Option(help="Share under another category.")] = 0.2,
    copied: Annotated[float, typer.Option(help="Share that is saved again.")] = 0.05,
    draws: int = 10,
) -> None:
    """Audit references with and without wrong labels and copies."""
    for folder in folders:
        images = embed(folder, profile)
        for shares in ((wrong, copied), (0.0, 0.0)):
            found: dict[str, list[float]] = defaultdict(list)
            fusion: dict[str, list[dict[str, float]]] = defaultdict(list)
            for draw in track(range(draws), f"auditing {images.name}", console=progress, transient=True):
                trial = doubtful(images, references or images.most, *shares, draw)
                asked = Asked.of(images, trial)
                audit = audited(
                    asked.references, judge(asked.references, asked.calibration) if asked.calibration else None
                )
                for name, value in accusations(images, trial, audit).items():
                    found[name].append(value)
                fusion["all references"].append(asked.figures(_STRATEGY, trial.batches[""]))
                for name, rows in remaining(trial, audit).items():
                    rest = Asked.of(images, replace(trial, rows=rows))
                    fusion[name].append(rest.figures(_STRATEGY, trial.batches[""]))
            title = f"{images.name}, {shares[0]:.0%} wrong, {shares[1]:.0%} copied, {draws} draws"
            table = Table("audit", "%", box=SIMPLE_HEAD, title=title, title_justify="left")
            for name, values in found.items():
                table.add_row(name, mean_and_error(values, 2))
            Console(highlight=False).print(table)
            show(title, {_STRATEGY: fusion})


def accusations(images: Images, trial: Trial, audit: Audit) -> dict[str, float]:
    """Returns precision, recall and other shares of an audit, in percent; NaN for a share of an empty set."""
    accused = {(int(one.hash), one.category) for one in audit.labels}
    wrong = _wrong(trial)
    originals = {copy: number for number, copy in images.copies.items()}
    pictures = [{int(image.hash) for image in one.images} for one in audit.duplicates]
    copies = {number for number, _ in trial.rows if number in originals}
    found = {copy for copy in copies for one in pictures if {copy, originals[copy]} <= one}

    def share(some: int, every: int) -> float:
        return 100 * some / every if every else float("nan")

    return {
        "accused, of all": share(len(accused), len(trial.rows)),
        "wrong, of those accused": share(len(accused & wrong), len(accused)),
        "accused, of the wrong ones": share(len(accused & wrong), len(wrong)),
        "accused, of the right ones": share(len(accused - wrong), len(trial.rows) - len(wrong)),
        "copies found": share(len(found), len(copies)),
    }


def remaining(trial: Trial, audit: Audit) -> Mapping[str, Rows]:
    """Returns the references that each kind of deletion leaves. A category that would be empty keeps all references."""

    def without(some: Collection[tuple[int, str]]) -> Rows:
        names = {row[1] for row in trial.rows if row not in some}
        return [row for row in trial.rows if row not in some or row[1] not in names]

    return {
        "without all accused": without({(int(one.hash), one.category) for one in audit.labels}),
        "without the wrong ones": without(_wrong(trial)),
    }


def _wrong(trial: Trial) -> set[tuple[int, str]]:
    return {(number, name) for number, name in trial.rows if trial.truth[number] != name}


if __name__ == "__main__":
    app()
