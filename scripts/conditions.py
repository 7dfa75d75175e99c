#!/usr/bin/env python
"""Measures fusion strategies under conditions that occur in real stores.

    python scripts/conditions.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category. Each draw pools the images of both
folders and divides them again at random. Within a draw, no photo is also a reference. The conditions are:

- equal numbers of references; log-uniform numbers; three references in half of the categories;
- wrong labels; the same pictures in two categories; bursts (four flipped, cropped or blurred copies of each reference);
- batches of 64 and 256 images, balanced or skewed (category shares from a Dirichlet distribution);
- several requested false-unknown rates.

The draws share images, so the standard errors are somewhat too small.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from standing.measure import Asked, show
from standing.sets import embed, progress
from standing.trials import trials

from zsvec.method.predict.fusion import STRATEGIES

app = typer.Typer(add_completion=False)
_STRATEGIES = ["log_linear_gda", "log_linear_views", "transductive"]


@app.command()
def conditions(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References a category.")] = [1, 3, 5, 10, 40],  # noqa: B006
    strategies: Annotated[list[str], typer.Option("--strategy", help="The first is the baseline.")] = _STRATEGIES,
    draws: int = 10,
) -> None:
    """Measure fusion strategies over random draws of references and photos."""
    if wrong := set(strategies) - STRATEGIES.keys():
        raise typer.BadParameter(f"no strategy: {', '.join(sorted(wrong))}; there are {', '.join(STRATEGIES)}")
    for folder in folders:
        images = embed(folder, profile)
        measured: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
        for draw in track(range(draws), f"measuring {images.name}", console=progress, transient=True):
            for trial in trials(images, counts, draw):
                asked = Asked.of(images, trial)
                for title, batches in trial.batches.items():
                    for strategy in strategies:
                        measured[title][strategy].append(asked.figures(strategy, batches))
        show(f"{images.name}, {draws} draws", measured)


if __name__ == "__main__":
    app()
