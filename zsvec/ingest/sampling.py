"""Samples the references of a store that is too large to read, and scores the sample by the search of the store.

The points of a category come in the order of their ids. An id is a hash of the content, so the first points are a
random sample of the category, and the same sample each time. The ids of attached collections may have another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from zsvec.ingest.embedding import Vectors
from zsvec.method.arrays import Doubles, Floats, Key, slices
from zsvec.method.calibrate.leave_one_out import LeftOut, evenly, joined, left_out_of_search
from zsvec.method.calibration import LogLinear
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear
from zsvec.method.predict.reference_aggregation import aggregate_experts
from zsvec.method.quality.scenes import Scenes
from zsvec.method.similarities import SearchResult, image_experts
from zsvec.search.searcher import Searcher
from zsvec.store import Store
from zsvec.store.attached.parts import is_attached_write, own_writes
from zsvec.types import Category, encoder_and_modality

BLOCK = 64
"""Number of images in one search of a sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Reference images of a store, with vectors.

    Attributes:
        images: Category and content hash of each image, ascending.
        vectors: By encoder, float32 ``(n_images, dim)``, unit rows.
        groups: For each image in a group that a user has named, the content hashes of the group.
    """

    images: Sequence[Key]
    vectors: Vectors
    groups: Scenes

    def blocks(self) -> Iterator[tuple[Sequence[Key], Vectors]]:
        """Yields images and vectors in blocks of at most `BLOCK` images."""
        for rows in slices(len(self.images), BLOCK):
            yield self.images[rows], {encoder: vectors[rows] for encoder, vectors in self.vectors.items()}


def sample(store: Store, categories: Sequence[Category], experts: Collection[str], most: int) -> Sample:
    """Reads a sample of reference images that have a vector of every image expert, evenly from the categories.

    Args:
        store: The store.
        categories: Categories of the store.
        experts: Names of the experts in use. Without an image expert, the sample is empty.
        most: Maximum number of images.

    Raises:
        StoreError: The store cannot be read.
    """
    used = sorted(image_experts(dict.fromkeys(experts)))
    eligible = [category for category in categories if used and all(category.references.get(name) for name in used)]
    eligible = sorted(eligible, key=lambda category: sha256(category.name.encode()).digest())[:most]
    encoders = [encoder_and_modality(expert)[0] for expert in used]
    if not eligible:
        return Sample([], {}, {})
    candidates: dict[Key, str | None] = {}
    found: dict[str, Mapping[str, Floats]] = {}  # vectors by hash and encoder
    for category in eligible:
        candidates |= _first(store, encoders[0], category, -(-most // len(eligible)))
    if len(encoders) == 1:  # a point has the vector of one encoder
        for (name, digest), vector in _attached_points(store, encoders[0], eligible, -(-most // len(eligible))):
            candidates[name, digest] = None
            found[digest] = {encoders[0]: vector}
    images = evenly(set(candidates), most)
    stored = store.stored_vectors().find(encoders, "image", {digest for _, digest in images})
    found |= {digest: content.vectors for digest, content in stored.items()}
    images = [key for key in images if key[1] in found]
    vectors = {
        encoder: np.array([found[digest][encoder] for _, digest in images], dtype=np.float32)
        for encoder in encoders
        if images
    }
    grouped = {name for name, digest in images if candidates[name, digest] is not None}
    whole: dict[Key, str | None] = {}
    for category in eligible:
        if category.name in grouped:
            whole |= _first(store, encoders[0], category)
    return Sample(images, vectors, _groups(images, whole))


def _first(store: Store, encoder: str, category: Category, n: int | None = None) -> dict[Key, str | None]:
    """Returns the groups of the first `n` images of a category, or of all images, by category and content hash."""
    found: dict[Key, str | None] = {}
    for page in store.references(encoder, own_writes(category), vectors=False):
        for payload in page.payloads:
            if payload["modality"] == "image" and (n is None or len(found) < n):
                found[category.name, payload["hash"]] = payload.get("group")
        if n is not None and len(found) >= n:
            break
    return found


def _attached_points(
    store: Store, encoder: str, categories: Sequence[Category], n: int
) -> Iterator[tuple[Key, Floats]]:
    """Yields the first `n` images of each category in attached collections, with their vectors."""
    write_ids = {write_id for category in categories for write_id in category.write_ids if is_attached_write(write_id)}
    taken: Counter[str] = Counter()
    for page in store.attached_pages(encoder, write_ids) if write_ids else ():
        for payload, vector in zip(page.payloads, page.vectors, strict=True):
            if payload["modality"] == "image" and taken[payload["category"]] < n:
                taken[payload["category"]] += 1
                yield (payload["category"], payload["hash"]), vector


def _groups(images: Sequence[Key], groups: Mapping[Key, str | None]) -> Scenes:
    members: dict[tuple[str, str], set[str]] = {}
    for (name, digest), group in groups.items():
        if group is not None:
            members.setdefault((name, group), set()).add(digest)
    named = {key: (key[0], group) for key in images if (group := groups.get(key)) is not None}
    return {key: members[place] for key, place in named.items()}


def left_out_on_server(
    searcher: Searcher,
    chosen: Sample,
    experts: Collection[str],
    aggregation: str,
    top_m: int,
    neighbors: int,
    *,
    multilabel: bool = False,
) -> LeftOut | None:
    """Scores a sample by the search that also classifies; see `left_out_of_search`.

    Args:
        searcher: Searches the store of the sample.
        chosen: The sample.
        experts: Names of the experts in use.
        aggregation: A name in `reference_aggregation.AGGREGATIONS`, but not ``prototype``.
        top_m: Number of references that ``top_mean`` averages.
        neighbors: Number of references that a query returns.
        multilabel: Whether an image may belong to several categories.

    Returns:
        The scores, or ``None`` for an empty sample and for a store with fewer than two categories.
    """
    blocks = []
    for images, vectors in chosen.blocks():
        found = in_use(searcher.search(vectors, neighbors), experts)
        while (there := _still_there(found, images)) and len(there) < len(images):  # categories have changed
            images, vectors = [images[i] for i in there], {name: rows[there] for name, rows in vectors.items()}
            found = in_use(searcher.search(vectors, neighbors), experts)
        if there:
            blocks.append(left_out_of_search(found, images, chosen.groups, aggregation, top_m, multilabel=multilabel))
    left_out = joined(blocks, multilabel=multilabel) if blocks else None
    return left_out if left_out and len(left_out.categories) > 1 and len(left_out.labels) else None


def _still_there(found: SearchResult, images: Sequence[Key]) -> list[int]:
    """Returns the positions of the images whose category has references of every image expert."""
    covered = [{found.categories[c] for c in one.coverage} for one in found.experts if one.modality == "image"]
    return [i for i, (name, _) in enumerate(images) if covered and all(name in names for names in covered)]


def searched_evidence(
    searcher: Searcher, vectors: Vectors, experts: Collection[str], pool: LogLinear, top_m: int
) -> tuple[Sequence[str], Doubles]:
    """Returns the evidence of all experts together for images that the store is searched for.

    Args:
        searcher: Searches the store.
        vectors: By encoder, float32 ``(n_images, dim)``, unit rows; at least one image.
        experts: Names of the experts in use.
        pool: A pool with one aggregation of each expert.
        top_m: Number of references that ``top_mean`` averages.

    Returns:
        The categories, ascending; and float64 ``(n_images, n_categories)``, nats.
    """
    found = in_use(searcher.search(vectors, 0), experts)
    similarities = aggregate_experts(found, pool.coefficients, top_m, {})
    evidence = expert_evidence(pool.coefficients, similarities, pool.least)
    return found.categories, log_linear(evidence, list(similarities), pool.neutral)


def in_use(found: SearchResult, experts: Collection[str]) -> SearchResult:
    """Returns the result of a search without the experts that are not in use."""
    return replace(found, experts=tuple(expert for expert in found.experts if expert.name in experts))
