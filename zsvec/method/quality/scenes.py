"""Scenes: groups of flips, crops and bursts among the reference images of a category.

Images of one scene are not independent examples. So calibration leaves out a whole scene together. Otherwise the
remaining images of the scene would identify the left-out image, and calibration would overestimate the accuracy of the
store. Images of a group that a user has named (`References.groups`) belong to one scene.

The cosine of two images of one scene depends on the encoder and on the category, so no fixed threshold works. But
cosines within a category scatter around their median, and cosines within a scene lie far above this median. They also
lie above all cosines with images of other categories. Without this second condition, the correctly labelled half of a
half mislabelled category would seem to be one scene. Scenes are found under the encoder that tells categories apart
best, because other encoders find too many images alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from zsvec.method.arrays import Floats, Key, slices
from zsvec.method.similarities import References, image_experts

Pairs = set[tuple[Key, Key]]
"""Pairs of images. Each pair is present in both orders."""
Scenes = Mapping[Key, set[str]]
"""By image, the hashes of all images of its scene, including the image. The images of a scene share one set object."""

TWIN = 0.99
"""Least cosine of two copies of one picture, under every encoder."""
_FAR = 3.0  # cosines this many standard deviations above the median show one scene
_BEYOND = 0.317  # fraction of a normal distribution beyond one standard deviation
_ERRORS = 2.0  # accuracies that differ by at most so many standard errors count as equal
_SAMPLE = 512  # maximum number of a category's images whose cosines are used to estimate the median
_BLOCK = 2**24  # similarities, or numbers of vectors, in memory at once


def image_rows(references: Mapping[str, References]) -> dict[str, dict[Key, int]]:
    """Returns the row of each reference image, by image expert and key."""
    return {
        expert: {key: row for row, key in enumerate(found.keys)} for expert, found in image_experts(references).items()
    }


def scenes(
    references: Mapping[str, References],
    rows: Mapping[str, Mapping[Key, int]],
    images: Collection[Key],
    *,
    multilabel: bool = False,
) -> Scenes:
    """Returns the scenes of two or more images in the categories of ``images``.

    Args:
        references: References of each expert, by name.
        rows: Result of `image_rows` for the references.
        images: Reference images of any image expert. All images of their categories are compared.
        multilabel: Whether an image may belong to several categories. Then the images of a category are no evidence
            against a scene of this category where another category has them, too.
    """
    experts = image_experts(references)
    wanted = sorted({name for name, _ in images})
    links = agreed({expert: set(_twins(found, wanted)) for expert, found in experts.items()}, rows)
    if experts:
        best = most_discriminating(references, rows, images)
        links |= set(_neighbors(experts[best], rows[best], wanted, multilabel=multilabel))
    for found in experts.values():
        links |= set(_grouped(found, wanted))
    return _connected(links)


def most_discriminating(
    references: Mapping[str, References], rows: Mapping[str, Mapping[Key, int]], images: Collection[Key]
) -> str:
    """Returns the image expert that tells categories apart best.

    In a small store, several experts may be equally accurate by chance: within two standard errors of the best. Among
    them, the expert with the largest spread within categories is chosen, because a large spread also tells the images
    of a category apart.

    Args:
        references: By expert; at least one image expert.
        rows: As in `scenes`.
        images: Reference images on which the accuracy of each expert is measured.
    """
    experts = image_experts(references)
    accuracy = {expert: _accuracy(found, rows[expert], images) for expert, found in sorted(experts.items())}
    n, top = len(images), max(accuracy.values())
    smoothed = (top * n + 1) / (n + 2)  # or the standard error of a perfect accuracy would be 0
    least = top - _ERRORS * (smoothed * (1 - smoothed) / max(n, 1)) ** 0.5
    near = [expert for expert, value in accuracy.items() if value >= least]
    if len(near) == 1:
        return near[0]
    return max(near, key=lambda expert: float(np.median(list(spreads(experts[expert]).values()) or 0)))


def agreed(pairs: Mapping[str, Pairs], images: Mapping[str, Collection[Key]]) -> Pairs:
    """Returns the pairs that show the same picture under every encoder that has vectors of both images.

    Args:
        pairs: By image expert, the pairs that show the same picture under its encoder.
        images: By image expert, all images with a vector. Membership tests must be fast.
    """
    every: Pairs = set().union(*pairs.values())
    for name, found in pairs.items():
        every -= {(one, other) for one, other in every - found if one in images[name] and other in images[name]}
    return every


def _twins(references: References, names: Collection[str]) -> Iterator[tuple[Key, Key]]:
    """Yields the pairs of images of a category that show the same picture under one encoder, in both orders."""
    for name, vectors, hashes in _categories(references, names):
        yield from _pairs(name, vectors, hashes, TWIN)


def _grouped(references: References, names: Collection[str]) -> Iterator[tuple[Key, Key]]:
    """Yields pairs of consecutive images of the same category and group, in both orders."""
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


def _neighbors(
    references: References, row_of: Mapping[Key, int], names: Collection[str], *, multilabel: bool
) -> Iterator[tuple[Key, Key]]:
    """Yields pairs of images of a category that show one scene under one encoder, in both orders.

    Their cosine lies far above the median of the category, and above the cosine of either with an image of another
    category.
    """
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
    nearest = dict(zip(rows, _nearest_elsewhere(references, rows, multilabel=multilabel), strict=True))
    for one, other in pairs:
        i, j = row_of[one], row_of[other]
        if vectors[i] @ vectors[j] > max(nearest[i], nearest[j]):
            yield one, other


def _nearest_elsewhere(references: References, rows: Sequence[int], *, multilabel: bool) -> list[float]:
    """Returns the largest cosine of each image with an image of another category; copies are ignored.

    With `multilabel`, images that the category of the image has as well are ignored.
    """
    vectors, bounds = references.vectors, references.starts
    content = np.unique(references.hashes, return_inverse=True)[1] if multilabel else None
    found: list[float] = []
    for part in slices(len(rows), max(1, _BLOCK // len(vectors))):
        block = np.array(rows[part])
        cosines = vectors[block] @ vectors.T
        cosines[cosines >= TWIN] = -1
        for row, category in zip(cosines, references.owners(block), strict=True):
            own = slice(bounds[category], bounds[category + 1])
            row[own if content is None else np.isin(content, content[own])] = -1
        found += cosines.max(axis=1).tolist()
    return found


def _categories(references: References, names: Collection[str]) -> Iterator[tuple[str, Floats, tuple[str, ...]]]:
    """Yields name, vectors and hashes of the categories in ``names`` that have more than one image."""
    wanted = set(names)
    for name, (start, end) in zip(references.names, pairwise(references.starts), strict=True):
        if name in wanted and end - start > 1:
            yield name, references.vectors[start:end], references.hashes[start:end]


def _pairs(name: str, vectors: Floats, hashes: tuple[str, ...], closeness: float) -> Iterator[tuple[Key, Key]]:
    for rows in slices(len(vectors), max(1, _BLOCK // len(vectors))):
        for i, j in zip(*np.nonzero(vectors[rows] @ vectors.T >= closeness), strict=True):
            if rows.start + i != j:
                yield (name, hashes[rows.start + i]), (name, hashes[j])


def _cosines(vectors: Floats) -> Floats:
    """Returns the cosine of each pair of images of a category; a large category is sampled."""
    some = vectors[:: 1 + (len(vectors) - 1) // _SAMPLE]
    return (some @ some.T)[np.triu_indices(len(some), 1)]


def median_cosine(vectors: Floats) -> float:
    """Returns the median cosine over pairs of images of a category; a large category is sampled.

    Args:
        vectors: float32 ``(n_images, dim)``, unit rows, at least two.
    """
    return float(np.median(_cosines(vectors)))


def spreads(references: References) -> dict[str, float]:
    """Returns, for each category with at least two images, the median distance (1 - cosine) of two images, 0 to 2.

    Args:
        references: References of an image expert.
    """
    return {
        name: 1 - median_cosine(references.vectors[start:end])
        for name, start, end in zip(references.names, references.starts, references.starts[1:], strict=False)
        if end - start > 1
    }


def _accuracy(references: References, row_of: Mapping[Key, int], images: Collection[Key]) -> float:
    """Returns the accuracy of the nearest category mean, 0 to 1. An image is left out of the mean of its category."""
    rows = np.array(sorted(row_of[key] for key in images if key in row_of), dtype=np.intp)
    own = references.owners(rows)
    counts = np.diff(references.starts)[own]
    rows, own, counts = rows[counts > 1], own[counts > 1], counts[counts > 1, None]
    if not rows.size:
        return 0.0
    means, lengths, right = references.class_means, np.maximum(references.norms, 1e-12), 0
    for block in slices(len(rows), max(1, _BLOCK // max(len(means), references.vectors.shape[1]))):
        queries = references.vectors[rows[block]]
        similarity = queries @ means.means.T / lengths
        others = counts[block] * means.means[own[block]] - queries
        others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-12)
        without = np.einsum("nd,nd->n", queries, others)
        similarity[np.arange(len(queries)), own[block]] = -np.inf
        right += int(np.count_nonzero(without > similarity.max(axis=1)))
    return right / len(rows)


def _connected(links: Pairs) -> Scenes:
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
