"""References of a store, changed in memory: fewer of them, under wrong categories, or of other images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zsvec.method.similarities import References, category_names, image_experts
from zsvec.types import encoder_and_modality


def only(references: Mapping[str, References], experts: Collection[str]) -> dict[str, References]:
    """The references of some experts."""
    return {expert: stored for expert, stored in references.items() if expert in experts}


def image_keys(references: Mapping[str, References]) -> list[tuple[str, str]]:
    """Category and hash of every reference image, sorted."""
    return sorted({key for stored in image_experts(references).values() for key in stored.keys})


def with_images(
    references: Mapping[str, References], change: Callable[[str, References], References]
) -> dict[str, References]:
    """The same references, those of images changed.

    Args:
        references: By expert.
        change: From an encoder's name and its reference images to what takes their place.
    """
    images = image_experts(references)
    changed = {expert: change(encoder_and_modality(expert)[0], stored) for expert, stored in images.items()}
    return {**references, **changed}


def drawn(references: Mapping[str, References], count: int, seed: int) -> dict[str, References]:
    """At most so many reference images of each category, the same ones for every encoder; all texts.

    Args:
        references: By expert.
        count: Images of each category.
        seed: Of the draw.
    """
    digests: dict[str, list[str]] = {}
    for name, digest in image_keys(references):
        digests.setdefault(name, []).append(digest)
    generator = np.random.default_rng(seed)
    chosen = {(name, digest) for name, own in digests.items() for digest in generator.permutation(own)[:count].tolist()}
    return with_images(references, lambda _, images: kept(images, [key in chosen for key in images.keys]))


def kept(references: References, keep: Sequence[bool]) -> References:
    """Some of the references of an expert."""
    rows = np.flatnonzero(keep)
    labels = references.labels
    return laid_out(
        references.vectors[rows],
        [labels[row] for row in rows],
        [references.hashes[row] for row in rows],
        [references.sources[row] for row in rows],
    )


def laid_out(
    vectors: NDArray[np.float32], labels: Sequence[str], hashes: Sequence[str], sources: Sequence[str]
) -> References:
    """References of one expert from its rows, in any order."""
    order = sorted(range(len(labels)), key=lambda row: labels[row])
    names, starts = np.unique([labels[row] for row in order], return_index=True)
    bounds = np.append(starts, len(order)).astype(np.intp)
    sorted_vectors = vectors[order]
    norms = [np.linalg.norm(part.mean(axis=0)) for part in np.split(sorted_vectors, bounds[1:-1])]
    return References(
        names=tuple(names.tolist()),
        vectors=sorted_vectors,
        starts=bounds,
        norms=np.array(norms, dtype=np.float32),
        hashes=tuple(hashes[row] for row in order),
        sources=tuple(sources[row] for row in order),
    )


def mislabelled(references: Mapping[str, References], share: float, seed: int) -> dict[str, References]:
    """The same images, a random share of which has another category; the same images for every encoder."""
    names, keys = category_names(references), image_keys(references)
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(len(keys))[: round(share * len(keys))]
    moved = {keys[i]: str(generator.choice([name for name in names if name != keys[i][0]])) for i in wrong}

    def change(_: str, images: References) -> References:
        labels = [moved.get(key, key[0]) for key in images.keys]
        return laid_out(images.vectors, labels, images.hashes, images.sources)

    return with_images(references, change)


def replaced(
    references: Mapping[str, References], share: float, vectors: Mapping[str, NDArray[np.float32]], seed: int
) -> dict[str, References]:
    """A random share of the reference images replaced by other images; the same ones for every encoder.

    Args:
        references: By expert.
        share: Fraction of the images, rounded down to whole images.
        vectors: Of the other images, by encoder, float32 ``(n_others, dim)``, at least one.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    digests = sorted({digest for _, digest in image_keys(references)})
    others = np.arange(len(next(iter(vectors.values()))))
    chosen = generator.permutation(len(digests))[: int(share * len(digests))]
    place = {digests[i]: int(generator.choice(others)) for i in chosen}

    def change(encoder: str, images: References) -> References:
        changed = images.vectors.copy()
        for row, digest in enumerate(images.hashes):
            if digest in place:
                changed[row] = vectors[encoder][place[digest]]
        return laid_out(changed, images.labels, images.hashes, images.sources)

    return with_images(references, change)
