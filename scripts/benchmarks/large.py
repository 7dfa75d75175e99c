"""The benchmark of large stores: exact and approximate searches of a Qdrant server."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

import zsvec
from benchmarks.measure import Cell, report, seconds
from zsvec import CategoryInput, SearchQuality
from zsvec.testing import HashEncoder
from zsvec.types import SearchParams

Floats = NDArray[np.float32]

_EACH = 100  # references of a category
_BLOCK = 20_000  # vectors made at once


def large(
    url: Annotated[str, typer.Argument(metavar="URL", help="Qdrant server. The collections are removed at the end.")],
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder with images of each category.")],
    profile: Annotated[str, typer.Option(help="Profile of the encoder of the images.")] = "offline",
    references: Annotated[int, typer.Option(min=200, help="Number of references.")] = 100_000,
    dim: Annotated[int, typer.Option(min=2, help="Dimension of the vectors.")] = 512,
    neighbors: Annotated[int, typer.Option(min=1, help="Number of references that a query returns.")] = 50,
    images: Annotated[int, typer.Option(min=1, help="Number of images to search.")] = 320,
    ef: Annotated[int, typer.Option(min=1, help="Candidates that the search of the graph keeps.")] = 128,
) -> None:
    """Compares exact scans, int8 scans and HNSW graphs: recall, labels, time and seconds to build.

    The references are made from the vectors of real images. For ten categories each, a real image is moved by 0.3 times
    the difference of two others; a reference is its category, plus 0.9 times the difference of two images of one class,
    plus Gaussian noise of length 0.3.
    """
    vectors, owners = made(*embedded(photos, profile), references, dim)
    encoders = [HashEncoder("made", dim=dim, modalities=("image",))]
    with zsvec.open(
        url, encoders=encoders, namespace=f"bench-{uuid.uuid4().hex[:8]}", index="qdrant", neighbors=neighbors
    ) as clf:
        try:
            categories = (
                CategoryInput(name=f"{owner:05}", vectors={"made:image": vectors[owners == owner]})
                for owner in range(owners.max() + 1)
            )
            imported = seconds(lambda: clf.add_categories(categories))
            int8 = SearchParams(oversampling=2.0)  # alone: from a million references on, `clf.index` adds a graph
            built = [seconds(lambda: list(clf._store.optimize(int8)))]
            rows = clf.index.measure(images).rows
            built.append(seconds(lambda: clf.index.optimize(ef=ef)))
            rows += clf.index.measure(images).rows
        finally:
            for name in ("made", "images", "catalog"):
                clf._store._backend.remove(clf._store.collection(name))
    report(
        f"{references:,} references of {dim} dimensions, {neighbors} returned, {url}",
        {
            "searches, by the first or the second index": [_row(row) for row in rows],
            "seconds": [{"import": imported, "int8": built[0], f"graph, ef {ef}": built[1]}],
        },
    )


def _row(row: SearchQuality) -> dict[str, Cell]:
    quality = {"recall": f"{row.recall:.2%}", "same label": f"{row.same_label:.2%}"}
    return {"search": str(row.params), **quality, "ms an image": row.ms}


def embedded(photos: Path, profile: str) -> tuple[Floats, list[str]]:
    """Returns the vectors and the folders of all images, by one encoder of a profile."""
    files = sorted(file for file in photos.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    with zsvec.open(":memory:", profile=profile) as clf:
        found = [(one.vectors, Path(one.source).parent.name) for one in clf.embed_stream(files) if not one.error]
    encoder = sorted(found[0][0])[-1]
    return np.array([vectors[encoder] for vectors, _ in found], dtype=np.float32), [name for _, name in found]


def made(real: Floats, labels: list[str], n: int, dim: int) -> tuple[Floats, NDArray[np.intp]]:
    """Returns references made from vectors of real images, float32 ``(n, dim)``, and the category of each."""
    rng, n_categories = np.random.default_rng(0), max(2, n // _EACH)
    centred = real.astype(np.float64) - real.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:dim]
    points = np.zeros((len(centred), dim))
    points[:, : len(axes)] = _unit(centred @ axes.T)
    rows = {name: np.flatnonzero(np.array(labels) == name) for name in set(labels)}
    pairs = [points[rng.choice(some, 400)] - points[rng.choice(some, 400)] for _, some in sorted(rows.items())]
    within = np.concatenate(pairs)
    parents = points[rng.integers(len(points), size=max(2, n_categories // 10))]
    between = (
        points[rng.integers(len(points), size=n_categories)] - points[rng.integers(len(points), size=n_categories)]
    )
    categories = _unit(parents[np.arange(n_categories) % len(parents)] + 0.3 * between)
    owners = np.arange(n) % n_categories
    vectors = np.empty((n, dim), dtype=np.float32)
    for first in range(0, n, _BLOCK):
        some = owners[first : first + _BLOCK]
        noise = 0.3 * rng.standard_normal((len(some), dim)) / np.sqrt(dim)
        vectors[first : first + _BLOCK] = _unit(
            categories[some] + 0.9 * within[rng.integers(len(within), size=len(some))] + noise
        )
    return vectors, owners


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
