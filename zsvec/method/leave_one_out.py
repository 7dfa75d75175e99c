"""Each stored reference image against all the other references, as if it were a new image of its category.

This is what calibration learns from: labelled examples that need no images and no encoder, only the
vectors that are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.aggregation import Similarities, aggregate
from zsvec.method.linalg import rows_times_rows
from zsvec.method.similarities import References, category_names
from zsvec.types import encoder_and_modality, expert_name

Floats = NDArray[np.float32]

TWIN = 0.99  # cosine from which, if all encoders agree, two images of a category are one picture, saved twice
_BLOCK = 2**24  # similarities that are held at once


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Similarities of reference images to every category, without what they owe to themselves.

    Attributes:
        categories: All of them, by name.
        labels: int ``(n_images,)``, the category of each image, as a position.
        known: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        views: By expert and aggregation, float32 ``(n_images, n_categories)``. NaN where the expert has no
            reference of a category, none but the image itself and its twins, or no vector of the image.
    """

    categories: tuple[str, ...]
    labels: NDArray[np.intp]
    known: NDArray[np.bool_]
    views: Mapping[str, Mapping[str, Floats]]


def leave_one_out(
    references: Mapping[str, References], aggregations: Sequence[str], top_m: int, most: int
) -> LeftOut | None:
    """Score reference images against all references but themselves.

    Text experts are scored on the reference images of their encoder. A reference of the same category
    that is the same picture (cosine above `TWIN` for each encoder that has both) is left out as well: it must
    not vouch for its twin. The same picture in another category stays.

    Args:
        references: By expert.
        aggregations: Names in `aggregate.AGGREGATIONS`.
        top_m: References that ``top_mean`` averages.
        most: Images to take; of more, an equal number of each category as far as they go, by their hash.

    Returns:
        The similarities, or ``None`` if there is no reference image or no second category.
    """
    categories = tuple(category_names(references))
    position = {name: i for i, name in enumerate(categories)}
    rows = {
        encoder: {key: row for row, key in enumerate(of.keys)}
        for expert, of in references.items()
        for encoder, modality in [encoder_and_modality(expert)]
        if modality == "image"
    }
    images = _evenly({key for of in rows.values() for key in of}, most)
    if not images or len(categories) < 2:
        return None
    twins = _twins(references)
    views: dict[str, dict[str, Floats]] = {}
    for expert, of in references.items():
        encoder, modality = encoder_and_modality(expert)
        row = np.array([rows.get(encoder, {}).get(key, -1) for key in images], dtype=np.intp)
        columns = np.array([position[name] for name in of.names], dtype=np.intp)
        views[expert] = {name: np.full((len(images), len(categories)), np.nan, np.float32) for name in aggregations}
        has = np.flatnonzero(row >= 0)
        if not has.size:
            continue
        queries = references[expert_name(encoder, "image")].vectors
        size = max(1, _BLOCK // len(of.vectors))
        for first in range(0, len(has), size):
            block = has[first : first + size]
            itself = row[block] if modality == "image" else None
            found = _score(of, queries[row[block]], itself, twins, aggregations, top_m)
            for name, similarity in found.items():
                views[expert][name][np.ix_(block, columns)] = similarity
    labels = np.array([position[name] for name, _ in images], dtype=np.intp)
    known = np.stack([np.isin(categories, of.names) for of in references.values()])
    return LeftOut(categories, labels, known, views)


def _evenly(images: set[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """At most so many images: the first of each category by hash, then the second of each, and so on."""
    ranks: dict[str, int] = {}
    ranked = []
    for name, digest in sorted(images):
        ranks[name] = ranks.get(name, -1) + 1
        ranked.append((ranks[name], name, digest))
    return sorted((name, digest) for _, name, digest in sorted(ranked)[:most])


def _twins(references: Mapping[str, References]) -> dict[tuple[str, str], set[str]]:
    """By category and hash of an image, the hashes of the same picture in that category."""
    encoders = [of for expert, of in references.items() if encoder_and_modality(expert)[1] == "image"]
    alike = [set(_alike(of)) for of in encoders]
    agreed = set().union(*alike)
    for of, pairs in zip(encoders, alike, strict=True):
        held = set(of.keys) if agreed else set()
        agreed -= {
            (name, one, other) for name, one, other in agreed - pairs if (name, one) in held and (name, other) in held
        }
    twins: dict[tuple[str, str], set[str]] = {}
    for name, one, other in agreed:
        twins.setdefault((name, one), set()).add(other)
    return twins


def _alike(of: References) -> Iterator[tuple[str, str, str]]:
    """Category and hashes of images that one encoder takes for the same picture."""
    for name, start, end in zip(of.names, of.starts, of.starts[1:], strict=False):
        vectors, hashes = of.vectors[start:end], of.hashes[start:end]
        size = max(1, _BLOCK // len(vectors))
        for first in range(0, len(vectors), size):
            similar = rows_times_rows(vectors[first : first + size], vectors) >= TWIN
            for i, j in zip(*np.nonzero(similar), strict=True):
                if first + i != j:
                    yield name, hashes[first + i], hashes[j]


def _score(
    of: References,
    queries: Floats,
    itself: NDArray[np.intp] | None,
    twins: Mapping[tuple[str, str], set[str]],
    aggregations: Sequence[str],
    top_m: int,
) -> dict[str, Floats]:
    """Similarity of each query to each category, by aggregation; `itself` is the query's row among the references."""
    values = rows_times_rows(queries, of.vectors)
    floor = np.full(len(queries), -1, dtype=np.float32)
    every = Similarities(values, of.starts, np.diff(of.starts), of.norms, floor)
    found = {name: aggregate(every, name, top_m) for name in aggregations}
    if itself is not None:
        own = np.searchsorted(of.starts, itself, side="right") - 1
        order, others = _others(of, values, itself, own, twins)
        for name, similarity in found.items():
            similarity[np.arange(len(queries)), own] = np.nan
            similarity[order, own[order]] = aggregate(others, name, top_m)[0] if order.size else np.nan
    return found


def _others(
    of: References,
    values: Floats,
    itself: NDArray[np.intp],
    own: NDArray[np.intp],
    twins: Mapping[tuple[str, str], set[str]],
) -> tuple[NDArray[np.intp], Similarities]:
    """The similarities of images to the other references of their own category.

    Returns:
        The images that have any, and their similarities laid out as those of one image with a category for each.
    """
    order, kept, counts, norms = [], [], [], []
    for category in np.unique(own):
        images = np.flatnonzero(own == category)
        start, end = of.starts[category], of.starts[category + 1]
        similarity = values[images, start:end]
        keep = np.ones(similarity.shape, dtype=bool)
        keep[np.arange(len(images)), itself[images] - start] = False
        for i, row in enumerate(itself[images]):
            if same := twins.get((of.names[category], of.hashes[row])):
                keep[i] &= [digest not in same for digest in of.hashes[start:end]]
        has = keep.any(axis=1)
        images, similarity, keep = images[has], similarity[has], keep[has]
        count = keep.sum(axis=1)
        mean = keep.astype(np.float32) @ of.vectors[start:end] / np.maximum(count, 1)[:, None]
        order.append(images)
        kept.append(similarity[keep])
        counts.append(count)
        norms.append(np.linalg.norm(mean, axis=1).astype(np.float32))
    count = np.concatenate(counts)
    return np.concatenate(order), Similarities(
        values=np.concatenate(kept)[None],
        starts=np.concatenate([[0], np.cumsum(count)]),
        counts=count,
        norms=np.concatenate(norms),
        floor=np.array([-1], dtype=np.float32),
    )
