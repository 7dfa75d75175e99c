"""The parts of zsvec, each against the plainest code that does the same."""

from __future__ import annotations

import resource
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import zsvec
from benchmarks.measure import Device, Out, Row, interleaved, medians, report, seconds, unit_vectors
from zsvec.classifier import Classifier
from zsvec.encoders import load_encoders
from zsvec.evaluation import labelled_images
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.folders import read_categories
from zsvec.inputs.images import load_image
from zsvec.method.predict.aggregation import AGGREGATIONS
from zsvec.method.predict.scoring import Scoring
from zsvec.search.searcher import Searcher
from zsvec.settings.profiles import PROFILES
from zsvec.settings.settings import IndexKind
from zsvec.testing import HashEncoder


def pipeline(
    folder: Path,
    profile: str = "offline",
    batch_size: int = 32,
    rounds: int = 5,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Rates of import and of classification, as shares of the rate of a plain loop over the same images."""
    encoders = load_encoders(PROFILES[profile].encoders, device=device, dtype="auto", batch_size=batch_size)  # type: ignore[arg-type]
    paths = [path for path, _ in labelled_images(folder)]
    categories = read_categories(folder)

    def plain_loop() -> None:
        for first in range(0, len(paths), batch_size):
            images = [load_image(path) for path in paths[first : first + batch_size]]
            encoders.encode_images([encoders.preprocess(image) for image in images])

    with tempfile.TemporaryDirectory() as scratch:
        stores = iter(range(10**6))

        def open_with_encoders() -> Classifier:
            return zsvec.open(
                f"{scratch}/{next(stores)}", encoders=list(encoders), batch_size=batch_size, index_device=device
            )

        def import_all() -> None:
            with open_with_encoders() as classifier:
                classifier.add_categories(categories)

        with open_with_encoders() as filled:
            filled.add_categories(categories)

            def classify_all() -> None:
                for _ in filled.classify_stream(paths):
                    pass

            actions = {"plain loop": plain_loop, "import": import_all, "classify": classify_all}
            times = medians(interleaved(actions, rounds))
    rows: list[Row] = [
        {"what": name, "images/s": len(paths) / spent, "of the plain loop": times["plain loop"] / spent}
        for name, spent in times.items()
    ]
    report(
        "pipeline",
        f"{len(paths)} images, {len(categories)} categories, profile {profile}, batches of {batch_size}",
        {"": rows},
        out=out,
        draw=lambda axes: axes.bar(list(times), [row["images/s"] for row in rows]),
        device=device,
    )


def search(
    references: int = 10_000,
    dim: int = 512,
    categories: int = 1_000,
    batch: int = 64,
    rounds: int = 30,
    neighbors: Annotated[int, typer.Option(help="References that a Qdrant query fetches for an image.")] = 256,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Times of search + aggregation + fusion for a batch, as multiples of a bare product and maximum."""
    random = np.random.default_rng(0)
    vectors = unit_vectors(random, references, dim)
    queries = unit_vectors(random, batch, dim)
    bounds = np.linspace(0, references, categories + 1).astype(int)

    def bare() -> None:
        np.maximum.reduceat(queries @ vectors.T, bounds[:-1], axis=1)

    def searched_and_scored(searcher: Searcher, scoring: Scoring) -> None:
        scoring.scores(searcher.search({"bench": queries}, 3))

    encoder = HashEncoder("bench", dim=dim, modalities=("image",))
    parts = np.split(vectors, bounds[1:-1])
    inputs = [
        CategoryInput(name=f"category {i:04}", texts=[], vectors={"bench:image": part}) for i, part in enumerate(parts)
    ]
    with (
        tempfile.TemporaryDirectory() as scratch,
        zsvec.open(scratch, encoders=[encoder], index_device=device, index_cache=False) as filled,
    ):
        filled.add_categories(inputs)
        actions: dict[str, Callable[[], object]] = {"bare product and maximum": bare}
        ways: list[tuple[IndexKind, str]] = [("memory", name) for name in AGGREGATIONS]
        ways += [("qdrant", "max"), ("qdrant", "top_mean")]
        for kind, aggregation in ways:
            searcher = Searcher(
                filled.store, kind=kind, budget=0, neighbors=neighbors, norms=aggregation == "prototype"
            )
            scoring = Scoring(temperatures={"bench:image": 0.05}, aggregation=aggregation)
            actions[f"{kind}, {aggregation}"] = partial(searched_and_scored, searcher, scoring)
        actions["memory, top_mean, predictions made"] = lambda: filled.classify_vectors({"bench": queries})
        times = medians(interleaved(actions, rounds))
    rows: list[Row] = [
        {"what": name, "ms": 1000 * spent, "× bare": spent / times["bare product and maximum"]}
        for name, spent in times.items()
    ]
    report(
        "search",
        f"{batch} images, {references} references of {dim} dimensions, {categories} categories",
        {"": rows},
        out=out,
        draw=lambda axes: (axes.barh(list(times), [row["× bare"] for row in rows]), axes.set_xscale("log")),
        device=device,
    )


def calibrate(
    references: int = 10_000, dim: int = 512, categories: int = 1_000, device: Device = "auto", out: Out = None
) -> None:
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

    with (
        tempfile.TemporaryDirectory() as scratch,
        zsvec.open(scratch, encoders=encoders, index_device=device, index_cache=False) as classifier,
    ):
        classifier.add_categories([category(number) for number in range(categories)])
        queries = {name: centre[:1].astype(np.float32) for name, centre in centres.items()}
        classifier.classify_vectors(queries)  # now the vectors are in this process
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = {"calibrate": seconds(classifier.calibrate)}
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        later = iter([category(categories + i) for i in range(5)])
        added = [seconds(lambda: classifier.add_categories([next(later)])) for _ in range(5)]
        spent["add a category"] = statistics.median(added)
    report(
        "calibrate",
        f"{references} references of {dim} dimensions × {len(names)} experts, {categories} categories",
        {"": [{"what": name, "s": value} for name, value in spent.items()]},
        out=out,
        draw=lambda axes: axes.bar(list(spent), list(spent.values())),
        device=device,
        notes=[f"memory of calibrating beyond that of the vectors: {extra:.2f} GiB"],
    )
