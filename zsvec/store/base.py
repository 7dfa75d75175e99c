"""What a Qdrant deployment must offer to hold a store, and what zsvec keeps in it.

A store owns the collections of one namespace: one per encoder, whose points are references, and a
catalog, whose points are records:

- one for the store, with the version of this schema and, by encoder, the fingerprint of what made its vectors;
- one manifest per category, which names the generations of references that are live. It is written
  with compare-and-set, and so is the commit of everything that it names;
- one for the calibration of the whole.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zsvec.types import Category, Fingerprint, Modality

SCHEMA = 1
CATALOG = "catalog"
REFERENCE_INDEXES: Mapping[str, str] = {
    "category": "keyword",
    "modality": "keyword",
    "gen": "keyword",
    "rev": "integer",
}
CATALOG_INDEXES: Mapping[str, str] = {
    "kind": "keyword",
    "category": "keyword",
    "gen": "keyword",
    "rev": "integer",
}

_NAMESPACE = uuid.UUID("6b1f3c80-7a0c-5a52-9d0e-2f6f3a1f5b7e")
_WRITERS_KEPT = 8  # tokens in a manifest, so that a writer finds its own though others wrote since


@dataclass(frozen=True, slots=True)
class Where:
    """A filter over payloads: all of `match`, none of `exclude`, and ``rev`` at least `since`."""

    match: Mapping[str, str | int | Sequence[str]] = field(default_factory=dict)
    exclude: Mapping[str, Sequence[str]] = field(default_factory=dict)
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one collection: ids, payloads, and float32 vectors ``(n, dim)``; ``dim`` is 0 if not asked for."""

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    payloads: Sequence[Mapping[str, Any]]


def stack(vectors: Sequence[Any]) -> NDArray[np.float32]:
    """Vectors as a client gives them, ``None`` where they were not asked for, as the matrix of `Points`."""
    asked = [vector for vector in vectors if vector is not None]
    return np.array(asked, dtype=np.float32) if asked else np.empty((len(vectors), 0), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Hit:
    """A reference found by a nearest-neighbour query, with its cosine to the query."""

    id: str
    similarity: float
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """A point of the catalog, and the version that it must replace (``None``: it must be new)."""

    id: str
    payload: Mapping[str, Any]
    expected: int | None


class Backend(Protocol):
    """Collections of points, in process or on a server.

    Every failure is an error of `zsvec.errors`. A write is visible to everyone when its method returns.
    """

    location: str
    exclusive: bool  # no other process can write

    def check(self) -> None:
        """Refuse to be used once closed, or in a process forked from that which opened it."""

    def exists(self, collection: str) -> bool:
        """Whether there is a collection of this name."""

    def create(self, collection: str, dim: int, indexes: Mapping[str, str]) -> None:
        """Make a collection for exact cosine search with its payload indexes; keep one that exists."""

    def upsert(self, collection: str, points: Points) -> None:
        """Write points; the same ids again change nothing."""

    def put(self, collection: str, records: Sequence[Record]) -> None:
        """Write each record if the stored version is the expected one. It does not say which were written."""

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Payloads of those of the points that exist, by id."""

    def scroll(
        self, collection: str, where: Where, *, vectors: bool = False, fields: Sequence[str] | None = None
    ) -> Iterator[Points]:
        """All matching points, page by page; payloads reduced to `fields` if given."""

    def newest(self, collection: str) -> int:
        """The largest ``rev`` in a collection, 0 if there is none."""

    def query(
        self, collection: str, vectors: NDArray[np.float32], where: Where, limit: int, fields: Sequence[str]
    ) -> list[list[Hit]]:
        """The `limit` nearest matching points of each vector, nearest first, by exact search."""

    def delete(self, collection: str, where: Where) -> None:
        """Delete all matching points."""

    def count(self, collection: str, where: Where) -> int:
        """Exact number of matching points."""

    def versions(self) -> Mapping[str, str]:
        """What runs the backend, for `zsvec info`."""

    def flush(self) -> None:
        """Make what is written survive a loss of power."""

    def close(self) -> None:
        """Let go of files and connections."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A text or an image of a category, embedded by one encoder.

    Attributes:
        encoder: Name of the encoder.
        modality: What was embedded.
        hash: Content hash of the text or image; one content is one reference of a category.
        source: The text itself, or where the image came from.
        vector: float32 ``(dim,)``, unit norm.
        prompt: What an image was generated from, if it was.
    """

    encoder: str
    modality: Modality
    hash: str
    source: str
    vector: NDArray[np.float32]
    prompt: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same reference of a category again."""
        return self.encoder, self.modality, self.hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """References to commit to one category.

    Attributes:
        name: The category.
        references: What to add to it.
        texts: Its definition texts among them.
        metadata: JSON to keep with it; ``None`` keeps what is there.
        replace: Whether what the category held before goes.
    """

    name: str
    references: Sequence[Reference]
    texts: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    replace: bool = False


def point_id(encoder: str, category: str, modality: str, gen: str, content_hash: str) -> str:
    """The id of a reference: the same content of the same generation is the same point."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((encoder, category, modality, gen, content_hash))))


def record_id(kind: str, name: str) -> str:
    """The id of a record of the catalog."""
    return str(uuid.uuid5(_NAMESPACE, f"{kind}\0{name}"))


def new_write_id() -> str:
    """A name for a generation that nobody else takes, which tells when it was begun."""
    return f"{time.time_ns() // 1000:014x}-{uuid.uuid4().hex[:12]}"


def write_age(gen: str) -> float:
    """Seconds since a generation was begun."""
    return time.time() - int(gen.split("-")[0], 16) / 1e6


def store_record(fingerprints: Mapping[str, Fingerprint]) -> Record:
    """The record that says what made the vectors: one for all encoders, so that it is there whole or not at all."""
    encoders = {name: asdict(fingerprint) for name, fingerprint in fingerprints.items()}
    payload = {"kind": "store", "schema": SCHEMA, "version": 1, "encoders": encoders}
    return Record(record_id("store", ""), payload, None)


def manifest_record(category: Category, writer: str, before: Mapping[str, Any] | None, expected: int | None) -> Record:
    """The record that commits a category; one without generations is removed.

    Args:
        category: As it shall be.
        writer: Token by which the writer finds out whether the commit won.
        before: The manifest that is replaced, if there is one.
        expected: Its version.
    """
    payload = {
        "kind": "category",
        "category": category.name,
        "version": category.version,
        "rev": category.rev,
        "gen": list(category.write_ids),
        "references": dict(category.references),
        "texts": list(category.texts),
        "metadata": dict(category.metadata),
        "writers": [writer, *(before["writers"] if before else ())][:_WRITERS_KEPT],
        "deleted": not category.write_ids,
    }
    return Record(record_id("category", category.name), payload, expected)


def calibration_record(
    calibration: Mapping[str, Any], writer: str, rev: int, before: Mapping[str, Any] | None
) -> Record:
    """The record that commits a calibration.

    Args:
        calibration: JSON.
        writer: Token by which the writer finds out whether the commit won.
        rev: Of this commit.
        before: The record that is replaced, if there is one.
    """
    expected = before["version"] if before else None
    payload = {
        "kind": "calibration",
        "version": (expected or 0) + 1,
        "rev": rev,
        "writer": writer,
        "calibration": dict(calibration),
    }
    return Record(record_id("calibration", ""), payload, expected)


def category_of(payload: Mapping[str, Any]) -> Category:
    """The category that a manifest commits."""
    return Category(
        name=payload["category"],
        version=payload["version"],
        rev=payload["rev"],
        write_ids=tuple(payload["gen"]),
        texts=tuple(payload["texts"]),
        references=payload["references"],
        metadata=payload["metadata"],
    )
