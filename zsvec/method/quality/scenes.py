"""Which reference images of a category show one scene: flips, crops and bursts of it are no evidence for each other.

Calibration leaves a whole scene out together, and what a user says belongs together (`References.groups`). If one of
its images stayed, the left-out one would be recognised by it, and calibration would take the store for a better one
than it is.

How alike two images of one scene are depends on the encoder and on the category, so no cosine says it. But the cosines
within a category scatter around their median, and those of one scene lie far above; and above all cosines with images
of other categories, or else the right half of a category whose other half is mislabelled would seem to be one scene.
They are looked for under the encoder that tells categories apart best: the others take too many images for alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from zsvec.method.arrays import Floats, Key
from zsvec.method.similarities import References, image_experts

Pairs = set[tuple[Key, Key]]
"""Two images, in both orders."""
Scenes = Mapping[Key, set[str]]
"""By image, the hashes of the images of its scene, with its own; one set for all of them."""

TWIN = 0.99
"""Cosine from which, if all encoders agree, two images are one picture, saved twice."""
_FAR = 3.0  # standard deviations above the median from which two images of a category show one scene
_BEYOND = 0.317  # of a normal distribution: the part that is farther than one standard deviation from the median
_ENOUGH = 512  # images of a category by which its median is told
_BLOCK = 2**24  # similarities, or numbers of vectors, in memory at once


def image_rows(references: Mapping[str, References]) -> dict[str, dict[Key, int]]:
    """By image expert, the row of each of its reference images."""
    return {
        expert: {key: row for row, key in enumerate(found.keys)} for expert, found in image_experts(references).items()
    }


def scenes(
    references: Mapping[str, References], rows: Mapping[str, Mapping[Key, int]], images: Collection[Key]
) -> Scenes:
    """The scenes of images that are to be left out.

    Args:
        references: By expert.
        rows: Their `image_rows`.
        images: Reference images of any image expert.

    Returns:
        Without the images that are alone.
    """
    experts = image_experts(references)
    wanted = sorted({name for name, _ in images})
    links = agreed({expert: set(_twins(found, wanted)) for expert, found in experts.items()}, rows)
    if experts:
        best = most_discriminating(references, rows, images)
        links |= set(_neighbors(experts[best], rows[best], wanted))
    for found in experts.values():
        links |= set(_grouped(found, wanted))
    return _connected(links)


def most_discriminating(
    references: Mapping[str, References], rows: Mapping[str, Mapping[Key, int]], images: Collection[Key]
) -> str:
    """The image expert that tells categories apart best, of one or more; arguments as in `scenes`."""
    experts = image_experts(references)
    return max(sorted(experts), key=lambda expert: _accuracy(experts[expert], rows[expert], images))


def agreed(pairs: Mapping[str, Pairs], images: Mapping[str, Collection[Key]]) -> Pairs:
    """The pairs that are the same picture to each encoder that has both.

    Args:
        pairs: By image expert, those that it takes for the same picture.
        images: By image expert, all that it has, quick to be looked up.
    """
    every: Pairs = set().union(*pairs.values())
    for name, found in pairs.items():
        every -= {(one, other) for one, other in every - found if one in images[name] and other in images[name]}
    return every


def _twins(references: References, names: Collection[str]) -> Iterator[tuple[Key, Key]]:
    """The pairs of images of a category that one encoder takes for the same picture."""
    for name, vectors, hashes in _categories(references, names):
        yield from _pairs(name, vectors, hashes, TWIN)


def _grouped(references: References, names: Collection[str]) -> Iterator[tuple[Key, Key]]:
    """Images of a category that are known to belong together, each with the next."""
    if not references.groups:
        return
    wanted = set(names)
    last: dict[tuple[str, str], Key] = {}
    for name, digest, group in zip(references.labels, references.hashes, references.groups, strict=True):
        if group is not None and name in wanted:
            key = (name, digest)
            if before := last.get((name, group)):
                yield from ((before, key), (key, before))
            last[name, group] = key


def _neighbors(references: References, row_of: Mapping[Key, int], names: Collection[str]) -> Iterator[tuple[Key, Key]]:
    """The pairs of images of a category that are far nearer than its images are, and than those of others are."""
    categories = [(*category, median_cosine(category[1])) for category in _categories(references, names)]
    below = [np.minimum(_cosines(vectors) - median, 0) for _, vectors, _, median in categories]
    scattered = np.concatenate([np.empty(0, np.float32), *(found[found < 0] for found in below)])
    if not scattered.size:
        return
    deviation = -float(np.quantile(scattered, _BEYOND))
    pairs = [
        pair
        for name, vectors, hashes, median in categories
        for pair in _pairs(name, vectors, hashes, median + _FAR * deviation)
    ]
    vectors, rows = references.vectors, sorted({row_of[one] for one, _ in pairs})
    nearest = dict(zip(rows, _nearest_elsewhere(references, rows), strict=True))
    for one, other in pairs:
        i, j = row_of[one], row_of[other]
        if vectors[i] @ vectors[j] > max(nearest[i], nearest[j]):
            yield one, other


def _nearest_elsewhere(references: References, rows: Sequence[int]) -> list[float]:
    """The largest cosine of some images with an image of another category that is not the same picture."""
    vectors, bounds = references.vectors, references.starts
    found: list[float] = []
    size = max(1, _BLOCK // len(vectors))
    for first in range(0, len(rows), size):
        block = np.array(rows[first : first + size])
        cosines = vectors[block] @ vectors.T
        cosines[cosines >= TWIN] = -1
        own = np.searchsorted(references.starts, block, side="right") - 1
        for row, category in zip(cosines, own, strict=True):
            row[bounds[category] : bounds[category + 1]] = -1
        found += cosines.max(axis=1).tolist()
    return found


def _categories(references: References, names: Collection[str]) -> Iterator[tuple[str, Floats, tuple[str, ...]]]:
    """Name, vectors and hashes of the categories that have more than one image."""
    wanted = set(names)
    for name, start, end in zip(references.names, references.starts, references.starts[1:], strict=False):
        if name in wanted and end - start > 1:
            yield name, references.vectors[start:end], references.hashes[start:end]


def _pairs(name: str, vectors: Floats, hashes: tuple[str, ...], closeness: float) -> Iterator[tuple[Key, Key]]:
    size = max(1, _BLOCK // len(vectors))
    for first in range(0, len(vectors), size):
        for i, j in zip(*np.nonzero(vectors[first : first + size] @ vectors.T >= closeness), strict=True):
            if first + i != j:
                yield (name, hashes[first + i]), (name, hashes[j])


def _cosines(vectors: Floats) -> Floats:
    """Of all pairs of some images of a category."""
    some = vectors[:: 1 + (len(vectors) - 1) // _ENOUGH]
    return (some @ some.T)[np.triu_indices(len(some), 1)]


def median_cosine(vectors: Floats) -> float:
    """Of two images of a category; where it has many, of some of them.

    Args:
        vectors: float32 ``(n_images, dim)``, unit rows; at least two.
    """
    return float(np.median(_cosines(vectors)))


def _accuracy(references: References, row_of: Mapping[Key, int], images: Collection[Key]) -> float:
    """How often the mean reference of an image's category, without the image, is nearer than those of all others."""
    rows = np.array(sorted(row_of[key] for key in images if key in row_of), dtype=np.intp)
    own = np.searchsorted(references.starts, rows, side="right") - 1
    counts = np.diff(references.starts)[own]
    rows, own, counts = rows[counts > 1], own[counts > 1], counts[counts > 1, None]
    if not rows.size:
        return 0.0
    means, lengths, right = references.class_means, np.maximum(references.norms, 1e-12), 0
    size = max(1, _BLOCK // max(len(means), references.vectors.shape[1]))
    for block in (slice(first, first + size) for first in range(0, len(rows), size)):
        queries = references.vectors[rows[block]]
        similarity = queries @ means.means.T / lengths
        others = counts[block] * means.means[own[block]] - queries
        others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-12)
        without = np.einsum("nd,nd->n", queries, others)
        similarity[np.arange(len(queries)), own[block]] = -np.inf
        right += int(np.count_nonzero(without > similarity.max(axis=1)))
    return right / len(rows)


def _connected(links: Pairs) -> Scenes:
    """All images that are linked, by whatever way."""
    beside: dict[Key, set[Key]] = {}
    for one, other in links:
        beside.setdefault(one, set()).add(other)
    found: dict[Key, set[str]] = {}
    for key in beside:
        if key in found:
            continue
        scene, new = {key}, [key]
        while new:
            new = [other for one in new for other in beside[one] - scene]
            scene.update(new)
        hashes = {digest for _, digest in scene}
        found.update(dict.fromkeys(scene, hashes))
    return found
