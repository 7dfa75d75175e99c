"""Images of a store that are similar to a known image. Nothing is embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zsvec.curation.retention import Keeper
from zsvec.errors import InvalidInputError
from zsvec.ingest.embedding import RecentVectors, Vectors
from zsvec.ingest.validation import checked_count, checked_hash
from zsvec.store import Store
from zsvec.types import Neighbor, Similar, is_attached

_MAX_NEAREST = 10_000  # references to look at, if the nearest are points of attached collections

Row = NDArray[np.float32]


def similar_images(
    content_hash: str,
    number: int,
    *,
    store: Store,
    keeper: Keeper,
    recent: RecentVectors,
    encoders: Sequence[str],
    nearest: Callable[[Vectors, int], Sequence[Neighbor]],
) -> Similar:
    """As `zsvec.classifier.Classifier.similar`.

    Args:
        content_hash: Content hash of the image.
        number: Maximum number of images of each kind.
        store: The store.
        keeper: Reads the inbox.
        recent: Vectors of the images that were classified last.
        encoders: Names of the image encoders in use.
        nearest: Returns the nearest reference images of an image by each encoder.
    """
    digest, wanted = checked_hash(content_hash), checked_count("number", number)
    stored = store.stored_vectors()

    def vectors_of(hashes: set[str]) -> dict[str, Mapping[str, Row]]:
        return {found: one.vectors for found, one in stored.find(encoders, "image", hashes).items()}

    query = (recent.find([digest]) or vectors_of({digest})).get(digest)
    if query is None:
        raise InvalidInputError(
            f"hash must be of a reference, of an image in the inbox or of a recently classified image. Got {digest!r} "
            "instead: classify the image again"
        )
    # A reference that only one encoder finds near is compared by all.
    asked, found = wanted + 1, dict[tuple[str, str], Neighbor]()
    while True:
        near = nearest({name: query[name][None] for name in encoders}, asked)
        found = {(one.category, one.hash): one for one in near if one.hash != digest and not is_attached(one.hash)}
        if len(found) >= wanted or len(near) < asked or asked > _MAX_NEAREST:
            break
        asked *= 4  # the nearest are points of attached collections
    vectors = vectors_of({one.hash for one in found.values()})
    references = [
        replace(one, similarity=_mean_cosine(query, vectors[one.hash])) for one in found.values() if one.hash in vectors
    ]
    waiting = [
        Neighbor("", _mean_cosine(query, image.vectors), image.source, image.hash)
        for image in keeper.present()
        if image.state == "waiting"
    ]
    return Similar(references=_best(references, digest, wanted), waiting=_best(waiting, digest, wanted))


def _mean_cosine(one: Mapping[str, Row], other: Mapping[str, Row]) -> float:
    """Returns the mean cosine over the encoders of `other`, -1 to 1. Rows of a store may have any norm."""
    cosines = [
        float(one[name] @ row / (np.linalg.norm(one[name]) * np.linalg.norm(row))) for name, row in other.items()
    ]
    return sum(cosines) / len(cosines)


def _best(images: Sequence[Neighbor], itself: str, number: int) -> tuple[Neighbor, ...]:
    others = (image for image in images if image.hash != itself)
    return tuple(sorted(others, key=lambda image: (-image.similarity, image.hash)))[:number]
