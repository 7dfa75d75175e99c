"""Measures search, calibration and changes of stores by the number of references."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, cast

import numpy as np
import typer
from numpy.typing import NDArray

import zsvec
from benchmarks.measure import Cell, Device, interleaved, ratio, report, seconds, unit_vectors
from zsvec.testing import HashEncoder

_PER_CATEGORY = 10
_QDRANT = 100_000  # maximum number of references for which the embedded engine is measured

Vectors = NDArray[np.float32]


def scale(
    largest: Annotated[
        int, typer.Option(help="References of the largest store; the others have a tenth each.")
    ] = 100_000,
    dim: int = 512,
    batch: int = 64,
    rounds: int = 7,
    device: Device = "auto",
    server: Annotated[str, typer.Option(help="URL of a Qdrant server; keeps the stores. Default: folders.")] = "",
) -> None:
    """Measure imports, calibrations, first batches, added categories, and searches with aggregation and fusion.

    A search in process is compared with the bare product: numpy multiplies the images with all references in float32.
    """
    searches: list[dict[str, Cell]] = []
    starts: list[dict[str, Cell]] = []
    for size in [10**power for power in range(3, 10) if 10**power <= largest]:
        took, started = _store(size, dim, batch, rounds, device, server)
        starts.append({"references": size, **started})
        searches += [
            {
                "references": size,
                "way": way,
                "µs an image": 1e6 * statistics.median(one) / batch,
                "times the bare product": ratio(one, took["bare product"]) if way == "in process" else "",
            }
            for way, one in took.items()
        ]
    report(
        f"{dim} dimensions, {_PER_CATEGORY} references a category, batches of {batch} images",
        {"search, aggregation and fusion": searches, "the store": starts},
    )


def _store(
    size: int, dim: int, batch: int, rounds: int, device: str, server: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Returns seconds of batches by index, and seconds of other operations, for a store of `size` references."""
    random = np.random.default_rng(0)
    vectors, queries = unit_vectors(random, size, dim), {"bench": unit_vectors(random, batch, dim)}
    encoder = HashEncoder("bench", dim=dim, modalities=("image",))
    categories = [
        _category(i, part) for i, part in enumerate(np.split(vectors, range(_PER_CATEGORY, size, _PER_CATEGORY)))
    ]
    started: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # folder of the reference cache
        opened = partial(
            zsvec.open,
            server or f"{scratch}/store",
            namespace=f"bench-{uuid.uuid4().hex[:12]}",
            encoders=[encoder],
            index_device=cast("zsvec.Device", device),
        )
        with opened(index="memory", index_cache=False) as classifier:
            started["import, s"] = seconds(partial(classifier.add_categories, categories))
            started["calibrate, s"] = seconds(classifier.calibrate)
        for start in ("first batch, s", "of the next process, s"):
            with opened(index="memory") as classifier:
                started[start] = seconds(partial(classifier.classify_vectors, queries))
        with opened(index="memory") as classifier:
            compared: dict[str, Callable[[], object]] = {
                "bare product": lambda: queries["bench"] @ vectors.T,
                "in process": partial(classifier.classify_vectors, queries),
            }
            took = interleaved(compared, rounds)
            new = [[_category(size + i, unit_vectors(random, _PER_CATEGORY, dim))] for i in range(5)]
            started["add a category, s"] = statistics.median(
                seconds(partial(classifier.add_categories, c)) for c in new
            )
        if size <= _QDRANT:
            with opened(index="qdrant") as classifier:
                took |= interleaved(
                    {"server" if server else "embedded engine": partial(classifier.classify_vectors, queries)}, rounds
                )
    return took, started


def _category(number: int, vectors: Vectors) -> zsvec.CategoryInput:
    return zsvec.CategoryInput(name=f"category {number:07}", texts=[], vectors={"bench:image": vectors})


def calibrate(references: int = 10_000, dim: int = 512, categories: int = 1_000, device: Device = "auto") -> None:
    """Measure the seconds and the memory that calibrating three image experts takes."""
    random = np.random.default_rng(0)
    names = ("one", "two", "three")
    centres = {name: random.standard_normal((categories, dim)) for name in names}
    encoders = [HashEncoder(name, dim=dim, modalities=("image",)) for name in names]

    def category(number: int) -> zsvec.CategoryInput:
        size = (references // categories, dim)
        vectors: dict[str, Any] = {
            f"{name}:image": centres[name][number] + 3 * random.standard_normal(size) for name in names
        }
        return zsvec.CategoryInput(name=f"category {number:06}", texts=[], vectors=vectors)

    with (
        tempfile.TemporaryDirectory() as scratch,
        zsvec.open(
            scratch, encoders=encoders, index_device=cast("zsvec.Device", device), index_cache=False
        ) as classifier,
    ):
        classifier.add_categories([category(number) for number in range(categories)])
        classifier.classify_vectors({name: centre[:1] for name, centre in centres.items()})  # loads the vectors
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = seconds(classifier.calibrate)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    report(
        f"{references} references of {dim} dimensions × {len(names)} experts, {categories} categories",
        {"calibration": [{"s": spent, "GiB beyond the vectors": more}]},
    )
