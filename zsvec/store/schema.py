"""What zsvec keeps in Qdrant: the names of its collections, the ids of its points, and their payloads.

A store owns the collections of one namespace: one per encoder, whose points are references, and the
catalog, whose points are records:

- one record for the store: the version of this schema and the fingerprint of each encoder;
- one manifest per category, which names the writes whose references are live (payload key ``gen``);
- one record for the calibration.

Every record has a version, 1 when it is new and one more for each replacement, and is written by compare-and-set
(`zsvec.store.catalog`). The keys of the payloads are the format of stores on disk.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.types import CALIBRATION_FORMAT, Category, Fingerprint, Modality

SCHEMA = 1
CATALOG = "catalog"
REFERENCE_INDEXES: Mapping[str, str] = {"category": "keyword", "modality": "keyword", "gen": "keyword"}
CATALOG_INDEXES: Mapping[str, str] = {"kind": "keyword", "rev": "integer"}

_NAMESPACE = uuid.UUID("6b1f3c80-7a0c-5a52-9d0e-2f6f3a1f5b7e")
_WRITERS_KEPT = 8  # tokens in a manifest, so that a writer finds its own after others have written


# Names and ids


def collection_name(namespace: str, encoder: str) -> str:
    """Name of the collection of an encoder's references; of the catalog, for `CATALOG`."""
    return f"{namespace}__{encoder}"


def point_id(encoder: str, category: str, modality: str, write_id: str, content_hash: str) -> str:
    """Id of a reference: the same content in the same write is the same point."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join((encoder, category, modality, write_id, content_hash))))


def record_id(kind: str, name: str = "") -> str:
    """Id of a record of the catalog.

    Args:
        kind: ``store``, ``category`` or ``calibration``.
        name: Of the category.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{kind}\0{name}"))


def new_write_id() -> str:
    """A unique write id, which tells when the write began."""
    return f"{time.time_ns() // 1000:014x}-{uuid.uuid4().hex[:12]}"


def write_age(write_id: str) -> float:
    """Seconds since a write began."""
    return time.time() - int(write_id.split("-")[0], 16) / 1e6


# References


@dataclass(frozen=True, slots=True)
class Reference:
    """A text or an image of a category, embedded by one encoder.

    Attributes:
        encoder: Name of the encoder.
        modality: What was embedded.
        hash: Content hash of the text or image; one content is one reference of a category.
        source: The text itself, or where the image came from.
        vector: float32 ``(dim,)``, unit norm.
        prompt: What a generated image was drawn from.
    """

    encoder: str
    modality: Modality
    hash: str
    source: str
    vector: NDArray[np.float32]
    prompt: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Encoder, modality and content hash: equal for the same reference of a category."""
        return self.encoder, self.modality, self.hash


def reference_payload(reference: Reference, category: str, write_id: str) -> dict[str, Any]:
    """The payload of a reference."""
    payload = {
        "category": category,
        "modality": reference.modality,
        "gen": write_id,
        "hash": reference.hash,
        "source": reference.source,
    }
    return payload if reference.prompt is None else {**payload, "prompt": reference.prompt}


def reference_from(encoder: str, payload: Mapping[str, Any], vector: NDArray[np.float32]) -> Reference:
    """The reference of a payload."""
    return Reference(encoder, payload["modality"], payload["hash"], payload["source"], vector, payload.get("prompt"))


# Records


def store_payload(fingerprints: Mapping[str, Fingerprint]) -> dict[str, Any]:
    """The record of a store: one for all encoders, so that it is there whole or not at all."""
    encoders = {name: asdict(fingerprint) for name, fingerprint in fingerprints.items()}
    return {"kind": "store", "schema": SCHEMA, "version": 1, "encoders": encoders}


def manifest_payload(category: Category, writer: str, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest that commits a category; without write ids, the category is removed.

    Args:
        category: The category to commit.
        writer: Token by which the writer recognises its own commit.
        before: The manifest that is replaced, if there is one.
    """
    return {
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


def category_from(manifest: Mapping[str, Any]) -> Category:
    """The category that a manifest commits."""
    return Category(
        name=manifest["category"],
        version=manifest["version"],
        rev=manifest["rev"],
        write_ids=tuple(manifest["gen"]),
        texts=tuple(manifest["texts"]),
        references=manifest["references"],
        metadata=manifest["metadata"],
    )


def calibration_payload(
    calibration: Mapping[str, Any], writer: str, rev: int, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The record that commits a calibration.

    Args:
        calibration: JSON.
        writer: Token by which the writer recognises its own commit.
        rev: Of this commit.
        before: The record that is replaced, if there is one.
    """
    return {
        "kind": "calibration",
        "version": before["version"] + 1 if before else 1,
        "rev": rev,
        "writer": writer,
        "calibration": dict(calibration),
    }


def calibrated_revision(calibration: Mapping[str, Any] | None) -> int | None:
    """Largest ``rev`` that a calibration was made from; ``None`` for none, and for one of another format."""
    if not calibration or calibration.get("format") != CALIBRATION_FORMAT:
        return None
    revision: int = calibration["revision"]
    return revision
