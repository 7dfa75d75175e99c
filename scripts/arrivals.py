#!/usr/bin/env python
"""Measures the effect of new categories with little evidence on the other categories of a store.

    python scripts/arrivals.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. Each draw pools the images of both
folders, divides them again at random, and chooses the new categories at random. The new categories have one reference,
two references, a text alone, or vectors of one image encoder alone, as in an attached collection. For comparison, the
same categories arrive with as many references as the others.

A difference is the figure after the arrival minus the figure of the default strategy before the arrival, paired by
draw:

- `among others` is top-1 of photos of the other categories, if new categories are no answer. This figure shows whether
  the arrival changes the choice between the other categories.
- `others` is top-1 of the same photos over all categories. Photos that get a new category count as mistakes.

The draws share images, so the standard errors are somewhat too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from standing.measure import Asked, Draws, mean_and_error
from standing.sets import embed, progress
from standing.trials import Numbers, arrivals

from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.calibrate.fit import quality_of
from zsvec.method.predict.fusion import STRATEGIES

app = typer.Typer(add_completion=False)
_COUNTS = [3, 10, 40]
_STRATEGIES = ["log_linear_views", DEFAULT_STRATEGY]
# Title, name of the figure, decimal places, and whether the gain over the store before the arrival is shown.
_COLUMNS = (
    ("among others: top-1 %", "among", 2, True),
    ("others: top-1 %", "top1", 2, True),
    ("others: ECE %", "ece", 2, True),
    ("others: NLL", "nll", 3, True),
    ("new: recall %", "recall", 1, False),
    ("new: precision %", "precision", 1, False),
    ("all: top-1 %", "all", 2, False),
    ("all: NLL", "all_nll", 3, False),
)


@app.command()
def main(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References of other categories.")] = _COUNTS,
    strategies: Annotated[list[str], typer.Option("--strategy", help="Strategies after the arrival.")] = _STRATEGIES,
    draws: int = 30,
) -> None:
    """Measure arrivals of categories over random draws of references and photos."""
    if wrong := set(strategies) - STRATEGIES.keys():
        raise typer.BadParameter(f"no strategy: {', '.join(sorted(wrong))}; there are {', '.join(STRATEGIES)}")
    for folder in folders:
        images = embed(folder, profile)
        for count in (count for count in counts if count <= images.most):
            measured: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
            title = f"{images.name}, {count} references a category"
            for draw in track(range(draws), f"measuring {title}", console=progress, transient=True):
                known: dict[frozenset[str], dict[str, float]] = {}
                for condition, arrival in arrivals(images, count, draw).items():
                    if arrival.new not in known:
                        before = Asked.of(images, arrival.before)
                        known[arrival.new] = figures(before, DEFAULT_STRATEGY, arrival.before.batches[""], arrival.new)
                    after = Asked.of(images, arrival.after)
                    for strategy in strategies:
                        found = figures(after, strategy, arrival.after.batches[""], arrival.new)
                        gains = {f"{name} gain": value - known[arrival.new][name] for name, value in found.items()}
                        measured[condition][strategy].append(found | gains)
            show(f"{title}, {draws} draws", measured)


def figures(asked: Asked, strategy: str, batches: Sequence[Numbers], new: Collection[str]) -> dict[str, float]:
    """Returns how well a strategy classifies batches, by name: in percent, except for the nats of the NLL."""
    names, truth, parts = asked.scores(strategy, batches)
    probabilities = np.concatenate([part.fused for part in parts])
    is_new = np.isin(names, list(new))
    of_others, answers = ~is_new[truth], probabilities.argmax(axis=1)
    known = quality_of(probabilities[of_others], truth[of_others])
    every = quality_of(probabilities, truth)
    among = np.where(is_new, -1, probabilities[of_others]).argmax(axis=1)
    said = is_new[answers]
    return {
        "among": 100 * float((among == truth[of_others]).mean()),
        "top1": 100 * known.top1,
        "ece": 100 * known.ece,
        "nll": known.cross_entropy,
        "recall": 100 * float((answers == truth)[~of_others].mean()) if is_new.any() else np.nan,
        "precision": 100 * float((answers == truth)[said].mean()) if said.any() else np.nan,
        "all": 100 * every.top1,
        "all_nll": every.cross_entropy,
    }


def show(title: str, measured: Mapping[str, Mapping[str, Draws]]) -> None:
    """Prints a row for each strategy in each condition."""
    headers = [f"Δ {name}" if gains else name for name, _, _, gains in _COLUMNS]
    caption = "± is a standard error over the draws, Δ the difference from the store before the arrival"
    table = Table(Column(no_wrap=True), *headers, box=SIMPLE_HEAD, title=title, title_justify="left", caption=caption)
    for condition, ways in measured.items():
        table.add_row(condition)
        for way, draws in ways.items():
            cells = [
                mean_and_error([draw[f"{key} gain" if gains else key] for draw in draws], digits, "+" if gains else "")
                for _, key, digits, gains in _COLUMNS
            ]
            table.add_row(f"  {way}", *cells)
    Console(highlight=False, width=200).print(table)


if __name__ == "__main__":
    app()
