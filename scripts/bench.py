#!/usr/bin/env python
"""Speed of zsvec as ratios to the plainest code that does the same, measured side by side in one run.

    python scripts/bench.py pipeline FOLDER   import and classify against a loop that decodes, preprocesses and encodes
    python scripts/bench.py search            search + aggregation + fusion against a matrix product and a maximum
    python scripts/bench.py calibrate         seconds and memory of a calibration, and of adding a category

FOLDER has a sub-folder of images per category.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import zsvec
from zsvec.aggregate import AGGREGATIONS
from zsvec.builder import CategoryInput
from zsvec.classifier import Classifier
from zsvec.config import PROFILES
from zsvec.encoders import load_encoders
from zsvec.evaluation import labelled_images
from zsvec.folders import read_categories
from zsvec.images import load_image
from zsvec.scoring import Scoring
from zsvec.search import Searcher
from zsvec.testing import HashEncoder

app = typer.Typer(add_completion=False)
console = Console(highlight=False)


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each action; taken in turns, so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            time.sleep(0.1)  # threads of a BLAS go on spinning after a product; none shall disturb the next action
            times[name].append(seconds(action))
    return {name: statistics.median(of) for name, of in times.items()}


@app.command()
def pipeline(
    folder: Path,
    profile: str = "offline",
    batch_size: int = 32,
    rounds: int = 5,
) -> None:
    """Rates of import and of classification, as shares of the rate of a plain loop over the same images."""
    encoders = load_encoders(PROFILES[profile].encoders, device="auto", dtype="auto", batch_size=batch_size)
    paths = [path for path, _ in labelled_images(folder)]
    categories = read_categories(folder)

    def plain_loop() -> None:
        for first in range(0, len(paths), batch_size):
            images = [load_image(path) for path in paths[first : first + batch_size]]
            encoders.encode_images([encoders.preprocess(image) for image in images])

    with tempfile.TemporaryDirectory() as scratch:
        stores = iter(range(10**6))

        def open_with_encoders() -> Classifier:
            return zsvec.open(f"{scratch}/{next(stores)}", encoders=list(encoders), batch_size=batch_size)

        def import_all() -> None:
            with open_with_encoders() as classifier:
                list(classifier.add_categories(categories))

        with open_with_encoders() as filled:
            list(filled.add_categories(categories))

            def classify_all() -> None:
                for _ in filled.classify_stream(paths):
                    pass

            times = interleaved({"plain loop": plain_loop, "import": import_all, "classify": classify_all}, rounds)
    table = Table("", "images/s", "of the plain loop", box=SIMPLE_HEAD)
    for name, spent in times.items():
        table.add_row(name, f"{len(paths) / spent:.1f}", f"{times['plain loop'] / spent:.2f}")
    console.print(f"{len(paths)} images, {len(categories)} categories, profile {profile}, batches of {batch_size}")
    console.print(table)


@app.command()
def search(
    references: int = 10_000,
    dim: int = 512,
    categories: int = 1_000,
    batch: int = 64,
    rounds: int = 30,
    limit: Annotated[int, typer.Option(help="References that a Qdrant query fetches for an image.")] = 256,
) -> None:
    """Times of search + aggregation + fusion for a batch, as multiples of a bare product and maximum."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((references, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = random.standard_normal((batch, dim), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    bounds = np.linspace(0, references, categories + 1).astype(int)

    def bare() -> None:
        np.maximum.reduceat(queries @ vectors.T, bounds[:-1], axis=1)

    encoder = HashEncoder("bench", dim=dim, modalities=("image",))
    parts = np.split(vectors, bounds[1:-1])
    inputs = [
        CategoryInput(name=f"category {i:04}", texts=[], vectors={"bench:image": part}) for i, part in enumerate(parts)
    ]
    with tempfile.TemporaryDirectory() as scratch, zsvec.open(scratch, encoders=[encoder]) as filled:
        list(filled.add_categories(inputs))
        actions: dict[str, Callable[[], object]] = {"bare product and maximum": bare}
        for way, aggregation in [("mirror", name) for name in AGGREGATIONS] + [
            ("qdrant", "max"),
            ("qdrant", "top_mean"),
        ]:
            searcher = Searcher(filled.store, method=way, budget=0, limit=limit, norms=aggregation == "prototype")
            scoring = Scoring(temperatures={"bench:image": 0.05}, aggregation=aggregation)
            actions[f"{way}, {aggregation}"] = lambda search=searcher.search, score=scoring.scores: score(
                search({"bench": queries}, 3)
            )
        actions["mirror, top_mean, predictions made"] = lambda: filled.classify_vectors({"bench": queries})
        times = interleaved(actions, rounds)
    table = Table("", "ms", "× bare", box=SIMPLE_HEAD)
    for name, spent in times.items():
        table.add_row(name, f"{1000 * spent:.2f}", f"{spent / times['bare product and maximum']:.2f}")
    console.print(f"{batch} images, {references} references of {dim} dimensions, {categories} categories")
    console.print(table)


@app.command()
def calibrate(references: int = 10_000, dim: int = 512, categories: int = 1_000) -> None:
    """Seconds and memory of calibrating three image experts, and of adding one category to a store of that size."""
    random = np.random.default_rng(0)
    names = ("one", "two", "three")
    centres = {name: random.standard_normal((categories, dim)) for name in names}
    encoders = [HashEncoder(name, dim=dim, modalities=("image",)) for name in names]

    def category(number: int) -> CategoryInput:
        size = (references // categories, dim)
        vectors = {
            f"{name}:image": centres[name][number % categories] + 3 * random.standard_normal(size) for name in names
        }
        return CategoryInput(name=f"category {number:06}", texts=[], vectors=vectors)

    with tempfile.TemporaryDirectory() as scratch, zsvec.open(scratch, encoders=encoders) as classifier:
        list(classifier.add_categories([category(number) for number in range(categories)]))
        queries = {name: centre[:1].astype(np.float32) for name, centre in centres.items()}
        classifier.classify_vectors(queries)  # now the vectors are in this process
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        table = Table("", "s", box=SIMPLE_HEAD)
        table.add_row("calibrate", f"{seconds(classifier.calibrate):.2f}")
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        later = iter([category(categories + i) for i in range(5)])
        added = [seconds(lambda: list(classifier.add_categories([next(later)]))) for _ in range(5)]
        table.add_row("add a category", f"{statistics.median(added):.3f}")
    console.print(f"{references} references of {dim} dimensions × {len(names)} experts, {categories} categories")
    console.print(table)
    console.print(f"memory of calibrating beyond that of the vectors: {extra:.2f} GiB")


if __name__ == "__main__":
    app()
