#!/usr/bin/env python
"""Measures a cascade: how many images one encoder settles, how many answers change, and the saved encoding time.

    python scripts/cascade.py SET… --profile NAME

SET has the folders `references` and `photos`, each with a sub-folder per category, and may have a folder `unknown` with
images of no category. Each draw pools references and photos and divides them again at random. The rates follow from the
time of each image model on this machine, in batches of 32. The draws share images, so the standard errors are somewhat
too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from standing.measure import calibration_of, mean_and_error, scoring_of
from standing.sets import Images, progress
from standing.trials import Draw, Numbers

import zsvec
from zsvec.encoders import load_encoders
from zsvec.encoders.base import batches
from zsvec.evaluation import labelled_images
from zsvec.evaluation.study import laid_out
from zsvec.inputs.categories import as_words
from zsvec.inputs.folders import find_images, read_categories
from zsvec.inputs.images import load_image
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.calibration import Calibration
from zsvec.method.predict.cascade import settled
from zsvec.method.predict.scoring import Scores
from zsvec.method.similarities import References, category_names
from zsvec.search.in_process import compare
from zsvec.types import encoder_and_modality, expert_name

app = typer.Typer(add_completion=False)
_BATCH = 32


@dataclass(frozen=True)
class Embedded:
    """An embedded set.

    Attributes:
        images: References and photos.
        strangers: Numbers of the images of no category.
        seconds: Seconds per image of the image model of each encoder.
        total: Seconds per image of all image models.
    """

    images: Images
    strangers: Numbers
    seconds: Mapping[str, float]
    total: float


@app.command()
def cascade(
    folders: list[Path],
    profile: Annotated[str, typer.Option(help="A profile with two image models, also one of zsvec.toml.")] = "base",
    counts: Annotated[list[int], typer.Option("--references", help="References of a category.")] = [5, 10, 40],  # noqa: B006
    draws: int = 30,
) -> None:
    """Measure a cascade over random draws."""
    for folder in folders:
        embedded = _embed(folder, profile)
        columns = ("settled %", "in leave-one-out %", "changed %", "unknown settled %")
        table = Table("references, first", *columns, "top-1 first", "all", "cascade", "times as fast", box=SIMPLE_HEAD)
        for count in (count for count in counts if count <= embedded.images.most):
            measured: dict[str, list[dict[str, float]]] = defaultdict(list)
            for seed in track(range(draws), f"measuring {folder.name}", console=progress, transient=True):
                for encoder, figures in _draw(embedded, count, seed).items():
                    measured[encoder].append(figures)
            for encoder, found in measured.items():
                cells = [mean_and_error([one[name] for one in found], 2) for name in found[0]]
                table.add_row(f"{count}, {encoder}", *cells)
        seconds = ", ".join(f"{name} {1000 * spent:.1f} ms" for name, spent in embedded.seconds.items())
        Console(highlight=False, width=200).print(f"{folder.name}, {draws} draws; an image takes {seconds}", table)


def _draw(embedded: Embedded, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Returns the figures of each encoder as the first, in percent except the last."""
    draw = Draw(embedded.images, seed)
    references = _references(embedded.images, draw, count)
    names = category_names(references)
    calibration = calibration_of(references, cascade=DEFAULT_STRATEGY)
    if calibration is None:
        raise SystemExit(f"{embedded.images.name} cannot be calibrated: it needs two categories with images")

    def scores(numbers: Numbers, encoders: Sequence[str], learned: Calibration) -> tuple[NDArray[np.intp], Scores]:
        some = {expert: found for expert, found in references.items() if encoder_and_modality(expert)[0] in encoders}
        queries = {encoder: embedded.images.vectors[encoder][numbers] for encoder in encoders}
        found = replace(compare(some, names, queries, nearest=1), calibration=learned)
        said = scoring_of(some).scores(found)
        return np.where(said.unknown, -1, said.fused.argmax(axis=1)), said

    every = list(embedded.images.vectors)
    truth = np.array([names.index(draw.truth[number]) for number in draw.photos.tolist()])
    answers, _ = scores(draw.photos, every, calibration)
    total = embedded.total
    figures = {}
    for encoder in every:
        rule = calibration.cascade.get(encoder)
        by_first, stops, in_sample, strange = answers, np.zeros(len(truth), dtype=bool), 0.0, np.nan
        if rule is not None:
            by_first, said = scores(draw.photos, [encoder], rule.calibration)
            stops, in_sample = settled(said, rule), rule.settled
            if len(embedded.strangers):
                strange = 100 * settled(scores(embedded.strangers, [encoder], rule.calibration)[1], rule).mean()
        together = np.where(stops, by_first, answers)
        own = embedded.seconds[encoder]
        figures[encoder] = {
            "settled": 100 * stops.mean(),
            "in sample": 100 * in_sample,
            "changed": 100 * (together != answers).mean(),
            "strangers": strange,
            "first": 100 * (by_first == truth).mean() if rule else np.nan,
            "all": 100 * (answers == truth).mean(),
            "cascade": 100 * (together == truth).mean(),
            "faster": total / (own + (1 - stops.mean()) * (total - own)),
        }
    return figures


def _references(images: Images, draw: Draw, count: int) -> dict[str, References]:
    rows = draw.equal(count)
    numbers, labels = [number for number, _ in rows], [name for _, name in rows]
    hashes, nothing = [f"{number:08d}" for number in numbers], [""] * len(rows)
    owners = list(images.owners)
    digests, no_source = [f"text {i}" for i in range(len(owners))], [""] * len(owners)
    texts = {
        expert_name(encoder, "text"): laid_out(vectors, owners, digests, no_source)
        for encoder, vectors in images.texts.items()
    }
    return texts | {
        expert_name(encoder, "image"): laid_out(vectors[numbers], labels, hashes, nothing)
        for encoder, vectors in images.vectors.items()
    }


def _embed(folder: Path, profile: str) -> Embedded:
    specs = zsvec.Settings(profile=profile).encoder_specs()
    encoders = load_encoders(specs, device="auto", dtype="auto", batch_size=_BATCH)
    references = labelled_images(folder / "references")
    labelled = references + labelled_images(folder / "photos")
    strange = find_images(folder / "unknown") if (folder / "unknown").is_dir() else []
    found: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    paths = [path for path, _ in labelled] + strange
    for batch in track(list(batches(paths, _BATCH)), f"embedding {folder.name}", console=progress, transient=True):
        prepared = [encoders.preprocess(load_image(path)) for path in batch]
        for encoder, vectors in encoders.encode_images(prepared).items():
            found[encoder].append(vectors)
    pool: dict[str, list[int]] = defaultdict(list)
    for number, (_, name) in enumerate(labelled):
        pool[name].append(number)
    categories = read_categories(folder / "references")
    texts = {
        encoder.name: encoder.encode_texts(
            [
                text
                for one in categories
                for text in one.texts or [specs[encoder.name].prompt.replace("{name}", as_words(one.name))]
            ]
        )
        for encoder in encoders
        if "text" in encoder.modalities
    }
    images = Images(
        name=folder.name,
        texts=texts,
        owners=[category.name for category in categories for _ in category.texts or [""]],
        vectors={encoder: np.concatenate(vectors) for encoder, vectors in found.items()},
        pool=pool,
        most=min(sum(name == wanted for _, name in references) for wanted in pool),
        bursts={},
        copies={},
    )
    seconds = encoders.seconds
    total = sum({id(encoder.backbone): seconds[encoder.name] for encoder in encoders}.values())
    return Embedded(images, np.arange(len(labelled), len(paths)), seconds, total)


if __name__ == "__main__":
    app()
