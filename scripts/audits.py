#!/usr/bin/env python
"""What an audit finds among references some of which are wrong, and what it is worth to act on it.

    python scripts/audits.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. Every draw pools the images of both,
and divides them anew. Then a share of the references gets another category, and some are saved again, smaller, every
other one of these in another category. Measured is:

- of the labels that it accuses, how many are wrong; of the wrong labels, and of the right ones, how many it accuses;
- of the copies, how many it finds, and of the images that it takes for copies, how many are none;
- how good the fusion is on the photos: with all references; without the first tenth of them that the audit
  accuses (or fewer, if it accuses fewer); without all that it accuses; and without the wrong ones, which only this
  script knows.

Each figure has its standard error over the draws; gains over all references are paired, draw by draw.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from standing.measure import Asked, Compared, Condition
from standing.sets import Images, embed, progress
from standing.trials import Trial, doubtful

from zsvec.curation.audit import Audit, audited
from zsvec.encoders import load_encoders
from zsvec.method.quality.judgement import judge
from zsvec.settings.profiles import PROFILES

app = typer.Typer(add_completion=False)
console = Console(highlight=False, width=180)

ALL = "all references"
FIRST = "without the first tenth"
ACCUSED = "without all accused"
RIGHT = "without the wrong ones"
_FIGURES = ("top1", "nll", "ece", "floor")
_STRATEGY = "log_linear_gda"


@app.command()
def audits(
    folders: list[Path],
    profile: str = "offline",
    references: Annotated[int | None, typer.Option(help="References a category; by default all of the set's.")] = None,
    wrong: Annotated[float, typer.Option(help="Share under another category.")] = 0.2,
    copied: Annotated[float, typer.Option(help="Share that is saved again.")] = 0.05,
    draws: int = 10,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Audit references with wrong labels and copies put in, and the same without."""
    encoders = load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=64)
    prompts = {name: spec.prompt for name, spec in PROFILES[profile].encoders.items()}
    for folder in folders:
        images = embed(folder, encoders, prompts)
        for shares in ((wrong, copied), (0.0, 0.0)):
            found, fusion = measured(images, references or images.most, *shares, draws)
            title = f"{images.name}, {shares[0]:.0%} wrong, {shares[1]:.0%} copied, {draws} draws"
            if as_json:
                print(json.dumps({"condition": title, "audit": found, "fusion": lines(fusion)}))
            else:
                console.print(shown(title, found, fusion))


def measured(
    images: Images, count: int, wrong: float, copied: float, draws: int
) -> tuple[dict[str, dict[str, float | None]], Condition]:
    """The figures of the audit, with their errors; and of the fusion, by what is left out."""
    figures: dict[str, list[float]] = defaultdict(list)
    fusion = Condition()
    for draw in track(range(draws), f"auditing {images.name}", console=progress, transient=True):
        trial = doubtful(images, count, wrong, copied, draw)
        asked = Asked.of(images, trial)
        said = judge(asked.references, asked.calibration) if asked.calibration else None
        found = audited(asked.references, said)
        for name, value in accusations(images, trial, found).items():
            figures[name].append(value)
        ways = {ALL: asked}
        ways |= {name: Asked.of(images, replace(trial, rows=rows)) for name, rows in remaining(trial, found).items()}
        for name, way in ways.items():
            fusion.by_name[name].append(way.strategy(_STRATEGY, trial.batches[""]))
    told = {
        name: Compared.of(values, values).to_dict() for name, values in figures.items() if np.isfinite(values).any()
    }
    return {name: {key: value[key] for key in ("mean", "error")} for name, value in told.items()}, fusion


def accusations(images: Images, trial: Trial, found: Audit) -> dict[str, float]:
    """How right the audit is, in %; NaN where there is nothing to be right about."""
    accused = {(int(one.hash), one.category) for one in found.labels}
    wrong = {(number, name) for number, name in trial.rows if trial.truth[number] != name}
    original = {copy: number for number, copy in images.copies.items()}

    def share(some: int, every: int) -> float:
        return 100 * some / every if every else float("nan")

    pictures = [[int(image.hash) for image in one.images] for one in found.duplicates]
    copies = {number for number, _ in trial.rows if number in original}
    found_copies = {n for one in pictures for n in one if n in copies and original[n] in one}
    taken = [(n, one) for one in pictures for n in one]
    strangers = [n for n, one in taken if len({original.get(m, m) for m in one if m != n} | {original.get(n, n)}) > 1]
    return {
        "accused, % of all": share(len(accused), len(trial.rows)),
        "precision, %": share(len(accused & wrong), len(accused)),
        "recall, %": share(len(accused & wrong), len(wrong)),
        "right ones accused, %": share(len(accused - wrong), len(trial.rows) - len(wrong)),
        "copies found, %": share(len(found_copies), len(copies)),
        "no copies, taken for some": float(len(strangers)),
        "outliers": float(len(found.outliers)),
        "thin categories": float(len(found.thin)),
        "confused pairs": float(len(found.confusions)),
    }


def remaining(trial: Trial, found: Audit) -> dict[str, Sequence[tuple[int, str]]]:
    """The references that are left, by what is left out; of a category that would have none, all are left."""
    doubted = [(int(one.hash), one.category) for one in found.labels]

    def without(some: Collection[tuple[int, str]]) -> list[tuple[int, str]]:
        left = [row for row in trial.rows if row not in some]
        names = {name for _, name in left}
        return [row for row in trial.rows if row not in some or row[1] not in names]

    return {
        FIRST: without(doubted[: len(trial.rows) // 10]),
        ACCUSED: without(doubted),
        RIGHT: without([(number, name) for number, name in trial.rows if trial.truth[number] != name]),
    }


def lines(fusion: Condition) -> dict[str, dict[str, dict[str, float | None]]]:
    """For JSON: by what is left out, the figures with mean, error, gain and gain_error; accuracies in %."""
    return {
        name: {key: value.to_dict() for key, value in fusion.compared(name, ALL).items() if key in _FIGURES}
        for name in fusion.by_name
    }


def shown(title: str, found: dict[str, dict[str, float | None]], fusion: Condition) -> Table:
    """The audit in the caption; a row for each way to act on it."""
    table = Table(
        "",
        *("top-1 %", "Δ", "NLL", "Δ", "ECE % (floor)", "Δ"),
        box=SIMPLE_HEAD,
        title=f"{title}; ± is a standard error, Δ the gain over all references",
        title_justify="left",
        caption="\n".join(
            f"{name}: {_number(value['mean'])} ± {_number(value['error'])}" for name, value in found.items()
        ),
        caption_justify="left",
    )
    for name in fusion.by_name:
        values = fusion.compared(name, ALL)
        gains = {key: "" if name == ALL else value.gained(2) for key, value in values.items()}
        table.add_row(
            name,
            *(values["top1"].shown(1), gains["top1"]),
            *(values["nll"].shown(3), gains["nll"]),
            *(f"{values['ece'].mean:.1f} ({values['floor'].mean:.1f})", gains["ece"]),
        )
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    app()
