#!/usr/bin/env python
"""Strategies of fusion beside the experts that they fuse, on real images.

    python scripts/compare_fusion.py strategies SET…   by the number of references a category, over random draws
    python scripts/compare_fusion.py coverage SET      categories that have a text alone, among others

SET has the folders `references` and `photos`, each with a sub-folder per category, and possibly `unknown`.
Every image is embedded once; every store is a real one, calibrated as a user's would be.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

import zsvec
from zsvec.classifier import Classifier
from zsvec.encoders import BatchEncoder, Encoder, EncoderSet, load_encoders
from zsvec.encoders.spec import TEMPERATURES
from zsvec.evaluation import labelled_images
from zsvec.evaluation.metrics import blind_auroc
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.folders import find_images, read_categories
from zsvec.inputs.images import load_image
from zsvec.method.calibrate.fit import expected_calibration_error
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.scoring import Scoring
from zsvec.method.similarities import SearchResult
from zsvec.search.searcher import Searcher
from zsvec.settings.profiles import PROFILES
from zsvec.types import Modality, expert_name

app = typer.Typer(add_completion=False)
console = Console(highlight=False, width=180)


class Remembered(BatchEncoder):
    """An encoder whose images have been embedded before: it reads their numbers from a pixel.

    Args:
        encoder: Embeds texts.
        vectors: float32 ``(n_images, dim)``, of all images.
    """

    def __init__(self, encoder: Encoder, vectors: NDArray[np.float32]) -> None:
        super().__init__(encoder.name, encoder.fingerprint, modalities=encoder.modalities)
        self._encoder = encoder
        self._vectors = vectors

    def embed(self, batch: Any, modality: Modality) -> ArrayLike:
        """Vectors of texts, or of numbered images."""
        if modality == "text":
            return self._encoder.encode_texts(batch)
        return self._vectors[[number_of(image) for image in batch]]


def pixel(number: int) -> Image.Image:
    """An image that says its number."""
    return Image.new("RGB", (1, 1), (number >> 16, number >> 8 & 255, number & 255))


def number_of(image: Image.Image) -> int:
    """What `pixel` was given."""
    red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
    return red << 16 | green << 8 | blue


@dataclass(frozen=True)
class Images:
    """A set, embedded once.

    Attributes:
        name: Of the set.
        encoders: With the vectors of all images.
        vectors: By encoder, of all images.
        texts: Definition texts by category; `None`: its name.
        references: Numbers of the reference images, by category.
        photos: Number and category of each photo.
        unknown: Numbers of the photos of no category.
    """

    name: str
    encoders: Sequence[Encoder]
    vectors: Mapping[str, NDArray[np.float32]]
    texts: Mapping[str, Sequence[str] | None]
    references: Mapping[str, Sequence[int]]
    photos: Sequence[tuple[int, str]]
    unknown: Sequence[int]

    def queries(self, numbers: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Vectors of some images."""
        return {name: vectors[list(numbers)] for name, vectors in self.vectors.items()}


def embed(folder: Path, encoders: EncoderSet) -> Images:
    """Read and embed a set."""
    references, photos = labelled_images(folder / "references"), labelled_images(folder / "photos")
    unknown = find_images(folder / "unknown") if (folder / "unknown").is_dir() else []
    paths = [path for path, _ in references] + [path for path, _ in photos] + list(unknown)
    batches = [paths[first : first + 64] for first in range(0, len(paths), 64)]
    parts = [
        encoders.encode_images([encoders.preprocess(load_image(path)) for path in batch])
        for batch in track(batches, f"embedding {folder.name}", console=console, transient=True)
    ]
    vectors = {encoder.name: np.concatenate([part[encoder.name] for part in parts]) for encoder in encoders}
    by_category = defaultdict(list)
    for number, (_, name) in enumerate(references):
        by_category[name].append(number)
    return Images(
        name=folder.name,
        encoders=[Remembered(encoder, vectors[encoder.name]) for encoder in encoders],
        vectors=vectors,
        texts={category.name: category.texts for category in read_categories(folder / "references")},
        references=by_category,
        photos=[(len(references) + i, name) for i, (_, name) in enumerate(photos)],
        unknown=range(len(references) + len(photos), len(paths)),
    )


@contextmanager
def opened(images: Images, references: Mapping[str, Sequence[int]]) -> Iterator[Classifier]:
    """A store of these references, calibrated by itself."""
    inputs = [
        CategoryInput(name=name, texts=images.texts[name], images=[pixel(number) for number in numbers])
        for name, numbers in references.items()
    ]
    with (
        tempfile.TemporaryDirectory() as scratch,
        zsvec.open(scratch, encoders=images.encoders, fusion="log_linear_gda") as classifier,
    ):
        classifier.add_categories(inputs)
        yield classifier


def search(classifier: Classifier, images: Images, numbers: Sequence[int]) -> SearchResult:
    """The similarities of some images to all references."""
    searcher = Searcher(classifier.store, kind="memory", budget=0, neighbors=1, norms=True)
    return searcher.search(images.queries(numbers), 3)


def temperatures(images: Images) -> dict[str, float]:
    """Fixed temperatures by modality, as in the paper."""
    return {expert_name(e.name, m): max(TEMPERATURES[m], 0.05) for e in images.encoders for m in e.modalities}


@dataclass(frozen=True)
class Result:
    """How a distribution over the categories did."""

    top1: float
    ece: float
    auroc: float

    @classmethod
    def of(cls, fused: NDArray[np.float64], novelty: NDArray[np.float64], truth: NDArray[np.intp]) -> Result:
        """Measure.

        Args:
            fused: float64 ``(n_images, n_categories)``: first the photos of known categories, then those of none.
            novelty: float64 ``(n_images,)``, larger is more likely unknown.
            truth: int ``(n_photos,)``, categories of the photos.
        """
        n = len(truth)
        right = fused[:n].argmax(axis=1) == truth
        unknown = np.arange(len(fused)) >= n
        auroc = blind_auroc(novelty, unknown) if unknown.any() else np.nan
        return cls(float(right.mean()), expected_calibration_error(fused[:n].max(axis=1), right), auroc)


def results(classifier: Classifier, images: Images) -> dict[str, Result]:
    """Every expert alone, and every strategy, on the photos of a set."""
    found = search(classifier, images, [number for number, _ in images.photos] + list(images.unknown))
    position = {name: i for i, name in enumerate(found.categories)}
    truth = np.array([position[name] for _, name in images.photos])
    out = {}
    calibrated = Scoring(temperatures=temperatures(images)).scores(found)
    for expert, probabilities in zip(found.experts, calibrated.probabilities, strict=True):
        largest = expert.similarities.aggregate("top_mean", 5).max(axis=1)
        out[expert.name] = Result.of(probabilities, -largest.astype(np.float64), truth)
    for strategy in STRATEGIES:
        for is_calibrated in (False, True):
            scoring = Scoring(temperatures=temperatures(images), fusion=strategy, calibrated=is_calibrated)
            scores = scoring.scores(found)
            out[f"{strategy}, {'calibrated' if is_calibrated else 'fixed'}"] = Result.of(
                scores.fused, scores.novelty if is_calibrated else scores.distance, truth
            )
    return out


@app.command()
def strategies(
    folders: list[Path],
    profile: str = "offline",
    counts: Annotated[list[int], typer.Option("--references", help="References a category.")] = [1, 3, 10],  # noqa: B006
    draws: int = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Top-1, AUROC of the unknown and calibration error, mean and standard deviation over draws of references."""
    encoders = load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=64)
    for folder in folders:
        images = embed(folder, encoders)
        fewest = min(map(len, images.references.values()))
        table = Table("", box=SIMPLE_HEAD, title=f"{images.name}: top-1 % / AUROC / ECE %", title_justify="left")
        rows: dict[str, list[str]] = defaultdict(list)
        for count in [count for count in counts if count <= fewest]:
            found: dict[str, list[Result]] = defaultdict(list)
            n_draws = 1 if count == fewest == max(map(len, images.references.values())) else draws
            for draw in range(n_draws):
                random = np.random.default_rng(draw)
                drawn = {
                    name: random.permutation(numbers)[:count].tolist() for name, numbers in images.references.items()
                }
                with opened(images, drawn) as classifier:
                    for name, result in results(classifier, images).items():
                        found[name].append(result)
            table.add_column(f"{count} reference{'s'[: count > 1]}, {n_draws} draw{'s'[: n_draws > 1]}")
            for name, by_draw in found.items():
                values = {
                    key: np.array([getattr(result, key) for result in by_draw]) for key in ("top1", "auroc", "ece")
                }
                rows[name].append(
                    f"{100 * values['top1'].mean():5.1f} ±{100 * values['top1'].std():4.1f}  "
                    + ("  –  " if np.isnan(values["auroc"]).any() else f"{values['auroc'].mean():.3f}")
                    + f"  {100 * values['ece'].mean():4.1f}"
                )
                if as_json:
                    summary = {key: {"mean": drawn.mean(), "std": drawn.std()} for key, drawn in values.items()}
                    if not images.unknown:
                        del summary["auroc"]
                    print(
                        json.dumps({"set": images.name, "references": count, "draws": n_draws, "name": name, **summary})
                    )
        for name, cells in rows.items():
            table.add_row(name, *cells)
        if not as_json:
            console.print(table)


@app.command()
def coverage(folder: Path, profile: str = "offline", text_only: int = 8, draws: int = 5) -> None:
    """Accuracy where some categories have a text and no image, beside a store of the others alone."""
    encoders = load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=64)
    images = embed(folder, encoders)
    names = sorted(images.references)
    table = Table(
        "fusion", "with images", "by text alone", "among themselves", "in a store of their own", box=SIMPLE_HEAD
    )
    found: dict[str, list[list[float]]] = defaultdict(list)
    for draw in range(draws):
        bare = set(np.random.default_rng(draw).permutation(names)[:text_only].tolist())
        everything = {name: [] if name in bare else images.references[name] for name in names}
        rest = {name: numbers for name, numbers in everything.items() if numbers}
        with opened(images, everything) as whole, opened(images, rest) as alone:
            seen = [number for number, _ in images.photos]
            searched = {"whole": search(whole, images, seen), "alone": search(alone, images, seen)}
        has_images = np.array([name not in bare for _, name in images.photos])
        labels = np.array([name for _, name in images.photos])
        for strategy in STRATEGIES:
            scoring = Scoring(temperatures=temperatures(images), fusion=strategy)
            fused = {store: scoring.scores(similar).fused for store, similar in searched.items()}
            answers = {store: np.array(searched[store].categories)[p.argmax(axis=1)] for store, p in fused.items()}
            in_rest = np.isin(searched["whole"].categories, list(rest))
            among = np.array(searched["whole"].categories)[np.where(in_rest, fused["whole"], -1).argmax(axis=1)]
            found[strategy].append(
                [
                    float((answers["whole"] == labels)[has_images].mean()),
                    float((answers["whole"] == labels)[~has_images].mean()),
                    float((among == labels)[has_images].mean()),
                    float((answers["alone"] == labels)[has_images].mean()),
                ]
            )
    for strategy, by_draw in found.items():
        table.add_row(strategy, *(f"{100 * mean:.1f} %" for mean in np.mean(by_draw, axis=0)))
    console.print(
        f"{folder.name}: {len(names) - text_only} categories with images and a text, {text_only} with a text alone; "
        f"mean of {draws} draws"
    )
    console.print(table)


if __name__ == "__main__":
    app()
