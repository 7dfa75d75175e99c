"""How the costs of a search, and of adding a category, grow with the store."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

import zsvec
from benchmarks.material import vector_category
from benchmarks.measure import (
    Device,
    Out,
    Row,
    console,
    interleaved,
    medians,
    memory,
    report,
    seconds,
    unit_vectors,
)
from zsvec.classifier import Classifier
from zsvec.search.searcher import Searcher
from zsvec.store import Store
from zsvec.testing import HashEncoder

_PER_CATEGORY = 10
_QDRANT = 100_000  # references up to which the queries of an embedded store are measured

Vectors = NDArray[np.float32]


def scale(
    largest: Annotated[bool, typer.Option("--largest", help="Up to 1,000,000 references, not 100,000.")] = False,
    smallest: Annotated[bool, typer.Option("--smallest", help="1,000 references only, to try the script.")] = False,
    dim: int = 512,
    batch: int = 64,
    rounds: int = 7,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Search + aggregation + fusion, adding a category, and memory, by the number of references; beside faiss."""
    sizes = [1_000] if smallest else [10**3, 10**4, 10**5, *([10**6] if largest else [])]
    searches: list[dict[str, Any]] = []
    added: list[Row] = []
    used: list[Row] = []
    for size in sizes:
        console.print(f"{size:,} references …")
        random = np.random.default_rng(0)
        vectors, queries = unit_vectors(random, size, dim), unit_vectors(random, batch, dim)
        with _filled(vectors, device) as (classifier, begun):
            used.append({"references": size, "vectors, MiB": vectors.nbytes / 2**20, **begun(queries)})
            spent = _searches(classifier, vectors, queries, rounds)
            searches.append({"references": size, **{way: 1e6 * one / batch for way, one in spent.items()}})
            added.append(_adding(classifier, queries, spent["zsvec, in memory"]))
        used[-1] = {**used[-1], "peak, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    ways = [way for way in searches[0] if way != "references"]
    compared = [
        {"references": row["references"], **{way: row["zsvec, in memory"] / row[way] for way in ways if way in row}}
        for row in searches
    ]
    report(
        "scale",
        f"{dim} dimensions, {_PER_CATEGORY} references a category, batches of {batch} images",
        {
            "µs an image: search, aggregation, fusion and predictions of zsvec; bare searches of the others": [
                {**dict.fromkeys(searches[0], "–"), **row} for row in searches
            ],
            "zsvec, in memory ÷ this": [{**dict.fromkeys(searches[0], "–"), **row} for row in compared],
            **({"growth": _growth(searches, ways)} if len(sizes) > 1 else {}),
            "adding a category": added,
            "memory": used,
        },
        out=out,
        draw=lambda axes: _draw(axes, searches, ways),
        device=device,
    )


@contextmanager
def _filled(vectors: Vectors, device: str) -> Iterator[tuple[Classifier, Callable[[Vectors], Row]]]:
    """A calibrated store of these references, opened again, and how its first batch is measured."""
    encoder = HashEncoder("bench", dim=vectors.shape[1], modalities=("image",))
    parts = np.split(vectors, range(_PER_CATEGORY, len(vectors), _PER_CATEGORY))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # nothing of it is left in that of the user
        opened = partial(zsvec.open, f"{scratch}/store", encoders=[encoder], index="memory", index_device=device)
        with opened(index_cache=False) as classifier:
            filling = seconds(lambda: classifier.add_categories(map(vector_category, range(len(parts)), parts)))
            calibrating = seconds(classifier.calibrate)
        some = {"bench": parts[0]}
        with opened() as classifier:
            reading = seconds(lambda: classifier.classify_vectors(some))  # and keeping, for the next
        with opened() as classifier:

            def begin(queries: Vectors) -> Row:
                before = memory()
                first = seconds(lambda: classifier.classify_vectors({"bench": queries}))
                total, own = (after - earlier for after, earlier in zip(memory(), before, strict=True))
                return {
                    "index, MiB": own,
                    "with pages of files, MiB": total,
                    "fill, s": filling,
                    "calibrate, s": calibrating,
                    "first batch, s": reading,
                    "of the next process, s": first,
                }

            yield classifier, begin


def _searches(classifier: Classifier, vectors: Vectors, queries: Vectors, rounds: int) -> dict[str, float]:
    """Median seconds of a batch, by way."""
    import faiss
    from sklearn.neighbors import NearestNeighbors

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # Of unit vectors the nearest by Euclidean distance, for which scikit-learn is fastest, are those by cosine.
    brute = NearestNeighbors(algorithm="brute").fit(vectors)
    actions: dict[str, Callable[[], object]] = {
        "zsvec, in memory": lambda: classifier.classify_vectors({"bench": queries}),
        "product alone": lambda: queries @ vectors.T,
        "faiss, k=5": lambda: index.search(queries, 5),
        "faiss, k=50": lambda: index.search(queries, 50),
        "scikit-learn, k=5": lambda: brute.kneighbors(queries, 5),
        "scikit-learn, k=50": lambda: brute.kneighbors(queries, 50),
    }
    if len(vectors) <= _QDRANT:
        neighbors = classifier.settings.neighbors
        searcher = Searcher(classifier.store, kind="qdrant", budget=0, neighbors=neighbors, norms=False)
        sources = [""] * len(queries)
        actions["zsvec, Qdrant"] = lambda: classifier.scoring.predict(
            searcher.search({"bench": queries}, 3), sources, top_k=5
        )
    return medians(interleaved(actions, rounds))


def _adding(classifier: Classifier, queries: Vectors, batch: float, times: int = 5) -> Row:
    """What it costs to add a category: to write it, and at the next batch."""
    random = np.random.default_rng(1)
    before = len(classifier.categories())
    written, noticed = [], []
    with _counted(classifier.store) as read:
        for number in range(times):
            new = vector_category(before + number, unit_vectors(random, _PER_CATEGORY, queries.shape[1]))
            written.append(seconds(partial(classifier.add_categories, [new])))
            noticed.append(seconds(lambda: classifier.classify_vectors({"bench": queries})) - batch)
    return {
        "to so many categories": before,
        "add, ms": 1000 * statistics.median(written),
        "more at the next batch, ms": 1000 * statistics.median(noticed),
        "vectors read from the store": sum(read) // times,
        "of": _PER_CATEGORY,
    }


@contextmanager
def _counted(store: Store) -> Iterator[list[int]]:
    """How many vectors are read from a store meanwhile, page by page."""
    pages: list[int] = []
    references = store.references

    def counting(*arguments: Any, vectors: bool = True, **options: Any) -> Iterator[Any]:
        for page in references(*arguments, vectors=vectors, **options):
            pages.append(len(page.ids) if vectors else 0)
            yield page

    store.references = counting  # type: ignore[method-assign]
    try:
        yield pages
    finally:
        store.references = references  # type: ignore[method-assign]


def _growth(searches: list[dict[str, Any]], ways: list[str]) -> list[Row]:
    """The exponent of each way's time, and what more references cost at the large end."""
    rows: list[Row] = []
    for way in ways:
        points = [(row["references"], row[way]) for row in searches if way in row]
        counts, times = np.array(points).T
        exponent = np.polyfit(np.log(counts), np.log(times), 1)[0]
        more = (times[-1] - times[-2]) / (counts[-1] - counts[-2])
        rows.append({"way": way, "exponent": float(exponent), "µs an image for 1,000 more": 1000 * float(more)})
    return rows


def _draw(axes: Any, searches: list[dict[str, Any]], ways: list[str]) -> None:
    for way in ways:
        points = [(row["references"], row[way]) for row in searches if way in row]
        axes.loglog(*zip(*points, strict=True), marker="o", label=way)
    axes.set_xlabel("references")
    axes.set_ylabel("µs an image")
    axes.legend(fontsize="small")
