"""Attaches collections of others, after a check that the encoder of the store made their vectors; or copies them."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import EncoderMismatchError, InvalidInputError, shown
from zsvec.ingest.embedding import Embedder
from zsvec.inputs.categories import CategoryInput
from zsvec.store import Store
from zsvec.types import Attached, Attachment, Category, encoder_and_modality

SAMPLE = 16
"""Number of points whose source is embedded again before a collection is attached."""

_SAME = 0.99  # least cosine of a stored vector and the vector of its source, in the median


def new_attachment(
    collection: str,
    *,
    label: str,
    expert: str,
    vector: str,
    where: Mapping[str, str | int | bool] | None,
    source: str | None,
    refresh: float,
) -> Attachment:
    """Returns an attachment with a new id.

    Raises:
        InvalidInputError: An argument has the wrong type.
    """
    texts = {"collection": collection, "label": label, "expert": expert, "vector": vector, "source": source or ""}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InvalidInputError(f"{name} must be a str, got {shown(text)}")
    if not isinstance(where or {}, Mapping) or not all(isinstance(name, str) for name in where or {}):
        raise InvalidInputError(f"where must map names of payload fields to values, got {shown(where)}")
    if not isinstance(refresh, int | float) or isinstance(refresh, bool):
        raise InvalidInputError(f"refresh must be a number of seconds, got {shown(refresh)}")
    return Attachment(
        collection=collection,
        label=label,
        expert=expert,
        vector=vector,
        where=dict(where or {}),
        source=source or None,
        refresh=float(refresh),
        id=uuid.uuid4().hex,
    )


def attach(store: Store, embedder: Embedder, attachment: Attachment, create: Callable[[], None]) -> Attached:
    """As `zsvec.classifier.Classifier.attach`. `create` creates the store if there is none."""
    compared = _compare(store, embedder, attachment, create)
    return store.attach(replace(attachment, compared=compared))


def copy(
    store: Store,
    embedder: Embedder,
    attachment: Attachment,
    create: Callable[[], None],
    add: Callable[[Iterator[CategoryInput]], Sequence[Category]],
) -> Sequence[Category]:
    """Copies the points of a collection to the categories of a store. Points that were copied before are left out.

    Args:
        store: The store.
        embedder: Embeds the sources of a sample again.
        attachment: Names the collection, and the category of its points.
        create: Creates the store if there is none.
        add: Adds categories to the store.
    """
    _compare(store, embedder, attachment, create)
    return add(_categories(store, attachment))


def _categories(store: Store, attachment: Attachment) -> Iterator[CategoryInput]:
    rows: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    sources: dict[str, list[str]] = defaultdict(list)
    for page in store.points_of(attachment):
        for payload, row in zip(page.payloads, page.vectors, strict=True):
            rows[payload["category"]].append(row)
            sources[payload["category"]].append(payload["source"])
    for name in sorted(rows):
        vectors = {attachment.expert: np.stack(rows.pop(name))}
        yield CategoryInput(name=name, texts=(), vectors=vectors, sources=sources[name])  # no texts, as attached


def _compare(store: Store, embedder: Embedder, attachment: Attachment, create: Callable[[], None]) -> int:
    """Checks a collection, and embeds the sources of a sample of points again. Returns the number of compared points.

    Raises:
        EncoderMismatchError: The vectors of the collection come from another encoder.
    """
    there = store.encoders()
    page = store.first_points(attachment, there or embedder.encoders.fingerprints, SAMPLE)
    if not there:
        create()
    if attachment.source is None or not page.ids:
        return 0
    encoder, modality = encoder_and_modality(attachment.expert)
    sources = [payload["source"] for payload in page.payloads]
    again: dict[int, NDArray[np.float32]]
    if modality == "text":
        again = dict(enumerate(embedder.encoders[encoder].encode_texts(sources)))
    else:
        embeddings = enumerate(embedder.stream(sources, SAMPLE))
        again = {i: one.vectors[encoder] for i, one in embeddings if one.error is None}
    if not again:
        return 0
    cosines = [float(page.vectors[i] @ vector) for i, vector in again.items()]
    if (median := float(np.median(cosines))) < _SAME:
        raise EncoderMismatchError(
            f"vectors of {attachment.collection!r} must come from the encoder {encoder!r} "
            f"({store.encoders()[encoder]}), got others: the sources of {len(cosines)} points, embedded again, have a "
            f"median cosine of {median:.2f} to the stored vectors. Open a store with the encoder of the collection"
        )
    return len(cosines)
