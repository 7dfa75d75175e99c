#!/usr/bin/env python
"""Strategies of fusion under the conditions that real stores are in, beside a baseline and the best single experts.

    python scripts/conditions.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category, and possibly `unknown`. Every draw
pools the images of both, and divides them anew; photos are never references of the same draw. What is measured:

- equal numbers of references, and uneven ones: log-uniform, or half of the categories with three;
- wrong labels, the same pictures in two categories, and bursts: each reference five times, flipped, cropped, blurred;
- batches of 64 and 256: balanced, skewed (shares of the categories from a Dirichlet distribution), and with images of
  no category, those of `unknown`, or of a fifth of the categories, whose references are then left out;
- several false-unknown rates that are asked for.

Each figure has its standard error over the draws; gains over the baseline are paired, draw by draw. The draws share
images, so that a standard error is rather too small. A strategy is said to be below the best single expert where that
is better by more than two standard errors of their difference.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from standing.measure import Asked, Compared, Condition
from standing.sets import embed, progress
from standing.trials import trials

from zsvec.encoders import load_encoders
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.settings.profiles import PROFILES

app = typer.Typer(add_completion=False)
console = Console(highlight=False, width=180)


@app.command()
def conditions(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References a category.")] = [1, 3, 10, 40],  # noqa: B006
    strategies: Annotated[list[str], typer.Option("--strategy", help="Strategies of fusion.")] = [  # noqa: B006
        "log_linear_views",
        "log_linear_gda",
        "transductive",
    ],
    baseline: str = "log_linear_views",
    draws: int = 10,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure strategies under standing conditions, over draws of references and photos."""
    encoders = load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=64)
    prompts = {name: spec.prompt for name, spec in PROFILES[profile].encoders.items()}
    if wrong := {baseline, *strategies} - STRATEGIES.keys():
        raise typer.BadParameter(f"no strategy: {', '.join(sorted(wrong))}; there are {', '.join(STRATEGIES)}")
    chosen = list(dict.fromkeys([baseline, *strategies]))
    for folder in folders:
        images = embed(folder, encoders, prompts)
        measured: dict[str, Condition] = defaultdict(Condition)
        for draw in track(range(draws), f"measuring {images.name}", console=progress, transient=True):
            for trial in trials(images, counts, draw):
                asked = Asked.of(images, trial)
                for title, batches in trial.batches.items():
                    found = {strategy: asked.strategy(strategy, batches) for strategy in chosen}
                    for name, values in (found | asked.singles(batches)).items():
                        measured[title].by_name[name].append(values)
        if as_json:
            for line in lines(images.name, measured, chosen, baseline):
                print(json.dumps(line))
        else:
            console.print(shown(images.name, measured, chosen, baseline, draws))


def lines(
    name: str, measured: Mapping[str, Condition], strategies: Sequence[str], baseline: str
) -> Iterator[dict[str, Any]]:
    """An object for each condition and strategy; each figure has mean, error, gain and gain_error, accuracies in %."""
    for title, condition in measured.items():
        best = condition.best_single(strategies)
        for strategy in strategies:
            against = condition.compared(strategy, best)["top1"]
            yield {
                "set": name,
                "condition": title,
                "strategy": strategy,
                "draws": len(condition.by_name[strategy]),
                **{key: found.to_dict() for key, found in condition.compared(strategy, baseline).items()},
                "best_single": best,
                "over_best_single": {"gain": against.gain, "error": against.to_dict()["gain_error"]},
                "below_best_single": below(against),
            }


def shown(name: str, measured: Mapping[str, Condition], strategies: Sequence[str], baseline: str, draws: int) -> Table:
    """Under each condition, a row for each strategy."""
    title = f"{name}, {draws} draws; ± is a standard error, Δ the gain over {baseline}"
    headers = ("", "top-1 %", "Δ", "NLL", "Δ", "ECE % (floor)", "unknown %", "AUROC %", "few: top-1 %")
    table = Table(*headers, "over", "the best single expert", box=SIMPLE_HEAD, title=title, title_justify="left")
    for condition, found in measured.items():
        best = found.best_single(strategies)
        table.add_row(condition, *[""] * len(headers), best)
        for strategy in strategies:
            values = found.compared(strategy, baseline)
            against = found.compared(strategy, best)["top1"]
            table.add_row(
                f"  {strategy}",
                _mean(values, "top1", 1),
                "" if strategy == baseline else values["top1"].gained(2),
                _mean(values, "nll", 3),
                "" if strategy == baseline else values["nll"].gained(3),
                f"{values['ece'].mean:.1f} ({values['floor'].mean:.1f})",
                *(_mean(values, key, 1) for key in ("unknown", "auroc", "few")),
                against.gained(1),
                "(below)" * below(against),
            )
    return table


def below(against: Compared) -> bool:
    """Whether the best single expert is better by more than two standard errors."""
    return against.gain < -2 * against.gain_error


def _mean(values: Mapping[str, Compared], key: str, digits: int) -> str:
    return values[key].shown(digits) if key in values else ""


if __name__ == "__main__":
    app()
